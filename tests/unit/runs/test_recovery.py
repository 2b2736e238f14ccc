"""The lock file of a run that was killed stays until its end is recorded: it alone shows that the run was killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from kopiatomic.commands.history import result_of
from kopiatomic.filesystems.backends import Leftovers
from kopiatomic.runs import recovery
from kopiatomic.runs.recovery import Recovery
from kopiatomic.state import liveness, locks
from kopiatomic.state.records import Records, RunRecord

RUN = "20261129T101112Z-0000000{}"


@pytest.fixture(autouse=True)
def _nothing_else(lock_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs make nothing here that would be looked for."""
    nothing: dict[str, Leftovers] = {}
    monkeypatch.setattr(recovery, "kinds", lambda _: nothing)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(str(tmp_path / "state"))


@pytest.fixture
def others(tmp_path: Path) -> Records:
    return Records(str(tmp_path / "other state"))


def killed(records: Records, number: int = 1, *, before_the_record: bool = False) -> str:
    """A run that is killed after, or before, it has recorded its beginning; its id."""
    run_id = RUN.format(number)
    pid = os.fork()
    if pid == 0:
        with locks.run(run_id, records.directory):
            if not before_the_record:
                mark = str(liveness.mark(run_id))
                records.begin(
                    RunRecord(run_id, "1", "x", "/kopia", time.time(), None, None, None, None, mark_text=mark), keep=1e9
                )
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert locks.has_file(run_id)
    return run_id


def result(records: Records, run_id: str) -> str:
    (run,) = records.run(run_id)
    return result_of(run)


def clear(records: Records) -> Recovery:
    """As every run does first, and ``recover``."""
    looking = Recovery(records, own=None, dry_run=False, warn=lambda _: None)
    looking.recorded()
    looking.remove_stale_files()
    return looking


def test_clearing_with_another_state_directory_does_not_hide_that_a_run_was_killed(
    records: Records, others: Records
) -> None:
    run_id = killed(records)
    assert result(records, run_id) == "interrupted"
    for _ in range(2):
        clear(others)
        assert locks.has_file(run_id)
        assert result(records, run_id) == "interrupted"
    assert clear(records).cleared.interrupted == [run_id]
    assert not locks.has_file(run_id)
    assert result(records, run_id) == "interrupted"


def test_who_clears_what_it_left_without_its_record_leaves_its_file(records: Records, others: Records) -> None:
    run_id = killed(records)
    with locks.claim(run_id) as held:
        assert held is not None
        assert locks.cleared_by(run_id) == str(os.getpid())
    assert locks.cleared_by(run_id) is None
    assert locks.records_of(run_id) == records.directory
    assert clear(records).cleared.interrupted == [run_id]


def test_files_of_which_no_record_speaks_go(records: Records) -> None:
    early = killed(records, 1, before_the_record=True)
    ended = killed(records, 2)
    records.end_dead(ended, "interrupted")
    clear(records)
    assert not locks.has_file(early)
    assert not locks.has_file(ended)


def test_files_stay_where_the_records_cannot_be_read(records: Records) -> None:
    run_id = killed(records)
    Path(records.path).rename(f"{records.path}.away")
    Path(records.path).symlink_to("state.db")
    Recovery(records, own=None, dry_run=False, warn=lambda _: None).remove_stale_files()
    assert locks.has_file(run_id)


def test_the_files_of_others_do_not_grow_without_bound(
    records: Records, others: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_STALE", 2)
    runs = [killed(records, number) for number in range(4)]
    clear(others)
    assert locks.runs() == runs[2:]


def test_a_living_run_keeps_its_file_however_many_there_are(
    records: Records, others: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_STALE", 0)
    run_id = RUN.format(5)
    with locks.run(run_id, records.directory):
        clear(others)
        clear(records)
        assert locks.has_file(run_id)
        assert locks.ask_to_end(run_id)
        assert locks.records_of(run_id) == records.directory
