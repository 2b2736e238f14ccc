"""A user who exchanges a directory and a symbolic link of theirs, again and again, as fast as the kernel can."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

USER = 65534
_AT_FDCWD = -100
_EXCHANGE = 1 << 1
"""RENAME_EXCHANGE of renameat2(2): at no moment is either name gone."""

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def swapping(folder: Path, one: str, other: str, seed: int) -> Iterator[None]:
    """Exchange two entries of a user's folder for the length of the block, and leave them as they were."""
    with at_work(lambda: _swap(folder, one, other, random.Random(seed))):
        yield


@contextmanager
def at_work(act: Callable[[], None]) -> Iterator[None]:
    """Have a child act for the length of the block: until SIGTERM, after which it leaves all as it was and exits with 0."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os._exit(1)
    try:
        yield
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the user gave up"
    finally:
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def exchange(one: str | Path, other: str | Path) -> None:
    """Exchange two entries. Raises OSError."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def can_exchange(folder: Path) -> bool:
    """Whether the filesystem of a folder knows RENAME_EXCHANGE: OpenZFS does from 2.2 on."""
    one, other = folder / "exchanged", folder / "exchanged-for"
    for path in (one, other):
        path.touch()
    try:
        exchange(one, other)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    finally:
        for path in (one, other):
            path.unlink()
    return True


def _swap(folder: Path, one: str, other: str, drawn: random.Random) -> None:
    """As a tight loop, and with pauses in which all looks well, so that runs come to every step of theirs."""
    asked_to_end: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked_to_end.append(number))
    # The folders above are root's alone.
    os.chdir(folder)
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    swapped = False
    while not (asked_to_end and not swapped):
        exchange(one, other)
        swapped = not swapped
        if not swapped and drawn.random() < 0.02:
            time.sleep(drawn.random() * 0.02)
    os._exit(0)
