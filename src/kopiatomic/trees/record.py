"""Makes the metadata record of frozen trees: of every entry that the engine does not keep as it is, in one pass."""

from __future__ import annotations

import os
import stat

from kopiatomic import presence
from kopiatomic.model.record import HERE, SPECIAL, EntryKind, Losses, OwnerNames, Recorded, RecordedEntry, Unrecorded
from kopiatomic.system import inodes
from kopiatomic.text import is_text, spelled
from kopiatomic.trees import attributes
from kopiatomic.trees.cache import Part
from kopiatomic.trees.owners import LISTS, Occurring
from kopiatomic.trees.shards import Writer
from kopiatomic.trees.walk import Directory, kind_of, walk

_FLAGGED = frozenset({EntryKind.FILE, EntryKind.DIRECTORY})
_SHOWN = 20
"""How many of what could not be read are named; the rest are counted."""


class Recorder:
    """Records trees, in the order of their paths. ``losses`` says what of them."""

    def __init__(self, writer: Writer, losses: Losses) -> None:
        self._writer = writer
        self._losses = losses
        self._first: dict[tuple[int, int], str] = {}
        """The path of the first name of each file that has several."""
        self._alike: set[str] = set()
        """The paths of entries whose name the engine gives to another one, too."""
        self._flagged: dict[int, bool] = {}
        """Whether a filesystem has flags and projects, by device."""
        self._occurring = Occurring()
        """Of the tree that is recorded now."""
        self._all = Occurring()
        self._entries = 0
        self._known = 0
        self._unread = 0
        self._named: list[Unrecorded] = []

    def add(self, top: int, path: str) -> Part | None:
        """Record the tree in an open directory, which has this absolute path in the record.

        Return what is recorded of it; None if something could not be read. Raises OSError if the record cannot be written.
        """
        unread = self._unread
        self._occurring = Occurring()
        for directory in walk(top, lambda inside, error: self._unreadable(_joined(path, inside), error)):
            self._directory(_joined(path, directory.path), directory)
        self._all.update(self._occurring)
        part = Part(self._writer.end_tree(), self._occurring.users, self._occurring.groups)
        return part if self._unread == unread else None

    def take(self, part: Part) -> None:
        """Take what is recorded of a tree already. Raises OSError if it cannot be written."""
        for shard, content in part.shards:
            self._writer.take(shard, content)
        self._all.update(Occurring(part.users, part.groups))
        self._entries += part.entries
        self._known += part.entries

    def recorded(self) -> Recorded:
        """Return what has been recorded so far."""
        return Recorded(self._entries, self._writer.size, self._unread, tuple(self._named), self._known)

    def names(self) -> OwnerNames:
        """Return the names of the users and groups that have occurred so far."""
        return self._all.names()

    def _unreadable(self, path: str, error: OSError) -> None:
        self._unread += 1
        if len(self._named) < _SHOWN:
            self._named.append(Unrecorded(path, error.strerror or str(error)))

    def _directory(self, path: str, directory: Directory) -> None:
        own = os.fstat(directory.fd)
        self._flagged.setdefault(own.st_dev, inodes.flags(directory.fd) is not None)
        self._find_alike(path, directory)
        # Directories on this filesystem have their own turn.
        found = [
            self._entry(path, directory.fd, entry.name, entry.stat(follow_symlinks=False))
            for entry in directory.entries
            if not entry.is_dir(follow_symlinks=False)
        ]
        entries = [entry for entry in found if entry is not None]
        # What is made in a directory afterwards changes its time.
        itself = self._entry(path, directory.fd, HERE, own, needed=bool(entries))
        if itself is not None:
            entries.insert(0, itself)
        self._entries += len(entries)
        self._writer.add(path, entries)

    def _find_alike(self, path: str, directory: Directory) -> None:
        """Note the entries that have the very name that the engine gives to another."""
        if not self._losses.stand_in:
            return
        names = {entry.name for entry in directory.entries}
        changed = {spelled(name, self._losses.stand_in) for name in names if not is_text(name)}
        self._alike.update(_joined(path, name) for name in changed & names)

    def _entry(
        self, path: str, fd: int, name: str, status: os.stat_result, *, needed: bool = False
    ) -> RecordedEntry | None:
        """Return what must be recorded of an entry; None if the engine keeps all of it."""
        losses, kind = self._losses, kind_of(status)
        self._occurring.add(status.st_uid, status.st_gid)
        whole = path if name == HERE else _joined(path, name)
        found: dict[str, bytes] = {}
        reads = losses.xattrs or (losses.link_xattrs and kind is EntryKind.LINK)
        flags, project = 0, 0
        flagged = kind in _FLAGGED and self._flagged.get(status.st_dev)
        # The names of those that lists are about are recorded, whoever keeps the lists.
        only = None if reads else LISTS
        try:
            if flagged:
                found, flags, project = attributes.everything(fd, name, only)
            elif reads or kind is not EntryKind.LINK:
                found = attributes.xattrs(fd, name, only)
        except OSError as error:
            if presence.moved(error):
                # Nothing in a frozen tree can be gone.
                raise
            self._unreadable(whole, error)
        self._occurring.add_lists(found)
        if not reads:
            found = {}
        same_as = None
        if status.st_nlink > 1 and kind in losses.hard_links:
            same_as = self._first.setdefault((status.st_dev, status.st_ino), whole)
        mtime = status.st_mtime_ns
        odd = name if name != HERE else os.path.basename(path)
        stored = spelled(odd, losses.stand_in) if losses.stand_in and not is_text(odd) else None
        if whole in self._alike:
            stored = odd
        if not (
            needed
            or found
            or flags
            or project
            or stored is not None
            or same_as is not None
            or kind is EntryKind.SOCKET
            or (kind in SPECIAL and losses.specials)
            or (kind is EntryKind.DIRECTORY and losses.directory_times)
            or (kind is EntryKind.LINK and mtime % losses.link_step_ns)
            or (losses.earliest_ns is not None and mtime < losses.earliest_ns)
            or (losses.latest_ns is not None and mtime > losses.latest_ns)
        ):
            return None
        target = None
        try:
            if not reads:
                # An entry that is recorded is recorded completely.
                found = attributes.xattrs(fd, name)
            if kind is EntryKind.LINK:
                target = os.readlink(name, dir_fd=fd)
        except OSError as error:
            if presence.moved(error):
                # Nothing in a frozen tree can be gone.
                raise
            self._unreadable(whole, error)
        is_device = kind in {EntryKind.CHARACTER, EntryKind.BLOCK}
        return RecordedEntry(
            name=name,
            kind=kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=mtime,
            size=status.st_size if kind is EntryKind.FILE else None,
            target=target,
            device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else None,
            same_as=None if same_as == whole else same_as,
            xattrs=found,
            flags=flags,
            project=project,
            stored=stored,
        )


def _joined(top: str, path: str) -> str:
    return top if not path else f"{top.rstrip('/')}/{path}"
