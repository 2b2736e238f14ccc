"""What a FreeBSD host, or a jail, has to allow before a view can be made there."""

from __future__ import annotations

from kopiatomic.errors import KopiatomicError
from kopiatomic.system import freebsd
from kopiatomic.system.freebsd import Kernel

_NEEDED = {
    "security.jail.mount_allowed": "allow.mount",
    "security.jail.mount_nullfs_allowed": "allow.mount.nullfs",
    "security.jail.mount_tmpfs_allowed": "allow.mount.tmpfs",
    "security.jail.mount_zfs_allowed": "allow.mount.zfs",
}
"""What a jail sees of its own permissions, and their names in jail.conf(5) (``prison_add_allow``, sys/kern/kern_jail.c)."""


def require(kernel: Kernel) -> None:
    """Refuse a jail that may not do what is needed, naming all of it. Raises KopiatomicError, OSError."""
    if not freebsd.number(kernel, "security.jail.jailed"):
        return
    # A filesystem whose module is not loaded has no setting, and a jail cannot load it.
    lacking = [word for name, word in _NEEDED.items() if not freebsd.number(kernel, name)]
    if (freebsd.number(kernel, "security.jail.enforce_statfs") or 0) > 1:
        # It would see no mount but its root, not even those that it made.
        lacking.append("enforce_statfs = 1")
    if lacking:
        raise KopiatomicError(
            f"this jail may not mount what a view is made of: it lacks {', '.join(lacking)}",
            kind="jail",
            hint="Add it to the jail in jail.conf(5) on the host, where the modules (kldload nullfs tmpfs zfs) have to be "
            "loaded, and give it the dataset (zfs jail).",
        )


def warnings(kernel: Kernel) -> list[str]:
    """What the user should know of this host, in words. Raises OSError."""
    if not freebsd.number(kernel, "vfs.recursive_forced_unmount"):
        return []
    return [
        "vfs.recursive_forced_unmount is 1: who destroys a snapshot of this run takes it out of the view while it is backed "
        "up, and the run fails; with 'sysctl vfs.recursive_forced_unmount=0' the destroy is refused"
    ]
