"""Btrfs as a kind of filesystem. Pure."""

from __future__ import annotations

from kopiatomic.filesystems.btrfs.selection import BtrfsSelection
from kopiatomic.filesystems.kind import Kind, Mounting

_TOP_LEVEL = 5
"""The id of the top-level subvolume (BTRFS_FS_TREE_OBJECTID, linux/btrfs_tree.h)."""

BTRFS = Kind(
    name="btrfs",
    set_word="Btrfs filesystem",
    transaction_word="transaction",
    module="kopiatomic.filesystems.btrfs.backend",
    selection=BtrfsSelection,
    is_mounted=lambda mount: mount.fstype == "btrfs",
    name_of=lambda mount: mount.point,
    mounting=lambda source, device: Mounting(device, "btrfs", f"subvolid={_TOP_LEVEL}", inside=source),
    caution="Btrfs: as after a power cut, writes that no program had synced yet may be missing",
)
