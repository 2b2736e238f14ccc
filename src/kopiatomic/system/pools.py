"""What the kernel says of ZFS pools without being asked through a command or an ioctl, which a suspended pool may hold up."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

_KSTAT = Path("/proc/spl/kstat/zfs")
"""A folder for each imported pool, with its state in a file (OpenZFS: module/zfs/spa_stats.c, spa_state_init)."""


def imported(pool: str) -> bool:
    """Whether a pool is imported."""
    return (_KSTAT / pool).is_dir()


def answering() -> list[str] | None:
    """The imported pools that are not suspended. None on systems whose kernel does not say it in this way."""
    if sys.platform != "linux":
        return None
    try:
        found = sorted(entry.parent.name for entry in _KSTAT.glob("*/state"))
    except OSError:
        return []
    waiting = set(suspended(found))
    return [pool for pool in found if pool not in waiting]


def suspended(pools: Iterable[str]) -> list[str]:
    """Those of the pools whose devices do not answer, so that calls into them wait."""
    found = []
    for pool in pools:
        try:
            if (_KSTAT / pool / "state").read_text().strip() == "SUSPENDED":
                found.append(pool)
        except OSError:
            # Not imported (any more).
            continue
    return found
