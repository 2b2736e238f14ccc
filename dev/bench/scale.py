"""What plans cost where there are many datasets, what memory is used, and how many processes are started."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.orchestration import Orchestration
from bench.results import Results, Times, figure
from bench.timing import Cost, in_turns, once
from kopiatomic.model import facts
from kopiatomic.model.facts import Facts, ZfsDataset, ZfsPool
from kopiatomic.model.mounts import Mount
from kopiatomic.model.user_property import PROPERTY
from kopiatomic.system import linux
from tests.support.structure import counted

WIDTH = 100
"""How many datasets lie in one container of those that are made up."""

PLAN = (sys.executable, "-m", "kopiatomic", "plan", "-a", "-c", "true")
LIST = ("zfs", "list", "-Hp", "-t", "filesystem,volume")
PROPERTIES = f"name,type,canmount,keystatus,zoned,{PROPERTY},mountpoint"
SAMPLE_S = 0.01


def made_up(count: int) -> Facts:
    """What there is to plan from on a server with a home directory for each user, some of them not mounted on purpose."""
    mounts = [Mount(1, 0, "8:1", "/", "/", "ext4", "/dev/sda1", ("rw", "relatime"), ("rw",), ("shared:1",))]
    ids: dict[str, int] = {}
    datasets = {}
    for number in range(count):
        group = f"tank/group{number // WIDTH:03d}"
        name = "tank" if number == 0 else group if number % WIDTH == 1 else f"{group}/user{number:05d}"
        mounted = number % 50 != 7
        datasets[name] = ZfsDataset(name, "filesystem", "on" if mounted else "noauto", "-", mountpoint=f"/{name}")
        if mounted:
            ids[name] = id_ = len(mounts) + 1
            parent = ids.get(name.rpartition("/")[0], 1)
            rest = ("zfs", name, ("rw", "relatime"), ("rw", "xattr", "noacl"), (f"shared:{id_}",))
            mounts.append(Mount(id_, parent, f"0:{id_}", "/", f"/{name}", *rest))
    return Facts(tuple(mounts), datasets, {"tank": ZfsPool("tank", "ONLINE", read_only=False)}, (), {})


def write_facts(count: int, file: Path) -> list[str]:
    """Writes them in a process of its own (a child's peak of memory begins with its parent's); the words to plan from them."""
    _in_a_fork(lambda: file.write_text(facts.dump(made_up(count))))
    return [*PLAN, "--from-facts", str(file)]


def plan_from_facts(count: int, rounds: int, folder: Path, results: Results) -> None:
    """Time and memory of a plan of so many datasets, as a table and as JSON."""
    command = write_facts(count, folder / "facts.json")
    for form, more in (("as a table", ()), ("as JSON", ("--json",))):
        costs: list[Cost] = []
        for _ in range(rounds + 1):
            costs.append(once([*command, *more]))
        seconds = [cost.seconds for cost in costs[1:]]
        what = f"plan of {count} datasets from facts, {form}"
        results.times.append(Times(what, count, seconds))
        results.figures.append(figure(what, seconds, "<=1", unit="s"))
        memory = [cost.memory / 1e6 for cost in costs[1:]]
        results.figures.append(figure(f"{what}: peak memory", memory, "<=150", unit="MB"))


def plan_beside_list(count: int, rounds: int, folder: Path, results: Results) -> None:
    """A plan of real datasets, less Python's start and imports, over the ``zfs list`` of the same columns."""
    start = write_facts(1, folder / "one.json")
    contestants: dict[str, Callable[[], float]] = {
        "zfs list": lambda: once([*LIST, "-o", PROPERTIES]).seconds,
        "plan -a": lambda: once(PLAN).seconds,
        "plan of one, from facts": lambda: once(start).seconds,
    }
    times = in_turns(contestants, rounds, f"plan of {count} datasets")
    for name, seconds in times.items():
        results.times.append(Times(name, count, seconds))
    values = [
        (planned - started) / listed
        for listed, planned, started in zip(
            times["zfs list"], times["plan -a"], times["plan of one, from facts"], strict=True
        )
    ]
    what = f"plan of {count} datasets, less Python's start and imports / zfs list of the same columns"
    results.figures.append(figure(what, values, "<=1.5"))


def memory(orchestration: Orchestration, heads: Sequence[str], count: int, results: Results) -> None:
    """The greatest PSS of all processes of a run together, without the engine, for as long as that runs and around it."""
    command = orchestration.command(heads)
    at = command.index("-c")
    # The view's path follows as one more argument.
    command[at + 1] = "sh -c 'sleep 2'"
    peak = peak_pss(command, orchestration.environment())
    results.figures.append(figure(f"peak PSS of a run's processes, {count} datasets", [peak / 1e6], "<=60", unit="MB"))


def memory_with_mounts(count: int, folder: Path, results: Results) -> None:
    """The same of a plan from saved facts, where the mount table is of that size as well."""
    command = write_facts(count, folder / "facts.json")

    def measured() -> None:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_SLAVE)
        points = folder / "points"
        points.mkdir()
        linux.mount("none", str(points), "tmpfs", 0)
        for number in range(count):
            (point := points / str(number)).mkdir()
            linux.mount(str(points), str(point), None, linux.MS_BIND)
        (folder / "peak").write_text(str(peak_pss(command, os.environ)))

    _in_a_fork(measured)
    peak = int((folder / "peak").read_text())
    results.figures.append(
        figure(f"peak PSS of a plan from facts, {count} datasets, as many mounts", [peak / 1e6], "<=120", unit="MB")
    )


def _in_a_fork(function: Callable[[], object]) -> None:
    """Call a function in a child process, and wait for its end. Ends the program where it fails."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1] != 0:
        raise SystemExit("a child process failed: its error stands above")


def peak_pss(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Bytes. Looked at every 10 ms; forks of kopiatomic have its command line."""
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=dict(env))
    ours = Path(f"/proc/{process.pid}/cmdline")
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, sum(_pss(pid, ours.read_bytes()) for pid in _family(process.pid)))
        except OSError:
            continue
        time.sleep(SAMPLE_S)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(argv)[:500]} failed ({process.returncode})")
    return peak


def _family(pid: int) -> list[int]:
    found = [pid]
    for member in found:
        try:
            found += map(int, Path(f"/proc/{member}/task/{member}/children").read_text().split())
        except OSError:
            continue
    return found


def _pss(pid: int, command: bytes) -> int:
    try:
        if Path(f"/proc/{pid}/cmdline").read_bytes() != command:
            return 0
        rolled = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(re.findall(r"(?m)^Pss:\s+(\d+) kB", rolled)[0]) << 10


def processes(
    orchestration: Orchestration, counts: Mapping[int, Sequence[str]], folder: Path, results: Results
) -> None:
    """How many processes a run of so many datasets starts: programs, and forks of its own."""
    words = {count: orchestration.words(heads) for count, heads in counts.items()}
    env = orchestration.environment()
    found = {
        count: counted(folder / f"trace{count}", *given, env=env)[0]["processes"] for count, given in words.items()
    }
    for count, number in found.items():
        results.figures.append(figure(f"processes started, {count} datasets", [number]))
    few, most = min(found), max(found)
    what = f"processes started, {most} over {few} datasets"
    results.figures.append(figure(what, [found[most] / found[few]], "=1"))
