"""Runs whose processes were all killed while their snapshots were mounted: the kernel's release fails then."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kopiatomic.system import linux
from tests.support.filesystems import Pool
from tests.support.killing import kill_together
from tests.zfs.runs import Run, Runner, children

ENGINE = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(1000)"


def killed_run(pool: Pool, run: Runner, folder: Path, datasets: Sequence[str]) -> str:
    """Start a run and kill it whole; its id."""
    engine, ready = folder / "engine.py", folder / "ready"
    engine.write_text(ENGINE)
    ready.unlink(missing_ok=True)
    started: Run = run.start("-c", f"python3 -SI {engine} {ready}", *datasets)
    started.until(ready.exists)
    (keeper,) = children(started.pid)
    (launcher,) = children(keeper)
    with still_mounted(launcher):
        # The engine is among them: it has the descriptor too, and the last one to close it must find the mounts.
        kill_together(run.group.pids())
        started.wait()
    names = ours(pool)
    assert len(names) == len(datasets)
    return names[0].partition("@kopiatomic_")[2]


@contextmanager
def still_mounted(launcher: int) -> Iterator[None]:
    """A process that stays in a launcher's mount namespace: its mounts do not end with the launcher."""
    stay, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        namespace = os.open(f"/proc/{launcher}/ns/mnt", os.O_RDONLY)
        linux._libc().setns(namespace, linux.CLONE_NEWNS)
        os.close(told)
        os.read(stay, 1)
        os._exit(0)
    os.close(stay)
    # Until it is there.
    while os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink(f"/proc/{launcher}/ns/mnt"):
        time.sleep(0.01)
    try:
        yield
    finally:
        os.close(told)
        os.waitpid(pid, 0)


def ours(pool: Pool) -> list[str]:
    return sorted(name for name in pool.snapshots() if "@kopiatomic_2" in name)


def recovered(run: Runner, *args: str) -> tuple[int, Any]:
    ended = run("recover", "--json", *args)
    assert "Traceback" not in ended.stderr
    return ended.returncode, json.loads(ended.stdout)
