"""The metadata record as files: JSON lines in shards, and one file that lists them. The format is described in docs/record.md.

A shard has the entries of some directories, in the order of the walk. It is named by its content, and where it ends depends on
the paths alone, so what has not changed is in the same files again. No path and no content has a time or a run in it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from kopiatomic.errors import KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.model.facts import PropertySetting
from kopiatomic.model.record import (
    HERE,
    INDEX,
    NOBODY,
    VERSION,
    EntryKind,
    OwnerNames,
    RecordedDataset,
    RecordedEntry,
    Shard,
)
from kopiatomic.text import printable
from kopiatomic.trees import attributes

FORMAT = "kopiatomic-record"
FOLDER = "shards"
SUFFIX = ".jsonl.gz"

_FEWEST = 512
_MOST = 8192
"""Entries of a shard; a directory is never divided."""
_ONE_IN = 8
"""Between these, one of so many directories begins a new shard, by the hash of its path."""

_BASE64 = "_base64"

_BOUND = 1 << 63
"""Above all numbers of a record."""

_LARGEST = 1 << 30
"""Bytes of a shard's lines that are taken: those of a directory with some five million entries."""
_LONGEST_LINE = 1 << 26
"""Bytes of one line that are taken."""
_LARGEST_INDEX = 1 << 27
"""Bytes of the list that are taken: some million shards."""
_PIECE = 1 << 16
"""Bytes that are unpacked at once; 1000 times as many can be in as many packed ones."""


def put(document: dict[str, Any], key: str, text: str) -> None:
    """Put a text into a JSON object: as it is if it is one, else its bytes in base 64, under another key."""
    try:
        text.encode()
    except UnicodeEncodeError:
        document[f"{key}{_BASE64}"] = base64.b64encode(os.fsencode(text)).decode("ascii")
    else:
        document[key] = text


def take(document: Mapping[str, Any], key: str) -> str | None:
    """Return what :func:`put` has put there; None if it has not. Raises ValueError, TypeError."""
    found = document.get(f"{key}{_BASE64}")
    if found is not None:
        return _text(os.fsdecode(base64.b64decode(found, validate=True)))
    text = document.get(key)
    return None if text is None else _text(text)


def _text(text: object) -> str:
    """Return a text that the system can be given: names of users, of files, of attributes. Raises ValueError, TypeError."""
    if not isinstance(text, str):
        raise TypeError("text")
    if b"\0" in os.fsencode(text):
        raise ValueError("text")
    return text


def _is_name(name: str) -> bool:
    return name not in {"", ".."} and "/" not in name


def _is_plain(path: str) -> bool:
    return path.startswith("/") and os.path.normpath(path) == path


def encoded(entry: RecordedEntry) -> dict[str, Any]:
    """Return an entry as a JSON object; what has its usual value is left out."""
    document: dict[str, Any] = {}
    put(document, "name", entry.name)
    document |= {"kind": entry.kind.value, "mode": entry.mode, "uid": entry.uid, "gid": entry.gid}
    document["mtime_ns"] = entry.mtime_ns
    if entry.size is not None:
        document["size"] = entry.size
    if entry.target is not None:
        put(document, "target", entry.target)
    if entry.device is not None:
        document["device"] = list(entry.device)
    if entry.same_as is not None:
        put(document, "same_as", entry.same_as)
    if entry.xattrs:
        document["xattrs"] = {
            name: base64.b64encode(value).decode("ascii") for name, value in sorted(entry.xattrs.items())
        }
    if entry.flags:
        document["flags"] = entry.flags
    if entry.project:
        document["project"] = entry.project
    if entry.stored is not None:
        document["stored"] = entry.stored
    return document


