"""The kinds of filesystem: one folder for each, and a line in :data:`KINDS`. Pure; what they do is in ``backends.py``."""

from __future__ import annotations

from collections.abc import Iterable

from kopiatomic.filesystems.btrfs.kind import BTRFS
from kopiatomic.filesystems.kind import Kind
from kopiatomic.filesystems.zfs.kind import ZFS
from kopiatomic.model.mounts import Mount

KINDS: dict[str, Kind] = {
    ZFS.name: ZFS,
    BTRFS.name: BTRFS,
}
"""By name, in the order in which their snapshots are made and their datasets are listed."""


def kind_of(mount: Mount) -> Kind | None:
    """Return the kind of what is mounted, a dataset or a snapshot; None if it is of no kind that can be frozen."""
    return next((kind for kind in KINDS.values() if kind.is_mounted(mount)), None)


def pool_of(mount: Mount) -> str:
    """Return the pool of a mount if the kernel may suspend it, so that calls into it wait; otherwise nothing."""
    kind = kind_of(mount)
    return kind.pool_of(mount) if kind else ""


def watched(places: Iterable[tuple[str, str]]) -> set[str]:
    """Return the pools that the kernel may suspend, of some kinds and their pools; other kinds are ignored."""
    return {pool for name, pool in places if name in KINDS and KINDS[name].suspends}
