"""The main process's side of keeper and launcher: starts them, speaks with them, and sees to it that all of it ends."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from kopiatomic import keeper, launcher
from kopiatomic.errors import KopiatomicError
from kopiatomic.model import Command, Plan, Sets
from kopiatomic.snapshots import Maker
from kopiatomic.system import channel, libzfs_core, signals
from kopiatomic.system.channel import Channel, ClosedError
from kopiatomic.views import View

RELEASE_TIMEOUT = 180.0
"""Seconds to wait for the keeper to have removed everything; it reports within 60 for each pool, unless one hangs."""

_LAUNCHER_TIMEOUT = 10.0
_READ = 1 << 16


class Supervisor:
    """The processes of one run. A context manager: however the block is left, nothing of them stays.

    ``left`` tells afterwards, in words, what could not be removed.
    """

    def __init__(self, plan: Plan, makers: list[Maker], remove_root: Callable[[], list[str]]) -> None:
        self._plan = plan
        self._makers = makers
        self._remove_root = remove_root
        self._cleanup_fd: int | None = None
        self._launcher_pidfd: int | None = None
        self.left: list[str] = []

    def __enter__(self) -> Self:
        if any(maker.needs_descriptor() for maker in self._makers):
            self._cleanup_fd = libzfs_core.open_cleanup_descriptor()
        self._stdout, stdout = os.pipe2(os.O_CLOEXEC)
        self._stderr, stderr = os.pipe2(os.O_CLOEXEC)
        self._keeper, to_main = channel.pair()
        self._launcher, launcher_to_main = channel.pair()
        equipment = keeper.Equipment(
            plan=self._plan,
            makers=self._makers,
            cleanup_fd=self._cleanup_fd,
            to_main=to_main,
            launcher_to_main=launcher_to_main,
            streams=launcher.Streams(stdout, stderr),
            close_in_child=self._close_own_ends,
            remove_root=self._remove_root,
        )
        self._keeper_pid = os.fork()
        if self._keeper_pid == 0:
            try:
                keeper.main(equipment)
            finally:
                os._exit(0)
        to_main.close()
        launcher_to_main.close()
        os.close(stdout)
        os.close(stderr)
        return self

    def _close_own_ends(self) -> None:
        self._keeper.close()
        self._launcher.close()
        os.close(self._stdout)
        os.close(self._stderr)

    def freeze(self) -> Sets:
        """Wait for the keeper to have made the sets. Raises KopiatomicError, Interrupted."""
        message = self._from_keeper()
        assert isinstance(message, Sets)
        return message

    def mount(self) -> View:
        """Have the view assembled. Raises KopiatomicError, Interrupted."""
        try:
            self._keeper.send(keeper.Mount())
        except ClosedError:
            raise _died("keeper") from None
        message = self._from_keeper()
        assert isinstance(message, keeper.Launched)
        self._launcher_pidfd = os.pidfd_open(message.pid)
        view = self._from_launcher()
        assert isinstance(view, View)
        return view

    def run_engine(
        self,
        command: Command,
        environment: Mapping[str, str],
        on_output: Callable[[str, bytes], None],
        stop_timeout: float,
    ) -> launcher.Checked:
        """Start the engine in the view and wait for its end. Raises KopiatomicError.

        ``on_output`` gets each piece of output, and an empty one at a stream's end. A signal that asks the run to end
        stops the engine: SIGTERM once, SIGKILL after ``stop_timeout`` seconds or at the next signal.
        """
        try:
            self._launcher.send(launcher.Start(command, environment))
        except ClosedError:
            raise _died("launcher") from None
        poll = select.poll()
        streams = {self._stdout: "stdout", self._stderr: "stderr"}
        for fd in (*streams, self._launcher.fileno()):
            poll.register(fd, select.POLLIN)
        wakeup = signals.fd()
        if wakeup is not None:
            poll.register(wakeup, select.POLLIN)
        stopping = _Stopping(self._launcher, stop_timeout)
        result: object = None
        while streams or result is None:
            stopping.consider()
            for fd, _ in poll.poll(stopping.milliseconds()):
                if fd == wakeup:
                    signals.drain()
                elif fd in streams:
                    data = os.read(fd, _READ)
                    on_output(streams[fd], data)
                    if not data:
                        poll.unregister(fd)
                        del streams[fd]
                else:
                    poll.unregister(fd)
                    # How it ended has to be known also, and above all, where a signal has stopped it.
                    with signals.deferred():
                        result = self._from_launcher()
        assert isinstance(result, launcher.Checked)
        return result

    def _from_keeper(self) -> object:
        try:
            message = self._keeper.receive()
        except ClosedError:
            raise _died("keeper") from None
        if isinstance(message, KopiatomicError):
            raise message
        return message

    def _from_launcher(self) -> object:
        try:
            message = self._launcher.receive()
        except ClosedError:
            raise _died("launcher") from None
        if isinstance(message, KopiatomicError):
            raise message
        return message

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with signals.deferred():
            self._release()

    def _release(self) -> None:
        """Launcher first, with everything in its namespaces; then our copy of the descriptor; then the keeper's."""
        self._launcher.close()
        if self._launcher_pidfd is not None:
            if not channel.pidfd_ended(self._launcher_pidfd, _LAUNCHER_TIMEOUT):
                signal.pidfd_send_signal(self._launcher_pidfd, signal.SIGKILL)
                channel.pidfd_ended(self._launcher_pidfd, _LAUNCHER_TIMEOUT)
            os.close(self._launcher_pidfd)
        os.close(self._stdout)
        os.close(self._stderr)
        channel.close_quietly(self._cleanup_fd)
        self._cleanup_fd = None
        try:
            self._keeper.send(keeper.Release())
            deadline = time.monotonic() + RELEASE_TIMEOUT
            message: object = None
            while not isinstance(message, keeper.Released):
                message = self._keeper.receive(max(0.0, deadline - time.monotonic()))
            self.left += message.left
            os.waitpid(self._keeper_pid, 0)
        except TimeoutError:
            self.left.append(
                f"the snapshots: process {self._keeper_pid} still waits for the kernel to remove them (see 'zpool status')"
            )
        except ClosedError:
            # The keeper was killed. The kernel has ended the launcher with it; what nothing tied is removed from here.
            os.waitpid(self._keeper_pid, 0)
            self.left += keeper.remove_all(self._makers)
        finally:
            self._keeper.close()


