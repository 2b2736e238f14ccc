"""Whether what a run owes is run by another process of it: at least once to its end, again only if that is not recorded."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from kopiatomic.hooks.hook import Hook, Moment
from kopiatomic.runs.hooks import Prepared
from kopiatomic.runs.owed import AGAIN, Debt
from kopiatomic.state import locks
from kopiatomic.state.records import Records, RunRecord
from kopiatomic.state.state_file import StateError

RUN = "20261129T101112Z-00000001"
OWED = [Prepared(Hook(Moment.AFTER_FREEZE, ("true",)), {})]


@pytest.fixture
def records(tmp_path: Path) -> Records:
    records = Records(str(tmp_path / "state"))
    run = RunRecord(RUN, "0.1.0", "kopiatomic run home", "/kopia/home", 1000.0, None, None, None, None)
    records.begin(run, keep=1000.0)
    return records


@pytest.fixture
def debt(records: Records) -> Debt:
    return Debt(records, RUN, "home", "/etc/kopiatomic/home.toml")


def test_it_is_told_that_it_runs_again_when_it_was_started_before(debt: Debt) -> None:
    debt.incur(OWED)
    assert debt.again() == ""
    debt.start()
    assert debt.again() == AGAIN


def test_it_does_not_run_again_when_its_end_is_recorded(debt: Debt) -> None:
    """Also if the process that ran it was killed right then."""
    debt.incur(OWED)
    debt.start()
    debt.settle()
    assert debt.again() is None


def test_nothing_is_run_where_nothing_is_owed(debt: Debt) -> None:
    debt.incur([])
    assert debt.again() is None


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_it_runs_again_where_its_record_is_lost(how: str, debt: Debt, records: Records) -> None:
    debt.incur(OWED)
    if how == "gone":
        shutil.rmtree(records.directory)
    else:
        Path(records.path).write_bytes(b"garbage" * 1000)
    assert debt.again() == AGAIN


def test_a_start_that_cannot_be_recorded_is_noted_beside_the_lock(
    debt: Debt, records: Records, lock_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filesystem with the records is full. The words of those that clear what the run left do not remove the note."""

    def full(*_: object) -> None:
        raise StateError("full", kind="state-unwritable")

    debt.incur(OWED)
    pid = os.fork()
    if pid == 0:
        with locks.run(RUN, records.directory):
            monkeypatch.setattr(records, "start", full)
            debt.start()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert [intent.identity for intent in records.intents(RUN)] == [None]
    for _ in range(2):
        assert debt.again() == AGAIN
        with locks.claim(RUN) as held:
            assert held is not None
            assert locks.records_of(RUN) == records.directory
    (lock_directory / f"run-{RUN}").unlink()
    assert debt.again() == ""
