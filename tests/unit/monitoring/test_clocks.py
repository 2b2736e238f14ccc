"""A clock that was wrong: no success of the future hides that there is none, and no duration depends on it."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kopiatomic.commands import schedule as scheduling
from kopiatomic.errors import KopiatomicError
from kopiatomic.monitoring import lateness
from kopiatomic.output.console import Console
from kopiatomic.schedules.schedule import Scheduler
from kopiatomic.state.records import AHEAD, KEPT_ANYHOW, Records, RunRecord
from kopiatomic.system import clock
from tests.unit.support.schedules import HOUR, on_linux, root, schedule, write_all

__all__ = ["on_linux", "root"]

DAY = 24 * HOUR
YEAR = 366 * DAY
NOW = 1_795_000_000.0
"""In November 2026."""

Run = Callable[..., None]


@pytest.fixture
def records(tmp_path: Path, lock_directory: Path) -> Records:
    return Records(str(tmp_path / "state"))


@pytest.fixture
def run(records: Records) -> Run:
    """Record a run of the schedule, by a clock that says ``started``."""
    numbers = iter(range(1000))

    def run(started: float, code: int = 0, keep: float = 1e12) -> None:
        run_id = f"20261122T101112Z-{next(numbers):08x}"
        begun = RunRecord(run_id, "0", "k", "/kopia", started, None, None, None, None, "home")
        records.begin(begun, keep=keep)
        records.end(replace(begun, result="saved" if code == 0 else "failed", exit_code=code, document={}, took=1.0))

    return run


def late(records: Records, now: float, *, synchronised: bool = True) -> KopiatomicError | None:
    """Of a schedule that starts once a day."""
    runs = records.scheduled("home")
    return lateness.Standing(schedule(interval=DAY), runs, now, synchronised).overdue()


@pytest.mark.parametrize("ahead", [AHEAD + 1, DAY, 12 * YEAR])
def test_a_success_of_the_future_is_none(ahead: float, records: Records, run: Run) -> None:
    """The clock was ahead for one run, and is right again; all runs since have failed."""
    run(NOW - 4 * DAY)
    run(NOW + ahead)
    run(NOW - 1, code=1)
    error = late(records, NOW)
    assert error is not None
    assert (error.exit_code, error.kind) == (1, "overdue")
    assert "96 h 00 min ago" in error.message
    run(NOW - 1)
    assert late(records, NOW) is None


def test_a_success_within_five_minutes_of_the_clock_is_one(records: Records, run: Run) -> None:
    run(NOW + AHEAD)
    assert late(records, NOW) is None
    run(NOW - 10 * DAY, code=1)
    assert late(records, NOW) is None


@pytest.mark.parametrize("back", [AHEAD + 1, DAY, 12 * YEAR, NOW + DAY])
def test_a_clock_behind_the_newest_record_was_set_back_or_the_record_is_wrong(
    back: float, records: Records, run: Run
) -> None:
    """By minutes, by a day, by 12 years, to 1970."""
    run(NOW - DAY)
    run(NOW)
    error = late(records, NOW - back)
    assert error is not None
    assert (error.exit_code, error.kind) == (1, "clock")
    assert "begun at 2026-11-18" in error.message
    assert "the clock was set back, or that record is wrong" in error.message
    # The next run is recorded by the clock as it is now.
    run(NOW - back)
    assert late(records, NOW - back) is None


def test_a_clock_that_nobody_has_set_yet_proves_no_record_wrong(records: Records, run: Run) -> None:
    """A machine without a battery wakes up in 1970."""
    run(NOW)
    assert late(records, 60.0, synchronised=False) is None
    assert late(records, 60.0) is not None
    # What is too old is so by any clock.
    error = late(records, NOW + 4 * DAY, synchronised=False)
    assert error is not None
    assert error.kind == "overdue"


def test_a_clock_that_went_twelve_years_ahead_finds_the_last_success_too_old(records: Records, run: Run) -> None:
    run(NOW)
    error = late(records, NOW + 12 * YEAR)
    assert error is not None
    assert error.kind == "overdue"


def test_the_last_true_success_stays_on_record_beside_one_of_the_future(records: Records, run: Run) -> None:
    run(NOW - 10 * DAY)
    run(NOW + 12 * YEAR)
    for _ in range(2 * KEPT_ANYHOW):
        run(NOW, code=1, keep=DAY)
    error = late(records, NOW)
    assert error is not None
    assert "no complete success since 2026-11-08" in error.message


def test_one_run_by_a_clock_that_is_ahead_forgets_no_history(records: Records, run: Run) -> None:
    for day in range(3 * KEPT_ANYHOW):
        run(NOW + day * DAY, keep=YEAR)
    run(NOW + 12 * YEAR, keep=YEAR)
    run(NOW + 3 * KEPT_ANYHOW * DAY, keep=YEAR)
    assert len(records.history(1000)) == 3 * KEPT_ANYHOW + 2


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Australia/Lord_Howe"])
def test_the_hours_of_summer_time_make_nothing_late(
    zone: str, records: Records, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Europe's night of 25 October 2026 has 25 hours, that of 29 March 23; three intervals are three in any zone."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        for night in (1_792_888_200.0, 1_774_744_200.0):
            # 00:30 UTC on either day: half an hour before the clocks change.
            run(night)
            assert late(records, night + 3 * DAY) is None
            error = late(records, night + 3 * DAY + 1)
            assert error is not None
            assert "00:30:00 UTC" in error.message
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_commands_say_it(
    records: Records,
    run: Run,
    on_linux: Scheduler,
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_all(on_linux, schedule(interval=HOUR, state_dir=records.directory), root)
    run(time.time() + DAY)
    for synchronised, code in ((True, 1), (False, 0)):
        monkeypatch.setattr(clock, "synchronised", lambda synchronised=synchronised: synchronised)
        assert scheduling.overdue(on_linux, Console(), name="home") == code
        assert ("the clock was set back" in capsys.readouterr().err) == synchronised
        assert scheduling.show(on_linux, Console(), name="home", as_json=False) == 0
        shown = capsys.readouterr().out
        assert ("CLOCK:" in shown) == synchronised
        assert "Last complete: none recorded" in shown


def test_whether_the_clock_is_synchronised_is_the_kernels_word_or_systemds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake stands for a kernel that says each of adjtimex(2)'s states, and for one that refuses."""
    touched = tmp_path / "synchronized"
    monkeypatch.setattr(clock, "_TIMESYNCD", str(touched))

    class Says:
        def __init__(self, state: int) -> None:
            self.adjtimex = lambda _: state

    for state in range(-1, 6):
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, state=state, **__: Says(state))
        assert clock.synchronised() == (state in range(5))
    touched.touch()
    assert clock.synchronised()


def test_asking_about_the_clock_changes_nothing_and_has_an_answer_here() -> None:
    assert clock.synchronised() in {True, False}
