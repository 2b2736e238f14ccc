"""Mounting on FreeBSD: nmount(2) and unmount(2), without mount(8) and umount(8).

mount(8) makes mountd(8) read its exports again after every mount (``restart_mountd``, sbin/mount/mount.c), and umount(8) calls
sync(2), which a suspended pool holds up, and accepts a path also for the *source* of a mount (``checkmntlist``,
sbin/umount/umount.c).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from ctypes import c_size_t, c_void_p

from kopiatomic.model.mounts import Mount
from kopiatomic.system import freebsd, freebsd_mounts
from kopiatomic.system.freebsd import Kernel

_MNT_BYFSID = 0x0000000008000000
_MESSAGE_SIZE = 255

Options = tuple[tuple[str, str], ...]
"""Names and values, as mount(8) takes them with ``-o``; the value of a flag is empty."""

READ_ONLY: Options = (("ro", ""), ("nosuid", ""))


class Iovec(ctypes.Structure):
    """``struct iovec`` of sys/sys/_iovec.h. For nmount(2) names and values alternate, each with its zero byte."""

    _fields_ = (("iov_base", c_void_p), ("iov_len", c_size_t))


def mount_snapshot(kernel: Kernel, name: str, point: str) -> None:
    """Mount the snapshot ``pool/dataset@snapshot``, which can be mounted only once at a time. Raises OSError."""
    mount(kernel, "zfs", name, point, READ_ONLY)


def mount_tmpfs(kernel: Kernel, point: str) -> None:
    """Mount a filesystem in memory that only root can enter. Raises OSError."""
    mount(kernel, "tmpfs", "tmpfs", point, (("mode", "0700"), ("nosuid", "")))


def mount(kernel: Kernel, fstype: str, source: str, point: str, options: Options) -> None:
    """Mount anything. A nullfs shows the directory ``source`` at a second place. Raises OSError."""
    # The older name, which all releases know ("from": newer ones only; nullfs_mount, sys/fs/nullfs/null_vfsops.c).
    name = "target" if fstype == "nullfs" else "from"
    _nmount(kernel, {"fstype": fstype, "fspath": point, name: source, **dict(options)})


def _nmount(kernel: Kernel, options: Mapping[str, str]) -> None:
    """Call nmount(2). The error names the mount point, and includes the kernel's own message if there was one."""
    message = ctypes.create_string_buffer(_MESSAGE_SIZE)
    words = [ctypes.create_string_buffer(os.fsencode(word)) for pair in options.items() for word in pair]
    words += [ctypes.create_string_buffer(b"errmsg"), message]
    vector = (Iovec * len(words))(*(Iovec(ctypes.addressof(word), len(word)) for word in words))
    if kernel.nmount(vector, len(vector), 0) != 0:
        error = freebsd.failed(options["fspath"])
        said = os.fsdecode(message.value)
        raise OSError(error.errno, f"{error.strerror} ({said})" if said else error.strerror, error.filename)


def unmount(kernel: Kernel, mount: Mount) -> None:
    """Unmount exactly this mount, if it is not in use; never by force. Raises OSError (EBUSY).

    With its id no path is looked up. A jail does not see ids: there it must be the last mount on its point.
    """
    fsid = freebsd_mounts.fsid(mount)
    name, flags = (os.fsencode(mount.point), 0) if fsid is None else (b"FSID:%d:%d" % fsid, _MNT_BYFSID)
    if kernel.unmount(name, flags) != 0:
        raise freebsd.failed(mount.point)
