"""Kills at every point of a run on ZFS: two seconds later nothing of it is left but an empty mount root.

That is for one process, and without another run. All at once may leave something: then the next run or `recover` removes it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.filesystems import imported_pool
from tests.support.sweep import Sweeper
from tests.support.sweep_cases import Chunk, chosen, swept
from tests.zfs.sweep_ground import ZfsGround


@pytest.fixture(scope="module")
def sweeper(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweeper]:
    folder = tmp_path_factory.mktemp("sweep")
    with imported_pool(folder / "pool") as pool, imported_pool(folder / "lake") as lake:
        ground = ZfsGround(folder, pool, lake)
        ground.make()
        with ground.living_run():
            sweeper = Sweeper(ground, request.param)
            yield sweeper
            # Shown by `./test sweep`.
            print(f"ZFS, {sweeper.kind}: {sweeper.totals.table(sweeper.points)}")


@pytest.mark.parametrize(("sweeper", "chunk"), swept(), indirect=["sweeper"], ids=str)
def test_a_killed_run_leaves_nothing(chunk: Chunk | None, sweeper: Sweeper) -> None:
    if problems := sweeper.run(chosen(sweeper.kind, chunk, sweeper.points)):
        pytest.fail("\n".join(problems), pytrace=False)
