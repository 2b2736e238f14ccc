"""inotify(7), through ctypes: which of some directories are opened or listed by any process."""

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


class AccessWatch:
    """Which of some directories have not been looked into since this was made.

    Only events of the directory itself count: a process that opens a file in it, for example to execute it, has not looked into
    it. Our own accesses count as well.
    """

    def __init__(self) -> None:
        """Raises OSError, EMFILE if the user has as many as fs.inotify.max_user_instances allows."""
        self._fd = _checked(_libc().inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC))
        self._waiting: dict[int, str] = {}
        """The names of those directories, by the numbers of their watches."""

    def add(self, name: str, directory: int) -> None:
        """Watch an open directory (O_PATH is enough). Raises OSError, ENOSPC if there are too many watches."""
        path = f"/proc/self/fd/{directory}".encode()
        self._waiting[_checked(_libc().inotify_add_watch(self._fd, path, _IN_OPEN | _IN_ACCESS))] = name

    def fileno(self) -> int:
        """Return a descriptor that is readable when there are events."""
        return self._fd

    def follow(self) -> None:
        """Read the events so far. A directory that was looked into is no longer watched, so that no events pile up."""
        with suppress(BlockingIOError):
            while True:
                for watch, mask, has_name in _events(os.read(self._fd, _BUFFER)):
                    if mask & _IN_Q_OVERFLOW:
                        # Events were lost because there were too many.
                        self._waiting.clear()
                    elif not has_name and mask & (_IN_OPEN | _IN_ACCESS) and self._waiting.pop(watch, None) is not None:
                        _libc().inotify_rm_watch(self._fd, watch)

    def unread(self) -> tuple[str, ...]:
        """Return the names of those that no process has looked into; end all watching."""
        self.follow()
        os.close(self._fd)
        return tuple(self._waiting.values())


@contextmanager
def watching() -> Iterator[AccessWatch]:
    """Yield a watch that stays, unless the block that adds its directories fails. Raises OSError."""
    access_watch = AccessWatch()
    try:
        yield access_watch
    except OSError:
        os.close(access_watch.fileno())
        raise


def _events(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """Yield the watch of each event, what happened, and whether it concerned an entry of the directory."""
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
