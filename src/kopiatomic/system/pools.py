"""What the kernel shows of ZFS pools without a command or an ioctl, which a suspended pool may hold up."""

from __future__ import annotations

from collections.abc import Iterable

from kopiatomic.system import host


def imported(pool: str) -> bool:
    """Whether a pool is imported."""
    return host.here().pool_state(pool) is not None


def answering() -> list[str] | None:
    """Return the imported pools that are not suspended. None on systems whose kernel does not show it in this way."""
    found = host.here().pools()
    if found is None:
        return None
    waiting = set(suspended(found))
    return [pool for pool in found if pool not in waiting]


def suspended(pools: Iterable[str]) -> list[str]:
    """Return those of the pools whose devices do not answer, so that calls into them wait."""
    return [pool for pool in pools if host.here().pool_state(pool) == "SUSPENDED"]
