"""The content of one file as an engine writes it, handed to a receiver, and its size checked."""

from __future__ import annotations

from kopiatomic.engines import reader
from kopiatomic.engines.reader import Receiver
from kopiatomic.text import printable


class SingleFile:
    """Takes the content of a file piece by piece."""

    def __init__(self, engine: str, receiver: Receiver, path: str, size: int) -> None:
        self._engine = engine
        self._receiver = receiver
        self._left = size
        self._is_wanted = receiver.begin(path, size)

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        self._left -= len(data)
        if self._is_wanted and self._left >= 0:
            self._receiver.piece(data)

    def finish(self, asked: str) -> None:
        """Take the end of the output; ``asked`` is the path that was asked for.

        Raises KopiatomicError of kind ENGINE-cut-short if the file did not have the size that it must have.
        """
        if self._left != 0:
            raise reader.cut_short(self._engine, f"{printable(asked)} has another size than it is listed with")
        if self._is_wanted:
            self._receiver.end()
