"""The files of a schedule, and the interface of a scheduler."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.immutable import immutable
from kopiatomic.model.schedule import Schedule
from kopiatomic.system import process
from kopiatomic.text import printable

CHECK_TIMEOUT = 600.0
"""Seconds for ``schedule check``. The engine's own questions have separate limits."""

HOURLY, DAILY = "hourly", "daily"


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,49}")


_LINE = "# kopiatomic schedule: "


@immutable
class File:
    """A file that a schedule needs, with its whole content."""

    path: str
    content: str


@immutable
class Calendar:
    """When a schedule starts. ``interval`` is the longest time (seconds) between two starts."""

    text: str
    interval: float


class Scheduler(Protocol):
    """Starts schedules on a platform."""

    @property
    def runs(self) -> bool:
        """Whether it can start anything, and not only write its files."""

    def calendar(self, name: str, wanted: str) -> Calendar:
        """Parse ``hourly``, ``daily`` or a calendar event of systemd.time(7). Raises UsageError, KopiatomicError."""

    def check(self, schedule: Schedule) -> None:
        """Refuse what it cannot express. Raises KopiatomicError."""

    def advice(self, variable: str) -> str:
        """Return how a secret, such as the value of this variable, can reach the engine of a schedule."""

    def files(self, schedule: Schedule) -> list[File]:
        """Return the files that the schedule needs, without those that came with the program."""

    def file(self, name: str) -> str:
        """Return the file that starts a schedule."""

    def leftovers(self, name: str) -> list[str]:
        """Return the files to remove with a schedule, whether they exist or not."""

    def names(self) -> list[str]:
        """Return what may be schedules: if :meth:`read` finds nothing in one, the file is not ours."""

    def read(self, name: str) -> Schedule | None:
        """Return what is installed by this name, changed by hand or not; None if nothing is. Raises KopiatomicError."""

    @property
    def unchecked(self) -> str:
        """What :meth:`verify` and :meth:`ask` cannot check on this machine, in words; empty if they check everything."""

    def verify(self, schedule: Schedule) -> list[str]:
        """Return what it says about the files of a schedule that are not written yet. Raises KopiatomicError if they are bad."""

    def ask(self, schedule: Schedule) -> Mapping[str, Any]:
        """Have ``kopiatomic schedule check`` answer as the schedule would run, or as nearly so as this machine permits.

        Raises KopiatomicError.
        """

    def start(self, name: str) -> None:
        """Start its timer, after its files are written. Raises KopiatomicError."""

    def stop(self, name: str) -> None:
        """Stop its timer, before its files are removed. Raises KopiatomicError."""

    def stopped(self, name: str) -> None:
        """Forget it, after its files are removed. Raises KopiatomicError."""

    def busy(self, name: str) -> bool:
        """Whether a run that it has started is still active, as far as it knows. Raises KopiatomicError."""

    def waits(self, name: str) -> bool:
        """Whether it will start by itself, as far as that is known. Raises KopiatomicError."""

    def enabling(self, name: str) -> str:
        """Return how to have it start by itself again, as a command."""

    def ending(self, name: str) -> str:
        """Return how to end a run that it has started, in words."""

    def next(self, name: str) -> str | None:
        """Return when it starts next, in words; None if unknown."""


def check_name(name: str) -> None:
    """Refuse a name that would need escapes in the name of a unit or a file. Raises UsageError."""
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"a schedule cannot be named {printable(name)!r}",
            kind="bad-name",
            hint="Up to 50 letters, digits, '-' and '_', the first a letter or a digit: for example home",
        )


def described(schedule: Schedule) -> str:
    """Return a schedule as the line in its file that :func:`understood` reads."""
    return _LINE + json.dumps(asdict(schedule), sort_keys=True) + "\n"


def understood(text: str) -> Schedule | None:
    """Return the schedule from such a line in a file; None if there is no line that we understand."""
    line = next((line for line in text.splitlines() if line.startswith(_LINE)), None)
    if line is None:
        return None
    try:
        found = json.loads(line.removeprefix(_LINE))
        return Schedule(**{**found, "program": tuple(found["program"]), "words": tuple(found["words"])})
    except (ValueError, KeyError, TypeError):
        return None


def answer_of(schedule: Schedule, environment: Mapping[str, str]) -> Mapping[str, Any]:
    """Have ``kopiatomic schedule check`` answer in an environment. Raises KopiatomicError if there is no answer."""
    words = command(schedule, *check(schedule))
    try:
        finished = process.run(words, timeout=CHECK_TIMEOUT, environment=environment)
        answer: Mapping[str, Any] = json.loads(finished.stdout)
    except OSError as error:
        raise _no_answer(error.strerror or str(error)) from None
    except ValueError:
        raise _no_answer(finished.why) from None
    return answer


def _no_answer(said: str) -> KopiatomicError:
    return KopiatomicError(
        f"the check in the schedule's environment gave no answer: {said}",
        kind="no-answer",
        hint="Is the program whole? 'kopiatomic --version --verbose'",
    )


def command(schedule: Schedule, *words: str) -> list[str]:
    """Return the argv of one of our own commands as the schedule starts it."""
    return [*schedule.program, *words]


def backup(schedule: Schedule) -> Sequence[str]:
    """Return the words of the command that makes the backup, as one of this schedule."""
    if schedule.profile:
        return ["run", "--schedule", schedule.name, schedule.profile]
    return ["backup", "--schedule", schedule.name, *schedule.words]


def check(schedule: Schedule) -> Sequence[str]:
    """Return the words of the command that says whether the backup could be made."""
    if schedule.profile:
        return ["schedule", "check", "--profile", schedule.profile]
    return ["schedule", "check", "--", *schedule.words]
