"""The exit code and the result of exec and shell."""

from __future__ import annotations

import signal

import pytest

from kopiatomic.errors import Interrupted, KopiatomicError
from kopiatomic.model.engine import EngineEnd
from kopiatomic.model.report import CommandReport, EngineReport, ShellReport


def report(status: int | None, **more: object) -> CommandReport:
    made = CommandReport("RUN", "/frozen", **more)  # type: ignore[arg-type]
    end = None if status is None else EngineEnd(status, stopped=False)
    made.engine = EngineReport("true", None, ["true"], end)
    return made


@pytest.mark.parametrize(
    ("made", "code", "result"),
    [
        (report(0), 0, "ran"),
        (report(3), 3, "ran"),
        (report(-9), 137, "ran"),
        (report(0, left_behind=["x"]), 4, "unclean"),
        (report(5, left_behind=["x"]), 5, "unclean"),
        (report(0, incomplete=["x"]), 3, "incomplete"),
        (report(5, incomplete=["x"]), 5, "incomplete"),
        (report(0, error=KopiatomicError("view", kind="view-changed")), 1, "failed"),
        (report(9, error=KopiatomicError("view", kind="view-changed")), 1, "failed"),
        (report(0, error=Interrupted(signal.SIGTERM)), 143, "interrupted"),
        (report(None), 1, "failed"),
        (CommandReport("RUN", "/frozen"), 1, "failed"),
    ],
)
def test_the_code_is_the_commands_unless_ours_is_worse(made: CommandReport, code: int, result: str) -> None:
    assert (made.exit_code, made.result) == (code, result)


def test_each_says_what_it_is() -> None:
    assert (CommandReport("RUN", "/").kind, ShellReport("RUN", "/").kind) == ("exec", "shell")
