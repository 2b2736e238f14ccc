"""What asks a run to end (signals, its time limit): noted by a handler, raised only where a wait is safe to leave.

Signal handling belongs to the process, so this is a module and not an object. Every wait of the main process watches :func:`fd`
and calls :func:`check`; clean-up runs inside :func:`deferred`, where signals are noted and not raised.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType

from kopiatomic.errors import Interrupted, TimedOut

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

_pending: list[int] = []
_read_end = -1
_write_end = -1
_deferred = 0
_limit = 0.0


def _note(signum: int, _frame: FrameType | None) -> None:
    _pending.append(signum)


@contextmanager
def handled(*, limit: float | None = None, on_stop: str | None = None, even: Collection[int] = ()) -> Iterator[None]:
    """Handle the ending signals; those ignored at the start (nohup, background jobs) stay ignored, but for those in ``even``.

    ``limit`` is the time limit of the whole block in seconds; the kernel's timer does not follow a clock that jumps. If
    ``on_stop`` is given, Ctrl-Z writes that line to stderr and stops nothing.
    """
    global _read_end, _write_end, _limit
    _read_end, _write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    previous_fd = signal.set_wakeup_fd(_write_end, warn_on_full_buffer=False)
    previous = {s: signal.getsignal(s) for s in (*ENDING, signal.SIGTSTP)}
    for signum, handler in previous.items():
        if (handler is not signal.SIG_IGN or signum in even) and signum != signal.SIGTSTP:
            signal.signal(signum, _note)
    if on_stop is not None and previous[signal.SIGTSTP] is not signal.SIG_IGN:
        signal.signal(signal.SIGTSTP, lambda *_: _say(on_stop))
    if limit is not None:
        previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, _note)
        _limit = limit
        signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        if limit is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(previous_fd)
        os.close(_read_end)
        os.close(_write_end)
        _read_end = _write_end = -1
        _pending.clear()


@contextmanager
def noted(*signums: signal.Signals) -> Iterator[list[int]]:
    """Note other signals in the order in which they arrive; ignored ones stay ignored.

    If the ending signals are handled, each of these wakes a wait as well.
    """
    came: list[int] = []
    previous = {signum: signal.getsignal(signum) for signum in signums}
    for signum, handler in previous.items():
        if handler is not signal.SIG_IGN:
            signal.signal(signum, lambda number, _: came.append(number))
    try:
        yield came
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _say(line: str) -> None:
    """Write a line from within a handler, where a stream may be in the middle of another line."""
    try:
        os.write(2, f"\n{line}\n".encode())
    except OSError:
        pass


def fd() -> int | None:
    """Return a descriptor that is readable after a signal; None if signals are not handled (tests, keeper, launcher)."""
    return _read_end if _read_end >= 0 else None


def count() -> int:
    """Return how many times the run has been asked to end."""
    return len(_pending)


def alarms() -> int:
    """Return how many of these requests came from the time limit and not from a person."""
    return _pending.count(signal.SIGALRM)


def insisted() -> bool:
    """Whether the request was repeated; a time limit that falls into an orderly stop does not count."""
    return any(signum != signal.SIGALRM for signum in _pending[1:])


def reason() -> Interrupted | None:
    """Return why the run was first asked to end."""
    if not _pending:
        return None
    return TimedOut(_limit) if _pending[0] == signal.SIGALRM else Interrupted(_pending[0])


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
    why = reason()
    if why is not None and not _deferred:
        raise why


def sleep(seconds: float) -> None:
    """Wait. Raises Interrupted."""
    deadline = time.monotonic() + seconds
    check()
    # Not select(2): with many descriptors open, this one's number may be too high for it.
    poll = select.poll()
    if _read_end >= 0:
        poll.register(_read_end, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        poll.poll(left * 1000)
        check()


@contextmanager
def deferred() -> Iterator[None]:
    """Defer signals for clean-up: they are noted, and nothing is raised before the end of the block."""
    global _deferred
    _deferred += 1
    try:
        yield
    finally:
        _deferred -= 1


def fork() -> int:
    """Fork a child that ending signals are to reach: they are blocked there until :func:`forget`, or ``inherited.hand_on``.

    Otherwise one that comes first would be noted by the parent's handler, and forgotten with it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid != 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def forget() -> None:
    """In a forked child: restore the default actions, without the parent's descriptors."""
    global _read_end, _write_end
    signal.set_wakeup_fd(-1)
    for signum in (*ENDING, signal.SIGALRM):
        if signal.getsignal(signum) is _note:
            signal.signal(signum, signal.SIG_DFL)
    for end in (_read_end, _write_end):
        if end >= 0:
            os.close(end)
    _read_end = _write_end = -1
    _pending.clear()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
