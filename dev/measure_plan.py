"""Times plans: of many datasets from saved facts, or of many real ones beside the ``zfs list`` that tells the same.

Started by dev/measure-plan. What is timed are whole processes, in seconds; memory is the peak that the kernel has seen.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo import ground

from kopiatomic import facts
from kopiatomic.facts import Facts, ZfsDataset, ZfsPool
from kopiatomic.request import PROPERTY
from kopiatomic.system import linux
from kopiatomic.system.mountinfo import Mount

WIDTH = 100
"""How many datasets lie in one container."""

PLAN = (sys.executable, "-m", "kopiatomic", "plan", "-a", "-c", "true")
LIST = ("zfs", "list", "-Hp", "-t", "filesystem,volume")
PROPERTIES = f"name,type,canmount,keystatus,zoned,{PROPERTY},mountpoint"
FILESYSTEM = 2
"""LZC_DATSET_TYPE_ZFS of libzfs_core.h."""


def names(pool: str, count: int) -> list[str]:
    """A pool's own dataset and so many more, as a server has them with a home directory for each of its users."""
    made = [pool]
    for number in range(count):
        group = f"{pool}/group{number // WIDTH:03d}"
        made.append(f"{group}/user{number:05d}" if number % WIDTH else group)
    return made


def is_mounted(number: int) -> bool:
    return number % 50 != 7


def made_up(count: int) -> Facts:
    """What there would be to plan from on such a server, where some are not mounted, on purpose."""
    mounts = [Mount(1, 0, "8:1", "/", "/", "ext4", "/dev/sda1", ("rw", "relatime"), ("rw",), ("shared:1",))]
    ids: dict[str, int] = {}
    datasets = {}
    for number, name in enumerate(names("tank", count - 1)):
        canmount = "on" if is_mounted(number) else "noauto"
        datasets[name] = ZfsDataset(name, "filesystem", canmount, "-", mountpoint=f"/{name}")
        if is_mounted(number):
            ids[name] = id_ = len(mounts) + 1
            parent = ids.get(name.rpartition("/")[0], 1)
            rest = ("zfs", name, ("rw", "relatime"), ("rw", "xattr", "noacl"), (f"shared:{id_}",))
            mounts.append(Mount(id_, parent, f"0:{id_}", "/", f"/{name}", *rest))
    return Facts(tuple(mounts), datasets, {"tank": ZfsPool("tank", "ONLINE", read_only=False)}, (), {})


@dataclass(frozen=True)
class Cost:
    """What a process took: seconds from its start to its end, of the processor alone, and the peak of its memory in bytes."""

    seconds: float
    processor: float
    memory: int


def once(argv: Sequence[str]) -> Cost:
    """Run a command to its end. Ends the program where it fails."""
    with open(os.devnull, "wb") as null:
        began = time.perf_counter()
        process = subprocess.Popen(argv, stdout=null)
        _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{argv} failed ({process.returncode})")
    return Cost(took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10)


def spans(times: Sequence[float]) -> str:
    return f"{statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"


def write_facts(count: int, file: Path) -> None:
    """In a process of its own: the peak of a child's memory begins with that of what started it."""
    pid = os.fork()
    if pid == 0:
        file.write_text(facts.dump(made_up(count)))
        os._exit(0)
    os.waitpid(pid, 0)


def from_facts(count: int, rounds: int, folder: Path) -> None:
    file = folder / "facts.json"
    write_facts(count, file)
    for form, more in (("a table", ()), ("--json", ("--json",))):
        runs = [once([*PLAN, "--from-facts", str(file), *more]) for _ in range(rounds)]
        peak = max(run.memory for run in runs) / 1e6
        times = f"{spans([run.seconds for run in runs])}, of the processor {spans([run.processor for run in runs])}"
        print(f"plan of {count} datasets from facts, {form}: {times}, {peak:.0f} MB", flush=True)


def make(pool: str, below: Path, count: int, mounted: int) -> list[Path]:
    """Make so many datasets by calls, and mount the first; returns where. A process for each would take an hour."""
    library = ctypes.CDLL("libzfs_core.so.3", use_errno=True)
    library.libzfs_core_init()
    points = []
    for number, name in enumerate(names(pool, count)[1:], 1):
        error = library.lzc_create(os.fsencode(name), FILESYSTEM, None, None, 0)
        if error:
            raise SystemExit(f"{name} could not be made: {os.strerror(error)}")
        if number <= mounted:
            point = below / name
            point.mkdir(parents=True, exist_ok=True)
            linux.mount(name, str(point), "zfs", 0)
            points.append(point)
    return points


def real(count: int, rounds: int, folder: Path) -> None:
    with ground.zfs(folder) as made:
        pool = made.datasets[0].partition("/")[0]
        points = make(pool, folder / "points", count, count // 3)
        commands = {"zfs list": [*LIST, "-o", PROPERTIES], "plan -a": PLAN}
        times: dict[str, list[float]] = {what: [] for what in commands}
        for _ in range(rounds):
            for what, argv in commands.items():
                times[what].append(once(argv).seconds)
        for point in reversed(points):
            # By zpool each of them would be a process.
            linux.detach(str(point))
    for what, took in times.items():
        print(f"{what} of {count} real datasets: {spans(took)}")
    listed, planned = (statistics.median(took) for took in times.values())
    print(f"ratio {planned / listed:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["facts", "zfs"])
    parser.add_argument("--datasets", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with ground.scratch() as folder:
        if options.what == "facts":
            from_facts(options.datasets or 10_000, options.rounds, folder)
        else:
            real(options.datasets or 1000, options.rounds, folder)


if __name__ == "__main__":
    main()
