"""Btrfs's ioctls: what a subvolume is, which lie in it, make a snapshot, delete one.

Layouts are those of the kernel's uapi/linux/btrfs.h. ctypes is used because ``fcntl.ioctl`` keeps the interpreter lock
for buffers of this size, and snapshots are asked for from several threads at once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from functools import cache

from kopiatomic.immutable import immutable

TOP_LEVEL = 5
"""The id of the subvolume that every Btrfs filesystem begins with."""

SUBVOLUME_INODE = 256
"""The inode number of every subvolume's top directory (BTRFS_FIRST_FREE_OBJECTID)."""

_LEFT_OUT_INODE = 2
"""The inode number of the empty directory that stands for a nested subvolume in a snapshot (BTRFS_EMPTY_SUBVOL_DIR_OBJECTID)."""

_READ_ONLY = 1 << 1
_ROOT_READ_ONLY = 1 << 0
_NO_UUID = bytes(16)
_WRITE, _READ = 1, 2


def _request(direction: int, number: int, size: int) -> int:
    """An ioctl's number as asm-generic/ioctl.h builds it, with Btrfs's magic 0x94."""
    return direction << 30 | size << 16 | 0x94 << 8 | number


class _Path(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int64), ("name", ctypes.c_char * 4088))


class _SnapshotArguments(ctypes.Structure):
    _fields_ = (
        ("fd", ctypes.c_int64),
        ("transid", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("unused", ctypes.c_uint64 * 4),
        ("name", ctypes.c_char * 4040),
    )


class _Info(ctypes.Structure):
    _fields_ = (
        ("treeid", ctypes.c_uint64),
        ("name", ctypes.c_char * 256),
        ("parent_id", ctypes.c_uint64),
        ("dirid", ctypes.c_uint64),
        ("generation", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("uuid", ctypes.c_uint8 * 16),
        ("parent_uuid", ctypes.c_uint8 * 16),
        ("received_uuid", ctypes.c_uint8 * 16),
        ("ctransid", ctypes.c_uint64),
        ("otransid", ctypes.c_uint64),
        ("stransid", ctypes.c_uint64),
        ("rtransid", ctypes.c_uint64),
        ("times", ctypes.c_uint8 * 64),
        ("reserved", ctypes.c_uint64 * 8),
    )


class _Reference(ctypes.Structure):
    _fields_ = (("treeid", ctypes.c_uint64), ("dirid", ctypes.c_uint64))


class _References(ctypes.Structure):
    _fields_ = (
        ("min_treeid", ctypes.c_uint64),
        ("items", _Reference * 255),
        ("count", ctypes.c_uint8),
        ("align", ctypes.c_uint8 * 7),
    )


class _Lookup(ctypes.Structure):
    _fields_ = (
        ("dirid", ctypes.c_uint64),
        ("treeid", ctypes.c_uint64),
        ("name", ctypes.c_char * 256),
        ("path", ctypes.c_char * 3824),
    )


class _FilesystemInfo(ctypes.Structure):
    _fields_ = (
        ("max_id", ctypes.c_uint64),
        ("num_devices", ctypes.c_uint64),
        ("fsid", ctypes.c_uint8 * 16),
        ("rest", ctypes.c_uint8 * 992),
    )


_SNAP_DESTROY = _request(_WRITE, 15, ctypes.sizeof(_Path))
_START_SYNC = _request(_READ, 24, 8)
_WAIT_SYNC = _request(_WRITE, 22, 8)
_SNAP_CREATE_V2 = _request(_WRITE, 23, ctypes.sizeof(_SnapshotArguments))
_SUBVOL_SETFLAGS = _request(_WRITE, 26, 8)
_FS_INFO = _request(_READ, 31, ctypes.sizeof(_FilesystemInfo))
_GET_SUBVOL_INFO = _request(_READ, 60, ctypes.sizeof(_Info))
_GET_SUBVOL_ROOTREF = _request(_READ | _WRITE, 61, ctypes.sizeof(_References))
_INO_LOOKUP_USER = _request(_READ | _WRITE, 62, ctypes.sizeof(_Lookup))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _ioctl(fd: int, request: int, argument: ctypes.Structure | ctypes.c_uint64) -> None:
    # BTRFS_IOC_GET_SUBVOL_ROOTREF returns 1 where it has come to the end (seen on 6.18): only below 0 is a failure.
    if _libc().ioctl(fd, ctypes.c_ulong(request), ctypes.byref(argument)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@immutable
class Subvolume:
    """What the kernel says of one subvolume, in numbers of transactions.

    ``born`` is the one it was made in (``otransid``), ``changed`` that of the last change to a file or directory
    (``ctransid``; a snapshot has that of its source), ``generation`` that of the last change to its tree, of whatever kind, that
    is on the disk.
    """

    id: int
    uuid: bytes
    parent_uuid: bytes
    born: int
    changed: int
    generation: int
    read_only: bool

    @property
    def is_snapshot(self) -> bool:
        """Whether it was made from another subvolume."""
        return self.parent_uuid != _NO_UUID


def subvolume(fd: int) -> Subvolume:
    """The subvolume that an open file or directory lies in. Raises OSError; ENOENT where it has been deleted."""
    info = _Info()
    _ioctl(fd, _GET_SUBVOL_INFO, info)
    return Subvolume(
        id=info.treeid,
        uuid=bytes(info.uuid),
        parent_uuid=bytes(info.parent_uuid),
        born=info.otransid,
        changed=info.ctransid,
        generation=info.generation,
        read_only=bool(info.flags & _ROOT_READ_ONLY),
    )


def is_top(fd: int) -> bool:
    """Whether an open directory is the top of a subvolume (its filesystem is known to be Btrfs)."""
    status = os.fstat(fd)
    return stat.S_ISDIR(status.st_mode) and status.st_ino == SUBVOLUME_INODE


def is_left_out(fd: int) -> bool:
    """Whether an open directory of a snapshot stands for a subvolume that was nested there, which is not in it."""
    return os.fstat(fd).st_ino == _LEFT_OUT_INODE


def filesystem_uuid(fd: int) -> str:
    """The UUID of the whole filesystem, in lower-case hexadecimal groups. Raises OSError."""
    info = _FilesystemInfo()
    _ioctl(fd, _FS_INFO, info)
    digits = bytes(info.fsid).hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def children(fd: int) -> Iterator[tuple[int, str]]:
    """The subvolumes directly in the one whose top is open as ``fd``: id, and path relative to that top.

    Raises OSError.
    """
    references = _References()
    while True:
        try:
            _ioctl(fd, _GET_SUBVOL_ROOTREF, references)
            more = False
        except OSError as error:
            if error.errno != errno.EOVERFLOW:
                raise
            more = True
        for position in range(references.count):
            item = references.items[position]
            lookup = _Lookup(dirid=item.dirid, treeid=item.treeid)
            try:
                _ioctl(fd, _INO_LOOKUP_USER, lookup)
            except FileNotFoundError:
                # Deleted between the two calls.
                continue
            yield item.treeid, os.fsdecode(lookup.path + lookup.name)
        if not more:
            return


def snapshot(source: int, directory: int, name: str, *, read_only: bool) -> None:
    """Snapshot the subvolume whose top is open as ``source`` to ``name`` in an open directory. Raises OSError."""
    arguments = _SnapshotArguments(fd=source, flags=_READ_ONLY if read_only else 0, name=os.fsencode(name))
    _ioctl(directory, _SNAP_CREATE_V2, arguments)


def make_read_only(fd: int) -> None:
    """Make the subvolume whose top is open as ``fd`` read-only. Raises OSError."""
    _ioctl(fd, _SUBVOL_SETFLAGS, ctypes.c_uint64(_READ_ONLY))


def delete(directory: int, name: str) -> None:
    """Delete the subvolume ``name`` in an open directory; its space is freed later. Raises OSError."""
    _ioctl(directory, _SNAP_DESTROY, _Path(name=os.fsencode(name)))


def commit(fd: int) -> None:
    """Wait until all that was made and deleted in a filesystem so far is so after a power cut as well. Raises OSError.

    A deletion alone is not: it is on the disk with the next transaction, up to 30 s later (``commit=``, btrfs(5)).
    """
    transaction = ctypes.c_uint64()
    _ioctl(fd, _START_SYNC, transaction)
    _ioctl(fd, _WAIT_SYNC, transaction)
