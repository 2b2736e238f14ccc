"""inotify(7), through ctypes: which of some directories are opened or listed, by whomever."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

_IN_ACCESS = 0x00000001
_IN_OPEN = 0x00000020
_IN_Q_OVERFLOW = 0x00004000
_IN_NONBLOCK = 0o4000
_IN_CLOEXEC = 0o2000000

_HEADER = struct.Struct("iIII")
_BUFFER = 1 << 16


class Reading:
    """Which of some directories have not been looked into since this was made.

    Only what happens to a directory itself counts: who opens a file in one, as a program that lies there is opened, has
    not looked into it. Our own looks count as well.
    """

    def __init__(self) -> None:
        """Raises OSError, EMFILE where the user has as many as fs.inotify.max_user_instances allows."""
        self._fd = _checked(_libc().inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC))
        self._waiting: dict[int, str] = {}
        """The names of those directories, by the numbers of their watches."""

    def add(self, name: str, directory: int) -> None:
        """Watch an open directory (O_PATH is enough). Raises OSError, ENOSPC where there are too many watches."""
        path = f"/proc/self/fd/{directory}".encode()
        self._waiting[_checked(_libc().inotify_add_watch(self._fd, path, _IN_OPEN | _IN_ACCESS))] = name

    def fileno(self) -> int:
        """A descriptor that is readable when there is something to follow."""
        return self._fd

    def follow(self) -> None:
        """Take what has happened by now. One that was looked into is watched no longer, so that nothing piles up."""
        with suppress(BlockingIOError):
            while True:
                for watch, mask, has_name in _events(os.read(self._fd, _BUFFER)):
                    if mask & _IN_Q_OVERFLOW:
                        # So much was read that the kernel has forgotten what.
                        self._waiting.clear()
                    elif not has_name and mask & (_IN_OPEN | _IN_ACCESS) and self._waiting.pop(watch, None) is not None:
                        _libc().inotify_rm_watch(self._fd, watch)

    def unread(self) -> tuple[str, ...]:
        """The names of those that nobody has looked into; nothing is watched any more."""
        self.follow()
        os.close(self._fd)
        return tuple(self._waiting.values())


@contextmanager
def watching() -> Iterator[Reading]:
    """One that stays, unless the block in which it is given its directories fails. Raises OSError."""
    reading = Reading()
    try:
        yield reading
    except OSError:
        os.close(reading.fileno())
        raise


def _events(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """The watch of each event, what has happened, and whether that was with an entry of the directory."""
    position = 0
    while position < len(data):
        number, mask, _, length = _HEADER.unpack_from(data, position)
        yield number, mask, length > 0
        position += _HEADER.size + length


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
