"""One instant: a program that writes the same number to many files in order is never seen half way."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kopiatomic.system import linux
from tests.support.filesystems import Btrfs, Pool, imported_pool
from tests.support.programs import IN_QEMU, Kopia, command
from tests.zfs.runs import Runner

pytestmark = [pytest.mark.core, pytest.mark.in_part(4)]

DATASETS = [f"data{number}" for number in range(8)]
RUNS = int(os.environ.get("KOPIATOMIC_TEST_TORN_RUNS", "8" if IN_QEMU else "20"))
KOPIA_RUNS = int(os.environ.get("KOPIATOMIC_TEST_TORN_KOPIA_RUNS", "1"))
CONTROL_RUNS = 2
WIDTH = 16

WRITER = f"""
import os, sys
os.nice(10)
files = [os.open(path, os.O_RDWR | os.O_CREAT) for path in sys.argv[1:]]
number = 0
while True:
    number += 1
    text = b"%0{WIDTH}d" % number
    for fd in files:
        os.pwrite(fd, text, 0)
    if number == 1:
        print("writing", flush=True)
"""
READER = """
import os, sys
out, names, root = sys.argv[1], sys.argv[2].split(","), sys.argv[3]
with open(out, "w") as file:
    for name in names:
        print(open(root + name + "/counter").read(), file=file)
