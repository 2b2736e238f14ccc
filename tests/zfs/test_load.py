"""Very many mounts beside and below ZFS datasets, and very deep trees in them. Plain ./test makes a tenth of each.

Datasets are root's to make, or by delegation somebody's; their names end at 255 bytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.filesystems import Pool
from tests.support.programs import Completed, Kopiatomic, command
from tests.support.schema import valid
from tests.support.subvolumes import nested, opened

pytestmark = pytest.mark.in_part(4)

WHOLE = os.environ.get("KOPIATOMIC_TEST_LOAD") == "whole"
DATASETS = 300 if WHOLE else 30
MOUNTS = 10_000 if WHOLE else 1_000
DEPTH = 2_000 if WHOLE else 200


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print how long it takes (seconds)."""
    began = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - began:.1f} s")


def run(kopiatomic: Kopiatomic, root: Path, *args: str | Path, before: str = "") -> Completed:
    """kopiatomic in a mount namespace of its own, in which shell lines are run before."""
    argv = Kopiatomic.argv("--mount-root", root, *args)
    shell = ("unshare", "--mount", "--propagation", "slave", "sh", "-ec", f'{before}\nexec "$@"', "sh")
    return command(*shell, *argv, env=kopiatomic.environment, check=False, timeout=900)


@pytest.mark.parametrize("layout", ["merged", "in-place"])
def test_mounts(pool: Pool, kopiatomic: Kopiatomic, tmp_path: Path, layout: str) -> None:
    """In the tree of what is taken, and beside it."""
    for top in (pool.mountpoint, tmp_path / "beside"):
        for number in range(MOUNTS // 2):
            (top / str(number)).mkdir(parents=True)
    mounts = f"for n in $(seq 0 {MOUNTS // 2 - 1}); do echo none $d/$n tmpfs size=4k; done"
    tops = f"{pool.mountpoint} {tmp_path}/beside"
    before = f"for d in {tops}; do {mounts}; done > {tmp_path}/fstab; mount --all --fstab {tmp_path}/fstab"
    with measured(f"{MOUNTS} mounts, {layout}"):
        ended = run(
            kopiatomic,
            tmp_path / "view",
            "--json",
            "--layout",
            layout,
            "-c",
            "true",
            pool.name,
            before=f"{before}; ulimit -n 300",
        )
    assert ended.returncode == 0, str(ended)[:2000]
    assert len(ended.stderr) < 20_000
    found = valid(ended.stdout)
    assert [one["dataset"] for one in found["datasets"]] == [pool.name]
    assert len(found["uncovered"]) == MOUNTS // 2
    assert pool.snapshots() == []


def test_where_not_all_has_room_the_named_are_taken(pool: Pool, kopiatomic: Kopiatomic, tmp_path: Path) -> None:
    for number in range(DATASETS):
        pool.dataset(f"{number:04}")
    limit = tmp_path / "mount-max"
    limit.write_text(f"{len(Path('/proc/self/mountinfo').read_text().splitlines()) + DATASETS // 2}\n")
    low = f"mount --bind {limit} /proc/sys/fs/mount-max"
    last = f"{pool.name}/{DATASETS - 1:04}"
    ended = run(kopiatomic, tmp_path / "view", "--json", "-c", "true", "-r", pool.name, last, before=low)
    assert ended.returncode == 3, str(ended)[:2000]
    found = valid(ended.stdout)
    taken = [one["dataset"] for one in found["datasets"]]
    assert {pool.name, last} < set(taken)
    assert len(taken) < DATASETS
    (rest,) = [one for one in found["left_out"] if one["incomplete"]]
    assert (rest["dataset"], rest["verdict"], rest["count"]) == (pool.name, "no room", DATASETS + 1 - len(taken))
    assert pool.snapshots() == []


@pytest.mark.parametrize("layout", ["merged", "in-place"])
def test_a_part_of_a_deep_tree(
    make_pool: Callable[..., Pool], kopiatomic: Kopiatomic, tmp_path: Path, layout: str
) -> None:
    pool = make_pool(Path("/deep"))
    names = ["d"] * (DEPTH - 10)
    nested(pool.mountpoint, names, subvolumes=False)
    with opened(pool.mountpoint, names) as bottom:
        os.close(os.open("file", os.O_CREAT, dir_fd=bottom))
    part = pool.mountpoint / "/".join(names)
    with measured(f"a part at depth {DEPTH}, {layout}"):
        ended = run(kopiatomic, tmp_path / "view", "--json", "--layout", layout, "-c", "true", part)
    assert ended.returncode == 0, str(ended)[:2000]
    assert [one["dataset"] for one in valid(ended.stdout)["datasets"]] == [pool.name]
    assert pool.snapshots() == []


def test_parts_of_more_datasets_than_descriptors(pool: Pool, kopiatomic: Kopiatomic, tmp_path: Path) -> None:
    """The snapshot that a part is of is mounted aside, and let go when others are needed."""
    parts = []
    for number in range(DATASETS):
        pool.dataset(f"{number:04}")
        part = pool.path(f"{number:04}") / "part"
        part.mkdir()
        (part / "file").write_text(str(number))
        parts.append(part)
    script = f"cat {' '.join(f'$KOPIATOMIC_ROOT{part}/file' for part in parts)} > {tmp_path}/read"
    argv = Kopiatomic.argv("--mount-root", tmp_path / "view", "-c", f"sh -c '{script}'", *parts)
    ended = command("prlimit", "--nofile=40:40", *argv, env=kopiatomic.environment, check=False)
    assert ended.returncode == 0, str(ended)[:2000]
    assert (tmp_path / "read").read_text() == "".join(map(str, range(DATASETS)))
    assert pool.snapshots() == []
