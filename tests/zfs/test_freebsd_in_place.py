"""FreeBSD's layout in place with real ZFS, through a shim of that kernel's calls: what is seen, how it ends, what is cleared."""

from __future__ import annotations

import os
import re
import signal
import sys
import tarfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

import kopiatomic
from kopiatomic.state import locks
from kopiatomic.system import linux
from tests.support import system_tree
from tests.support.filesystems import Pool, imported_pool
from tests.support.programs import SLOWNESS, Kopia, command
from tests.zfs.freebsd_runs import FreeBSDRunner, running, until_nobody_lives
from tests.zfs.runs import Runner
from tests.zfs.test_in_place import READER, RUNS
from tests.zfs.test_killed_runs import ENGINE, processes_of
from tests.zfs.test_one_instant import DATASETS, is_whole, numbers_in, writing

pytestmark = pytest.mark.in_part(2)

ALL = pytest.mark.parametrize("run", ["linux", "freebsd"], indirect=True)
"""The same assertions on both."""

WITHIN_S = 2 * SLOWNESS


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
    for name in ("home", "home/src", "other", *DATASETS):
        tank.dataset(name)
        (tank.path(name) / "file").write_text(f"of {name}\n")
    return tank


@pytest.fixture
def home(pool: Pool) -> str:
    return f"{pool.name}/home"


@pytest.fixture
def waiting(tmp_path: Path) -> tuple[str, Path]:
    """The command of an engine that stays, and the file that says that it runs."""
    engine, ready = tmp_path / "engine.py", tmp_path / "ready"
    engine.write_text(ENGINE)
    return f"python3 -SI {engine} {ready} 0", ready


IN_PLACE = ("--layout", "in-place", "-r")

STEP = 1 if os.environ.get("KOPIATOMIC_TEST_SWEEP") == "whole" else 5
"""Kills are before each mount of this number: a run takes seconds here, and a view in place has dozens of mounts."""


def left(run: Runner, pool: Pool) -> list[str]:
    return [*run.left(pool), *map(str, Path(locks.DIRECTORY).glob("view-*"))]


# What a run shows


@ALL
def test_frozen_trees_are_at_their_true_paths_and_all_else_goes_on(
    run: Runner, pool: Pool, home: str, tmp_path: Path
) -> None:
    said, script = tmp_path / "said", tmp_path / "script"
    files = [pool.path(name) / "file" for name in ("home", "home/src")]
    lines = [
        f"exec > {said} 2>&1",
        f"cat {files[0]} {files[1]} {pool.path('other')}/file",
        f"echo new > {pool.path('home')}/new || echo frozen",
        f"echo new > {pool.path('other')}/new && echo live",
        'echo "$@"; echo x > /dev/null; pwd',
    ]
    script.write_text("\n".join(lines))
    for file in files:
        file.write_text(f"of {file.parent.name}\n")
    ended, document = run.json(*IN_PLACE, "-c", f"sh {script}", home)
    assert ended.returncode == 0, ended
    assert document["sources"] == [str(pool.path("home"))]
    assert re.sub(r".*(annot|irectory).*\n", "", said.read_text()).splitlines() == [
        *("of home", "of src", "of other", "frozen", "live"),
        str(pool.path("home")),
        os.getcwd(),
    ]
    assert left(run, pool) == []


@ALL
def test_exec_runs_in_the_same_directory_at_that_instant(run: Runner, pool: Pool, home: str) -> None:
    def go() -> None:
        os.chdir(pool.path("home/src"))

    (pool.path("home/src") / "file").write_text("here\n")
    lines = "cat file; pwd; touch new 2> /dev/null || echo frozen"
    ended = run("exec", "-r", home, "--", "sh", "-c", lines, before=go)
    assert ended.returncode == 0, ended
    assert ended.stdout.splitlines() == ["here", str(pool.path("home/src")), "frozen"]
    assert left(run, pool) == []


