"""Goes through a tree that does not change, directory by directory, each opened beneath the one that the walk began in.

No call follows a link, or crosses into another filesystem unless that is wanted, and one directory is open at a time, so that
neither depth nor breadth is limited.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kopiatomic import presence
from kopiatomic.immutable import immutable
from kopiatomic.model.record import EntryKind

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.LINK,
    stat.S_IFIFO: EntryKind.FIFO,
    stat.S_IFSOCK: EntryKind.SOCKET,
    stat.S_IFCHR: EntryKind.CHARACTER,
    stat.S_IFBLK: EntryKind.BLOCK,
}


def kind_of(status: os.stat_result) -> EntryKind:
    """Return what an entry is."""
    return _KINDS[stat.S_IFMT(status.st_mode)]


@immutable
class Directory:
    """A directory of the walk, open as long as the walk stands at it."""

    path: str
    """Relative to the top of the walk; empty for the top."""
    fd: int
    entries: tuple[os.DirEntry[str], ...]
    """What is in it, sorted by the bytes of the names; on other filesystems as well. The status can be asked for meanwhile."""


@contextmanager
def opened(top: int, path: str) -> Iterator[int]:
    """Yield a directory below an open one, of any depth, opened without following a link. Raises OSError."""
    # Not a copy: a listing of Btrfs's has nothing that was made after the opening.
    fd = os.open(".", _OPEN, dir_fd=top)
    try:
        for name in path.split("/") if path else ():
            if name in {"", ".", ".."}:
                raise OSError(errno.EINVAL, "it is no plain path", path)
            inside = os.open(name, _OPEN, dir_fd=fd)
            os.close(fd)
            fd = inside
        yield fd
    finally:
        os.close(fd)


def walk(top: int, unreadable: Callable[[str, OSError], None], *, across: bool = False) -> Iterator[Directory]:
    """Yield each directory of a tree, ``top`` first and each before what is in it, sorted by the bytes of the names.

    Mount points are entries, and are entered only if ``across``. ``unreadable`` is called with the path of what cannot be read.
    Raises OSError if a directory is gone.
    """
    device = None if across else os.fstat(top).st_dev
    waiting = [""]
    while waiting:
        path = waiting.pop()
        try:
            with opened(top, path) as fd:
                entries = _listed(fd)
                inside = [f"{path}/{one.name}" if path else one.name for one in entries if _is_directory(one, device)]
                yield Directory(path, fd, entries)
        except OSError as error:
            if presence.moved(error):
                # Nothing is moved in a tree that does not change: it is not that tree any more.
                raise
            unreadable(path, error)
            continue
        waiting += reversed(inside)


def _is_directory(entry: os.DirEntry[str], device: int | None) -> bool:
    """Whether it is a directory, on that filesystem if one is given. Raises OSError."""
    return entry.is_dir(follow_symlinks=False) and (
        device is None or entry.stat(follow_symlinks=False).st_dev == device
    )


def _listed(fd: int) -> tuple[os.DirEntry[str], ...]:
    with os.scandir(fd) as entries:
        return tuple(sorted(entries, key=lambda entry: os.fsencode(entry.name)))
