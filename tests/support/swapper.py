"""A user who exchanges a directory and a symbolic link of theirs, again and again, as fast as the kernel can."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


def unsettle(sticky: Path, decoy: Path, folder: str, note: str, drawn: random.Random) -> None:
    """As a user, for :func:`at_work`: exchange what is at ``back`` in a sticky directory of root's, and what is in it.

    Directories, links to ``decoy`` and forged notes of an interrupted restore (in ``folder``) come and go; what is there is
    moved to ``mine``.
    """
    asked_to_end: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked_to_end.append(number))
    os.chdir(sticky)
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    while not asked_to_end:
        act, number = drawn.randrange(8), drawn.randrange(30)
        with suppress(OSError):
            if act == 0:
                os.mkdir("back")
                os.chmod("back", 0o777)
            elif act == 1:
                os.rename("back", f"mine/{number}")
                os.symlink(decoy, "back")
            elif act == 2:
                os.unlink("back")
            elif act == 3:
                os.mkdir(f"back/{folder}")
                Path(f"back/{folder}/what.json").write_text(note)
            elif act == 4:
                os.symlink(decoy, f"back/{folder}")
            elif act == 5:
                os.rename("back/d", f"mine/of-it-{number}")
                os.symlink(decoy, "back/d")
            elif act == 6:
                os.mkdir("back/d")
            else:
                os.rename("back", f"mine/{number}")
    os._exit(0)
