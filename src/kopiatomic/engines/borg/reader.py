"""What Borg's repository holds. An archive is addressed by its name, as Borg does.

Traps, seen with 1.2.4: ``list`` of a path that is not in the archive ends with 0, and ``{bpath}`` has a question mark for each
byte that is not text, as JSON has; archives of ``export-tar`` and what is extracted have the bytes. Times are rounded to
microseconds, and those before 1970 are not kept. ``extract`` says nothing of owners, access control lists and
times that it cannot set.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kopiatomic.engines import chosen, confining, reader, repository
from kopiatomic.engines.borg.client import WARNINGS, Client
from kopiatomic.engines.borg.output import messages
from kopiatomic.engines.reader import ChosenReceiver, Entry, Form, Kind, Receiver, StoredSnapshot
from kopiatomic.engines.tar import archive
from kopiatomic.paths import below as lies_in
from kopiatomic.system import process
from kopiatomic.system.lines import JsonLines
from kopiatomic.system.private_file import private_file
from kopiatomic.text import is_text, printable

_KINDS = {
    "-": Kind.FILE,
    "d": Kind.DIRECTORY,
    "l": Kind.LINK,
    "p": Kind.FIFO,
    "s": Kind.SOCKET,
    "c": Kind.DEVICE,
    "b": Kind.DEVICE,
}

_LAST = (2**31 - 1 - 48 * 3600) * 10**9
"""The latest time that it shows (ns since the epoch): two days before what it keeps, whatever the time zone (seen with 1.2.4)."""

_UNSET = re.compile(r"when setting extended attribute ", re.IGNORECASE)
"""What it says where the target cannot have an attribute; it gives back the rest of the file, and all others."""

_WHERE = re.compile(r""": ('<FD \d+>'|b'.*'|b".*")(?=\)?$)""")
"""Where it says that it is: for files the number of a descriptor, for others a path in a folder of ours."""

_NOTHING_ELSE = "- re:."
"""The last line of a file of patterns: every path that no full path has included is left out."""


class BorgReader:
    """A reader of Borg's repository."""

    name = "borg"
    form = Form(stand_in="?", step_ns=1000, first_ns=0, last_ns=_LAST, skips_attributes=True)

    def __init__(self, options: Sequence[str], environment: Mapping[str, str], named: str | None) -> None:
        self._client = Client(options, environment, named)

    def snapshots(self) -> list[StoredSnapshot]:
        """Return all archives, the oldest first; one process, and no checkpoints. Raises KopiatomicError."""
        finished = self._client.ask("list", "--json", "--format={hostname}{username}{end}{comment}{command_line}")
        if finished.status != 0:
            raise self._client.failure(finished)
        try:
            found = [_snapshot(document) for document in json.loads(finished.stdout)["archives"]]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise reader.cut_short("borg", "its list of archives cannot be read") from None
        return sorted(found, key=lambda snapshot: snapshot.started_ns)

    def entries(self, snapshot: StoredSnapshot, take: Callable[[Entry], None], *, below: str = "") -> None:
        """Hand on each entry below a path; one process. Raises KopiatomicError."""
        lines = JsonLines()
        top = self.form.path(below.rstrip("/"))
        seen = not top

        def read(data: bytes) -> None:
            nonlocal seen
            for found in lines.feed(data):
                if isinstance(found, str):
                    raise reader.cut_short("borg", f"{printable(found[:80])!r} is no entry")
                entry = _entry(found)
                seen = True
                if lies_in(entry.path, top):
                    take(entry)

        # Without a format, Borg's JSON has more than is asked for, but never a checksum, which would read all contents.
        self._run("list", "--json-lines", *_where(snapshot, below), snapshot=snapshot, below=below, take=read)
        read(b"")
        if not seen:
            raise reader.no_path("borg", snapshot, below)

    def read(self, snapshot: StoredSnapshot, receiver: Receiver, *, below: str = "") -> None:
        """Hand on the content of each file; one process. Raises KopiatomicError."""
        name, *patterns = _where(snapshot, below)
        self._export(name, "-", *patterns, snapshot=snapshot, receiver=receiver, below=below)

    def read_chosen(
        self, snapshot: StoredSnapshot, paths: Sequence[str], receiver: ChosenReceiver, *, place: str
    ) -> None:
        """Hand on the content of some files; Borg ends at the first error. Raises KopiatomicError, OSError.

        It reads its file of patterns line by line, without spaces at both ends. Other names are words of the command, and only
        if there are thousands of those it takes more than one process.
        """
        plain = [path for path in paths if _fits_a_line(path)]
        odd = [f"--pattern=+pf:{path.strip('/')}" for path in paths if not _fits_a_line(path)]
        lines = [*(f"+ pf:{path.strip('/')}" for path in plain), _NOTHING_ELSE]
        wanted = chosen.Chosen(receiver, paths, lambda path: path)

        def run() -> None:
            for group in process.parts(odd) or [[]]:
                with private_file(place, "\n".join(lines).encode()) as name:
                    words = ("--patterns-from", name, *group, f"::{snapshot.id}", "-")
                    self._export(*words, snapshot=snapshot, receiver=wanted)
                lines[:] = [_NOTHING_ELSE]

        chosen.read("borg", wanted, run)

    def _export(self, *words: str, snapshot: StoredSnapshot, receiver: Receiver, below: str = "") -> None:
        with archive("borg", receiver, lambda name: f"/{name.lstrip('/')}") as take:
            self._run("export-tar", *words, snapshot=snapshot, below=below, take=take)

    def require(self, snapshot: StoredSnapshot, path: str) -> None:
        """Look for a path; one process, two for one that has no entry of its own. Raises KopiatomicError."""
        # Only what was given to it has an entry, and none of what is above that.
        for style in ("pf", "pp") if path.strip("/") else ():
            pieces: list[bytes] = []
            words = ("--format={type}", f"::{snapshot.id}", f"{style}:{path.strip('/')}")
            self._run("list", *words, snapshot=snapshot, below=path, take=pieces.append)
            if any(pieces):
                return
        if path.strip("/"):
            raise reader.no_path("borg", snapshot, path)

    def restore(self, snapshot: StoredSnapshot, target: str, *, below: str = "") -> Sequence[str]:
        """Restore into a new or empty directory. Raises KopiatomicError, OSError."""
        place = reader.prepare(target)
        # It keeps some flags, and with those nothing could be moved to its place. By itself it takes owners by their names.
        words = ("--noflags", "--numeric-ids", *_where(snapshot, below))
        written = [place, *self._client.caches.values()]
        # It locks the repository, also to read.
        if (folder := repository.folder(self._client.where)) is not None:
            written.append(folder)
        with confining.only("borg", written) as first:
            return self._run("extract", *words, snapshot=snapshot, below=below, within=place, first=first)

    def _run(
        self,
        command: str,
        *words: str,
        snapshot: StoredSnapshot,
        below: str,
        take: Callable[[bytes], None] | None = None,
        within: str | None = None,
        first: Callable[[], None] | None = None,
    ) -> Sequence[str]:
        """Run a command to its end; return the attributes that it could not set, in words. Raises KopiatomicError.

        Any other warning is a failure, for something has not been read or written.
        """
        all_words = [command, "--log-json", *self._client.shared, *words]
        finished = self._client.run(*all_words, timeout=reader.TIME_LIMIT, take=take, within=within, first=first)
        if finished.status == 0:
            return ()
        log = messages(finished.stderr)
        said = [str(message.get("message", "")) for message in log if message.get("levelname") != "INFO"]
        if finished.status in WARNINGS and said and all(map(_UNSET.match, said)):
            return [f"borg: {printable(_WHERE.sub('', text))}" for text in said]
        if any(message.get("msgid") == "Archive.DoesNotExist" for message in log):
            raise reader.no_snapshot("borg", snapshot.id)
        if any(str(message.get("message", "")).endswith("never matched.") for message in log):
            raise reader.no_path("borg", snapshot, below)
        raise self._client.failure(finished)


