"""A schedule, its files, and what a scheduler is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from kopiatomic.errors import UsageError
from kopiatomic.immutable import immutable
from kopiatomic.text import printable

LATE = 3
"""After how many of its intervals without a complete success a schedule has failed."""


HOURLY, DAILY = "hourly", "daily"


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,49}")


_LINE = "# kopiatomic schedule: "


@immutable
class Schedule:
    """One of them. Times in seconds."""

    name: str
    calendar: str
    """When it starts, as systemd.time(7) has it."""
    interval: float
    """The longest time between two starts."""
    program: tuple[str, ...]
    """The argv of kopiatomic, absolute."""
    words: tuple[str, ...]
    """The words of the backup."""
    environment: Mapping[str, str]
    """The whole environment of its processes, but for what the platform adds."""
    credentials: Mapping[str, str]
    """The files that hold the engine's secrets, by the variable that each is for."""
    state_dir: str
    end_timeout: float
    """How long a run may take to end, cleaning up included."""


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
    """What starts schedules on a platform."""

    @property
    def runs(self) -> bool:
        """Whether it is there to start anything, and not only its files."""

    def calendar(self, name: str, wanted: str) -> Calendar:
        """Understand ``hourly``, ``daily`` or a calendar event of systemd.time(7). Raises UsageError, KopiatomicError."""

    def check(self, schedule: Schedule) -> None:
        """Refuse what it cannot say. Raises KopiatomicError."""

    def advice(self, variable: str) -> str:
        """How a secret, such as the value of this variable, reaches the engine of a schedule."""

    def files(self, schedule: Schedule) -> list[File]:
        """The files that the schedule needs, less those that came with the program."""

    def file(self, name: str) -> str:
        """The file that starts a schedule."""

    def leftovers(self, name: str) -> list[str]:
        """The files that go with a schedule when it is removed, whether they are there or not."""

    def names(self) -> list[str]:
        """What may be schedules: where :meth:`read` finds none, it is somebody else's file."""

    def read(self, name: str) -> Schedule | None:
        """What is installed by this name, changed by hand or not; None where nothing is. Raises KopiatomicError."""

    def ask(self, schedule: Schedule) -> Mapping[str, Any] | None:
        """Have ``kopiatomic schedule check`` answer as the schedule would run; None where that cannot be.

        Raises KopiatomicError.
        """

    def start(self, name: str) -> None:
        """Have its times begin, now that its files are there. Raises KopiatomicError."""

    def stop(self, name: str) -> None:
        """Have its times end, before its files go. Raises KopiatomicError."""

    def stopped(self, name: str) -> None:
        """Forget it, now that its files are gone. Raises KopiatomicError."""

    def busy(self, name: str) -> bool:
        """Whether what it has started still runs, as far as it knows. Raises KopiatomicError."""

    def waits(self, name: str) -> bool:
        """Whether it will start by itself, as far as that is known. Raises KopiatomicError."""

    def ending(self, name: str) -> str:
        """What ends a run that it has started, in words."""

    def next(self, name: str) -> str | None:
        """When it starts next, in words; None where that is not known."""


def check_name(name: str) -> None:
    """Refuse a name that would have to be written otherwise in the name of a unit or a file. Raises UsageError."""
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"a schedule cannot be named {printable(name)!r}",
            kind="bad-name",
            hint="Up to 50 letters, digits, '-' and '_', the first a letter or a digit: for example home",
        )


def described(schedule: Schedule) -> str:
    """A schedule as the line in its file that :func:`understood` reads."""
    return _LINE + json.dumps(asdict(schedule), sort_keys=True) + "\n"


def understood(text: str) -> Schedule | None:
    """The schedule that a file has in such a line; None where there is none that we understand."""
    line = next((line for line in text.splitlines() if line.startswith(_LINE)), None)
    if line is None:
        return None
    try:
        found = json.loads(line.removeprefix(_LINE))
        return Schedule(**{**found, "program": tuple(found["program"]), "words": tuple(found["words"])})
    except (ValueError, KeyError, TypeError):
        return None


def command(schedule: Schedule, *words: str) -> list[str]:
    """The argv of one of our own commands as the schedule starts them."""
    return [*schedule.program, *words]


def backup(schedule: Schedule) -> Sequence[str]:
    """The words of the backup as one of this schedule."""
    return ["--schedule", schedule.name, *schedule.words]
