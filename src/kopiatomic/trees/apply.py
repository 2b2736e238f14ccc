"""Gives a restored tree what its metadata record has: names, links, special files, owners, modes, attributes, times, flags.

Everything is reached from the open directory that the tree is in, one component after the other, and no link is followed. The
record is read four times: for the names that the engine has made the same, forward for what changes directories, backward for the
attributes, so that a directory comes after what is in it, and forward again to compare.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial

from kopiatomic import presence
from kopiatomic.model.record import HERE, MADE, EntryKind, RecordedEntry
from kopiatomic.paths import below, is_at_or_below, parents
from kopiatomic.system import inodes
from kopiatomic.system.descriptors import closing
from kopiatomic.text import printable
from kopiatomic.trees import attributes, shards
from kopiatomic.trees.compare import PATH, compare
from kopiatomic.trees.outcome import Difference, Failure, Outcome
from kopiatomic.trees.shards import Group
from kopiatomic.trees.walk import kind_of, opened

_MODES = {
    EntryKind.FIFO: stat.S_IFIFO,
    EntryKind.SOCKET: stat.S_IFSOCK,
    EntryKind.CHARACTER: stat.S_IFCHR,
    EntryKind.BLOCK: stat.S_IFBLK,
}


class Restorer:
    """Applies a record to the part of a tree at ``base`` (an absolute path in the record), which is in the directory ``top``.

    ``only``: to nothing but the entry with this name in that directory. What comes of it is added to ``outcome``.
    """

    def __init__(
        self, record: shards.Reading | shards.Changed, outcome: Outcome, top: int, base: str, only: str | None = None
    ) -> None:
        self._record = record
        self._outcome = outcome
        self._top = top
        self._base = base.rstrip("/") or "/"
        self._only = only
        self._new = f".kopiatomic-{secrets.token_hex(8)}"
        """A name that nothing has."""
        self._own: RecordedEntry | None = None
        """What is recorded of the top directory itself."""
        self._first: dict[str, str] = {}
        """Where the first name of each file with several is, by the recorded path of the first of all."""
        self._alike: set[tuple[str, str]] = set()
        """Names, each with its directory, that the engine has given to several entries: which is which cannot be told."""
        self._untold: set[str] = set()
        """The paths of those, where what the engine has restored is one of them."""
        self._flagged = inodes.flags(top) is not None

    def apply(self) -> None:
        """Do all of it but for the top directory itself. Raises KopiatomicError if the record is damaged."""
        self._alike = {place for place, names in renamed(self._forward()).items() if len(names) > 1}
        for path, entries in self._forward():
            self._name(path, entries)
            if not self._is_untold(path):
                self._each(path, partial(self._make, path, entries))
        for path, entries in self._backward():
            if not self._is_untold(path):
                self._each(path, partial(self._dress, path, entries))
        self.compare()

    def compare(self) -> None:
        """Compare all of it but the top directory itself. Raises KopiatomicError if the record is damaged."""
        for path, entries in self._forward():
            if self._is_untold(path):
                continue
            if self._is_there(path):
                self._each(path, partial(self._compare, path, entries))
            else:
                self._outcome.absent += [joined(path, entry) for entry in entries]

    def last(self) -> None:
        """Give the top directory itself what is recorded of it: from then on its owner can enter it."""
        if self._own is not None:
            self._each(self._base, partial(self._dress, self._base, [self._own]))
            self._each(self._base, partial(self._compare, self._base, [self._own]))

    def _forward(self) -> Iterator[Group]:
        for group in self._record.forward():
            yield from self._wanted(group)

    def _backward(self) -> Iterator[Group]:
        for group in self._record.backward():
            yield from self._wanted(group)

    def _wanted(self, group: Group) -> Iterator[Group]:
        path, entries = group
        if self._only is not None:
            found = [entry for entry in entries if entry.name == self._only] if path == self._base else []
            if found:
                yield path, found
        elif is_at_or_below(path, self._base):
            if path == self._base and entries[0].name == HERE:
                self._own, *entries = entries
            yield path, entries

    def _each(self, path: str, act: Callable[[int], None]) -> None:
        """Act on a directory of the record, if it is there."""
        with self._noted(path, "it cannot be opened"), self._opened(path) as fd:
            act(fd)

    def _is_untold(self, path: str) -> bool:
        """Whether it cannot be told which entry of the restored tree it is, if any: nothing is given to it."""
        return bool(self._untold) and not self._untold.isdisjoint((path, *parents(path)))

    def _opened(self, path: str) -> AbstractContextManager[int]:
        """Open a directory of the record. Raises OSError."""
        return opened(self._top, below(path, self._base))

    def _is_there(self, path: str) -> bool:
        """Whether a directory of the record is in the restored tree; what hides that is a failure of its own."""
        try:
            with self._opened(path):
                return True
        except NotADirectoryError:
            with self._noted(path, "it cannot be compared"):
                self._compare_way(path)
            return False
        except OSError as error:
            return not presence.absent(error)

    def _compare_way(self, path: str) -> None:
        """Note what stands where a recorded directory, or one above it, should be. Raises OSError."""
        names = below(path, self._base).split("/")
        for depth, name in enumerate(names):
            with opened(self._top, "/".join(names[:depth])) as fd:
                kind = kind_of(os.stat(name, dir_fd=fd, follow_symlinks=False))
            if kind is not EntryKind.DIRECTORY:
                where = _below(self._base, "/".join(names[: depth + 1]))
                found = Difference(where, "kind of entry", EntryKind.DIRECTORY.value, kind.value)
                # It is in the way of all that is recorded below it, which comes next.
                if self._outcome.differences[-1:] != [found]:
                    self._outcome.differences.append(found)
                return

    @contextmanager
    def _noted(self, path: str, words: str, what: str = "") -> Iterator[None]:
        """Note what fails in the block. What is not there is not noted here: the comparison counts it."""
        try:
            yield
        except OSError as error:
            if not presence.absent(error):
                self._outcome.failures.append(Failure(path, words, error.strerror or str(error), what))

    def _setting(self, path: str, what: str) -> AbstractContextManager[None]:
        """Note if what a difference is about cannot be set in the block."""
        return self._noted(path, f"its {what} cannot be set", what)

    # Names, links, special files

    def _name(self, path: str, entries: list[RecordedEntry]) -> None:
        """Give a directory its name."""
        own = entries[0] if entries else None
        if own is not None and own.name == HERE and own.stored is not None and path != self._base:
            above, name = os.path.split(path)
            with self._noted(path, "it cannot be given its name"), self._opened(above) as fd:
                self._rename(above, own.stored, name, fd)

    def _make(self, path: str, entries: list[RecordedEntry], fd: int) -> None:
        for entry in entries:
            whole = joined(path, entry)
            if entry.name == HERE:
                continue
            with self._noted(whole, "it cannot be made"):
                if entry.stored is not None:
                    self._rename(path, entry.stored, entry.name, fd)
                    if whole in self._untold:
                        continue
                if entry.same_as is not None and self._link(fd, entry):
                    continue
                self._first.setdefault(entry.same_as or whole, whole)
                if entry.kind in MADE:
                    self._special(fd, entry)

    def _rename(self, directory: str, stored: str, name: str, fd: int) -> None:
        """Give an entry its name back, unless another one may be meant by the one that it has. Raises OSError."""
        there = presence.status(stored, follow_links=False, directory=fd) is not None
        if there and (directory, stored) in self._alike:
            self._untold.add(_below(directory, name))
            self._outcome.failures.append(
                Failure(
                    _below(directory, name),
                    "another entry has become the same in the backup",
                    f"which of them {printable(stored)} is cannot be told",
                )
            )
        elif there and presence.status(name, follow_links=False, directory=fd) is None:
            os.rename(stored, name, src_dir_fd=fd, dst_dir_fd=fd)

    def _link(self, fd: int, entry: RecordedEntry) -> bool:
        """Make it another name of the first of its file that is in this tree; return False if it is the first. Raises OSError."""
        assert entry.same_as is not None
        # That one may lie outside of what is restored.
        first = self._first.get(entry.same_as)
        if first is None:
            return False
        with self._opened(os.path.dirname(first)) as there:
            name = os.path.basename(first)
            one = presence.status(name, follow_links=False, directory=there)
            other = presence.status(entry.name, follow_links=False, directory=fd)
            if one is None:
                # The engine has left that one out.
                del self._first[entry.same_as]
                return False
            if other is None or not os.path.samestat(one, other):
                os.link(name, self._new, src_dir_fd=there, dst_dir_fd=fd, follow_symlinks=False)
                os.rename(self._new, entry.name, src_dir_fd=fd, dst_dir_fd=fd)
        return True

    @staticmethod
    def _special(fd: int, entry: RecordedEntry) -> None:
        device = os.makedev(*entry.device) if entry.device is not None else 0
        with suppress(FileExistsError):
            os.mknod(entry.name, _MODES[entry.kind] | 0o600, device, dir_fd=fd)

    # Attributes

    def _dress(self, path: str, entries: list[RecordedEntry], fd: int) -> None:
        # The directory itself, which is the first, comes last.
        for entry in reversed(entries):
            whole = joined(path, entry)
            if whole in self._untold:
                continue
            with self._noted(whole, "it cannot be opened"):
                self._give(whole, fd, entry)

    def _give(self, whole: str, fd: int, entry: RecordedEntry) -> None:
        """Give an entry what is recorded of it. Raises OSError if it cannot be opened."""
        with closing(os.open(entry.name, PATH, dir_fd=fd)) as handle:
            if stat.S_IFMT(os.fstat(handle).st_mode) != _FORMATS[entry.kind]:
                # The comparison says that.
                return
            is_plain = entry.kind in {EntryKind.FILE, EntryKind.DIRECTORY}
            if is_plain and self._flagged:
                with self._noted(whole, "its flags cannot be cleared"):
                    _keep_flags(fd, entry.name, entry.flags & ~inodes.HELD)
                self._add_flags(whole, fd, entry.name, entry.flags & ~inodes.HELD)
            with self._setting(whole, "owner"):
                os.chown(entry.name, entry.uid, entry.gid, dir_fd=fd, follow_symlinks=False)
            if entry.kind is not EntryKind.LINK:
                with self._setting(whole, "mode"):
                    os.chmod(f"/proc/self/fd/{handle}", entry.mode)
            self._give_xattrs(whole, fd, entry)
            if is_plain and self._flagged:
                with self._setting(whole, "project"):
                    _set_project(fd, entry.name, entry.project)
            with self._setting(whole, "modification time"):
                os.utime(entry.name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=fd, follow_symlinks=False)
            if is_plain and self._flagged:
                self._add_flags(whole, fd, entry.name, entry.flags & inodes.HELD)
        self._outcome.applied += 1

    def _add_flags(self, whole: str, fd: int, name: str, flags: int) -> None:
        """Set flags, each by itself: a filesystem that has not one of them refuses all that come with it."""
        if not flags:
            return
        with self._noted(whole, "its flags cannot be set"), attributes.opened(fd, name) as file:
            for letter, flag in inodes.LETTERS.items():
                there = inodes.flags(file) or 0
                if flags & flag & ~there:
                    with self._setting(whole, f"flag {letter}"):
                        inodes.set_flags(file, there | flag)

    def _give_xattrs(self, whole: str, fd: int, entry: RecordedEntry) -> None:
        with self._noted(whole, "its attributes cannot be read"):
            there = attributes.xattrs(fd, entry.name)
            for name in there.keys() - entry.xattrs.keys():
                what = f"attribute {printable(name)}"
                with self._noted(whole, f"its {what} cannot be removed", what):
                    attributes.remove_xattr(fd, entry.name, name)
            for name, value in entry.xattrs.items():
                if there.get(name) != value:
                    with self._setting(whole, f"attribute {printable(name)}"):
                        attributes.set_xattr(fd, entry.name, name, value)

    # Comparison

    def _compare(self, path: str, entries: list[RecordedEntry], fd: int) -> None:
        for entry in entries:
            whole = joined(path, entry)
            if whole in self._untold:
                continue
            if entry.name != HERE and presence.status(entry.name, follow_links=False, directory=fd) is None:
                self._outcome.absent.append(whole)
                continue
            self._first.setdefault(entry.same_as or whole, whole)
            with self._noted(whole, "it cannot be compared"):
                self._outcome.differences += compare(whole, fd, entry, flagged=self._flagged)
                if entry.same_as is not None:
                    self._compare_link(whole, fd, entry)

    def _compare_link(self, whole: str, fd: int, entry: RecordedEntry) -> None:
        first = self._first.get(entry.same_as or "", whole)
        with self._opened(os.path.dirname(first)) as there:
            one = presence.status(os.path.basename(first), follow_links=False, directory=there)
        other = os.stat(entry.name, dir_fd=fd, follow_symlinks=False)
        if one is not None and not os.path.samestat(one, other):
            self._outcome.differences.append(
                Difference(whole, "file", f"another name of {printable(first)}", "a file of its own")
            )


_FORMATS = {EntryKind.FILE: stat.S_IFREG, EntryKind.DIRECTORY: stat.S_IFDIR, EntryKind.LINK: stat.S_IFLNK, **_MODES}


def _keep_flags(fd: int, name: str, flags: int) -> None:
    """Clear all other flags."""
    with attributes.opened(fd, name) as file:
        before = inodes.flags(file) or 0
        if before & ~flags:
            inodes.set_flags(file, before & flags)


def _set_project(fd: int, name: str, project: int) -> None:
    with attributes.opened(fd, name) as file:
        found = inodes.project(file)
        if found is not None and found != project:
            inodes.set_project(file, project)
        elif found is None and project:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def renamed(groups: Iterable[Group]) -> dict[tuple[str, str], set[str]]:
    """Return the names that the engine has changed, by their directory and what each has become there.

    Where several have become the same, all of them are there, also one that was so before.
    """
    found: dict[tuple[str, str], set[str]] = {}
    for path, entries in groups:
        for entry in entries:
            if entry.stored is not None:
                directory, name = os.path.split(joined(path, entry))
                found.setdefault((directory, entry.stored), set()).add(name)
    return found


def _below(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}"


def joined(path: str, entry: RecordedEntry) -> str:
    """Return the path of an entry of a directory."""
    return path if entry.name == HERE else _below(path, entry.name)
