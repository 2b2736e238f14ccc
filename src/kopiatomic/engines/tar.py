"""A tar archive as a stream: files are handed on in pieces as they come, and nothing is held but headers.

Takes what kopia and restic (Go's archive/tar) and Borg (Python's tarfile) write: ustar with the extensions of pax and GNU.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kopiatomic.engines import reader
from kopiatomic.engines.reader import Receiver
from kopiatomic.text import printable

_BLOCK = tarfile.BLOCKSIZE
_LONGEST_EXTENSION = 1 << 20
"""The most (bytes) that one extended header may have: a path has 4 KiB, extended attributes 64 KiB each."""

_EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
)


class TarError(Exception):
    """The stream is no archive that can be read; the message says why, in words."""


@contextmanager
def archive(engine: str, receiver: Receiver, path: Callable[[str], str]) -> Iterator[Callable[[bytes], None]]:
    """Yield what takes an engine's archive piece by piece, and take its end behind the block.

    Raises KopiatomicError of kind ENGINE-cut-short if it is not whole.
    """
    stream = TarStream(receiver, path)
    try:
        yield stream.feed
        stream.finish()
    except TarError as error:
        raise reader.cut_short(engine, printable(str(error))) from None


class TarStream:
    """Takes an archive piece by piece. ``path`` makes the path of a file from a name in the archive."""

    def __init__(self, receiver: Receiver, path: Callable[[str], str]) -> None:
        self._receiver = receiver
        self._path = path
        self._header = bytearray()
        self._extension: tuple[bytes, bytearray] | None = None
        """The type and the content of an extended header that is being read."""
        self._attributes: dict[str, bytes] = {}
        """What extended headers say of the next entry."""
        self._name = ""
        self._left = 0
        """How many bytes of the current entry's data are still to come."""
        self._padding = 0
        self._is_file = False
        self._is_wanted = False
        self._zero_blocks = 0
        self.files = 0
        """How many files, and other names of files, have come."""

    def feed(self, data: bytes) -> None:
        """Take the next piece. Raises TarError, and what the receiver raises."""
        start = 0
        while start < len(data):
            # Two blocks of zeros end an archive; what follows is padding.
            if self._zero_blocks > 1:
                return
            if self._left:
                piece = data[start : start + self._left]
                self._left -= len(piece)
                self._take(piece)
            elif self._padding:
                piece = data[start : start + self._padding]
                self._padding -= len(piece)
            else:
                piece = data[start : start + _BLOCK - len(self._header)]
                self._header += piece
                if len(self._header) == _BLOCK:
                    block, self._header = bytes(self._header), bytearray()
                    self._begin(block)
            start += len(piece)

    def finish(self) -> None:
        """Take the end of the stream. Raises TarError if the archive has not ended."""
        if self._zero_blocks < 2:
            inside = f" inside {self._name!r}" if self._left and self._is_file else ""
            raise TarError(f"it ends before the end of the archive{inside}")

    def _begin(self, block: bytes) -> None:
        if not any(block):
            self._zero_blocks += 1
            return
        if self._zero_blocks:
            raise TarError("it goes on behind a block of zeros")
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise TarError(f"a header is damaged ({error})") from None
        if header.size < 0:
            # Numbers in the form of GNU may be.
            raise TarError("a header is damaged (a negative size)")
        attributes = self._attributes
        size = _number(attributes["size"]) if "size" in attributes else header.size
        if header.type in _EXTENSIONS:
            size = header.size
            if not 0 < size <= _LONGEST_EXTENSION:
                raise TarError("a header is damaged (its extension has no sensible size)")
            self._extension = (header.type, bytearray())
        else:
            self._attributes = {}
            # A directory's name may end with a slash, also in an extended header.
            self._name = os.fsdecode(attributes["path"]) if "path" in attributes else header.name
            if header.type in _WITHOUT_DATA:
                size = 0
            self._open(header, attributes, size)
        self._left, self._padding = size, -size % _BLOCK
        if size == 0 and self._is_file:
            self._end()

    def _open(self, header: tarfile.TarInfo, attributes: dict[str, bytes], size: int) -> None:
        """Begin an entry."""
        # An old form of a directory is a file whose name ends with a slash.
        self._is_file = header.type in _FILES and not self._name.endswith("/")
        if self._is_file:
            self._is_wanted = self._receiver.begin(self._path(self._name), size)
        elif header.type == tarfile.LNKTYPE:
            other = os.fsdecode(attributes["linkpath"]) if "linkpath" in attributes else header.linkname
            self.files += 1
            self._receiver.same(self._path(self._name), self._path(other))
        elif header.type not in _WITHOUT_DATA and not self._name.endswith("/"):
            raise TarError(f"it has an entry of an unknown type {header.type!r}")

    def _take(self, piece: bytes) -> None:
        """Take data of the current entry, or of an extended header."""
        if self._extension is not None:
            kind, content = self._extension
            content += piece
            if not self._left:
                self._extension = None
                self._extend(kind, bytes(content))
            return
        if self._is_file:
            if self._is_wanted:
                self._receiver.piece(piece)
            if not self._left:
                self._end()

    def _end(self) -> None:
        self._is_file = False
        self.files += 1
        if self._is_wanted:
            self._receiver.end()

    def _extend(self, kind: bytes, content: bytes) -> None:
        if kind == tarfile.GNUTYPE_LONGNAME:
            self._attributes["path"] = content.rstrip(b"\0")
        elif kind == tarfile.GNUTYPE_LONGLINK:
            self._attributes["linkpath"] = content.rstrip(b"\0")
        elif kind == tarfile.XHDTYPE:
            self._attributes |= _records(content)


def _records(content: bytes) -> dict[str, bytes]:
    """Return the records of an extended header (pax: ``LENGTH KEY=VALUE`` and a line end). Raises TarError."""
    found = {}
    while content:
        digits, _, _ = content.partition(b" ")
        length = _number(digits)
        record = content[len(digits) + 1 : length]
        key, equals, value = record.partition(b"=")
        if length <= len(digits) + 1 or length > len(content) or not equals or not value.endswith(b"\n"):
            raise TarError("an extended header is damaged")
        found[key.decode("utf-8", "surrogateescape")] = value[:-1]
        content = content[length:]
    return found


def _number(text: bytes) -> int:
    if not text.isdigit():
        raise TarError("an extended header is damaged (no number)")
    return int(text)
