"""Compares what an engine has saved with the frozen view that it is of, while that is still mounted.

It is a process in the view (``launcher.Start.work``), which the supervisor starts, stops and limits as any program there. It
sees what the engine has seen, at the same paths. The engine's list and the contents that it gives back come from its own program
(``engines/reader.py``), which this process starts.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from typing import NamedTuple

from kopiatomic import engines, presence
from kopiatomic.engines.engine import Job
from kopiatomic.engines.reader import Entry, Form, Kind, Reader, StoredSnapshot, no_snapshot
from kopiatomic.errors import EndError, KopiatomicError, end_of
from kopiatomic.immutable import immutable
from kopiatomic.model.engine import EngineResult
from kopiatomic.model.record import EntryKind, Losses
from kopiatomic.model.verified import Difference, Verified, Wanted
from kopiatomic.paths import below, is_at_or_below
from kopiatomic.text import printable
from kopiatomic.trees.census import Census, number
from kopiatomic.trees.walk import kind_of, opened, walk

_SHOWN = 100
"""How many differences are named; the rest are counted."""

_SUSPECTS = 10_000
"""The most files that are read back because an engine may not have noticed that they changed."""

_AT_ONCE = 100_000
"""How many files one process of the engine gives back: their paths are held."""

_OLD = 8
"""How many files are read back, if there are any, that the last run has saved as they are."""

_KINDS = {
    kind: Kind.DEVICE if kind in {EntryKind.CHARACTER, EntryKind.BLOCK} else Kind(kind.value) for kind in EntryKind
}
"""What the engines' lists call each kind of entry."""


@immutable
class Source:
    """A snapshot, or archive, and the paths in it that are compared."""

    snapshot: str
    paths: tuple[str, ...]


@immutable
class Repository:
    """How the engine's repository is opened: the words and variables of the run."""

    engine: str
    options: tuple[str, ...]
    repository: str | None
    environment: Mapping[str, str] = field(hash=False)

    def reader(self) -> Reader:
        """Return a reader of it. Raises UsageError."""
        return engines.open_reader(self.engine, self.options, repository=self.repository, environment=self.environment)


@immutable
class Choice:
    """Which files are read back."""

    wanted: Wanted
    key: bytes
    """The same for all runs of a series, so that so many runs choose every file once."""
    turn: int
    """Which of these runs it is."""
    since_ns: int | None = None
    """The instant of the last complete run of the series (ns since the epoch)."""


@immutable
class Verification:
    """A comparison, as data: it is sent to the process that makes it."""

    repository: Repository
    sources: tuple[Source, ...]
    losses: Losses
    tops: tuple[str, ...]
    """Where datasets begin."""
    live: tuple[str, ...]
    """Paths that are not frozen: what is at and below them is not compared."""
    choice: Choice
    scratch: str
    """A directory of ours for the engine, where there is no better one."""

    def __call__(self, place: str) -> None:
        """Make it, and write what came of it to stdout: a :class:`Verified`, or an error. ``place`` is a directory of ours."""
        outcome: object
        try:
            outcome = _Comparison(self, place or self.scratch).verified()
        except Exception as error:
            outcome = end_of(error)
        with os.fdopen(os.dup(1), "wb") as out:
            pickle.dump(outcome, out)


def outcome(data: bytes) -> Verified:
    """Return what a process has written that made a comparison. Raises what that raised, or KopiatomicError if it was killed."""
    try:
        found = pickle.loads(data)  # noqa: S301 - our own child has written it
    except (EOFError, pickle.UnpicklingError):
        raise KopiatomicError(
            "the process that compares was killed",
            kind="verification-killed",
            hint="Was it the out-of-memory killer? See 'dmesg' or 'journalctl -k'.",
        ) from None
    if isinstance(found, EndError):
        raise found
    assert isinstance(found, Verified)
    return found


def sources(job: Job, result: EngineResult) -> tuple[Source, ...]:
    """Return what a result saved, and is to be compared: not what an earlier snapshot stands for."""
    if any(one.snapshot_id for one in result.sources):
        saved = [one for one in result.sources if one.saved and one.snapshot_id and not one.unchanged]
        return tuple(Source(one.snapshot_id, (one.source,)) for one in saved if one.snapshot_id)
    return (Source(result.snapshot_id, tuple(job.given)),) if result.snapshot_id else ()


def choice_key(series: str) -> bytes:
    """Return the key by which a series chooses files."""
    return hashlib.sha256(b"kopiatomic verify\0" + os.fsencode(series)).digest()


class _Frozen(NamedTuple):
    """An entry of the frozen trees. ``path`` is as the engine's list has it, ``true`` as it is.

    There are millions of them: a tuple is made in a third of the time of our immutable values.
    """

    true: str
    path: str
    kind: Kind
    size: int
    time: int
    """Of its modification, in the engine's unit; 0 where it does not keep that."""
    status: os.stat_result