@ALL
def test_exec_as_another_user(run: Runner, pool: Pool, home: str) -> None:
    # The folders of tests are root's alone: the working directory must be another.
    ended = run("exec", "--user", "nobody", "-r", home, "--", "sh", "-c", "id -un; pwd", before=lambda: os.chdir("/"))
    assert (ended.returncode, ended.stdout.splitlines()) == (0, ["nobody", "/"]), ended
    assert left(run, pool) == []


@ALL
def test_kopia_saves_true_paths(run: Runner, pool: Pool, home: str, kopia: Kopia, tmp_path: Path) -> None:
    (pool.path("home/src") / "file").write_text("saved")
    ended, document = run.json("--no-maintenance", *IN_PLACE, home, env=kopia.environment)
    assert ended.returncode == 0, ended
    assert document["sources"] == [str(pool.path("home"))]
    kopia("snapshot", "restore", document["engine"]["snapshot_id"], tmp_path / "restored")
    assert (tmp_path / "restored" / "src" / "file").read_text() == "saved"
    assert left(run, pool) == []


@ALL
@pytest.mark.in_part(1)
def test_what_has_not_changed_is_not_read_again(run: Runner, pool: Pool, home: str, kopia: Kopia) -> None:
    words = ("--no-maintenance", "--skip-unchanged", *IN_PLACE, home)
    seen = []
    for _ in range(3):
        ended, document = run.json(*words, env=kopia.environment)
        assert ended.returncode == 0, ended
        seen += [one["unchanged"] for one in document["engine"]["sources"]]
        assert left(run, pool) == []
    assert seen == [False, True, True]
    assert run("recover", "--forget").returncode == 0


def test_no_set_is_torn_at_true_paths(run: Runner, pool: Pool, tmp_path: Path) -> None:
    script = tmp_path / "reader.py"
    script.write_text(READER)
    names = [f"{pool.name}/{name}" for name in DATASETS]
    reader = f"python3 -SI {script} {tmp_path / 'seen'} {','.join(str(pool.path(name)) for name in DATASETS)}"
    seen: list[list[int]] = []
    with writing([pool.path(name) / "counter" for name in DATASETS]):
        for _ in range(RUNS):
            ended, document = run.json("--layout", "in-place", "-c", reader, *names)
            assert ended.returncode == 0, ended
            assert document["atomic"]
            seen.append(numbers_in(tmp_path / "seen"))
    assert [numbers for numbers in seen if not is_whole(numbers)] == []
    assert len({numbers[0] for numbers in seen}) == RUNS, "the writer did not write"
    assert left(run, pool) == []


def test_no_tar_that_exec_makes_is_torn(run: Runner, pool: Pool, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    files = [str(pool.path(name) / "counter") for name in DATASETS]
    names = [f"{pool.name}/{name}" for name in DATASETS]
    with writing([pool.path(name) / "counter" for name in DATASETS]):
        for _ in range(5):
            ended = run("exec", *names, "--", "tar", "-P", "-cf", archive, *files)
            assert ended.returncode == 0, ended
            with tarfile.open(archive) as made:
                members = [made.extractfile(file) for file in files]
                assert is_whole([int(member.read()) for member in members if member is not None])
    assert left(run, pool) == []


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Pool]:
    with imported_pool(tmp_path / "pool", size=1 << 30) as pool:
        yield pool


