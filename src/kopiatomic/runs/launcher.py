"""The launcher: mounts the view, and starts programs in it, one after the other. On Linux the first process of a PID namespace.

A program is an engine, or whatever ``exec`` and ``shell`` are asked to run. At its end, what it left running is ended, and the
mounts are checked. The launcher ends when the main process closes the channel. The platform (``platforms/``) decides what ends
with the launcher and what must be ended: the program, its children, mounts.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, Self

from kopiatomic.engines import names
from kopiatomic.errors import KopiatomicError, StartError, advice_of
from kopiatomic.immutable import immutable
from kopiatomic.model.engine import Command, EngineEnd
from kopiatomic.model.record import FAILED, Losses, Recorded
from kopiatomic.platforms.platform import AccessWatch, HostWatcher, MountedView, Platform, RecordingView
from kopiatomic.system import spawn
from kopiatomic.system.channel import Channel, ClosedError
from kopiatomic.text import printable
from kopiatomic.trees.cache import Cache, Known
from kopiatomic.trees.record import Recorder
from kopiatomic.trees.shards import Writer


@immutable
class StartOptions:
    """How a program runs, where that differs from an engine."""

    user: spawn.User | None = None
    anywhere: bool = True
    """Whether it may start in ``/`` if its working directory does not exist."""
    directory: str | None = None
    """Its working directory; None for the caller's."""
    stop: signal.Signals = signal.SIGTERM
    """The signal that asks it to end."""
    priority: spawn.Priority = spawn.Priority()
    temporary: str = ""
    """A directory of ours (``lists.mount_point``) on which it gets one of its own for temporary files, its TMPDIR."""


@immutable
class Start:
    """To the launcher: start the program. The descriptors of its streams follow on the channel."""

    command: Command
    environment: Mapping[str, str]
    options: StartOptions = StartOptions()
    sources: tuple[str, ...] = ()
    """What must be looked into, or the program has read something else; with its paths."""
    foreground: bool = False
    """Whether it starts in the foreground of its terminal: the supervisor asks its streams."""
    work: Callable[[str], None] | None = None
    """What is called in a process of ours, in place of a program, with what would be a program's TMPDIR. It can be pickled."""


@immutable
class Record:
    """To the launcher: make the metadata record, while no program runs; the cache's directory follows, if there is one."""

    losses: Losses
    about: Mapping[str, Any]
    """What else it says, as JSON types."""
    states: Mapping[tuple[str, str], tuple[str, str]]
    """By kind and name of a dataset: ``before`` and ``after`` of its snapshot."""


@immutable
class Check:
    """To the launcher: check the mounts while no program runs."""


@immutable
class Problems:
    """From the launcher: what is wrong with the mounts, in words."""

    found: tuple[str, ...]


@immutable
class Started:
    """From the launcher: the program runs; ``elsewhere`` says that it runs in ``/`` because its directory does not exist."""

    elsewhere: bool


@immutable
class Stop:
    """To the launcher: ask the program to end, or end everything in the namespace (SIGKILL)."""

    forcefully: bool


@immutable
class Suspend:
    """To the launcher: stop the program with a signal, until it is resumed."""

    signum: signal.Signals


@immutable
class Suspended:
    """From the launcher: a signal has stopped the program."""

    signum: int


@immutable
class Resume:
    """To the launcher: resume the program; ``foreground`` says whether in the foreground of its terminal."""

    foreground: bool


@immutable
class Checked:
    """From the launcher, last of a program: how it ended, what is wrong with the mounts, how many processes it left running."""

    end: EngineEnd
    problems: tuple[str, ...]
    strays: int = 0
    unread: tuple[str, ...] = ()
    """The sources that no process has looked into."""
    unwatched: str = ""
    """Why that could not be observed, if so."""
    odd: names.OddNames = names.OddNames()
    """Names in the view that the program takes for one, or that made it fail."""


