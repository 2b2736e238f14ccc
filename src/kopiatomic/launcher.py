"""The launcher: the first process of the run's PID namespace. It mounts the view, starts the program, checks, and ends.

The program is an engine, or whatever ``exec`` and ``shell`` are asked to run. The launcher's end takes everything in the
namespace with it: the program, its children, mounts.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import termios
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from kopiatomic.errors import KopiatomicError, StartError
from kopiatomic.model import Command, EngineEnd, Layout, Plan
from kopiatomic.system import linux, mountinfo, spawn
from kopiatomic.system.channel import Channel, ClosedError
from kopiatomic.text import printable
from kopiatomic.views import Step
from kopiatomic.views import linux as linux_view
from kopiatomic.views.in_place import InPlaceView
from kopiatomic.views.merged import MergedView


@dataclass(frozen=True, slots=True)
class Manner:
    """How a program runs where that is not as an engine does."""

    user: spawn.User | None = None
    anywhere: bool = True
    """Whether it may start in ``/`` where its working directory does not exist."""
    foreground: bool = False
    """Whether it begins in the foreground of its terminal."""
    stop: signal.Signals = signal.SIGTERM
    """What asks it to end."""


@dataclass(frozen=True, slots=True)
class Start:
    """To the launcher: start the program."""

    command: Command
    environment: Mapping[str, str]
    manner: Manner = Manner()


@dataclass(frozen=True, slots=True)
class Started:
    """From the launcher: the program runs; ``elsewhere`` says that it does so in ``/``, as its directory is not there."""

    elsewhere: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """To the launcher: ask the program to end, or end everything in the namespace (SIGKILL)."""

    forcefully: bool


@dataclass(frozen=True, slots=True)
class Suspend:
    """To the launcher: stop the program with a signal, until it is resumed."""

    signum: signal.Signals


@dataclass(frozen=True, slots=True)
class Suspended:
    """From the launcher: a signal has stopped the program."""

    signum: int


@dataclass(frozen=True, slots=True)
class Resume:
    """To the launcher: let the program go on, ``foreground`` says whether in the foreground of its terminal."""

    foreground: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """From the launcher, last: how the program ended, what is wrong with the mounts, how many processes it left running."""

    end: EngineEnd
    problems: tuple[str, ...]
    strays: int = 0


@dataclass(slots=True)
class Streams:
    """Descriptors that become the program's standard streams; every process closes them when the program has its own.

    ``terminal`` is one more of the terminal that is to be its controlling one.
    """

    stdin: int
    stdout: int
    stderr: int
    terminal: int | None = None

    def close(self) -> None:
        """Close all of them that are still open."""
        for fd in (self.stdin, self.stdout, self.stderr, self.terminal):
            if fd is not None and fd >= 0:
                os.close(fd)
        self.stdin = self.stdout = self.stderr = -1
        self.terminal = None


def main(channel: Channel, plan: Plan, steps: list[Step], streams: Streams) -> None:
    """Live as the launcher, in a PID namespace of its own; never returns to the caller's code but by returning."""
    linux.die_with_parent(signal.SIGKILL)
    try:
        host = _HostMounts()
        linux_view.enter()
        view = _view(plan, steps)
        channel.send(view.assemble())
        message = channel.receive()
        assert isinstance(message, Start)
        has_terminal = streams.terminal is not None
        end = _Program(channel, host, streams).run(message, view.engine_root())
        strays = _end_all_others()
        channel.send(Checked(end, tuple(view.check()), strays))
        if has_terminal:
            # The end of a session leader discards what its terminal has not shown yet: wait for that.
            channel.receive()
    except KopiatomicError as error:
        channel.send(error)
    except ClosedError:
        # The main process is gone: what is left to do is to end.
        return


def _view(plan: Plan, steps: list[Step]) -> linux_view.LinuxView:
    if plan.layout is Layout.IN_PLACE:
        return InPlaceView(plan.root, steps, live_system=plan.live_system)
    return MergedView(plan.root, steps)


class _HostMounts:
    """Follows the host's unmounts where its propagation is private, so that our copies of its mounts pin nothing.

    A mountinfo file stays with the namespace that it was opened in, and poll(2) tells when that table changes.
    """

    def __init__(self) -> None:
        self._fd = os.open(mountinfo.SELF, os.O_RDONLY | os.O_CLOEXEC)
        self._before = self._read()

    def fileno(self) -> int:
        return self._fd

    def _read(self) -> list[mountinfo.Mount]:
        os.lseek(self._fd, 0, os.SEEK_SET)
        data = bytearray()
        while chunk := os.read(self._fd, 1 << 16):
            data += chunk
        return mountinfo.parse(bytes(data))

    def follow(self) -> None:
        """Detach our copies of the mounts that the host has unmounted since."""
        now = self._read()
        stay = {_key(m) for m in now}
        gone = {_key(m) for m in self._before} - stay
        self._before = now
        if not gone:
            return
        ours = mountinfo.visible(mountinfo.read())
        for point, mount in sorted(ours.items(), reverse=True):
            if _key(mount) in gone:
                try:
                    linux.detach(point)
                except OSError:
                    # Propagation has taken it away already.
                    continue


