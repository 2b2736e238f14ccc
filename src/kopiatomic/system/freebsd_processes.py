"""What ties processes together on FreeBSD: procctl(2), and kqueue(2) to hear of an end.

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
"""sys/sys/wait.h. Not ``os.P_PID``, which is this system's own: the same code runs on Linux in tests."""

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
"""Seconds that killed processes have to end; only a call that nothing ends takes longer."""

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


def let_orphans_go(kernel: Kernel) -> None:
    """Undo :func:`adopt_orphans`; who was adopted and still lives is our own reaper's then. Raises OSError."""
    if kernel.procctl(_P_PID, os.getpid(), _PROC_REAP_RELEASE, None) != 0 and ctypes.get_errno() != errno.EINVAL:
        # EINVAL: we have that status no more.
        raise freebsd.failed()


def children(kernel: Kernel) -> list[int]:
    """Our children, ended ones that wait to be reaped as well. After :func:`adopt_orphans`. Raises OSError."""
    room = 64
    while True:
        table = (ReaperPidInfo * room)()
        request = ReaperPids(rp_count=room, rp_pids=ctypes.addressof(table))
        if kernel.procctl(_P_PID, os.getpid(), _PROC_REAP_GETPIDS, ctypes.byref(request)) != 0:
            raise freebsd.failed()
        found = [entry for entry in table if entry.pi_flags & _REAPER_PIDINFO_VALID]
        if len(found) < room:
            return [entry.pi_pid for entry in found if entry.pi_flags & _REAPER_PIDINFO_CHILD]
        # A table that is full may have been cut off.
        room *= 2


def end_descendants(kernel: Kernel, timeout: float = ENDING_TIMEOUT) -> int:
    """Kill all descendants and reap them; returns how many had not ended by themselves. After :func:`adopt_orphans`.

    One call is not enough on every release: who forks meanwhile, or is a reaper itself, may be passed over. When there
    is no child left there is no descendant: an orphan would be a child. What waits in the kernel is waited for ``timeout``
    seconds; it is killed, and ends when the kernel lets it. Raises OSError.
    """
    count = 0
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            # It had ended before.
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
    """SIGKILL for all descendants that there are now. After :func:`adopt_orphans`. Raises OSError."""
    request = ReaperKill(rk_sig=signal.SIGKILL)
    if kernel.procctl(_P_PID, os.getpid(), _PROC_REAP_KILL, ctypes.byref(request)) != 0:
        error = freebsd.failed()
        # Nobody lives who could be told; some may wait to be reaped.
        if not isinstance(error, ProcessLookupError):
            raise error


def watch(kernel: Kernel, pid: int) -> int:
    """A descriptor that poll(2) finds readable when a process has ended, also where it waits to be reaped.

    Raises ProcessLookupError where there is none of this number, OSError.
    """
    queue = kernel.kqueue()
    if queue < 0:
        raise freebsd.failed()
    event = Kevent(ident=pid, filter=_EVFILT_PROC, flags=_EV_ADD, fflags=_NOTE_EXIT)
    if kernel.kevent(queue, ctypes.byref(event), 1, None, 0, None) != 0:
        error = freebsd.failed()
        os.close(queue)
        raise error
    # A queue is inherited by no fork (kqueue(2)), but by the program that this process becomes.
    os.set_inheritable(queue, False)
    return queue


def kill(pid: int, queue: int) -> None:
    """SIGKILL for the process of a :func:`watch`. Raises ProcessLookupError where it has ended."""
    poll = select.poll()
    poll.register(queue, select.POLLIN)
    if poll.poll(0):
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    os.kill(pid, signal.SIGKILL)
