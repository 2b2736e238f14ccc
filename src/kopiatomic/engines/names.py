"""Different names in a directory that become the same where an engine replaces each byte that is not text."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from kopiatomic.immutable import immutable

_NO_TEXT = re.compile("[\udc80-\udcff]")
_SHOWN = 20
"""How many of them are named; the rest are counted."""


@immutable
class NameCollisions:
    """How many names become equal to another in their directory, and the paths of the first of them."""

    count: int = 0
    paths: tuple[str, ...] = ()


def spelled(path: str, stand_in: str) -> str:
    """Return a path as written by an engine that replaces each byte that is not text."""
    return _NO_TEXT.sub(lambda _: stand_in, path)


def find_collisions(
    root: int | None, directories: Sequence[str], stand_in: str, go_on: Callable[[], bool]
) -> NameCollisions:
    """Search for such names in directories and everything below, without crossing into other filesystems.

    ``root`` is the directory that stands for ``/``. Stops when ``go_on`` says so. A directory that cannot be opened is
    skipped: the engine has reported it.
    """
    count = 0
    paths: list[str] = []
    base = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if root is None else root
    try:
        for directory in directories:
            for path, fd in _walk(base, directory.strip("/") or "."):
                if not go_on():
                    break
                found = _equal(fd, stand_in)
                count += len(found)
                room = _SHOWN - len(paths)
                paths += [os.path.normpath(f"/{path}/{name}") for name in found[:room]]
    finally:
        os.close(base)
    return NameCollisions(count, tuple(paths))


def _walk(base: int, top: str) -> Iterator[tuple[str, int]]:
    """Yield each directory of a filesystem from ``top`` on, with its path and open."""
    waiting, device = [top], None
    while waiting:
        path = waiting.pop()
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base)
        except OSError:
            continue
        try:
            here = os.fstat(fd).st_dev
            device = here if device is None else device
            if here != device:
                continue
            with os.scandir(fd) as entries:
                waiting += [f"{path}/{entry.name}" for entry in entries if entry.is_dir(follow_symlinks=False)]
            yield path, fd
        except OSError:
            continue
        finally:
            os.close(fd)


def _equal(fd: int, stand_in: str) -> list[str]:
    """Return the names in an open directory that become the name of another one there."""
    names = os.listdir(fd)
    if all(map(str.isascii, names)) or not any(map(_NO_TEXT.search, names)):
        return []
    known = Counter(spelled(name, stand_in) for name in names)
    return sorted(name for name in names if known[spelled(name, stand_in)] > 1)
