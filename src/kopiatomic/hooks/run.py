"""Runs the hooks of a profile: bounded in time and output, with the run's description on their input, and nothing left behind."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kopiatomic.errors import KopiatomicError
from kopiatomic.hooks.hook import Hook
from kopiatomic.system import accounts, process
from kopiatomic.system.lines import Lines
from kopiatomic.system.spawn import DirectoryError, InterpreterError, User, UserError
from kopiatomic.text import ended, printable

LONGEST_OUTPUT = 64 << 10
"""How much of a hook's output is shown (bytes)."""

SKIP = 75
"""The exit status by which ``before`` says that there is nothing to back up now (EX_TEMPFAIL, sysexits.h)."""


class HookError(KopiatomicError):
    """A hook failed. ``status`` is how it ended; None if it did not end by itself, or never began."""

    def __init__(self, message: str, *, kind: str, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message, kind=kind, hint=hint)
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (str(self.message), self.kind, self.hint, self.status)


def _rebuilt(message: str, kind: str, hint: str | None, status: int | None) -> HookError:
    return HookError(message, kind=kind, hint=hint, status=status)


def run(
    hook: Hook,
    document: Mapping[str, Any],
    environment: Mapping[str, str],
    say: Callable[[str], None],
    *,
    insistent: bool = True,
) -> None:
    """Run a hook to its end; its children end with it.

    It reads ``document`` as JSON from its standard input. ``say`` takes each line of its output, up to :data:`LONGEST_OUTPUT`.
    Where signals are deferred, the second one ends it, unless ``insistent`` is False. Raises HookError, Interrupted.
    """
    account = account_of(hook)
    whole = dict(environment) if account is None else {**environment, **accounts.variables(account)}
    user = None if account is None else User.of(account)
    around = process.Surroundings(whole, hook.directory, user, json.dumps(document).encode() + b"\n")
    output = Output(hook, say)
    try:
        status = process.run_for_effect(
            hook.argv, timeout=hook.timeout, around=around, take=output.take, insistent=insistent
        )
    except process.ImpatientError:
        raise HookError(
            f"{hook.shown} was ended by a second signal",
            kind="hook-interrupted",
            hint="What it should have done is not done.",
        ) from None
    except process.TimeLimitError:
        raise too_late(hook) from None
    except OSError as error:
        raise _not_started(hook, error) from None
    finally:
        output.end()
    if status != 0:
        raise failed(hook, status, output.last)


def account_of(hook: Hook) -> pwd.struct_passwd | None:
    """Return the account of the user that a hook runs as; None for root. Raises HookError."""
    if not hook.user:
        return None
    found = accounts.find(hook.user)
    if found is None:
        raise HookError(
            f"{hook.shown}: there is no user {printable(hook.user)}",
            kind="no-such-user",
            hint="'getent passwd' lists them.",
        )
    return found


def failed(hook: Hook, status: int | None, last: str) -> HookError:
    """Return what a hook's end means. ``last`` is the last line of its output."""
    how = "it waits in the kernel" if status is None else ended(status)
    return HookError(
        f"{hook.shown} failed ({how})" + (f": {last}" if last else ""),
        kind="hook-failed",
        hint="Run it by hand to see more.",
        status=status,
    )


def too_late(hook: Hook) -> HookError:
    """Return the error that a hook's time was over."""
    return HookError(
        f"{hook.shown} did not end within {hook.timeout:g} s and was ended",
        kind="hook-timeout",
        hint="Give it longer (timeout), or make it end.",
    )


def _not_started(hook: Hook, error: OSError) -> HookError:
    why = os.strerror(error.errno) if error.errno else str(error)
    what = f"{printable(hook.argv[0])} cannot be started: {why}"
    if isinstance(error, DirectoryError):
        what = f"its directory {printable(hook.directory)} cannot be entered: {why}"
    elif isinstance(error, UserError):
        what = f"this process may not become {printable(hook.user)}: {why}"
    elif isinstance(error, InterpreterError):
        what = f"the interpreter that {printable(hook.argv[0])} names is not there"
    return HookError(
        f"{hook.shown}: {what}", kind="hook-not-started", hint="'kopiatomic profile check' looks at it again."
    )


class Output:
    """The output of a hook, as lines with its name, and no more of it than is shown."""

    def __init__(self, hook: Hook, say: Callable[[str], None]) -> None:
        self._name = hook.moment.value
        self._say = say
        self._lines = Lines()
        self._left = LONGEST_OUTPUT
        self.last = ""
        """The last line that was not blank."""

    def take(self, data: bytes) -> None:
        """Take a piece of it."""
        before = self._left
        self._left -= len(data)
        if before > 0:
            self._show(self._lines.feed(data[:before]))

    def end(self) -> None:
        """Show what is left of it."""
        self._show(self._lines.feed(b""))
        if self._left < 0:
            self._say(f"{self._name}: {-self._left:,} bytes more are not shown")

    def _show(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.last = line.strip() or self.last
            self._say(f"{self._name}: {line}")
