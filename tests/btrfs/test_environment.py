"""This machine can do what the other tests here need: Btrfs on a loop device, and a repository of kopia's."""

import os

from tests.support.filesystems import Btrfs
from tests.support.programs import Kopia, command

SUBVOLUME_ROOT_INODE = 256


def test_a_subvolume_can_be_snapshotted(btrfs: Btrfs) -> None:
    subvolume = btrfs.subvolume("data")
    (subvolume / "file").write_text("then")
    command("btrfs", "subvolume", "snapshot", "-r", subvolume, btrfs.mountpoint / "kept")
    (subvolume / "file").write_text("now")
    assert (btrfs.mountpoint / "kept" / "file").read_text() == "then"
    assert os.stat(btrfs.mountpoint / "kept").st_ino == SUBVOLUME_ROOT_INODE
    assert btrfs.snapshots() == ["kept"]


def test_kopia_is_connected_to_a_repository_of_this_test(kopia: Kopia) -> None:
    status = kopia.json("repository", "status")
    assert status["storage"]["config"]["path"] == str(kopia.repository)
    assert kopia.json("snapshot", "list") == []
