"""Whether a run is alive, as far as its mark lets this process decide.

Only processes that see the same lock directory can see a lock. A container or a mount namespace with its own /run has another
one, although pools, Btrfs filesystems and perhaps the records are the same.
"""

from __future__ import annotations

from enum import Enum

from kopiatomic.state import locks, ownership
from kopiatomic.state.ownership import Mark
from kopiatomic.system import host


class Life(Enum):
    """What can be known of a run."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"
    """It began in this boot, with another lock directory: whether its lock is held cannot be seen from here."""


def mark(run_id: str) -> Mark:
    """Return the mark of a run that begins here and now. Raises KopiatomicError."""
    return Mark(run_id, ownership.host_id(), host.here().boot_id(), locks.identity())


def is_local(mark: Mark) -> bool:
    """Whether a run on this machine made it, perhaps in a container, and not one whose disk or stream arrived here."""
    return mark.host == ownership.host_id() or (mark.boot != "" and mark.boot == host.here().boot_id())


def life(mark: Mark) -> Life:
    """Whether the run of a mark is alive. Makes nothing. Raises KopiatomicError if that cannot be examined.

    No process outlives its boot; within a boot the lock decides. An older version's mark names neither boot nor lock directory:
    for such a run our own lock directory decides.
    """
    if locks.alive(mark.run_id):
        return Life.ALIVE
    boot = host.here().boot_id()
    if mark.boot and boot and mark.boot != boot:
        return Life.DEAD
    return Life.DEAD if mark.locks in {"", locks.present_identity()} else Life.UNKNOWN


def unknown_text(run_id: str) -> str:
    """Describe a run that cannot be judged."""
    return (
        f"run {run_id} began in this boot with another lock directory (in a container or mount namespace with a "
        f"{locks.DIRECTORY} of its own?), so that it cannot be told from here whether it is alive"
    )


def assume_hint(run_id: str) -> str:
    """Return what to do about it."""
    return f"run 'kopiatomic recover' where it ran; if it is dead: kopiatomic recover --assume-dead {run_id}"
