"""A machine that has OpenZFS and no pool."""

from __future__ import annotations

import pytest

from tests.support.programs import command
from tests.zfs.runs import Runner


@pytest.fixture(autouse=True)
def no_pools() -> None:
    if imported := command("zpool", "list", "-H", "-o", "name").stdout.split():
        pytest.skip(f"this VM is shared and has pools: {imported}")


def test_a_dataset_is_named(run: Runner) -> None:
    ended = run("-c", "true", "tank/home")
    assert ended.returncode == 1
    assert "there are no ZFS pools" in ended.stderr
    assert "zpool import" in ended.stderr
    assert run.left() == []


def test_all_of_nothing(run: Runner) -> None:
    ended = run("-a", "-c", "true")
    assert ended.returncode == 1
    assert "no mounted ZFS dataset and no mounted Btrfs subvolume was found" in ended.stderr
    assert run.left() == []
