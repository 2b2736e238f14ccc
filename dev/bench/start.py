"""How long the program takes to say what it is, beside Python itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from bench.results import Results, Times, figure
from bench.timing import in_turns, once, ratios

_PYZ = Path(__file__).resolve().parents[2] / "dist/kopiatomic.pyz"

_COMMANDS = {
    "python3 -c pass": ["-c", "pass"],
    "kopiatomic -h": ["-m", "kopiatomic", "-h"],
    "kopiatomic --version": ["-m", "kopiatomic", "--version"],
    "kopiatomic.pyz -h": [str(_PYZ), "-h"],
    "import of what a run needs": ["-c", "import kopiatomic.cli.entry, kopiatomic.commands.backup"],
}


def measure(rounds: int, results: Results) -> None:
    """Native."""

    def timed(words: list[str]) -> Callable[[], float]:
        return lambda: once([sys.executable, *words]).seconds

    times = in_turns({name: timed(words) for name, words in _COMMANDS.items()}, rounds, "start")
    for name, seconds in times.items():
        results.times.append(Times(name, 0, seconds))
    python, help_ = times["python3 -c pass"], times["kopiatomic -h"]
    results.figures.append(figure("kopiatomic -h", [1000 * s for s in help_], "<=150", unit="ms"))
    one_file = [1000 * s for s in times["kopiatomic.pyz -h"]]
    results.figures.append(figure("kopiatomic.pyz -h", one_file, "<=250", unit="ms"))
    results.figures.append(figure("kopiatomic -h / python3 -c pass", ratios(help_, python), "<=4"))
