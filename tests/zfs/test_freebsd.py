"""FreeBSD's code path with real ZFS, through a shim of that kernel's calls: what a run shows, its ends, and what is cleared.

What differs from Linux's tests is said where it does: there a mount ends with its namespace, here it must be taken away.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from kopiatomic.state import locks
from kopiatomic.system import linux
from tests.support.filesystems import Pool
from tests.support.freebsd_shim import JAIL
from tests.support.programs import SLOWNESS, Kopia
from tests.support.programs import command as create
from tests.zfs.freebsd_runs import FreeBSDRunner, running, until_nobody_lives
from tests.zfs.runs import Run, Runner
from tests.zfs.test_in_place import RUNS
from tests.zfs.test_killed_runs import ENGINE, processes_of
from tests.zfs.test_one_instant import DATASETS, READER, is_whole, numbers_in, writing

pytestmark = pytest.mark.in_part(4)

MOUNTS = 6
"""Of a view of two datasets, one of them in the other: a tmpfs, two snapshots, the top, and two in it."""

ALL = pytest.mark.parametrize("run", ["linux", "freebsd"], indirect=True)
"""The same assertions on both."""

WITHIN_S = 2 * SLOWNESS

LISTER = """
import os, sys
out, root = sys.argv[1:]
with open(out, "w") as file:
    for folder, names, files in os.walk(root):
        names.sort()
        for name in sorted(files):
            path = os.path.join(folder, name)
            print(os.path.relpath(path, root), open(path).read(), file=file)
    try:
        open(os.path.join(root, sys.argv[0].rpartition("/")[2]), "w")
    except OSError as error:
        print(error.strerror, file=file)
