"""Holding a view root as a run does."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from kopiatomic.state import locks

_numbers = itertools.count()


@contextmanager
def view_root(root: str, holder: Mapping[str, object], wait: float | None = None) -> Iterator[locks.RunLocks]:
    """Be a run that has this root."""
    with locks.run(f"20261122T101112Z-{os.getpid() % 65536:04x}{next(_numbers) % 65536:04x}", "") as held:
        locks.take_root(held, root, holder, wait)
        yield held
