"""SIGKILL, which no program can answer: the kernel and the processes that are left remove everything."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.filesystems import Pool
from tests.support.programs import IN_QEMU, SLOWNESS
from tests.zfs.runs import Run, Runner, children

pytestmark = pytest.mark.core

ROUNDS = int(os.environ.get("KOPIATOMIC_TEST_KILLS", "2" if IN_QEMU else "5"))
WITHIN_S = 2 * SLOWNESS
"""2 s on a real machine."""

ENGINE = """
import os, sys, time
ready, helpers, root = sys.argv[1], int(sys.argv[2]), sys.argv[3]
os.chdir(root)
for _ in range(helpers):
    if os.fork() == 0:
        os.setsid()
        os.closerange(0, 1024)
        time.sleep(1000)
open(ready, "w").close()
time.sleep(1000)
"""


@pytest.fixture(scope="module")
def pool(tank: Pool) -> Pool:
    for name in ("home", "src"):
        tank.dataset(name)
    return tank


def processes_of(run: Run) -> dict[str, int]:
    """The processes of a run whose engine has started, by what they are."""
    (keeper,) = children(run.pid)
    (launcher,) = children(keeper)
    (engine,) = (pid for pid in children(launcher) if b"engine.py" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return {"main": run.pid, "keeper": keeper, "launcher": launcher, "engine": engine}


@pytest.mark.in_part(3)
@pytest.mark.parametrize("helpers", [0, 20])
@pytest.mark.parametrize("victim", ["main", "keeper", "launcher", "engine"])
def test_a_killed_run_leaves_nothing(victim: str, helpers: int, pool: Pool, run: Runner, tmp_path: Path) -> None:
    """Also where 20 processes of the engine have closed every descriptor and left its session."""
    engine, ready = tmp_path / "engine.py", tmp_path / "ready"
    engine.write_text(ENGINE)
    for _ in range(ROUNDS):
        command = f"python3 -SI {engine} {ready} {helpers}"
        with run.started("-c", command, f"{pool.name}/home", f"{pool.name}/src") as started:
            started.until(ready.exists)
            assert len(run.group.pids()) == 4 + helpers
            assert len([name for name in pool.snapshots() if "@kopiatomic_" in name]) == 2
            os.kill(processes_of(started)[victim], signal.SIGKILL)
            killed = time.monotonic()
            ended = started.wait()
        if victim == "main":
            assert ended.returncode == -signal.SIGKILL
        else:
            assert ended.returncode == 1
            assert "killed" in ended.stderr
            assert run.left(pool) == []
        # A killed main process cannot take its lock file away; nobody holds it, and the next round goes through it.
        while found := [line for line in run.left(pool) if victim != "main" or not line.startswith("lock ")]:
            assert time.monotonic() < killed + WITHIN_S, found
            time.sleep(0.1)
        ready.unlink()
