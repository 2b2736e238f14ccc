"""Times whole runs of two versions of kopiatomic, side by side, on this machine. Started by dev/measure.

The versions take turns, so that whatever else the machine does meets both. The engine is ``true``: what is timed is kopiatomic,
from the start of its process to the end. The state directory is on a real filesystem, because fsync costs nothing in memory.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from bench import many, timing
from demo import ground

SIZES = [2, 100]
ON_DISK = "/var/lib"
"""A real filesystem, below directories that root alone can change, as the state directory is."""


def once(tree: Path, datasets: Sequence[str], folder: Path, state: Path) -> float:
    """A whole run of a version; how long it took (seconds). Ends the program where it fails."""
    argv = [sys.executable, "-m", "kopiatomic", "--quiet", "--mount-root", str(folder / "view"), "-c", "true"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree / "src"),
        "KOPIATOMIC_STATE_DIR": str(state / tree.name),
    }
    return timing.once([*argv, *datasets], env=environment).seconds


def line(filesystem: str, size: int, times: Mapping[str, Sequence[float]]) -> str:
    before, after = map(statistics.median, times.values())
    least, most = interval([new / old for old, new in zip(*times.values(), strict=True)])
    spans = ", ".join(f"{name} {min(seconds):.3f} to {max(seconds):.3f}" for name, seconds in times.items())
    return f"{filesystem:5} {size:4} datasets: before {before:.3f} s, after {after:.3f} s, ratio {after / before:.2f}, of pairs {least:.3f} to {most:.3f}  ({spans})"


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median of these ratios, by their ranks alone (the sign test, turned round)."""
    ranked = sorted(ratios)
    out = max(0, math.floor(len(ranked) / 2 - 0.98 * math.sqrt(len(ranked))))
    return ranked[out], ranked[-1 - out]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("filesystem", choices=["zfs", "btrfs"])
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--datasets", type=int, action="append")
    parser.add_argument("trees", type=Path, nargs=2)
    options = parser.parse_args()
    with ground.scratch() as folder, tempfile.TemporaryDirectory(dir=ON_DISK) as state:
        trees = [shutil.copytree(tree, folder / tree.name) for tree in options.trees]
        sizes = options.datasets or SIZES
        make = many.zfs if options.filesystem == "zfs" else many.btrfs
        with make(folder, [1 + max(sizes)]) as made:
            # Side by side: not the one that the others lie in.
            _, *datasets = made.first(1 + max(sizes))[1]
            for size in sizes:
                versions = {tree.name: partial(once, tree, datasets[:size], folder, Path(state)) for tree in trees}
                times = timing.in_turns(versions, options.rounds, f"{options.filesystem}, {size} datasets")
                print(line(options.filesystem, size, times), flush=True)


if __name__ == "__main__":
    main()
