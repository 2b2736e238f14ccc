"""The interface to what a repository holds: its snapshots, their entries, the contents of their files, and restoring.

Everything streams: a snapshot of a million files is never held. What an engine writes is never taken for the whole of it unless
its exit status and the form of its output say so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import NamedTuple, Protocol
from urllib.parse import quote, unquote_to_bytes

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.model.plan import Layout, Plan
from kopiatomic.model.record import is_place
from kopiatomic.paths import is_at_or_below
from kopiatomic.system import looking
from kopiatomic.text import printable, spelled

RECORDED = "kopiatomic-record"
"""The mark of a snapshot with a metadata record: a tag of kopia's and restic's, the comment of Borg's archive.

In place the path of the record follows, behind a colon (:func:`mark`).
"""

TIME_LIMIT = 14 * 86400.0
"""How long (seconds) an engine may take to list, read or restore a snapshot. What limits a run is a signal (``--timeout``).

A wait of 2^31 ms, some 24 days, or more is refused (epoll_wait(2), as Python calls it).
"""

_ID = re.compile("[0-9A-Za-z]+")
"""What the ids of snapshots, archives and objects are made of, of all engines."""

_TIME = re.compile(r"(\d{4,}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z| UTC|[+-]\d\d:\d\d)?")


def mark(plan: Plan) -> str:
    """Return the mark of a snapshot of a plan: in place the path of the record, with no sign that has a meaning in a tag."""
    return RECORDED if plan.layout is Layout.MERGED else f"{RECORDED}:{quote(os.fsencode(plan.record))}"


def marked(marks: Iterable[str]) -> tuple[bool, str]:
    """Return whether one of a snapshot's marks says that it has a metadata record, and in place the path of that."""
    for one in marks:
        name, colon, path = one.partition(":")
        place = os.fsdecode(unquote_to_bytes(path))
        if name == RECORDED and (not colon or is_place(place)):
            return True, place
    return False, ""


class Kind(Enum):
    """What an entry is."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    FIFO = "fifo"
    SOCKET = "socket"
    DEVICE = "device"
    OTHER = "other"


@immutable
class StoredSnapshot:
    """One snapshot in a repository (Borg: an archive). Paths may have bytes that are not text, as ``os.fsdecode`` has them."""

    id: str
    """What the engine is given: kopia's and restic's id, the name of a Borg archive."""
    root: str
    """The id of what is in it: kopia's root object, restic's tree, Borg's id of the archive."""
    started_ns: int
    """Its time, of a backup by kopiatomic the instant that it shows (ns since the epoch; restic and Borg keep seconds)."""
    ended_ns: int | None
    """When the engine had ended, if it keeps that."""
    host: str
    user: str
    sources: tuple[str, ...]
    """What it is of; empty where that cannot be told. Borg keeps the command alone that has made it."""
    complete: bool
    """False if the engine says that it is only a part, or lacks files; restic and Borg do not say that of what they list."""
    run: str | None = None
    """The run of kopiatomic that made it; None if that cannot be told: only kopia's snapshots are marked."""
    recorded: bool = False
    """Whether a run of kopiatomic has marked it as one with a metadata record. A file of that name alone may be anybody's."""
    record: str = ""
    """In place: the path of that record, which kopia may have in a snapshot of its own."""
    count: int | None = None
    """How many entries are below its source, if the engine keeps that."""

    @property
    def shown_sources(self) -> tuple[str, ...]:
        """What it is of for a person: without the place of ours beside that, in which the metadata record is."""
        return tuple(source for source in self.sources if source != self.record) or self.sources


def holders(snapshots: Sequence[StoredSnapshot]) -> dict[str, StoredSnapshot]:
    """Return the snapshot that has the metadata record of each that is marked, by their ids; without those whose record is gone.

    In place that is the snapshot itself, or another one of the same run.
    """
    of_run: dict[tuple[str | None, str, str], list[StoredSnapshot]] = {}
    for one in snapshots:
        of_run.setdefault((one.run, one.host, one.user), []).append(one)
    found = {}
    for one in snapshots:
        others = of_run[one.run, one.host, one.user] if one.run and one.record else ()
        holder = next((other for other in (one, *others) if not one.record or _may_hold(other, one.record)), None)
        if one.recorded and holder is not None:
            found[one.id] = holder
    return found


def _may_hold(snapshot: StoredSnapshot, path: str) -> bool:
    """Whether a path lies in what a snapshot is of, as far as the engine keeps that."""
    return not snapshot.sources or any(is_at_or_below(path, source) for source in snapshot.sources)


