"""The launcher: the first process of the run's PID namespace. It mounts the view, starts the engine, checks, and ends.

Its end takes everything in the namespace with it: engine, the engine's children, mounts.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kopiatomic.errors import KopiatomicError
from kopiatomic.model import Command, EngineEnd, Layout, Plan
from kopiatomic.system import linux, mountinfo, spawn
from kopiatomic.system.channel import Channel, ClosedError
from kopiatomic.views import Step
from kopiatomic.views import linux as linux_view
from kopiatomic.views.in_place import InPlaceView
from kopiatomic.views.merged import MergedView


@dataclass(frozen=True, slots=True)
class Start:
    """To the launcher: start the engine."""

    command: Command
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Stop:
    """To the launcher: ask the engine to end (SIGTERM), or end everything in the namespace (SIGKILL)."""

    forcefully: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """From the launcher, last: how the engine ended and what is wrong with the mounts."""

    end: EngineEnd
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Streams:
    """Write ends that become the engine's stdout and stderr."""

    stdout: int
    stderr: int


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
        end = _Engine(channel, host, streams).run(message, view.engine_root())
        _end_all_others()
        channel.send(Checked(end, tuple(view.check())))
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


class _Engine:
    """The engine's life: started, told to stop when the main process says so, waited for."""

    def __init__(self, channel: Channel, host: _HostMounts, streams: Streams) -> None:
        self._channel = channel
        self._host = host
        self._streams = streams
        self._cwd = os.getcwd()
        """As a path: what was there before something was mounted over it is still what ``.`` means."""
        self._stopped = False

    def run(self, start: Start, root: int | None) -> EngineEnd:
        """Start the engine, in another root if there is one, and wait for its end.

        Raises KopiatomicError where it cannot be started, ClosedError.
        """
        wakeup, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        pid = self._spawn(start, root)
        os.close(self._streams.stdout)
        os.close(self._streams.stderr)
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
                    self._obey(pid)

    def _spawn(self, start: Start, root: int | None) -> int:
        argv = list(start.command.argv)
        environment = {**start.environment, **start.command.environment}
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        setting = spawn.Setting(null, self._streams.stdout, self._streams.stderr, cwd=self._cwd, root=root)
        try:
            return spawn.start(argv, environment, setting)
        except spawn.DirectoryError:
            # A backup does not depend on where it was called from.
            return spawn.start(argv, environment, replace(setting, cwd="/"))
        except OSError as error:
            raise KopiatomicError(
                f"{argv[0]} cannot be started: {error.strerror}",
                kind="engine-start",
                hint="Is it installed and executable, also for root's PATH?",
            ) from None
        finally:
            os.close(null)

    def _reap(self, pid: int) -> int | None:
        """Reap every child that has ended (orphans come to the first process); the engine's status if it was one."""
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if ended == pid:
                return status
            if ended == 0:
                return None

    def _obey(self, pid: int) -> None:
        message = self._channel.receive()
        assert isinstance(message, Stop)
        self._stopped = True
        if message.forcefully:
            os.kill(-1, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGTERM)


def _end_all_others() -> None:
    """End what the engine left running, so that nothing can change or use the view any more."""
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        return
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
