"""How long writers wait that a run holds still, as the run itself reports it, beside the time that dumps of the same data take.

Natively on four Btrfs subvolumes, in the guest on forty datasets of one pool, on a disk. "Of it the snapshot calls" is from the
first of them to the end of the last; the rest is what holds and releases.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from demo.programs import run

from bench import many
from bench.engine import disk
from bench.results import Results, Times, figure
from bench.timing import once
from tests.support.programs import command
from tests.unit.support import databases
from tests.unit.support.databases import as_user, program
from tests.unit.support.holders import WRITERS, grouped

IDLE = "idle"
SUBVOLUMES = 4
DATASETS = 40
_DUMPS = 5
_SCALE = "10"
"""pgbench's: 1,000,000 accounts, 150 MB."""
_ACCOUNTS = 500_000
"""MariaDB's, of some 270 bytes."""
_CLIENTS = 4

Load = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Writer:
    """A writer that runs: how ``--hold`` names it, what a run is given, and what makes it busy, by name."""

    hold: str
    datasets: Sequence[str | Path]
    loads: Mapping[str, Load]
    dump: Sequence[str | Path] = ()


@dataclass
class Stalls:
    """Measures writers on one filesystem. ``goal`` is for those that are idle (ms). ``state`` lies on a disk."""

    folder: Path
    state: Path
    rounds: int
    results: Results
    goal: str
    dumps: dict[str, list[list[float]]] = field(default_factory=dict)
    """Seconds of each dump, by load."""

    def measure(self, name: str, writer: Writer) -> None:
        """Add the stalls of so many runs, idle and under each load."""
        for load, busy in {IDLE: nullcontext, **writer.loads}.items():
            with busy():
                # The first fills the caches.
                found = [self._run(writer) for _ in range(self.rounds + 1)][1:]
                if writer.dump:
                    self._dump(name, load, writer.dump)
            stalls, calls = ([pair[place] for pair in found] for place in (0, 1))
            goal = self.goal if load == IDLE else ""
            self.results.figures += [
                figure(f"{name}, {load}: stall", stalls, goal, unit="ms"),
                figure(f"{name}, {load}: of it the snapshot calls", calls, unit="ms"),
            ]
            told = f"{median(stalls):.1f} ms, at most {max(stalls):.1f}; snapshot calls {median(calls):.1f}"
            print(f"{name}, {load}, {len(stalls)} runs: {told}", file=sys.stderr, flush=True)

    def _run(self, writer: Writer) -> tuple[float, float]:
        """The stall that a whole run reports, and how long its snapshot calls took (ms)."""
        document = self.folder / "run.json"
        words = ["--quiet", "--json", "--mount-root", str(self.folder / "view"), "--hold", writer.hold, "-c", "ls"]
        environment = {**os.environ, "KOPIATOMIC_STATE_DIR": str(self.state / "state")}
        once([sys.executable, "-m", "kopiatomic", *words, *writer.datasets], output=document, env=environment)
        found = json.loads(document.read_text())
        (held,) = found["writers"]
        assert held["needed"]
        sets = found["sets"]
        calls = max(made["monotonic_after"] for made in sets) - min(made["monotonic_before"] for made in sets)
        return 1000 * held["stall_seconds"], 1000 * calls

    def _dump(self, name: str, load: str, argv: Sequence[str | Path]) -> None:
        seconds = [once(argv).seconds for _ in range(_DUMPS + 1)][1:]
        self.results.times.append(Times(f"dump of {name}, {load}", 0, seconds))
        self.dumps.setdefault(load, []).append(seconds)

    def add_dumps(self) -> None:
        """Add what dumps of all that was measured take together."""
        busy = [seconds for load, found in self.dumps.items() if load != IDLE for seconds in found]
        for load, found in ((IDLE, self.dumps[IDLE]), ("under load", busy)):
            together = [sum(round_) for round_ in zip(*found, strict=True)]
            self.results.figures.append(figure(f"pg_dump + mariadb-dump, {load}", together, unit="s"))


def on_btrfs(rounds: int, folder: Path, state: Path, results: Results) -> None:
    """Processes, PostgreSQL with data and log apart, and MariaDB with other engines than InnoDB."""
    stalls = Stalls(folder, state, rounds, results, "<=100")
    with disk(state) as live:
        for name, writer in (("cgroup", _cgroup), ("postgresql", _postgresql), ("mariadb", _mariadb)):
            subvolumes = [live / f"{name}{number}" for number in range(SUBVOLUMES)]
            for path in subvolumes:
                run(["btrfs", "subvolume", "create", str(path)])
            with writer(subvolumes) as one:
                stalls.measure(f"{name}, {SUBVOLUMES} Btrfs subvolumes", one)
    stalls.add_dumps()


def on_zfs(rounds: int, folder: Path, state: Path, results: Results) -> None:
    """Processes alone: the guest has no databases."""
    stalls = Stalls(folder, state, rounds, results, "<=50")
    with many.zfs(state, (DATASETS,)) as made:
        heads, names = made.first(DATASETS)
        points = [state / "points" / name.partition("/")[2] for name in names]
        with _cgroup(points, ["-r", *heads]) as one:
            stalls.measure(f"cgroup, {DATASETS} datasets of one pool", one)


@contextmanager
def _cgroup(places: Sequence[Path], datasets: Sequence[str | Path] = ()) -> Iterator[Writer]:
    with grouped() as group:
        group.start("sleep", "infinity")

        @contextmanager
        def writing(how: str) -> Iterator[None]:
            before = len(group.processes)
            WRITERS[how](group, [place / how for place in places])
            try:
                yield
            finally:
                for process in group.processes[before:]:
                    process.kill()
                    process.wait()

        loads = {f"a process writes to all ({how})": partial(writing, how) for how in ("written", "mapped")}
        yield Writer(f"cgroup:{group.path}", datasets or places, loads)


@contextmanager
def _postgresql(subvolumes: Sequence[Path]) -> Iterator[Writer]:
    data, wal, *others = subvolumes
    with databases.postgresql(on={"data": data, "wal": wal}) as server:
        first = as_user(server.user)
        where: list[str | Path] = ["-h", server.folder, "-p", server.number]
        command(*first, program("pgbench"), "-i", "-q", "-s", _SCALE, *where, "postgres", timeout=600)
        server.sql("CHECKPOINT")
        loads = {"pgbench": partial(databases.pgbench, server, clients=_CLIENTS)}
        dump = [*first, program("pg_dump"), *where, "postgres"]
        yield Writer(f"postgresql:{server.number}", [server.data, server.apart, *others], loads, dump)


@contextmanager
def _mariadb(subvolumes: Sequence[Path]) -> Iterator[Writer]:
    whole, *others = subvolumes
    with databases.mariadb(on={"": whole}) as server:
        databases.open_accounts(server, _ACCOUNTS)
        loads = {"transfers": partial(databases.transfers_between, server, _ACCOUNTS, _CLIENTS)}
        socket = f"{server.folder}/socket"
        dump = ["mariadb-dump", "--no-defaults", f"--socket={socket}", "--single-transaction", "bank"]
        yield Writer(f"mariadb:{socket}", [server.folder, *others], loads, dump)
