"""Faults on Btrfs: each by itself, and some chosen by a seed (`./test faults` makes all of them)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.btrfs import faults, kopia_faults
from tests.btrfs.faults import BtrfsGround
from tests.support import common_faults
from tests.support.faults import WHOLE, Fault, Ground, again, draw, examine, indexes
from tests.support.filesystems import Btrfs
from tests.support.parts import share
from tests.support.programs import Completed, Kopia, Kopiatomic
from tests.support.state_faults import state_faults

FAULTS = [*common_faults.FAULTS, *faults.FAULTS, *kopia_faults.FAULTS, *state_faults(goes_on=False)]


@pytest.fixture
def ground(btrfs: Btrfs, kopiatomic: Kopiatomic, kopia: Kopia, tmp_path: Path) -> BtrfsGround:
    return BtrfsGround(btrfs, kopiatomic, tmp_path, kopia)


@pytest.mark.in_part(6)
@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.name) for fault in FAULTS])
def test_a_fault_ends_as_it_has_to_and_leaves_nothing(fault: Fault, ground: BtrfsGround) -> None:
    examine(fault, ground, random.Random(fault.name))


@pytest.mark.parametrize(
    ("limit", "limits"),
    [
        pytest.param(common_faults.with_descriptors, range(6, 41, 1 if WHOLE else 5), id="descriptors"),
        pytest.param(common_faults.with_processes, range(1, 12, 1 if WHOLE else 2), id="processes"),
    ],
)
def test_whatever_a_limit_is_a_run_ends_well_or_says_so(
    limit: Callable[[Ground, int], Completed], limits: Sequence[int], ground: BtrfsGround
) -> None:
    codes = []
    for number in limits:
        fault = Fault(f"limit {number}", lambda ground, _, number=number: limit(ground, number), common_faults.REFUSED)  # type: ignore[misc]
        codes.append(examine(fault, ground, random.Random(number)).returncode)
    assert codes[-1] == 0, "it never worked"
    assert codes[0] == 1, "it was no limit"
    assert codes == sorted(codes, reverse=True), "more was worse than less"


def test_a_gigabyte_on_stderr_neither_fills_memory_nor_blocks(ground: BtrfsGround) -> None:
    """The catalogue has smaller floods of every kind, also such that are printed."""
    flood = f"flood={share(1024, 256)}"
    fault = Fault("1 GiB on stderr", lambda ground, _: common_faults.flooded(ground, flood, "--quiet"), {0: ""})
    examine(fault, ground, random.Random(0))


@pytest.mark.parametrize("index", indexes(6))
def test_a_fault_chosen_by_the_seed(index: int, ground: BtrfsGround) -> None:
    fault, drawn = draw(FAULTS, index)
    try:
        examine(fault, ground, drawn)
    except BaseException:
        print(again(index))
        raise
