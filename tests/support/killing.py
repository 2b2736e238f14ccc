"""SIGKILL for several processes at one moment."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable
from contextlib import ExitStack, suppress


def kill_together(pids: Iterable[int]) -> None:
    """Kill processes so that none can answer another's end, and return when the kernel has closed all that they had open.

    Each is stopped first. The end of one may end another (PR_SET_PDEATHSIG), which is then gone before its signal comes; one may
    have just ended by itself.
    """
    pids = list(pids)
    with ExitStack() as stack:
        ended = []
        # FreeBSD has no descriptors of this kind in Python: there the caller waits.
        if hasattr(os, "pidfd_open"):
            for pid in pids:
                with suppress(ProcessLookupError):
                    ended.append(os.pidfd_open(pid))
                    stack.callback(os.close, ended[-1])
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pidfd in ended:
            assert select.select([pidfd], [], [], 60)[0], "a process does not end"