class _Stopping:
    """Stops the engine when a signal came: once politely, then by force."""

    def __init__(self, to_launcher: Channel, timeout: float) -> None:
        self._channel = to_launcher
        self._timeout = timeout
        self._deadline: float | None = None
        self._forced = False

    def consider(self) -> None:
        """Do what is due now."""
        if self._deadline is None and signals.count():
            self._deadline = time.monotonic() + self._timeout
            self._send(forcefully=False)
        elif self._deadline is not None and not self._forced and self._due():
            self._forced = True
            self._send(forcefully=True)

    def _due(self) -> bool:
        return signals.count() > 1 or (self._deadline is not None and time.monotonic() >= self._deadline)

    def milliseconds(self) -> float | None:
        """How long may be waited before something is due."""
        if self._deadline is None or self._forced:
            return None
        return max(0.0, self._deadline - time.monotonic()) * 1000 + 1

    def _send(self, *, forcefully: bool) -> None:
        try:
            self._channel.send(launcher.Stop(forcefully))
        except ClosedError:
            # Its end is found by who reads from it.
            self._forced = True


def _died(who: str) -> KopiatomicError:
    return KopiatomicError(
        f"the {who} of this run was killed",
        kind=f"{who}-killed",
        hint="Was it the out-of-memory killer? See 'dmesg' or 'journalctl -k'. What was made is removed.",
    )
