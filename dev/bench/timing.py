"""Times of whole processes, from their start to their end, taken in turns."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What a process took: seconds from its start to its end and of processors, and the peak of its memory in bytes."""

    seconds: float
    memory: int
    cpu: float
    """Its children's too."""


def once(argv: Sequence[str | Path], *, output: Path | None = None, env: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end; its standard output goes to a file. Ends the program where it fails."""
    with open(output or os.devnull, "wb") as taken:
        began = time.perf_counter()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=taken, env=None if env is None else dict(env))
        _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, argv))[:500]} failed ({process.returncode})")
    return Cost(took, usage.ru_maxrss << 10, usage.ru_utime + usage.ru_stime)


def in_turns(
    contestants: Mapping[str, Callable[[], float]], rounds: int, what: str, before: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Time each as often as there are rounds, each round in the other order; one round before them fills the caches.

    ``before`` is called before each round.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        before()
        order = list(contestants) if number % 2 else list(contestants)[::-1]
        took = {name: contestants[name]() for name in order}
        told = ", ".join(f"{name} {took[name]:.2f} s" for name in contestants)
        print(f"{what}: {'warm-up' if number == 0 else f'round {number}'}: {told}", file=sys.stderr, flush=True)
        if number:
            for name, seconds in took.items():
                times[name].append(seconds)
    return times


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(over, under, strict=True)]
