"""The few calls of libzfs_core that kopiatomic makes, through ctypes: it needs no package and starts no process.

Names and types are those of OpenZFS's libzfs_core.h and libnvpair.h; the nvlist argument of each call was seen in experiments on
2.1.11 and 2.3.9 (docs/architecture.md, "ZFS").
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Self

from kopiatomic.errors import KopiatomicError

DEVICE = "/dev/zfs"
_LIBRARIES = (
    ("libnvpair.so.3", "libnvpair.so.2", "libnvpair.so.1", "libnvpair.so"),
    ("libzfs_core.so.3", "libzfs_core.so.2", "libzfs_core.so.1", "libzfs_core.so"),
)
"""Of OpenZFS itself, of FreeBSD's base system, and older ones."""
_FUNCTIONS = (
    "lzc_snapshot",
    "lzc_hold",
    "lzc_destroy_snaps",
    "lzc_exists",
    "lzc_release",
    "lzc_send_resume",
    "lzc_bookmark",
    "lzc_sync",
)
_NV_UNIQUE_NAME = 1
_DATA_TYPE_INT32 = 5


class ZfsCallError(KopiatomicError):
    """A call failed. ``errno`` is the call's own; ``errors`` has one number for each snapshot that the kernel named."""

    def __init__(self, call: str, errno: int, errors: Mapping[str, int]) -> None:
        self.call = call
        self.errno = errno
        self.errors = dict(errors)
        details = "; ".join(f"{name}: {os.strerror(number)}" for name, number in sorted(self.errors.items()))
        super().__init__(f"{call}: {details or os.strerror(errno)}", kind="zfs-call")

    def __reduce__(self) -> tuple[object, ...]:
        return ZfsCallError, (self.call, self.errno, self.errors)


@cache
def _nvpair() -> ctypes.CDLL:
    return _load(_LIBRARIES[0])


@cache
def _core() -> ctypes.CDLL:
    library = _load(_LIBRARIES[1])
    for function in _FUNCTIONS:
        if not hasattr(library, function):
            raise KopiatomicError(
                f"{library._name} has no function {function}, which kopiatomic needs",
                kind="libzfs-core-function",
                hint="Install OpenZFS 2.1 or later (Debian and Ubuntu: package libzfs4linux or newer).",
            )
    number = library.libzfs_core_init()
    if number != 0:
        raise device_error(OSError(number, os.strerror(number), DEVICE))
    return library


def _load(names: Iterable[str]) -> ctypes.CDLL:
    problem = ""
    for name in names:
        try:
            return ctypes.CDLL(name, use_errno=True)
        except OSError as error:
            problem = problem or str(error)
    raise KopiatomicError(
        f"the library {next(iter(names))} cannot be loaded: {problem}",
        kind="libzfs-core-missing",
        hint="Install OpenZFS's user-land (Debian and Ubuntu: zfsutils-linux; Fedora, RHEL: zfs).",
    )


def device_error(error: OSError) -> KopiatomicError:
    """Explain why /dev/zfs could not be opened."""
    if isinstance(error, FileNotFoundError):
        return KopiatomicError(
            f"{DEVICE} does not exist: the ZFS kernel module is not loaded",
            kind="zfs-module",
            hint="Load it with 'modprobe zfs' (FreeBSD: 'kldload zfs'). In a container the host must pass the device in.",
        )
    if isinstance(error, PermissionError):
        return KopiatomicError(
            f"no permission to open {DEVICE}",
            kind="zfs-permission",
            hint="Run as root; in a container or a hardened unit allow the device.",
        )
    return KopiatomicError(
        f"{DEVICE} cannot be opened: {error.strerror or error}",
        kind="zfs-device",
        hint="Is the ZFS kernel module loaded ('modprobe zfs')?",
    )


def prepare() -> None:
    """Load the libraries and open their connection to the kernel. Raises KopiatomicError if that is impossible."""
    _nvpair()
    _core()


def open_cleanup_descriptor() -> int:
    """Open the descriptor that temporary holds depend on, inheritable: the kernel releases them at its last close."""
    try:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_EXCL)
    except OSError as error:
        raise device_error(error) from None
    os.set_inheritable(descriptor, True)
    return descriptor


class _List:
    """An nvlist, freed at the end of the block."""

    def __init__(self) -> None:
        self.pointer = ctypes.c_void_p()

    def __enter__(self) -> Self:
        _check("nvlist_alloc", _nvpair().nvlist_alloc(ctypes.byref(self.pointer), _NV_UNIQUE_NAME, 0))
        return self

    def __exit__(self, *_: object) -> None:
        _nvpair().nvlist_free(self.pointer)

    def add_boolean(self, name: str) -> None:
        _check("nvlist_add_boolean", _nvpair().nvlist_add_boolean(self.pointer, os.fsencode(name)))

    def add_no(self, name: str) -> None:
        _check("nvlist_add_boolean_value", _nvpair().nvlist_add_boolean_value(self.pointer, os.fsencode(name), 0))

    def add_list(self, name: str, value: _List) -> None:
        _check("nvlist_add_nvlist", _nvpair().nvlist_add_nvlist(self.pointer, os.fsencode(name), value.pointer))

    def add_string(self, name: str, value: str) -> None:
        number = _nvpair().nvlist_add_string(self.pointer, os.fsencode(name), os.fsencode(value))
        _check("nvlist_add_string", number)


