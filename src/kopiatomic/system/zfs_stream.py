"""The bytes of a ZFS volume's snapshot, read through ``zfs send``: no device node, no clone, no property that others see.

A snapshot's own device exists only if the property ``snapdev`` is set, and setting it makes the devices of all of the volume's
snapshots visible to every user. A stream needs none of that. It can begin at any offset (as a resumed one does), has the volume's
blocks in order, and leaves holes out. Its records are those of OpenZFS's ``zfs_ioctl.h`` (``dmu_replay_record``), in the byte
order of this machine.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from typing import IO

from kopiatomic.system import libzfs_core

_DATA = 1
"""The object that holds a volume's data (ZVOL_OBJ)."""

_RECORD = 312
_MAGIC = 0x2F5BACBAC
_BEGIN, _OBJECT, _FREE_OBJECTS, _WRITE, _FREE, _END = range(6)

_SKIP = 8 << 20
"""How far (bytes) to read ahead in a stream instead of starting a new one."""

_STREAMS = 4
"""How many places of a volume can be read in turn, each in order, without starting new streams."""

_PIPE = 1 << 20


class VolumeReader:
    """Reads a volume's snapshot at any offset. For one thread."""

    def __init__(self, snapshot: str) -> None:
        self._snapshot = snapshot
        self._streams: list[_Stream] = []
        """The most recently used one is last."""

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset`` on; zeros where the volume has holes. Raises OSError."""
        near = [s for s in self._streams if s.position <= offset <= s.position + _SKIP]
        if near:
            stream = max(near, key=lambda s: s.position)
            self._streams.remove(stream)
        else:
            while len(self._streams) >= _STREAMS:
                self._streams.pop(0).close()
            stream = _Stream(self._snapshot, offset)
        try:
            data = stream.read(offset, length)
        except OSError:
            stream.close()
            raise
        self._streams.append(stream)
        return data


class _Stream:
    """One ``zfs send``, read forwards."""

    def __init__(self, snapshot: str, offset: int) -> None:
        self.position = offset
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self._pipe: IO[bytes] = os.fdopen(reading, "rb", buffering=_PIPE)
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._send, args=(snapshot, offset, writing), daemon=True)
        self._thread.start()
        self._start = offset
        self._block = b""
        self._ended = False

    def _send(self, snapshot: str, offset: int, writing: int) -> None:
        try:
            libzfs_core.send_object(snapshot, writing, _DATA, offset)
        except libzfs_core.ZfsCallError as error:
            self._error = OSError(error.errno, os.strerror(error.errno), snapshot)
        finally:
            os.close(writing)

    def close(self) -> None:
        """Abandon the stream; the kernel ends the call at its next write."""
        self._pipe.close()

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes at or after the position of the previous call. Raises OSError."""
        found = bytearray(length)
        end = offset + length
        while not self._ended and self._start < end:
            first, last = max(offset, self._start), min(end, self._start + len(self._block))
            if first < last:
                found[first - offset : last - offset] = self._block[first - self._start : last - self._start]
            if self._start + len(self._block) > end:
                break
            self._advance()
        self.position = end
        return bytes(found)

    def _advance(self) -> None:
        """Go to the next block of data, or to the end."""
        while True:
            record = self._take(_RECORD)
            kind, payload = struct.unpack_from("=II", record)
            if kind == _BEGIN:
                (magic,) = struct.unpack_from("=Q", record, 8)
                if magic != _MAGIC:
                    raise self._broken("it does not begin as a stream")
                self._take(payload)
            elif kind == _OBJECT:
                number, *_, bonus = struct.unpack_from("=QIIII", record, 8)
                if number > _DATA:
                    break
                self._take((bonus + 7) // 8 * 8)
            elif kind == _WRITE:
                number, _, _, start, size = struct.unpack_from("=QIIQQ", record, 8)
                if number > _DATA:
                    break
                if record[8 + 42]:
                    raise self._broken("it is compressed")
                self._start, self._block = start, self._take(size)
                return
            elif kind == _END:
                break
            elif kind not in {_FREE, _FREE_OBJECTS}:
                raise self._broken(f"it has a record of the unknown kind {kind}")
        # Objects come in order: no more data follows after the volume's.
        self._ended = True
        self._block = b""
        self.close()

    def _take(self, size: int) -> bytes:
        data = self._pipe.read(size)
        if len(data) < size:
            self._thread.join()
            raise self._error or self._broken("it ends too early")
        return data

    def _broken(self, why: str) -> OSError:
        return OSError(errno.EIO, f"the stream is not as expected: {why}")
