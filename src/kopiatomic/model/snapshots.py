"""Snapshots that were made, and their instants."""

from __future__ import annotations

from kopiatomic.immutable import immutable
from kopiatomic.model.plan import Refusal


@immutable
class Snapshot:
    """One snapshot of a set. ``source`` is what is mounted: ``pool/ds@snap``, or the Btrfs subvolume's id."""

    dataset: str
    source: str
    transaction: int
    """ZFS: ``createtxg``. Btrfs: ``otransid``."""
    identity: str = ""
    """The identity of the snapshot, whatever its name. ZFS: ``guid``. Btrfs: the subvolume's UUID."""
    size: int | None = None
    """The exact size of a volume in bytes."""
    before: str = ""
    """The state that the dataset has provably been in since: the ``after`` of an earlier snapshot. Empty: unknown."""
    after: str = ""
    """The state that this snapshot holds, unique to it. Empty: it cannot be determined."""


@immutable
class Instant:
    """The clocks right before and right after the snapshot call: the instant is between the two. Nanoseconds."""

    wall_before: int
    wall_after: int
    monotonic_before: int
    monotonic_after: int


@immutable
class SnapshotSet:
    """The snapshots of one pool or one Btrfs filesystem, with what proves or disproves that they share one instant."""

    kind: str
    pool: str
    snapshots: tuple[Snapshot, ...]
    instant: Instant
    untied_ns: int | None = None
    """From right before the snapshot call until the kernel had tied the set to the run's processes; None if nothing in it
    can be tied. Nanoseconds, monotonic."""

    @property
    def one_instant(self) -> bool:
        """Whether the transactions are equal, the proof: a TXG (ZFS) or a commit (Btrfs) is one state of the whole filesystem."""
        return len({snapshot.transaction for snapshot in self.snapshots}) == 1


@immutable
class Sets:
    """All the sets of a run, and what the plan has that is in none of them."""

    sets: tuple[SnapshotSet, ...]
    refused: tuple[Refusal, ...] = ()

    @property
    def atomic(self) -> bool:
        """Whether everything in the view shares one proven instant."""
        return len(self.sets) == 1 and self.sets[0].one_instant

    @property
    def started_ns(self) -> int:
        """The wall clock (ns since the epoch) right before the first snapshot call: the instant that is printed and used."""
        return min(s.instant.wall_before for s in self.sets)

    @property
    def skew_ns(self) -> int:
        """The upper bound of the time between any two snapshots (ns, monotonic); 0 if one instant is proven."""
        if self.atomic:
            return 0
        first = min(s.instant.monotonic_before for s in self.sets)
        return max(s.instant.monotonic_after for s in self.sets) - first
