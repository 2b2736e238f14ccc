"""Programs that answer over pipes for as long as they are needed, such as a database's own client.

The end of our process is the end of their input, and by default the kernel kills them as well: what such a program holds at a
server is released then.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from kopiatomic.errors import KopiatomicError
from kopiatomic.system import children, host, signals, spawn
from kopiatomic.system.process import Finished

_KEEP = 64 << 20
"""How many bytes of output may wait to be taken."""

_KEEP_ERRORS = 64 << 10
"""How many bytes of the error output are kept."""

_ENDING_TIMEOUT = 0.5
"""Seconds that a program has to end when it has closed a pipe."""

_KILLED_TIMEOUT = 5.0
"""Seconds that a killed program has to end; only one that waits in the kernel takes longer."""


class EndedError(Exception):
    """The program has ended, or has closed its output, although it should have gone on."""

    def __init__(self, finished: Finished) -> None:
        super().__init__(finished.why)
        self.finished = finished


class Coprocess:
    """A program with pipes for its input, its output and its errors.

    ``tied``: the kernel kills it when this process ends. ``user``: the program runs as that user, without any privilege.

    Raises FileNotFoundError, PermissionError and OSError as :func:`kopiatomic.system.spawn.start` does.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        *,
        user: spawn.User | None = None,
        tied: bool = True,
    ) -> None:
        self._argv = argv
        self._output = bytearray()
        self._errors = bytearray()
        self._status: int | None = None
        theirs_in, self._input = os.pipe2(os.O_CLOEXEC)
        self._out, theirs_out = os.pipe2(os.O_CLOEXEC)
        self._err, theirs_err = os.pipe2(os.O_CLOEXEC)
        options = spawn.SpawnOptions(theirs_in, theirs_out, theirs_err, cwd="/", user=user, tied=tied)
        try:
            self.pid = spawn.start(argv, environment, options)
        except BaseException:
            for fd in (self._input, self._out, self._err):
                os.close(fd)
            raise
        finally:
            for fd in (theirs_in, theirs_out, theirs_err):
                os.close(fd)
        self._open = {self._out: self._output, self._err: self._errors}
        self._watch = host.here().watch(self.pid)

    def send(self, text: bytes) -> None:
        """Write to its input; at most what a pipe holds at a time (64 KiB, pipe(7)). Raises EndedError."""
        try:
            os.write(self._input, text)
        except BrokenPipeError:
            raise EndedError(self._killed()) from None

    def line(self, deadline: float) -> bytes:
        """Return the next line of its output, without its end. ``deadline`` is of ``time.monotonic``.

        Raises EndedError, TimeoutError, Interrupted.
        """
        while b"\n" not in self._output:
            self._reap()
            # A process that it has left may still have the pipe open.
            if self._out not in self._open or (self._status is not None and not self._has_more()):
                raise EndedError(self._killed())
            self._read(deadline)
        line, _, rest = bytes(self._output).partition(b"\n")
        self._output[:] = rest
        return line

    def lines(self, last: bytes, deadline: float) -> list[bytes]:
        """Return the lines of its output before the line ``last``, which is taken as well. Raises as :meth:`line`."""
        found: list[bytes] = []
        while (line := self.line(deadline)) != last:
            found.append(line)
        return found

    def finish(self, deadline: float) -> Finished:
        """Close its input and wait for its end. Return all output that was not taken.

        Raises TimeoutError, when it has been killed, and Interrupted.
        """
        if self._watch < 0:
            return self._finished()
        self._close_input()
        try:
            while self._status is None:
                self._read(deadline)
                self._reap()
            # What it has written is there; a process that it has left may still have the pipe open.
            while self._open and self._has_more():
                self._read(deadline)
        except BaseException:
            self.kill()
            raise
        finished = self._finished()
        self._close()
        return finished

    def kill(self) -> None:
        """Kill it with its process group and reap it, if it has not been reaped. Returns within a few seconds in any case."""
        if self._status is None and self._watch >= 0:
            with signals.deferred():
                self._kill()
        self._close()

    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self._status is not None or children.has_ended(self.pid)

    def _killed(self) -> Finished:
        """Return how it has ended; kill it if it only closed a pipe."""
        with signals.deferred():
            # A program that closes its output is about to end, and says why.
            self._wait_for_end(time.monotonic() + _ENDING_TIMEOUT)
            if self._status is None:
                self._kill()
        return self._finished()

    def _kill(self) -> None:
        # It leads a group of its own, whose number is not used again before it is reaped.
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._wait_for_end(time.monotonic() + _KILLED_TIMEOUT)

    def _wait_for_end(self, deadline: float) -> None:
        try:
            while self._status is None or (self._open and self._has_more()):
                self._read(deadline)
                self._reap()
        except TimeoutError:
            return

    def _finished(self) -> Finished:
        # One that waits in the kernel has been killed, and ends when that lets it.
        status = -signal.SIGKILL if self._status is None else self._status
        return Finished(self._argv, status, bytes(self._output), bytes(self._errors))

    def _reap(self) -> None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)

    def _has_more(self) -> bool:
        poll = select.poll()
        for fd in self._open:
            poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))

    def _read(self, deadline: float) -> None:
        """Read what comes next, or wait for the program's end. Raises TimeoutError, Interrupted."""
        signals.check()
        poll = select.poll()
        wakeup = signals.fd()
        for fd in (*self._open, self._watch, *(() if wakeup is None else (wakeup,))):
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)}
        if not ready:
            raise TimeoutError
        if wakeup in ready:
            signals.check()
        for fd in ready & self._open.keys():
            chunk = os.read(fd, 1 << 16)
            if not chunk:
                del self._open[fd]
            elif fd == self._err:
                self._errors += chunk[: max(0, _KEEP_ERRORS - len(self._errors))]
            else:
                self._output += chunk
                self._require_bounded()

    def _require_bounded(self) -> None:
        if len(self._output) > _KEEP:
            raise KopiatomicError(
                f"{os.path.basename(self._argv[0])} wrote more than {_KEEP >> 20} MiB",
                kind="too-much-output",
                hint="Is it the program that it should be?",
            )

    def _close_input(self) -> None:
        if self._input >= 0:
            os.close(self._input)
            self._input = -1

    def _close(self) -> None:
        self._close_input()
        if self._watch >= 0:
            for fd in (self._out, self._err, self._watch):
                os.close(fd)
            self._watch = -1
            self._open.clear()


def run(
    argv: Sequence[str],
    environment: Mapping[str, str],
    deadline: float,
    *,
    text: bytes = b"",
    user: spawn.User | None = None,
) -> Finished:
    """Run a program with a short text as its input to its end, as a user. Raises OSError, TimeoutError, Interrupted."""
    program = Coprocess(argv, environment, user=user)
    try:
        program.send(text)
        return program.finish(deadline)
    except EndedError as error:
        return error.finished
    finally:
        program.kill()
