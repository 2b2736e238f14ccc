"""The exit code of a run says what is true of it: 0 only if everything that was asked for is."""

import signal
from typing import Any

import pytest

from kopiatomic.errors import Interrupted, KopiatomicError, LockedError, UsageError
from kopiatomic.model.engine import EngineEnd, EngineResult
from kopiatomic.model.report import EngineReport, Report

FAILURE = KopiatomicError("it failed", kind="x")


def report(*, saved: bool | None = True, **fields: Any) -> Report:
    """``saved`` None: the engine never ran."""
    made = Report("20261122T101112Z-01234567", "/kopia", **fields)
    if saved is not None:
        result = EngineResult(saved=saved, complete=saved, message="")
        made.engine = EngineReport("kopia", "0.22.3", (), EngineEnd(0, stopped=False), result)
    return made


@pytest.mark.parametrize(
    ("made", "code", "word"),
    [
        pytest.param(report(), 0, "saved", id="saved"),
        pytest.param(report(incomplete=["a file"]), 3, "incomplete", id="incomplete"),
        pytest.param(report(left_behind=["a snapshot"]), 4, "unclean", id="something left behind"),
        pytest.param(report(hook_error=FAILURE), 4, "unclean", id="-q failed after a good backup"),
        pytest.param(report(incomplete=["a file"], hook_error=FAILURE), 4, "unclean", id="incomplete and -q failed"),
        pytest.param(report(error=FAILURE), 1, "failed", id="failed after the engine"),
        pytest.param(report(error=FAILURE, left_behind=["a snapshot"]), 1, "failed", id="failed and left behind"),
        pytest.param(report(error=FAILURE, hook_error=FAILURE), 1, "failed", id="failed and -q failed"),
        pytest.param(report(saved=False), 1, "failed", id="engine saved nothing"),
        pytest.param(report(saved=None), 1, "failed", id="engine never ran"),
        pytest.param(report(saved=None, error=UsageError("", kind="x")), 2, "failed", id="usage"),
        pytest.param(report(saved=None, error=LockedError("", kind="x")), 75, "failed", id="locked"),
        pytest.param(report(error=Interrupted(signal.SIGTERM)), 143, "interrupted", id="SIGTERM"),
        pytest.param(report(error=Interrupted(signal.SIGINT), incomplete=["x"]), 130, "interrupted", id="SIGINT"),
        pytest.param(report(saved=None, dry_run=True), 0, "planned", id="dry run"),
        pytest.param(report(saved=None, dry_run=True, incomplete=["x"]), 3, "incomplete", id="incomplete dry run"),
        pytest.param(report(saved=None, dry_run=True, error=FAILURE), 1, "failed", id="failed dry run"),
    ],
)
def test_exit_codes(made: Report, code: int, word: str) -> None:
    assert (made.exit_code, made.result) == (code, word)


def test_a_phase_that_comes_twice_is_added_up() -> None:
    made = report()
    for _ in range(2):
        with made.phase("plan"):
            pass
    first = made.durations["plan"]
    with pytest.raises(KeyError), made.phase("plan"):
        raise KeyError
    assert made.durations["plan"] > first > 0