def decoded(document: Mapping[str, Any]) -> RecordedEntry:
    """Return the entry of such an object. Raises ValueError, TypeError, KeyError."""
    name, device = take(document, "name"), document.get("device")
    stored = document.get("stored")
    same_as = take(document, "same_as")
    if name is None or not _is_name(name) or (stored is not None and (not _is_name(_text(stored)) or stored == HERE)):
        raise ValueError("name")
    if same_as is not None and not _is_plain(same_as):
        raise ValueError("same_as")
    numbers = [document[key] for key in ("mode", "uid", "gid", "mtime_ns")]
    numbers += [document.get(key, 0) for key in ("size", "flags", "project")]
    if not all(type(number) is int and abs(number) < _BOUND for number in numbers):
        raise TypeError("number")
    if min(*numbers[:3], *numbers[4:]) < 0 or max(*numbers[:3], *numbers[5:]) >= 1 << 32:
        raise ValueError("number")
    if device is not None and not (len(device) == 2 and all(type(n) is int and 0 <= n < 1 << 20 for n in device)):
        raise ValueError("device")
    return RecordedEntry(
        name=name,
        kind=EntryKind(document["kind"]),
        mode=document["mode"] & 0o7777,
        uid=document["uid"],
        gid=document["gid"],
        mtime_ns=document["mtime_ns"],
        size=document.get("size"),
        target=take(document, "target"),
        device=None if device is None else (int(device[0]), int(device[1])),
        same_as=same_as,
        xattrs={
            _text(key): base64.b64decode(value, validate=True)
            for key, value in document.get("xattrs", {}).items()
            if not key.startswith(attributes.OURS)
        },
        flags=document.get("flags", 0),
        project=document.get("project", 0),
        stored=stored,
    )


# Made once: json.dumps makes one for each call with such arguments.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _line(document: Mapping[str, Any]) -> bytes:
    return _encode(document).encode() + b"\n"


class Writer:
    """Writes a record into an open, empty directory of ours."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._lines: list[bytes] = []
        self._directories = 0
        self._first = ""
        self._written: list[tuple[Shard, bytes]] = []
        """What has been written of this tree."""
        self.shards: list[Shard] = []
        self.size = 0
        """The size of all its files (bytes)."""
        os.mkdir(FOLDER, 0o700, dir_fd=directory)

    def add(self, path: str, entries: Iterable[RecordedEntry]) -> None:
        """Add the entries of a directory, given by its absolute path. Raises OSError."""
        lines = [_line(encoded(entry)) for entry in entries]
        if not lines:
            return
        so_far = len(self._lines) - self._directories
        begins = hashlib.sha256(os.fsencode(path)).digest()[0] % _ONE_IN == 0
        if so_far and (so_far + len(lines) > _MOST or (so_far >= _FEWEST and begins)):
            self._write()
        if not self._lines:
            self._first = path
        head: dict[str, Any] = {}
        put(head, "directory", path)
        self._lines += [_line(head), *lines]
        self._directories += 1

    def end_tree(self) -> list[tuple[Shard, bytes]]:
        """End the shard: what comes next is of another tree. Return the shards since the last end, with their files' contents.

        Raises OSError.
        """
        if self._lines:
            self._write()
        written, self._written = self._written, []
        return written

    def take(self, shard: Shard, content: bytes) -> None:
        """Add a shard that is known already, by the content of its file. Raises OSError."""
        self._put(path_of(shard), content)
        self.shards.append(shard)

    def _write(self) -> None:
        content = b"".join(self._lines)
        name = hashlib.sha256(content).hexdigest()
        shard = Shard(name, self._directories, len(self._lines) - self._directories, self._first)
        packed = gzip.compress(content, 6, mtime=0)
        self.take(shard, packed)
        self._written.append((shard, packed))
        self._lines, self._directories = [], 0

    def end(self, about: Mapping[str, Any], names: OwnerNames = NOBODY) -> None:
        """Write the list; ``about`` goes into it as well, and the names of owners. Raises OSError."""
        self.end_tree()
        owners = {"users": dict(names.users), "groups": dict(names.groups)}
        listing = [listed(shard) for shard in self.shards]
        document = {"format": FORMAT, "version": VERSION, **about, **owners, "shards": listing}
        text = json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True)
        content = text.encode() + b"\n"
        # Engines take a file of the same size and time for unchanged, and this one's size hardly ever changes.
        self._put(INDEX, content, time=int.from_bytes(hashlib.sha256(content).digest()[:4], "big") >> 1)
        # What a backup program looks at must not depend on when this was made.
        for path in (FOLDER, "."):
            os.utime(path, ns=(0, 0), dir_fd=self._directory)

    def _put(self, path: str, content: bytes, time: int = 0) -> None:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        except FileExistsError:
            # Two equal shards would be of the same directories.
            return
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.utime(file.fileno(), (time, time))
        self.size += len(content)


def listed(shard: Shard) -> dict[str, Any]:
    """Return a shard as it is in the list."""
    document: dict[str, Any] = {"name": shard.name, "directories": shard.directories, "entries": shard.entries}
    put(document, "first", shard.first)
    return document


def unlisted(document: Mapping[str, Any]) -> Shard:
    """Return the shard of such an object. Raises ValueError, TypeError, KeyError."""
    if not re.fullmatch("[0-9a-f]{64}", document["name"]):
        raise ValueError("name")
    return Shard(document["name"], document["directories"], document["entries"], take(document, "first") or "/")


@immutable
class Index:
    """The list of a record's shards, and what else it says."""

    about: Mapping[str, Any]
    shards: tuple[Shard, ...]
    datasets: tuple[RecordedDataset, ...]
    names: OwnerNames = NOBODY

    @property
    def places(self) -> tuple[str, ...]:
        """Where in the view what it is of was shown."""
        return tuple(place for dataset in self.datasets for place, _ in dataset.places)


