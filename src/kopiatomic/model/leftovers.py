"""What a run is about to make, and what it left behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from kopiatomic.immutable import immutable


@immutable
class Intent:
    """Something that a run is about to make, or has made.

    ``kind`` is "zfs", "btrfs", "mount" (FreeBSD) or "directory". ``place`` is the pool, the UUID of the Btrfs filesystem,
    the type of the mount, or empty; ``name`` the snapshot's name, its path below the top-level subvolume, the mount point,
    or the directory. ``origin`` is what a Btrfs snapshot is made of (that subvolume's UUID), what is mounted, or the
    boot that a directory is made in. ``identity`` is the snapshot's guid (ZFS) or UUID (Btrfs) and ``transaction`` its
    createtxg or otransid: None until it is made.
    """

    kind: str
    place: str
    name: str
    origin: str = ""
    identity: str | None = None
    transaction: int | None = None
    between: tuple[int, int] | None = None
    """ZFS: the first and the last transaction group that it can be of; None where the kernel does not tell."""


class Claim(StrEnum):
    """What stands for it that a thing with a run's name may be removed."""

    PROVEN = "proven"
    """The record, or a mark that only root can make: it goes."""
    UNRECORDED = "unrecorded"
    """Nothing but a property, which others can be allowed to set: it goes with ``--unrecorded`` only."""
    UNJUDGED = "unjudged"
    """Its run may be alive where our locks do not show it: it goes with ``--assume-dead`` only."""
    RECEIVED = "received"
    """Another host's run made it, or it came with a stream: it is counted, and goes with ``--received`` only."""


@immutable
class Leftover:
    """Something that a dead run left. ``kind`` is "zfs-snapshot", "btrfs-snapshot", "mount" or "directory".

    ``place``, ``name`` and ``origin`` as in :class:`Intent`; the origin of a ZFS snapshot that was renamed is its recorded
    name. ``proof`` says why it is ours, ``command`` is what a person would type to remove it.
    """

    run_id: str
    kind: str
    place: str
    name: str
    proof: str
    command: str
    problem: str | None = None
    """Why it is not, or could not be, removed."""
    origin: str = ""
    claim: Claim = Claim.PROVEN
    identity: str = ""
    """ZFS: the snapshot's guid, so that another one by its name is not taken for it."""


@dataclass(slots=True)
class Cleared:
    """What was found of dead runs. ``leftovers`` with a problem are left; without one they are gone (or would be)."""

    leftovers: list[Leftover] = field(default_factory=list)
    alive: list[str] = field(default_factory=list)
    interrupted: list[str] = field(default_factory=list)
    """The runs that had no recorded end until now, and whose processes were killed."""
    unended: list[str] = field(default_factory=list)
    """Those of which it is not known whether they were: their end was not recorded."""
    unjudged: list[str] = field(default_factory=list)
    """The recorded runs that cannot be judged from here."""
    received: int = 0
    """How many snapshots another host's runs made, or came with a stream: nothing of ours."""
    problems: list[str] = field(default_factory=list)
    """What could not be looked at, in words."""

    @property
    def left(self) -> int:
        """How many things are left or may be."""
        return sum(1 for leftover in self.leftovers if leftover.problem) + len(self.problems) + len(self.unjudged)

    @property
    def to_do(self) -> int:
        """How many things a dry run would remove, or would leave."""
        return len(self.leftovers) + len(self.problems) + len(self.unjudged)
