"""Many datasets on a throwaway filesystem in memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from demo import ground
from demo.programs import run

from kopiatomic.system import linux

_FILESYSTEM = 2
"""LZC_DATSET_TYPE_ZFS of libzfs_core.h."""


@dataclass
class Many:
    """Groups of datasets of these sizes, each in the first of its group; ``make`` makes one, and gives its name.

    They are made when they are asked for: who has two of them has no mount table of a thousand.
    """

    filesystem: str
    sizes: Sequence[int]
    make: Callable[[str], str]
    device: str = ""
    top: Path = Path("/")
    """Of Btrfs: where the filesystem is mounted."""
    _groups: list[list[str]] = field(default_factory=list)

    def first(self, count: int) -> tuple[list[str], list[str]]:
        """What to name with -r to have so many datasets, and all their names."""
        heads: list[str] = []
        names: list[str] = []
        for position, size in enumerate(self.sizes):
            if len(names) == count:
                break
            if position == len(self._groups):
                below = (f"group{position}/user{number:04d}" for number in range(1, size))
                self._groups.append([self.make(name) for name in (f"group{position}", *below)])
            heads.append(self._groups[position][0])
            names += self._groups[position]
        assert len(names) == count, f"{count} is no sum of groups"
        return heads, names


@contextmanager
def zfs(folder: Path, sizes: Sequence[int]) -> Iterator[Many]:
    """All of them mounted, with a file in each; made by calls, since a process for each would take an hour."""
    with ground.zfs(folder) as made:
        pool = made.datasets[0].partition("/")[0]
        library = ctypes.CDLL("libzfs_core.so.3", use_errno=True)
        library.libzfs_core_init()
        points: list[Path] = []

        def make(inside: str) -> str:
            name = f"{pool}/{inside}"
            error = library.lzc_create(os.fsencode(name), _FILESYSTEM, None, None, 0)
            if error:
                raise SystemExit(f"{name} could not be made: {os.strerror(error)}")
            point = folder / "points" / inside
            point.mkdir(parents=True, exist_ok=True)
            linux.mount(name, str(point), "zfs", 0)
            points.append(point)
            (point / "file").write_text(name)
            return name

        try:
            yield Many("zfs", sizes, make)
        finally:
            for point in reversed(points):
                # By zpool each of them would be a process.
                linux.detach(str(point))


@contextmanager
def btrfs(folder: Path, sizes: Sequence[int]) -> Iterator[Many]:
    """The same as subvolumes that are nested in the first of their group."""
    with ground.btrfs(folder) as made:
        top = made.top.parent
        device = run(["findmnt", "-no", "SOURCE", str(top)]).strip()

        def make(inside: str) -> str:
            run(["btrfs", "subvolume", "create", str(top / inside)])
            (top / inside / "file").write_text(inside)
            return str(top / inside)

        yield Many("btrfs", sizes, make, device, top)
