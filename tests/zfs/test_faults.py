"""Faults on OpenZFS: each by itself, and some chosen by a seed (`./test faults` makes all of them)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import common_faults
from tests.support.faults import Fault, again, draw, examine, indexes
from tests.support.filesystems import Pool
from tests.support.state_faults import state_faults
from tests.zfs import faults, suspended_faults
from tests.zfs.faults import ZfsGround
from tests.zfs.runs import Runner
from tests.zfs.suspended import suspendable
from tests.zfs.suspended_faults import SuspendableGround

MADE_ALONE = [*faults.FAULTS, *suspended_faults.FAULTS, *state_faults(goes_on=True)]
# What has nothing to do with the filesystem is made one by one on Btrfs; here it is among what the seed chooses.
FAULTS = [*MADE_ALONE, *common_faults.FAULTS]


@contextmanager
def ground_of(fault: Fault, tank: Pool, run: Runner, folder: Path) -> Iterator[ZfsGround]:
    """The pool of the module, or one that can be suspended and whose troubles are its own."""
    if fault not in suspended_faults.FAULTS:
        yield ZfsGround(tank, run, folder)
        return
    with suspendable(folder / "device") as device:
        ground = SuspendableGround(device.pool, run, folder)
        ground.device = device
        yield ground


@pytest.mark.in_part(3)
@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.name) for fault in MADE_ALONE])
def test_a_fault_ends_as_it_has_to_and_leaves_nothing(fault: Fault, tank: Pool, run: Runner, tmp_path: Path) -> None:
    with ground_of(fault, tank, run, tmp_path) as ground:
        examine(fault, ground, random.Random(fault.name))


@pytest.mark.parametrize("index", indexes(3))
def test_a_fault_chosen_by_the_seed(index: int, tank: Pool, run: Runner, tmp_path: Path) -> None:
    fault, drawn = draw(FAULTS, index)
    try:
        with ground_of(fault, tank, run, tmp_path) as ground:
            examine(fault, ground, drawn)
    except BaseException:
        print(again(index))
        raise
