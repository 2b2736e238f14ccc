"""Databases of the guest's versions, under load, held still by a run: over one pool, over two pools, and over Btrfs subvolumes.

In one pool nothing must be held for PostgreSQL and InnoDB: all datasets are in one instant.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kopiatomic.config.profile_text import toml
from tests.support.database_cases import (
    Bank,
    SnapshotOne,
    archived,
    back_up_and_restore,
    bank_in_mariadb_spread,
    bank_in_mariadb_together,
    bank_in_postgresql,
    snapshot_of_subvolume,
    snapshot_without_holding,
)
from tests.support.filesystems import imported_pool, mounted_btrfs
from tests.support.folders import roots_own
from tests.support.parts import share
from tests.support.programs import command
from tests.unit.support.databases import Sources
from tests.zfs.runs import Runner

# What a test takes must be far from the time after which its machine counts as silent.
CASES = share(5, 1)
CONTROLS = share(2, 1)
ROOT = Path("/kopia")
POOL_BYTES = 512 << 20

FROZEN = "frozen before and after"
LOCKED = "released in the session that held it"


@contextmanager
def pools(places: Mapping[str, str], folder: Path) -> Iterator[dict[str, Path | str]]:
    """A dataset for each part, each in the pool that its value names."""
    with ExitStack() as stack:
        names = sorted(set(places.values()))
        made = {name: stack.enter_context(imported_pool(folder / name, size=POOL_BYTES)) for name in names}
        yield {part: made[place].dataset(part.replace("/", "-")) for part, place in places.items()}


@contextmanager
def subvolumes(places: Mapping[str, str], folder: Path) -> Iterator[dict[str, Path | str]]:
    """A subvolume for each part."""
    with mounted_btrfs(folder / "btrfs") as btrfs:
        yield {part: btrfs.subvolume(part.replace("/", "-")) for part in places}


def snapshot_of_dataset(path: Path, copy: Path) -> None:
    """Make a snapshot of the dataset that is mounted here, and a copy of it. A ``SnapshotOne``."""
    taken = command("findmnt", "-n", "-o", "SOURCE", "--mountpoint", path).stdout.strip() + "@taken"
    copy.mkdir(exist_ok=True)
    at = Path(tempfile.mkdtemp())
    command("zfs", "snapshot", taken)
    command("mount", "-t", "zfs", taken, at)
    command("cp", "-a", f"{at}/.", copy)
    command("umount", at)
    command("zfs", "destroy", taken)
    at.rmdir()


@dataclass(frozen=True)
class Ground:
    """What the parts lie on, and how one of them is taken alone."""

    opened: Callable[[Mapping[str, str], Path], AbstractContextManager[dict[str, Path | str]]]
    snapshot: SnapshotOne


POOLS = Ground(pools, snapshot_of_dataset)
SUBVOLUMES = Ground(subvolumes, snapshot_of_subvolume)


@dataclass(frozen=True)
class Layout:
    """Which server, what lies where, and what proves that it was held; empty if nothing must be held.

    ``rounds``: how many tests there are of it, so that those of each server and place make twenty backups.
    """

    what: str
    opened: Callable[[Sources], AbstractContextManager[Bank]]
    places: Mapping[str, str]
    proof: str
    rounds: int
    ground: Ground = POOLS

    def __str__(self) -> str:
        return self.what


_POSTGRESQL = {"data": "one", "logs": "one", "space": "other", "wal": "other"}
_SPREAD = {"binary": "one", "data": "one", "log": "other", "undo": "other"}
_TOGETHER = {"binary": "one", "data": "other", "data/notes": "one", "far": "one"}

LAYOUTS = [
    Layout("postgresql-one-pool", bank_in_postgresql, dict.fromkeys(_POSTGRESQL, "one"), "", 4),
    Layout("postgresql-two-pools", bank_in_postgresql, _POSTGRESQL, FROZEN, 4),
    Layout("postgresql-subvolumes", bank_in_postgresql, _POSTGRESQL, FROZEN, 4, SUBVOLUMES),
    Layout("mariadb-one-pool", bank_in_mariadb_together, dict.fromkeys(_TOGETHER, "one"), LOCKED, 4),
    Layout("mariadb-two-pools-locked", bank_in_mariadb_together, _TOGETHER, LOCKED, 2),
    Layout("mariadb-two-pools-frozen", bank_in_mariadb_spread, _SPREAD, FROZEN, 2),
    Layout("mariadb-subvolumes-locked", bank_in_mariadb_together, _TOGETHER, LOCKED, 2, SUBVOLUMES),
    Layout("mariadb-subvolumes-frozen", bank_in_mariadb_spread, _SPREAD, FROZEN, 2, SUBVOLUMES),
]


@pytest.fixture
def profiles() -> Iterator[Path]:
    """A folder of profiles that root alone can change."""
    with roots_own() as made:
        yield made


@pytest.mark.in_part(0)
@pytest.mark.skipif(shutil.which("mariadbd") is None, reason="this guest has no databases")
@pytest.mark.parametrize("layout", [pytest.param(one, id=f"{one}-{n}") for one in LAYOUTS for n in range(one.rounds)])
def test_what_is_restored_is_right_and_whole(layout: Layout, run: Runner, profiles: Path, tmp_path: Path) -> None:
    """And what is not held is broken, each time, where it has more than one instant."""

    def backup(bank: Bank, archive: Path) -> float | None:
        kind, _, name = bank.hold.partition(":")
        lines = [
            f"[select]\ndatasets = {toml([str(path) for path in bank.paths])}",
            f"[view]\nmount_root = {toml(str(ROOT))}",
            f"[engine]\ncommand = {toml(['sh', '-c', archived(bank, ROOT, archive)])}",
            # An emulated machine under load may take seconds.
            f'[[hold]]\nkind = {toml(kind)}\nname = {toml(name)}\nlimit = "60s"\ntimeout = "60s"',
        ]
        path = profiles / "home.toml"
        path.touch(0o600)
        path.write_text("\n".join(lines))
        ended = run("run", "home", "--json", env={"KOPIATOMIC_CONFIG_DIR": str(profiles)})
        assert ended.returncode == 0, ended
        (profile,) = json.loads(ended.stdout)["profiles"]
        (writer,) = profile["run"]["writers"]
        assert (writer["needed"], writer["why"]) == (bool(layout.proof), layout.proof or None), writer
        stall: float | None = writer["stall_seconds"]
        return stall

    with layout.ground.opened(layout.places, tmp_path) as on, layout.opened(on) as bank:
        back_up_and_restore(bank, backup, CASES, str(layout))
        assert run.left() == []
        if len(set(layout.places.values())) > 1:
            snapshot_without_holding(bank, layout.ground.snapshot, CONTROLS, str(layout))
