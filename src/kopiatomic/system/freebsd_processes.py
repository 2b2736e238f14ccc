"""What ties processes together on FreeBSD: procctl(2), and kqueue(2) to notice an end.

It has no PID namespaces and no pidfds.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import time
from ctypes import c_int, c_int32, c_int64, c_short, c_uint, c_uint64, c_ushort, c_void_p

from kopiatomic.system import freebsd
from kopiatomic.system.freebsd import Kernel

_P_PID = 0
"""sys/sys/wait.h. Not ``os.P_PID``, which is the running system's: the same code runs on Linux in tests."""

_PROC_REAP_ACQUIRE = 2
_PROC_REAP_RELEASE = 3
_PROC_REAP_GETPIDS = 5
_PROC_REAP_KILL = 6
_PROC_PDEATHSIG_CTL = 11

_REAPER_PIDINFO_VALID = 0x1
_REAPER_PIDINFO_CHILD = 0x2

_EVFILT_PROC = -5
_EV_ADD = 0x1
_NOTE_EXIT = 0x80000000
"""sys/sys/event.h."""

ENDING_TIMEOUT = 30.0
"""Seconds that killed processes have to end; only an uninterruptible call takes longer."""

_PAUSE = 0.005


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


class ReaperPidInfo(ctypes.Structure):
    """``struct procctl_reaper_pidinfo`` of sys/sys/procctl.h."""

    _fields_ = (("pi_pid", c_int32), ("pi_subtree", c_int32), ("pi_flags", c_uint), ("pi_pad0", c_uint * 15))


class ReaperPids(ctypes.Structure):
    """``struct procctl_reaper_pids`` of sys/sys/procctl.h."""

    _fields_ = (("rp_count", c_uint), ("rp_pad0", c_uint * 15), ("rp_pids", c_void_p))


class Kevent(ctypes.Structure):
    """``struct kevent`` of sys/sys/event.h: FreeBSD 12.0 and later."""

    _fields_ = (
        ("ident", ctypes.c_size_t),
        ("filter", c_short),
        ("flags", c_ushort),
        ("fflags", c_uint),
        ("data", c_int64),
        ("udata", c_void_p),
        ("ext", c_uint64 * 4),
    )


def die_with_parent(kernel: Kernel, signum: int) -> None:
    """Have the kernel signal this process when its parent ends (0: no more); its own children do not inherit that.

    A parent that has already ended is not reported: callers that must know compare ``os.getppid()``. Raises OSError.
    """
    wanted = c_int(signum)
    if kernel.procctl(_P_PID, os.getpid(), _PROC_PDEATHSIG_CTL, ctypes.byref(wanted)) != 0:
        raise freebsd.failed()


def adopt_orphans(kernel: Kernel) -> bool:
    """Adopt the orphans of all processes that are forked from now on; return whether that is new. Raises OSError."""
    # This command takes no data: kern_procctl.c refuses a pointer.
    changed = kernel.procctl(_P_PID, os.getpid(), _PROC_REAP_ACQUIRE, None) == 0
    if not changed and ctypes.get_errno() != errno.EBUSY:
        # EBUSY: we already have that status.
        raise freebsd.failed()
    return changed


def let_orphans_go(kernel: Kernel) -> bool:
    """Undo :func:`adopt_orphans`; adopted processes that still live go to our own reaper. Return whether that is new.

    Raises OSError.
    """
    changed = kernel.procctl(_P_PID, os.getpid(), _PROC_REAP_RELEASE, None) == 0
    if not changed and ctypes.get_errno() != errno.EINVAL:
        # EINVAL: we no longer have that status.
        raise freebsd.failed()
    return changed


def children(kernel: Kernel) -> list[int]:
    """Return our children, including ended ones that wait to be reaped. After :func:`adopt_orphans`. Raises OSError."""
    room = 64
    while True:
        table = (ReaperPidInfo * room)()
        request = ReaperPids(rp_count=room, rp_pids=ctypes.addressof(table))
        if kernel.procctl(_P_PID, os.getpid(), _PROC_REAP_GETPIDS, ctypes.byref(request)) != 0:
            raise freebsd.failed()
        found = [entry for entry in table if entry.pi_flags & _REAPER_PIDINFO_VALID]
        if len(found) < room:
            return [entry.pi_pid for entry in found if entry.pi_flags & _REAPER_PIDINFO_CHILD]
        # A full table may have been cut off.
        room *= 2


def end_descendants(kernel: Kernel, timeout: float = ENDING_TIMEOUT) -> int:
    """Kill all descendants and reap them. Return how many had not ended by themselves. After :func:`adopt_orphans`.

    One call is not enough on every release: a process that forks meanwhile, or is a reaper itself, may be missed. Without
    children there are no descendants: an orphan would be a child. Wait ``timeout`` seconds for what waits in the kernel; it is
    killed, and ends when the kernel lets it. Raises OSError.
    """
    count = 0
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            # It had already ended.
            continue
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            kill_descendants(kernel)
            while os.waitpid(-1, os.WNOHANG)[0]:
                count += 1
            time.sleep(_PAUSE)
    except ChildProcessError:
        pass
    return count


def kill_descendants(kernel: Kernel) -> None:
    """Send SIGKILL to all present descendants. After :func:`adopt_orphans`. Raises OSError."""
    request = ReaperKill(rk_sig=signal.SIGKILL)
    if kernel.procctl(_P_PID, os.getpid(), _PROC_REAP_KILL, ctypes.byref(request)) != 0:
        error = freebsd.failed()
        # No descendant lives; some may wait to be reaped.
        if not isinstance(error, ProcessLookupError):
            raise error


def watch(kernel: Kernel, pid: int) -> int:
    """Return a descriptor that is readable for poll(2) once a process has ended, even if it waits to be reaped.

    Raises ProcessLookupError if there is no process with this number, OSError.
    """
    queue = kernel.kqueue()
    if queue < 0:
        raise freebsd.failed()
    event = Kevent(ident=pid, filter=_EVFILT_PROC, flags=_EV_ADD, fflags=_NOTE_EXIT)
    if kernel.kevent(queue, ctypes.byref(event), 1, None, 0, None) != 0:
        error = freebsd.failed()
        os.close(queue)
        raise error
    # A fork does not inherit a queue (kqueue(2)), but a program that this process becomes does.
    os.set_inheritable(queue, False)
    return queue


def kill(pid: int, queue: int) -> None:
    """Send SIGKILL to the process of a :func:`watch`. Raises ProcessLookupError if it has ended."""
    poll = select.poll()
    poll.register(queue, select.POLLIN)
    if poll.poll(0):
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    os.kill(pid, signal.SIGKILL)
