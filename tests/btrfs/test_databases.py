"""Databases over four subvolumes, under load, held still by a run (``--hold``): what is restored starts, is right and whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.database_cases import (
    POSTGRESQL_PARTS,
    SPREAD_PARTS,
    TOGETHER_PARTS,
    Bank,
    archived,
    back_up_and_restore,
    bank_in_mariadb_spread,
    bank_in_mariadb_together,
    bank_in_postgresql,
    snapshot_of_subvolume,
    snapshot_without_holding,
)
from tests.support.filesystems import Btrfs, Filesystem, mounted_btrfs
from tests.support.parts import share
from tests.support.programs import Kopiatomic
from tests.support.schema import valid
from tests.unit.support.databases import Sources

pytestmark = pytest.mark.in_part(4)


@dataclass(frozen=True)
class Layout:
    """Which server, what lies in subvolumes of their own, and how it must be held."""

    what: str
    opened: Callable[[Sources], AbstractContextManager[Bank]]
    parts: tuple[str, ...]
    planned: str
    proof: str
    cases: int
    controls: int

    def __str__(self) -> str:
        return self.what


LAYOUTS = [
    Layout(
        "postgresql",
        bank_in_postgresql,
        POSTGRESQL_PARTS,
        "which share no instant: its ",
        "frozen before and after",
        share(100, 2),
        share(10, 1),
    ),
    Layout(
        "mariadb-frozen",
        bank_in_mariadb_spread,
        SPREAD_PARTS,
        "which share no instant, so that no lock helps: its process is frozen",
        "frozen before and after",
        share(50, 1),
        share(5, 1),
    ),
    Layout(
        "mariadb-locked",
        bank_in_mariadb_together,
        TOGETHER_PARTS,
        "InnoDB in one instant; other engines held by BACKUP STAGE",
        "released in the session that held it",
        share(50, 1),
        share(5, 1),
    ),
]


@pytest.fixture(scope="module", params=LAYOUTS, ids=str)
def layout(request: pytest.FixtureRequest) -> Layout:
    chosen: Layout = request.param
    return chosen


@pytest.fixture(scope="module")
def ground(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Btrfs]:
    with mounted_btrfs(tmp_path_factory.mktemp(layout.what) / "btrfs") as made:
        yield made


@pytest.fixture(scope="module")
def bank(layout: Layout, ground: Btrfs) -> Iterator[Bank]:
    on = {part: ground.subvolume(part.replace("/", "-")) for part in layout.parts}
    with layout.opened(on) as opened:
        yield opened


def test_what_is_restored_is_right_and_whole(
    layout: Layout,
    ground: Btrfs,
    bank: Bank,
    kopiatomic: Kopiatomic,
    root: Path,
    filesystems: list[Filesystem],
    leftovers: Callable[..., list[str]],
) -> None:
    filesystems.append(ground)

    def backup(bank: Bank, archive: Path) -> float | None:
        words: list[str | Path] = ["--hold", bank.hold, "--mount-root", root, "--json", "-c"]
        ended = kopiatomic(*words, archived(bank, root, archive), *bank.paths)
        assert ended.returncode == 0, str(ended)
        (writer,) = valid(ended.stdout)["writers"]
        assert layout.planned in writer["plan"]
        assert (writer["needed"], writer["why"]) == (True, layout.proof)
        stall: float = writer["stall_seconds"]
        assert 0 < stall < 2
        return stall

    back_up_and_restore(bank, backup, layout.cases, str(layout))
    assert leftovers(root) == []


def test_without_holding_it_is_broken(layout: Layout, bank: Bank) -> None:
    """The control: snapshots one after the other, each a little later."""
    snapshot_without_holding(bank, snapshot_of_subvolume, layout.controls, str(layout))
