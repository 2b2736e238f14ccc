"""Times whole runs of two versions of kopiatomic, side by side, on this machine. Started by dev/measure.

The versions take turns, so that whatever else the machine does meets both. The engine is ``true``: what is timed is kopiatomic,
from the start of its process to the end. The state directory is on a real filesystem, because fsync costs nothing in memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from demo import ground
from demo.programs import run

SIZES = [2, 100]
ON_DISK = "/var/tmp"


@dataclass(frozen=True)
class Version:
    """A source tree, and what its runs took (seconds)."""

    name: str
    tree: Path
    times: list[float]

    def once(self, datasets: Sequence[str], folder: Path, state: Path) -> float:
        """A whole run; how long it took. Ends the program where it fails."""
        argv = [sys.executable, "-m", "kopiatomic", "--quiet", "--mount-root", str(folder / "view"), "-c", "true"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.tree / "src"),
            "KOPIATOMIC_STATE_DIR": str(state / self.name),
        }
        began = time.perf_counter()
        ended = subprocess.run([*argv, *datasets], env=environment, capture_output=True, text=True, check=False)
        took = time.perf_counter() - began
        if ended.returncode != 0:
            raise SystemExit(f"{self.name} failed ({ended.returncode}):\n{ended.stderr}")
        return took


@contextmanager
def many_datasets(filesystem: str, folder: Path, count: int) -> Iterator[list[str]]:
    """So many datasets on a throwaway filesystem in memory."""
    with ExitStack() as stack:
        made = []
        if filesystem == "zfs":
            below = stack.enter_context(ground.zfs(folder)).datasets[0]
            for number in range(count):
                run(["zfs", "create", name := f"{below}/d{number}"])
                made.append(name)
        else:
            below = str(stack.enter_context(ground.btrfs(folder)).top)
            for number in range(count):
                run(["btrfs", "subvolume", "create", name := f"{below}/d{number}"])
                made.append(name)
        yield made


def measure(versions: Sequence[Version], datasets: Sequence[str], rounds: int, folder: Path, state: Path) -> None:
    """Time each version as often as there are rounds; one more before them fills the caches."""
    for count in range(rounds + 1):
        for version in versions if count % 2 else reversed(versions):
            took = version.once(datasets, folder, state)
            if count:
                version.times.append(took)


def line(filesystem: str, size: int, versions: Sequence[Version]) -> str:
    before, after = (statistics.median(version.times) for version in versions)
    spans = ", ".join(f"{v.name} {min(v.times):.3f} to {max(v.times):.3f}" for v in versions)
    return f"{filesystem:5} {size:4} datasets: before {before:.3f} s, after {after:.3f} s, ratio {after / before:.2f}  ({spans})"


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
        with many_datasets(options.filesystem, folder, max(sizes)) as datasets:
            for size in sizes:
                versions = [Version(tree.name, tree, []) for tree in trees]
                measure(versions, datasets[:size], options.rounds, folder, Path(state))
                print(line(options.filesystem, size, versions), flush=True)


if __name__ == "__main__":
    main()
