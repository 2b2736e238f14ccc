"""Starting programs so that Ctrl-C reaches the demonstration alone, which then ends them in order."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import IO

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOK_S = 0.05
PATIENCE_S = 60.0
"""How long a program has to end after SIGTERM; kopiatomic itself gives its engine 30 seconds."""

_noted: list[int] = []


class DemoError(Exception):
    """The demonstration cannot go on: what failed, and what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Stopped(Exception):
    """A signal asked the demonstration to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def note_signals() -> None:
    """From now on a signal ends the demonstration at its next wait, never between making a thing and knowing of it."""

    def note(number: int, _frame: FrameType | None) -> None:
        _noted.append(number)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, note)


def check_signals() -> None:
    """Raise Stopped if a signal came."""
    if _noted:
        raise Stopped(_noted[0])


def pause(seconds: float) -> None:
    """Wait. Raises Stopped."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        check_signals()
        time.sleep(min(LOOK_S, left))


def run(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, shown: bool = False, name: str | None = None
) -> str:
    """Run a program to its end and return its output; if `shown` it goes to the terminal instead.

    `name` is what an error calls it, where that is not the command itself.

    Raises DemoError if it fails, Stopped if a signal comes first.
    """
    with started(argv, env=env, shown=shown) as process:
        while True:
            check_signals()
            try:
                output, errors = process.communicate(timeout=LOOK_S)
                break
            except subprocess.TimeoutExpired:
                continue
    check_signals()
    if process.returncode != 0:
        said = "its messages are above" if shown else (errors or output or "it said nothing").strip()
        raise DemoError(f"{name or shlex.join(argv)} ended with exit status {process.returncode}", said)
    return output or ""


@contextmanager
def started(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, shown: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """Start a program in a session of its own; at the end of the block it is ended and waited for."""
    stream: int | IO[str] | None = None if shown else subprocess.PIPE
    try:
        process = subprocess.Popen(
            argv, env=env, stdin=subprocess.PIPE, stdout=stream, stderr=stream, text=True, start_new_session=True
        )
    except FileNotFoundError:
        raise DemoError(f"{argv[0]} is not installed", "./demo installs all that it needs; start it that way") from None
    with process:
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    """End a program if it still runs: kopia must get SIGTERM only once, and kopiatomic the time to clear up."""
    if process.poll() is None:
        process.terminate()
        try:
            process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
