"""What kopia's repository holds. A snapshot is addressed by its id, or by its root object, and never by path and time.

``restore`` of a path by itself silently loses owners, modes and times (kopia#5564); of ID/PATH it keeps them. Traps, seen with
0.22.3: ``list`` writes one line for each entry, and a name may have line ends in it; ``show`` takes the root object alone; by
default a restore ignores errors of permissions; an id that is no snapshot's any more is taken for an object's; a mount has EIO
also for what does not exist. Names that are not text have been changed when they were saved.

Its archives go to a file that it opens itself to read and write, so ``/dev/stdout``: then it is a reader of that pipe too, and
gets no SIGPIPE. By itself, a kopia whose reader was killed would wait at the full pipe for ever: ``system/process.py`` ends it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kopiatomic.engines import chosen, confining, reader
from kopiatomic.engines.kopia import location
from kopiatomic.engines.kopia import options as kopia_options
from kopiatomic.engines.kopia.client import Client
from kopiatomic.engines.kopia.listing import HEAD, STAND_IN
from kopiatomic.engines.kopia.output import Manifest, parse_manifest
from kopiatomic.engines.numbers import number
from kopiatomic.engines.reader import ChosenReceiver, Entry, Form, Kind, Receiver, StoredSnapshot
from kopiatomic.engines.single import SingleFile
from kopiatomic.engines.tar import archive
from kopiatomic.errors import KopiatomicError
from kopiatomic.paths import below as lies_in
from kopiatomic.paths import is_at_or_below
from kopiatomic.system import process, served
from kopiatomic.text import printable

_KINDS = {
    "d": Kind.DIRECTORY,
    "L": Kind.LINK,
    "p": Kind.FIFO,
    "S": Kind.SOCKET,
    "D": Kind.DEVICE,
}
"""Letters of Go's file modes."""

_LINE = re.compile(
    rb"([-dalTLDpSugct?]+)[rwx-]{9} +(\d+) (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC) (([0-9A-Za-z]{10,}) *) (.*)", re.DOTALL
)
_OBJECT = 34
"""The width that kopia gives an object's id in a line (cli/command_ls.go)."""

_LONGEST = 1 << 16
"""The most (bytes) that the lines of one entry may have; a path has 4 KiB."""

_ABSENT = ("entry not found", "parent is not a directory")
_NO_SNAPSHOT = ("is not a directory object", "unable to parse ID", "snapshot not found")

_RUN = "tag:kopiatomic-run"


