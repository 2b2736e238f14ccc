"""What is taken while datasets come and go, and pools in which nothing can be made."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kopiatomic.system import process
from kopiatomic.system.process import TimeLimitError
from tests.support.filesystems import Pool
from tests.support.programs import command
from tests.support.schema import valid
from tests.zfs import obstacles
from tests.zfs.runs import Runner
from tests.zfs.suspended import WASTE, suspendable

pytestmark = [pytest.mark.core, pytest.mark.in_part(11)]


@pytest.fixture(scope="module")
def pool(tank: Pool) -> Pool:
    for name in ("home", "home/ann", "src"):
        tank.dataset(name)
    return tank


def taken(document: dict[str, list[dict[str, str]]]) -> list[str]:
    return sorted(dataset["dataset"] for dataset in document["datasets"])


def test_a_dataset_named_twice_is_taken_once(pool: Pool, run: Runner) -> None:
    ended, document = run.json("-c", "true", f"{pool.name}/home", pool.path("home"), f"{pool.path('home')}/")
    assert ended.returncode == 0, ended
    assert taken(document) == [f"{pool.name}/home"]


def test_recursion_takes_children_and_nothing_else(pool: Pool, run: Runner) -> None:
    ended, document = run.json("-r", "-c", "true", f"{pool.name}/home")
    assert ended.returncode == 0, ended
    assert taken(document) == [f"{pool.name}/home", f"{pool.name}/home/ann"]
    assert [dataset["named"] for dataset in document["datasets"]] == [True, False]


def test_all_without_any_btrfs(pool: Pool, run: Runner) -> None:
    ended, document = run.json("-a", "-c", "true")
    assert ended.returncode == 0, ended
    assert {pool.name, *(f"{pool.name}/{name}" for name in ("home", "home/ann", "src"))} <= set(taken(document))
    assert {dataset["filesystem"] for dataset in document["datasets"]} == {"zfs"}
    assert run.left(pool) == []


def test_an_implied_dataset_that_vanishes_is_left_out(pool: Pool, run: Runner, tmp_path: Path) -> None:
    pool.dataset("home/gone")
    ended, document = run.json(
        "-r",
        "-p",
        f"zfs destroy {pool.name}/home/gone",
        "-c",
        "true",
        "-q",
        f"echo >> {tmp_path}/hooks",
        f"{pool.name}/home",
    )
    assert ended.returncode == 0, ended
    assert taken(document) == [f"{pool.name}/home", f"{pool.name}/home/ann"]
    assert f"{pool.name}/home/gone: it was deleted between listing and snapshot" in document["warnings"]
    # What it meant to take first is recorded, and is no last run.
    assert document["changes"]["last_run"] is None
    assert not any("took something else" in text for text in document["warnings"])
    assert (tmp_path / "hooks").read_text() == "\n"
    assert run.left(pool) == []


def test_a_named_dataset_that_vanishes_is_an_error(pool: Pool, run: Runner) -> None:
    pool.dataset("gone")
    ended = run("-p", f"zfs destroy {pool.name}/gone", "-c", "true", f"{pool.name}/gone", f"{pool.name}/home")
    assert ended.returncode == 1
    assert f"{pool.name}/gone cannot be backed up: it was deleted between listing and snapshot" in ended.stderr
    assert run.left(pool) == []


def test_a_dataset_that_appears_meanwhile_is_named(pool: Pool, run: Runner) -> None:
    ended, document = run.json("-r", "-p", f"zfs create {pool.name}/home/new", "-c", "true", f"{pool.name}/home")
    command("zfs", "destroy", f"{pool.name}/home/new")
    assert ended.returncode == 0, ended
    assert taken(document) == [f"{pool.name}/home", f"{pool.name}/home/ann"]
    assert f"{pool.name}/home/new appeared after the listing and is not in this backup" in document["warnings"]


def test_a_plan_needs_neither_root_nor_a_repository(pool: Pool, run: Runner) -> None:
    # As udev's rules, which this VM does not have, set it.
    Path("/dev/zfs").chmod(0o666)
    ended = run("-n", f"{pool.name}/home", before=obstacles.nobody)
    assert ended.returncode == 0, ended
    assert f"/kopia{pool.path('home')}" in ended.stdout
    assert "kopia snapshot create /kopia" in ended.stdout
    assert run.left(pool) == []


def test_a_read_only_pool(make_pool: Callable[[], Pool], run: Runner) -> None:
    pool = make_pool()
    command("zpool", "export", pool.name)
    command("zpool", "import", "-d", pool.image.parent, "-o", "readonly=on", pool.name)
    ended = run("-c", "true", pool.name)
    assert ended.returncode == 1
    assert f"the pool {pool.name} is imported read-only" in ended.stderr
    assert run.left(pool) == []


def fill(path: Path, size: int) -> None:
    """Write incompressible data until there is no more room."""
    with path.open("wb", buffering=0) as file:
        data = os.urandom(1 << 20)
        for _ in range(size >> 20):
            try:
                file.write(data)
            except OSError:
                return


def test_no_room_for_the_snapshot(make_pool: Callable[[], Pool], run: Runner) -> None:
    """A snapshot of a dataset with a reservation needs room for all that it keeps from being overwritten."""
    pool = make_pool()
    dataset = pool.dataset("reserved", refreservation="48M")
    pool.dataset("other")
    fill(pool.path("reserved") / "file", 10 << 20)
    os.sync()
    ended = run("-c", "true", dataset, f"{pool.name}/other")
    assert ended.returncode == 1
    assert (
        f"{dataset} cannot be backed up: no snapshot was made of it: there is no room for its reservation"
        in ended.stderr
    )
    ended, document = run.json("-r", "-c", "true", pool.name)
    assert ended.returncode == 3, ended
    assert taken(document) == [pool.name, f"{pool.name}/other"]
    assert document["incomplete"] == [f"{dataset}: no snapshot was made of it: there is no room for its reservation"]
    ended = run("-r", "--require-atomic", "-c", "true", pool.name)
    assert ended.returncode == 1
    assert f"--require-atomic: not everything can be taken: {dataset}: " in ended.stderr
    assert run.left(pool) == []


def test_a_dataset_that_is_renamed_meanwhile_is_taken_where_it_is(pool: Pool, run: Runner) -> None:
    pool.dataset("home/old")
    rename = f"zfs rename {pool.name}/home/old {pool.name}/home/new"
    ended, document = run.json("-r", "-p", rename, "-c", "true", f"{pool.name}/home")
    command("zfs", "destroy", f"{pool.name}/home/new")
    assert ended.returncode == 0, ended
    assert f"{pool.name}/home/new" in taken(document)
    assert f"{pool.name}/home/old vanished; the datasets are listed again" in document["warnings"]


def test_a_dataset_that_is_moved_away_meanwhile_is_missing(pool: Pool, run: Runner) -> None:
    pool.dataset("home/old")
    rename = f"zfs rename {pool.name}/home/old {pool.name}/src/new"
    ended, document = run.json("-r", "-p", rename, "-c", "true", f"{pool.name}/home")
    command("zfs", "destroy", f"{pool.name}/src/new")
    assert ended.returncode == 3, ended
    assert taken(document) == [f"{pool.name}/home", f"{pool.name}/home/ann"]
    (missing,) = document["incomplete"]
    assert missing.startswith(
        f"{pool.name}/home/old: it vanished between listing and snapshot: it is {pool.name}/src/new now"
    )


def test_a_full_pool_keeps_nothing(make_pool: Callable[[], Pool], run: Runner) -> None:
    """Whether the snapshots still find room or not, they are gone in the end."""
    pool = make_pool()
    pool.dataset("reserved", refreservation="46M")
    fill(pool.mountpoint / "file", 1 << 30)
    os.sync()
    ended = run("-c", "true", pool.name)
    assert ended.returncode in {0, 1}
    if ended.returncode == 1:
        assert "the pool is full" in ended.stderr
    assert run.left(pool) == []


def test_a_hung_fuse_daemon_does_not_hang_the_plan(pool: Pool, run: Runner) -> None:
    point = pool.path("src") / "hung"
    point.mkdir()

    def hang() -> None:
        obstacles.own_mounts()
        obstacles.hung_fuse(point)

    for words in (("-a",), ("-r", pool.name), (pool.path("src"),)):
        planned = run("plan", "--json", *words, "-c", "true", before=hang, timeout=60)
        assert planned.returncode == 0, planned
        (told,) = (u for u in valid(planned.stdout)["uncovered"] if u["path"] == str(point))
        assert (told["type"], told["source"], told["bytes"]) == ("fuse", "hung", None)
    point.rmdir()


def test_a_suspended_pool(pool: Pool, run: Runner, tmp_path: Path) -> None:
    """With failmode=wait any call into it waits for ever: it must be seen before."""
    with suspendable(tmp_path / "device") as device:
        name, point = device.pool.name, device.pool.mountpoint
        device.suspend()
        by_name = run("-c", "true", name, f"{pool.name}/src", timeout=60)
        by_path = run("-c", "true", point, timeout=60)
        among_all, document = run.json("-a", "-c", "true", timeout=60)
        planned = {
            words: run("plan", "--json", *words, "-c", "true", timeout=60)
            for words in (("-a",), ("-r", name), (str(point),), (f"{pool.name}/src",), ("--by-property",), ("**/src",))
        }
        saved = run("plan", "--facts", "-a", timeout=60)
        # What hangs in the pool cannot be killed, and does not hold up who started it.
        with pytest.raises(TimeLimitError):
            process.run([sys.executable, "-SIc", WASTE, str(point / "more")], timeout=2)
        device.resume()
        after = run("-c", "true", name)
    for ended in (by_name, by_path):
        assert ended.returncode == 1
        assert f"the pool {name} is suspended" in ended.stderr
        assert f"zpool clear {name}" in ended.stderr
    assert among_all.returncode == 3, among_all
    assert {words: ended.returncode for words, ended in planned.items()} == {
        ("-a",): 3,
        ("-r", name): 1,
        (str(point),): 1,
        (f"{pool.name}/src",): 0,
        ("--by-property",): 1,
        ("**/src",): 0,
    }
    (told,) = (o for o in valid(planned["-a",].stdout)["left_out"] if o["dataset"] == name)
    assert (told["verdict"], told["incomplete"]) == ("suspended pool", True)
    for words in (("-r", name), (str(point),)):
        assert valid(planned[words].stdout)["error"]["kind"] == "pool-suspended"
    assert {"name": name, "health": "SUSPENDED", "read_only": False} in json.loads(saved.stdout)["pools"]
    assert f"{name}: its pool is suspended" in document["incomplete"]
    assert f"{pool.name}/src" in taken(document)
    assert after.returncode == 0, after
    assert run.left(pool) == []


def test_a_legacy_dataset_that_the_boot_mounts_is_missed_when_it_is_not_mounted(
    pool: Pool, run: Runner, tmp_path: Path
) -> None:
    pool.dataset("kept")
    legacy = pool.dataset("legacy", mountpoint="legacy")
    point = tmp_path / "with space"
    point.mkdir()
    table = Path("/etc/fstab")
    before = table.read_bytes() if table.exists() else None
    line = f"{legacy} {str(point).replace(' ', chr(92) + '040')} zfs"
    try:
        for options, code in (("defaults", 3), ("rw,nofail", 3), ("noauto", 0), ("x-systemd.automount", 0)):
            table.write_text(f"{line} {options} 0 0\n")
            ended, document = run.json("-r", "-c", "ls", pool.name)
            assert ended.returncode == code, ended
            told = [left["reason"] for left in document["left_out"] if left["dataset"] == legacy]
            assert (f"/etc/fstab has it at {point}" in told[0]) is (code == 3)
        table.write_text(f"{line} defaults 0 0\n")
        command("mount", point)
        ended, document = run.json("-r", "-c", "ls", pool.name)
        command("umount", point)
        assert ended.returncode == 0, ended
        assert str(point) in [taken["path"] for taken in document["datasets"]]
    finally:
        if before is None:
            table.unlink()
        else:
            table.write_bytes(before)
