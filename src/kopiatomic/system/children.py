"""The end of our children: whether it has come, how it is brought about, and that none of them stays unreaped."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

_PAUSE = 0.002
"""Seconds between two looks whether a child has ended."""


def has_ended(pid: int) -> bool:
    """Whether a child has ended, without reaping it: until it is reaped, no other process gets its number."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def status(pid: int) -> int:
    """Return the status of a child that has ended, without reaping it: negative if a signal ended it."""
    # Where a debugger follows it, that sees its end first, and only a call that waits sees it after that.
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert found is not None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def kill(pid: int) -> None:
    """Send SIGKILL to a child, unless it has been reaped."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def reap(pid: int, *, wait: bool = True) -> None:
    """Reap a child, unless it has been reaped; without ``wait`` only if it has ended."""
    with suppress(ChildProcessError):
        os.waitpid(pid, 0 if wait else os.WNOHANG)


def stop(pid: int, signum: int, timeout: float) -> bool:
    """Send a signal to a child that has not been reaped; return whether it ends within ``timeout`` seconds, and reap it then."""
    os.kill(pid, signum)
    deadline = time.monotonic() + timeout
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE)
    return True
