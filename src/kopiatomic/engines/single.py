"""The content of one file as an engine writes it, handed to a receiver, and its size checked."""

from __future__ import annotations

from kopiatomic.engines.reader import Receiver


class SingleFile:
    """Takes the content of a file piece by piece."""

    def __init__(self, receiver: Receiver, path: str, size: int) -> None:
        self._receiver = receiver
        self._left = size
        self._is_wanted = receiver.begin(path, size)

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        self._left -= len(data)
        if self._is_wanted and self._left >= 0:
            self._receiver.piece(data)

    def finish(self) -> bool:
        """Take the end of the output; return whether it had the size that it must have."""
        if self._left == 0 and self._is_wanted:
            self._receiver.end()
        return self._left == 0
