"""The standard streams of the program in the view: our pipes for an engine, the caller's own streams for any other command."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from kopiatomic.runs import launcher
from kopiatomic.system import signals
from kopiatomic.system.process import Feed
from kopiatomic.system.terminal import Screen, Terminal, is_same

_READ = 1 << 16


class Streams(Protocol):
    """What the supervisor needs. Descriptors belong to the main process, unless stated otherwise."""

    def open(self) -> launcher.ProgramStreams:
        """Make the streams. Return the program's ends, which every process closes once it does not need them any more.

        Called once.
        """

    def attended(self) -> AbstractContextManager[None]:
        """Surround the program's life, from right before its start."""

    @property
    def unfinished(self) -> bool:
        """Whether more may come although the program has ended."""

    def interests(self) -> Mapping[int, int]:
        """Return the descriptors to watch, and poll(2)'s events for each."""

    def handle(self, fd: int, events: int, /) -> None:
        """Handle a descriptor that is ready."""

    def after_signal(self, tell: Callable[[object], None], /) -> None:
        """React to a signal; ``tell`` sends the launcher a message."""

    def handle_message(self, message: object, tell: Callable[[object], None], /) -> None:
        """Handle a message of the launcher; ``tell`` answers."""

    def close(self) -> None:
        """Close our ends."""


class Pipes:
    """An engine's streams: nothing to read; output goes to ``take``, as does an empty piece at a stream's end."""

    def __init__(self, take: Callable[[str, bytes], None]) -> None:
        self._take = take
        self._ends: dict[int, str] = {}
        self._ended: set[int] = set()

    def open(self) -> launcher.ProgramStreams:
        """Make two pipes, and open /dev/null."""
        stdout, theirs_out = os.pipe2(os.O_CLOEXEC)
        stderr, theirs_err = os.pipe2(os.O_CLOEXEC)
        self._ends = {stdout: "stdout", stderr: "stderr"}
        return launcher.ProgramStreams(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), theirs_out, theirs_err)

    def attended(self) -> AbstractContextManager[None]:
        """Prepare nothing."""
        return nullcontext()

    @property
    def unfinished(self) -> bool:
        """Whether a pipe has not been read to its end."""
        return len(self._ended) < len(self._ends)

    def interests(self) -> Mapping[int, int]:
        """Return those that have not ended."""
        return {fd: select.POLLIN for fd in self._ends if fd not in self._ended}

    def handle(self, fd: int, _events: int, /) -> None:
        """Read what is available."""
        data = os.read(fd, _READ)
        self._take(self._ends[fd], data)
        if not data:
            self._ended.add(fd)

    def after_signal(self, _tell: Callable[[object], None], /) -> None:
        """Do nothing: the supervisor handles what ends a run."""

    def handle_message(self, _message: object, _tell: Callable[[object], None], /) -> None:
        """Do nothing: an engine is neither stopped nor resumed."""

    def close(self) -> None:
        """Close the ends that we read from."""
        for fd in self._ends:
            os.close(fd)
        self._ends = {}


class FedPipes(Pipes):
    """Streams of a program that reads a content from its standard input; its output goes to ``take`` as of :class:`Pipes`."""

    def __init__(self, content: bytes, take: Callable[[str, bytes], None]) -> None:
        super().__init__(take)
        self._content = content
        self._feed: Feed | None = None

    def open(self) -> launcher.ProgramStreams:
        """Make three pipes."""
        theirs = super().open()
        os.close(theirs.stdin)
        theirs.stdin, ours = os.pipe2(os.O_CLOEXEC)
        self._feed = Feed(ours, self._content)
        return theirs

    def interests(self) -> Mapping[int, int]:
        """Return those that have not ended, and what is written to as long as there is more."""
        found = dict(super().interests())
        if self._feed is not None and self._feed.fd >= 0:
            found[self._feed.fd] = select.POLLOUT
        return found

    def handle(self, fd: int, events: int, /) -> None:
        """Read what is available, or write what fits."""
        if self._feed is not None and fd == self._feed.fd:
            self._feed.write()
        else:
            super().handle(fd, events)

    def close(self) -> None:
        """Close our ends."""
        super().close()
        if self._feed is not None:
            self._feed.close()