def _check(call: str, number: int) -> None:
    if number != 0:
        raise ZfsCallError(call, number, {})


def _finish(call: str, number: int, errors: ctypes.c_void_p) -> None:
    """Turn a call's number and list of errors into an exception, and free the list."""
    if errors.value is None:
        _check(call, number)
        return
    try:
        if number != 0:
            raise ZfsCallError(call, number, _numbers(errors))
    finally:
        _nvpair().nvlist_free(errors)


def _numbers(errors: ctypes.c_void_p) -> dict[str, int]:
    library = _nvpair()
    library.nvlist_next_nvpair.restype = ctypes.c_void_p
    library.nvlist_next_nvpair.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    library.nvpair_name.restype = ctypes.c_char_p
    library.nvpair_name.argtypes = (ctypes.c_void_p,)
    library.nvpair_type.argtypes = (ctypes.c_void_p,)
    library.nvpair_value_int32.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    found: dict[str, int] = {}
    pair = library.nvlist_next_nvpair(errors, None)
    while pair:
        value = ctypes.c_int32()
        if library.nvpair_type(pair) == _DATA_TYPE_INT32:
            library.nvpair_value_int32(pair, ctypes.byref(value))
            found[os.fsdecode(library.nvpair_name(pair))] = value.value
        pair = library.nvlist_next_nvpair(errors, pair)
    return found


def snapshot(names: Iterable[str], properties: Mapping[str, str]) -> None:
    """Make all snapshots in one transaction group, with user properties; all or none. Raises ZfsCallError.

    All names must be of one pool.
    """
    errors = ctypes.c_void_p()
    with _List() as snapshots, _List() as values:
        for name in names:
            snapshots.add_boolean(name)
        for key, value in properties.items():
            values.add_string(key, value)
        _finish("snapshot", _core().lzc_snapshot(snapshots.pointer, values.pointer, ctypes.byref(errors)), errors)


def hold(names: Iterable[str], tag: str, cleanup_fd: int) -> None:
    """Hold the snapshots until the last copy of ``cleanup_fd`` is closed. Raises ZfsCallError."""
    errors = ctypes.c_void_p()
    with _List() as holds:
        for name in names:
            holds.add_string(name, tag)
        _finish("hold", _core().lzc_hold(holds.pointer, cleanup_fd, ctypes.byref(errors)), errors)


def release(names: Iterable[str], tag: str) -> None:
    """Remove the holds with this tag; holds with other tags stay. Raises ZfsCallError."""
    errors = ctypes.c_void_p()
    with _List() as holds, _List() as tags:
        tags.add_boolean(tag)
        for name in names:
            holds.add_list(name, tags)
        _finish("release", _core().lzc_release(holds.pointer, ctypes.byref(errors)), errors)


def destroy(names: Iterable[str], *, deferred: bool) -> None:
    """Destroy the snapshots now, or when their last hold is released. Missing snapshots are no error.

    Raises ZfsCallError; up to 2.4 nothing is destroyed then, later versions may have destroyed some.
    """
    errors = ctypes.c_void_p()
    with _List() as snapshots:
        for name in names:
            snapshots.add_boolean(name)
        number = _core().lzc_destroy_snaps(snapshots.pointer, ctypes.c_int(deferred), ctypes.byref(errors))
        _finish("destroy", number, errors)


def may_exist(names: Iterable[str]) -> bool:
    """Whether one of the snapshots exists, or may exist. One call for each, and no process."""
    for name in names:
        ctypes.set_errno(0)
        # It returns false for every failure of the kernel's; errno says which.
        if _core().lzc_exists(os.fsencode(name)) or ctypes.get_errno() != errno.ENOENT:
            return True
    return False


def sync(pool: str) -> None:
    """Wait until the pool's open transaction group is on its disks. Raises ZfsCallError."""
    with _List() as options:
        # The kernel wants it named (module/zfs/zfs_ioctl.c, zfs_keys_pool_sync); yes would write where nothing has changed.
        options.add_no("force")
        _check("sync", _core().lzc_sync(os.fsencode(pool), options.pointer, None))


def bookmark(snapshots: Mapping[str, str]) -> None:
    """Make bookmarks of snapshots of one pool; all or none. Raises ZfsCallError."""
    errors = ctypes.c_void_p()
    with _List() as bookmarks:
        for name, snapshot_name in snapshots.items():
            bookmarks.add_string(name, snapshot_name)
        _finish("bookmark", _core().lzc_bookmark(bookmarks.pointer, ctypes.byref(errors)), errors)


def destroy_bookmarks(names: Iterable[str]) -> None:
    """Destroy bookmarks of one pool. Missing bookmarks are no error. Raises ZfsCallError."""
    errors = ctypes.c_void_p()
    with _List() as bookmarks:
        for name in names:
            bookmarks.add_boolean(name)
        _finish("destroy bookmarks", _core().lzc_destroy_bookmarks(bookmarks.pointer, ctypes.byref(errors)), errors)


def send_object(snapshot: str, fd: int, number: int, offset: int) -> None:
    """Write the stream of a snapshot to a pipe, starting at this offset of this object. Blocks; raises ZfsCallError."""
    result = _core().lzc_send_resume(
        os.fsencode(snapshot), None, ctypes.c_int(fd), ctypes.c_int(0), ctypes.c_uint64(number), ctypes.c_uint64(offset)
    )
    _check("send", result)
