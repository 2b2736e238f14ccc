"""The program whose files are backed up, and the judge of a copy of them.

It writes 1 to the first file, then to the second, and so on to the last; then 2 to the first, and so on for ever. So at
any one instant no file holds more than one before it, and the first holds at most one more than the last.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

DIGITS = 20


def names(folders: Sequence[Path], count: int) -> list[Path]:
    """The files in the order of writing: each folder holds its share of them."""
    share = count // len(folders)
    return [folders[number // share] / f"file{number:03d}" for number in range(share * len(folders))]


def read(path: Path) -> int:
    with path.open("rb") as file:
        return int(file.read(DIGITS))


@dataclass(frozen=True)
class Copy:
    """The counters in a copy of the files, in the order of writing."""

    counters: tuple[int, ...]

    @property
    def lowest(self) -> int:
        return min(self.counters)

    @property
    def highest(self) -> int:
        return max(self.counters)

    @property
    def whole(self) -> bool:
        """Whether all the files can have been like this at one instant."""
        ordered = all(earlier >= later for earlier, later in pairwise(self.counters))
        return ordered and self.highest - self.lowest <= 1


def read_copy(folder: Path, count: int) -> Copy:
    """Read what was restored to a folder. Raises ValueError if not all files are there."""
    found = sorted(folder.rglob("file[0-9]*"), key=lambda path: path.name)
    if len(found) != count:
        raise ValueError(f"{len(found)} of {count} files were restored to {folder}")
    return Copy(tuple(read(path) for path in found))


def write_for_ever(files: Sequence[Path], size: int, *, synced: bool) -> None:
    """Write until standard input is closed, as it is when the demonstration ends in whatever way.

    `size` is that of each file in bytes: random, so that kopia can neither compress it nor find it twice. Files that are
    `synced` are on disk before the next is written.
    """
    flags = os.O_RDWR | os.O_CREAT | (os.O_DSYNC if synced else 0)
    descriptors = [os.open(path, flags, 0o644) for path in files]
    for descriptor in descriptors:
        os.pwrite(descriptor, b"%0*d\n" % (DIGITS, 0) + os.urandom(size), 0)
    os.sync()
    print("ready", flush=True)
    number = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        number += 1
        counter = b"%0*d\n" % (DIGITS, number)
        for descriptor in descriptors:
            os.pwrite(descriptor, counter, 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--synced", action="store_true")
    parser.add_argument("folders", type=Path, nargs="+")
    options = parser.parse_args()
    write_for_ever(names(options.folders, options.count), options.size, synced=options.synced)


if __name__ == "__main__":
    main()
