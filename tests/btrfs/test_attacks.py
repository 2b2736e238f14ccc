"""A user, or a mount on the host, attacks what lies above a place while runs go on: nothing foreign is ever read.

A few runs of each attack here; `./test attacks` makes 500 of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.attacks import ATTACKS, BATCHES, MINE, Ground, examine, populate
from tests.support.filesystems import Btrfs
from tests.support.programs import Kopiatomic, command
from tests.support.swapper import USER

Leftovers = Callable[..., list[str]]


@pytest.fixture
def ground(btrfs: Btrfs, kopiatomic: Kopiatomic, tmp_path: Path) -> Iterator[Ground]:
    ground = Ground(btrfs.subvolume("home"), tmp_path / "secret", kopiatomic, tmp_path)
    populate(ground)
    (btrfs.subvolume("vm") / "file").write_text(MINE)
    command("mount", "-o", "subvol=vm", btrfs.device, ground.vm)
    try:
        yield ground
    finally:
        command("umount", ground.vm)


@pytest.mark.parametrize("first", BATCHES)
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_foreign_is_read(name: str, first: int, ground: Ground, tmp_path: Path, leftovers: Leftovers) -> None:
    examine(name, ground, first)
    assert (ground.home / "ann").stat().st_uid == USER
    assert leftovers(tmp_path / "view") == []
