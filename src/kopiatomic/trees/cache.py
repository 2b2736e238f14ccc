"""Root's own cache of what was recorded of datasets, for runs in which they have provably not changed.

A file for each dataset, in the form in which it is shown and for what is lost, has all its shards. Its name says of which state
it is. The cache may be lost at any time: what is damaged, foreign, or of another state is not used, and is recorded again.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict

from kopiatomic import __version__, presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.model.record import VERSION, Losses, Shard
from kopiatomic.system import safety
from kopiatomic.text import printable
from kopiatomic.trees import shards

FOLDER = "cache"
"""In the state directory."""

TAG = "CACHEDIR.TAG"
_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55\n"
"""Backup programs leave out a directory with this (bford.info/cachedir)."""

MOST = 256 << 20
"""Bytes of all files together; the least recently used go first."""


@immutable
class Part:
    """What is recorded of one tree: its shards in their order, each with the content of its file."""

    shards: Sequence[tuple[Shard, bytes]]
    users: Collection[int] = ()
    groups: Collection[int] = ()
    """The numbers of those that occur in it."""

    @property
    def entries(self) -> int:
        """How many entries are recorded."""
        return sum(shard.entries for shard, _ in self.shards)


Parts = Mapping[str, Part]
"""The trees of a dataset, by their places."""


def open_in(state_directory: str) -> int:
    """Open the directory of the cache; it is made if it is missing. Raises KopiatomicError."""
    path = os.path.join(state_directory, FOLDER)
    try:
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from None
    if not safety.is_own(os.fstat(fd), shut=True):
        os.close(fd)
        raise _unusable(path, "it is not a directory that only root can enter")
    return fd


def _unusable(path: str, why: str) -> KopiatomicError:
    return KopiatomicError(
        f"the cache of metadata records in {printable(path)} cannot be used: {why}",
        kind="record-cache",
        hint="Everything is recorded again without it. It can be deleted at any time.",
    )


class Cache:
    """The cache in an open directory."""

    def __init__(self, directory: int, losses: Losses) -> None:
        self._directory = directory
        # A set's own order differs from process to process.
        lost = json.dumps(asdict(losses), default=sorted)
        self._of = f"{__version__} {VERSION} {lost}"

    def find(self, dataset: str, state: str) -> Parts | None:
        """Return what was recorded of a dataset in a state; ``dataset`` names it, and all else that the record depends on.

        Raises OSError.
        """
        if not state:
            return None
        try:
            with open(self._name(dataset, state), "rb", opener=self._opener) as file:
                content = file.read(MOST + 1)
                os.utime(file.fileno())
        except FileNotFoundError:
            return None
        try:
            return _decoded(content)
        except (ValueError, KeyError, TypeError):
            # What is damaged is replaced.
            return None

    def keep(self, dataset: str, state: str, parts: Parts) -> None:
        """Keep what was recorded of a dataset. Raises OSError."""
        new = f"{secrets.token_hex(8)}.new"
        with open(new, "xb", opener=self._opener) as file:
            file.write(_encoded(parts))
        os.rename(new, self._name(dataset, state), src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def move(self, states: Mapping[str, str]) -> None:
        """Note that what was found for some states holds for others: of whatever form, and whatever is lost. Raises OSError."""
        new = {_digest(before): _digest(after) for before, after in states.items() if before and after}
        for name in os.listdir(self._directory):
            dataset, _, state = name.partition(".")
            if new.get(state, state) != state:
                # Another run may have moved or removed it.
                with suppress(FileNotFoundError):
                    renamed = f"{dataset}.{new[state]}"
                    os.rename(name, renamed, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def trim(self, most: int = MOST) -> None:
        """Remove all but the latest of each dataset, and what was not used for longest, until the rest fits. Raises OSError."""
        with open(TAG, "wb", opener=self._opener) as file:
            file.write(_SIGNATURE)
        with os.scandir(self._directory) as entries:
            found = [(one.stat(follow_symlinks=False), one.name) for one in entries if one.name != TAG]
        known = set()
        for status, name in sorted(found, key=lambda one: -one[0].st_mtime_ns):
            dataset = name.partition(".")[0]
            most -= status.st_size
            if most < 0 or dataset in known:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._directory)
            known.add(dataset)

    def _name(self, dataset: str, state: str) -> str:
        return f"{_digest(f'{self._of} {dataset}')}.{_digest(state)}"

    def _opener(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=self._directory)


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:32]


def _encoded(parts: Parts) -> bytes:
    """Return parts as the content of a file: a line with the rest's digest, a line with the list, the shards' files."""
    listed = [
        [
            place,
            [[*shards.listed(shard).items(), len(content)] for shard, content in part.shards],
            sorted(part.users),
            sorted(part.groups),
        ]
        for place, part in parts.items()
    ]
    rest = json.dumps(listed).encode() + b"\n" + b"".join(c for part in parts.values() for _, c in part.shards)
    return hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest


def _decoded(content: bytes) -> Parts:
    """Return the parts. Raises ValueError, KeyError, TypeError if that is not what was written."""
    digest, _, rest = content.partition(b"\n")
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        raise ValueError("digest")
    line, _, _ = rest.partition(b"\n")
    position = len(line) + 1
    found: dict[str, Part] = {}
    for place, part, users, groups in json.loads(line):
        taken = []
        for *items, size in part:
            taken.append((shards.unlisted(dict(items)), rest[position : position + size]))
            position += size
        found[place] = Part(taken, users, groups)
    return found


class Known:
    """What is recorded in one run: taken from the cache where it is proven to be the same, and kept there at the end.

    ``states`` has, for each dataset, its state since an earlier snapshot and that of its present one; ``form`` says how one is
    shown. A hard link may lead from one tree of a dataset to another: so all of its trees, or none, come from the cache.
    """

    def __init__(
        self,
        cache: Cache | None,
        states: Mapping[tuple[str, str], tuple[str, str]],
        form: Callable[[tuple[str, str]], str],
    ) -> None:
        self._cache = cache
        self._states = states
        self._form = form
        self._found: dict[tuple[str, str], Parts | None] = {}
        self._made: dict[tuple[str, str], dict[str, Part | None]] = {}
        self.problem = ""
        """Why the cache cannot be used, if so."""

    def part(self, dataset: tuple[str, str] | None, place: str) -> Part | None:
        """Return what is known of a tree."""
        if dataset is None:
            return None
        if dataset not in self._found:
            self._found[dataset] = None
            with self._using() as cache:
                if cache is not None:
                    self._found[dataset] = cache.find(self._named(dataset), self._states[dataset][0])
        return (self._found[dataset] or {}).get(place)

    def note(self, dataset: tuple[str, str] | None, place: str, part: Part | None) -> None:
        """Note what was recorded of a tree; None if it cannot be kept."""
        if self._cache is not None and dataset is not None and self._states[dataset][1]:
            self._made.setdefault(dataset, {})[place] = part

    def keep(self) -> None:
        """Put what was recorded into the cache, and what was found under its present state."""
        with self._using() as cache:
            if cache is None:
                return
            cache.move(dict(self._states.values()))
            for dataset, made in self._made.items():
                whole = {place: part for place, part in made.items() if part is not None}
                if self._found[dataset] is None and len(whole) == len(made):
                    cache.keep(self._named(dataset), self._states[dataset][1], whole)
            cache.trim()

    @contextmanager
    def _using(self) -> Iterator[Cache | None]:
        """Yield the cache, unless something is wrong with it: then it is not used any more."""
        try:
            yield self._cache
        except OSError as error:
            self._cache = None
            # Anybody may delete it at any time.
            if not presence.absent(error):
                self.problem = error.strerror or str(error)

    def _named(self, dataset: tuple[str, str]) -> str:
        return f"{' '.join(dataset)} {self._form(dataset)}"
