"""What ties processes together on FreeBSD, through the shim: nobody outlives who made them."""

import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kopiatomic.system.freebsd_processes import ReaperKill, adopt_orphans, die_with_parent, end_descendants
from tests.support.freebsd_shim import Shim, isolated
from tests.support.moments import ends

# sys/sys/procctl.h, struct procctl_reaper_kill: each field with its size in bytes, by hand.
HEADER = {"rk_sig": 4, "rk_flags": 4, "rk_subtree": 4, "rk_killed": 4, "rk_fpid": 4, "rk_pad0": 60}


def written(path: Path) -> str:
    """What is in a file, as soon as it has a whole line."""
    deadline = time.monotonic() + 5
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return path.read_text()


def test_the_structure_is_the_headers() -> None:
    offset = 0
    for name, size in HEADER.items():
        field = getattr(ReaperKill, name)
        assert (name, field.offset, field.size) == (name, offset, size)
        offset += size
    assert (offset, ctypes.sizeof(ReaperKill)) == (80, 80)


@isolated
def test_a_child_that_asked_for_it_ends_with_its_parent() -> None:
    told, tells = os.pipe()
    parent = os.fork()
    if parent == 0:
        kernel = Shim().kernel
        child = os.fork()
        if child == 0:
            die_with_parent(kernel, signal.SIGKILL)
            os.write(tells, b"%d " % os.getpid())
            time.sleep(60)
            os._exit(0)
        os.waitpid(child, 0)
        os._exit(0)
    child = int(os.read(told, 20))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert ends(child)


@isolated
def test_all_descendants_are_ended_and_counted_also_those_that_went_their_own_way(tmp_path: Path) -> None:
    kernel = Shim().kernel
    adopt_orphans(kernel)
    # One in our session, one in its own, one whose parent is gone; and one that had ended before.
    script = 'sleep 60 & setsid sleep 60 & (sleep 60 & echo $! >"$0"); exec sleep 60'
    running = subprocess.Popen(["sh", "-c", script, tmp_path / "orphan"])
    orphan = int(written(tmp_path / "orphan"))
    ended = os.fork()
    if ended == 0:
        os._exit(0)
    os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
    assert end_descendants(kernel) == 4
    assert ends(orphan)
    with pytest.raises(ChildProcessError):
        os.waitpid(running.pid, 0)


@isolated
def test_without_descendants_there_is_nothing_to_do() -> None:
    shim = Shim()
    adopt_orphans(shim.kernel)
    assert end_descendants(shim.kernel) == 0


@isolated
def test_a_child_that_has_children_as_fast_as_it_can_is_ended_too() -> None:
    kernel = Shim().kernel
    adopt_orphans(kernel)
    busy = subprocess.Popen(["sh", "-c", "while :; do sleep 60 & n=$((n+1)); [ $n -lt 40 ] || wait; done"])
    time.sleep(0.05)
    assert end_descendants(kernel) >= 1
    assert ends(busy.pid)


@isolated
def test_who_is_a_reaper_already_stays_one() -> None:
    adopt_orphans(Shim().kernel)
    adopt_orphans(Shim().kernel)
