"""A power cut on Btrfs, by a copy of what is on its disk at an instant. tests/power cuts the power of a whole machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.btrfs.conftest import Family, Gate
from tests.support.filesystems import Btrfs, patiently
from tests.support.killing import kill_together
from tests.support.programs import Completed, Kopiatomic, command

Leftovers = Callable[..., list[str]]
Run = Callable[..., Completed]


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    (btrfs.subvolume("data") / "file").write_text("x")
    command("sync", "--file-system", btrfs.mountpoint)
    return btrfs.mountpoint / "data"


class Disk:
    """The disk of a mounted filesystem, as it is at the instant of `copy`."""

    def __init__(self, filesystem: Btrfs) -> None:
        self._filesystem = filesystem
        self._copy = filesystem.image.with_suffix(".copy")

    def copy(self) -> None:
        command("cp", "--sparse=always", self._filesystem.image, self._copy)

    def boot(self) -> None:
        """Have the copy in the filesystem's place."""
        patiently("umount", str(self._filesystem.mountpoint))
        shutil.move(self._copy, self._filesystem.image)
        command("mount", "-t", "btrfs", "-o", "loop,noatime", self._filesystem.image, self._filesystem.mountpoint)


def test_what_a_run_has_removed_stays_removed(
    data: Path, btrfs: Btrfs, run: Run, leftovers: Leftovers, root: Path
) -> None:
    """No record speaks of it any more, so it may not come back."""
    disk = Disk(btrfs)
    assert run("-c", "true", data).returncode == 0
    disk.copy()
    disk.boot()
    assert leftovers(root) == []
    assert not (btrfs.mountpoint / ".kopiatomic").exists()


def test_a_mount_root_that_was_removed_stays_removed(
    data: Path, btrfs: Btrfs, kopiatomic: Kopiatomic, gate: Gate
) -> None:
    disk = Disk(btrfs)
    root = btrfs.mountpoint / "view"
    with kopiatomic.started("--mount-root", root, "-c", gate.command, data) as process:
        gate.wait()
        assert root.exists()
        command("sync", "--file-system", btrfs.mountpoint)
        gate.let_go()
        assert process.wait(20) == 0
    disk.copy()
    disk.boot()
    assert not root.exists()


def test_after_a_power_cut_the_next_run_clears_what_the_record_names(
    data: Path, btrfs: Btrfs, run: Run, gate: Gate, kopiatomic: Kopiatomic, leftovers: Leftovers, root: Path
) -> None:
    disk = Disk(btrfs)
    with kopiatomic.started("--mount-root", root, "-c", gate.command, data) as process:
        gate.wait()
        disk.copy()
        family = Family.of(process.pid)
        # A process that is only about to be gone has the run's lock, and the next run lets a living one alone.
        kill_together([family.main, family.keeper, family.launcher])
        process.wait(10)
    disk.boot()
    (left,) = btrfs.snapshots()
    ended = run("-c", "true", data)
    assert ended.returncode == 0
    assert left in ended.stderr
    assert leftovers(root) == []
    # And it stays so, though its record is gone now.
    disk.copy()
    disk.boot()
    assert leftovers(root) == []
