"""FreeBSD's mount table, from getfsstat(2): the same values as Linux's in ``mountinfo.py``, as far as this kernel has them.

Names are the kernel's, byte for byte, without escapes or parsing. ``MNT_NOWAIT`` asks no filesystem, so a server that does not
answer holds nothing up.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_char, c_int32, c_int64, c_uint32, c_uint64

from kopiatomic.errors import KopiatomicError
from kopiatomic.model.mounts import Mount, holder
from kopiatomic.paths import below, parents
from kopiatomic.system import freebsd
from kopiatomic.system.freebsd import Kernel

MNAMELEN = 1024
"""sys/sys/mount.h: the size of the two names, with the zero byte at the end."""

_MNT_NOWAIT = 2
_STATFS_VERSION = 0x20140518

_OPTIONS = {
    0x0000000000000001: "ro",
    0x0000000000000004: "noexec",
    0x0000000000000008: "nosuid",
    0x0000000000400000: "nosymfollow",
    0x0000000000800000: "ignore",
    0x0000000010000000: "noatime",
    0x0000000000001000: "local",
    0x0000000200000000: "automounted",
}
"""The flags that matter here (MNT_RDONLY and so on, sys/sys/mount.h). The others are not shown."""


class Statfs(ctypes.Structure):
    """``struct statfs`` of sys/sys/mount.h, version 0x20140518: FreeBSD 12.0 and later.

    Newer kernels have a count in the first of the spare fields; the others are unchanged.
    """

    _fields_ = (
        ("f_version", c_uint32),
        ("f_type", c_uint32),
        ("f_flags", c_uint64),
        ("f_bsize", c_uint64),
        ("f_iosize", c_uint64),
        ("f_blocks", c_uint64),
        ("f_bfree", c_uint64),
        ("f_bavail", c_int64),
        ("f_files", c_uint64),
        ("f_ffree", c_int64),
        ("f_syncwrites", c_uint64),
        ("f_asyncwrites", c_uint64),
        ("f_syncreads", c_uint64),
        ("f_asyncreads", c_uint64),
        ("f_spare", c_uint64 * 10),
        ("f_namemax", c_uint32),
        ("f_owner", c_uint32),
        ("f_fsid", c_int32 * 2),
        ("f_charspare", c_char * 80),
        ("f_fstypename", c_char * 16),
        ("f_mntfromname", c_char * MNAMELEN),
        ("f_mntonname", c_char * MNAMELEN),
    )


def read(kernel: Kernel) -> list[Mount]:
    """Return the mounts, in the order in which they were made. Raises KopiatomicError."""
    count = kernel.getfsstat(None, 0, _MNT_NOWAIT)
    while count >= 0:
        # Room for more than there are: a full table may have been cut off.
        room = count + 16
        table = (Statfs * room)()
        count = kernel.getfsstat(table, ctypes.sizeof(table), _MNT_NOWAIT)
        if 0 <= count < room:
            return _mounts(table[:count])
    raise KopiatomicError(
        f"the mount table cannot be read: {freebsd.failed().strerror}",
        kind="mount-table",
        hint="See getfsstat(2), 'dmesg'.",
    )


def _mounts(table: list[Statfs]) -> list[Mount]:
    """Convert the table. The kernel appends to its list (``vfs_domount_first``): a mount stands on what was seen before it."""
    mounts: list[Mount] = []
    seen: dict[str, Mount] = {}
    above: set[str] = set()
    for position, entry in enumerate(table):
        mount = _mount(entry, position, seen)
        if mount.point in above:
            # A mount on a directory hides the mounts in it.
            for covered in [point for point in seen if below(point, mount.point)]:
                del seen[covered]
        seen[mount.point] = mount
        above.update(parents(mount.point))
        mounts.append(mount)
    return mounts


def _mount(entry: Statfs, position: int, seen: dict[str, Mount]) -> Mount:
    if entry.f_version != _STATFS_VERSION:
        raise KopiatomicError(
            f"getfsstat(2) gave a structure of version {entry.f_version:#x}, and kopiatomic knows {_STATFS_VERSION:#x} only",
            kind="statfs-version",
            hint="kopiatomic needs FreeBSD 12.0 or later; if this is a newer one, please report it.",
        )
    major, minor = (value & 0xFFFFFFFF for value in entry.f_fsid)
    known = major or minor
    own = major << 32 | minor if known else -(position + 1)
    point = os.fsdecode(entry.f_mntonname)
    options = tuple(name for flag, name in _OPTIONS.items() if entry.f_flags & flag)
    try:
        parent = holder(point, seen).id
    except KeyError:
        # The first mount, or in a jail one that stands on a mount that is not shown.
        parent = own
    return Mount(
        id=own,
        parent=parent,
        device=str(major) if known else "",
        root="/",
        point=point,
        fstype=os.fsdecode(entry.f_fstypename),
        source=os.fsdecode(entry.f_mntfromname),
        options=options,
        super_options=(),
        propagation=(),
    )


def fsid(mount: Mount) -> tuple[int, int] | None:
    """Return both halves of a mount's file system id, as the kernel has them; None in a jail, which sees zeros."""
    if mount.id <= 0:
        return None
    major, minor = (c_int32(half).value for half in (mount.id >> 32, mount.id))
    return major, minor


def is_device_of(mount: Mount, device: int) -> bool:
    """Whether the ``st_dev`` of a file can be that of this mount, of one of the kinds that a view is made of.

    There its lower half is the first half of the id: alone, with its sign extended (``null_stat``, ``tmpfs_getattr``), or below
    the second (ZFS; ``vn_fsid``, sys/kern/vfs_vnops.c). UFS has its disk's number. In a jail there is nothing to compare with.
    """
    return mount.device in {"", str(device & 0xFFFFFFFF)}
