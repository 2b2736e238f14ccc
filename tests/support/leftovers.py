"""The promise that every test of a run ends with: nothing is left behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.filesystems import Filesystem
from tests.support.programs import SLOWNESS, Kopiatomic

STANDING = frozenset({"id", "restoring"})
"""What stands in the folder of locks and is no run's: the machine's id, and where datasets are mounted that are restored to."""


def processes(mark: str) -> list[str]:
    """The living processes that a test's kopiatomic has started, known by their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"KOPIATOMIC_TEST_MARK={mark}".encode() in (folder / "environ").read_bytes()
            if marked:
                found.append(f"{folder.name} {(folder / 'comm').read_text().strip()}")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            # It has ended, or is one that even root may not look into, such as the first in some containers.
            continue
    return found


def mounts(root: Path) -> list[str]:
    """Lines of the mount tables that show a view, or a snapshot of ours."""
    found = set()
    for table in (Path("/proc/1/mountinfo"), Path("/proc/self/mountinfo")):
        for line in table.read_text(errors="surrogateescape").splitlines():
            subtree, point = line.split(" ")[3:5]
            source = line.partition(" - ")[2].split(" ")[1]
            if Path(point).is_relative_to(root) or "@kopiatomic_" in source or "/kopiatomic_" in subtree:
                found.add(line)
    return sorted(found)


@pytest.fixture
def leftovers(filesystems: list[Filesystem], kopiatomic: Kopiatomic) -> Callable[..., list[str]]:
    """List what is left behind: `assert leftovers() == []`.

    What is just ending has `within` seconds for it.
    """

    def look(root: Path) -> list[str]:
        found = [f"process {line}" for line in processes(kopiatomic.environment["KOPIATOMIC_TEST_MARK"])]
        found += [f"mount {line}" for line in mounts(root)]
        for filesystem in filesystems:
            found += [f"snapshot {name}" for name in filesystem.snapshots() if "kopiatomic_" in name]
        if root.exists():
            found.append(f"mount root {root}")
        return found

    def leftovers(root: Path = Path("/kopia"), within: float = 2) -> list[str]:
        deadline = time.monotonic() + within * SLOWNESS
        while (found := look(root)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    return leftovers
