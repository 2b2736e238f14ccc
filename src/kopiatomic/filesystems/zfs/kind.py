"""ZFS as a kind of filesystem. Pure."""

from __future__ import annotations

import errno

from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems.kind import Kind, Mounting
from kopiatomic.filesystems.zfs.selection import ZfsSelection
from kopiatomic.model.mounts import Mount
from kopiatomic.text import printable


def _is_snapshot(mount: Mount) -> bool:
    return "@" in mount.source


def _why_not_mounted(dataset: str, error: OSError) -> KopiatomicError | None:
    if error.errno != errno.EACCES:
        return None
    return KopiatomicError(
        f"the snapshot of {printable(dataset)} cannot be mounted: its encryption key is not loaded",
        kind="key-not-loaded",
        hint=f"zfs load-key {dataset}",
    )


ZFS = Kind(
    name="zfs",
    set_word="pool",
    transaction_word="transaction group",
    module="kopiatomic.filesystems.zfs.backend",
    selection=ZfsSelection,
    is_mounted=lambda mount: mount.fstype == "zfs",
    name_of=lambda mount: mount.source,
    mounting=lambda source, _device: Mounting(source, "zfs"),
    is_snapshot=_is_snapshot,
    is_tied=True,
    one_instant=True,
    suspends=True,
    pool_of=lambda mount: mount.source.partition("/")[0].partition("@")[0],
    has_bookmarks=True,
    has_jails=True,
    blocked=", and 'zpool export' and 'zfs rollback' are refused",
    why_not_mounted=_why_not_mounted,
)
