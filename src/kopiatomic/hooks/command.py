"""Writers that a command of the user's own holds still: it prints ``held`` and releases them when its input ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from types import MappingProxyType

from kopiatomic.errors import KopiatomicError, UsageError, unforeseen
from kopiatomic.hooks import shell
from kopiatomic.hooks.holder import LIMIT, Around, Finding, Held, Key, Wanted, not_in_time
from kopiatomic.model.leftovers import Intent
from kopiatomic.system.coprocess import Coprocess, EndedError
from kopiatomic.system.process import Finished
from kopiatomic.text import printable

_HELD = b"held"
_RELEASE_TIMEOUT = 10.0
"""Seconds that it has to release what it holds and to end."""

_KILL_AFTER = 2
"""Seconds after which timeout(1) kills what does not end when it is asked to."""


_BY_TIMEOUT = (124, 128 + signal.SIGKILL)
"""The exit statuses of timeout(1) when it has ended a program, and when it had to kill it."""


class _Command:
    name = "command"
    settings: Mapping[str, Key] = MappingProxyType(
        {"command": Key(list, "The program with its arguments; no shell reads it.")}
    )
    programs = ("command",)

    def find(self, wanted: Wanted, around: Around) -> list[Finding]:
        """Return that it will be run: what it holds, only it knows."""
        words = wanted.settings.get("command")
        if not words or not all(isinstance(word, str) for word in words):
            raise UsageError(
                f"--hold {wanted}: the command is missing",
                kind="hold-setting",
                hint='Only a profile can say it: command = ["program", "argument"]',
            )
        try:
            shell.check_program(words[0], around.environment.get("PATH"))
        except UsageError as error:
            raise KopiatomicError(
                f"--hold {wanted}: the command {error.message}", kind="hold-no-client", hint=error.hint
            ) from None
        label = printable(f"command {wanted.name or os.path.basename(words[0])}")
        return [Finding(label, "holds what it knows", CommandHolder(label, wanted, words, around.environment))]


class CommandHolder:
    """Satisfies :class:`kopiatomic.hooks.holder.Holder`.

    The command notices our end by the end of its input. timeout(1) ends it when it has been held for too long, even if we are
    stopped.
    """

    def __init__(self, label: str, wanted: Wanted, words: list[str], environment: Mapping[str, str]) -> None:
        self.label = label
        self.wanted = wanted
        self._words = words
        self._environment = environment
        self._limit = LIMIT if wanted.limit is None else wanted.limit
        self._program: Coprocess | None = None
        self._since = 0

    def intents(self) -> tuple[Intent, ...]:
        """Return nothing: what it holds ends with it."""
        return ()

    def prepare(self, _deadline: float) -> None:
        """Do nothing: it holds as soon as it runs."""

    def hold(self, deadline: float) -> None:
        """Start it, and wait until it says that it holds."""
        seconds = max(0.0, deadline - time.monotonic()) + self._limit
        words = ["timeout", f"--kill-after={_KILL_AFTER}", f"{seconds:.3f}", *self._words]
        self._since = time.monotonic_ns()
        try:
            # Not killed with us: it must be able to release what it holds, and notices the end of its input.
            self._program = Coprocess(words, self._environment, tied=False)
            line = self._program.line(deadline)
        except TimeoutError:
            raise not_in_time(self.label, "it did not print 'held'", self.wanted.timeout) from None
        except OSError as error:
            raise unforeseen(error) from None
        except EndedError as error:
            raise self._failed(_why(error.finished)) from None
        if line.strip() != _HELD:
            raise self._failed(f"it printed {printable(os.fsdecode(line))} and not 'held'")

    def settle(self) -> None:
        """Do nothing: what it holds, only it knows."""

    def release(self) -> Held:
        """End its input, and wait for its end."""
        program = self._program
        if program is None:
            return Held(self.label, 0, False, "it was not started")
        early = program.has_ended()
        try:
            finished = program.finish(time.monotonic() + _RELEASE_TIMEOUT)
        except TimeoutError:
            return self._released(
                False, f"it did not end within {_RELEASE_TIMEOUT:g} s after its input, and was killed"
            )
        if finished.status in _BY_TIMEOUT:
            why = (
                f"it was ended by its limit of {self._limit:g} s"
                if early
                else "it did not end when its input had ended"
            )
            return self._released(False, why)
        if early:
            return self._released(False, f"it ended before it was asked to: {finished.why}")
        if finished.status != 0:
            return self._released(False, finished.why)
        return self._released(True, "it ended when it was asked to, with status 0")

    def _released(self, proven: bool, why: str) -> Held:
        return Held(self.label, time.monotonic_ns() - self._since, proven, why)

    def close(self) -> None:
        """End its input, and it if that does not help."""
        program, self._program = self._program, None
        if program is not None:
            end_gently(program)

    def _failed(self, why: str) -> KopiatomicError:
        return KopiatomicError(
            f"{self.label} failed: {why}", kind="hold-failed", hint="Run it by hand, with its input open."
        )


def _why(finished: Finished) -> str:
    """Say why it ended before it held anything."""
    if finished.why.startswith("timeout: "):
        return f"it cannot be started: {finished.why.rpartition(': ')[2]}"
    return f"it ended before it held anything: {finished.why}"


def end_gently(program: Coprocess) -> Finished | None:
    """End a program's input, and kill it if it does not end by that; None if that was needed."""
    try:
        return program.finish(time.monotonic() + _KILL_AFTER)
    except TimeoutError:
        return None


COMMAND = _Command()
