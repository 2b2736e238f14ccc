"""Many datasets on a throwaway filesystem in memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from demo import ground
from demo.programs import run

from kopiatomic.system import linux

_FILESYSTEM = 2
"""LZC_DATSET_TYPE_ZFS of libzfs_core.h."""


@dataclass(frozen=True)
class Many:
    """Groups of datasets: the names of each, the first of them is what the others lie in."""

    filesystem: str
    groups: tuple[tuple[str, ...], ...]
    device: str = ""
    top: Path = Path("/")
    """Of Btrfs: where the filesystem is mounted."""

    def first(self, count: int) -> tuple[list[str], list[str]]:
        """What to name with -r to have so many datasets, and all their names."""
        heads: list[str] = []
        names: list[str] = []
        for group in self.groups:
            if len(names) < count:
                heads.append(group[0])
                names += group
        assert len(names) == count, f"{count} is no sum of groups"
        return heads, names


@contextmanager
def zfs(folder: Path, groups: Sequence[int]) -> Iterator[Many]:
    """All of them mounted, with a file in each; made by calls, since a process for each would take an hour."""
    with ground.zfs(folder) as made:
        pool = made.datasets[0].partition("/")[0]
        library = ctypes.CDLL("libzfs_core.so.3", use_errno=True)
        library.libzfs_core_init()
        points = []
        named = []
        for position, size in enumerate(groups):
            head = f"{pool}/group{position}"
            names = [head, *(f"{head}/user{number:04d}" for number in range(1, size))]
            for name in names:
                error = library.lzc_create(os.fsencode(name), _FILESYSTEM, None, None, 0)
                if error:
                    raise SystemExit(f"{name} could not be made: {os.strerror(error)}")
                point = folder / "points" / name.partition("/")[2]
                point.mkdir(parents=True, exist_ok=True)
                linux.mount(name, str(point), "zfs", 0)
                (point / "file").write_text(name)
                points.append(point)
            named.append(tuple(names))
        try:
            yield Many("zfs", tuple(named))
        finally:
            for point in reversed(points):
                # By zpool each of them would be a process.
                linux.detach(str(point))


@contextmanager
def btrfs(folder: Path, groups: Sequence[int]) -> Iterator[Many]:
    """The same as subvolumes that are nested in the first of their group."""
    with ground.btrfs(folder) as made:
        top = made.top.parent
        named = []
        for position, size in enumerate(groups):
            head = top / f"group{position}"
            names = [head, *(head / f"user{number:04d}" for number in range(1, size))]
            for name in names:
                run(["btrfs", "subvolume", "create", str(name)])
                (name / "file").write_text(str(name))
            named.append(tuple(map(str, names)))
        device = run(["findmnt", "-no", "SOURCE", str(top)]).strip()
        yield Many("btrfs", tuple(named), device, top)
