"""The in-place layout on ZFS: one instant at true paths, also of a whole system, and nothing left of it."""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kopiatomic.state import locks
from tests.support import system_tree
from tests.support.filesystems import Pool, imported_pool
from tests.support.killing import kill_together
from tests.support.programs import SLOWNESS, Kopia, command
from tests.support.schema import valid
from tests.zfs.runs import Runner, children
from tests.zfs.test_one_instant import DATASETS, is_whole, numbers_in, writing

pytestmark = pytest.mark.in_part(2)

RUNS = int(os.environ.get("KOPIATOMIC_TEST_TORN_RUNS", "5"))
KOPIA_RUNS = int(os.environ.get("KOPIATOMIC_TEST_TORN_KOPIA_RUNS", "1"))
READER = """
import sys
with open(sys.argv[1], "w") as file:
    for name in sys.argv[2].split(","):
        print(open(name + "/counter").read(), file=file)
"""


@pytest.fixture(scope="module")
def pool(tank: Pool) -> Pool:
    for name in DATASETS:
        tank.dataset(name)
    return tank


@pytest.fixture
def counters(pool: Pool) -> Iterator[None]:
    with writing([pool.path(name) / "counter" for name in DATASETS]):
        yield


def view_of(document: dict[str, str]) -> Path:
    return Path(f"{locks.DIRECTORY}/view-{document['run_id']}")


def test_no_set_is_torn_at_true_paths(pool: Pool, counters: None, run: Runner, tmp_path: Path) -> None:
    """The control that this writer tears what is not of one instant is in test_one_instant.py."""
    script = tmp_path / "reader.py"
    script.write_text(READER)
    reader = f"python3 -SI {script} {tmp_path / 'seen'} {','.join(str(pool.path(name)) for name in DATASETS)}"
    for _ in range(RUNS):
        ended, document = run.json("--layout", "in-place", "-c", reader, "-r", pool.name)
        assert ended.returncode == 0, ended
        assert document["atomic"]
        assert is_whole(numbers_in(tmp_path / "seen"))
        assert run.left(pool, root=view_of(document)) == []


def test_no_tar_that_exec_makes_is_torn(pool: Pool, counters: None, run: Runner, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    files = [str(pool.path(name) / "counter") for name in DATASETS]
    for _ in range(RUNS):
        ended = run("exec", "-r", pool.name, "--", "tar", "-P", "-cf", archive, *files)
        assert ended.returncode == 0, ended
        with tarfile.open(archive) as made:
            members = [made.extractfile(file) for file in files]
            assert is_whole([int(member.read()) for member in members if member is not None])
        assert run.left(pool) == []


def test_kopia_saves_one_instant_at_true_paths(
    pool: Pool, counters: None, run: Runner, kopia: Kopia, tmp_path: Path
) -> None:
    for number in range(KOPIA_RUNS):
        words = ["--no-maintenance", "--layout", "in-place", "-r", pool.name]
        ended, document = run.json(*words, env=kopia.environment)
        assert ended.returncode == 0, ended
        assert document["sources"] == [str(pool.mountpoint)]
        out = tmp_path / f"restored{number}"
        kopia("snapshot", "restore", document["engine"]["snapshot_id"], out)
        assert is_whole([int((out / name / "counter").read_text()) for name in DATASETS])
        assert run.left(pool, root=view_of(document)) == []


def test_volumes_and_homeless_datasets_have_no_true_path(pool: Pool, run: Runner) -> None:
    loose = pool.dataset("loose", mountpoint="legacy")
    ended, document = run.json("-n", "--layout", "in-place", "--include-unmounted", "-c", "true", loose)
    command("zfs", "destroy", loose)
    assert (ended.returncode, document["error"]["kind"]) == (1, "no-true-path")
    assert f"{loose} has no true path" in ended.stderr


def test_a_dataset_that_is_mounted_twice_is_frozen_twice(pool: Pool, run: Runner, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    command("mount", "--bind", pool.path("data0"), again)
    said = tmp_path / "said"
    lines = f"touch {again}/x || echo frozen > {said}"
    script = tmp_path / "script"
    script.write_text(lines)
    ended, _ = run.json("--layout", "in-place", "-c", f"sh {script}", f"{pool.name}/data0")
    command("umount", again)
    assert ended.returncode == 0, ended
    assert said.read_text() == "frozen\n"


@pytest.mark.parametrize("victim", ["main", "keeper", "launcher", "all"])
def test_a_kill_leaves_nothing(victim: str, pool: Pool, run: Runner, tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = tmp_path / "engine"
    script.write_text(f"echo > {started}; sleep 1000\n")
    process = run.start("--layout", "in-place", "-c", f"sh {script}", "-r", pool.name)
    process.until(started.exists)
    (keeper,) = children(process.pid)
    (launcher,) = children(keeper)
    pids = {"main": [process.pid], "keeper": [keeper], "launcher": [launcher], "all": [process.pid, keeper, launcher]}
    kill_together(pids[victim])
    process.wait()
    if victim == "all":
        assert run("recover").returncode == 0
    deadline = time.monotonic() + 5 * SLOWNESS
    while left := [*run.left(pool), *map(str, Path(locks.DIRECTORY).glob("view-*"))]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Pool]:
    with imported_pool(tmp_path / "pool", size=1 << 30) as pool:
        yield pool


def test_a_whole_system_on_zfs(roomy: Pool, tmp_path: Path) -> None:
    """Its root is a dataset, with another below it; its own kopia backs it up to a disk that is mounted in it."""
    top = tmp_path / "system"
    top.mkdir()
    root, home = roomy.dataset("root", mountpoint="legacy"), roomy.dataset("root/home", mountpoint="legacy")
    command("mount", "-t", "zfs", root, top)
    try:
        system = system_tree.make(top)
        command("mount", "-t", "zfs", home, top / "home")
        (top / "home" / "file").write_text("home")
        command("mount", "-t", "tmpfs", "none", top / "mnt")
        environment = {"KOPIA_PASSWORD": "x", "KOPIA_CHECK_FOR_UPDATES": "false"}
        kopia = "/usr/local/bin/kopia"
        (top / "mnt" / "repository").mkdir()
        for words in (
            ("repository", "create", "filesystem", "--path=/mnt/repository"),
            ("policy", "set", "/", "--add-ignore=/mnt/repository"),
        ):
            ended = system.run(kopia, *words, env=environment)
            assert ended.returncode == 0, ended
        asked = ("--json", "--no-maintenance", "--layout", "in-place", "--only-frozen", "-r", root)
        ended = system.kopiatomic(*asked, env=environment)
        assert ended.returncode == 0, ended
        document = valid(ended.stdout)
        assert document["sources"] == ["/"]
        assert document["atomic"]
        restore = ("snapshot", "restore", document["engine"]["snapshot_id"], "/mnt/restored")
        ended = system.run(kopia, *restore, env=environment)
        assert ended.returncode == 0, ended
        restored = top / "mnt" / "restored"
        for name in ("proc", "sys", "dev", "run", "mnt"):
            assert list((restored / name).iterdir()) == [], name
        assert (restored / "home" / "file").read_text() == "home"
        assert (restored / "etc" / "resolv.conf").is_symlink()
    finally:
        command("umount", "--recursive", top)
