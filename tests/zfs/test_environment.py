"""The VM is what the other tests here take it for: real OpenZFS."""

from pathlib import Path

import pytest

from tests.support.filesystems import Pool
from tests.support.programs import command

pytestmark = pytest.mark.core


def test_the_kernel_has_openzfs() -> None:
    assert Path("/sys/module/zfs/version").read_text().startswith("2.")


def test_one_call_snapshots_several_datasets_in_one_transaction_group(pool: Pool) -> None:
    snapshots = [f"{pool.dataset(name)}@now" for name in ("a", "b")]
    command("zfs", "snapshot", *snapshots)
    listed = command("zfs", "list", "-H", "-o", "createtxg", "-t", "snapshot", *snapshots).stdout.split()
    assert len(listed) == 2
    assert len(set(listed)) == 1
