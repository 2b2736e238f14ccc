"""What a run is about to make, and what runs left behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from kopiatomic.immutable import immutable


@immutable
class Intent:
    """Something that a run is about to make, or has made.

    ``kind`` is "zfs", "btrfs", "mount" (FreeBSD), "directory" or "cgroup" (frozen). ``place`` is the pool, the UUID of the Btrfs
    filesystem, the type of the mount, where control groups are mounted, or empty; ``name`` the snapshot's name, its path below
    the top-level subvolume, the mount point, the directory, or the control group's path. ``origin`` is the source of a Btrfs
    snapshot (that subvolume's UUID), what is mounted, or the boot during which a directory was made or a control group was
    frozen. ``identity`` is the snapshot's guid (ZFS) or UUID (Btrfs), None until it is made, or the inode of a control group, and
    ``transaction`` the snapshot's createtxg or otransid.

    A "hook" is not made but owed (``runs/owed.py``): ``place`` is the profile, ``origin`` says what is to be run, and
    ``identity`` that it was started.
    """

    kind: str
    place: str
    name: str
    origin: str = ""
    identity: str | None = None
    transaction: int | None = None
    between: tuple[int, int] | None = None
    """ZFS: the first and the last transaction group that it can belong to; None where the kernel does not report them."""


class Claim(StrEnum):
    """How sure it is that a thing with a run's name may be removed."""

    PROVEN = "proven"
    """Proven by the record, or by a mark that only root can make: it is removed."""
    UNRECORDED = "unrecorded"
    """Proven only by a property, which others can be allowed to set: it is removed only with ``--unrecorded``."""
    UNJUDGED = "unjudged"
    """Its run may be alive where our locks do not show it: it is removed only with ``--assume-dead``."""
    RECEIVED = "received"
    """Another host's run made it, or it came with a stream: it is counted, and removed only with ``--received``."""


@immutable
class Leftover:
    """Something that a dead run left. ``kind`` is "zfs-snapshot", "btrfs-snapshot", "mount", "directory", "cgroup" or "hook".

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
    """Why it was not, or could not be, removed."""
    origin: str = ""
    claim: Claim = Claim.PROVEN
    identity: str = ""
    """ZFS: the snapshot's guid, so that another snapshot of the same name is not mistaken for it. Hook: that it was started."""
    is_over: bool = False
    """Whether nothing more is to be done about it, in spite of the problem."""


@dataclass(slots=True)
class Cleared:
    """What was found of dead runs. ``leftovers`` with a problem still exist; those without one are gone (or would be)."""

    leftovers: list[Leftover] = field(default_factory=list)
    alive: list[str] = field(default_factory=list)
    interrupted: list[str] = field(default_factory=list)
    """The runs that had no recorded end until now and whose processes were killed."""
    unended: list[str] = field(default_factory=list)
    """The runs without a recorded end of which it is unknown whether their processes were killed."""
    unjudged: list[str] = field(default_factory=list)
    """The recorded runs that cannot be judged from here."""
    received: int = 0
    """How many snapshots were made by another host's runs, or came with a stream: none of them ours."""
    problems: list[str] = field(default_factory=list)
    """What could not be examined, in words."""

    @property
    def left(self) -> int:
        """How many things remain or may remain."""
        return sum(1 for leftover in self.leftovers if leftover.problem) + len(self.problems) + len(self.unjudged)

    @property
    def to_do(self) -> int:
        """How many things a dry run would remove, or would leave."""
        return len(self.leftovers) + len(self.problems) + len(self.unjudged)
