"""Hooks of a profile are run as they say: as whom, where, with what on their input, for how long; and nothing of them stays."""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.errors import Interrupted
from kopiatomic.hooks import run as hooks
from kopiatomic.hooks.hook import Hook, Moment
from kopiatomic.hooks.run import HookError
from kopiatomic.system import signals
from tests.support.moments import ends

BASE = {"PATH": os.environ["PATH"]}


def hook(*argv: str, **more: Any) -> Hook:
    return Hook(Moment.BEFORE, argv, **{"timeout": 10.0, "place": "home.toml:3:1", **more})


def shell(line: str, **more: Any) -> Hook:
    return hook("/bin/sh", "-c", line, **more)


def output(wanted: Hook, document: Any = None, **variables: str) -> list[str]:
    said: list[str] = []
    hooks.run(wanted, document or {}, {**BASE, **variables}, said.append)
    return said


def failed(wanted: Hook, **more: Any) -> HookError:
    with pytest.raises(HookError) as caught:
        hooks.run(wanted, {}, BASE, lambda _: None, **more)
    assert caught.value.hint
    return caught.value


def test_it_reads_the_document_and_its_output_has_its_name() -> None:
    assert output(hook("cat"), {"run_id": "x", "datasets": ["é"]}) == [
        "before: " + json.dumps({"run_id": "x", "datasets": ["é"]})
    ]
    assert output(shell("echo one; echo two >&2")) == ["before: one", "before: two"]
    assert output(shell("printf '\\033[2Jx'")) == ["before: \\x1b[2Jx"]


def test_no_shell_reads_its_words() -> None:
    assert output(hook("echo", "$HOME;", "a  b")) == ["before: $HOME; a  b"]


def test_its_environment_is_what_it_is_given() -> None:
    assert output(shell("echo $KOPIATOMIC_ROOT $COLOUR $HOME-"), KOPIATOMIC_ROOT="/view", COLOUR="t") == [
        "before: /view t -"
    ]


def test_it_runs_in_its_directory(tmp_path: Path) -> None:
    assert output(hook("pwd")) == ["before: /"]
    assert output(hook("pwd", directory=str(tmp_path))) == [f"before: {tmp_path}"]
    error = failed(hook("pwd", directory=str(tmp_path / "none")))
    assert error.kind == "hook-not-started"
    assert f"its directory {tmp_path}/none cannot be entered: No such file" in error.message


def test_another_user_has_its_rights_alone() -> None:
    said = output(
        shell(
            "id -u; id -G; echo $HOME $USER; ls /proc/self/fd | tr '\\n' ' '; echo; grep CapEff /proc/self/status",
            user="nobody",
        )
    )
    assert said[0] == "before: 65534"
    assert "0" not in said[1].split()[1:]
    assert said[2] == "before: /nonexistent nobody"
    assert said[3].split()[1:] in (["0", "1", "2", "3"], ["0", "1", "2"])
    assert said[4] == "before: CapEff:\t0000000000000000"
    assert failed(hook("true", user="no-such-user")).kind == "no-such-user"


@pytest.mark.parametrize("document", [{}, {"names": ["n" * 100] * 20_000}], ids=["small", "large"])
@pytest.mark.parametrize("line", ["true", "exec <&-; sleep 0.1", "head -c 10 >/dev/null"])
def test_a_hook_need_not_read(line: str, document: Any) -> None:
    assert output(shell(line), document) == []


def test_a_large_document_arrives() -> None:
    assert output(shell("wc -c"), {"names": ["n" * 100] * 20_000}) == [
        f"before: {len(json.dumps({'names': ['n' * 100] * 20_000})) + 1}"
    ]


def test_a_failure_says_where_it_stands_and_how_it_ended() -> None:
    error = failed(shell("echo first; echo why >&2; echo; exit 3"))
    assert (error.kind, error.status) == ("hook-failed", 3)
    assert error.message == "the hook before (home.toml:3:1) failed (exit status 3): why"
    assert failed(shell("kill -9 $$")).status == -9
    again = copy.copy(error)
    assert (again.message, again.kind, again.hint, again.status) == (error.message, error.kind, error.hint, 3)


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("/no/such/program",), "cannot be started: No such file or directory"),
        (("/etc/passwd",), "cannot be started: Permission denied"),
    ],
)
def test_what_cannot_be_started_is_named(argv: tuple[str, ...], why: str) -> None:
    error = failed(hook(*argv))
    assert error.kind == "hook-not-started"
    assert f"{argv[0]} {why}" in error.message


def test_it_is_ended_when_its_time_is_over(tmp_path: Path) -> None:
    began = time.monotonic()
    error = failed(shell(f"trap '' TERM; (setsid sleep 60 & echo $! > {tmp_path}/pid); sleep 60; true", timeout=0.5))
    assert time.monotonic() - began < 8
    assert error.kind == "hook-timeout"
    assert ends(int((tmp_path / "pid").read_text()))


def test_what_it_leaves_running_ends_with_it(tmp_path: Path) -> None:
    """Also where that holds the pipe of its output open."""
    began = time.monotonic()
    assert output(shell(f"setsid sleep 60 & echo $! > {tmp_path}/pid; echo done")) == ["before: done"]
    assert time.monotonic() - began < 8
    assert ends(int((tmp_path / "pid").read_text()))


def test_a_flood_of_output_is_cut() -> None:
    said = output(
        hook(sys.executable, "-c", "print('x' * 99 + '\\n' * 1, end='') or [print('y' * 99) for _ in range(9999)]")
    )
    assert sum(map(len, said[:-1])) <= 2 * hooks.LONGEST_OUTPUT
    assert said[0] == "before: " + "x" * 99
    assert said[-1] == f"before: {100 * 10_000 - hooks.LONGEST_OUTPUT:,} bytes more are not shown"


@pytest.fixture
def later() -> Iterator[Any]:
    """Signals that come to this process later, by seconds."""
    children: list[int] = []

    def send(*after: float) -> None:
        target = os.getpid()
        pid = os.fork()
        if pid == 0:
            for seconds in after:
                time.sleep(seconds)
                os.kill(target, signal.SIGTERM)
            os._exit(0)
        children.append(pid)

    yield send
    for pid in children:
        os.waitpid(pid, 0)


def test_a_signal_ends_it(later: Any, tmp_path: Path) -> None:
    with signals.handled():
        later(0.3)
        began = time.monotonic()
        with pytest.raises(Interrupted):
            output(shell(f"echo $$ > {tmp_path}/pid; sleep 60; true"))
    assert time.monotonic() - began < 8
    assert ends(int((tmp_path / "pid").read_text()))


def test_where_signals_are_deferred_the_second_one_ends_it(later: Any) -> None:
    with signals.handled(), signals.deferred():
        later(0.2, 0.3)
        began = time.monotonic()
        error = failed(shell("sleep 60; true"))
        assert time.monotonic() - began < 8
    assert error.kind == "hook-interrupted"


def test_what_must_come_to_its_end_is_ended_by_no_signal(later: Any, tmp_path: Path) -> None:
    with signals.handled(), signals.deferred():
        later(0.1, 0.1, 0.1)
        hooks.run(shell(f"sleep 1.2; touch {tmp_path}/done"), {}, BASE, lambda _: None, insistent=False)
    assert (tmp_path / "done").exists()
