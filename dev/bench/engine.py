"""kopia through kopiatomic beside kopia alone on the live files, natively on Btrfs: first runs, cached ones, and skipped ones.

Each round has a repository of its own for either side. Maintenance is off on both sides, and before each run the kernel's
caches are dropped: a frozen tree has none yet, and without that the live one would be read from memory.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from demo.programs import run

from bench.results import Results, Times, figure
from bench.timing import in_turns, once, ratios

_PASSWORD = "bench"  # noqa: S105 - of a throwaway repository
_SMALL_FILES = 100_000
_SOURCES = 50
_BIG_FILES = 8
_BIG_BYTES = 512 << 20
_DISK_BYTES = 6 << 30


@dataclass(frozen=True)
class Kopia:
    """A repository in a folder, with a configuration and a cache of its own."""

    folder: Path

    @property
    def environment(self) -> Mapping[str, str]:
        places = {"KOPIA_CONFIG_PATH": "config", "KOPIA_CACHE_DIRECTORY": "cache", "KOPIA_LOG_DIR": "log"}
        named = {name: str(self.folder / place) for name, place in places.items()}
        more = {"KOPIA_PASSWORD": _PASSWORD, "KOPIA_CHECK_FOR_UPDATES": "false"}
        return {**os.environ, **named, **more, "KOPIATOMIC_STATE_DIR": str(self.folder / "state")}

    def make(self) -> None:
        self.folder.mkdir()
        run(
            ["kopia", "repository", "create", "filesystem", "--path", str(self.folder / "repository")],
            env=self.environment,
        )
        run(["kopia", "maintenance", "set", "--enable-quick=false", "--enable-full=false"], env=self.environment)


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A Btrfs filesystem on a loop device, in a file on the disk."""
    image, live = folder / "disk", folder / "live"
    with image.open("wb") as file:
        file.truncate(_DISK_BYTES)
    live.mkdir()
    run(["mkfs.btrfs", "--quiet", str(image)])
    run(["mount", "-t", "btrfs", "-o", "loop,noatime", str(image), str(live)])
    try:
        yield live
    finally:
        run(["umount", str(live)])


def small_files(top: Path, count: int = _SMALL_FILES, seed: int = 1) -> None:
    made = random.Random(seed)
    for number in range(count):
        if number % 100 == 0:
            (folder := top / f"d{number // 1000:03d}" / f"d{number // 100:04d}").mkdir(parents=True)
        (folder / f"f{number:06d}").write_bytes(made.randbytes(made.randrange(8192)))


def big_files(top: Path) -> None:
    for number in range(_BIG_FILES):
        with (top / f"f{number}").open("wb") as file:
            for _ in range(_BIG_BYTES >> 20):
                file.write(os.urandom(1 << 20))


def _cold() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


class Engine:
    """The two sides, on one tree."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self._tree = tree
        self._folder = folder
        self._plain = Kopia(folder / "plain")
        self._ours = Kopia(folder / "ours")
        self._document = folder / "run.json"
        self.phases: list[dict[str, float]] = []

    def renew(self) -> None:
        """New repositories."""
        for kopia in (self._plain, self._ours):
            shutil.rmtree(kopia.folder, ignore_errors=True)
            kopia.make()

    def plain(self) -> float:
        _cold()
        return once(["kopia", "snapshot", "create", "--json", self._tree], env=self._plain.environment).seconds

    def ours(self) -> float:
        _cold()
        argv: list[str | Path] = [sys.executable, "-m", "kopiatomic", "--quiet", "--json"]
        argv += ["--mount-root", self._folder / "view", self._tree]
        seconds = once(argv, output=self._document, env=self._ours.environment).seconds
        document = json.loads(self._document.read_text())
        assert document["result"] == "saved"
        self.phases.append(document["durations"])
        return seconds

    def one_process(self) -> float:
        """What one kopia process costs that opens the repository."""
        return once(["kopia", "repository", "status", "--json"], env=self._ours.environment).seconds


def measure(rounds: int, folder: Path, results: Results) -> None:
    with disk(folder) as live:
        for what, fill, goal in (
            (f"{_SMALL_FILES} small files", small_files, "<=1.02"),
            (f"{_BIG_FILES * _BIG_BYTES >> 30} GiB in {_BIG_FILES} files", big_files, "<=1.01"),
        ):
            tree = live / "tree"
            run(["btrfs", "subvolume", "create", str(tree)])
            fill(tree)
            _measure_one(what, goal, Engine(tree, folder), rounds, results)
            run(["btrfs", "subvolume", "delete", "--commit-after", str(tree)])
        Skipping(live, folder).measure(rounds, results)


class Skipping:
    """Many sources in place, of which one or all have changed since the last run."""

    def __init__(self, live: Path, folder: Path) -> None:
        self._trees = [live / f"source{number:02d}" for number in range(_SOURCES)]
        self._kopia = Kopia(folder / "skipping")
        self._folder = folder
        for number, tree in enumerate(self._trees):
            run(["btrfs", "subvolume", "create", str(tree)])
            small_files(tree, _SMALL_FILES // _SOURCES, seed=number)
        self._kopia.make()

    def timed(self, changed: int, *words: str) -> float:
        """A whole run after so many sources have changed."""
        for tree in self._trees[:changed]:
            (tree / "changed").write_bytes(os.urandom(64))
        _cold()
        argv: list[str | Path] = [sys.executable, "-m", "kopiatomic", "--quiet", "--layout", "in-place", *words]
        return once([*argv, *self._trees], env=self._kopia.environment).seconds

    def measure(self, rounds: int, results: Results) -> None:
        sides = {
            "1 changed, --skip-unchanged": lambda: self.timed(1, "--skip-unchanged"),
            "all changed, --skip-unchanged": lambda: self.timed(_SOURCES, "--skip-unchanged"),
            "1 changed": lambda: self.timed(1),
        }
        self.timed(0, "--skip-unchanged")
        times = in_turns(sides, rounds, f"{_SOURCES} sources")
        for name, seconds in times.items():
            results.times.append(Times(f"{_SOURCES} sources in place, {name}", _SOURCES, seconds))
        one, all_, read = times.values()
        what = f"1 of {_SOURCES} sources changed, --skip-unchanged"
        results.figures.append(figure(f"{what} / all changed", ratios(one, all_)))
        results.figures.append(figure(f"{what} / without it", ratios(one, read)))


def _measure_one(what: str, goal: str, engine: Engine, rounds: int, results: Results) -> None:
    both = {"plain kopia": engine.plain, "kopiatomic": engine.ours}
    first = in_turns(both, rounds, f"{what}, first", before=engine.renew)
    engine.phases.clear()
    cached = in_turns({**both, "a kopia process": engine.one_process}, rounds, f"{what}, cached")
    for run_, times in (("first run", first), ("cached run", cached)):
        for name, seconds in times.items():
            results.times.append(Times(f"{what}, {run_}: {name}", 1, seconds))
    over = ratios(first["kopiatomic"], first["plain kopia"])
    results.figures.append(figure(f"{what}, first run: kopiatomic / plain kopia", over, goal))
    more = [a - b for a, b in zip(cached["kopiatomic"], cached["plain kopia"], strict=True)]
    one = median(cached["a kopia process"])
    phases = engine.phases[1:]
    split = ", ".join(f"{name} {median([p.get(name, 0.0) for p in phases]):.2f}" for name in phases[0])
    note = f"one kopia process {one:.2f} s; kopiatomic's phases: {split}"
    allowed = 2 * one + 0.3
    results.figures.append(
        figure(f"{what}, cached run: what it takes more", more, f"<={allowed:.2f}", unit="s", note=note)
    )