def test_a_whole_system_with_its_root_frozen(on: FreeBSDRunner, roomy: Pool, tmp_path: Path) -> None:
    """Its own kopia backs it up to a disk that is mounted in it; then a command looks around."""
    top = tmp_path / "system"
    top.mkdir()
    root, home = roomy.dataset("root", mountpoint="legacy"), roomy.dataset("root/home", mountpoint="legacy")
    command("mount", "-t", "zfs", root, top)
    try:
        system = system_tree.make(top)
        command("mount", "-t", "zfs", home, top / "home")
        command("mount", "-t", "tmpfs", "none", top / "mnt")
        (top / "home" / "file").write_text("home")
        # What the shim keeps in mind.
        (top / str(on.folder).lstrip("/")).mkdir(parents=True)
        (top / "mnt" / "repository").mkdir()
        environment = {"KOPIA_PASSWORD": "x", "HOME": "/root", "PATH": "/usr/local/bin:/usr/sbin:/usr/bin"}
        for words in (
            ("repository", "create", "filesystem", "--path=/mnt/repository"),
            ("policy", "set", "/", "--add-ignore=/mnt/repository"),
        ):
            ended = system.run("/usr/local/bin/kopia", *words, env=environment)
            assert ended.returncode == 0, ended

        def enter() -> None:
            system_tree._enter(str(top))
            # As on FreeBSD, where the directory of locks lies in the root (hier(7)).
            linux.detach("/run")
            sys.path.insert(0, system_tree.SITE)
            # What is imported from now on is where the system has it.
            before, now = str(Path(kopiatomic.__file__).parent), f"{system_tree.SITE}/kopiatomic"
            for name, module in sys.modules.items():
                if name.partition(".")[0] == "kopiatomic" and hasattr(module, "__path__"):
                    module.__path__ = [path.replace(before, now) for path in module.__path__]

        asked = ("--no-maintenance", "--layout", "in-place", "--only-frozen", "-r", root)
        ended, document = on.json(*asked, env=environment, before=enter)
        assert ended.returncode == 0, ended
        assert (document["sources"], document["atomic"]) == (["/"], True)
        restore = ("snapshot", "restore", document["engine"]["snapshot_id"], "/mnt/restored")
        ended = system.run("/usr/local/bin/kopia", *restore, env=environment)
        assert ended.returncode == 0, ended
        restored = top / "mnt" / "restored"
        for name in ("proc", "sys", "dev", "mnt"):
            assert list((restored / name).iterdir()) == [], name
        assert (restored / "home" / "file").read_text() == "home"
        lines = (
            "cat /home/file; echo; touch /etc/x 2> /dev/null || echo frozen; ls -d /dev/tty; ls -d /proc/self; ls /mnt"
        )
        ended = on("exec", "-r", root, "--", "sh", "-c", lines, env=environment, before=enter)
        assert ended.returncode == 0, ended
        assert ended.stdout.splitlines() == ["home", "frozen", "/dev/tty", "/proc/self", "repository", "restored"]
    finally:
        command("umount", "--recursive", top)
    assert on.left(roomy) == []


# How it ends


@ALL
def test_a_signal_ends_it(run: Runner, pool: Pool, home: str, waiting: tuple[str, Path]) -> None:
    command, ready = waiting
    with run.started(*IN_PLACE, "-c", command, home) as started:
        started.until(ready.exists)
        os.kill(started.pid, signal.SIGTERM)
        assert started.wait().returncode == 128 + signal.SIGTERM
    assert left(run, pool) == []


@pytest.mark.parametrize("victim", ["main", "keeper", "launcher", "engine"])
def test_a_killed_process_leaves_nothing(
    victim: str, run: Runner, pool: Pool, home: str, waiting: tuple[str, Path]
) -> None:
    command, ready = waiting
    with run.started(*IN_PLACE, "-c", command, home) as started:
        started.until(ready.exists)
        os.kill(processes_of(started)[victim], signal.SIGKILL)
        killed = time.monotonic()
        ended = started.wait()
    if victim != "main":
        assert ended.returncode == 1
        assert "killed" in ended.stderr
    # A killed main process cannot take its lock file away; nobody holds it.
    while found := [line for line in left(run, pool) if victim != "main" or not line.startswith("lock ")]:
        assert time.monotonic() < killed + WITHIN_S, found
        time.sleep(0.1)


@pytest.mark.in_part(1)
@pytest.mark.parametrize("alone", [False, True], ids=["all", "launcher"])
def test_killed_before_any_mount(alone: bool, on: FreeBSDRunner, pool: Pool, home: str) -> None:
    """How many there are is the machine's: as many as it has mounts, and those that are frozen."""
    for at in count(step=STEP):
        ended = on(*IN_PLACE, "-c", "true", home, killed_at_mount=at, alone=alone)
        until_nobody_lives(on)
        if ended.returncode == 0:
            break
        if alone:
            assert ended.returncode == 1, ended
            assert "killed" in ended.stderr
        else:
            assert len(on.shim().ours()) == at
            assert on("recover").returncode == 0
        assert left(on, pool) == [], at
    assert at > 6


