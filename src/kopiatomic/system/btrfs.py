"""Btrfs's ioctls: identify a subvolume, list those in it, make a snapshot, delete one.

Layouts are those of the kernel's uapi/linux/btrfs.h. ctypes is used because ``fcntl.ioctl`` keeps the interpreter lock for
buffers of this size, and several threads request snapshots at once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
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
NO_UUID = bytes(16)
"""Stands for a missing UUID."""

_WRITE, _READ = 1, 2

_ROOT_TREE, _UUID_TREE = 1, 9
_INODE_REF, _ROOT_BACKREF, _UUID_OF_SUBVOLUME = 12, 144, 251
_INODE_REF_HEAD = struct.Struct("<QH")
"""Precedes a name in an item of these kinds (uapi/linux/btrfs_tree.h): index, length of the name."""
_ROOT_BACKREF_HEAD = struct.Struct("<QQH")
"""The directory's inode, its index in it, length of the name."""

_STEPS = 1 << 17
"""How deep a subvolume may lie, in directories; a path that is moved all the time must not be followed for ever."""


def _request(direction: int, number: int, size: int) -> int:
    """Return an ioctl's number as asm-generic/ioctl.h builds it, with Btrfs's magic 0x94."""
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


class _Search(ctypes.Structure):
    _fields_ = (
        ("tree_id", ctypes.c_uint64),
        ("min_objectid", ctypes.c_uint64),
        ("max_objectid", ctypes.c_uint64),
        ("min_offset", ctypes.c_uint64),
        ("max_offset", ctypes.c_uint64),
        ("min_transid", ctypes.c_uint64),
        ("max_transid", ctypes.c_uint64),
        ("min_type", ctypes.c_uint32),
        ("max_type", ctypes.c_uint32),
        ("nr_items", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
        ("more_unused", ctypes.c_uint64 * 4),
        ("buffer", ctypes.c_char * 3992),
    )


_ITEM_HEAD = struct.Struct("=QQQII")
"""Precedes an item that a search has found: transaction, object, offset, kind, length."""


class _FilesystemInfo(ctypes.Structure):
    _fields_ = (
        ("max_id", ctypes.c_uint64),
        ("num_devices", ctypes.c_uint64),
        ("fsid", ctypes.c_uint8 * 16),
        ("rest", ctypes.c_uint8 * 992),
    )


class _InodeLookup(ctypes.Structure):
    _fields_ = (("treeid", ctypes.c_uint64), ("objectid", ctypes.c_uint64), ("path", ctypes.c_char * 4080))


_SUBVOL_CREATE = _request(_WRITE, 14, ctypes.sizeof(_Path))
_SNAP_DESTROY = _request(_WRITE, 15, ctypes.sizeof(_Path))
_TREE_SEARCH = _request(_READ | _WRITE, 17, ctypes.sizeof(_Search))
_INO_LOOKUP = _request(_READ | _WRITE, 18, ctypes.sizeof(_InodeLookup))
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
    # BTRFS_IOC_GET_SUBVOL_ROOTREF returns 1 at the end (seen on 6.18): only a negative value is a failure.
    if _libc().ioctl(fd, ctypes.c_ulong(request), ctypes.byref(argument)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@immutable
class Subvolume:
    """What the kernel reports of one subvolume, in numbers of transactions.

    ``born`` is the one it was made in (``otransid``), ``changed`` that of the last change to a file or directory (``ctransid``; a
    snapshot has that of its source), ``generation`` that of the last change of any kind to its tree that is on the disk.
    """

    id: int
    uuid: bytes
    parent_uuid: bytes
    received_uuid: bytes
    born: int
    changed: int
    generation: int
    read_only: bool


def subvolume(fd: int) -> Subvolume:
    """Return the subvolume that an open file or directory lies in. Raises OSError; ENOENT if it has been deleted."""
    info = _Info()
    _ioctl(fd, _GET_SUBVOL_INFO, info)
    return Subvolume(
        id=info.treeid,
        uuid=bytes(info.uuid),
        parent_uuid=bytes(info.parent_uuid),
        received_uuid=bytes(info.received_uuid),
        born=info.otransid,
        changed=info.ctransid,
        generation=info.generation,
        read_only=bool(info.flags & _ROOT_READ_ONLY),
    )


class _Handle(ctypes.Structure):
    """``struct file_handle`` with Btrfs's ``struct btrfs_fid`` without a parent (fs/btrfs/export.h)."""

    _pack_ = 1
    _fields_ = (
        ("bytes", ctypes.c_uint32),
        ("type", ctypes.c_int32),
        ("objectid", ctypes.c_uint64),
        ("root_objectid", ctypes.c_uint64),
        ("generation", ctypes.c_uint32),
    )


_HANDLE_BYTES = 20
_HANDLE_TYPE = 0x4D
"""FILEID_BTRFS_WITHOUT_PARENT (linux/exportfs.h)."""


def open_subvolume(anywhere: int, id_: int) -> int:
    """Open the top directory of a subvolume by its id, wherever it is, even if its path is too long or covered.

    ``anywhere`` is open in its filesystem. Raises OSError; its number proves nothing (exportfs_decode_fh returns ESTALE for
    nearly every failure).
    """
    # Any generation will do (btrfs_get_dentry, fs/btrfs/export.c).
    handle = _Handle(_HANDLE_BYTES, _HANDLE_TYPE, SUBVOLUME_INODE, id_, 0)
    fd = _libc().open_by_handle_at(anywhere, ctypes.byref(handle), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(fd)


def is_top(fd: int) -> bool:
    """Whether an open directory is the top of a subvolume (its filesystem is known to be Btrfs)."""
    status = os.fstat(fd)
    return stat.S_ISDIR(status.st_mode) and status.st_ino == SUBVOLUME_INODE


def is_left_out(fd: int) -> bool:
    """Whether an open directory of a snapshot stands for a nested subvolume, which the snapshot does not contain."""
    return os.fstat(fd).st_ino == _LEFT_OUT_INODE


def filesystem_uuid(fd: int) -> str:
    """Return the UUID of the whole filesystem, in lower-case hexadecimal groups. Raises OSError."""
    info = _FilesystemInfo()
    _ioctl(fd, _FS_INFO, info)
    digits = bytes(info.fsid).hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


@immutable
class Nested:
    """A subvolume directly in another: its id, and its path relative to that one's top.

    ``too_long``: the kernel has no room for the path, so no program can open it.
    """

    id: int
    path: str
    too_long: bool = False


def children(fd: int) -> Iterator[Nested]:
    """Yield the subvolumes directly in the one whose top is open as ``fd``. Raises OSError."""
    references = _References()
    directories: dict[int, tuple[int, str]] = {}
    more = True
    while more:
        more = _list(fd, references)
        for position in range(references.count):
            found = _nested(fd, references.items[position], directories)
            if found is not None:
                yield found


def child(fd: int, subvolume_id: int) -> Nested | None:
    """Return where one of :func:`children` is now; None if it is no longer directly in that one. Raises OSError."""
    references = _References(min_treeid=subvolume_id)
    _list(fd, references)
    if not references.count or references.items[0].treeid != subvolume_id:
        return None
    return _nested(fd, references.items[0], {})


def _list(fd: int, references: _References) -> bool:
    """Get the next references. Return whether there are more. Raises OSError."""
    try:
        _ioctl(fd, _GET_SUBVOL_ROOTREF, references)
    except OSError as error:
        if error.errno != errno.EOVERFLOW:
            raise
        return True
    return False


def _nested(fd: int, reference: _Reference, directories: dict[int, tuple[int, str]]) -> Nested | None:
    """Return what a reference leads to; None if that was just deleted. Raises OSError."""
    lookup = _Lookup(dirid=reference.dirid, treeid=reference.treeid)
    try:
        _ioctl(fd, _INO_LOOKUP_USER, lookup)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
    else:
        return Nested(reference.treeid, os.fsdecode(lookup.path + lookup.name))
    path = _long_path(fd, reference.treeid, directories)
    return None if path is None else Nested(reference.treeid, path, too_long=True)


def _long_path(fd: int, subvolume_id: int, directories: dict[int, tuple[int, str]]) -> str | None:
    """Build a path too long for ``BTRFS_IOC_INO_LOOKUP_USER``, name by name; return None if it was just deleted.

    ``directories`` remembers, by inode, the directory above and the name. Raises OSError.
    """
    found = _first_item(fd, _ROOT_TREE, subvolume_id, _ROOT_BACKREF)
    if found is None:
        return None
    directory, _, length = _ROOT_BACKREF_HEAD.unpack_from(found[1])
    names = [os.fsdecode(found[1][_ROOT_BACKREF_HEAD.size :][:length])]
    while directory != SUBVOLUME_INODE and len(names) < _STEPS:
        if directory not in directories:
            above = _first_item(fd, 0, directory, _INODE_REF)
            if above is None:
                return None
            _, length = _INODE_REF_HEAD.unpack_from(above[1])
            directories[directory] = above[0], os.fsdecode(above[1][_INODE_REF_HEAD.size :][:length])
        directory, name = directories[directory]
        names.append(name)
    return "/".join(reversed(names))


def _first_item(fd: int, tree: int, object_id: int, kind: int, *, offset: int = 0) -> tuple[int, bytes] | None:
    """Return the first item of a kind that an object has in a tree (0: that of ``fd``): the offset of its key, and its bytes.

    The offset is ``offset`` or higher. Raises OSError; EPERM without CAP_SYS_ADMIN.
    """
    search = _Search(
        tree_id=tree,
        min_objectid=object_id,
        max_objectid=object_id,
        min_offset=offset,
        max_offset=(1 << 64) - 1,
        max_transid=(1 << 64) - 1,
        min_type=kind,
        max_type=kind,
        nr_items=1,
    )
    _ioctl(fd, _TREE_SEARCH, search)
    if not search.nr_items:
        return None
    # The field's own value ends at the first zero byte.
    data = ctypes.string_at(ctypes.addressof(search) + _Search.buffer.offset, _Search.buffer.size)
    _, _, offset, _, length = _ITEM_HEAD.unpack_from(data)
    return offset, data[_ITEM_HEAD.size :][:length]


def is_deleted(anywhere: int, id_: int) -> bool:
    """Whether a subvolume has been deleted, as its id proves: ids are never reused. ``anywhere`` is open in its filesystem.

    Raises OSError; EPERM without CAP_SYS_ADMIN.
    """
    return id_ != TOP_LEVEL and _first_item(anywhere, _ROOT_TREE, id_, _ROOT_BACKREF) is None


def place_of(fd: int, uuid: bytes) -> str | None:
    """Return where the subvolume with a UUID is, below the top-level one; None if the filesystem has no such subvolume.

    ``fd`` is open anywhere in the filesystem. Raises OSError, also if that cannot be known: a filesystem without a tree of UUIDs
    was last written by a Linux before 3.12.
    """
    first, second = struct.unpack("<QQ", uuid)
    found = _first_item(fd, _UUID_TREE, first, _UUID_OF_SUBVOLUME, offset=second)
    if found is None or found[0] != second:
        return None
    (subvolume_id,) = struct.unpack_from("<Q", found[1])
    names: list[str] = []
    while subvolume_id != TOP_LEVEL:
        found = _first_item(fd, _ROOT_TREE, subvolume_id, _ROOT_BACKREF)
        if found is None:
            # It was deleted between the two calls.
            return None
        subvolume_id, data = found
        directory, _, length = _ROOT_BACKREF_HEAD.unpack_from(data)
        names.append(_directory_in(fd, subvolume_id, directory) + os.fsdecode(data[_ROOT_BACKREF_HEAD.size :][:length]))
    return "/".join(reversed(names))


def _directory_in(fd: int, subvolume_id: int, inode: int) -> str:
    """Return the path of a directory in a subvolume, with a slash at its end; empty for the top. Raises OSError."""
    lookup = _InodeLookup(treeid=subvolume_id, objectid=inode)
    try:
        _ioctl(fd, _INO_LOOKUP, lookup)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return ".../"
    return os.fsdecode(lookup.path)


def snapshot(source: int, directory: int, name: str, *, read_only: bool) -> None:
    """Snapshot the subvolume whose top is open as ``source`` to ``name`` in an open directory. Raises OSError."""
    arguments = _SnapshotArguments(fd=source, flags=_READ_ONLY if read_only else 0, name=os.fsencode(name))
    _ioctl(directory, _SNAP_CREATE_V2, arguments)


def create(directory: int, name: str) -> None:
    """Make an empty subvolume ``name`` in an open directory. Raises OSError."""
    _ioctl(directory, _SUBVOL_CREATE, _Path(name=os.fsencode(name)))


def make_read_only(fd: int) -> None:
    """Make the subvolume whose top is open as ``fd`` read-only. Raises OSError."""
    _ioctl(fd, _SUBVOL_SETFLAGS, ctypes.c_uint64(_READ_ONLY))


def delete(directory: int, name: str) -> None:
    """Delete the subvolume ``name`` in an open directory; its space is freed later. Raises OSError."""
    _ioctl(directory, _SNAP_DESTROY, _Path(name=os.fsencode(name)))


def commit(fd: int) -> None:
    """Wait until all that was made and deleted in a filesystem so far survives a power cut. Raises OSError.

    A deletion alone does not: it is on the disk with the next transaction, up to 30 s later (``commit=``, btrfs(5)).
    """
    transaction = ctypes.c_uint64()
    _ioctl(fd, _START_SYNC, transaction)
    _ioctl(fd, _WAIT_SYNC, transaction)
