"""What proves a ZFS snapshot ours: the record alone, whatever users can do to whom much is delegated."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kopiatomic.state import ownership
from kopiatomic.system import linux
from tests.support.filesystems import Pool
from tests.support.programs import Completed, command
from tests.zfs.killed import ENGINE, killed_run, ours, recovered
from tests.zfs.runs import Runner

pytestmark = [pytest.mark.core, pytest.mark.in_part(6)]


@pytest.fixture(scope="module")
def pool(tank: Pool) -> Pool:
    for name in ("home", "src"):
        tank.dataset(name)
    return tank


@pytest.fixture
def killed(pool: Pool, run: Runner, tmp_path: Path) -> str:
    """A run of one dataset whose processes were all killed while its snapshot was mounted; its id."""
    return killed_run(pool, run, tmp_path, [f"{pool.name}/home"])


@pytest.fixture
def mine(killed: str, pool: Pool) -> str:
    """The snapshot that it left."""
    return f"{pool.name}/home@kopiatomic_{killed}"


def set_property(name: str, value: str) -> None:
    command("zfs", "set", f"kopiatomic:run={value}", name)


def property_of(name: str) -> str:
    return command("zfs", "get", "-H", "-o", "value", "kopiatomic:run", name).stdout.strip()


def change_records(folder: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(folder / "state" / "state.db") as database:
        assert database.execute(statement, values).rowcount > 0


def elsewhere() -> None:
    """As in a container: a mount namespace with a /run of its own."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_SLAVE)
    linux.mount("none", "/run", "tmpfs", 0, "mode=755")


# On record


@pytest.mark.parametrize("value", ["", "x", "20261122T101112Z-01234567@0123456789abcdef@@"])
def test_on_record_guid_and_createtxg_prove_it_whatever_its_property_says(
    mine: str, pool: Pool, run: Runner, value: str
) -> None:
    """Whoever may set properties could otherwise keep what a run left for ever, and nobody would say so."""
    if value:
        set_property(mine, value)
    else:
        command("zfs", "inherit", "kopiatomic:run", mine)
    code, document = recovered(run)
    assert code == 0, document
    (leftover,) = (o for o in document["leftovers"] if o["kind"] == "zfs-snapshot")
    assert (leftover["name"], leftover["done"]) == (mine, True)
    assert run.left(pool) == []


def test_a_property_that_was_changed_during_the_run_hides_nothing(pool: Pool, run: Runner, tmp_path: Path) -> None:
    """The snapshot that cannot go, since somebody has mounted it, is named all the same, and goes later."""
    with mounted_in_a_run(pool, run, tmp_path, lambda name: set_property(name, "somebody's")) as (ended, name):
        assert ended.returncode == 4, ended
        assert (
            f"snapshot {name}: somebody has mounted it (remove it with: zfs release kopiatomic {name}" in ended.stderr
        )
    code, document = recovered(run)
    assert code == 0, document
    assert run.left(pool) == []


@pytest.mark.parametrize("how", ["renamed", "replaced", "with its dataset"])
def test_a_snapshot_is_found_by_what_identifies_it_wherever_it_was_renamed_to(
    mine: str, pool: Pool, run: Runner, how: str
) -> None:
    """And what somebody has given its name and its mark stays."""
    precious = f"{pool.name}/home@precious"
    command("zfs", "snapshot", precious)
    moved = f"{pool.name}/home@moved"
    if how == "with its dataset":
        moved = mine.replace("/home@", "/elsewhere@")
        # Its snapshot is mounted nowhere any more, and the dataset is.
        command("zfs", "rename", f"{pool.name}/home", f"{pool.name}/elsewhere")
    else:
        mark = property_of(mine)
        command("zfs", "rename", mine, moved)
    if how == "replaced":
        command("zfs", "rename", precious, mine)
        set_property(mine, mark)
    try:
        code, document = recovered(run)
        (done,) = (o for o in document["leftovers"] if o["done"] and o["kind"] == "zfs-snapshot")
        assert (done["name"], f"made as {mine}" in done["proof"]) == (moved, True)
        assert code == (4 if how == "replaced" else 0), document
        assert moved not in pool.snapshots()
        assert len(pool.snapshots()) == 1
    finally:
        if how == "with its dataset":
            command("zfs", "rename", f"{pool.name}/elsewhere", f"{pool.name}/home")
        command("zfs", "destroy", mine if how == "replaced" else precious)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_snapshot_that_was_renamed_during_the_run_and_cannot_go_is_named(
    pool: Pool, run: Runner, tmp_path: Path, replaced: bool
) -> None:
    """Without looking for it the run would say that nothing is left. What has its name now stays."""

    def rename(name: str) -> None:
        command("zfs", "rename", name, f"{name}x")
        if replaced:
            command("zfs", "snapshot", "-o", f"kopiatomic:run={property_of(f'{name}x')}", name)

    with mounted_in_a_run(pool, run, tmp_path, rename) as (ended, name):
        if replaced:
            command("zfs", "destroy", name)
        assert ended.returncode == 4, ended
        assert (
            f"snapshot {name}x: somebody has mounted it (remove it with: zfs release kopiatomic {name}x" in ended.stderr
        )
    code, document = recovered(run)
    assert code == 0, document
    assert run.left(pool) == []


