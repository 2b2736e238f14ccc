"""What the metadata record of very many small files costs, natively on Btrfs: alone, in runs with kopia, and in restores.

Each file has an extended attribute, which kopia does not keep: all of them need an entry.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from demo.programs import run

from bench.engine import Kopia, disk
from bench.results import Results, Times, figure
from bench.timing import Cost, in_turns, once, ratios

FILES = int(os.environ.get("KOPIATOMIC_BENCH_FILES", "1000000"))
_IN_A_DIRECTORY = 100
_ALONE = Path(__file__).with_name("record_alone.py")


def files(top: Path, count: int) -> None:
    """Fill a directory with small files that have an attribute each."""
    for number in range(count):
        if number % _IN_A_DIRECTORY == 0:
            (folder := top / f"d{number // 10000:03d}" / f"d{number // _IN_A_DIRECTORY:05d}").mkdir(parents=True)
        with (folder / f"f{number:07d}").open("wb") as file:
            file.write(b"%d" % number)
            os.setxattr(file.fileno(), "user.note", b"%d" % number)


class Contest:
    """Runs and restores of one tree."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self._tree, self._folder = tree, folder
        self._kopias = {name: Kopia(folder / name) for name in ("with", "without")}

    def renew(self) -> None:
        """New repositories."""
        for kopia in self._kopias.values():
            shutil.rmtree(kopia.folder, ignore_errors=True)
            kopia.make()

    def alone(self, tree: Path | str) -> Cost:
        """Make the record and nothing else."""
        record = self._folder / "record"
        record.mkdir()
        try:
            cost = once([sys.executable, _ALONE, tree, record], output=self._folder / "memory")
            return replace(cost, memory=int((self._folder / "memory").read_text()))
        finally:
            shutil.rmtree(record)

    def saved(self, name: str) -> float:
        """A whole run."""
        argv: list[str | Path] = [sys.executable, "-m", "kopiatomic", "--quiet"]
        argv += ["--mount-root", self._folder / "view", "--no-maintenance", self._tree]
        argv += ["--no-metadata"] if name == "without" else []
        return once(argv, env=self._kopias[name].environment).seconds

    def restored(self, name: str) -> float:
        """A whole restore, by kopiatomic or of the same by kopia alone."""
        target = self._tree.parent / "back"
        environment = self._kopias["with"].environment
        inside = f"{self._identity()}{self._tree}"
        argv: list[str | Path] = ["kopia", "snapshot", "restore", inside, target]
        if name == "kopiatomic":
            argv = [sys.executable, "-m", "kopiatomic", "restore", "latest", self._tree, "--to", target]
        try:
            return once(argv, env=environment).seconds
        finally:
            shutil.rmtree(target)

    def _identity(self) -> str:
        listed = self._folder / "listed"
        argv = ["kopia", "snapshot", "list", "--all", "--json", "--max-results=1"]
        once(argv, output=listed, env=self._kopias["with"].environment)
        found = listed.read_text().partition('"id":"')[2]
        return found.partition('"')[0]


def measure(rounds: int, folder: Path, results: Results) -> None:
    with disk(folder) as live:
        tree = live / "tree"
        run(["btrfs", "subvolume", "create", str(tree)])
        files(tree, FILES)
        contest = Contest(tree, folder)
        what = f"{FILES:,} files, each with an entry"
        base = [contest.alone("-") for _ in range(rounds + 1)][1:]
        whole = [contest.alone(tree) for _ in range(rounds + 1)][1:]
        per_million = [(one.cpu - zero.cpu) * 1e6 / FILES for one, zero in zip(whole, base, strict=True)]
        memory = [(one.memory - zero.memory) / 1e6 for one, zero in zip(whole, base, strict=True)]
        results.figures += [
            figure(f"the record of {what}: processor time per million", per_million, "<=20", unit="s"),
            figure(f"the record of {what}: memory", memory, "<=100", unit="MB", note="above Python and the modules"),
        ]
        sides = {"with": lambda: contest.saved("with"), "without": lambda: contest.saved("without")}
        contest.renew()
        for name in ("first run", "cached run"):
            before = contest.renew if name == "first run" else lambda: None
            times = in_turns(sides, rounds, f"{what}, {name}", before=before)
            results.times += [Times(f"{what}, {name} {side} the record", 1, taken) for side, taken in times.items()]
            results.figures.append(
                figure(f"{what}, {name}: with the record / without", ratios(times["with"], times["without"]))
            )
        both = {name: (lambda name=name: contest.restored(name)) for name in ("kopiatomic", "kopia")}
        times = in_turns(both, rounds, f"{what}, restore")
        results.times += [Times(f"{what}, restore by {name}", 1, taken) for name, taken in times.items()]
        results.figures.append(figure(f"{what}, restore: kopiatomic / kopia", ratios(*times.values())))
