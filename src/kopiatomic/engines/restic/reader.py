"""What restic's repository holds. Nothing is locked: nothing is written, and data that a prune removes meanwhile is an error.

Traps, seen with 0.14.0: ``ls`` of a snapshot that does not exist, and of a path that is not in it, ends with 0;
``restore --include`` of such a path restores nothing and ends with 0. JSON has U+FFFD for bytes that are not text; the
archives of ``dump`` and what is restored have the bytes, but not the target of a symbolic link. Hard links are dumped as copies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kopiatomic.engines import chosen, confining, reader
from kopiatomic.engines.reader import ChosenReceiver, Entry, Form, Kind, Receiver, StoredSnapshot
from kopiatomic.engines.restic.client import Client
from kopiatomic.engines.single import SingleFile
from kopiatomic.engines.tar import archive
from kopiatomic.paths import below as lies_in
from kopiatomic.system import process, served
from kopiatomic.system.lines import JsonLines
from kopiatomic.text import printable

_KINDS = {
    "file": Kind.FILE,
    "dir": Kind.DIRECTORY,
    "symlink": Kind.LINK,
    "fifo": Kind.FIFO,
    "socket": Kind.SOCKET,
    "dev": Kind.DEVICE,
    "chardev": Kind.DEVICE,
}


class ResticReader:
    """A reader of restic's repository."""

    name = "restic"
    form = Form(stand_in="\ufffd", step_ns=1, skips_attributes=True)

    def __init__(self, options: Sequence[str], environment: Mapping[str, str], named: str | None) -> None:
        self._client = Client(options, environment, named)

    def snapshots(self) -> list[StoredSnapshot]:
        """Return all snapshots, the oldest first; one process. Raises KopiatomicError."""
        finished = self._client.run("snapshots", "--json", "--no-lock", *self._client.shared)
        if finished.status != 0:
            raise self._client.failure(finished)
        try:
            found = [snapshot_of(document) for document in json.loads(finished.stdout) or ()]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise reader.cut_short("restic", "its list of snapshots cannot be read") from None
        return sorted(found, key=lambda snapshot: snapshot.started_ns)

    def entries(self, snapshot: StoredSnapshot, take: Callable[[Entry], None], *, below: str = "") -> None:
        """Hand on each entry below a path; one process. Raises KopiatomicError."""
        top = self.form.path(below.rstrip("/"))
        found = not top

        def read(entry: Entry) -> None:
            nonlocal found
            if entry.path == top:
                found = True
            elif lies_in(entry.path, top):
                take(entry)

        self._list(snapshot, read, below, "--recursive")
        if not found:
            raise reader.no_path("restic", snapshot, below)

    def read(self, snapshot: StoredSnapshot, receiver: Receiver, *, below: str = "") -> None:
        """Hand on the content of each file; one process, two for a part of the snapshot. Raises KopiatomicError."""
        entry = self._entry(snapshot, below) if below.strip("/") else None
        words = ["--no-lock", *self._client.shared, "--", snapshot.id, below.rstrip("/") or "/"]
        if entry is not None and entry.kind is Kind.FILE:
            assert entry.size is not None
            single = SingleFile("restic", receiver, below.rstrip("/"), entry.size)
            self._run("dump", *words, snapshot=snapshot, take=single.feed)
            single.finish(below)
        elif entry is None or entry.kind is Kind.DIRECTORY:
            with archive("restic", receiver, lambda name: f"/{name.lstrip('/')}") as take:
                self._run("dump", "--archive=tar", *words, snapshot=snapshot, take=take)

    def read_chosen(
        self, snapshot: StoredSnapshot, paths: Sequence[str], receiver: ChosenReceiver, *, place: str
    ) -> None:
        """Hand on the content of some files, from ``restic mount`` without a cache. Raises KopiatomicError."""
        without_cache = () if "--no-cache" in self._client.shared else ("--no-cache",)
        # Paths below a snapshot are absolute ones (fuse/dir.go).
        words = ("mount", "--no-lock", *without_cache, "--path-template=%I", *self._client.shared)
        names = {path: path.lstrip("/") for path in paths}
        words = (*words, "--", served.mount_point(place))
        found = chosen.read_served(self._client, words, names, receiver, place=place, top=snapshot.id)
        if found is None:
            chosen.read_all(self, snapshot, paths, receiver)
        elif found.finished is not None:
            raise self._client.failure(found.finished)
        elif found.is_absent:
            raise reader.no_snapshot("restic", snapshot.id)
        elif found.top:
            found.fail(found.top)

    def require(self, snapshot: StoredSnapshot, path: str) -> None:
        """Look for a path; one process. Raises KopiatomicError."""
        if path.strip("/"):
            self._entry(snapshot, path)

    def restore(self, snapshot: StoredSnapshot, target: str, *, below: str = "") -> Sequence[str]:
        """Restore into a new or empty directory. Raises KopiatomicError, OSError."""
        words = ["--no-lock", *self._client.shared]
        self.require(snapshot, below)
        if below.strip("/"):
            words += ["--include", re.sub(r"[\\*?\[]", r"\\\g<0>", below.rstrip("/"))]
        place = reader.prepare(target)
        words += ["--target", place]
        with confining.only("restic", [place, *self._client.caches.values()]) as first:
            self._run("restore", *words, "--", snapshot.id, snapshot=snapshot, first=first)
        return ()

    def _entry(self, snapshot: StoredSnapshot, path: str) -> Entry:
        """Return the entry of a path. Raises KopiatomicError of kind restic-no-path."""
        wanted = self.form.path(path.rstrip("/"))
        found: list[Entry] = []

        def read(entry: Entry) -> None:
            if entry.path == wanted:
                found[:] = [entry]

        self._list(snapshot, read, path)
        if not found:
            raise reader.no_path("restic", snapshot, path)
        return found[0]

    def _list(self, snapshot: StoredSnapshot, take: Callable[[Entry], None], below: str, *words: str) -> None:
        """Have restic list entries at and below a path: all, or without ``--recursive`` those of one level."""
        lines = JsonLines()
        shown = ""

        def read(data: bytes) -> None:
            nonlocal shown
            for found in lines.feed(data):
                if isinstance(found, str):
                    raise reader.cut_short("restic", f"{printable(found[:80])!r} is no entry")
                if "path" in found and "type" in found:
                    take(_entry(found))
                elif "paths" in found:
                    shown = str(found.get("id"))

        paths = [below.rstrip("/")] if below.strip("/") else []
        all_words = ["--json", "--no-lock", *(words if paths else ()), *self._client.shared, "--", snapshot.id, *paths]
        self._run("ls", *all_words, snapshot=snapshot, take=read)
        read(b"")
        if shown != snapshot.id:
            raise reader.no_snapshot("restic", snapshot.id)

    def _run(
        self,
        *words: str,
        snapshot: StoredSnapshot,
        take: Callable[[bytes], None] | None = None,
        first: Callable[[], None] | None = None,
    ) -> None:
        """Run a command to its end. Raises KopiatomicError."""
        finished: process.Finished = self._client.run(*words, timeout=reader.TIME_LIMIT, take=take, first=first)
        if "no matching ID found" in finished.errors:
            raise reader.no_snapshot("restic", snapshot.id)
        if finished.status != 0:
            raise self._client.failure(finished)