@contextmanager
def mounted_in_a_run(
    pool: Pool, run: Runner, folder: Path, change: Callable[[str], object]
) -> Iterator[tuple[Completed, str]]:
    """A run whose snapshot was changed and then mounted by somebody while its engine ran; how it ended, and the snapshot."""
    engine, ready, go, point = (folder / name for name in ("engine.py", "ready", "go", "point"))
    engine.write_text(
        "import os, sys, time\nopen(sys.argv[1], 'w').close()\nwhile not os.path.exists(sys.argv[2]): time.sleep(.1)\n"
    )
    point.mkdir()
    with run.started("-c", f"python3 -SI {engine} {ready} {go}", f"{pool.name}/home") as started:
        started.until(ready.exists)
        (name,) = ours(pool)
        change(name)
        linux.mount(ours(pool)[-1], str(point), "zfs", linux.MS_RDONLY)
        try:
            go.touch()
            yield started.wait(), name
        finally:
            linux.detach(str(point))


# Killed before the guid was known


@pytest.mark.parametrize("within", [True, False])
def test_without_its_guid_the_recorded_transaction_groups_decide(
    mine: str, pool: Pool, run: Runner, tmp_path: Path, within: bool
) -> None:
    group = int(command("zfs", "get", "-Hp", "-o", "value", "createtxg", mine).stdout)
    with sqlite3.connect(tmp_path / "state" / "state.db") as database:
        (bounds,) = database.execute("SELECT txn_first, txn_last FROM intent WHERE kind = 'zfs'").fetchall()
    assert bounds[0] <= group <= bounds[1]
    change_records(tmp_path, "UPDATE intent SET identity = NULL, txn = NULL WHERE kind = 'zfs'")
    if not within:
        change_records(
            tmp_path, "UPDATE intent SET txn_first = ?, txn_last = ? WHERE kind = 'zfs'", group + 1, group + 9
        )
    code, document = recovered(run)
    assert (code, ours(pool)) == ((0, []) if within else (4, [mine])), document
    if not within:
        (leftover,) = (o for o in document["leftovers"] if o["kind"] == "zfs-snapshot")
        assert leftover["action"].endswith(f"zfs destroy {mine}")
        ended = run("-c", "true", f"{pool.name}/src")
        assert (ended.returncode, ours(pool)) == (0, [mine]), ended
        assert f"{mine} is left: no record proves" in ended.stderr
        assert recovered(run, "--unrecorded")[0] == 0
        assert ours(pool) == []


def test_an_earlier_versions_record_without_a_guid_is_listed(
    mine: str, pool: Pool, run: Runner, tmp_path: Path
) -> None:
    change_records(
        tmp_path,
        "UPDATE intent SET identity = NULL, txn = NULL, txn_first = NULL, txn_last = NULL WHERE kind = 'zfs'",
    )
    assert (recovered(run)[0], ours(pool)) == (4, [mine])
    assert (recovered(run, "--unrecorded")[0], ours(pool)) == (0, [])


# Off the record


def test_a_renamed_snapshot_with_a_copied_mark_is_not_destroyed(
    mine: str, pool: Pool, run: Runner, tmp_path: Path
) -> None:
    """What a user can do to whom `rename` and `userprop` are delegated, and who waits for the next recovery."""
    victim = f"{pool.name}/src@kopiatomic_{mine.partition('@kopiatomic_')[2]}"
    command("zfs", "snapshot", f"{pool.name}/src@precious")
    command("zfs", "rename", f"{pool.name}/src@precious", victim)
    set_property(victim, property_of(mine))
    shutil.rmtree(tmp_path / "state")
    try:
        code, document = recovered(run)
        assert code == 4
        assert {o["name"] for o in document["leftovers"]} >= {mine, victim}
        assert ours(pool) == [mine, victim]
    finally:
        command("zfs", "destroy", victim)
    assert recovered(run, "--unrecorded")[0] == 0
    assert run.left(pool) == []


def test_marks_of_earlier_versions_are_understood(
    mine: str, killed: str, pool: Pool, run: Runner, tmp_path: Path
) -> None:
    set_property(mine, f"{killed}@{ownership.host_id()}")
    shutil.rmtree(tmp_path / "state")
    code, document = recovered(run)
    assert (code, [o["name"] for o in document["leftovers"] if o["kind"] == "zfs-snapshot"]) == (4, [mine])
    assert (recovered(run, "--unrecorded")[0], ours(pool)) == (0, [])


# Received


