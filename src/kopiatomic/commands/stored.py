"""What a repository has, for the commands that list and restore it: which snapshot is meant, and the metadata record in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from kopiatomic import engines
from kopiatomic.commands import profiles
from kopiatomic.commands.profiles import Folder
from kopiatomic.config.options import words
from kopiatomic.engines.engine import KOPIA
from kopiatomic.engines.reader import Entry, Reader, StoredSnapshot, holders, is_record
from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.immutable import immutable
from kopiatomic.model.plan import RECORD
from kopiatomic.model.record import INDEX
from kopiatomic.output.document import instant_words
from kopiatomic.paths import is_at_or_below, topmost
from kopiatomic.text import first_few, printable
from kopiatomic.trees import shards

LATEST = "latest"
NO_SUCH = "no-such-snapshot"
"""The kind of the error where no snapshot is meant."""

_LARGEST = 1 << 30
"""Bytes of a metadata record that are taken."""


@immutable
class Access:
    """How the repository is reached: by a profile, or by the words that a backup takes."""

    engine: str | None = None
    repository: str | None = None
    options: str = ""
    profile: str = ""


def reader_of(access: Access, folder: Folder) -> Reader:
    """Return the reader of a repository. Raises KopiatomicError, UsageError."""
    environment: Mapping[str, str] = os.environ
    engine, repository, options = access.engine, access.repository, access.options
    if access.profile:
        chosen = profiles.options(folder.load(access.profile), {})
        if chosen.command is not None:
            raise UsageError(
                f"{printable(access.profile)} runs a command of its own, and kopiatomic cannot read what that has saved",
                kind="usage",
                hint="Restore with that program's own means.",
            )
        environment = profiles.engine_environment(chosen)
        engine, repository, options = chosen.engine, chosen.repository, chosen.options
    return engines.open_reader(engine or KOPIA, words("-o", options), repository=repository, environment=environment)


class Files:
    """Takes small files whole. Satisfies :class:`kopiatomic.engines.reader.Receiver`."""

    def __init__(self) -> None:
        self.found: dict[str, bytes] = {}
        self._path = ""
        self._pieces: list[bytes] = []
        self._room = _LARGEST

    def begin(self, path: str, size: int) -> bool:
        """Take the beginning of a file. Raises KopiatomicError if they are too large for a metadata record."""
        self._room -= size
        if self._room < 0:
            raise KopiatomicError(
                f"the metadata record has more than {_LARGEST >> 20} MiB",
                kind="record-damaged",
                hint="--no-metadata restores without it.",
            )
        self._path, self._pieces = path, []
        return True

    def piece(self, data: bytes) -> None:
        """Take the next piece."""
        self._pieces.append(data)

    def end(self) -> None:
        """Take the end."""
        self.found[self._path] = b"".join(self._pieces)

    def same(self, path: str, other: str) -> None:
        """Take another name."""
        self.found[path] = self.found[other]


@immutable
class Stored:
    """A snapshot, and its metadata record if it has one."""

    snapshot: StoredSnapshot
    root: str
    """In the merged layout the path that the view had, as the engine has it; in place empty."""
    index: shards.Index | None
    problem: KopiatomicError | None = None
    """What is wrong with its metadata record, if so."""
    files: Mapping[str, bytes] | None = None
    """All files of its metadata record, by their paths as the engine has them; None if only the list has been read."""
    holder: StoredSnapshot | None = None
    """The snapshot that has the record: in place kopia may have it in one of its own. None if there is none."""
    others: tuple[StoredSnapshot, ...] = ()
    """The others of the same run that are meant as well: in place kopia makes one of each path."""

    @property
    def snapshots(self) -> tuple[StoredSnapshot, ...]:
        """All that are meant."""
        return self.snapshot, *self.others

    def of(self, path: str) -> StoredSnapshot:
        """Return the one that has an absolute path, or none of it if no other does."""
        held = (one for one in self.others if any(is_at_or_below(path, source) for source in one.sources))
        return next(held, self.snapshot)

    def narrowed(self, paths: Sequence[str]) -> Stored:
        """Return it with the snapshots alone that have some of these absolute paths; with all if there are none."""
        first, *others = dict.fromkeys(map(self.of, paths)) or self.snapshots
        return replace(self, snapshot=first, others=tuple(others))

    @property
    def complete(self) -> bool:
        """Whether the engine says that nothing lacks files."""
        return all(one.complete for one in self.snapshots)

    @property
    def described(self) -> str:
        """What is meant, in words."""
        return ", ".join(map(described, self.snapshots))

    @property
    def record(self) -> str:
        """The path of the record, as the paths of what was saved are: in place its true one."""
        return self.snapshot.record or RECORD

    @property
    def is_gone(self) -> bool:
        """Whether it had a record, in a snapshot of its own that is not there any more."""
        return bool(self.snapshot.record) and self.holder is None

    @property
    def without(self) -> str:
        """Why nothing that the engine loses comes back, in words."""
        if self.is_gone:
            return (
                f"without metadata record: it is gone; the snapshot of {printable(self.record)} of the same run had it"
            )
        return "has no metadata record"

    def tops(self) -> Sequence[str]:
        """Return the topmost paths of what is in it, as they were: in the merged layout it is ``/``."""
        if not self.snapshot.record:
            return ["/"]
        return [path for path in self._sources() if not is_at_or_below(path, self.record)]

    def _sources(self) -> Sequence[str]:
        """Return the paths that the engine was given, in place; one that does not keep them has them in the record."""
        if self.snapshot.sources or self.index is None:
            return [source for one in self.snapshots for source in one.sources]
        return topmost([*self.index.places, self.record])

    @property
    def is_beside(self) -> bool:
        """Whether the record was a path of its own, or a snapshot of its own, and no part of what was saved."""
        return not any(is_at_or_below(self.record, top) for top in self.tops())

    def path(self, path: str) -> str:
        """Return where the engine has what was at an absolute path."""
        return f"{self.root.rstrip('/')}{path.rstrip('/')}" or "/"

    def places(self) -> list[str]:
        """Return the absolute paths of what it is of."""
        if self.index is None or self.snapshot.record:
            return list(self._sources())
        return [*self.index.places, RECORD]

    @property
    def known(self) -> bool:
        """Whether it can be told what it is of."""
        return self.index is not None or bool(self.snapshot.sources)

    def holds(self, path: str) -> bool:
        """Whether something at an absolute path, or below it, may be in it."""
        return self.problem is not None or any(
            is_at_or_below(path, place) or is_at_or_below(place, path) for place in self.places()
        )


def examined(
    reader: Reader, snapshot: StoredSnapshot, snapshots: Sequence[StoredSnapshot], *, whole: bool = False
) -> Stored:
    """Return a snapshot with the list of its metadata record, or what is wrong with that. Raises KopiatomicError.

    Only a snapshot that is marked has one: a file of that name in any other is its owner's, who may write what he likes to it.
    ``snapshots`` are all that there are. ``whole`` reads all of the record at once: each reading starts the engine again.
    """
    in_place = Stored(snapshot, "", None)
    if not snapshot.recorded:
        return in_place
    if snapshot.record:
        holder = holders(snapshots).get(snapshot.id)
        in_place = Stored(snapshot, "", None, holder=holder)
        return in_place if holder is None else _read(reader, in_place, whole=whole) or in_place
    for root in snapshot.sources or _roots(reader, snapshot):
        found = _read(reader, Stored(snapshot, root, None, holder=snapshot), whole=whole)
        if found is not None:
            return found
    return in_place


def _read(reader: Reader, stored: Stored, *, whole: bool) -> Stored | None:
    """Return a snapshot with the list of the record in its holder, or what is wrong with that; None if there is none.

    Raises KopiatomicError.
    """
    assert stored.holder is not None
    files = Files()
    top = stored.path(stored.record)
    path = f"{top}/{INDEX}"
    try:
        reader.read(stored.holder, files, below=top if whole else path)
        index = shards.read_index(files.found.get(path, b""))
    except KopiatomicError as error:
        if error.kind.startswith("record-"):
            return replace(stored, problem=error)
        if error.kind != f"{reader.name}-no-path":
            raise
        return None
    return replace(stored, index=index, files=files.found if whole else None)


def _roots(reader: Reader, snapshot: StoredSnapshot) -> Sequence[str]:
    """Return where metadata records are in a snapshot whose engine does not keep what it is of: by its list of entries."""
    found: list[str] = []

    def take(entry: Entry) -> None:
        if entry.path.endswith(f"{RECORD}/{INDEX}"):
            found.append(entry.path.removesuffix(f"{RECORD}/{INDEX}") or "/")

    reader.entries(snapshot, take)
    return topmost(found)


def record_of(reader: Reader, stored: Stored) -> shards.Reading:
    """Return the metadata record of a snapshot that has one, all of it read. Raises KopiatomicError."""
    assert stored.index is not None
    assert stored.holder is not None
    top, found = stored.path(stored.record), stored.files
    if found is None:
        files = Files()
        reader.read(stored.holder, files, below=f"{top}/{shards.FOLDER}")
        found = files.found
    held = found
    return shards.Reading(stored.index, lambda path: held.get(f"{top}/{path}", b""))


def chosen(reader: Reader, what: str, holds: Callable[[Stored], bool] | None = None) -> Stored:
    """Return the snapshot that is meant: by the beginning of its id, of its run's id or of its time, or the latest complete one.

    ``holds`` is asked which of several may hold what is wanted of it. Raises KopiatomicError if it is none, or several.
    """
    snapshots = reader.snapshots()

    def look(snapshot: StoredSnapshot, *, whole: bool) -> Stored:
        return examined(reader, snapshot, snapshots, whole=whole)

    # One of a record alone is meant only by its id.
    candidates = [one for one in snapshots if not is_record(one)]
    if what == LATEST:
        found = list({(one.host, one.user, one.sources): one for one in candidates if one.complete}.values())
    else:
        found = [one for one in candidates if _is_meant(one, what)]
        found = found or [one for one in snapshots if one.id.startswith(what)]
    runs: dict[str, list[StoredSnapshot]] = {}
    for one in found:
        runs.setdefault(one.run or one.id, []).append(one)

    def of_run(ones: Sequence[StoredSnapshot]) -> Stored:
        return replace(look(ones[0], whole=len(runs) == 1), others=tuple(ones[1:]))

    if len(runs) == 1 and (holds is None or what != LATEST):
        return of_run(found)
    if holds is None:
        raise _not_one(reader.name, what, found)
    held = list(filter(holds, map(of_run, runs.values())))
    if len(held) != 1:
        raise _not_one(reader.name, what, [one for stored in held for one in stored.snapshots])
    return held[0]


def _is_meant(snapshot: StoredSnapshot, what: str) -> bool:
    times = instant_words(snapshot.started_ns)
    return (
        snapshot.id.startswith(what)
        or (snapshot.run is not None and snapshot.run.startswith(what))
        or times.startswith(what.replace("T", " ").removesuffix("Z"))
    )


def _not_one(engine: str, what: str, found: Sequence[StoredSnapshot]) -> KopiatomicError:
    if not found:
        return KopiatomicError(
            f"{engine}'s repository has no complete snapshot that is meant by {printable(what)}",
            kind=NO_SUCH,
            hint="'kopiatomic list' shows what there is.",
        )
    return KopiatomicError(
        f"{printable(what)} means {len(found)} snapshots: {first_few(list(map(described, found)))}",
        kind="several-snapshots",
        hint="Name one of them by its id.",
    )


def described(snapshot: StoredSnapshot) -> str:
    """Return a snapshot in words."""
    of = first_few(snapshot.shown_sources) if snapshot.sources else printable(snapshot.host)
    return f"{printable(snapshot.id)} ({instant_words(snapshot.started_ns)[:19]}, {of})"
