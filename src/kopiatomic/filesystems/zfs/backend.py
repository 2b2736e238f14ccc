"""What is done with ZFS."""

from __future__ import annotations

from kopiatomic.filesystems.backends import Backend
from kopiatomic.filesystems.zfs import bookmarks, leftovers, listing
from kopiatomic.filesystems.zfs.new_dataset import new_dataset
from kopiatomic.filesystems.zfs.properties import read
from kopiatomic.filesystems.zfs.snapshots import ZfsMaker
from kopiatomic.filesystems.zfs.spelling import respells

BACKEND = Backend(
    maker=ZfsMaker,
    leftovers=leftovers,
    listing=listing.look,
    respells=respells,
    bookmarks=bookmarks,
    properties=read,
    new_dataset=new_dataset,
)
