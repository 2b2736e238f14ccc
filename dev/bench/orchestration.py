"""What it costs to freeze, mount and clear up many datasets, beside a shell loop and beside the kernel's calls alone."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.many import Many
from bench.results import Results, Times, figure
from bench.timing import in_turns, once, ratios

HERE = Path(__file__).parent
SAMPLE = 30
"""How many datasets the loop is timed on, where all would take minutes."""

_TELL_MODULES = """
import os, sys
file, main_process, sys.argv = sys.argv[1], os.getpid(), sys.argv[1:]
from kopiatomic.cli.entry import main
try:
    sys.exit(main())
finally:
    if os.getpid() == main_process:
        with open(file, "w") as out:
            out.write(chr(10).join(name for name in sys.modules if name != "__main__"))
"""

_IMPORT_MODULES = """
import gc, importlib, sys
gc.disable()
with open(sys.argv[1]) as file:
    names = file.read().split(chr(10))
for name in names:
    importlib.import_module(name)
"""


@dataclass(frozen=True)
class Measured:
    """Seconds by contestant, round by round, for one number of datasets."""

    count: int
    whole: Mapping[str, list[float]]
    frozen: Mapping[str, list[float]]
    """How long the snapshot call took. On ZFS alone: on Btrfs there is one for each subvolume."""


class Orchestration:
    """The contestants on one filesystem. ``state`` lies on a disk, because fsync costs nothing in memory."""

    def __init__(self, many: Many, folder: Path, state: Path, results: Results, rounds: int) -> None:
        self._many = many
        self._folder = folder
        self._state = state
        self._results = results
        self._rounds = rounds
        self._random = random.Random(1)
        self._frozen: dict[str, list[float]] = {"bare": [], "kopiatomic": []}
        self._document = folder / "run.json"
        for name in ("bare", "loop"):
            (folder / name).mkdir()

    def environment(self) -> dict[str, str]:
        return {**os.environ, "KOPIATOMIC_STATE_DIR": str(self._state)}

    def words(self, heads: Sequence[str]) -> list[str]:
        """The arguments of a whole run with the engine ``true``."""
        return ["--quiet", "--json", "--mount-root", str(self._folder / "view"), "-c", "true", "-r", *heads]

    def command(self, heads: Sequence[str]) -> list[str]:
        """The command of such a run."""
        return [sys.executable, "-m", "kopiatomic", *self.words(heads)]

    def _kopiatomic(self, heads: Sequence[str]) -> float:
        cost = once(self.command(heads), output=self._document, env=self.environment())
        document = json.loads(self._document.read_text())
        if self._many.filesystem == "zfs":
            (made,) = document["sets"]
            assert made["one_instant"]
            self._frozen["kopiatomic"].append(made["monotonic_after"] - made["monotonic_before"])
        return cost.seconds

    def _start(self, heads: Sequence[str]) -> Callable[[], float]:
        """Python's own start and the import of every module that such a run loads, as a process that does nothing else."""
        modules = self._folder / "modules"
        once([sys.executable, "-c", _TELL_MODULES, modules, *self.words(heads)], env=self.environment())
        return lambda: once([sys.executable, "-c", _IMPORT_MODULES, modules], env=self.environment()).seconds

    def _listed(self, names: Sequence[str]) -> Path:
        file = self._folder / "names"
        file.write_text("\n".join(names))
        return file

    def _bare(self, names: Sequence[str]) -> float:
        program = HERE / f"bare_{self._many.filesystem}.py"
        folder, said = self._folder / "bare", self._folder / "said"
        first: list[str | Path] = [self._many.device] if self._many.filesystem == "btrfs" else []
        argv = [sys.executable, program, *first, self._listed(names), folder, secrets.token_hex(8)]
        cost = once(argv, output=said)
        if not first:
            self._frozen["bare"].append(float(said.read_text()))
        return cost.seconds

    def _loop(self, names: Sequence[str]) -> float:
        folder = self._folder / "loop"
        if self._many.filesystem == "btrfs":
            folder = self._many.top / ".loop"
            (folder / "snapshots").mkdir(parents=True)
        try:
            return once([HERE / "loop", self._many.filesystem, self._listed(names), folder]).seconds
        finally:
            shutil.rmtree(folder / "view")
            if self._many.filesystem == "btrfs":
                (folder / "snapshots").rmdir()
                folder.rmdir()

    def measure(self, count: int, sample: int) -> Measured:
        """Time all for so many datasets, the loop for a ``sample`` of them, scaled; adds to the results."""
        heads, names = self._many.first(count)
        self._frozen = {"bare": [], "kopiatomic": []}

        def loop() -> float:
            chosen = names if sample >= count else self._random.sample(names, sample)
            return self._loop(chosen) * count / len(chosen)

        contestants: dict[str, Callable[[], float]] = {
            "loop": loop,
            "bare": lambda: self._bare(names),
            "kopiatomic": lambda: self._kopiatomic(heads),
            "start": self._start(heads),
        }
        times = in_turns(contestants, self._rounds, f"{self._many.filesystem}, {count} datasets")
        scaled = "" if sample >= count else f"{sample} at random, scaled"
        for name, seconds in times.items():
            self._results.times.append(Times(name, count, seconds, scaled if name == "loop" else ""))
        # Without that of the round that fills the caches.
        return Measured(count, times, {name: seconds[1:] for name, seconds in self._frozen.items()})

    def profile(self, count: int) -> None:
        """Add what a run of a profile takes more than a run of the same words."""
        heads, _ = self._many.first(count)
        profiles = self._state / "profiles"
        profiles.mkdir(mode=0o700)
        (profiles / "many.toml").write_text(
            f"[select]\ndatasets = {json.dumps(list(map(str, heads)))}\nrecursive = true\n"
            f'[view]\nmount_root = "{self._folder}/view"\n[engine]\ncommand = ["true"]\n'
        )
        words = ["run", "--config-dir", str(profiles), "--quiet", "--json", "many"]

        def run() -> float:
            argv = [sys.executable, "-m", "kopiatomic", *words]
            cost = once(argv, output=self._document, env=self.environment())
            assert json.loads(self._document.read_text())["exit_code"] == 0
            return cost.seconds

        contestants: dict[str, Callable[[], float]] = {"words": lambda: self._kopiatomic(heads), "profile": run}
        times = in_turns(contestants, 3 * self._rounds, f"{self._many.filesystem}, {count} datasets, from a profile")
        for name, seconds in times.items():
            self._results.times.append(Times(f"run of {name}", count, seconds))
        more = [1000 * (long - short) for long, short in zip(times["profile"], times["words"], strict=True)]
        self._results.figures.append(
            figure(f"{self._many.filesystem}, {count} datasets: profile - words", more, "<=40", unit="ms")
        )

    def whole_loop_once(self, count: int) -> None:
        """Time the loop over all, once."""
        seconds = self._loop(self._many.first(count)[1])
        self._results.times.append(Times("loop", count, [seconds], "all of them, once"))

    def freeze(self, measured: Measured) -> None:
        """Add the length of the snapshot call."""
        for name, seconds in measured.frozen.items():
            self._results.times.append(Times(f"{name}'s snapshot call", measured.count, seconds))
        over = ratios(measured.frozen["kopiatomic"], measured.frozen["bare"])
        self._results.figures.append(
            figure(f"the freeze of {measured.count} datasets: kopiatomic / bare", over, "<=1.1")
        )

    def compare(self, measured: Measured, *, loop: str = "", above: str = "", bare: str = "") -> None:
        """Add the ratios, with the goals for them; ``above`` is that for what a run takes above Python's start and imports."""
        what = f"{self._many.filesystem}, {measured.count} datasets"
        ours = measured.whole["kopiatomic"]
        without = [whole - start for whole, start in zip(ours, measured.whole["start"], strict=True)]
        theirs = measured.whole["loop"]
        self._results.figures.append(figure(f"{what}: loop / kopiatomic", ratios(theirs, ours), loop))
        self._results.figures.append(
            figure(f"{what}: loop / kopiatomic above start and imports", ratios(theirs, without), above)
        )
        self._results.figures.append(figure(f"{what}: kopiatomic / bare", ratios(ours, measured.whole["bare"]), bare))


def growth(measured: Sequence[Measured], who: str, results: Results) -> None:
    """Whether a dataset more costs the same where there are many: (T1000-T300)/700 over (T300-T100)/200."""
    taken = {one.count: one.whole for one in measured}
    few, more, most = sorted(taken)[-3:]
    values = [
        ((c - b) / (most - more)) / ((b - a) / (more - few))
        for a, b, c in zip(taken[few][who], taken[more][who], taken[most][who], strict=True)
    ]
    # The rounds' own values scatter more than their medians do.
    a, b, c = (median(taken[count][who]) for count in (few, more, most))
    value = ((c - b) / (most - more)) / ((b - a) / (more - few))
    note = f"round by round {min(values):.2f} to {max(values):.2f}"
    results.figures.append(figure(f"growth of {who}, {few} to {most} datasets", [value], "<=1.1", note=note))