"""


@contextmanager
def writing(paths: list[Path]) -> Iterator[None]:
    """A program that writes a counter to all files in order, as fast as it can."""
    with subprocess.Popen([sys.executable, "-SIc", WRITER, *paths], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        try:
            yield
        finally:
            writer.kill()


def is_whole(numbers: list[int]) -> bool:
    """Whether these are the files of one instant: the writer is at most in the middle of one round."""
    assert len(numbers) == len(DATASETS)
    assert min(numbers) > 0
    return numbers == sorted(numbers, reverse=True) and numbers[0] - numbers[-1] <= 1


@pytest.fixture(scope="module")
def pool(tank: Pool) -> Pool:
    for name in DATASETS:
        tank.dataset(name)
    return tank


@pytest.fixture
def counters(pool: Pool) -> Iterator[None]:
    with writing([pool.path(name) / "counter" for name in DATASETS]):
        yield


@pytest.fixture
def reader(tmp_path: Path, pool: Pool) -> str:
    """The command of a small engine that writes down what it sees in the view."""
    script = tmp_path / "reader.py"
    script.write_text(READER)
    return f"python3 -SI {script} {tmp_path / 'seen'} {','.join(str(pool.path(name)) for name in DATASETS)}"


def numbers_in(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


def test_a_loop_of_zfs_snapshot_is_torn(pool: Pool, counters: None, tmp_path: Path) -> None:
    """The control: if this finds nothing torn, the other tests here show nothing."""
    torn = 0
    for number in range(CONTROL_RUNS):
        snapshots = [f"{pool.name}/{name}@control{number}" for name in DATASETS]
        for snapshot in snapshots:
            command("zfs", "snapshot", snapshot)
        torn += not is_whole([counter_in(snapshot, tmp_path) for snapshot in snapshots])
    assert torn > 0


def counter_in(snapshot: str, point: Path) -> int:
    linux.mount(snapshot, str(point), "zfs", linux.MS_RDONLY)
    try:
        return int((point / "counter").read_text())
    finally:
        linux.detach(str(point))


def test_no_set_is_torn(pool: Pool, counters: None, reader: str, run: Runner, tmp_path: Path) -> None:
    seen: list[list[int]] = []
    for _ in range(RUNS):
        ended, document = run.json("--require-atomic", "-c", reader, *(f"{pool.name}/{name}" for name in DATASETS))
        assert ended.returncode == 0, ended
        assert document["atomic"] is True
        assert document["skew_seconds"] == 0
        (made,) = document["sets"]
        assert len(made["snapshots"]) == len(DATASETS)
        assert {snapshot["transaction"] for snapshot in made["snapshots"]} == {made["transaction"]}
        seen.append(numbers_in(tmp_path / "seen"))
    assert [numbers for numbers in seen if not is_whole(numbers)] == []
    assert len({numbers[0] for numbers in seen}) == RUNS, "the writer did not write"
    assert run.left(pool) == []


def test_no_backup_with_kopia_is_torn(pool: Pool, counters: None, run: Runner, kopia: Kopia, tmp_path: Path) -> None:
    times = []
    torn = []
    for _ in range(KOPIA_RUNS):
        began = time.monotonic()
        names = [f"{pool.name}/{name}" for name in DATASETS]
        ended, document = run.json("--no-maintenance", *names, env=kopia.environment)
        times.append(time.monotonic() - began)
        assert ended.returncode == 0, ended
        assert document["atomic"] is True
        assert len({snapshot["transaction"] for snapshot in document["sets"][0]["snapshots"]}) == 1
        restored = tmp_path / "restored" / document["run_id"]
        kopia("snapshot", "restore", document["engine"]["snapshot_id"], restored)
        numbers = [int((restored / str(pool.path(name)).lstrip("/") / "counter").read_text()) for name in DATASETS]
        if not is_whole(numbers):
            torn.append(numbers)
    print(f"{KOPIA_RUNS} runs with kopia, {len(torn)} torn, {min(times):.1f} to {max(times):.1f} s each")
    assert torn == []
    assert run.left(pool) == []


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with imported_pool(tmp_path_factory.mktemp("other") / "pool") as made:
        yield made


def test_two_pools_are_not_called_one_instant(pool: Pool, other: Pool, run: Runner) -> None:
    ended, document = run.json("--verbose", "-c", "true", f"{pool.name}/data0", other.name, f"{pool.name}/data1")
    assert ended.returncode == 0, ended
    assert document["atomic"] is False
    assert sorted(made["pool"] for made in document["sets"]) == sorted([pool.name, other.name])
    assert all(made["one_instant"] for made in document["sets"])
    first = min(made["monotonic_before"] for made in document["sets"])
    last = max(made["monotonic_after"] for made in document["sets"])
    assert document["skew_seconds"] == pytest.approx(last - first)
    assert document["skew_seconds"] > 0
    assert run.left(pool, other) == []


def test_the_summary_of_two_pools_says_how_far_apart_they_are(pool: Pool, other: Pool, run: Runner) -> None:
    ended = run("-c", "true", f"{pool.name}/data0", other.name)
    assert ended.returncode == 0, ended
    assert "NOT at one instant" in ended.stdout
    assert "upper bound" in ended.stdout


def test_require_atomic_refuses_two_pools_before_the_engine_starts(
    pool: Pool, other: Pool, run: Runner, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    ended = run("--require-atomic", "-c", f"touch {started}", f"{pool.name}/data0", other.name)
    assert ended.returncode == 1
    assert "--require-atomic" in ended.stderr
    assert pool.name in ended.stderr
    assert other.name in ended.stderr
    assert not started.exists()
    assert run.left(pool, other) == []


def test_zfs_and_btrfs_together_are_two_sets(pool: Pool, btrfs: Btrfs, run: Runner, tmp_path: Path) -> None:
    mark = secrets.token_hex(8)
    (btrfs.subvolume("data") / "file").write_text(mark)
    (pool.path("data0") / "file").write_text(mark)
    copy = f"cp --parents -t {tmp_path} -R"
    ended, document = run.json("-c", copy, f"{pool.name}/data0", btrfs.mountpoint / "data")
    assert ended.returncode == 0, ended
    assert [made["filesystem"] for made in document["sets"]] == ["zfs", "btrfs"]
    assert document["atomic"] is False
    for path in (pool.path("data0"), btrfs.mountpoint / "data"):
        assert (tmp_path / f"kopia{path}/file").read_text() == mark
    assert run.left(pool) == []
    assert btrfs.snapshots() == []
