"""Frozen processes on Btrfs: the snapshots of several subvolumes show one instant for them, however they have written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kopiatomic.hooks import kinds
from kopiatomic.hooks.holder import Wanted
from tests.support.filesystems import Btrfs
from tests.support.programs import command
from tests.unit.support.holders import Grouped, around, grouped, held, holder_of, is_torn, number, write_in_order

SETS = 20


@pytest.fixture
def files(btrfs: Btrfs) -> list[Path]:
    """A file in each of four subvolumes."""
    return [btrfs.subvolume(name) / "file" for name in "abcd"]


@pytest.fixture(params=[True, False], ids=["mapped", "written"])
def writer(request: pytest.FixtureRequest, files: list[Path]) -> Iterator[Grouped]:
    with grouped() as group:
        write_in_order(group, files, mapped=request.param)
        yield group


def snapshotted(btrfs: Btrfs, files: list[Path], name: str) -> list[int]:
    """The numbers in snapshots of all, which are made with a pause between them, as four of them never share a transaction."""
    for file in files:
        command("btrfs", "subvolume", "snapshot", "-r", file.parent, btrfs.mountpoint / f"{name}{file.parent.name}")
        time.sleep(0.01)
    return [number(btrfs.mountpoint / f"{name}{file.parent.name}/file") for file in files]


def test_snapshots_of_four_subvolumes_show_one_instant(btrfs: Btrfs, files: list[Path], writer: Grouped) -> None:
    wanted = Wanted("cgroup", writer.path, limit=60)
    for index in range(SETS):
        with held(holder_of(kinds.find(wanted, around()))) as holder:
            live = [number(file) for file in files]
            saved = snapshotted(btrfs, files, f"held-{index}")
            assert holder.release().proven
        assert saved == live
        assert not is_torn(saved)


def test_otherwise_they_do_not(btrfs: Btrfs, files: list[Path], writer: Grouped) -> None:
    """The control: the test above could not fail otherwise."""
    assert all(is_torn(snapshotted(btrfs, files, f"free-{index}")) for index in range(SETS))