@dataclass(slots=True)
class ProgramStreams:
    """Descriptors that become the program's standard streams; every process closes them once the program has its own.

    ``terminal`` is another descriptor of the terminal that becomes the controlling one.
    """

    stdin: int
    stdout: int
    stderr: int
    terminal: int | None = None
    foreground: bool = False
    """Whether the program starts in the foreground of that terminal."""

    @classmethod
    def of(cls, descriptors: Sequence[int]) -> Self:
        """Return the streams with these :meth:`descriptors`."""
        stdin, stdout, stderr, *terminal = descriptors
        return cls(stdin, stdout, stderr, terminal[0] if terminal else None)

    def descriptors(self) -> list[int]:
        """Return all that are still open, in the order of the fields."""
        fds = (self.stdin, self.stdout, self.stderr, self.terminal)
        return [fd for fd in fds if fd is not None and fd >= 0]

    def close(self) -> None:
        """Close all that are still open."""
        for fd in self.descriptors():
            os.close(fd)
        self.stdin = self.stdout = self.stderr = -1
        self.terminal = None


_MOST_STREAMS = 4

_BREAKING = 30.0
"""Seconds for the search for what made a program fail: the snapshots are still there."""


@immutable
class _Around:
    """What all programs of one launcher have around them. ``wakeup`` is readable when a child has ended or stopped."""

    channel: Channel
    platform: Platform
    host_watcher: HostWatcher | None
    wakeup: int


def main(channel: Channel, platform: Platform, view: MountedView) -> None:
    """Run as the launcher; returns to the caller only at its end."""
    try:
        host_watcher = platform.enter()
        try:
            _serve(channel, platform, host_watcher, view)
        finally:
            _clear(platform, view)
    except KopiatomicError as error:
        channel.send(error)
    except ClosedError:
        # The main process wants nothing more, or is gone: all that is left is to end.
        return


def _serve(channel: Channel, platform: Platform, host_watcher: HostWatcher | None, view: MountedView) -> None:
    """Mount the view, and run each program that the main process asks for. Raises ClosedError when that closes the channel.

    So the leader of a terminal's session does not end before the main process has read what the terminal has not shown yet.
    """
    channel.send(view.assemble())
    wakeup, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    around = _Around(channel, platform, host_watcher, wakeup)
    while True:
        _wait(channel, host_watcher)
        message = channel.receive()
        # What concerned the last program may come after its end.
        if isinstance(message, Check):
            channel.send(Problems(tuple(view.check())))
        elif isinstance(message, Record):
            descriptors = channel.receive_descriptors(1)
            try:
                cache = Cache(descriptors[0], message.losses) if descriptors else None
                channel.send(_record(message, view, cache))
            except KopiatomicError as error:
                # The backup goes on without it.
                channel.send(error)
            finally:
                for fd in descriptors:
                    os.close(fd)
        elif isinstance(message, Start):
            streams = ProgramStreams.of(channel.receive_descriptors(_MOST_STREAMS))
            try:
                channel.send(_run(message, around, view, streams))
            except KopiatomicError as error:
                # It could not be started; another one may.
                platform.end_others()
                channel.send(error)
            finally:
                streams.close()


def _record(wanted: Record, view: MountedView, cache: Cache | None) -> Recorded:
    """Make the metadata record of all that is frozen in the view. Raises KopiatomicError."""
    assert isinstance(view, RecordingView)
    try:
        with view.record() as directory:
            writer = Writer(directory)
            recorder = Recorder(writer, wanted.losses)
            known = Known(cache, wanted.states, view.form)
            for tree in view.trees():
                part = known.part(tree.dataset, tree.place)
                if part is not None:
                    recorder.take(part)
                else:
                    known.note(tree.dataset, tree.place, recorder.add(tree.fd, tree.place))
            writer.end(wanted.about, recorder.names())
        known.keep()
        return replace(recorder.recorded(), cache_problem=known.problem)
    except OSError as error:
        raise KopiatomicError(
            f"the metadata record cannot be made: {error.strerror}",
            kind=FAILED,
            hint="Is there enough memory for it? --no-metadata leaves it out.",
        ) from None