class KopiaReader:
    """A reader of kopia's repository."""

    name = "kopia"
    form = Form(stand_in=STAND_IN, step_ns=10**9, changes_names=True, keeps_attributes=False)

    def __init__(self, options: Sequence[str], environment: Mapping[str, str], invoking_user: str | None) -> None:
        self._options = kopia_options.parse(options)
        self._client = Client(self._options, environment, invoking_user)
        # Times in its lists are in the process's time zone.
        self._client.additions["TZ"] = "UTC"

    def snapshots(self) -> list[StoredSnapshot]:
        """Return all snapshots, also incomplete ones, the oldest first; one process. Raises KopiatomicError."""
        self._client.check_connected()
        documents = self._client.ask("snapshot", "list", "--all", "--incomplete", "--json")
        try:
            found = [snapshot_of(document) for document in documents or ()]
        except (KeyError, TypeError, ValueError):
            raise reader.cut_short("kopia", "its list of snapshots cannot be read") from None
        return sorted(found, key=lambda snapshot: snapshot.started_ns)

    def entries(self, snapshot: StoredSnapshot, take: Callable[[Entry], None], *, below: str = "") -> None:
        """Hand on each entry below a path; one process, two for a part of the snapshot. Raises KopiatomicError.

        The number of entries is compared with the one that kopia keeps: a name that is made to look like a line of its own is
        found by that, and is an error.
        """
        top = self._relative(snapshot, below)
        count = snapshot.count
        if top:
            found = self._entry(snapshot, below, top)
            if found.get("type") != "d":
                return
            count = _count(found.get("summ") or {})
        lines = _Lines(snapshot.sources[0].rstrip("/") + (f"/{top}" if top else ""), take)
        words = ("--long", "--recursive", "--show-object-id", "--no-error-summary", _object(snapshot, top))
        self._run("list", *words, snapshot=snapshot, below=below, take=lines.feed)
        lines.finish()
        if count is not None and lines.count != count:
            raise reader.cut_short("kopia", f"it lists {lines.count} entries, and has saved {count}")

    def read(self, snapshot: StoredSnapshot, receiver: Receiver, *, below: str = "") -> None:
        """Hand on the content of each file; one process, two for a part of the snapshot. Raises KopiatomicError."""
        top = self._relative(snapshot, below)
        found = self._entry(snapshot, below, top) if top else {"type": "d"}
        base = snapshot.sources[0].rstrip("/")
        if found.get("type") == "f":
            single = SingleFile("kopia", receiver, f"{base}/{top}", number(found, "size"))
            self._run("show", f"{snapshot.root}/{top}", snapshot=snapshot, below=below, take=single.feed)
            single.finish(below)
        elif found.get("type") == "d":
            base = f"{base}/{top}" if top else base
            words = ("--mode=tar", "--no-progress", "--no-ignore-errors", _object(snapshot, top), "/dev/stdout")
            with archive("kopia", receiver, lambda name: f"{base}/{name}") as take:
                self._run("restore", *words, snapshot=snapshot, below=below, take=take)

    def read_chosen(
        self, snapshot: StoredSnapshot, paths: Sequence[str], receiver: ChosenReceiver, *, place: str
    ) -> None:
        """Hand on the content of some files, from ``kopia mount``, which has no cache. Raises KopiatomicError, OSError."""
        stored = {path: self.form.path(path) for path in paths}
        names = {path: lies_in(name, snapshot.sources[0]) for path, name in stored.items()}
        words = ("mount", *self._client.shared, snapshot.id, served.mount_point(place))
        covers = location.uncached(self._client)
        inside = {path: name for path, name in names.items() if name}
        found = chosen.read_served(self._client, words, inside, receiver, place=place, covers=covers)
        if found is None:
            chosen.read_all(self, snapshot, paths, receiver)
        elif found.finished is not None:
            raise self._failure(found.finished, snapshot, "")
        elif found.top:
            # It serves what is no snapshot, too, as long as nobody looks.
            if not self._client.has_manifest(snapshot.id):
                raise reader.no_snapshot("kopia", snapshot.id)
            found.fail(found.top)

    def require(self, snapshot: StoredSnapshot, path: str) -> None:
        """Look for a path; one process. Raises KopiatomicError."""
        top = self._relative(snapshot, path)
        if top:
            self._entry(snapshot, path, top)

    def restore(self, snapshot: StoredSnapshot, target: str, *, below: str = "") -> Sequence[str]:
        """Restore into a new or empty directory. Raises KopiatomicError, OSError."""
        self.require(snapshot, below)
        top = self._relative(snapshot, below)
        inside = snapshot.sources[0].rstrip("/") + (f"/{top}" if top else "")
        reader.require_plain(inside or "/")
        # kopia makes the directories above a directory, but not those above a file.
        place = reader.prepare(target, os.path.dirname(inside) if inside else "")
        words = ["--mode=local", "--no-progress", "--no-ignore-errors"]
        # Only root can give a file to another.
        words += ["--no-ignore-permission-errors" if os.geteuid() == 0 else "--ignore-permission-errors"]
        words += ["--no-overwrite-files", "--no-overwrite-symlinks", _object(snapshot, top), place + inside]
        written = [place, *(path for _, path in location.folders(self._client, self._options))]
        with confining.only("kopia", written) as first:
            self._run("restore", *words, snapshot=snapshot, below=below, first=first)
        return ()

    def _relative(self, snapshot: StoredSnapshot, path: str) -> str:
        """Return a path below the snapshot's source, as kopia has it. Raises KopiatomicError of kind kopia-no-path."""
        source, wanted = snapshot.sources[0], self.form.path(path.rstrip("/"))
        if not wanted:
            return ""
        if not is_at_or_below(wanted, source):
            raise reader.no_path("kopia", snapshot, path)
        return lies_in(wanted, source)

    def _entry(self, snapshot: StoredSnapshot, path: str, top: str) -> Mapping[str, Any]:
        """Return kopia's own entry of a path. Raises KopiatomicError, also where others have become the same in it."""
        names = top.split("/")
        for depth, name in enumerate(names[:-1]):
            if STAND_IN in name:
                self._entry_in(snapshot, path, "/".join(names[:depth]), name)
        return self._entry_in(snapshot, path, "/".join(names[:-1]), names[-1])

    def _entry_in(self, snapshot: StoredSnapshot, path: str, parent: str, name: str) -> Mapping[str, Any]:
        """Return the only entry of a directory with a name. Raises KopiatomicError."""
        finished = self._client.show(snapshot.root + (f"/{parent}" if parent else ""))
        if finished.status != 0:
            if any(text in finished.errors for text in _ABSENT):
                raise reader.no_path("kopia", snapshot, path)
            raise self._client.failure(finished)
        if not finished.stdout.startswith(HEAD):
            # What it shows is the content of a file.
            raise reader.no_path("kopia", snapshot, path)
        try:
            entries = json.loads(finished.stdout)["entries"] or ()
            found = [dict(entry) for entry in entries if entry["name"] == name]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise reader.cut_short("kopia", f"the directory of {printable(path)} cannot be read") from None
        if not found:
            raise reader.no_path("kopia", snapshot, path)
        if len(found) > 1:
            raise reader.same_names("kopia", path)
        return found[0]

    def _run(
        self,
        *words: str,
        snapshot: StoredSnapshot,
        below: str,
        take: Callable[[bytes], None] | None = None,
        first: Callable[[], None] | None = None,
    ) -> None:
        """Run a command to its end. Raises KopiatomicError."""
        finished = self._client.run(*words, *self._client.shared, timeout=reader.TIME_LIMIT, take=take, first=first)
        if finished.status != 0:
            raise self._failure(finished, snapshot, below)

    def _failure(self, finished: process.Finished, snapshot: StoredSnapshot, below: str) -> KopiatomicError:
        if any(text in finished.errors for text in (*_NO_SNAPSHOT, f"content {snapshot.id} not found")):
            return reader.no_snapshot("kopia", snapshot.id)
        if any(text in finished.errors for text in _ABSENT):
            return reader.no_path("kopia", snapshot, below)
        return self._client.failure(finished)


