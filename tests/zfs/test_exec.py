"""exec on OpenZFS: the frozen instant, another user, and what an open one blocks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.filesystems import Pool
from tests.support.programs import command
from tests.zfs.runs import Run, Runner, children

pytestmark = pytest.mark.in_part(7)

USER = ("--user", "nobody")


def sh(script: str) -> list[str]:
    return ["--", "sh", "-c", script]


def family(run: Run, count: int) -> list[int]:
    """Main process, keeper, launcher and command, once that has so many children."""
    found: list[int] = []

    def whole() -> bool:
        found[:] = [run.pid]
        try:
            for _ in range(3):
                (below,) = children(found[-1])
                found.append(below)
            return len(children(found[-1])) == count
        except (ValueError, FileNotFoundError):
            # Others come and go before.
            return False

    run.until(whole)
    return found


def test_datasets_are_frozen_at_their_true_paths(tank: Pool, run: Runner) -> None:
    top = tank.dataset("frozen")
    tank.dataset("frozen/below")
    for path in (tank.path("frozen"), tank.path("frozen/below")):
        (path / "file").write_text("frozen\n")
    go = run.folder / "go"
    script = f"while [ ! -e {go} ]; do sleep 0.1; done; cat {tank.path()}/frozen/file {tank.path()}/frozen/below/file; exit 5"
    with run.started("exec", "-r", top, *sh(script)) as started:
        family(started, 1)
        (tank.path("frozen/below") / "file").write_text("live\n")
        assert not [line for line in Path("/proc/self/mounts").read_text().splitlines() if "@kopiatomic" in line]
        go.touch()
        ended = started.wait()
    assert (ended.returncode, ended.stdout) == (5, "frozen\nfrozen\n"), ended
    assert run.left(tank) == []


def test_a_rollback_is_refused_meanwhile(tank: Pool, run: Runner) -> None:
    dataset = tank.dataset("rolled")
    command("zfs", "snapshot", f"{dataset}@before")
    (tank.path("rolled") / "file").write_text("live\n")
    with run.started("exec", dataset, "--", "sleep", "1000") as started:
        pids = family(started, 0)
        assert command("zfs", "rollback", f"{dataset}@before", check=False).returncode != 0
        assert command("zfs", "rollback", "-r", f"{dataset}@before", check=False).returncode != 0
        assert (tank.path("rolled") / "file").exists()
        os.kill(pids[-1], signal.SIGTERM)
        assert started.wait().returncode == 143
    assert run.left(tank) == []


@pytest.fixture
def open_to_all() -> Iterator[None]:
    """Everybody may open /dev/zfs, as udev's rules have it: what a call may do is for the kernel to judge."""
    before = os.stat("/dev/zfs").st_mode
    os.chmod("/dev/zfs", 0o666)
    try:
        yield
    finally:
        os.chmod("/dev/zfs", before & 0o7777)


@pytest.mark.usefixtures("open_to_all")
def test_the_descriptor_of_our_holds_reaches_no_other_user(tank: Pool, run: Runner) -> None:
    """Nothing of what root may do to the pool can another user do, with us or without."""
    dataset = tank.dataset("theirs")
    command("zfs", "snapshot", f"{dataset}@mine")
    os.chmod(run.folder, 0o755)
    seen = run("exec", dataset, *sh("ls -l /proc/self/fd"))
    assert "/dev/zfs" in seen.stdout, seen
    script = (
        f"ls -l /proc/self/fd; id -un; cd /; "
        f"zfs destroy {dataset}@mine; zfs snapshot {dataset}@theirs; "
        f"for s in $(zfs list -H -t snapshot -o name -r {dataset}); do zfs destroy $s; zfs release kopiatomic $s; done"
    )
    theirs = run("exec", *USER, dataset, *sh(script), before=lambda: os.chdir("/"))
    assert "nobody" in theirs.stdout, theirs
    assert "/dev/zfs" not in theirs.stdout
    assert theirs.stderr.count("permission denied") >= 4, theirs
    left = command("zfs", "list", "-H", "-t", "snapshot", "-o", "name", "-r", dataset).stdout.split()
    assert left == [f"{dataset}@mine"]
    assert run.left(tank) == []


@pytest.mark.parametrize("victim", [0, 1, 2, 3], ids=["main process", "keeper", "launcher", "command"])
@pytest.mark.parametrize("user", [(), USER], ids=["root", "user"])
def test_a_killed_one_leaves_nothing(victim: int, user: tuple[str, ...], tank: Pool, run: Runner) -> None:
    """Also where none of the command's processes has the descriptor that the holds hang on."""
    dataset = tank.dataset(f"killed{victim}{len(user)}")
    script = "sleep 1000 & sleep 1000 & sleep 1000; true"
    started = run.start("exec", *user, dataset, *sh(script), before=lambda: os.chdir("/"))
    os.kill(family(started, 3)[victim], signal.SIGKILL)
    started.wait()
    deadline = time.monotonic() + 60
    while (left := run.left(tank)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