def read_index(content: bytes) -> Index:
    """Return the list of a record. Raises KopiatomicError if it is not one, or of a newer version."""
    if len(content) > _LARGEST_INDEX:
        raise _damaged(INDEX)
    try:
        document = json.loads(content)
        if document["format"] != FORMAT or type(document["version"]) is not int:
            raise ValueError("format")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(INDEX) from None
    if document["version"] > VERSION:
        raise KopiatomicError(
            f"the metadata record of this backup has version {document['version']}, and this kopiatomic knows {VERSION}",
            kind="record-newer",
            hint="Restore with the version that made the backup, or a newer one.",
        )
    try:
        shards = tuple(map(unlisted, document.pop("shards")))
        if len({shard.name for shard in shards}) < len(shards):
            raise ValueError("shards")
        datasets = tuple(map(_dataset, document["datasets"]))
        names = OwnerNames(_names(document, "users"), _names(document, "groups"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(INDEX) from None
    return Index(document, shards, datasets, names)


def _dataset(document: Mapping[str, Any]) -> RecordedDataset:
    """Return a dataset of the list. Raises ValueError, KeyError, TypeError, AttributeError."""
    places = []
    for one in document["places"]:
        place, part = take(one, "path"), take(one, "part") or ""
        if place is None or not _is_plain(place) or (part and not _is_plain(f"/{part}")):
            raise ValueError("places")
        places.append((place, part))
    properties = {}
    for name, one in document["properties"].items():
        value = take(one, "value")
        if value is None:
            raise ValueError("properties")
        properties[_text(name)] = PropertySetting(value, _text(one["source"]))
    kind = _text(document["filesystem"])
    return RecordedDataset(take(document, "dataset") or "", kind, tuple(places), properties)


def _names(document: Mapping[str, Any], key: str) -> dict[int, str]:
    return {int(number): _text(name) for number, name in document.get(key, {}).items()}


def read_shard(shard: Shard, content: bytes) -> Iterator[tuple[str, list[RecordedEntry]]]:
    """Yield each directory of a shard's file, with its entries. Raises KopiatomicError if it is not what was written.

    It is unpacked twice, first for its digest. At any time one piece of it is held, and the entries of one directory.
    """
    try:
        digest, lines = hashlib.sha256(), 0
        for piece in _unpacked(content):
            digest.update(piece)
            lines += piece.count(b"\n")
            if lines > shard.directories + shard.entries:
                raise ValueError("lines")
        if digest.hexdigest() != shard.name or lines < shard.directories + shard.entries:
            raise ValueError("lines")
        directories = 0
        for path, entries in _groups(_lines(_unpacked(content))):
            if not directories and path != shard.first:
                raise ValueError("first")
            directories += 1
            yield path, entries
        if directories != shard.directories:
            raise ValueError("directories")
    except (zlib.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(shard.name) from None


def _unpacked(content: bytes) -> Iterator[bytes]:
    """Yield what is in a compressed file, in pieces. Raises zlib.error, and ValueError if it is cut short or too large."""
    unpacker = zlib.decompressobj(wbits=31)
    size = 0
    for start in range(0, len(content), _PIECE):
        packed = content[start : start + _PIECE]
        while packed:
            piece = unpacker.decompress(packed, _PIECE)
            packed = unpacker.unconsumed_tail
            size += len(piece)
            if size > _LARGEST:
                raise ValueError("size")
            yield piece
    if not unpacker.eof:
        raise ValueError("end")


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines without their ends. Raises ValueError if one is too long, or the last one has no end."""
    begun: list[bytes] = []
    size = 0
    for piece in pieces:
        first, *others = piece.split(b"\n")
        begun.append(first)
        size += len(first)
        if size > _LONGEST_LINE:
            raise ValueError("line")
        if others:
            yield b"".join(begun)
            yield from others[:-1]
            begun, size = others[-1:], len(others[-1])
    if size:
        raise ValueError("end")


def _groups(lines: Iterable[bytes]) -> Iterator[tuple[str, list[RecordedEntry]]]:
    """Yield each directory of some lines, with its entries. Raises ValueError, KeyError, TypeError, AttributeError.

    They come in the order of the walk, so none comes twice; the directory itself, which is given back last, is the first.
    """
    path: str | None = None
    entries: list[RecordedEntry] = []
    last = b""
    for line in lines:
        document = json.loads(line)
        begins = take(document, "directory")
        if begins is None:
            if path is None:
                raise ValueError("no directory")
            entry = decoded(document)
            place = b"" if entry.name == HERE else os.fsencode(entry.name)
            if (entries and place <= last) or (not place and entry.kind is not EntryKind.DIRECTORY):
                raise ValueError("order")
            entries.append(entry)
            last = place
            continue
        if not _is_plain(begins):
            raise ValueError("directory")
        if path is not None:
            if not entries or _place(begins) <= _place(path):
                raise ValueError("directory")
            yield path, entries
        path, entries = begins, []
    if path is not None:
        if not entries:
            raise ValueError("directory")
        yield path, entries


def _place(path: str) -> bytes:
    """Return what puts paths into the order of the walk, a directory before what is in it and that before the next one."""
    return os.fsencode(path).replace(b"/", b"\0")


Group = tuple[str, list[RecordedEntry]]
"""A directory by its absolute path, and its entries."""


@immutable
class Reading:
    """A record that can be read: its list, and what returns a file's content by its path in the record."""

    index: Index
    content: Callable[[str], bytes]

    def forward(self) -> Iterator[Group]:
        """Yield each directory, each before what is in it. Raises KopiatomicError."""
        for shard in self.index.shards:
            yield from read_shard(shard, self.content(path_of(shard)))

    def backward(self) -> Iterator[Group]:
        """Yield each directory, each after what is in it. Raises KopiatomicError."""
        for shard in reversed(self.index.shards):
            yield from reversed(list(read_shard(shard, self.content(path_of(shard)))))


@immutable
class Changed:
    """A record of which some directories are left out, and entries of others are changed."""

    record: Reading
    change: Callable[[Group], Group | None]
    """Returns a directory as it is to be; None if it is left out."""

    def forward(self) -> Iterator[Group]:
        """Yield each directory, each before what is in it. Raises KopiatomicError."""
        yield from filter(None, map(self.change, self.record.forward()))

    def backward(self) -> Iterator[Group]:
        """Yield each directory, each after what is in it. Raises KopiatomicError."""
        yield from filter(None, map(self.change, self.record.backward()))


def path_of(shard: Shard) -> str:
    """Return the path of a shard's file in the record."""
    return f"{FOLDER}/{shard.name}{SUFFIX}"


def _damaged(name: str) -> KopiatomicError:
    return KopiatomicError(
        f"the metadata record of this backup is damaged: {printable(name)} is not what was written",
        kind="record-damaged",
        hint="Check the repository with the engine's own means; --no-metadata restores without the record.",
    )
