"""Owners of a tree by name: which numbers the recorded users and groups have on this machine, and how a tree gets them.

Access control lists have numbers of users and groups as well.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import field

from kopiatomic import presence
from kopiatomic.immutable import immutable
from kopiatomic.model.record import NOBODY, OwnerNames, RecordedEntry
from kopiatomic.system import accounts, inodes
from kopiatomic.text import printable
from kopiatomic.trees import attributes
from kopiatomic.trees.outcome import Failure
from kopiatomic.trees.walk import walk

LISTS = ("system.posix_acl_access", "system.posix_acl_default")
"""The attributes that have numbers of users and groups."""
_CAPABILITY = "security.capability"
_HEAD = struct.Struct("<I")
"""The version of a list (linux/posix_acl_xattr.h)."""
_LINE = struct.Struct("<HHI")
"""Whom it is about, what is allowed, the number of the user or group."""
_USER, _GROUP = 0x02, 0x08


@immutable
class Owners:
    """The numbers that users and groups get, by those that they had; all others keep theirs."""

    users: Mapping[int, int] = field(default_factory=dict)
    groups: Mapping[int, int] = field(default_factory=dict)
    strange: OwnerNames = NOBODY
    """The names that nobody has here, by the numbers that stay."""

    def __bool__(self) -> bool:
        return bool(self.users or self.groups or self.strange.users or self.strange.groups)

    def of(self, uid: int, gid: int) -> tuple[int, int]:
        """Return what an owner becomes."""
        return self.users.get(uid, uid), self.groups.get(gid, gid)

    def entry(self, entry: RecordedEntry) -> RecordedEntry:
        """Return what a recorded entry becomes."""
        uid, gid = self.of(entry.uid, entry.gid)
        return entry._replace(uid=uid, gid=gid, xattrs={**entry.xattrs, **self.lists(entry.xattrs)})

    def lists(self, xattrs: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the access control lists among attributes that become others."""
        found = {}
        for name in LISTS:
            lines = list(_lines(xattrs.get(name, b"")))
            renamed = [(tag, allowed, self._number(tag, number)) for tag, allowed, number in lines]
            if renamed != lines:
                # The kernel wants them in the order of what they are about.
                found[name] = xattrs[name][: _HEAD.size] + b"".join(
                    _LINE.pack(*line) for line in sorted(renamed, key=_order)
                )
        return found

    def _number(self, tag: int, number: int) -> int:
        known = {_USER: self.users, _GROUP: self.groups}.get(tag, {})
        return known.get(number, number)


def _order(line: tuple[int, int, int]) -> tuple[int, int]:
    tag, _, number = line
    return tag, number


def _lines(content: bytes) -> Iterator[tuple[int, int, int]]:
    lines = content[_HEAD.size :]
    yield from _LINE.iter_unpack(lines[: len(lines) - len(lines) % _LINE.size])


class Occurring:
    """The numbers of users and groups that occur in a tree."""

    def __init__(self, users: Iterable[int] = (), groups: Iterable[int] = ()) -> None:
        self.users = set(users)
        self.groups = set(groups)

    def add(self, uid: int, gid: int) -> None:
        """Note the owner of an entry."""
        self.users.add(uid)
        self.groups.add(gid)

    def add_lists(self, xattrs: Mapping[str, bytes]) -> None:
        """Note those that its access control lists name."""
        for name in LISTS:
            for tag, _, number in _lines(xattrs.get(name, b"")):
                if tag == _USER:
                    self.users.add(number)
                elif tag == _GROUP:
                    self.groups.add(number)

    def update(self, other: Occurring) -> None:
        """Add those of another tree."""
        self.users |= other.users
        self.groups |= other.groups

    def among(self, names: OwnerNames) -> list[str]:
        """Return those of some names whose numbers have occurred, in words."""
        users = [f"user {printable(name)}" for number, name in names.users.items() if number in self.users]
        return users + [f"group {printable(name)}" for number, name in names.groups.items() if number in self.groups]

    def names(self) -> OwnerNames:
        """Return their names, of those that have one that is a text."""
        return OwnerNames(_named(self.users, accounts.user_name), _named(self.groups, accounts.group_name))


def _named(numbers: set[int], name_of: Callable[[int], str | None]) -> dict[int, str]:
    found = ((number, name_of(number)) for number in sorted(numbers))
    return {number: name for number, name in found if name is not None and name.isprintable()}


def here(names: OwnerNames) -> Owners:
    """Return the owners by the names that are recorded."""
    users, strange = _here(names.users, accounts.uid_of)
    groups, strange_groups = _here(names.groups, accounts.gid_of)
    return Owners(users, groups, OwnerNames(strange, strange_groups))


def _here(
    names: Mapping[int, str], number_of: Callable[[str], int | None]
) -> tuple[Mapping[int, int], Mapping[int, str]]:
    """Return the numbers that become others, and the names that nobody has."""
    found = {number: number_of(name) for number, name in names.items()}
    changed = {number: other for number, other in found.items() if other is not None and other != number}
    return changed, {number: names[number] for number, other in found.items() if other is None}


def give(top: int, owners: Owners, before: Occurring) -> list[Failure]:
    """Give all entries below an open directory their owners; return what could not be done. Raises OSError.

    The numbers that they had are noted in ``before``.
    """
    failures: list[Failure] = []
    done: set[int] = set()
    """The files with several names: a number may be that of one and become that of another."""

    def note(path: str, error: OSError) -> None:
        failures.append(Failure(f"/{path}", "its owner cannot be set", error.strerror or str(error)))

    for directory in walk(top, note):
        for entry in directory.entries:
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
                if status.st_ino in done:
                    continue
                done.add(status.st_ino)
            try:
                _give(directory.fd, entry.name, status, owners, before)
            except OSError as error:
                if presence.moved(error):
                    # Nobody else is in this tree.
                    raise
                note(f"{directory.path}/{entry.name}".lstrip("/"), error)
    return failures


def _give(fd: int, name: str, status: os.stat_result, owners: Owners, before: Occurring) -> None:
    """Give an entry of an open directory its owner, and keep all else that it has. Raises OSError."""
    owner = owners.of(status.st_uid, status.st_gid)
    found = {} if stat.S_ISLNK(status.st_mode) else attributes.xattrs(fd, name)
    before.add(status.st_uid, status.st_gid)
    before.add_lists(found)
    lists = owners.lists(found)
    if owner == (status.st_uid, status.st_gid) and not lists:
        return
    with ExitStack() as stack:
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            file = stack.enter_context(attributes.opened(fd, name))
            flags = inodes.flags(file)
            if flags:
                inodes.set_flags(file, 0)
                stack.callback(inodes.set_flags, file, flags)
        os.chown(name, *owner, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            # A file that changes hands loses these.
            os.fchmod(file, stat.S_IMODE(status.st_mode))
            lists |= {_CAPABILITY: found[_CAPABILITY]} if _CAPABILITY in found else {}
        for attribute, value in lists.items():
            attributes.set_xattr(fd, name, attribute, value)