class _Lines:
    """Takes the lines of ``kopia list`` and makes entries of them; ``top`` is the path that they are below."""

    def __init__(self, top: str, take: Callable[[Entry], None]) -> None:
        self._top = top
        self._take = take
        self._rest = b""
        self._entry = b""
        """The lines of the entry that may go on."""
        self.count = 0

    def feed(self, data: bytes) -> None:
        """Take the next piece. Raises KopiatomicError."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if _LINE.fullmatch(line):
                self._flush()
                self._entry = line
            elif self._entry:
                self._entry += b"\n" + line
            else:
                raise _unreadable(line)
            if len(self._entry) > _LONGEST:
                raise _unreadable(self._entry)
        if len(self._rest) > _LONGEST:
            raise _unreadable(self._rest)

    def finish(self) -> None:
        """Take the end of the output. Raises KopiatomicError if it ends inside a line."""
        if self._rest:
            raise reader.cut_short("kopia", "it ends inside a line")
        self._flush()

    def _flush(self) -> None:
        if not self._entry:
            return
        found = _LINE.fullmatch(self._entry)
        assert found is not None
        letters, size, mtime, _, object_id, _ = found.groups()
        begin = found.start(4) + max(_OBJECT, len(object_id)) + 1
        name = os.fsdecode(self._entry[begin:])
        kind = next((kind for letter, kind in _KINDS.items() if letter in letters.decode("ascii")), Kind.FILE)
        if kind is Kind.DIRECTORY:
            name = name.removesuffix("/")
        try:
            mtime_ns = reader.nanoseconds(mtime.decode("ascii"))
        except ValueError:
            raise _unreadable(self._entry) from None
        self.count += 1
        self._entry = b""
        self._take(Entry(f"{self._top}/{name}", kind, int(size) if kind is Kind.FILE else None, mtime_ns))


def _unreadable(line: bytes) -> KopiatomicError:
    return reader.cut_short("kopia", f"{printable(line[:80].decode('utf-8', 'backslashreplace'))!r} is no entry")


def _object(snapshot: StoredSnapshot, top: str) -> str:
    return f"{snapshot.id}/{top}" if top else snapshot.id


def _count(summary: Mapping[str, Any]) -> int | None:
    """Return how many entries are below a directory, without itself; None if kopia has left some out."""
    if number(summary, "numFailed") or number(summary, "numIgnoredErrors"):
        return None
    return number(summary, "files") + number(summary, "symlinks") + number(summary, "dirs") - 1


def snapshot_of(document: Mapping[str, Any]) -> StoredSnapshot:
    """Return a snapshot of kopia's list. Raises KeyError, TypeError, ValueError."""
    manifest: Manifest | None = parse_manifest(document)
    if manifest is None:
        raise ValueError("no manifest")
    source, tags = document["source"], document.get("tags") or {}
    failed = number(manifest.summary, "numFailed") or number(manifest.summary, "numIgnoredErrors")
    tag = tags.get(f"tag:{reader.RECORDED}", "")
    recorded, record = reader.marked([reader.RECORDED if tag == "yes" else f"{reader.RECORDED}:{tag}"])
    is_directory = document["rootEntry"].get("type") == "d"
    return StoredSnapshot(
        id=reader.plain_id(manifest.id),
        root=reader.plain_id(manifest.root_object),
        started_ns=reader.nanoseconds(document["startTime"]),
        ended_ns=reader.nanoseconds(document["endTime"]),
        host=str(source.get("host", "")),
        user=str(source.get("userName", "")),
        sources=(manifest.path,),
        complete=not manifest.incomplete and not failed,
        run=tags.get(_RUN),
        recorded=recorded,
        record=record,
        count=_count(manifest.summary) if is_directory and not manifest.incomplete else None,
    )