def is_record(snapshot: StoredSnapshot) -> bool:
    """Whether a snapshot is of nothing but a metadata record."""
    return bool(snapshot.record) and snapshot.sources == (snapshot.record,)


class Entry(NamedTuple):
    """An entry of a snapshot. There are millions of them: a tuple is made in a third of the time of our immutable values."""

    path: str
    """Absolute, as it was when it was saved. Bytes that are not text are written as the engine does (:attr:`Form.stand_in`)."""
    kind: Kind
    size: int | None
    """Of a file, in bytes; None for another name of a file that has been listed (``same_as``), and for everything else."""
    mtime_ns: int
    """In the engine's precision (:meth:`Form.agrees`)."""
    same_as: str | None = None
    """The path of the file that it is another name of (a hard link), if the engine keeps that."""


@immutable
class Form:
    """How exact an engine's list of entries is."""

    stand_in: str
    """What it writes for each byte of a name that is not text."""
    step_ns: int
    """The unit of its modification times (ns)."""
    first_ns: int | None = None
    """The earliest modification time that it lists, if there is one."""
    last_ns: int | None = None
    """The latest one, likewise."""

    skips_attributes: bool = False
    """Whether it restores without a word to where owners, attributes or access control lists, which it keeps, cannot be set."""
    changes_names: bool = False
    """Whether names are so in contents and in what is restored, too."""
    keeps_attributes: bool = True
    """Whether what is restored has its extended attributes."""

    def restored(self, path: str) -> str:
        """Return a path as it is when it is restored."""
        return self.path(path) if self.changes_names else path

    def path(self, path: str) -> str:
        """Return a path as it is in the list of entries."""
        return spelled(path, self.stand_in)

    def agrees(self, listed_ns: int, mtime_ns: int) -> bool:
        """Whether a listed modification time can be that of a file: some engines cut off, and some round by way of a float."""
        return abs(listed_ns - self.listed(mtime_ns)) < self.step_ns

    def listed(self, mtime_ns: int) -> int:
        """Return a modification time as it is listed, but for its precision."""
        kept = mtime_ns if self.first_ns is None else max(mtime_ns, self.first_ns)
        return kept if self.last_ns is None else min(kept, self.last_ns)


class Receiver(Protocol):
    """Takes files one after the other, each in pieces. What it raises ends the engine's process and the reading."""

    def begin(self, path: str, size: int) -> bool:
        """Take the beginning of a file of ``size`` bytes; return whether its content is wanted."""

    def piece(self, data: bytes) -> None:
        """Take the next piece of the file's content."""

    def end(self) -> None:
        """Take the end of a file of which every byte has come."""

    def same(self, path: str, other: str) -> None:
        """Take another name of a file that has come before (a hard link)."""


class ChosenReceiver(Receiver, Protocol):
    """Takes files that were chosen, and learns which of them the repository cannot give back."""

    def failed(self, path: str, why: str) -> None:
        """Take that a file cannot be read to its end, and why, in words; if it has begun, it does not end."""


class Reader(Protocol):
    """What can be asked of a repository. Nothing of it changes the repository.

    ``below`` is a path in the snapshot, exact to the byte and absolute as in :class:`Entry`; empty for all of it. Errors are
    KopiatomicError: those of an engine's queries, and the kinds ENGINE-no-snapshot, ENGINE-no-path, ENGINE-same-names,
    ENGINE-cut-short.
    """

    @property
    def name(self) -> str:
        """The engine's name in messages and kinds."""

    @property
    def form(self) -> Form:
        """How exact its list of entries is."""

    def snapshots(self) -> list[StoredSnapshot]:
        """Return all snapshots in the repository, of all hosts, the oldest first."""

    def entries(self, snapshot: StoredSnapshot, take: Callable[[Entry], None], *, below: str = "") -> None:
        """Hand on each entry below a path, and not that path itself; a directory comes before what is in it."""

    def read(self, snapshot: StoredSnapshot, receiver: Receiver, *, below: str = "") -> None:
        """Hand on the content of each file at or below a path. All of a snapshot takes one process of the engine.

        The paths that the receiver gets are exact as far as the engine keeps names: kopia alone does not.
        """

    def read_chosen(
        self, snapshot: StoredSnapshot, paths: Sequence[str], receiver: ChosenReceiver, *, place: str
    ) -> None:
        """Hand on the content of some files, through one process of the engine however many they are, in any order.

        ``paths`` are exact to the byte, and so are the paths that the receiver gets. A file that is not in the snapshot is never
        begun; one of which the engine cannot give every byte is failed, and the others are read all the same. An engine that
        ends at its first error fails all that has not come, even what the snapshot may not have. Nothing comes from the
        engine's cache of contents. ``place`` is the absolute path of an empty directory that only we can enter; the engine may
        mount there, in a mount namespace of its own. Where it cannot, all of the snapshot is read, which takes longer.
        """

    def require(self, snapshot: StoredSnapshot, path: str) -> None:
        """Raise the kind ENGINE-no-path unless something is at a path, or below it."""

    def restore(self, snapshot: StoredSnapshot, target: str, *, below: str = "") -> Sequence[str]:
        """Restore what is at and below a path into a directory, each entry at its absolute path below that.

        The directory must be empty or not exist; it is then made, for its owner alone. Returns what the engine could not give
        back although it goes on, in words. Raises also the kind target-not-empty.
        """