class _Comparison:
    """One comparison, from the walk to the contents."""

    def __init__(self, wanted: Verification, place: str) -> None:
        self._wanted = wanted
        self._place = place
        self._reader = wanted.repository.reader()
        self._form: Form = self._reader.form
        self._differences: list[Difference] = []
        self._count = 0
        self._left_out: dict[str, int] = {}
        self._unseen: dict[str, None] = {}
        self._root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def verified(self) -> Verified:
        """Compare everything. Raises KopiatomicError, OSError."""
        entries = files = size = all_files = 0
        snapshots = {one.id: one for one in self._reader.snapshots()}
        for source in self._wanted.sources:
            snapshot = snapshots.get(source.snapshot)
            if snapshot is None:
                raise no_snapshot(self._reader.name, source.snapshot)
            census, chosen = self._walked(source)
            entries += census.count
            all_files += chosen.all_files
            self._compare_lists(source, snapshot, census, chosen)
            contents = _Contents(self, source, chosen)
            for paths in self._paths(source, chosen):
                self._reader.read_chosen(snapshot, paths, contents, place=self._place)
            contents.finish()
            files += contents.files
            size += contents.size
        return Verified(
            entries=entries,
            files=files,
            size=size,
            all_files=all_files,
            rounds=self._wanted.choice.wanted.rounds,
            left_out=dict(sorted(self._left_out.items(), key=lambda one: (-one[1], one[0]))[:_SHOWN]),
            differences=tuple(self._differences),
            difference_count=self._count,
            changed_unseen=tuple(self._unseen),
        )

    def differs(self, path: str, what: str) -> None:
        """Note a difference."""
        self._count += 1
        if len(self._differences) < _SHOWN:
            self._differences.append(Difference(path, what))

    def content_differs(self, source: Source, path: str, what: str) -> None:
        """Note a content that differs, although its size and times agree."""
        self.differs(path, what)
        self._unseen.update(dict.fromkeys(top for top in source.paths if is_at_or_below(path, top)))

    def _paths(self, source: Source, chosen: _Chosen) -> Iterator[Sequence[str]]:
        """Yield the paths that are read back, so many at a time that they can be held. Raises OSError."""
        if not chosen.is_everything:
            if chosen.paths:
                yield chosen.paths
            return
        paths: list[str] = []
        for one in self._entries(source):
            if one.kind is Kind.FILE and chosen.has(one.true):
                paths.append(one.true)
                if len(paths) == _AT_ONCE:
                    yield paths
                    paths = []
        if paths:
            yield paths

    def _entries(self, source: Source) -> Iterator[_Frozen]:
        """Yield what is frozen of a source, except the top of each path. Raises KopiatomicError, OSError."""
        for top in source.paths:
            with opened(self._root, top.strip("/")) as fd:
                for directory in walk(fd, self._unreadable(top), across=True):
                    inside = f"{top.rstrip('/')}/{directory.path}" if directory.path else top.rstrip("/")
                    for entry in directory.entries:
                        true = f"{inside}/{entry.name}"
                        if not self._is_live(true):
                            yield self._frozen(true, entry.stat(follow_symlinks=False))

    def _unreadable(self, top: str) -> Callable[[str, OSError], None]:
        def note(path: str, error: OSError) -> None:
            true = f"{top.rstrip('/')}/{path}" if path else top
            if not self._is_live(true):
                self.differs(true, f"it cannot be read in the frozen view: {error.strerror}")

        return note

    def _is_live(self, path: str) -> bool:
        return any(is_at_or_below(path, top) for top in self._wanted.live)

    def _frozen(self, true: str, status: os.stat_result) -> _Frozen:
        kind = _KINDS[kind_of(status)]
        size = status.st_size if kind is Kind.FILE else 0
        return _Frozen(true, self._form.path(true), kind, size, self._time(kind, status.st_mtime_ns), status)

    def _time(self, kind: Kind, mtime_ns: int) -> int:
        if kind is Kind.DIRECTORY and self._wanted.losses.directory_times:
            return 0
        return self._form.listed(mtime_ns) // self._form.step_ns

    def _is_kept(self, kind: Kind) -> bool:
        """Whether the engine keeps entries of a kind at all."""
        return kind is not Kind.SOCKET and not (kind in {Kind.FIFO, Kind.DEVICE} and self._wanted.losses.specials)

    def _walked(self, source: Source) -> tuple[Census, _Chosen]:
        """Go through what is frozen of a source."""
        census = Census(os.urandom(32))
        chosen = _Chosen(self._wanted.choice)
        for one in self._entries(source):
            if self._is_kept(one.kind):
                census.add(one.path, one.kind.value, one.size, one.time)
                if one.kind is Kind.FILE:
                    chosen.consider(one.true, one.status)
        chosen.settle()
        return census, chosen

    def _compare_lists(self, source: Source, snapshot: StoredSnapshot, census: Census, chosen: _Chosen) -> None:
        """Compare what is frozen with the engine's list."""
        extra: dict[str, Entry] = {}
        more = 0

        def take(entry: Entry) -> None:
            nonlocal more
            inside = any(is_at_or_below(entry.path, top) and entry.path != top for top in source.paths)
            if not inside or self._is_live(entry.path):
                return
            # Other names of a file are listed without its size.
            size = entry.size if entry.same_as is None else self._frozen_size(entry)
            time = self._time(entry.kind, entry.mtime_ns)
            # It may be rounded.
            times = (time, time - 1, time + 1) if self._form.step_ns > 1 and time else (time,)
            if not census.meet(entry.path, entry.kind.value, size or 0, times):
                if len(extra) < _SHOWN * 100:
                    extra[entry.path] = entry
                else:
                    more += 1

        self._reader.entries(snapshot, take)
        if len(census):
            self._name_lacking(source, census, extra, chosen)
        for path in extra:
            self.differs(path, "it is in the backup, and not in the frozen tree")
        self._count += more

    def _folder(self, path: str) -> str:
        """Return the folder that something left out is counted in: the top of a dataset, or a folder right in it."""
        inside = path.rpartition("/")[0]
        top = max((top for top in self._wanted.tops if is_at_or_below(inside, top)), key=len, default="/")
        name = below(inside, top).partition("/")[0]
        return f"{top.rstrip('/')}/{name}" if name else top

    def _frozen_size(self, entry: Entry) -> int | None:
        """Return the size (bytes) of a file by another name of it, if that is one in the frozen tree as well."""
        assert entry.same_as is not None
        try:
            found, first = self.status(entry.path), self.status(entry.same_as)
        except OSError as error:
            if not presence.moved(error):
                raise
            return None
        return found.st_size if os.path.samestat(found, first) else None

    def status(self, path: str) -> os.stat_result:
        """Return what is frozen at a path. Raises OSError."""
        with self._folder_of(path) as (folder, name):
            return os.stat(name, dir_fd=folder, follow_symlinks=False)

    def opened(self, path: str) -> int:
        """Open a frozen file. Raises OSError."""
        with self._folder_of(path) as (folder, name):
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)

    @contextmanager
    def _folder_of(self, path: str) -> Iterator[tuple[int, str]]:
        """Yield the directory that has an entry, open, and its name in that. Raises OSError."""
        folder, _, name = path.rpartition("/")
        with opened(self._root, folder.strip("/")) as inside:
            yield inside, name

    def _name_lacking(self, source: Source, census: Census, extra: dict[str, Entry], chosen: _Chosen) -> None:
        """Name what the engine's list does not have as it is: another walk, since only numbers are kept."""
        for one in self._entries(source):
            if not self._is_kept(one.kind) or not census.lacks(one.path, one.kind.value, one.size, one.time):
                continue
            listed = extra.pop(one.path, None)
            if listed is not None:
                self.differs(one.true, _how_listed(one, listed))
            else:
                where = self._folder(one.true)
                self._left_out[where] = self._left_out.get(where, 0) + 1
            # What is not in the list as it is has been told, and is not read back.
            chosen.drop(one.true)