class CallerStreams:
    """The caller's own streams: what the command reads and writes does not pass through us.

    Where stdin is a terminal, the command gets a terminal of its own in its place, and for every other descriptor of the same
    terminal (``system/terminal.py``), so that it has a controlling one. We take the keyboard from the start, unless another
    process may want it: the rest of a pipeline that we write to, or the shell that has us in the background. Then the command
    starts in the background of its terminal, and the kernel stops it when it wants the keyboard.

    Only one program of a run can have them: afterwards they are closed here.

    ``owner`` is the other user that the command runs as, if any: that user must be able to open the terminal, and gets no
    descriptor of the caller's terminals. ``say`` takes a line for the user; ``started`` is called when the command has started.
    """

    def __init__(
        self, *, owner: int | None, say: Callable[[str], None], started: Callable[[launcher.Started], None]
    ) -> None:
        self._owner = owner
        self._say = say
        self._started = started
        self._terminal: Terminal | None = None
        self._own: set[int] = set()
        self._screens: dict[int, Screen] = {}
        """What stands for the caller's terminals, by the descriptors that it replaces."""
        self._signals: list[int] = []
        self.foreground = False
        """Whether the command has the keyboard."""

    def open(self) -> launcher.ProgramStreams:
        """Return copies of the caller's streams, or of the terminal that stands for them."""
        if os.isatty(0):
            self._terminal = Terminal(0, owner=self._owner, shared=_is_pipe(1))
            self.foreground = self._terminal.in_foreground() and not _is_pipe(1)
        self._own = {fd for fd in (0, 1, 2) if self._terminal is None or not is_same(fd, 0)}
        if self._owner is not None:
            self._replace_terminals(self._owner)
        stdin, stdout, stderr = (self._copy(fd) for fd in (0, 1, 2))
        terminal = None if self._terminal is None else _copy(self._terminal.theirs)
        return launcher.ProgramStreams(stdin, stdout, stderr, terminal, self.foreground)

    def _replace_terminals(self, owner: int) -> None:
        for fd in self._own & {1, 2}:
            if os.isatty(fd):
                same = next((screen for other, screen in self._screens.items() if is_same(other, fd)), None)
                self._screens[fd] = same or Screen(fd, owner=owner)

    @property
    def _all_screens(self) -> list[Screen]:
        return list(dict.fromkeys(self._screens.values()))

    def _copy(self, fd: int) -> int:
        if fd in self._screens:
            return _copy(self._screens[fd].theirs)
        return _copy(fd if fd in self._own or self._terminal is None else self._terminal.theirs)

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Close what is the command's alone, and relay its terminal."""
        for fd in self._own - {2}:
            # The process at the other end must notice when the command closes it.
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, fd)
            os.close(null)
        with signals.noted(signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH) as self._signals:
            if self._terminal is None:
                yield
            else:
                with self._terminal.restored():
                    self._terminal.attach(keyboard=self.foreground)
                    yield
                    self._terminal.drain()
            for screen in self._all_screens:
                screen.drain()

    @property
    def unfinished(self) -> bool:
        """Always False: what is left on the terminal is shown when the command has ended."""
        return False

    def interests(self) -> Mapping[int, int]:
        """Return the events of the terminal, and of what stands for others."""
        found = dict(self._terminal.interests()) if self._terminal else {}
        for screen in self._all_screens:
            found |= screen.interests()
        return found

    def handle(self, fd: int, events: int, /) -> None:
        """Relay what is ready."""
        for screen in self._all_screens:
            if fd in screen.interests():
                screen.handle(fd)
                return
        assert self._terminal is not None
        self._terminal.handle(fd, events)

    def after_signal(self, tell: Callable[[object], None], /) -> None:
        """Follow the terminal's size; stop and resume with the caller."""
        came = set()
        while self._signals:
            # One at a time: the next may arrive between any two steps.
            came.add(self._signals.pop())
        if self._terminal is not None:
            self._terminal.fit()
            if signal.SIGCONT in came:
                self._terminal.attach(keyboard=self.foreground)
        if signal.SIGTSTP in came and self._terminal is not None:
            tell(launcher.Suspend(signal.SIGTSTP))
        elif signal.SIGTSTP in came:
            # Only this process received it, not the command. Do not wait for the command to stop: a process in the middle of a
            # vfork(2) cannot stop if its child is stopped first.
            tell(launcher.Suspend(signal.SIGSTOP))
            self._stop(signal.SIGTSTP)
            tell(launcher.Resume(foreground=False))

    def handle_message(self, message: object, tell: Callable[[object], None], /) -> None:
        """Give a stopped command the keyboard if it wants it, or else stop with it."""
        if isinstance(message, launcher.Started):
            self._started(message)
        terminal = self._terminal
        if terminal is None or not isinstance(message, launcher.Suspended):
            return
        terminal.drain()
        if message.signum in {signal.SIGTTIN, signal.SIGTTOU} and not self.foreground:
            if not terminal.in_foreground():
                self._stop(message.signum)
                terminal.resemble()
            self.foreground = True
            terminal.attach(keyboard=True)
        else:
            with terminal.aside():
                self._say("stopped; its snapshots stay until it is resumed and ends")
                self._stop(signal.SIGTSTP)
        tell(launcher.Resume(foreground=self.foreground))

    def _stop(self, signum: int) -> None:
        """Stop with the caller's whole job until it is resumed. An orphan, which no process could resume, continues at once."""
        handler = signal.signal(signum, signal.SIG_DFL)
        if self._terminal is None:
            os.kill(os.getpid(), signum)
        else:
            os.killpg(os.getpgrp(), signum)
        signal.signal(signum, handler)

    def aside(self) -> AbstractContextManager[None]:
        """Restore the terminal to the caller's state for the length of the block, so that something can be printed."""
        return nullcontext() if self._terminal is None else self._terminal.aside()

    def close(self) -> None:
        """Close our ends of the terminal."""
        if self._terminal is not None:
            self._terminal.close()
        for screen in self._all_screens:
            screen.close()


def _copy(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _is_pipe(fd: int) -> bool:
    return stat.S_ISFIFO(os.fstat(fd).st_mode)
