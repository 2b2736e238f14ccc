"""Control groups with limits, in either version of the kernel's interface."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HIERARCHY = Path("/sys/fs/cgroup")


@contextmanager
def pids_limited(limit: int) -> Iterator[Callable[[], None]]:
    """A control group that may hold so many processes; what is yielded puts the calling process into it."""
    above = HIERARCHY / "pids" if (HIERARCHY / "pids").is_dir() else HIERARCHY
    if above == HIERARCHY:
        enable("pids")
    group = above / f"kopiatomic-{secrets.token_hex(4)}"
    group.mkdir()
    (group / "pids.max").write_text(str(limit))

    def join() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    try:
        yield join
    finally:
        deadline = time.monotonic() + 5
        while left := (group / "cgroup.procs").read_text().split():
            if time.monotonic() > deadline:
                # A run that hangs has failed its test already.
                for pid in left:
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.02)
        group.rmdir()


def enable(controller: str) -> None:
    """Have the groups below the top have a controller, where this kernel has only the second version."""
    try:
        (HIERARCHY / "cgroup.subtree_control").write_text(f"+{controller}")
    except OSError as error:
        pytest.fail(f"this test needs the control group controller {controller}: {error}", pytrace=False)
