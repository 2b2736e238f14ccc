"""Keeps an engine that restores from writing anywhere but where it must: what it reads may be made to mislead it.

Root alone needs that and can have it: everybody else's engine can write only where that user can.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from kopiatomic.errors import KopiatomicError
from kopiatomic.system import confined


def refusal() -> str | None:
    """Return why root's engine can write everywhere while it restores, in words; None if it cannot."""
    return confined.refusal() if os.geteuid() == 0 else None


@contextmanager
def only(engine: str, paths: Iterable[str]) -> Iterator[Callable[[], None] | None]:
    """Yield what a program does first so that it can write only below some absolute paths; None where that is not possible.

    Raises KopiatomicError if it fails although it should be possible.
    """
    if os.geteuid() != 0 or confined.refusal() is not None:
        yield None
        return
    try:
        yield confined.only(paths)
    except subprocess.SubprocessError:
        raise KopiatomicError(
            f"{engine} could not be kept from writing outside of the target, and was not started",
            kind="not-confined",
            hint="Are there too many mounts (fs.mount-max), or too little memory? The same command goes on later.",
        ) from None
