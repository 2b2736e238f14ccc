"""Snapshots: one :class:`Maker` per filesystem, with a line in :data:`MAKERS`, and what finds its :data:`LEFTOVERS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from kopiatomic.filesystems.btrfs import leftovers as btrfs_leftovers
from kopiatomic.filesystems.btrfs.snapshots import BtrfsMaker
from kopiatomic.filesystems.zfs import leftovers as zfs_leftovers
from kopiatomic.filesystems.zfs.snapshots import ZfsMaker
from kopiatomic.model.leftovers import Intent, Leftover
from kopiatomic.model.plan import Plan, Refusal, Taken
from kopiatomic.model.snapshots import Instant, Sets, SnapshotSet
from kopiatomic.state.liveness import Life
from kopiatomic.state.ownership import Mark


class Maker(Protocol):
    """Makes and removes the set of one pool or one filesystem.

    Order of the calls: ``check`` (in the main process, before everything, hooks included), ``intents`` (in the same process; they
    are recorded), ``prepare`` (in the keeper), ``make`` (only the snapshots, so that the instants of several sets are close
    together), ``tie`` (to the life of the run's processes, where the kernel offers that), ``read_back``; when none of its
    snapshots is mounted any more, ``untie``; and when the run's descriptor is closed, ``remove``.

    What cannot be taken is put into ``refused``, in the process that found it out, and the rest is made. What concerns the
    whole pool or filesystem is raised.
    """

    refused: list[Refusal]

    def check(self) -> None:
        """Check whether a set can be made at all: libraries, devices, permissions. Raises KopiatomicError."""

    def intents(self) -> list[Intent]:
        """Return what ``make`` will make, by exact name. Raises KopiatomicError."""

    def prepare(self) -> None:
        """Open what will be snapshotted, and check that it still exists. Raises KopiatomicError."""

    def make(self) -> Instant | None:
        """Make all snapshots except refused ones; return None if that leaves nothing. Raises KopiatomicError."""

    def tie(self, cleanup_fd: int | None) -> None:
        """Have the kernel remove the snapshots when the last copy of the descriptor is closed. Raises KopiatomicError."""

    def untie(self) -> None:
        """Wait, before that last close, for what it would wait for. Call this in any process that has none of them mounted."""

    def read_back(self, instant: Instant) -> SnapshotSet:
        """Return the set as the filesystem shows it now: the transactions that are the proof, the states that tell what changed.

        Raises KopiatomicError.
        """

    def recall(self, sets: Sets) -> None:
        """Take over what identifies the snapshots, in a process other than the one that read them back."""

    def remove(self) -> list[str]:
        """Make sure that no snapshot of the set is left, whether it was tied or not, made completely or in part.

        A process other than the one that made them may call this. Returns what is left, in words.
        """

    def needs_descriptor(self) -> bool:
        """Whether ``tie`` needs a descriptor, that is, whether the kernel ties the set."""


class Leftovers(Protocol):
    """Finds and removes the snapshots that dead runs left. Implemented by a module of functions."""

    KIND: str

    def recorded(self, run_id: str, intents: Sequence[Intent], /) -> list[Leftover]:
        """Return a dead run's intents that exist and are, or may be, ours. Raises KopiatomicError if that is uncertain."""

    def unrecorded(
        self, names: Iterable[str] | None, life: Callable[[Mark], Life], problems: list[str], /
    ) -> list[Leftover]:
        """Return snapshots in these pools or filesystems (None: all) that bear the name of a run which is not known to be alive.

        What could not be examined is added to ``problems``, in words. Raises KopiatomicError if nothing could be examined.
        """

    def remove(self, leftovers: Sequence[Leftover], /) -> list[Leftover]:
        """Remove them and return what is left, with the problem. May wait for the kernel. Raises KopiatomicError."""


LEFTOVERS: dict[str, Leftovers] = {"zfs": zfs_leftovers, "btrfs": btrfs_leftovers}


MAKERS: dict[str, Callable[[str, str, Sequence[Taken], str], Maker]] = {"zfs": ZfsMaker, "btrfs": BtrfsMaker}


def makers(plan: Plan, run_id: str) -> list[Maker]:
    """Return one maker for each pool and each Btrfs filesystem of the plan, ZFS first."""
    groups: dict[tuple[str, str], list[Taken]] = {}
    for taken in plan.taken:
        groups.setdefault((taken.dataset.filesystem, taken.dataset.pool), []).append(taken)
    order = sorted(groups, key=lambda key: (list(MAKERS).index(key[0]), key[1]))
    return [MAKERS[filesystem](run_id, pool, groups[filesystem, pool], plan.bookmark) for filesystem, pool in order]
