"""What is done with ZFS."""

from __future__ import annotations

from kopiatomic.filesystems.backends import Backend
from kopiatomic.filesystems.zfs import leftovers, listing
from kopiatomic.filesystems.zfs.snapshots import ZfsMaker

BACKEND = Backend(maker=ZfsMaker, leftovers=leftovers, listing=listing.look)