"""


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runner]:
    with running(getattr(request, "param", "freebsd"), tmp_path) as runner:
        yield runner


@pytest.fixture
def on(run: Runner) -> FreeBSDRunner:
    """A run on FreeBSD, with all that can be asked of it."""
    assert isinstance(run, FreeBSDRunner)
    return run


@pytest.fixture(scope="module")
def pool(tank: Pool) -> Pool:
    for name in ("home", "home/src", *DATASETS):
        tank.dataset(name)
        (tank.path(name) / "file").write_text(f"of {name}")
    return tank


@pytest.fixture
def names(pool: Pool) -> tuple[str, str]:
    return f"{pool.name}/home", f"{pool.name}/home/src"


@pytest.fixture
def waiting(tmp_path: Path) -> tuple[str, Path]:
    """The command of an engine that stays, and the file that says that it runs."""
    engine, ready = tmp_path / "engine.py", tmp_path / "ready"
    engine.write_text(ENGINE)
    return f"python3 -SI {engine} {ready} 0", ready


@pytest.fixture
def gate(tmp_path: Path) -> tuple[str, Path, Path]:
    """The command of an engine that waits for a file, which it is told, and says that it does."""
    ready, go = tmp_path / "ready", tmp_path / "go"
    script = tmp_path / "gate"
    script.write_text(f"touch {ready}\nwhile [ ! -e {go} ]; do sleep 0.1; done\n")
    return f"sh {script}", ready, go


def snapshots(pool: Pool) -> list[str]:
    return [name for name in pool.snapshots() if "@kopiatomic_" in name]


def test_the_directory_of_locks_is_the_one_that_is_looked_into() -> None:
    assert f"{os.path.realpath('/var/run')}/kopiatomic" == locks.DIRECTORY


# What a run shows


@ALL
def test_the_main_job(run: Runner, pool: Pool, names: tuple[str, str]) -> None:
    ended, document = run.json("-c", "true", *names)
    assert ended.returncode == 0, ended
    assert document["atomic"] is True
    assert [len(made["snapshots"]) for made in document["sets"]] == [2]
    assert document["left_behind"] == []
    assert run.left(pool) == []


@ALL
def test_the_engine_sees_what_was_there_and_cannot_write(
    run: Runner, pool: Pool, names: tuple[str, str], tmp_path: Path
) -> None:
    script, out = tmp_path / "lister.py", tmp_path / "seen"
    script.write_text(LISTER)
    ended = run("-c", f"python3 -SI {script} {out}", *names)
    assert ended.returncode == 0, ended
    beginning = str(pool.path("home")).lstrip("/")
    assert out.read_text().splitlines() == [
        f"{beginning}/file of home",
        f"{beginning}/src/file of home/src",
        # Of the directory of ours that is the view's top: on Linux it can be written to, in the namespace alone.
        *(["Read-only file system"] if isinstance(run, FreeBSDRunner) else []),
    ]
    assert run.left(pool) == []


@ALL
def test_a_part_and_a_dataset_in_it(run: Runner, pool: Pool, tmp_path: Path) -> None:
    script, out = tmp_path / "lister.py", tmp_path / "seen"
    script.write_text(LISTER)
    part = pool.path("home") / "part"
    part.mkdir(exist_ok=True)
    (part / "inner").write_text("in a part")
    ended = run("-c", f"python3 -SI {script} {out}", part)
    assert ended.returncode == 0, ended
    assert out.read_text().splitlines()[0] == f"{str(part).lstrip('/')}/inner in a part"
    assert run.left(pool) == []


@ALL
def test_exec_runs_a_command_in_the_view(run: Runner, pool: Pool, names: tuple[str, str]) -> None:
    ended = run("exec", "--layout", "merged", *names, "--", "cat", f"/frozen{pool.path('home/src')}/file")
    assert (ended.returncode, ended.stdout) == (0, "of home/src"), ended
    assert run.left(pool, root=Path("/frozen")) == []


@ALL
@pytest.mark.in_part(1)
def test_kopia_backs_it_up(run: Runner, pool: Pool, names: tuple[str, str], kopia: Kopia, tmp_path: Path) -> None:
    ended, document = run.json("--no-maintenance", *names, env=kopia.environment)
    assert ended.returncode == 0, ended
    kopia("snapshot", "restore", document["engine"]["snapshot_id"], tmp_path / "restored")
    assert (tmp_path / f"restored{pool.path('home/src')}/file").read_text() == "of home/src"
    assert run.left(pool) == []


def test_no_set_is_torn(run: Runner, pool: Pool, tmp_path: Path) -> None:
    script = tmp_path / "reader.py"
    script.write_text(READER)
    reader = f"python3 -SI {script} {tmp_path / 'seen'} {','.join(str(pool.path(name)) for name in DATASETS)}"
    seen: list[list[int]] = []
    with writing([pool.path(name) / "counter" for name in DATASETS]):
        for _ in range(RUNS):
            ended, document = run.json("--require-atomic", "-c", reader, *(f"{pool.name}/{name}" for name in DATASETS))
            assert ended.returncode == 0, ended
            (made,) = document["sets"]
            assert {snapshot["transaction"] for snapshot in made["snapshots"]} == {made["transaction"]}
            seen.append(numbers_in(tmp_path / "seen"))
    assert [numbers for numbers in seen if not is_whole(numbers)] == []
    assert len({numbers[0] for numbers in seen}) == RUNS, "the writer did not write"
    assert run.left(pool) == []


# How it ends


@ALL
def test_an_engine_that_fails_leaves_nothing(run: Runner, pool: Pool, names: tuple[str, str]) -> None:
    assert run("-c", "false", *names).returncode == 1
    assert run.left(pool) == []


@ALL
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_ends_it(
    times: int, run: Runner, pool: Pool, names: tuple[str, str], waiting: tuple[str, Path]
) -> None:
    command, ready = waiting
    with run.started("-c", command, *names) as started:
        started.until(ready.exists)
        for _ in range(times):
            os.kill(started.pid, signal.SIGTERM)
        assert started.wait().returncode == 128 + signal.SIGTERM
    assert run.left(pool) == []


@ALL
def test_a_second_run_on_one_root_is_refused(
    run: Runner, pool: Pool, names: tuple[str, str], gate: tuple[str, Path, Path]
) -> None:
    command, ready, go = gate
    with run.started("-c", command, *names) as started:
        started.until(ready.exists)
        assert run("-c", "true", *names).returncode == 75
        # Another root is nobody else's, and what the first has is not taken for a leftover.
        assert run("--mount-root", "/kopia2", "-c", "true", *names).returncode == 0
        go.touch()
        assert started.wait().returncode == 0
    assert run.left(pool) == []


@pytest.mark.parametrize("helpers", [0, 20])
@pytest.mark.parametrize("victim", ["main", "keeper", "launcher", "engine"])
def test_a_killed_process_leaves_nothing(
    victim: str, helpers: int, run: Runner, pool: Pool, names: tuple[str, str], tmp_path: Path
) -> None:
    """As test_killed_runs.py has it for Linux: also where 20 processes of the engine have left its session."""
    engine, ready = tmp_path / "engine.py", tmp_path / "ready"
    engine.write_text(ENGINE)
    with run.started("-c", f"python3 -SI {engine} {ready} {helpers}", *names) as started:
        started.until(ready.exists)
        assert len(run.group.pids()) == 4 + helpers
        assert len(snapshots(pool)) == 2
        os.kill(processes_of(started)[victim], signal.SIGKILL)
        killed = time.monotonic()
        ended = started.wait()
    if victim != "main":
        assert ended.returncode == 1
        assert "killed" in ended.stderr
        assert run.left(pool) == []
    # A killed main process cannot take its lock file away; nobody holds it.
    while found := [line for line in run.left(pool) if victim != "main" or not line.startswith("lock ")]:
        assert time.monotonic() < killed + WITHIN_S, found
        time.sleep(0.1)


# All of them killed: what is left goes with the next run


def killed_with_all(on: FreeBSDRunner, names: tuple[str, str], waiting: tuple[str, Path]) -> None:
    command, ready = waiting
    started: Run = on.start("-c", command, *names)
    started.until(ready.exists)
    on.group.kill()
    started.wait()
    until_nobody_lives(on)


def test_all_killed_leave_their_mounts_and_the_next_run_clears_them(
    on: FreeBSDRunner, pool: Pool, names: tuple[str, str], waiting: tuple[str, Path]
) -> None:
    """On Linux the kernel has removed all by then."""
    killed_with_all(on, names, waiting)
    assert len(on.shim().ours()) == MOUNTS
    assert len(snapshots(pool)) == 2
    ended = on("-c", "true", *names)
    assert ended.returncode == 0, ended
    assert "was interrupted" in ended.stderr
    # The last one first; they stand before the snapshots.
    assert f"left: mount /kopia{pool.path('home/src')}, " in ended.stderr
    assert on.left(pool) == []


@pytest.mark.parametrize("record", [True, False], ids=["recorded", "without a record"])
def test_recover_says_first_and_then_removes(
    record: bool, on: FreeBSDRunner, pool: Pool, names: tuple[str, str], waiting: tuple[str, Path], tmp_path: Path
) -> None:
    killed_with_all(on, names, waiting)
    more = () if record else ("--state-dir", tmp_path / "other", "--unrecorded")
    shown = on("recover", "--dry-run", *more)
    assert shown.returncode == 4
    assert len(on.shim().ours()) == MOUNTS
    ended = on("recover", *more)
    assert ended.returncode == 0, ended
    # The file of the run's lock stays until its own records have its end.
    assert [one for one in on.left(pool) if record or not one.startswith("lock ")] == []
    assert on("recover").returncode == 0
    assert on.left(pool) == []


@pytest.mark.in_part(2)
@pytest.mark.parametrize("alone", [False, True], ids=["all", "launcher"])
@pytest.mark.parametrize("at", range(MOUNTS))
def test_killed_before_any_mount(at: int, alone: bool, on: FreeBSDRunner, pool: Pool, names: tuple[str, str]) -> None:
    ended = on("-c", "true", *names, killed_at_mount=at, alone=alone)
    until_nobody_lives(on)
    if alone:
        assert ended.returncode == 1
        assert "killed" in ended.stderr
    else:
        assert len(on.shim().ours()) == at
        assert on("recover").returncode == 0
    assert on.left(pool) == []


@pytest.mark.in_part(2)
@pytest.mark.parametrize("alone", [False, True], ids=["all", "launcher"])
@pytest.mark.parametrize("at", range(MOUNTS))
def test_killed_before_any_unmount(at: int, alone: bool, on: FreeBSDRunner, pool: Pool, names: tuple[str, str]) -> None:
    """The engine has ended by then; whether what it says had been told, is what the exit code depends on."""
    ended = on("-c", "true", *names, killed_at_unmount=at, alone=alone)
    until_nobody_lives(on)
    if alone:
        assert ended.returncode == 0, ended
    else:
        assert len(on.shim().ours()) == MOUNTS - at
        following = on("-c", "true", *names)
        assert following.returncode == 0, following
    assert on.left(pool) == []


def test_what_is_in_use_is_told_stays_on_record_and_goes_later(
    on: FreeBSDRunner, pool: Pool, names: tuple[str, str], gate: tuple[str, Path, Path]
) -> None:
    """On Linux nobody outside can be in the view."""
    command, ready, go = gate
    started = on.start("-c", command, *names)
    started.until(ready.exists)
    inside = os.open(f"/kopia{pool.path('home')}", os.O_RDONLY | os.O_DIRECTORY)
    try:
        go.touch()
        ended = started.wait(300)
        assert ended.returncode == 4, ended
        assert f"mount /kopia{pool.path('home')}" in ended.stderr + ended.stdout
        assert "it is in use" in ended.stderr + ended.stdout
        assert on.left(pool) != []
    finally:
        os.close(inside)
    ended = on("recover")
    assert ended.returncode == 0, ended
    assert on.left(pool) == []


# The view is watched


def test_a_snapshot_that_is_pulled_away_fails_the_run(
    on: FreeBSDRunner, pool: Pool, names: tuple[str, str], gate: tuple[str, Path, Path]
) -> None:
    on.system["vfs.recursive_forced_unmount"] = 1
    command, ready, go = gate
    started = on.start("-c", command, *names)
    started.until(ready.exists)
    shim = on.shim()
    shim.destroy(next(name for name in snapshots(pool) if name.startswith(f"{names[1]}@")))
    go.touch()
    ended = started.wait()
    assert ended.returncode == 1, ended
    assert f"the snapshot of {names[1]} was taken away or replaced while the engine ran" in ended.stderr
    assert "vfs.recursive_forced_unmount is 1" in ended.stderr
    assert on.left(pool) == []


def test_without_that_setting_nobody_can_pull_it_away(
    on: FreeBSDRunner, pool: Pool, names: tuple[str, str], gate: tuple[str, Path, Path]
) -> None:
    command, ready, go = gate
    started = on.start("-c", command, *names)
    started.until(ready.exists)
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the shim's have a number alone
        on.shim().destroy(snapshots(pool)[0])
    assert refused.value.errno == errno.EBUSY
    go.touch()
    ended = started.wait()
    assert ended.returncode == 0, ended
    assert "recursive_forced_unmount" not in ended.stderr
    assert on.left(pool) == []


# What is refused


@contextmanager
def given_to_the_jail(pool: Pool, names: Sequence[str]) -> Iterator[None]:
    """As ``zfs set jailed=on`` and ``zfs jail`` do. What has that set Linux mounts by mount(2) alone."""
    points = [pool.mountpoint / name.partition("/")[2] for name in names]
    create("zfs", "set", "zoned=on", names[0])
    for name, point in zip(names, points, strict=True):
        point.mkdir(parents=True, exist_ok=True)
        if not point.is_mount():
            linux.mount(name, str(point), "zfs", 0)
    try:
        yield
    finally:
        for point in reversed(points):
            create("umount", point)
        create("zfs", "inherit", "zoned", names[0])
        for name in names:
            create("zfs", "mount", name)


def test_a_jail_that_may_mount_makes_a_backup(on: FreeBSDRunner, pool: Pool, names: tuple[str, str]) -> None:
    """Of its own datasets; what these lie in is the host's, and nothing that would be missed."""
    on.system, on.jailed = dict(JAIL), True
    nothing = on("-a", "-c", "true")
    assert nothing.returncode == 1, nothing
    assert "zfs jail JAIL" in nothing.stderr
    on.system["security.jail.mount_devfs_allowed"] = 1
    with given_to_the_jail(pool, names):
        for layout in ("merged", "in-place"):
            for words in (names, ("-a",)):
                ended = on("--layout", layout, "-c", "true", *words)
                assert ended.returncode == 0, ended
                assert on.left(pool) == []
        planned = on("plan", "-a", "--json")
    verdicts = {one["dataset"]: one["verdict"] for one in json.loads(planned.stdout)["left_out"]}
    assert verdicts[pool.name] == "not the jail's", planned
    assert set(verdicts.values()) == {"not the jail's"}, planned
    named = on("-c", "true", pool.name)
    assert named.returncode == 1, named
    assert "is the host's, and not this jail's" in named.stderr


