"""What ``borg create --json --log-json --list`` writes: its result on standard output, and everything else, one JSON object per
line, on standard error (Borg's documentation, "All about JSON"; the same in 1.2 and 1.4)."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any

from kopiatomic.engines.causes import Cause, cause
from kopiatomic.engines.listing import Listing
from kopiatomic.engines.numbers import about
from kopiatomic.engines.results import PROBLEMS
from kopiatomic.model.engine import FileProblem, Progress
from kopiatomic.system.lines import JsonLines
from kopiatomic.text import printable

KEEP_RESULT = 4 << 20
"""How much of standard output is kept (bytes): a result consists of its command line and some 1,000 bytes."""

KEEP_MESSAGES = 20
"""How many of the last messages are kept for a failure message."""

_KINDS = dict.fromkeys("AMUChi", "f") | {"d": "d"}
"""By Borg's letters: added, modified, unchanged, changed while being read, a hard link, standard input; a directory."""

_NOT_SAVED = frozenset({"E", "x", "-", "?"})
"""Failed, excluded, from a dry run."""


def messages(data: bytes) -> list[Mapping[str, Any]]:
    """Return the log messages in what Borg wrote to standard error with ``--log-json``."""
    found = JsonLines()
    return [m for m in (*found.feed(data), *found.feed(b"")) if isinstance(m, dict) and m.get("type") == "log_message"]


class Output:
    """Takes Borg's output as it arrives, in limited memory; what it lists goes into ``listing``."""

    def __init__(self, listing: Listing | None = None) -> None:
        self._result = bytearray()
        self._lines = JsonLines()
        self._last: deque[str] = deque(maxlen=KEEP_MESSAGES)
        self._listing = listing
        self.statuses: Counter[str] = Counter()
        """How many entries had each of Borg's letters."""
        self.problems: list[FileProblem] = []
        """The first files that could not be saved."""
        self.problem_count = 0
        self.message_id = ""
        """Borg's code for the last error."""

    def feed(self, stream: str, data: bytes) -> list[str | Progress]:
        """Take a piece of a stream (empty: it has ended); return lines to pass through, and progress."""
        if stream == "stdout":
            self._result += data[: KEEP_RESULT - len(self._result)]
            return []
        return [out for found in self._lines.feed(data) for out in self._take(found)]

    def _take(self, found: Mapping[str, Any] | str) -> Iterator[str | Progress]:
        if isinstance(found, str):
            if found.strip():
                self._last.append(found)
                yield found
            return
        kind = found.get("type")
        if kind == "file_status":
            self._list(str(found.get("status", "?")), str(found.get("path", "")))
        elif kind == "archive_progress" and not found.get("finished"):
            yield Progress(about(found, "nfiles"), about(found, "original_size"))
        elif kind == "log_message":
            yield self._message(
                str(found.get("levelname")), str(found.get("message", "")), str(found.get("msgid") or "")
            )
        elif kind == "question_prompt":
            yield printable(str(found.get("message", "")))

    def _list(self, status: str, path: str) -> None:
        self.statuses[status] += 1
        if self._listing is not None and status not in _NOT_SAVED:
            self._listing.take(path, _KINDS.get(status, "?"))

    def _message(self, level: str, message: str, message_id: str) -> str:
        text = printable(first_line(message))
        self._last.append(text)
        if level in {"ERROR", "CRITICAL"}:
            self.message_id = message_id
        # "PATH: REASON": how Borg reports a file when it has no dedicated message.
        path, colon, reason = text.partition(": ")
        if level == "WARNING" and colon and path.startswith("/"):
            self.problem_count += 1
            if len(self.problems) < PROBLEMS:
                self.problems.append(FileProblem(path, reason))
        return text

    @property
    def cause(self) -> Cause | None:
        """The cause that its last messages name."""
        return cause("\n".join(reversed(self._last)))

    def said(self, count: int = 3) -> str:
        """Return the last messages, as one line."""
        return "; ".join(list(self._last)[-count:])

    @property
    def archive(self) -> Mapping[str, Any] | None:
        """What the result says about the archive; None if there is no result."""
        return archive_in(bytes(self._result))


def first_line(message: str) -> str:
    """Return a message in one line: for a traceback the exception, which comes after it."""
    lines = message.strip().split("\n")
    if lines[0].startswith("Traceback "):
        report = "\n".join(lines).partition("\n\nPlatform:")[0].split("\n")
        return next((line for line in reversed(report) if line and not line.startswith((" ", "Traceback "))), lines[0])
    return lines[0]


def archive_in(data: bytes) -> Mapping[str, Any] | None:
    """Return the archive in an answer of ``borg create --json`` or ``borg info --json``."""
    try:
        document = json.loads(data)
        archive = document["archive"] if "archive" in document else document["archives"][0]
    except (ValueError, RecursionError, KeyError, IndexError, TypeError):
        return None
    whole = isinstance(archive, dict) and all(isinstance(archive.get(key), str) for key in ("name", "id", "start"))
    return archive if whole else None
