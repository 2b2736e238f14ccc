"""What ``kopia snapshot create --json`` writes: its result on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from kopiatomic.engines.causes import cause
from kopiatomic.engines.kopia.client import error_lines
from kopiatomic.immutable import immutable
from kopiatomic.model.engine import Progress
from kopiatomic.system.lines import Lines

KEEP_RESULT = 4 << 20
"""How much of standard output is kept (bytes). A result has some 800 bytes, plus 70 for each file that failed."""

KEEP_ERRORS = 20
"""How many of the last lines of standard error are kept for a failure message."""

SHOWN_FAILURES = 20
"""How many failed files are read from a truncated result."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18} | {
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "Pi": 2**50,
    "Ei": 2**60,
}
"""kopia counts in powers of ten, or with KOPIA_BYTES_STRING_BASE_2 in powers of two (internal/units/units.go)."""

_SIZE = r"([\d.]+) ([KMGTPE]i?)?B"
_PROGRESS = re.compile(
    rf"[|/\\*-] \d+ hashing, (\d+) hashed \({_SIZE}\), (\d+) cached \({_SIZE}\), uploaded {_SIZE}"
    rf"(?: \(\d+ fatal errors\))?(?: \(\d+ errors ignored\))?"
    rf"(?:, estimated {_SIZE} \([\d.]+%\) (\S+) left|, estimating\.\.\.)?"
)
"""The progress line (cli/cli_progress.go; the same from 0.13.0 to 0.23.1)."""


def parse_progress(line: str) -> Progress | None:
    """Parse a kopia progress line; return None for any other line."""
    found = _PROGRESS.fullmatch(line.strip())
    if found is None:
        return None
    hashed, hashed_size, hashed_unit, cached, cached_size, cached_unit, _, _, total, unit, left = found.groups()
    try:
        return Progress(
            files=int(hashed) + int(cached),
            bytes_done=_bytes(hashed_size, hashed_unit) + _bytes(cached_size, cached_unit),
            bytes_total=None if total is None else _bytes(total, unit),
            text="" if left is None else f"{left} left",
        )
    except (OverflowError, ValueError):
        return None


def _bytes(number: str, unit: str | None) -> int:
    return round(float(number) * _UNITS[unit or ""])


@immutable
class Manifest:
    """A snapshot's manifest, as far as needed here. ``summary`` and ``statistics`` are kopia's own objects."""

    id: str
    path: str
    root_object: str
    incomplete: str
    summary: Mapping[str, Any]
    statistics: Mapping[str, Any]


def parse_manifest(document: object) -> Manifest | None:
    """Return a snapshot's manifest from kopia's JSON (snapshot/manifest.go); None if it is something else."""
    if not isinstance(document, dict):
        return None
    try:
        entry, source = document["rootEntry"], document["source"]
        manifest_id, path, root_object = document["id"], source["path"], entry["obj"]
        if not all(isinstance(n, str) and n for n in (manifest_id, path, root_object)):
            return None
        summary, statistics = dict(entry["summ"]), dict(document.get("stats") or {})
    except (KeyError, TypeError, ValueError):
        return None
    reason = document.get("incomplete") or summary.get("incomplete") or ""
    return Manifest(manifest_id, path, root_object, str(reason), summary, statistics)


class Output:
    """Takes kopia's output as it arrives, in limited memory."""

    def __init__(self) -> None:
        self._result = bytearray()
        self._cut = False
        self._lines = Lines()
        self._last: deque[str] = deque(maxlen=KEEP_ERRORS)
        self._panic: str | None = None

    def feed(self, stream: str, data: bytes) -> list[str | Progress]:
        """Take a piece of a stream; return lines to pass through, and progress."""
        if stream == "stdout":
            room = KEEP_RESULT - len(self._result)
            self._result += data[:room]
            self._cut = self._cut or len(data) > room
            return []
        return [found for line in self._lines.feed(data) for found in self._line(line)]

    def _line(self, line: str) -> Iterator[str | Progress]:
        progress = parse_progress(line)
        if progress is not None:
            yield progress
        elif line.strip():
            self._last.append(line)
            if line.startswith(("panic: ", "fatal error: ")) and self._panic is None:
                self._panic = line
            yield line

    @property
    def empty(self) -> bool:
        """Whether nothing was written to standard output."""
        return not self._result.strip()

    @property
    def excerpt(self) -> str:
        """The beginning of standard output, safe to print."""
        return repr(self._result[:80].decode("utf-8", "backslashreplace"))

    def errors(self, count: int = 3) -> str:
        """Return the cause that standard error names; otherwise its last meaningful lines, as one line."""
        if self._panic is not None:
            return self._panic
        said = [
            line for line in error_lines("\n".join(self._last)) if not line.startswith(("Snapshotting ", "! Error"))
        ]
        found = cause("\n".join(reversed(said)))
        return str(found) if found is not None else "; ".join(said[-count:])

    def manifests(self) -> list[Manifest]:
        """Return the manifests on standard output, one for each source. What is between them is skipped."""
        text = self._result.decode("utf-8", "replace")
        found = [m for document in _documents(text) if (m := parse_manifest(document)) is not None]
        if not found and self._cut:
            repaired = parse_manifest(_repaired(text))
            return [repaired] if repaired is not None else []
        return found


def _documents(text: str) -> Iterator[object]:
    """Yield the JSON objects in a text, each of which begins a line."""
    decoder = json.JSONDecoder()
    position = 0
    while (position := text.find("{", position)) >= 0:
        if position == 0 or text[position - 1] == "\n":
            try:
                document, position = decoder.raw_decode(text, position)
                yield document
                continue
            except (ValueError, RecursionError):
                pass
        position += 1


def _repaired(text: str) -> object:
    """Return a result that was truncated in its list of failed files, closed after the first of them.

    kopia writes that list completely, of any length (30,000 seen; the limit of ten in its source is put on a copy), as the
    last member of the last member of ``rootEntry``; what comes before it counts all of them.
    """
    head, mark, tail = text.partition('"errors":[')
    if not mark:
        return None
    decoder = json.JSONDecoder()
    failures: list[object] = []
    position = 0
    try:
        while len(failures) < SHOWN_FAILURES:
            failure, position = decoder.raw_decode(tail, position)
            failures.append(failure)
            position += 1
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(f"{head}{mark}{json.dumps(failures)[1:-1]}]}}}}}}")
    except (ValueError, RecursionError):
        return None
