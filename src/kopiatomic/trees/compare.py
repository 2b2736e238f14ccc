"""Compares a tree with its metadata record."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from kopiatomic.model.record import EntryKind, RecordedEntry
from kopiatomic.system import inodes
from kopiatomic.text import printable
from kopiatomic.trees import attributes
from kopiatomic.trees.outcome import Difference
from kopiatomic.trees.walk import kind_of

_LONGEST = 64
"""Characters of an attribute's value that are shown."""
PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def compare(path: str, directory: int, entry: RecordedEntry, *, flagged: bool) -> Iterator[Difference]:
    """Yield what differs of an entry of an open directory, which exists. ``path`` is only reported. Raises OSError.

    ``flagged``: whether its filesystem has flags and projects.
    """
    status = os.stat(entry.name, dir_fd=directory, follow_symlinks=False)
    kind = kind_of(status)
    if kind is not entry.kind:
        yield Difference(path, "kind of entry", entry.kind.value, kind.value)
        return
    if (status.st_uid, status.st_gid) != (entry.uid, entry.gid):
        yield Difference(path, "owner", f"{entry.uid}:{entry.gid}", f"{status.st_uid}:{status.st_gid}")
    if kind is not EntryKind.LINK and stat.S_IMODE(status.st_mode) != entry.mode:
        yield Difference(path, "mode", f"{entry.mode:04o}", f"{stat.S_IMODE(status.st_mode):04o}")
    if status.st_mtime_ns != entry.mtime_ns:
        yield Difference(path, "modification time", f"{entry.mtime_ns} ns", f"{status.st_mtime_ns} ns")
    if entry.size is not None and status.st_size != entry.size:
        yield Difference(path, "size", str(entry.size), str(status.st_size))
    if entry.target is not None and (target := os.readlink(entry.name, dir_fd=directory)) != entry.target:
        yield Difference(path, "link's target", printable(entry.target), printable(target))
    if entry.device is not None:
        device = os.major(status.st_rdev), os.minor(status.st_rdev)
        if device != entry.device:
            yield Difference(path, "device", "{}:{}".format(*entry.device), "{}:{}".format(*device))
    yield from _xattrs(path, directory, entry)
    if kind in {EntryKind.FILE, EntryKind.DIRECTORY}:
        flags, project = attributes.flags(directory, entry.name) if flagged else (0, 0)
        for flag in inodes.named(flags ^ entry.flags):
            is_set = flag in inodes.named(flags)
            yield Difference(path, f"flag {flag}", *("unset", "set") if is_set else ("set", "unset"))
        if project != entry.project:
            yield Difference(path, "project", str(entry.project), str(project))


def _xattrs(path: str, directory: int, entry: RecordedEntry) -> Iterator[Difference]:
    found = attributes.xattrs(directory, entry.name)
    for name in sorted(found.keys() | entry.xattrs.keys()):
        if found.get(name) != entry.xattrs.get(name):
            yield Difference(
                path, f"attribute {printable(name)}", _shown(entry.xattrs.get(name)), _shown(found.get(name))
            )


def _shown(value: bytes | None) -> str:
    if value is None:
        return "absent"
    if not value:
        return "empty"
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = ""
    # What is no text has numbers of the kernel's: access control lists, capabilities.
    return f'"{_cut(text)}"' if text and text.isprintable() else f"0x{_cut(value.hex())}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
