"""A read-only tree of regular files whose content this process provides: the kernel's FUSE protocol, as far as needed for that.

Structures and numbers are those of the kernel's ``include/uapi/linux/fuse.h``, version 7.23 and later.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kopiatomic.immutable import immutable
from kopiatomic.system import linux

DEVICE = "/dev/fuse"

_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _STATFS, _RELEASE = 1, 2, 3, 14, 15, 17, 18
_FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR, _INTERRUPT, _DESTROY, _BATCH_FORGET = 25, 26, 27, 28, 29, 36, 38, 42
_UNANSWERED = {_FORGET, _INTERRUPT, _BATCH_FORGET}
_ACCEPTED = {_FLUSH, _RELEASE, _RELEASEDIR, _DESTROY}

_MAJOR, _MINOR = 7, 31
_HEADER = struct.Struct("=IIQQIIII")
_REPLY = struct.Struct("=IiQ")
_ATTRIBUTES = struct.Struct("=QQQQQQIIIIIIIIII")
_READ_IN = struct.Struct("=QQI")
_BUFFER = 1 << 17
_WRITE = 4096
_FOR_EVER = 86400
"""How long (seconds) the kernel may cache names and attributes: they never change."""


@immutable
class File:
    """A file's size (bytes), and a function that reads ``length`` bytes from ``offset`` on; raises OSError."""

    size: int
    read: Callable[[int, int], bytes]


@dataclass(slots=True)
class _Node:
    number: int
    file: File | None = None
    entries: dict[bytes, _Node] = field(default_factory=dict)


def mount(target: str, source: str) -> int:
    """Mount a filesystem that is served through the returned descriptor (:class:`Server`). Raises OSError."""
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
        data = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions"
        linux.mount(source, target, f"fuse.{source}", flags, data)
    except OSError:
        os.close(fd)
        raise
    return fd


class Server:
    """Answers the kernel. ``mtime`` (nanoseconds) is that of all files and directories."""

    def __init__(self, fd: int, files: Mapping[str, File], mtime: int) -> None:
        self._fd = fd
        self._time = divmod(mtime, 1_000_000_000)
        self._nodes: dict[int, _Node] = {}
        self._new()
        for path, file in files.items():
            self._add(path, file)

    def _new(self, file: File | None = None) -> _Node:
        node = _Node(len(self._nodes) + 1, file)
        self._nodes[node.number] = node
        return node

    def _add(self, path: str, file: File) -> None:
        node = self._nodes[1]
        *parents, name = os.fsencode(path).split(b"/")
        for parent in parents:
            if parent not in node.entries:
                node.entries[parent] = self._new()
            node = node.entries[parent]
        node.entries[name] = self._new(file)

    def serve(self) -> None:
        """Serve requests until it is unmounted. Raises OSError."""
        while True:
            try:
                request = os.read(self._fd, _BUFFER)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in {errno.EINTR, errno.ENOENT}:
                    # The request was cancelled meanwhile.
                    continue
                raise
            _, kind, unique, number, *_ = _HEADER.unpack_from(request)
            if kind in _UNANSWERED:
                continue
            try:
                number_of_error, body = 0, self._answer(kind, self._nodes[number or 1], request[_HEADER.size :])
            except OSError as error:
                number_of_error, body = error.errno or errno.EIO, b""
            self._reply(unique, number_of_error, body)

    def _reply(self, unique: int, number: int, body: bytes) -> None:
        try:
            os.writev(self._fd, [_REPLY.pack(_REPLY.size + len(body), -number, unique), body])
        except OSError as error:
            # The requester is gone.
            if error.errno != errno.ENOENT:
                raise

    def _answer(self, kind: int, node: _Node, body: bytes) -> bytes:
        """Return the body of a reply. Raises OSError for what does not exist."""
        if kind == _INIT:
            return self._begun(body)
        if kind == _LOOKUP:
            found = node.entries.get(body.rstrip(b"\0"))
            if found is None:
                raise OSError(errno.ENOENT, "")
            return struct.pack("=QQQQII", found.number, 0, _FOR_EVER, _FOR_EVER, 0, 0) + self._attributes(found)
        if kind == _GETATTR:
            return struct.pack("=QII", _FOR_EVER, 0, 0) + self._attributes(node)
        if kind in {_OPEN, _OPENDIR}:
            return struct.pack("=QII", 0, 0, 0)
        if kind in {_READ, _READDIR}:
            _, offset, size = _READ_IN.unpack_from(body)
            return self._read(node.file, offset, size) if node.file else _listed(node, offset, size)
        if kind == _STATFS:
            return struct.pack("=QQQQQIIII24x", 0, 0, 0, len(self._nodes), 0, _BUFFER, 255, _BUFFER, 0)
        if kind in _ACCEPTED:
            return b""
        raise OSError(errno.ENOSYS, "")

    def _begun(self, body: bytes) -> bytes:
        _, minor, readahead, _ = struct.unpack_from("=IIII", body)
        # No flags: above all not the one for reads out of order.
        return struct.pack("=IIIIHHIIHHII24x", _MAJOR, min(minor, _MINOR), readahead, 0, 0, 0, _WRITE, 1, 0, 0, 0, 0)

    def _attributes(self, node: _Node) -> bytes:
        size = node.file.size if node.file else 0
        mode = stat.S_IFREG | 0o400 if node.file else stat.S_IFDIR | 0o700
        links = 1 if node.file else 2
        seconds, rest = self._time
        blocks = (size + 511) // 512
        times = seconds, seconds, seconds, rest, rest, rest
        return _ATTRIBUTES.pack(node.number, size, blocks, *times, mode, links, 0, 0, 0, 1 << 17, 0)

    @staticmethod
    def _read(file: File, offset: int, size: int) -> bytes:
        length = max(0, min(size, file.size - offset))
        return file.read(offset, length) if length else b""


def _listed(node: _Node, offset: int, size: int) -> bytes:
    """Return as many entries of a directory as fit, beginning with this number."""
    found = b""
    for position, (name, inside) in enumerate(list(node.entries.items())[offset:], offset + 1):
        kind = (stat.S_IFREG if inside.file else stat.S_IFDIR) >> 12
        entry = struct.pack("=QQII", inside.number, position, len(name), kind) + name
        entry += bytes(-len(entry) % 8)
        if len(found) + len(entry) > size:
            break
        found += entry
    return found
