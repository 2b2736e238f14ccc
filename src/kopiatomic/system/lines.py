"""Output of programs as lines: limited in size and harmless on a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from kopiatomic.text import printable

LONGEST_LINE = 8192
"""A longer line (bytes) is passed on in pieces, so that output without line ends cannot fill the memory."""


LONGEST_DOCUMENT = 1 << 18
"""The same for a line that may be a JSON document: it contains names of files, each of up to 4,095 bytes, escaped."""


class _Cut:
    """Cuts a stream of bytes into lines; a carriage return also ends a line (progress)."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._rest = b""
        self._after_return = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next piece (empty: the stream has ended); return the lines that are complete now."""
        if not data:
            last, self._rest = self._rest, b""
            return [last] if last else []
        if self._after_return and data.startswith(b"\n"):
            data = data[1:]
        self._after_return = data.endswith(b"\r")
        # Much faster than a regular expression, and a flood of output passes here.
        pieces = (self._rest + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = pieces.pop()
        while len(self._rest) > self._longest:
            pieces.append(self._rest[: self._longest])
            self._rest = self._rest[self._longest :]
        return pieces


class Lines:
    """Cuts a stream of bytes into printable lines (tabs stay)."""

    def __init__(self) -> None:
        self._cut = _Cut(LONGEST_LINE)

    def feed(self, data: bytes) -> list[str]:
        """Take the next piece (empty: the stream has ended); return the lines that are complete now."""
        return [_text(piece) for piece in self._cut.feed(data)]


class JsonLines:
    """Cuts a stream of bytes into JSON objects, one per line, and printable lines where it contains something else."""

    def __init__(self) -> None:
        self._cut = _Cut(LONGEST_DOCUMENT)

    def feed(self, data: bytes) -> Iterator[dict[str, Any] | str]:
        """Take the next piece (empty: the stream has ended); return what is complete now."""
        for piece in self._cut.feed(data):
            if piece.startswith(b"{"):
                try:
                    document = json.loads(piece)
                except (ValueError, RecursionError):
                    document = None
                if isinstance(document, dict):
                    yield document
                    continue
            for begin in range(0, len(piece), LONGEST_LINE):
                yield _text(piece[begin : begin + LONGEST_LINE])


def _text(line: bytes) -> str:
    text = line.decode("utf-8", "backslashreplace")
    return "\t".join(printable(part) for part in text.split("\t"))
