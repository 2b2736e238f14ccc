"""Frozen processes on ZFS: what they have written by mmap(2) is in the snapshots of several datasets if it was written out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kopiatomic.hooks import kinds
from kopiatomic.hooks.holder import Holder, Wanted
from kopiatomic.system import host
from tests.support.filesystems import Pool
from tests.support.programs import command
from tests.unit.support.holders import Grouped, around, eventually, grouped, holder_of, number, used, write_in_order

SETS = 20


@pytest.fixture
def files(tank: Pool, tmp_path: Path) -> Iterator[list[Path]]:
    """A file in each of two datasets."""
    names = [f"{tmp_path.name}-{letter}" for letter in "ab"]
    for name in names:
        tank.dataset(name)
    yield [tank.path(name) / "file" for name in names]
    for name in names:
        assert eventually(lambda: _is_destroyed(tank, name))  # noqa: B023 - called at once


def _is_destroyed(tank: Pool, name: str) -> bool:
    return command("zfs", "destroy", "-r", f"{tank.name}/{name}", check=False).returncode == 0


@pytest.fixture
def writer(files: list[Path]) -> Iterator[Grouped]:
    """A process that writes the same growing number to both, one after the other, by mmap alone."""
    with grouped() as group:
        write_in_order(group, files, mapped=True)
        yield group


def snapshotted(tank: Pool, files: list[Path], name: str, at: Path) -> list[int]:
    """The numbers in snapshots of both, which are made with a pause between them."""
    found = []
    for file in files:
        command("zfs", "snapshot", f"{tank.name}/{file.parent.name}@{name}")
        time.sleep(0.02)
    for file in files:
        command("mount", "-t", "zfs", f"{tank.name}/{file.parent.name}@{name}", at)
        found.append(number(at / "file"))
        command("umount", at)
    return found


def sets(
    tank: Pool, files: list[Path], holder: Holder, tmp_path: Path, *, settle: bool
) -> Iterator[tuple[list[int], list[int]]]:
    """What is in the files while they are held, and what is in the snapshots."""
    at = tmp_path / "at"
    at.mkdir()
    for index in range(SETS):
        with used(holder):
            holder.hold(time.monotonic() + 10)
            if settle:
                holder.settle()
            live = [number(file) for file in files]
            saved = snapshotted(tank, files, f"{settle}-{index}", at)
            assert holder.release().proven
        yield live, saved


def test_what_is_mapped_is_in_the_snapshots_of_all_datasets(
    tank: Pool, files: list[Path], writer: Grouped, tmp_path: Path
) -> None:
    holder = holder_of(kinds.find(Wanted("cgroup", writer.path, limit=60), around()))
    for live, saved in sets(tank, files, holder, tmp_path, settle=True):
        assert saved == live
        assert 0 <= live[0] - live[1] <= 1


def test_otherwise_it_is_not(tank: Pool, files: list[Path], writer: Grouped, tmp_path: Path) -> None:
    """What the test above shows depends on it: ZFS does not have such pages in its transaction groups."""
    holder = holder_of(kinds.find(Wanted("cgroup", writer.path, limit=60), around()))
    assert any(saved != live for live, saved in sets(tank, files, holder, tmp_path, settle=False))


def synced(pool: str) -> bool:
    """In a process of its own: a fork of this one would have its connection to the kernel without the descriptor."""
    program = "import sys; from kopiatomic.system import libzfs_core; libzfs_core.sync(sys.argv[1])"
    return command(sys.executable, "-c", program, pool, check=False).returncode == 0


def test_what_was_written_before_anything_is_held_is_on_the_disks_by_then(tank: Pool) -> None:
    """So that the snapshots have less to wait for."""
    for _ in range(3):
        before = host.here().transaction_group(tank.name)
        assert synced(tank.name)
        after = host.here().transaction_group(tank.name)
        assert before is not None
        assert after is not None
        assert after > before
    assert not synced("no-such-pool")
