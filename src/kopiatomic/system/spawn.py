"""Starts a program, or calls a function in a process, with its own root, working directory and user: posix_spawn(3) sets none."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import struct
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, Self

from kopiatomic import presence
from kopiatomic.immutable import immutable
from kopiatomic.system import descriptors, host, inherited, signals


@immutable
class User:
    """The user that a program runs as: numbers, and all groups. It has no capabilities, and no descriptors but 0, 1 and 2."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def of(cls, account: pwd.struct_passwd) -> Self:
        """Return the user of an account."""
        return cls(account.pw_uid, account.pw_gid, tuple(os.getgrouplist(account.pw_name, account.pw_gid)))


@immutable
class Priority:
    """What a program may take of processors and disks; None for as much as the caller."""

    nice: int | None = None
    io: str | None = None
    """A class of ionice(1), ``idle`` or ``best-effort:LEVEL``."""


@immutable
class SpawnOptions:
    """How a program starts. Descriptors are those of this process; it inherits others only if they are inheritable.

    It leads its own process group, and its own session unless it belongs to our terminal.
    """

    stdin: int
    stdout: int
    stderr: int
    cwd: str
    """Its working directory, as a path below ``root``."""
    root: int | None = None
    """A directory that becomes its root."""
    user: User | None = None
    terminal: int | None = None
    """The controlling terminal of this process, which the program shares."""
    foreground: bool = False
    """Whether the program is in that terminal's foreground."""
    priority: Priority = Priority()
    tied: bool = False
    """Whether it ends when this process does, by SIGKILL."""
    first: Callable[[], None] | None = None
    """What the new process does before anything else; may raise OSError."""


class DirectoryError(OSError):
    """The working directory does not exist there."""


class UserError(OSError):
    """The process may not become that user."""


class InterpreterError(OSError):
    """The program is there, and what it names as its interpreter or loader is not."""


_KINDS = (OSError, UserError, DirectoryError, InterpreterError)
_ELSE, _AT_USER, _AT_DIRECTORY, _AT_INTERPRETER = range(4)


def start(argv: Sequence[str], environment: Mapping[str, str], options: SpawnOptions) -> int:
    """Start a program. Return its process id.

    Raises DirectoryError, UserError, InterpreterError, and OSError if it cannot be executed for another reason.
    """

    def execute() -> None:
        # Not earlier: the caller's limit of open files may be below the descriptors that were moved.
        inherited.hand_on()
        os.execvpe(argv[0], list(argv), dict(environment))  # noqa: S606 - that is what this is for

    def is_there() -> bool:
        return shutil.which(argv[0], path=environment.get("PATH")) is not None

    return _started(execute, is_there, options)


def call(function: Callable[[], None], options: SpawnOptions) -> int:
    """Call a function in a process that has nothing open but its streams. Return the process id. Raises as :func:`start` does.

    Modules that it imports are found in the new root.
    """

    def execute() -> None:
        signals.forget()
        for signum in signals.ENDING:
            signal.signal(signum, signal.SIG_DFL)
        try:
            descriptors.close_all()
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    return _started(execute, lambda: False, options)


def _started(execute: Callable[[], None], is_there: Callable[[], bool], options: SpawnOptions) -> int:
    """Fork a process with these options that executes something. Return its id. Raises as :func:`start` does."""
    failure_read, failure_write = os.pipe2(os.O_CLOEXEC)
    starter = os.getpid()
    # The terminal's signals reach a program in its foreground from the first moment.
    pid = signals.fork()
    if pid == 0:
        _become(execute, is_there, options, failure_write, starter)
    os.close(failure_write)
    try:
        failure = os.read(failure_read, 16)
    finally:
        os.close(failure_read)
    if failure:
        os.waitpid(pid, 0)
        number, at = struct.unpack("=ii", failure)
        raise _KINDS[at](number, os.strerror(number))
    return pid


def _become(
    execute: Callable[[], None],
    is_there: Callable[[], bool],
    options: SpawnOptions,
    failure_write: int,
    starter: int,
) -> NoReturn:
    at = _ELSE
    try:
        if options.first is not None:
            options.first()
        _give_way(options.priority)
        # Before a signal could wake our parent through it.
        signal.set_wakeup_fd(-1)
        _lead_a_group(options)
        _move_streams((options.stdin, options.stdout, options.stderr))
        if options.user is not None:
            descriptors.keep_from_programs()
        if options.root is not None:
            os.fchdir(options.root)
            # On FreeBSD a process already in a chroot or a jail may have no directory open (chroot(2)).
            os.close(options.root)
            os.chroot(".")
        if options.user is not None:
            user = options.user
            at = _AT_USER
            host.here().become(user.uid, user.gid, user.groups)
        at = _AT_DIRECTORY
        os.chdir(options.cwd)
        at = _ELSE
        if options.tied:
            # Not earlier: a change of the user undoes it (PR_SET_PDEATHSIG in prctl(2)).
            host.here().end_with_parent(signal.SIGKILL)
            if os.getppid() != starter:
                os._exit(127)
        execute()
    except OSError as error:
        if at == _ELSE and presence.absent(error) and is_there():
            at = _AT_INTERPRETER
        os.write(failure_write, struct.pack("=ii", error.errno or 0, at))
    finally:
        os._exit(127)


def _give_way(priority: Priority) -> None:
    if priority.nice is not None:
        os.setpriority(os.PRIO_PROCESS, 0, priority.nice)
    if priority.io is not None:
        host.here().set_io_class(priority.io)


def _lead_a_group(options: SpawnOptions) -> None:
    if options.terminal is None:
        os.setsid()
        return
    os.setpgid(0, 0)
    if options.foreground:
        # Otherwise a process that is not yet in the foreground is stopped for that.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.tcsetpgrp(options.terminal, os.getpid())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)


def _move_streams(streams: tuple[int, int, int]) -> None:
    """Make them 0, 1 and 2, whichever of these numbers they have now."""
    aside = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in streams]
    for number, fd in enumerate(aside):
        os.dup2(fd, number)
