"""Kills at every point of a run on ZFS: two seconds later nothing of it is left but an empty mount root.

That is for one process, and without another run. All at once may leave something: then the next run or `recover` removes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.filesystems import imported_pool
from tests.support.sweep import Sweepers
from tests.support.sweep_cases import Chunk, chosen, swept
from tests.zfs.sweep_ground import ZfsGround


@contextmanager
def ground(folder: Path) -> Iterator[ZfsGround]:
    with imported_pool(folder / "pool") as pool, imported_pool(folder / "lake") as lake:
        yield ZfsGround(folder, pool, lake)


@pytest.fixture(scope="module")
def sweepers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweepers]:
    with Sweepers("ZFS", ground, tmp_path_factory) as sweepers:
        yield sweepers


@pytest.mark.parametrize(("kind", "chunk"), swept(), ids=str)
def test_a_killed_run_leaves_nothing(kind: str, chunk: Chunk | None, sweepers: Sweepers) -> None:
    sweeper = sweepers(kind)
    if problems := sweeper.run(chosen(kind, chunk, sweeper.points, sweeper.left_out)):
        pytest.fail("\n".join(problems), pytrace=False)
