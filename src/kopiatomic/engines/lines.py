"""What programs write, as lines: bounded in size and harmless on a terminal."""

from __future__ import annotations

from kopiatomic.text import printable

LONGEST_LINE = 8192
"""A longer line (bytes) is handed on in pieces, so that output without line ends cannot fill the memory."""


class Lines:
    """Cuts a stream of bytes into printable lines (tabs stay); a carriage return ends a line too (progress)."""

    def __init__(self) -> None:
        self._rest = b""
        self._after_return = False

    def feed(self, data: bytes) -> list[str]:
        """Take the next piece (empty: the stream has ended); returns the lines that are whole now."""
        if not data:
            last, self._rest = self._rest, b""
            return [self._text(last)] if last else []
        if self._after_return and data.startswith(b"\n"):
            data = data[1:]
        self._after_return = data.endswith(b"\r")
        # Much faster than a regular expression, and a flood comes through here.
        pieces = (self._rest + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = pieces.pop()
        while len(self._rest) > LONGEST_LINE:
            pieces.append(self._rest[:LONGEST_LINE])
            self._rest = self._rest[LONGEST_LINE:]
        return [self._text(piece) for piece in pieces]

    @staticmethod
    def _text(line: bytes) -> str:
        text = line.decode("utf-8", "backslashreplace")
        return "\t".join(printable(part) for part in text.split("\t"))
