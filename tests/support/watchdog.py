"""Ends a test that hangs in this process; one in a worker costs its worker (tests/support/stations.py).

Not pytest-timeout: it raises in the test, whose clean-up then waits without end for the very process that does not end.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import pytest

from tests.support.parts import IN_PART
from tests.support.stations import MODULE, SILENCE_LIMIT_S


def children() -> Iterator[int]:
    """The processes that this one has started, but for the workers."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and MODULE.encode() not in (folder / "cmdline").read_bytes():
                yield int(folder.name)


def _end(_signum: int, frame: FrameType | None) -> None:
    traceback.print_stack(frame, file=sys.stderr)
    for pid in children():
        with suppress(OSError):
            print(f"killed: {pid} {Path(f'/proc/{pid}/cmdline').read_bytes()!r}", file=sys.stderr)
            os.kill(pid, signal.SIGKILL)
    pytest.fail("it did not end; what it had started is killed, and its place is above")


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End the block when it has taken so long: all processes that this one has started are killed, and the test fails."""
    previous = signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _watch() -> Iterator[None]:
    if not IN_PART:
        yield
        return
    with limited(SILENCE_LIMIT_S):
        yield


# The older kind of wrapper: Debian 12's pytest knows no other.
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    yield from _watch()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    yield from _watch()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    yield from _watch()
