"""The standard streams of what runs in the view: pipes of ours for an engine, the caller's own for any other command."""

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
from kopiatomic.system.terminal import Screen, Terminal, is_same

_READ = 1 << 16


class Streams(Protocol):
    """What the supervisor needs of them. Descriptors are the main process's, unless it says otherwise."""

    def open(self) -> launcher.Streams:
        """Make them; returns the program's ends, which every process closes that does not need them any more."""

    def attended(self) -> AbstractContextManager[None]:
        """The program's life, from right before its start."""

    @property
    def unfinished(self) -> bool:
        """Whether there is more to come though the program may have ended."""

    def interests(self) -> Mapping[int, int]:
        """The descriptors to watch, and poll(2)'s events for each."""

    def handle(self, fd: int, events: int, /) -> None:
        """One of them is ready."""

    def after_signal(self, tell: Callable[[object], None], /) -> None:
        """A signal came; ``tell`` tells the launcher something."""

    def told(self, message: object, tell: Callable[[object], None], /) -> None:
        """The launcher has said something; ``tell`` answers."""

    def close(self) -> None:
        """Close our ends, here or in a fork."""


class Pipes:
    """An engine's: nothing to read, and what it writes goes to ``take``, as does an empty piece at a stream's end."""

    def __init__(self, take: Callable[[str, bytes], None]) -> None:
        self._take = take
        self._ends: dict[int, str] = {}
        self._ended: set[int] = set()

    def open(self) -> launcher.Streams:
        """Two pipes, and /dev/null."""
        stdout, theirs_out = os.pipe2(os.O_CLOEXEC)
        stderr, theirs_err = os.pipe2(os.O_CLOEXEC)
        self._ends = {stdout: "stdout", stderr: "stderr"}
        return launcher.Streams(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), theirs_out, theirs_err)

    def attended(self) -> AbstractContextManager[None]:
        """Nothing must be prepared."""
        return nullcontext()

    @property
    def unfinished(self) -> bool:
        """Both pipes are read to their ends."""
        return len(self._ended) < len(self._ends)

    def interests(self) -> Mapping[int, int]:
        """Those that have not ended."""
        return {fd: select.POLLIN for fd in self._ends if fd not in self._ended}

    def handle(self, fd: int, _events: int, /) -> None:
        """Take what is there."""
        data = os.read(fd, _READ)
        self._take(self._ends[fd], data)
        if not data:
            self._ended.add(fd)

    def after_signal(self, _tell: Callable[[object], None], /) -> None:
        """What ends a run is the supervisor's."""

    def told(self, _message: object, _tell: Callable[[object], None], /) -> None:
        """An engine is neither stopped nor resumed by us."""

    def close(self) -> None:
        """Close the ends that we read from."""
        for fd in self._ends:
            os.close(fd)
        self._ends = {}


class Callers:
    """The caller's own: what the command reads and writes does not pass through us.

    Where stdin is a terminal, it and all that is the same terminal is one of the command's own (``system/terminal.py``),
    so that it has a controlling one. Its keyboard is ours from the start, unless somebody else may want it: the rest of a
    pipeline that we write to, or the shell that has us in the background. Then the command begins in the background of its
    terminal, and the kernel stops it when it wants the keyboard.

    ``owner`` is the other user that the command runs as, if there is one: that user must be able to open the terminal, and
    gets no descriptor of a terminal of the caller's. ``say`` takes a line for the user; ``started`` hears of the command's start.
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
        """What stands for terminals of the caller's, by the descriptors that it replaces."""
        self._signals: list[int] = []
        self.foreground = False
        """Whether the command has the keyboard."""

    def open(self) -> launcher.Streams:
        """Copies of the caller's, or of the terminal that stands for it."""
        if os.isatty(0):
            self._terminal = Terminal(0, owner=self._owner, shared=_is_pipe(1))
            self.foreground = self._terminal.in_foreground() and not _is_pipe(1)
        self._own = {fd for fd in (0, 1, 2) if self._terminal is None or not is_same(fd, 0)}
        if self._owner is not None:
            self._replace_terminals(self._owner)
        stdin, stdout, stderr = (self._copy(fd) for fd in (0, 1, 2))
        terminal = None if self._terminal is None else _copy(self._terminal.theirs)
        return launcher.Streams(stdin, stdout, stderr, terminal)

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
        """Let go of what is the command's alone, and relay its terminal."""
        for fd in self._own - {2}:
            # Who writes to, or reads from, the other end must hear when the command closes it.
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
        """What is left on the terminal is shown when the command has ended."""
        return False

    def interests(self) -> Mapping[int, int]:
        """The terminal's, and those of what stands for others."""
        found = dict(self._terminal.interests()) if self._terminal else {}
        for screen in self._all_screens:
            found |= screen.interests()
        return found

    def handle(self, fd: int, events: int, /) -> None:
        """Relay."""
        for screen in self._all_screens:
            if fd in screen.interests():
                screen.handle(fd)
                return
        assert self._terminal is not None
        self._terminal.handle(fd, events)

    def after_signal(self, tell: Callable[[object], None], /) -> None:
        """Follow the terminal's size; stop and go on as our caller says."""
        came = set(self._signals)
        self._signals.clear()
        if self._terminal is not None:
            self._terminal.fit()
            if signal.SIGCONT in came:
                self._terminal.attach(keyboard=self.foreground)
        if signal.SIGTSTP in came and self._terminal is not None:
            tell(launcher.Suspend(signal.SIGTSTP))
        elif signal.SIGTSTP in came:
            # Nobody has told the command but us. Its stop is not waited for: who is in the middle of a vfork(2) cannot stop,
            # where the child is stopped first.
            tell(launcher.Suspend(signal.SIGSTOP))
            self._stop(signal.SIGTSTP)
            tell(launcher.Resume(foreground=False))

    def told(self, message: object, tell: Callable[[object], None], /) -> None:
        """A command that was stopped either wants the keyboard, or we stop with it."""
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
        """Stop with all of our caller's job until it is resumed. Nobody could resume an orphan, which goes on at once."""
        handler = signal.signal(signum, signal.SIG_DFL)
        if self._terminal is None:
            os.kill(os.getpid(), signum)
        else:
            os.killpg(os.getpgrp(), signum)
        signal.signal(signum, handler)

    def aside(self) -> AbstractContextManager[None]:
        """For as long as the block takes the terminal is as the caller had it, so that something can be said."""
        return nullcontext() if self._terminal is None else self._terminal.aside()

    def close(self) -> None:
        """Close what is ours of the terminal."""
        if self._terminal is not None:
            self._terminal.close()
        for screen in self._all_screens:
            screen.close()


def _copy(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _is_pipe(fd: int) -> bool:
    return stat.S_ISFIFO(os.fstat(fd).st_mode)
