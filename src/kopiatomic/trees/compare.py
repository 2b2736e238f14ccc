"""Compares a tree with its metadata record."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import field

from kopiatomic.immutable import immutable
from kopiatomic.model.record import EntryKind, RecordedEntry
from kopiatomic.text import printable
from kopiatomic.trees import attributes
from kopiatomic.trees.walk import kind_of

PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@immutable
class Difference:
    """What is not as it is recorded: the path, what of it, and both in words."""

    path: str
    what: str
    recorded: str
    found: str = field(default="")

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.what} is {self.found} and was {self.recorded}"


def compare(path: str, directory: int, entry: RecordedEntry, *, flagged: bool) -> Iterator[Difference]:
    """Yield what differs of an entry of an open directory, which exists. ``path`` is only reported. Raises OSError.

    ``flagged``: whether its filesystem has flags and projects.
    """
    status = os.stat(entry.name, dir_fd=directory, follow_symlinks=False)
    kind = kind_of(status)
    if kind is not entry.kind:
        yield Difference(path, "the kind of entry", entry.kind.value, kind.value)
        return
    if (status.st_uid, status.st_gid) != (entry.uid, entry.gid):
        yield Difference(path, "the owner", f"{entry.uid}:{entry.gid}", f"{status.st_uid}:{status.st_gid}")
    if kind is not EntryKind.LINK and stat.S_IMODE(status.st_mode) != entry.mode:
        yield Difference(path, "the mode", f"{entry.mode:04o}", f"{stat.S_IMODE(status.st_mode):04o}")
    if status.st_mtime_ns != entry.mtime_ns:
        yield Difference(path, "the modification time (ns)", str(entry.mtime_ns), str(status.st_mtime_ns))
    if entry.size is not None and status.st_size != entry.size:
        yield Difference(path, "the size", str(entry.size), str(status.st_size))
    if entry.target is not None and (target := os.readlink(entry.name, dir_fd=directory)) != entry.target:
        yield Difference(path, "the link's target", printable(entry.target), printable(target))
    if entry.device is not None:
        device = os.major(status.st_rdev), os.minor(status.st_rdev)
        if device != entry.device:
            yield Difference(path, "the device", "{}:{}".format(*entry.device), "{}:{}".format(*device))
    yield from _xattrs(path, directory, entry)
    if kind in {EntryKind.FILE, EntryKind.DIRECTORY}:
        flags, project = attributes.flags(directory, entry.name) if flagged else (0, 0)
        if flags != entry.flags:
            yield Difference(path, "the set of flags", f"{entry.flags:#x}", f"{flags:#x}")
        if project != entry.project:
            yield Difference(path, "the project", str(entry.project), str(project))


def _xattrs(path: str, directory: int, entry: RecordedEntry) -> Iterator[Difference]:
    found = attributes.xattrs(directory, entry.name)
    for name in sorted(found.keys() | entry.xattrs.keys()):
        if found.get(name) != entry.xattrs.get(name):
            yield Difference(
                path, f"the attribute {printable(name)}", _shown(entry.xattrs.get(name)), _shown(found.get(name))
            )


def _shown(value: bytes | None) -> str:
    if value is None:
        return "absent"
    return f"{value[:32].hex() or 'empty'}{'...' if len(value) > 32 else ''}"