def _wait(channel: Channel, host_watcher: HostWatcher | None) -> None:
    """Wait for a message while no program runs."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    if host_watcher is not None:
        poll.register(host_watcher.fileno(), select.POLLPRI)
    while channel.fileno() not in (ready := {fd for fd, _ in poll.poll()}):
        assert host_watcher is not None
        assert host_watcher.fileno() in ready
        host_watcher.follow()


def _run(start: Start, around: _Around, view: MountedView, streams: ProgramStreams) -> Checked:
    """Run one program, end what it leaves running, and check the mounts. Raises KopiatomicError, ClosedError."""
    with ExitStack() as stack:
        if start.options.temporary:
            path = stack.enter_context(view.temporary(start.options.temporary, start.options.user))
            start = replace(start, environment={**start.environment, **({"TMPDIR": path} if path else {})})
        root = view.engine_root()
        access_watch, unwatched = _watch(view, start.sources)
        try:
            end = _Program(around, streams, access_watch).run(start, root)
        finally:
            # The check looks into the view itself.
            unread = access_watch.unread() if access_watch is not None else ()
        strays = around.platform.end_others()
    odd = _odd_names(around.channel, view, start.command, end)
    return Checked(end, tuple(view.check()), strays, unread, unwatched, odd)


def _odd_names(channel: Channel, view: MountedView, command: Command, end: EngineEnd) -> names.OddNames:
    """Return the name pairs that became one in a backup that looks good, or what may have made it fail.

    Any message of the main process ends the search. For what made it fail it takes :data:`_BREAKING` seconds at most.
    """
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    if command.stand_in and end.status == 0 and not end.stopped:
        return names.find_collisions(
            view.engine_root(), command.directories, command.stand_in, lambda: not poll.poll(0)
        )
    if command.breaks_at and end.status > 0 and not end.stopped:
        deadline = time.monotonic() + _BREAKING
        return names.find_breaking(
            view.engine_root(),
            command.directories,
            command.breaks_at,
            lambda: time.monotonic() < deadline and not poll.poll(0),
        )
    return names.OddNames()


def _watch(view: MountedView, sources: Sequence[str]) -> tuple[AccessWatch | None, str]:
    """Return what observes whether the sources are looked into; None, and the reason, where that is impossible."""
    if not sources:
        return None, ""
    try:
        return view.watch(sources), ""
    except OSError as error:
        return None, error.strerror or str(error)


def _clear(platform: Platform, view: MountedView) -> None:
    """Remove what does not end with this process. The keeper finds and reports what is left of it."""
    with suppress(KopiatomicError, OSError):
        platform.end_orphans()
        view.remove()


class _Program:
    """The life of an engine, or of any command: started, asked to stop when the main process says so, and waited for."""

    def __init__(self, around: _Around, streams: ProgramStreams, access_watch: AccessWatch | None) -> None:
        self._channel = around.channel
        self._platform = around.platform
        self._host_watcher = around.host_watcher
        self._wakeup = around.wakeup
        self._access_watch = access_watch
        self._streams = streams
        self._cwd = _working_directory()
        self._stopped = False
        self._terminal: int | None = None

    def run(self, start: Start, root: int | None) -> EngineEnd:
        """Start the program, in another root if given, and wait for its end.

        Raises KopiatomicError where it cannot be started, ClosedError.
        """
        self._take_terminal()
        try:
            pid = self._spawn(start, root)
        finally:
            if root is not None:
                # An open root would keep the view busy where it must be unmounted.
                os.close(root)
        self._streams.close()
        if self._terminal is not None:
            # When a terminal is gone, the kernel signals its session leader.
            signal.signal(signal.SIGHUP, lambda *_: _hang_up(pid))
        try:
            return EngineEnd(os.waitstatus_to_exitcode(self._wait_for(pid, start.options)), self._stopped)
        finally:
            if self._terminal is not None:
                # It is gone when the main process closes its end, whose number another process may have by then.
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
                os.close(self._terminal)

    def _wait_for(self, pid: int, options: StartOptions) -> int:
        """Return the program's status at its end. Raises ClosedError."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        poll.register(self._channel.fileno(), select.POLLIN)
        if self._host_watcher is not None:
            poll.register(self._host_watcher.fileno(), select.POLLPRI)
        if self._access_watch is not None:
            poll.register(self._access_watch.fileno(), select.POLLIN)
        while True:
            status = self._reap(pid)
            if status is not None:
                return status
            for fd, _ in poll.poll():
                if fd == self._wakeup:
                    os.read(self._wakeup, 512)
                elif self._host_watcher is not None and fd == self._host_watcher.fileno():
                    self._host_watcher.follow()
                elif self._access_watch is not None and fd == self._access_watch.fileno():
                    self._access_watch.follow()
                else:
                    self._obey(pid, options)

    def _take_terminal(self) -> None:
        """Lead a session that has the terminal: only then can the program be stopped and resumed in it (job control)."""
        if self._streams.terminal is not None:
            if os.getsid(0) != os.getpid():
                os.setsid()
            self._terminal = os.dup(self._streams.terminal)
            fcntl.ioctl(self._terminal, termios.TIOCSCTTY, 0)
            # Otherwise a process that is not in the foreground may not set the foreground group.
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)

    def _spawn(self, start: Start, root: int | None) -> int:
        argv = list(start.command.argv)
        environment = {**start.environment, **start.command.environment}
        streams, options = self._streams, start.options
        directory = self._cwd if options.directory is None else options.directory
        spawn_options = spawn.SpawnOptions(
            streams.stdin,
            streams.stdout,
            streams.stderr,
            cwd=directory,
            root=root,
            user=options.user,
            terminal=self._terminal,
            foreground=start.foreground,
            priority=options.priority,
            first=self._platform.tie,
        )
        if start.work is not None:
            work, directory = start.work, environment.get("TMPDIR", "")
            pid = spawn.call(lambda: work(directory), replace(spawn_options, cwd="/"))
            self._channel.send(Started(elsewhere=False))
            return pid
        try:
            try:
                pid = spawn.start(argv, environment, spawn_options)
            except spawn.DirectoryError as error:
                if not options.anywhere:
                    raise _no_directory(directory, error) from None
                spawn_options = replace(spawn_options, cwd="/")
                pid = spawn.start(argv, {**environment, "PWD": "/"}, spawn_options)
        except spawn.UserError as error:
            raise KopiatomicError(
                f"{printable(argv[0])} cannot be started as another user: {error.strerror}",
                kind="engine-user",
                hint="Root lacks CAP_SETUID or CAP_SETGID here: look at CapabilityBoundingSet= of a unit, or at the container.",
            ) from None
        except spawn.InterpreterError as error:
            raise StartError(
                f"{printable(argv[0])} cannot be started: what it names as its interpreter is missing",
                kind="engine-interpreter",
                hint="A script names it in its first line (#!); a compiled program for another system lacks its loader.",
                number=error.errno or 0,
            ) from None
        except OSError as error:
            raise StartError(
                f"{printable(argv[0])} cannot be started: {error.strerror}",
                kind="engine-start",
                hint=advice_of(error) or "Is it installed and executable, also for root's PATH?",
                number=error.errno or 0,
            ) from None
        self._channel.send(Started(elsewhere=spawn_options.cwd != directory))
        return pid

    def _reap(self, pid: int) -> int | None:
        """Reap every child that has ended (orphans come to the first process). Return the program's status if it was one."""
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

    def _obey(self, pid: int, options: StartOptions) -> None:
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
                self._platform.kill_others()
            else:
                os.kill(pid, options.stop)
                # A stopped program receives the signal only when it continues.
                os.kill(pid, signal.SIGCONT)


def _hang_up(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGHUP)
        os.killpg(pid, signal.SIGCONT)


def _working_directory() -> str:
    """Return the current directory's path: ``.`` would still mean what was there before a mount covered it. Empty if gone."""
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
