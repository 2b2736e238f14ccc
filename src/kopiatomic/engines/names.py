"""Names that an engine cannot keep: those that become the same where it replaces each byte that is not text, and those that make
it fail.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from kopiatomic import presence
from kopiatomic.immutable import immutable

_NO_TEXT = re.compile("[\udc80-\udcff]")
_SHOWN = 20
"""How many of them are named; the rest are counted."""


@immutable
class OddNames:
    """How many names become equal to another in their directory, and the paths of the first of them."""

    count: int = 0
    paths: tuple[str, ...] = ()
    breaking: tuple[str, ...] = ()
    """If the engine failed: the first directories whose names make it fail."""


def spelled(path: str, stand_in: str) -> str:
    """Return a path as written by an engine that replaces each byte that is not text."""
    return _NO_TEXT.sub(lambda _: stand_in, path)


def find_collisions(root: int | None, directories: Sequence[str], stand_in: str, go_on: Callable[[], bool]) -> OddNames:
    """Search for such names in directories and everything below, without crossing into other filesystems.

    ``root`` is the directory that stands for ``/``. Stops when ``go_on`` says so. A directory that cannot be opened is
    skipped: the engine has reported it.
    """
    count = 0
    paths: list[str] = []
    for path, fd in _all(root, directories, go_on):
        found = _equal(fd, stand_in)
        count += len(found)
        room = _SHOWN - len(paths)
        paths += [os.path.normpath(f"/{path}/{name}") for name in found[:room]]
    return OddNames(count, tuple(paths))


def find_breaking(root: int | None, directories: Sequence[str], ending: str, go_on: Callable[[], bool]) -> OddNames:
    """Search, in the same way, for directories whose names have this ending."""
    found: list[str] = []
    for path, fd in _all(root, directories, go_on):
        for name in sorted(name for name in os.listdir(fd) if name.endswith(ending)):
            status = presence.status(name, follow_links=False, directory=fd)
            if status is not None and stat.S_ISDIR(status.st_mode):
                found.append(os.path.normpath(f"/{path}/{name}"))
        if len(found) >= _SHOWN:
            break
    return OddNames(breaking=tuple(found[:_SHOWN]))


def _all(root: int | None, directories: Sequence[str], go_on: Callable[[], bool]) -> Iterator[tuple[str, int]]:
    """Yield each directory of all the trees, with its path and open, as long as ``go_on`` says so."""
    base = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if root is None else root
    try:
        for directory in directories:
            for found in _walk(base, directory.strip("/") or "."):
                if not go_on():
                    return
                yield found
    finally:
        os.close(base)


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
