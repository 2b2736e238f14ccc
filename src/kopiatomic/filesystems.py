"""What kind of filesystem a mount is of, as far as a plan has to know. Names as in /proc/filesystems, and as lsvfs(1) has
them on FreeBSD.
"""

from __future__ import annotations

PSEUDO = frozenset(
    [
        "autofs",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
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
        "nsfs",
        "proc",
        "procfs",
        "pstore",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "sysfs",
        "tracefs",
    ]
)
"""Made by the kernel: nothing in them is anybody's data."""

SYSTEM = ("/proc", "/sys", "/dev", "/run")
"""Where a running system has what is its own and nobody's data (file-hierarchy(7))."""

LOCAL = frozenset(
    [
        "cd9660",
        "ext2",
        "ext2fs",
        "ext3",
        "ext4",
        "xfs",
        "f2fs",
        "jfs",
        "reiserfs",
        "ntfs3",
        "exfat",
        "vfat",
        "msdos",
        "msdosfs",
        "udf",
        "ufs",
        "iso9660",
        "squashfs",
        "erofs",
        "tmpfs",
        "ramfs",
    ]
)
"""On a local device or in memory: statvfs(2) answers from what the kernel has."""

_NETWORK = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "ceph",
        "afs",
        "9p",
        "p9fs",
        "glusterfs",
        "lustre",
        "ocfs2",
        "gfs2",
        "davfs",
        "ncpfs",
        "coda",
        "virtiofs",
    ]
)


def may_hang(fstype: str) -> bool:
    """Whether a look into such a filesystem may wait for a server or a daemon that does not answer, or mount something."""
    return fstype in _NETWORK or fstype in {"autofs", "fuse"} or fstype.startswith(("fuse.", "fusefs"))
