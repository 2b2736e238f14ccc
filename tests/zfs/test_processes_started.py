"""The number of processes that a run starts does not grow with the number of datasets (with kopia: test_quick_start.py)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.filesystems import Pool
from tests.zfs.runs import Runner
from tests.zfs.tracing import tracing

MANY = 40


@pytest.fixture(scope="module")
def pool(tank: Pool) -> Pool:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: tank.dataset(f"d{number}"), range(MANY - 1)))
    return tank


def count(run: Runner, folder: Path, *args: str) -> tuple[int, list[str]]:
    """How many datasets a run took, and which programs it started."""
    folder.mkdir()
    with tracing(folder / "tracing") as trace:
        ended, document = run.json(*args, before=trace.watch_me)
        started = trace.started()
    assert ended.returncode == 0, ended
    assert started
    return len(document["datasets"]), started


def test_a_command(pool: Pool, run: Runner, tmp_path: Path) -> None:
    two, few = count(run, tmp_path / "few", "-c", "true", f"{pool.name}/d0", f"{pool.name}/d1")
    many, all_of_them = count(run, tmp_path / "many", "-c", "true", "-r", pool.name)
    print(f"{two} datasets: {len(few)} programs, {many} datasets: {len(all_of_them)}")
    assert (two, many) == (2, MANY)
    assert "/usr/bin/true" in few
    # -r looks once more for what has appeared meanwhile; that does not grow either.
    again, recursive = count(run, tmp_path / "again", "-c", "true", "-r", f"{pool.name}/d0")
    assert again == 1
    assert len(all_of_them) == len(recursive)
    assert len(few) <= len(recursive)
    assert run.left(pool) == []
