"""The metadata record: what is kept of a tree because an engine would lose it, as plain data.

Paths and names may have bytes that are not text, as ``os.fsdecode`` has them. Times are in ns since the epoch.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from kopiatomic.immutable import immutable
from kopiatomic.model.facts import PropertySetting

VERSION = 1
"""Of the format. A reader refuses a newer one."""

FAILED = "metadata-record"
"""The kind of the error where it cannot be made."""

INDEX = "record.json"
"""The name of the file that lists the others."""

PLACES = "records"
"""In place: the folder in the state directory that has a directory for the record of each series."""

_PLACE = re.compile(rf"/(?:.*/)?{PLACES}/[0-9a-f]{{32}}", re.DOTALL)

HERE = "."
"""The name of a directory in the list of what is in it."""


def place_in(state_directory: str, series: str) -> str:
    """Return where the record of a series in place is: the same path for all its runs, in a directory of root's."""
    digest = hashlib.sha256(b"kopiatomic record\0" + os.fsencode(series)).hexdigest()
    return f"{state_directory.rstrip('/')}/{PLACES}/{digest[:32]}"


def is_place(path: str) -> bool:
    """Whether a path can be one of :func:`place_in`."""
    return _PLACE.fullmatch(path) is not None and os.path.normpath(path) == path


class EntryKind(StrEnum):
    """What an entry is."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTER = "character-device"
    BLOCK = "block-device"


SPECIAL = frozenset({EntryKind.FIFO, EntryKind.CHARACTER, EntryKind.BLOCK})
MADE = SPECIAL | {EntryKind.SOCKET}
"""What a restore makes by itself: it needs nothing of it from the engine."""
LINKED = frozenset(EntryKind) - {EntryKind.DIRECTORY}
"""What can have several names."""


class RecordedEntry(NamedTuple):
    """An entry of a directory, as it was at the instant; all that is needed to make it again, except a file's content.

    There are millions of them: a tuple is made in a third of the time of our immutable values.
    """

    name: str
    """In its directory; :data:`HERE` for that directory itself, which is then its first entry."""
    kind: EntryKind
    mode: int
    """The permission bits, with set-user-id, set-group-id and sticky."""
    uid: int
    gid: int
    mtime_ns: int
    size: int | None = None
    """Of a file, in bytes."""
    target: str | None = None
    """Of a link."""
    device: tuple[int, int] | None = None
    """Major and minor number of a device."""
    same_as: str | None = None
    """The path of the first entry in the record that is the same file (a hard link)."""
    xattrs: Mapping[str, bytes] = MappingProxyType({})
    """Extended attributes; access control lists and capabilities are among them."""
    flags: int = 0
    """As chattr(1) sets them."""
    project: int = 0
    stored: str | None = None
    """The name under which the engine has stored it, if that is another one."""


@immutable
class Losses:
    """What an engine does not keep. What it keeps needs no record."""

    xattrs: bool = False
    link_xattrs: bool = False
    """Those of symbolic links alone."""
    hard_links: frozenset[EntryKind] = frozenset()
    """The kinds of entries of which second names become entries of their own, or are left out."""
    specials: bool = False
    """FIFOs and devices. No engine keeps sockets."""
    directory_times: bool = False
    link_step_ns: int = 1
    """The unit of the modification times of links that it keeps (ns)."""
    earliest_ns: int | None = None
    latest_ns: int | None = None
    """Modification times outside these become these."""
    stand_in: str = ""
    """What it writes for each byte of a name that is not text; empty if it keeps them."""


@immutable
class Shard:
    """A part of a record: the entries of some directories, in a file that is named by its content."""

    name: str
    """The SHA-256 of its lines, in hexadecimal digits."""
    directories: int
    entries: int
    first: str
    """The path of its first directory."""


@immutable
class RecordedDataset:
    """A dataset that is in the backup, or a part of it."""

    name: str
    kind: str
    """The kind of filesystem (``Kind.name``)."""
    places: tuple[tuple[str, str], ...]
    """Where its parts are, each with that part of the dataset; the empty one is the whole."""
    properties: Mapping[str, PropertySetting] = field(default_factory=dict)

    @property
    def place(self) -> str | None:
        """Where the whole of it is; None if only parts of it are in the backup."""
        return next((place for place, part in self.places if not part), None)


@immutable
class OwnerNames:
    """The names of the users and groups that occur, by number; of those that had one where the record was made."""

    users: Mapping[int, str] = field(default_factory=dict)
    groups: Mapping[int, str] = field(default_factory=dict)


NOBODY = OwnerNames()


@immutable
class Recorded:
    """What a record that was made has."""

    entries: int
    size: int
    """Of its files, in bytes."""
    unreadable: int = 0
    named: tuple[Unrecorded, ...] = ()
    """The first of what could not be read."""
    known: int = 0
    """How many of the entries come from the cache: their datasets have not changed."""
    cache_problem: str = ""
    """Why the cache cannot be used, if so."""


@immutable
class Unrecorded:
    """An entry, or an attribute of it, that could not be read."""

    path: str
    why: str