@pytest.mark.in_part(1)
@pytest.mark.parametrize("alone", [False, True], ids=["all", "launcher"])
def test_killed_before_any_unmount(alone: bool, on: FreeBSDRunner, pool: Pool, home: str) -> None:
    for at in count(step=STEP):
        (on.folder / "killed").unlink(missing_ok=True)
        ended = on(*IN_PLACE, "-c", "true", home, killed_at_unmount=at, alone=alone)
        until_nobody_lives(on)
        if not (on.folder / "killed").exists():
            break
        if alone:
            assert ended.returncode == 0, ended
        else:
            assert on(*IN_PLACE, "-c", "true", home).returncode == 0
        assert left(on, pool) == [], at
    assert at > 6


@pytest.mark.parametrize("cleared_by", ["the next run", "recover", "recover without a record"])
def test_all_killed_leave_their_mounts_which_are_cleared(
    cleared_by: str, on: FreeBSDRunner, pool: Pool, home: str, waiting: tuple[str, Path], tmp_path: Path
) -> None:
    command, ready = waiting
    started = on.start(*IN_PLACE, "-c", command, home)
    started.until(ready.exists)
    on.group.kill()
    started.wait()
    until_nobody_lives(on)
    made = on.shim().ours()
    (view,) = Path(locks.DIRECTORY).glob("view-*")
    assert ("nullfs", "/", f"{view}/root") in made
    assert all(point == str(view) or point.startswith(f"{view}/") for _, _, point in made)
    words = {
        "the next run": (*IN_PLACE, "-c", "true", home),
        "recover": ("recover",),
        "recover without a record": ("recover", "--state-dir", str(tmp_path / "other"), "--unrecorded"),
    }[cleared_by]
    ended = on(*words)
    assert ended.returncode == 0, ended
    assert on("recover").returncode == 0
    assert left(on, pool) == []


def test_a_live_mount_that_was_pulled_away_fails_the_run(
    on: FreeBSDRunner, pool: Pool, home: str, tmp_path: Path
) -> None:
    """Of a frozen one, tests of the merged layout show it."""
    ready, go, script = tmp_path / "ready", tmp_path / "go", tmp_path / "gate"
    script.write_text(f"touch {ready}\nwhile [ ! -e {go} ]; do sleep 0.1; done\n")
    started = on.start(*IN_PLACE, "-c", f"sh {script}", home)
    started.until(ready.exists)
    (view,) = Path(locks.DIRECTORY).glob("view-*")
    command("umount", "--lazy", f"{view}/root{pool.path('other')}")
    go.touch()
    ended = started.wait()
    assert ended.returncode == 1, ended
    assert f"the live {pool.path('other')} was taken away or replaced while the engine ran" in ended.stderr
    assert left(on, pool) == []


# What others could move


def test_a_directory_in_which_its_user_could_move_a_place_is_hidden(
    on: FreeBSDRunner, pool: Pool, tmp_path: Path
) -> None:
    os.chown(pool.path("other"), 1000, 1000)
    (pool.path("other") / "theirs").touch()
    inner, said = pool.dataset("other/inner"), tmp_path / "said"
    (pool.path("other/inner") / "file").write_text("frozen\n")
    script = tmp_path / "script"
    script.write_text(f"cat {pool.path('other/inner')}/file > {said}; ls {pool.path('other')} >> {said}\n")
    try:
        ended, document = on.json("--layout", "in-place", "-c", f"sh {script}", inner)
        assert ended.returncode == 0, ended
        assert said.read_text() == "frozen\ninner\n"
        assert [(one["path"], one["how"]) for one in document["shielded"]] == [(str(pool.path("other")), "hidden")]
        assert on("--layout", "in-place", "-c", f"sh {script}", "-r", f"{pool.name}/other").returncode == 0
        assert said.read_text().splitlines() == ["frozen", *sorted(os.listdir(pool.path("other")))]
    finally:
        command("zfs", "destroy", inner)
    assert left(on, pool) == []
