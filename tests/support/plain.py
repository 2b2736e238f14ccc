"""Plain engines: a directory saved and restored with each engine's own commands, as somebody does it without kopiatomic."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support.exact_tree import Entry, cells, listed, table
from tests.support.programs import Kopia
from tests.support.repositories import Borg, Restic


def with_kopia(kopia: Kopia, source: Path, target: Path) -> Path:
    """Save a directory, and restore it; return where it is."""
    made = json.loads(kopia("snapshot", "create", source, "--json").stdout)
    kopia("snapshot", "restore", made["id"], target)
    return target


def with_restic(restic: Restic, source: Path, target: Path) -> Path:
    """Save a directory, and restore it; return where it is."""
    restic("backup", source)
    restic("restore", "latest", "--target", target)
    return Path(f"{target}{source}")


def with_borg(borg: Borg, source: Path, target: Path) -> Path:
    """Save a directory, and restore it; return where it is."""
    target.mkdir()
    borg("create", "::archive", source)
    borg("extract", "::archive", cwd=target)
    return Path(f"{target}{source}")


def compared(source: Path, folder: Path, ways: Mapping[str, Callable[[Path, Path], Path]]) -> dict[str, dict[str, str]]:
    """Save and restore a directory in each way, below a folder; return what each kept (:func:`cells`), and print it."""
    before: dict[str, Entry] = listed(source)
    columns = {name: cells(before, listed(way(source, folder / name))) for name, way in ways.items()}
    print(table(columns))
    return columns