def _fits_a_line(path: str) -> bool:
    """Whether a path can stand in a file of patterns, which is text."""
    return is_text(path) and path.strip() == path and "\n" not in path and "\r" not in path


def _where(snapshot: StoredSnapshot, below: str) -> list[str]:
    """Return the words that name an archive, and a path in it exactly as it is."""
    return [f"::{snapshot.id}", *([f"pp:{below.strip('/')}"] if below.strip("/") else [])]


def _snapshot(document: Mapping[str, Any]) -> StoredSnapshot:
    recorded, record = reader.marked([str(document.get("comment"))])
    return StoredSnapshot(
        id=str(document["name"]),
        root=reader.plain_id(document["id"]),
        started_ns=reader.nanoseconds(document["start"]),
        ended_ns=reader.nanoseconds(document["end"]),
        host=str(document["hostname"]),
        user=str(document["username"]),
        sources=_sources(document.get("command_line")),
        complete=True,
        recorded=recorded,
        record=record,
    )


def _sources(words: object) -> tuple[str, ...]:
    """Return the paths that an archive is of, by the command that made it; nothing where that cannot be told.

    Borg keeps no more of it. Paths may also come from files of patterns, and behind them there may be options.
    """
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return ()
    at = next((number for number, word in enumerate(words) if "::" in word), len(words))
    paths = tuple(words[at + 1 :])
    is_plain = all(path.startswith("/") and os.path.normpath(path) == path and "?" not in path for path in paths)
    return paths if is_plain and not any(word.startswith("--pattern") for word in words) else ()


def _entry(document: Mapping[str, Any]) -> Entry:
    """Return an entry of ``borg list --json-lines``. Raises KopiatomicError."""
    try:
        kind = _KINDS.get(document["type"], Kind.OTHER)
        mtime_ns = reader.nanoseconds(document["mtime"])
        same_as = f"/{document['source']}" if str(document["mode"]).startswith("h") else None
        size = int(document["size"]) if kind is Kind.FILE and same_as is None else None
        return Entry(f"/{document['path']}", kind, size, mtime_ns, same_as)
    except (KeyError, TypeError, ValueError):
        raise reader.cut_short("borg", "an entry cannot be read") from None
