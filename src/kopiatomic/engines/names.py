"""Names that an engine cannot keep: those that become the same where it replaces each byte that is not text, and those that make
it fail.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from kopiatomic.immutable import immutable
from kopiatomic.text import is_text, spelled
from kopiatomic.trees.walk import Directory, opened, walk

_SHOWN = 20
"""How many of them are named; the rest are counted."""


@immutable
class OddNames:
    """How many names become equal to another in their directory, and the paths of the first of them."""

    count: int = 0
    paths: tuple[str, ...] = ()
    breaking: tuple[str, ...] = ()
    """If the engine failed: the first directories whose names make it fail."""


def find_collisions(root: int | None, directories: Sequence[str], stand_in: str, go_on: Callable[[], bool]) -> OddNames:
    """Search for such names in directories and everything below, without crossing into other filesystems.

    ``root`` is the directory that stands for ``/``. Stops when ``go_on`` says so. A directory that cannot be opened is
    skipped: the engine has reported it.
    """
    count = 0
    paths: list[str] = []
    for path, directory in _all(root, directories, go_on):
        found = _equal([entry.name for entry in directory.entries], stand_in)
        count += len(found)
        room = _SHOWN - len(paths)
        paths += [os.path.join(path, name) for name in found[:room]]
    return OddNames(count, tuple(paths))


def find_breaking(root: int | None, directories: Sequence[str], ending: str, go_on: Callable[[], bool]) -> OddNames:
    """Search, in the same way, for directories whose names have this ending."""
    found: list[str] = []
    for path, directory in _all(root, directories, go_on):
        found += [
            os.path.join(path, entry.name)
            for entry in directory.entries
            if entry.name.endswith(ending) and entry.is_dir(follow_symlinks=False)
        ]
        if len(found) >= _SHOWN:
            break
    return OddNames(breaking=tuple(found[:_SHOWN]))


def _all(root: int | None, directories: Sequence[str], go_on: Callable[[], bool]) -> Iterator[tuple[str, Directory]]:
    """Yield each directory of all the trees, with its absolute path, as long as ``go_on`` says so."""
    base = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if root is None else root
    try:
        for top in directories:
            for path, directory in _tree(base, top):
                if not go_on():
                    return
                yield path, directory
    finally:
        os.close(base)


def _tree(base: int, top: str) -> Iterator[tuple[str, Directory]]:
    """Yield each directory of one of them. What cannot be read is left out; if something is gone, the search ends there."""
    with suppress(OSError), opened(base, top.strip("/")) as fd:
        for directory in walk(fd, lambda _path, _error: None):
            yield os.path.normpath(os.path.join("/", top, directory.path)), directory


def _equal(names: Sequence[str], stand_in: str) -> list[str]:
    """Return the names in a directory that become the name of another one there."""
    if all(map(is_text, names)):
        return []
    known = Counter(spelled(name, stand_in) for name in names)
    return [name for name in names if known[spelled(name, stand_in)] > 1]
