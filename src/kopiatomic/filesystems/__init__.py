"""Snapshots: a :class:`Maker` a filesystem, with a line in :data:`MAKERS`, and what finds its :data:`LEFTOVERS`."""

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
        """Find out whether a set can be made at all: libraries, devices, permissions. Raises KopiatomicError."""

    def intents(self) -> list[Intent]:
        """What ``make`` will make, by exact name. Raises KopiatomicError."""

    def prepare(self) -> None:
        """Open what is to be snapshotted, and see that it is still there. Raises KopiatomicError."""

    def make(self) -> Instant | None:
        """Make all snapshots but of what is refused; None where that leaves nothing. Raises KopiatomicError."""

    def tie(self, cleanup_fd: int | None) -> None:
        """Have the kernel remove them when the last copy of the descriptor is closed. Raises KopiatomicError."""

    def untie(self) -> None:
        """Before that last close: wait here for what it would have to wait for. In any process that has no mount of them."""

    def read_back(self, instant: Instant) -> SnapshotSet:
        """The set as the filesystem shows it now: the transactions that are the proof, the states that tell what changed.

        Raises KopiatomicError.
        """

    def recall(self, sets: Sets) -> None:
        """Take over what identifies the snapshots, in another process than the one that read them back."""

    def remove(self) -> list[str]:
        """Make sure that no snapshot of the set is left, whether it was tied or not, made whole or in part.

        Another process than the one that made them may call it. Returns what is left, in words.
        """

    def needs_descriptor(self) -> bool:
        """Whether ``tie`` wants a descriptor, and so whether the kernel ties the set."""


class Leftovers(Protocol):
    """Finds and removes the snapshots that dead runs left. A module of functions."""

    KIND: str

    def recorded(self, run_id: str, intents: Sequence[Intent], /) -> list[Leftover]:
        """Those of a dead run's intents that exist and are ours, or may be. Raises KopiatomicError where that cannot be told."""

    def unrecorded(
        self, names: Iterable[str] | None, life: Callable[[Mark], Life], problems: list[str], /
    ) -> list[Leftover]:
        """Those in these pools or filesystems (None: in all) that bear the name of a run which is not known to be alive.

        ``problems`` gets what could not be looked at, in words. Raises KopiatomicError where nothing could.
        """

    def remove(self, leftovers: Sequence[Leftover], /) -> list[Leftover]:
        """Remove them; returns what is left, with the problem. May wait for the kernel. Raises KopiatomicError."""


LEFTOVERS: dict[str, Leftovers] = {"zfs": zfs_leftovers, "btrfs": btrfs_leftovers}


MAKERS: dict[str, Callable[[str, str, Sequence[Taken], str], Maker]] = {"zfs": ZfsMaker, "btrfs": BtrfsMaker}


def makers(plan: Plan, run_id: str) -> list[Maker]:
    """One maker for each pool and each Btrfs filesystem of the plan, ZFS first."""
    groups: dict[tuple[str, str], list[Taken]] = {}
    for taken in plan.taken:
        groups.setdefault((taken.dataset.filesystem, taken.dataset.pool), []).append(taken)
    order = sorted(groups, key=lambda key: (list(MAKERS).index(key[0]), key[1]))
    return [MAKERS[filesystem](run_id, pool, groups[filesystem, pool], plan.bookmark) for filesystem, pool in order]
