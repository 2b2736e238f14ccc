"""What ties processes together on FreeBSD: procctl(2). It has no PID namespaces and no pidfds."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from ctypes import c_int, c_int32, c_uint

from kopiatomic.system import freebsd
from kopiatomic.system.freebsd import Kernel

_P_PID = 0
"""sys/sys/wait.h. Not ``os.P_PID``, which is this system's own: the same code runs on Linux in tests."""

_PROC_REAP_ACQUIRE = 2
_PROC_REAP_KILL = 6
_PROC_PDEATHSIG_CTL = 11


class ReaperKill(ctypes.Structure):
    """``struct procctl_reaper_kill`` of sys/sys/procctl.h."""

    _fields_ = (
        ("rk_sig", c_int),
        ("rk_flags", c_uint),
        ("rk_subtree", c_int32),
        ("rk_killed", c_uint),
        ("rk_fpid", c_int32),
        ("rk_pad0", c_uint * 15),
    )


def die_with_parent(kernel: Kernel, signum: int) -> None:
    """Have the kernel send this process a signal when its parent ends; its own children do not inherit that.

    A parent that had ended before is not told: who needs to know compares ``os.getppid()``. Raises OSError.
    """
    wanted = c_int(signum)
    if kernel.procctl(_P_PID, os.getpid(), _PROC_PDEATHSIG_CTL, ctypes.byref(wanted)) != 0:
        raise freebsd.failed()


def adopt_orphans(kernel: Kernel) -> None:
    """Have what descendants leave behind become our children: of processes that are forked from now on. Raises OSError."""
    # This command takes no data: kern_procctl.c refuses a pointer.
    if kernel.procctl(_P_PID, os.getpid(), _PROC_REAP_ACQUIRE, None) != 0 and ctypes.get_errno() != errno.EBUSY:
        # EBUSY: we have that status already.
        raise freebsd.failed()


def end_descendants(kernel: Kernel) -> int:
    """Kill all descendants and reap them; returns how many had not ended by themselves. After :func:`adopt_orphans`.

    One call is not enough on every release: who forks meanwhile, or is a reaper itself, may be passed over. When there
    is no child left there is no descendant: an orphan would be a child. Raises OSError.
    """
    count = 0
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            # It had ended before.
            continue
        while True:
            _kill_descendants(kernel)
            os.waitpid(-1, 0)
            count += 1
    except ChildProcessError:
        return count


def _kill_descendants(kernel: Kernel) -> None:
    request = ReaperKill(rk_sig=signal.SIGKILL)
    if kernel.procctl(_P_PID, os.getpid(), _PROC_REAP_KILL, ctypes.byref(request)) != 0:
        error = freebsd.failed()
        # Nobody lives who could be told; some may wait to be reaped.
        if not isinstance(error, ProcessLookupError):
            raise error
