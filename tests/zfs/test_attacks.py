"""A user, or a mount on the host, attacks what lies above a place while runs go on: nothing foreign is ever read.

A few runs of each attack here; `./test attacks` makes 500 of each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.attacks import ATTACKS, BATCHES, MINE, Ground, examine, populate
from tests.support.filesystems import Pool
from tests.support.programs import Kopiatomic, command

Leftovers = Callable[..., list[str]]


@pytest.fixture
def ground(pool: Pool, kopiatomic: Kopiatomic, tmp_path: Path) -> Ground:
    pool.dataset("home")
    ground = Ground(pool.path("home"), tmp_path / "secret", kopiatomic, tmp_path)
    populate(ground)
    # Its mount point has what is populated there, which it covers.
    vm = pool.dataset("vm", mountpoint="legacy")
    command("mount", "-t", "zfs", vm, ground.vm)
    (ground.vm / "file").write_text(MINE)
    return ground


@pytest.mark.parametrize("first", BATCHES)
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_foreign_is_read(name: str, first: int, ground: Ground, tmp_path: Path, leftovers: Leftovers) -> None:
    examine(name, ground, first)
    assert leftovers(tmp_path / "view") == []
