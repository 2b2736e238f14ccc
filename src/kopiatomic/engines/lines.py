"""What programs write, as lines: bounded in size and harmless on a terminal; and how they end, in words."""

from __future__ import annotations

import re
import signal

from kopiatomic.text import printable

LONGEST_LINE = 8192
"""A longer line (bytes) is handed on in pieces, so that output without line ends cannot fill the memory."""

_LINE_END = re.compile(rb"\r\n|\n|\r")


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
        pieces = _LINE_END.split(self._rest + data)
        self._rest = pieces.pop()
        while len(self._rest) > LONGEST_LINE:
            pieces.append(self._rest[:LONGEST_LINE])
            self._rest = self._rest[LONGEST_LINE:]
        return [self._text(piece) for piece in pieces]

    @staticmethod
    def _text(line: bytes) -> str:
        text = line.decode("utf-8", "backslashreplace")
        return "\t".join(printable(part) for part in text.split("\t"))


def ended(status: int) -> str:
    """How a program ended, in words: ``exit status 3``, ``killed by SIGKILL (9)``."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name} ({-status})"
    except ValueError:
        return f"killed by signal {-status}"
