"""Whether what is mounted may keep a look at it waiting."""

from __future__ import annotations

from kopiatomic.filesystems import pool_of
from kopiatomic.model.fstypes import may_hang
from kopiatomic.model.mounts import Mount
from kopiatomic.system import pools


def suspended_pool(mount: Mount) -> str:
    """The pool of a mount, if it is suspended; otherwise nothing."""
    pool = pool_of(mount)
    return pool if pool and pools.suspended([pool]) else ""


def may_wait(mount: Mount) -> bool:
    """Whether a look at what is mounted may wait: for a server, a daemon, or the devices of a pool."""
    return may_hang(mount.fstype) or bool(suspended_pool(mount))