def find(reader: Reader, snapshot_id: str) -> StoredSnapshot:
    """Return the snapshot with an id. Raises KopiatomicError of kind ENGINE-no-snapshot."""
    for snapshot in reader.snapshots():
        if snapshot.id == snapshot_id:
            return snapshot
    raise no_snapshot(reader.name, snapshot_id)


def no_snapshot(engine: str, snapshot_id: str) -> KopiatomicError:
    """Return the error for a snapshot that is not in the repository."""
    return KopiatomicError(
        f"{engine}'s repository has no snapshot {printable(snapshot_id)}",
        kind=f"{engine}-no-snapshot",
        hint="Has it been deleted, or is this another repository?",
    )


def no_path(engine: str, snapshot: StoredSnapshot, path: str) -> KopiatomicError:
    """Return the error for a path that is not in a snapshot."""
    return KopiatomicError(
        f"{printable(path)} is not in {engine}'s snapshot {printable(snapshot.id)}",
        kind=f"{engine}-no-path",
        hint="Paths are absolute, as they were when the snapshot was made.",
    )


def same_names(engine: str, path: str) -> KopiatomicError:
    """Return the error for a path of which it cannot be told which of several entries in the snapshot it is."""
    return KopiatomicError(
        f"several names have become the same in {engine}'s snapshot, and which of them is {printable(path)} cannot be told",
        kind=f"{engine}-same-names",
        hint="Restore the directory above: what there is of them comes back with the name that they have become.",
    )


def cut_short(engine: str, what: str) -> KopiatomicError:
    """Return the error for output that is not whole, although the engine reported no error."""
    return KopiatomicError(
        f"{engine}'s output is not whole: {what}",
        kind=f"{engine}-cut-short",
        hint=f"Nothing is concluded from it. Try again; if it stays so, check the repository with {engine}'s own means.",
    )


def plain_id(found: object) -> str:
    """Return an id that a repository has, which becomes a word of a command: it is no option and no path. Raises ValueError."""
    if not isinstance(found, str) or not _ID.fullmatch(found):
        raise ValueError("id")
    return found


def nanoseconds(text: str) -> int:
    """Return a time as the engines write it (no zone: UTC) in ns since the epoch. Raises ValueError."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"not a time: {text!r}")
    day, clock, fraction, zone = found.groups()
    moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in {None, 'Z', ' UTC'} else zone}")
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 10**9 + int((fraction or "").ljust(9, "0"))


def require_plain(path: str) -> None:
    """Refuse a path that a repository has and that leads elsewhere than it says (``..``). Raises KopiatomicError."""
    if not path.startswith("/") or os.path.normpath(path) != path:
        raise KopiatomicError(
            f"the snapshot is of {printable(path)}, which is no plain path: nothing is restored to where it leads",
            kind="odd-source",
            hint="Who made it? Restore it with the engine's own means, into a directory of your own.",
        )


def prepare(target: str, folder: str = "") -> str:
    """Make the directory that a snapshot is restored into, and ``folder`` (an absolute path) below it; return its absolute path.

    Raises KopiatomicError of kind target-not-empty if something is in its place, and OSError.
    """
    path = os.path.abspath(target)
    if not looking.call(lambda: _made(path, folder), path):
        raise KopiatomicError(
            f"{printable(path)} is not an empty directory, and nothing may be overwritten",
            kind="target-not-empty",
            hint="Name a directory that does not exist yet.",
        )
    return path


def _made(path: str, folder: str) -> bool:
    """In a child: make the directory, and the folder below it; return False if something else than an empty one is there."""
    looking.at(path)
    found = presence.status(path, follow_links=False)
    if found is None:
        os.makedirs(path, 0o700)
    elif not presence.is_directory(path, follow_links=False):
        return False
    if os.listdir(path):
        return False
    if folder:
        os.makedirs(path + folder, 0o700, exist_ok=True)
    return True