def test_what_came_with_a_stream_is_counted_and_goes_when_asked(
    mine: str, pool: Pool, run: Runner, tmp_path: Path
) -> None:
    """As on a host that other hosts' pools are sent to. With properties, and without; a hold by our tag is not ours there."""
    copies = []
    for name, flags in (("with", "-p"), ("without", "")):
        command("sh", "-c", f"zfs send {flags} {mine} > {tmp_path}/stream")
        command("sh", "-c", f"zfs receive -u {pool.name}/{name} < {tmp_path}/stream")
        copies.append(mine.replace("/home@", f"/{name}@"))
    assert recovered(run)[0] == 0
    try:
        ended = run("recover")
        assert ended.returncode == 0
        assert (
            "Nothing of this host is left; 2 snapshots of other hosts' runs, or received with a stream" in ended.stdout
        )
        assert ours(pool) == copies
        code, document = recovered(run, "--received", "--dry-run")
        assert (code, [o["name"] for o in document["leftovers"]]) == (4, copies)
        command("zfs", "hold", "kopiatomic", copies[0])
        code, document = recovered(run, "--received")
        assert (code, ours(pool)) == (4, copies[:1]), document
        assert any("or its hold 'kopiatomic'" in str(o["problem"]) for o in document["leftovers"])
        command("zfs", "release", "kopiatomic", copies[0])
        assert (recovered(run, "--received")[0], ours(pool)) == (0, [])
    finally:
        for name in ("with", "without"):
            command("zfs", "destroy", "-r", f"{pool.name}/{name}")


# Alive elsewhere


@pytest.mark.parametrize("records", ["the same records", "other records"])
def test_a_living_run_elsewhere_is_left_and_named(pool: Pool, run: Runner, tmp_path: Path, records: str) -> None:
    engine, ready = tmp_path / "engine.py", tmp_path / "ready"
    engine.write_text(ENGINE)
    words = ["--state-dir", str(tmp_path / "other")] if records == "other records" else []
    with run.started("-c", f"python3 -SI {engine} {ready}", f"{pool.name}/home") as started:
        started.until(ready.exists)
        (name,) = ours(pool)
        run_id = name.partition("@kopiatomic_")[2]
        for more in ([], ["--unrecorded", "--received"]):
            ended = run("recover", *words, *more, before=elsewhere)
            assert ended.returncode == 4, ended
            assert f"run {run_id} began in this boot with another lock directory" in ended.stdout
            assert f"recover --assume-dead {run_id}" in ended.stdout
            assert ours(pool) == [name]
        os.kill(started.pid, signal.SIGTERM)
        assert started.wait().returncode == 143
    assert run.left(pool) == []


def test_a_dead_run_elsewhere_goes_when_it_is_said_to_be_dead(mine: str, killed: str, pool: Pool, run: Runner) -> None:
    assert (run("recover", before=elsewhere).returncode, ours(pool)) == (4, [mine])
    ended = run("recover", "--assume-dead", killed, before=elsewhere)
    assert (ended.returncode, ours(pool)) == (0, []), ended
    # The file of its lock is here, and goes with whoever looks here.
    assert run("recover").returncode == 0
    assert run.left(pool) == []


# Pinned


@contextmanager
def pinning(path: str) -> Iterator[int]:
    """A process of another user's that has a directory open, and nothing else of it."""
    script = f"import os, sys; d = os.open({path!r}, os.O_RDONLY); print('open', flush=True); sys.stdin.read()"
    argv = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", sys.executable, "-SIc", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        try:
            yield process.pid
        finally:
            process.kill()


def test_who_pins_a_snapshot_through_proc_is_found_and_named(tank: Pool, run: Runner) -> None:
    """The command is another user's, and so is a process outside: it may look into the command's root."""
    point = Path("/mnt/pinned")
    dataset = tank.dataset("pinned", mountpoint=str(point))
    point.chmod(0o755)
    go = run.folder / "go"
    script = f"while [ ! -e {go} ]; do sleep 0.1; done"
    for folder in [run.folder, *run.folder.parents]:
        folder.chmod(folder.stat().st_mode | 0o711)
    with run.started(
        "exec", "--user", "nobody", dataset, "--", "sh", "-c", script, before=lambda: os.chdir("/")
    ) as started:
        deadline = time.monotonic() + 60
        while not (found := shell_of(run, script)) and time.monotonic() < deadline:
            time.sleep(0.1)
        with pinning(f"/proc/{found[0]}/root{point}") as pid:
            (name,) = (name for name in ours(tank) if name.startswith(f"{dataset}@"))
            go.touch()
            ended = started.wait()
            assert ended.returncode == 4, ended
            assert f"snapshot {name}: in use by process {pid} (python3, user id 65534)" in ended.stderr.replace(
                Path(sys.executable).name, "python3"
            )
            assert "somebody else holds it" not in ended.stderr
            code, document = recovered(run)
            assert code == 4
            (left,) = (o for o in document["leftovers"] if o["kind"] == "zfs-snapshot")
            assert f"in use by process {pid} " in left["problem"]
    assert recovered(run)[0] == 0
    assert run.left(tank) == []


def shell_of(run: Runner, script: str) -> list[int]:
    """The command itself: the one of the run's processes that was given the script and nothing else."""
    wanted = b"sh\0-c\0" + script.encode() + b"\0"
    found = []
    for pid in run.group.pids():
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes() == wanted:
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