@pytest.mark.parametrize(
    ("setting", "value", "word"),
    [
        ("security.jail.mount_allowed", 0, "allow.mount"),
        ("security.jail.mount_nullfs_allowed", 0, "allow.mount.nullfs"),
        ("security.jail.mount_tmpfs_allowed", 0, "allow.mount.tmpfs"),
        ("security.jail.mount_zfs_allowed", 0, "allow.mount.zfs"),
        ("security.jail.enforce_statfs", 2, "enforce_statfs = 1"),
    ],
)
def test_what_a_jail_lacks_is_said_before_anything_is_made(
    setting: str, value: int, word: str, on: FreeBSDRunner, pool: Pool, names: tuple[str, str], tmp_path: Path
) -> None:
    on.system, on.jailed = {**JAIL, setting: value}, True
    with given_to_the_jail(pool, names):
        ended = on("-p", f"touch {tmp_path / 'hook'}", "-c", "true", *names)
    assert ended.returncode == 1
    assert f"it lacks {word}" in ended.stderr
    assert not (tmp_path / "hook").exists()
    assert on.left(pool) == []


def test_what_is_not_built_is_refused_before_anything_is_made(
    on: FreeBSDRunner, pool: Pool, names: tuple[str, str], tmp_path: Path
) -> None:
    volume = f"{pool.name}/volume"
    create("zfs", "create", "-V", "1M", volume)
    ended = on("-p", f"touch {tmp_path / 'hook'}", "-c", "true", "--volumes", volume, *names)
    assert ended.returncode == 1
    assert "cannot be frozen on FreeBSD" in ended.stderr
    assert not (tmp_path / "hook").exists()
    assert on.left(pool) == []


def test_without_a_usable_record_nothing_is_made(
    on: FreeBSDRunner, pool: Pool, names: tuple[str, str], tmp_path: Path
) -> None:
    """On Linux ZFS's snapshots can do without."""
    (tmp_path / "no folder").touch()
    ended = on("--state-dir", tmp_path / "no folder" / "state", "-c", "true", *names)
    assert ended.returncode == 1, ended
    assert on.left(pool) == []


def test_hooks_end_with_all_that_they_started(on: FreeBSDRunner, pool: Pool, names: tuple[str, str]) -> None:
    ended = on("-p", "setsid sleep 1000 & (sleep 1000 & )", "-q", "sleep 1000 &", "-c", "true", *names)
    assert ended.returncode == 0, ended
    assert on.group.pids() == []
    assert on.left(pool) == []
