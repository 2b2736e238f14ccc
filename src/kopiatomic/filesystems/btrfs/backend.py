"""What is done with Btrfs."""

from __future__ import annotations

from kopiatomic.filesystems.backends import Backend
from kopiatomic.filesystems.btrfs import leftovers, listing
from kopiatomic.filesystems.btrfs.new_dataset import new_dataset
from kopiatomic.filesystems.btrfs.properties import read
from kopiatomic.filesystems.btrfs.snapshots import BtrfsMaker
from kopiatomic.system import btrfs


def _dataset_in(fd: int) -> tuple[str, int]:
    return btrfs.filesystem_uuid(fd), btrfs.subvolume(fd).id


BACKEND = Backend(
    maker=BtrfsMaker,
    leftovers=leftovers,
    listing=listing.look,
    identity=lambda fd: btrfs.subvolume(fd).uuid,
    is_left_out=btrfs.is_left_out,
    dataset_in=_dataset_in,
    properties=read,
    new_dataset=new_dataset,
)
