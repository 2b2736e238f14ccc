"""What a process inherits from its caller: settled once for our own processes, and passed on to the programs that they start.

A signal mask, a umask and limits belong to the process, so this is a module and not an object.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
from dataclasses import replace

from kopiatomic.immutable import immutable
from kopiatomic.system import descriptors

UMASK = 0o022
"""The umask of our own processes: what needs a narrower mode sets it when it is made."""

_MOST = 1 << 20
"""How many descriptors the caller may have open where they cannot be listed: the kernel's own default limit (fs.nr_open)."""


@immutable
class _Callers:
    """What the caller had, for the user's programs. ``files`` is the soft limit of open files."""

    umask: int
    files: int | None = None


_callers: _Callers | None = None


def settle() -> None:
    """Become independent of the caller's settings. The first thing that the program does.

    Ending signals that are ignored (nohup, background jobs) stay ignored: ``signals.handled`` respects that.
    """
    global _callers
    # If blocked, neither the signals that end a run nor its time limit would arrive.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # If it is ignored, the kernel reaps our children before we learn how they ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _callers = _Callers(os.umask(UMASK))
    _settle_descriptors()
    # Not earlier: if descriptors cannot be listed, the limit bounds their numbers.
    _callers = replace(_callers, files=_more_files())
    # What we hold, and the engine, may be a password. Nothing gets this limit back: 'ulimit -S -c' of a command's own raises it.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    _settle_streams()
    _settle_path()


def hand_on() -> None:
    """In a forked child before exec: restore the caller's umask and limits, with no signal ignored or blocked."""
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(signum) not in {signal.SIG_DFL, None}:
            signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if _callers is not None:
        os.umask(_callers.umask)
        if _callers.files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (_callers.files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def temporary_directory() -> str:
    """Return where most programs put temporary files (environ(7)). Does not check that it is usable."""
    return os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - it is only named


def _more_files() -> int | None:
    """Raise the soft limit of open files to the hard one. Return the old limit, None if it stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        # The hard limit may be above what the system now allows (fs.nr_open).
        return None
    return soft


def _settle_descriptors() -> None:
    """Make sure that 0, 1 and 2 are open, and that no other descriptor of the caller's reaches an engine."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            open_null()
    descriptors.keep_from_programs(_MOST)


def open_null() -> int:
    """Open /dev/null on the lowest free descriptor; in a chroot without it, a little memory. Raises OSError."""
    try:
        return os.open(os.devnull, os.O_RDWR)
    except FileNotFoundError:
        return os.memfd_create("null")


def _settle_streams() -> None:
    """Make stdout and stderr writable, whatever was closed and whatever their encoding lacks."""
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open as long as we live
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _settle_path() -> None:
    """Search sbin beside each bin in PATH: cron's PATH is /usr/bin:/bin, and zfs is in /usr/sbin."""
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    beside = [f"{folder[:-4]}/sbin" for folder in path if folder.endswith("/bin")]
    os.environ["PATH"] = os.pathsep.join([*path, *(folder for folder in beside if folder not in path)])
