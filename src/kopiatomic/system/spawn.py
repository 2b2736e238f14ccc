"""Starting a program with a root, a working directory and a user of its own: what posix_spawn(3) cannot set."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from kopiatomic.system import linux

_RESET = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGTSTP,
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGXFSZ,
)


@dataclass(frozen=True, slots=True)
class User:
    """Who a program runs as: numbers, and all groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """How a program starts. Descriptors are those of this process; other ones it gets only if they are inheritable."""

    stdin: int
    stdout: int
    stderr: int
    cwd: str
    """Its working directory, as a path below ``root``."""
    root: int | None = None
    """A directory that becomes its root."""
    user: User | None = None
    terminal: bool = False
    """Whether stdin is a terminal that becomes its controlling one."""


class DirectoryError(OSError):
    """The working directory does not exist there."""


def start(argv: Sequence[str], environment: Mapping[str, str], setting: Setting) -> int:
    """Start a program; returns its process id. Raises DirectoryError, and OSError where it cannot be executed."""
    told, tells = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _become(argv, environment, setting, tells)
    os.close(tells)
    try:
        said = os.read(told, 16)
    finally:
        os.close(told)
    if said:
        os.waitpid(pid, 0)
        number, at_directory = struct.unpack("=i?", said)
        raise (DirectoryError if at_directory else OSError)(number, os.strerror(number))
    return pid


def _become(argv: Sequence[str], environment: Mapping[str, str], setting: Setting, tells: int) -> NoReturn:
    at_directory = False
    try:
        for signum in _RESET:
            signal.signal(signum, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _move_streams((setting.stdin, setting.stdout, setting.stderr))
        if setting.terminal:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if setting.root is not None:
            os.fchdir(setting.root)
            os.chroot(".")
        if setting.user is not None:
            os.setgroups(setting.user.groups)
            os.setresgid(setting.user.gid, setting.user.gid, setting.user.gid)
            os.setresuid(setting.user.uid, setting.user.uid, setting.user.uid)
            linux.no_new_privileges()
        at_directory = True
        os.chdir(setting.cwd)
        at_directory = False
        os.execvpe(argv[0], list(argv), dict(environment))  # noqa: S606 - that is what this is for
    except OSError as error:
        os.write(tells, struct.pack("=i?", error.errno or 0, at_directory))
    finally:
        os._exit(127)


def _move_streams(streams: tuple[int, int, int]) -> None:
    """Make them 0, 1 and 2, whichever of these numbers they have now."""
    aside = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in streams]
    for number, fd in enumerate(aside):
        os.dup2(fd, number)
