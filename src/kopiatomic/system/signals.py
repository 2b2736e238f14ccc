"""Signals that ask a run to end: noted by a handler, raised as an exception only where a wait is safe to leave.

Signal handling belongs to the process, so this is a module and not an object. Every wait of the main process watches
:func:`fd` and calls :func:`check`; clean-up runs inside :func:`deferred`, where signals are noted and not raised.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kopiatomic.errors import Interrupted

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

_pending: list[int] = []
_read_end = -1
_write_end = -1
_deferred = 0


def _note(signum: int, _frame: FrameType | None) -> None:
    _pending.append(signum)


@contextmanager
def handled() -> Iterator[None]:
    """Handle the ending signals; those ignored at the start (nohup, background jobs) stay ignored."""
    global _read_end, _write_end
    _read_end, _write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    previous_fd = signal.set_wakeup_fd(_write_end, warn_on_full_buffer=False)
    previous = {s: signal.getsignal(s) for s in ENDING}
    for signum, handler in previous.items():
        if handler is not signal.SIG_IGN:
            signal.signal(signum, _note)
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(previous_fd)
        os.close(_read_end)
        os.close(_write_end)
        _read_end = _write_end = -1
        _pending.clear()


def fd() -> int | None:
    """Readable when a signal came; None where signals are not handled (tests, keeper, launcher)."""
    return _read_end if _read_end >= 0 else None


def count() -> int:
    """How many ending signals came so far."""
    return len(_pending)


def first() -> int | None:
    """The first ending signal that came."""
    return _pending[0] if _pending else None


def drain() -> None:
    """Empty the descriptor that wakes waits up."""
    if _read_end >= 0:
        try:
            while os.read(_read_end, 512):
                pass
        except BlockingIOError:
            pass


def check() -> None:
    """Raise Interrupted if a signal came, unless signals are deferred."""
    drain()
    if _pending and not _deferred:
        raise Interrupted(_pending[0])


@contextmanager
def deferred() -> Iterator[None]:
    """Clean-up: a signal is noted, and nothing is raised before the end of the block."""
    global _deferred
    _deferred += 1
    try:
        yield
    finally:
        _deferred -= 1


def forget() -> None:
    """In a forked child: back to the default actions, without the parent's descriptors."""
    global _read_end, _write_end
    signal.set_wakeup_fd(-1)
    for signum in ENDING:
        if signal.getsignal(signum) is _note:
            signal.signal(signum, signal.SIG_DFL)
    for end in (_read_end, _write_end):
        if end >= 0:
            os.close(end)
    _read_end = _write_end = -1
    _pending.clear()