def _how_listed(one: _Frozen, listed: Entry) -> str:
    if listed.kind is not one.kind:
        return f"it is a {one.kind.value}, and in the backup a {listed.kind.value}"
    if listed.same_as is not None:
        return f"in the backup it is another name of {printable(listed.same_as)}"
    if one.kind is Kind.FILE and listed.size != one.size:
        return f"it has {one.size} bytes, and in the backup {listed.size}"
    return "its modification time is another one in the backup"


class _Chosen:
    """The files of a source that are read back."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._rounds = choice.wanted.rounds
        self.is_everything = self._rounds == 1
        self.all_files = 0
        self._numbers: set[int] = set()
        self._drawn: list[tuple[int, int, str]] = []
        """Number, size and path of what was drawn. Empty if everything is wanted."""
        self._suspects: dict[str, int] = {}
        """The sizes of what an engine may have taken for unchanged, by path."""
        self._old: list[tuple[int, str]] = []
        self._settled: list[str] = []
        """The paths of what has been chosen. Empty if everything is wanted."""

    def consider(self, path: str, status: os.stat_result) -> None:
        """Draw a file, or not."""
        choice = self._choice
        self.all_files += 1
        if self.is_everything:
            self._numbers.add(number(choice.key, path))
            return
        # All names of a file together: an engine that keeps them gives its content back with the first alone.
        several = status.st_nlink > 1
        one = number(choice.key, f"{status.st_ino}" if several else path)
        if choice.since_ns is not None and status.st_mtime_ns <= choice.since_ns:
            # What was changed since, and has an older time, an engine may take for what it has saved.
            if status.st_ctime_ns > choice.since_ns and len(self._suspects) < _SUSPECTS:
                self._suspects[path] = status.st_size
            if not several and (len(self._old) < _OLD or one < self._old[-1][0]):
                self._old = sorted([*self._old, (one, path)])[:_OLD]
        if one % self._rounds == choice.turn % self._rounds:
            self._drawn.append((one, status.st_size, path))

    def settle(self) -> None:
        """Leave away what is beyond the limit, evenly, so that later runs choose it."""
        if self.is_everything:
            return
        limit = self._choice.wanted.limit
        parts = max(1, -(-sum(size for _, size, _ in self._drawn) // limit))
        part = self._choice.turn // self._rounds % parts
        found = [path for one, _, path in self._drawn if one // self._rounds % parts == part]
        self._drawn = []
        for path, size in self._suspects.items():
            limit -= size
            if limit >= 0:
                found.append(path)
        found += [path for _, path in self._old]
        self._settled = list(dict.fromkeys(found))
        self._numbers = {number(self._choice.key, path) for path in self._settled}

    @property
    def paths(self) -> Sequence[str]:
        """The paths that are read back; only if that is not everything."""
        return [path for path in self._settled if self.has(path)]

    def __len__(self) -> int:
        """Return how many are still to be read back."""
        return len(self._numbers)

    def has(self, path: str) -> bool:
        """Whether a file is still to be read back."""
        return number(self._choice.key, path) in self._numbers

    def drop(self, path: str) -> None:
        """Leave a file away, or note that it has been read back."""
        self._numbers.discard(number(self._choice.key, path))


class _Contents:
    """Compares contents as they come. Satisfies :class:`kopiatomic.engines.reader.ChosenReceiver`."""

    def __init__(self, comparison: _Comparison, source: Source, chosen: _Chosen) -> None:
        self._comparison = comparison
        self._source = source
        self._chosen = chosen
        self._path = ""
        self._fd = -1
        self._at = 0
        self._equal = True
        self._equal_links: set[tuple[int, int]] = set()
        """Those of several names whose content was equal."""
        self.files = 0
        self.size = 0

    def finish(self) -> None:
        """Note what was not given back."""
        self._close()
        if len(self._chosen):
            self._comparison.differs(
                self._source.paths[0], f"{len(self._chosen)} files in it are in the list, and were not given back"
            )

    def begin(self, path: str, size: int) -> bool:  # noqa: ARG002 - its content says it
        """Open the frozen file. Raises OSError."""
        self._close()
        self._fd = self._comparison.opened(path)
        self._path, self._at, self._equal = path, 0, True
        return True

    def piece(self, data: bytes) -> None:
        """Compare the next piece. Raises OSError."""
        if not self._equal:
            return
        frozen = _exactly(self._fd, len(data))
        if frozen != data:
            same = next((i for i, (a, b) in enumerate(zip(frozen, data, strict=False)) if a != b), len(frozen))
            self._differs(self._at + same)
        self._at += len(data)

    def end(self) -> None:
        """Compare the ends. Raises OSError."""
        if self._equal and os.read(self._fd, 1):
            self._differs(self._at)
        if self._equal:
            status = os.fstat(self._fd)
            if status.st_nlink > 1:
                self._equal_links.add((status.st_dev, status.st_ino))
            self.files += 1
            self.size += self._at
        self._chosen.drop(self._path)
        self._close()

    def same(self, path: str, other: str) -> None:
        """Compare which file a second name is of. Raises OSError."""
        status = self._comparison.status(path)
        if not os.path.samestat(status, self._comparison.status(other)):
            self._comparison.differs(path, f"in the backup it is another name of {printable(other)}")
        elif (status.st_dev, status.st_ino) in self._equal_links:
            self.files += 1
        self._chosen.drop(path)

    def failed(self, path: str, why: str) -> None:
        """Note what the engine cannot give back, unless it is another name of what it has given back. Raises OSError."""
        status = self._comparison.status(path)
        if (status.st_dev, status.st_ino) in self._equal_links:
            self.files += 1
        else:
            self._comparison.differs(path, f"it cannot be read back: {why}")
        self._chosen.drop(path)

    def _differs(self, offset: int) -> None:
        self._equal = False
        self._comparison.content_differs(
            self._source, self._path, f"its content is another one in the backup, from byte {offset} on"
        )

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _exactly(fd: int, count: int) -> bytes:
    """Read so many bytes, or as many as there are. Raises OSError."""
    pieces = []
    while count > 0 and (piece := os.read(fd, count)):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)
