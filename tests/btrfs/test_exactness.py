"""What plain engines lose of a tree with every kind of entry, cell by cell: docs/restore.md says of each what kopiatomic does.

That all of it comes back with kopiatomic is in test_restore.py. With -s it shows the table.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.exact_tree import BTRFS, KEPT, NONE, furnish
from tests.support.filesystems import Btrfs
from tests.support.plain import compared, with_borg, with_kopia, with_restic
from tests.support.programs import SOURCE, Kopia
from tests.support.repositories import Borg, Restic

DOCUMENT = SOURCE.parent / "docs/restore.md"
ROWS = {
    "owners, modes, contents, times of files": (*("owners", "modes", "contents of files", "links", "times of files"),),
    "extended attributes, access control lists, capabilities": (
        *("extended attributes", "access control lists", "capabilities"),
    ),
    "extended attributes of links": ("extended attributes of links",),
    "FIFOs, devices": ("FIFOs, devices",),
    "sockets": ("sockets",),
    "hard links of files": ("hard links of files",),
    "hard links of FIFOs and devices": ("hard links of FIFOs and devices",),
    "hard links of symbolic links": ("hard links of links",),
    "times of directories, times of links to the nanosecond": (
        *("times of directories", "times of links to the nanosecond"),
    ),
    "modification times before 1970, after 2038": (
        *("modification times before 1970", "modification times after 2038"),
    ),
    "names that are no text (UTF-8)": ("names that are no text",),
    "flags (chattr), project ids": ("flags i, a, d, c", "other flags", "project ids"),
    "holes in files": ("holes in files",),
}
"""The rows of the document, and what of them is looked at."""


@pytest.fixture
def source(btrfs: Btrfs) -> Iterator[Path]:
    path = btrfs.subvolume("home")
    furnish(path, BTRFS)
    yield path
    subprocess.run(["chattr", "-R", "-f", "-i", "-a", btrfs.mountpoint], check=False)


def documented() -> dict[str, list[str]]:
    """The table of the document: what it says of each engine, by row."""
    lines = DOCUMENT.read_text().partition("| | kopia | restic | Borg |\n")[2].partition("\n\n")[0].splitlines()[1:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: cells for name, *cells in rows}


def test_what_plain_engines_lose_is_what_the_document_says(
    btrfs: Btrfs, source: Path, kopia: Kopia, restic: Restic, borg: Borg
) -> None:
    ways = {
        "kopia": partial(with_kopia, kopia),
        "restic": partial(with_restic, restic),
        "borg": partial(with_borg, borg),
    }
    columns = compared(source, btrfs.mountpoint, ways)
    table = documented()
    assert list(table) == list(ROWS)
    for row, said in table.items():
        for cell, (engine, column) in zip(said, columns.items(), strict=True):
            found = {column[one] for one in ROWS[row]} - {NONE}
            assert found, row
            # Of the flags Borg keeps some, with which nothing could be moved.
            assert (cell == "kept") is (found == {KEPT}), (row, engine, cell, found)
