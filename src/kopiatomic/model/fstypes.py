"""What kind of filesystem a mount is, as far as a plan must know. Names as in /proc/filesystems, and as in lsvfs(1) on
FreeBSD.
"""

from __future__ import annotations

PSEUDO = frozenset(
    [
        "binder",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "cpuset",
        "debugfs",
        "devfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fdescfs",
        "fusectl",
        "hugetlbfs",
        "linprocfs",
        "linsysfs",
        "mqueue",
        "mqueuefs",
        "nfsd",
        "nsfs",
        "ocfs2_dlmfs",
        "openpromfs",
        "proc",
        "procfs",
        "pstore",
        "resctrl",
        "rpc_pipefs",
        "s390_hypfs",
        "securityfs",
        "selinuxfs",
        "smackfs",
        "spufs",
        "sysfs",
        "tracefs",
        "usbfs",
        "xenfs",
    ]
)
"""Made by the kernel: they hold no user data."""

SYSTEM = ("/proc", "/sys", "/dev", "/run")
"""Where a running system keeps its own state and no user data (file-hierarchy(7))."""

LOCAL = frozenset(
    [
        "adfs",
        "affs",
        "bcachefs",
        "befs",
        "bfs",
        "cd9660",
        "cramfs",
        "efs",
        "erofs",
        "exfat",
        "ext2",
        "ext2fs",
        "ext3",
        "ext4",
        "f2fs",
        "freevxfs",
        "hfs",
        "hfsplus",
        "hpfs",
        "iso9660",
        "jffs2",
        "jfs",
        "minix",
        "msdos",
        "msdosfs",
        "nandfs",
        "nilfs2",
        "ntfs",
        "ntfs3",
        "omfs",
        "qnx4",
        "qnx6",
        "ramfs",
        "reiser4",
        "reiserfs",
        "romfs",
        "rootfs",
        "squashfs",
        "sysv",
        "tarfs",
        "tmpfs",
        "ubifs",
        "udf",
        "ufs",
        "v7",
        "vfat",
        "xfs",
        "zonefs",
    ]
)
"""On a local device or in memory: the kernel answers statvfs(2) from what it has."""

_FROZEN_OR_STACKED = frozenset(["aufs", "btrfs", "ecryptfs", "nullfs", "overlay", "shiftfs", "unionfs", "zfs"])
"""Filesystems that are snapshotted, and filesystems that show others, which are usually mounts of their own."""


def may_hang(fstype: str) -> bool:
    """Whether accessing such a filesystem may wait for a server or daemon that does not respond, or may mount something.

    Anything that is not known to be local may: a FUSE on a device (fuseblk) waits for its daemon, a cluster's (gpfs, gfs2) for
    the other machines, and a virtual machine's shared folder (vboxsf) for its host.
    """
    return fstype not in PSEUDO | LOCAL | _FROZEN_OR_STACKED
