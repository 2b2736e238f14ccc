"""How another process of the run notices the end of the main process while it waits for something else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from kopiatomic.errors import Interrupted
from kopiatomic.system import host, signals


@contextmanager
def ended_with(main: int) -> Iterator[None]:
    """In a detached child of the process ``main``: end the block when that process ends, and at SIGTERM.

    Every wait in the block that watches for signals raises Interrupted.
    """
    with signals.handled(even=[signal.SIGTERM]):
        host.here().end_with_parent(signal.SIGTERM)
        try:
            if os.getppid() != main:
                # It had ended before the kernel was asked to signal that.
                raise Interrupted(signal.SIGTERM)
            yield
        finally:
            host.here().end_with_parent(0)