def _key(mount: mountinfo.Mount) -> tuple[str, str, str]:
    return mount.point, mount.device, mount.root


class _Program:
    """The life of an engine, or of any command: started, told to stop when the main process says so, waited for."""

    def __init__(self, channel: Channel, host: _HostMounts, streams: Streams) -> None:
        self._channel = channel
        self._host = host
        self._streams = streams
        self._cwd = _working_directory()
        self._stopped = False
        self._terminal: int | None = None

    def run(self, start: Start, root: int | None) -> EngineEnd:
        """Start the program, in another root if there is one, and wait for its end.

        Raises KopiatomicError where it cannot be started, ClosedError.
        """
        wakeup, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        self._take_terminal()
        pid = self._spawn(start, root)
        self._streams.close()
        if self._terminal is not None:
            # When a terminal is gone, the kernel tells who leads its session.
            signal.signal(signal.SIGHUP, lambda *_: _hang_up(pid))
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        poll.register(self._channel.fileno(), select.POLLIN)
        poll.register(self._host.fileno(), select.POLLPRI)
        while True:
            status = self._reap(pid)
            if status is not None:
                return EngineEnd(os.waitstatus_to_exitcode(status), self._stopped)
            for fd, _ in poll.poll():
                if fd == wakeup:
                    os.read(wakeup, 512)
                elif fd == self._host.fileno():
                    self._host.follow()
                else:
                    self._obey(pid, start.manner)

    def _take_terminal(self) -> None:
        """Lead a session that has the terminal: only so can the program be stopped and resumed in it (job control)."""
        if self._streams.terminal is not None:
            os.setsid()
            self._terminal = os.dup(self._streams.terminal)
            fcntl.ioctl(self._terminal, termios.TIOCSCTTY, 0)
            # Else who is not in the foreground may not say who is.
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)

    def _spawn(self, start: Start, root: int | None) -> int:
        argv = list(start.command.argv)
        environment = {**start.environment, **start.command.environment}
        streams, manner = self._streams, start.manner
        setting = spawn.Setting(
            streams.stdin,
            streams.stdout,
            streams.stderr,
            cwd=self._cwd,
            root=root,
            user=manner.user,
            terminal=self._terminal,
            foreground=manner.foreground,
        )
        try:
            try:
                pid = spawn.start(argv, environment, setting)
            except spawn.DirectoryError as error:
                if not manner.anywhere:
                    raise _no_directory(self._cwd, error) from None
                setting = replace(setting, cwd="/")
                pid = spawn.start(argv, {**environment, "PWD": "/"}, setting)
        except OSError as error:
            raise StartError(
                f"{printable(argv[0])} cannot be started: {error.strerror}",
                kind="engine-start",
                hint="Is it installed and executable, also for root's PATH?",
                number=error.errno or 0,
            ) from None
        self._channel.send(Started(elsewhere=setting.cwd != self._cwd))
        return pid

    def _reap(self, pid: int) -> int | None:
        """Reap every child that has ended (orphans come to the first process); the program's status if it was one."""
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return None
            if ended == pid and os.WIFSTOPPED(status):
                self._channel.send(Suspended(os.WSTOPSIG(status)))
            elif ended == pid:
                return status
            if ended == 0:
                return None

    def _obey(self, pid: int, manner: Manner) -> None:
        message = self._channel.receive()
        if isinstance(message, Suspend):
            os.killpg(pid, message.signum)
        elif isinstance(message, Resume):
            if message.foreground and self._terminal is not None:
                os.tcsetpgrp(self._terminal, pid)
            os.killpg(pid, signal.SIGCONT)
        else:
            assert isinstance(message, Stop)
            self._stopped = True
            if message.forcefully:
                os.kill(-1, signal.SIGKILL)
            else:
                os.kill(pid, manner.stop)
                # One that is stopped hears it only then.
                os.kill(pid, signal.SIGCONT)


def _hang_up(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGHUP)
        os.killpg(pid, signal.SIGCONT)


def _working_directory() -> str:
    """As a path: what was there before something was mounted over it is still what ``.`` means. Empty if it is gone."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _no_directory(path: str, error: OSError) -> StartError:
    return StartError(
        f"the working directory {printable(path or '(deleted)')} cannot be entered in the frozen view: {error.strerror}",
        kind="no-directory",
        hint="Did it exist at that instant? Call kopiatomic from another directory.",
    )


def _end_all_others() -> int:
    """End what the program left running, so that nothing can change or use the view any more; returns how many that were."""
    strays = 0
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            # It had ended before.
            continue
        os.kill(-1, signal.SIGKILL)
        while True:
            os.waitpid(-1, 0)
            strays += 1
    except (ChildProcessError, ProcessLookupError):
        return strays