def snapshot_of(document: Mapping[str, Any]) -> StoredSnapshot:
    """Return a snapshot of ``restic snapshots --json``. Raises ValueError, KeyError, TypeError."""
    summary = document.get("summary") or {}
    recorded, record = reader.marked(document.get("tags") or ())
    return StoredSnapshot(
        id=reader.plain_id(document["id"]),
        root=reader.plain_id(document["tree"]),
        started_ns=reader.nanoseconds(document["time"]),
        ended_ns=reader.nanoseconds(summary["backup_end"]) if "backup_end" in summary else None,
        host=str(document.get("hostname", "")),
        user=str(document.get("username", "")),
        sources=tuple(map(str, document["paths"])),
        complete=True,
        recorded=recorded,
        record=record,
    )


def _entry(document: Mapping[str, Any]) -> Entry:
    """Return an entry of ``restic ls --json``, which leaves out the size of an empty file. Raises KopiatomicError."""
    try:
        kind = _KINDS.get(document["type"], Kind.OTHER)
        size = int(document.get("size", 0)) if kind is Kind.FILE else None
        return Entry(str(document["path"]), kind, size, reader.nanoseconds(document["mtime"]))
    except (KeyError, TypeError, ValueError):
        raise reader.cut_short("restic", "an entry cannot be read") from None
