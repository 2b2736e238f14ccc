"""A terminal for a program that runs apart from its caller's terminal: a pty(7), and the relay between the two.

While the caller's terminal is attached it is in raw mode: every key goes to the program's terminal, whose own line discipline
echoes, edits, and turns Ctrl-C and Ctrl-Z into signals.
"""

from __future__ import annotations

import fcntl
import os
import select
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from kopiatomic.system import host

_PIECE = 1 << 14
_PATIENCE = 2.0
"""Seconds to wait for a terminal that accepts nothing, when the program has ended or something must be printed."""

_FAILED = (OSError, termios.error)


def is_same(one: int, other: int) -> bool:
    """Whether two descriptors are the same terminal."""
    return os.isatty(one) and os.isatty(other) and os.fstat(one).st_rdev == os.fstat(other).st_rdev


class Terminal:
    """The pty, configured like the caller's terminal.

    ``owner`` is a user who must be able to open it. If the caller's terminal is ``shared`` with other programs, what they write
    keeps its line ends.
    """

    def __init__(self, fd: int, *, owner: int | None, shared: bool) -> None:
        # Opened a second time, so that settings of this descriptor do not affect the caller's.
        flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        self._callers = host.here().open_again(fd, flags)
        self._before = termios.tcgetattr(self._callers)
        self._ours, self.theirs = os.openpty()
        os.set_blocking(self._ours, False)
        termios.tcsetattr(self.theirs, termios.TCSANOW, self._before)
        if owner is not None:
            os.fchown(self.theirs, owner, -1)
        self._to_caller = b""
        self._to_program = b""
        self._shared = shared
        self._raw = False
        self._gone = False
        self.fit()

    def in_foreground(self) -> bool:
        """Whether we may now change and read from the caller's terminal."""
        try:
            return os.tcgetpgrp(self._callers) == os.getpgrp()
        except OSError:
            # It is not our controlling terminal: no shell manages jobs on it.
            return True

    def resemble(self) -> None:
        """Take over later settings of the caller's terminal, for example once its shell no longer reads commands."""
        with suppress(*_FAILED):
            termios.tcsetattr(self.theirs, termios.TCSANOW, termios.tcgetattr(self._callers))

    def attach(self, *, keyboard: bool) -> None:
        """Give the program the keyboard, if it should have it and we have it; repeat it where that may have been undone."""
        self.fit()
        if not keyboard or not self.in_foreground():
            self._raw = False
            return
        with suppress(*_FAILED):
            if not self._raw:
                self._before = termios.tcgetattr(self._callers)
            termios.tcsetattr(self._callers, termios.TCSANOW, _raw(self._before, output=not self._shared))
            self._raw = True

    def detach(self) -> None:
        """Restore the caller's terminal."""
        if self._raw and self.in_foreground():
            with suppress(*_FAILED):
                termios.tcsetattr(self._callers, termios.TCSANOW, self._before)
        self._raw = False

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the caller's terminal, however the block is left."""
        try:
            yield
        finally:
            self.detach()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Restore the caller's terminal for the length of the block."""
        attached = self._raw
        if attached:
            self._flush()
            self.detach()
            with suppress(OSError):
                os.write(self._callers, b"\n")
        try:
            yield
        finally:
            if attached:
                self.attach(keyboard=True)

    def fit(self) -> None:
        """Give the program's terminal the size of the caller's; the kernel notifies the program."""
        with suppress(OSError):
            size = fcntl.ioctl(self._callers, termios.TIOCGWINSZ, b"\0" * 8)
            fcntl.ioctl(self._ours, termios.TIOCSWINSZ, size)

    def interests(self) -> Mapping[int, int]:
        """Return what to watch: nothing is read from one side while the other has no room for it."""
        if self._gone:
            return {}
        ours = (0 if self._to_caller else select.POLLIN) | (select.POLLOUT if self._to_program else 0)
        reads = self._raw and not self._to_program
        callers = (select.POLLIN if reads else 0) | (select.POLLOUT if self._to_caller else 0)
        return {fd: events for fd, events in ((self._ours, ours), (self._callers, callers)) if events}

    def handle(self, fd: int, events: int) -> None:
        """Relay what is available."""
        try:
            if fd == self._ours:
                if events & select.POLLOUT:
                    self._to_program = self._to_program[os.write(fd, self._to_program) :]
                if events & (select.POLLIN | select.POLLHUP) and not self._to_caller:
                    self._to_caller = os.read(fd, _PIECE)
            else:
                if events & select.POLLOUT:
                    self._to_caller = self._to_caller[os.write(fd, self._to_caller) :]
                if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and not self._to_program:
                    self._to_program = os.read(fd, _PIECE)
                    if not self._to_program:
                        self._hang_up()
        except BlockingIOError:
            return
        except OSError:
            self._hang_up()

    def _hang_up(self) -> None:
        """Close the program's terminal since the caller's is gone: the kernel tells the program (SIGHUP)."""
        if not self._gone:
            self._gone = True
            self._raw = False
            os.close(self._ours)
            self._to_caller = self._to_program = b""

    def drain(self) -> None:
        """Show all that the program, which has ended or stopped, has written."""
        while not self._gone and self._flush():
            try:
                self._to_caller = os.read(self._ours, _PIECE)
            except OSError:
                return

    def _flush(self) -> bool:
        """Show pending output. Return whether all of it was accepted."""
        self._to_caller = _show(self._callers, self._to_caller)
        return not self._to_caller

    def close(self) -> None:
        """Close all descriptors, here or in a fork."""
        for fd in (self._callers, self.theirs, -1 if self._gone else self._ours):
            if fd >= 0:
                os.close(fd)


