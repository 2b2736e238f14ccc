"""What a FreeBSD host, or a jail, must allow before a view can be made there."""

from __future__ import annotations

from collections.abc import Collection

from kopiatomic.errors import KopiatomicError
from kopiatomic.system import freebsd
from kopiatomic.system.freebsd import Kernel

_FILESYSTEMS = ("nullfs", "tmpfs", "zfs")
"""What every view is made of."""


def require(kernel: Kernel, filesystems: Collection[str] = ()) -> None:
    """Refuse a jail that may not mount what is needed, naming all of it. Raises KopiatomicError, OSError.

    ``filesystems`` are needed in addition to those of every view. A jail sees its own permissions as sysctls, which have other
    names in jail.conf(5) (``prison_add_allow``, sys/kern/kern_jail.c; vfs_register, sys/kern/vfs_init.c).
    """
    if not freebsd.number(kernel, "security.jail.jailed"):
        return
    # A filesystem whose module is not loaded has no sysctl, and a jail cannot load it.
    kinds = [*_FILESYSTEMS, *sorted({*filesystems} - {*_FILESYSTEMS})]
    words = {"security.jail.mount_allowed": "allow.mount"}
    words |= {f"security.jail.mount_{kind}_allowed": f"allow.mount.{kind}" for kind in kinds}
    lacking = [word for name, word in words.items() if not freebsd.number(kernel, name)]
    if (freebsd.number(kernel, "security.jail.enforce_statfs") or 0) > 1:
        # It would see no mount but its root, not even its own mounts.
        lacking.append("enforce_statfs = 1")
    if lacking:
        raise KopiatomicError(
            f"this jail may not mount what a view is made of: it lacks {', '.join(lacking)}",
            kind="jail",
            hint="Add it to the jail in jail.conf(5) on the host, where the modules "
            f"(kldload {' '.join(kinds)}) must be loaded, and give it the dataset (zfs jail).",
        )


def warnings(kernel: Kernel) -> list[str]:
    """Return what the user should know of this host, in words. Raises OSError."""
    if not freebsd.number(kernel, "vfs.recursive_forced_unmount"):
        return []
    return [
        "vfs.recursive_forced_unmount is 1: who destroys a snapshot of this run takes it out of the view while it is backed "
        "up, and the run fails; with 'sysctl vfs.recursive_forced_unmount=0' the destroy is refused"
    ]
