"""What came of comparing a backup with the frozen instant that it is of, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from kopiatomic.immutable import immutable

DIFFERS = "differs"
"""The kind of the error where a backup is not what was frozen."""


@immutable
class Wanted:
    """How much of a backup is read back."""

    percent: float
    """Of the files, in each run; 100 for all of them."""
    limit: int
    """The most bytes that are read back in a run; more runs cover everything then."""

    @property
    def rounds(self) -> int:
        """How many runs cover every file, where the limit is never reached."""
        return max(1, -(-100_000_000 // round(self.percent * 1_000_000)))


@immutable
class Difference:
    """An entry that is not in the backup as it was at the instant. ``what`` is a clause, as in ``PATH: WHAT``."""

    path: str
    what: str


@immutable
class Verified:
    """The outcome of one comparison."""

    entries: int
    """How many entries of the frozen trees were compared with the engine's list."""
    files: int
    """How many files were read back whole and are equal."""
    size: int
    """Of these, in bytes."""
    all_files: int
    """How many files could have been."""
    rounds: int
    """How many runs cover every file."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many entries the engine's list does not have, by the folder that they are in: left out by rules, or missing."""
    differences: tuple[Difference, ...] = ()
    """The first of them."""
    difference_count: int = 0
    changed_unseen: tuple[str, ...] = ()
    """The sources in which contents differ, so that the engine must read every file of them again."""

    @property
    def equal(self) -> bool:
        """Whether nothing differs. What is left out is no difference."""
        return not self.difference_count