class Screen:
    """One of the caller's terminals that a program may only write to: the program gets a pipe.

    With a descriptor of the terminal itself it could read what is typed and, on many kernels, type (TIOCSTI). ``owner`` is the
    user that must be able to open the pipe by its name.
    """

    def __init__(self, fd: int, *, owner: int) -> None:
        self._screen = host.here().open_again(fd, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._written, self.theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._written, False)
        os.fchown(self.theirs, owner, -1)
        self._data = b""
        self._gone = False

    def interests(self) -> Mapping[int, int]:
        """Return what to watch: nothing is read while the terminal has no room for it."""
        if self._gone:
            return {}
        return {self._screen: select.POLLOUT} if self._data else {self._written: select.POLLIN}

    def handle(self, fd: int) -> None:
        """Relay what is available."""
        try:
            if fd == self._screen:
                self._data = self._data[os.write(fd, self._data) :]
            else:
                self._data = os.read(fd, _PIECE)
                self._gone = not self._data
        except BlockingIOError:
            return
        except OSError:
            # The terminal is gone: a program that continues to write gets SIGPIPE.
            self._gone = True
            os.close(self._written)
            self._written = -1

    def drain(self) -> None:
        """Show all that the program, which has ended, has written."""
        while not self._gone:
            self._data = _show(self._screen, self._data)
            if self._data:
                return
            self.handle(self._written)
            if not self._data:
                return

    def close(self) -> None:
        """Close all descriptors, here or in a fork."""
        for fd in (self._screen, self.theirs, self._written):
            if fd >= 0:
                os.close(fd)


def _show(fd: int, data: bytes) -> bytes:
    """Write to a terminal, with some patience. Return what it did not accept."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while data and poll.poll(_PATIENCE * 1000):
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            continue
        except OSError:
            break
    return data


def _raw(mode: list[Any], *, output: bool) -> list[Any]:
    """Return a mode in which every byte passes unchanged (cfmakeraw(3)), for output only if ``output``."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, characters = mode
    iflag &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP)
    iflag &= ~(termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON)
    if output:
        oflag &= ~termios.OPOST
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    characters = list(characters)
    characters[termios.VMIN], characters[termios.VTIME] = 1, 0
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, characters]
