"""Kills at every point of a run on Btrfs: after the next run, or `recover`, nothing is left, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kopiatomic.filesystems.btrfs import folder as btrfs_folder
from tests.btrfs.sweep_ground import BtrfsGround
from tests.support.filesystems import mounted_btrfs
from tests.support.sweep import Sweepers, Totals
from tests.support.sweep_cases import KINDS, Case, Chunk, chosen, swept


@contextmanager
def ground(folder: Path) -> Iterator[BtrfsGround]:
    with mounted_btrfs(folder / "crowded") as crowded, mounted_btrfs(folder / "plain") as plain:
        yield BtrfsGround(folder, crowded, plain)


@pytest.fixture(scope="module")
def sweepers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweepers]:
    with Sweepers("Btrfs", ground, tmp_path_factory) as sweepers:
        yield sweepers


@pytest.mark.parametrize(("kind", "chunk"), swept(), ids=str)
def test_a_killed_run_leaves_nothing_after_the_next(kind: str, chunk: Chunk | None, sweepers: Sweepers) -> None:
    sweeper = sweepers(kind)
    if problems := sweeper.run(chosen(kind, chunk, sweeper.points, sweeper.left_out)):
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sweep_sees_what_is_left_and_what_is_harmed(
    kind: str, sweepers: Sweepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that forgets its snapshots and takes a neighbour's file away."""
    sweeper = sweepers(kind)

    def remove(*_: object) -> dict[str, str]:
        (sweeper.ground.beside / "view2" / "file").unlink(missing_ok=True)
        return {}

    with monkeypatch.context() as broken:
        broken.setattr(btrfs_folder, "remove", remove)
        broken.setattr(sweeper, "totals", Totals())
        found = "\n".join(sweeper.run([Case("launcher", 1, "after", everyone=False, helpers=0)]))
    (sweeper.ground.beside / "view2" / "file").write_text("somebody's\n")
    sweeper.ground.remember()
    for problem in ("the main process lived, and left:", "after the next run or recover:", "decoy:"):
        assert problem in found
