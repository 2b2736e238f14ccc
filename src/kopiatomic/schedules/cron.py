"""Schedules on FreeBSD: a file each in /usr/local/etc/cron.d, which cron(8) reads by itself (FreeBSD 11.0 and later).

crontab(5) passes its line to a shell, so it contains only the program and the schedule's name: the words of the backup are in the
comment above, where ``kopiatomic schedule run`` reads them. Seen on FreeBSD 15.1 (docs/freebsd.md).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.schedule import Schedule
from kopiatomic.schedules import crontab as spec
from kopiatomic.schedules import files
from kopiatomic.schedules.schedule import (
    DAILY,
    HOURLY,
    Calendar,
    File,
    answer_of,
    command,
    described,
    understood,
)
from kopiatomic.state import ownership
from kopiatomic.text import printable

_FOLDER = "usr/local/etc/cron.d"
_PREFIX = "kopiatomic-"


class Cron:
    """cron as the scheduler. Its files are below ``root``."""

    runs = True
    """cron(8) looks for changes every minute and needs no notification."""

    def __init__(self, root: str = "/") -> None:
        self._folder = os.path.join(root, _FOLDER)

    def calendar(self, name: str, wanted: str) -> Calendar:
        """Refuse what cron cannot express. For a mere pace, derive the minute from the host, so that hosts differ."""
        drawn = int.from_bytes(hashlib.sha256(f"{ownership.host_id()} {name}".encode()).digest()[:4])
        text = {HOURLY: f"*:{drawn % 60:02}", DAILY: f"{drawn // 60 % 4:02}:{drawn % 60:02}"}.get(wanted, wanted)
        return Calendar(text, spec.parse(text).interval)

    def check(self, schedule: Schedule) -> None:
        """Refuse a program's path that a shell would change, and credentials, which cron does not have."""
        for word in schedule.program:
            if re.fullmatch(r"/[A-Za-z0-9/._+-]+", word) is None:
                raise KopiatomicError(
                    f"{printable(word)} would be read as something else by cron's shell",
                    kind="bad-path",
                    hint="Install it where the path has letters, digits and . _ + - only.",
                )
        if schedule.random_delay is not None or not schedule.persistent or not schedule.on_battery:
            raise KopiatomicError(
                "[schedule]: cron has no random_delay, knows no missed starts, and does not ask for the battery",
                kind="no-such-setting",
                hint="Leave these keys out of the profile on this system.",
            )
        if schedule.credentials:
            raise KopiatomicError(
                "--credential: cron has no credentials",
                kind="no-credentials",
                hint=self.advice(""),
            )

    def advice(self, variable: str) -> str:
        """Return how to do without: cron cannot hand anything over."""
        return "Let kopia keep its password, or use RESTIC_PASSWORD_FILE or BORG_PASSCOMMAND."

    def files(self, schedule: Schedule) -> list[File]:
        """Return the one file."""
        line = " ".join(command(schedule, "schedule", "run", schedule.name))
        fields = spec.parse(schedule.calendar).crontab
        return [File(self._path(schedule.name), files.marked(f"{described(schedule)}{fields} root {line}\n"))]

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, _PREFIX + name)

    def file(self, name: str) -> str:
        """Return its one file."""
        return self._path(name)

    def leftovers(self, name: str) -> list[str]:
        """Return that file."""
        return [self._path(name)]

    def names(self) -> list[str]:
        """Return those that have a file."""
        entries = presence.names(self._folder)
        return sorted(entry.removeprefix(_PREFIX) for entry in entries if entry.startswith(_PREFIX))

    def read(self, name: str) -> Schedule | None:
        """Return what its file says."""
        text = files.text(self._path(name))
        return None if text is None else understood(text)

    @property
    def unchecked(self) -> str:
        """Return nothing: cron sets up no environment besides the one that :meth:`ask` asks in."""
        return ""

    def verify(self, schedule: Schedule) -> list[str]:
        """Do nothing: cron has no check of its own, and :meth:`files` writes nothing but what crontab(5) describes."""
        return []

    def ask(self, schedule: Schedule) -> Mapping[str, Any]:
        """Ask in an environment equal to the schedule's."""
        return answer_of(schedule, schedule.environment)

    def start(self, name: str) -> None:
        """Give the file its own second: cron finds it by itself, but confuses files of equal time (``find_user``, database.c)."""
        path = self._path(name)
        taken = {int(os.stat(self._path(other)).st_mtime) for other in self.names() if other != name}
        written = int(os.stat(path).st_mtime)
        while written in taken:
            written -= 1
        os.utime(path, (written, written))

    def stop(self, name: str) -> None:
        """Do nothing: cron needs no notification."""

    def stopped(self, name: str) -> None:
        """Do nothing: nothing is kept elsewhere."""

    def busy(self, name: str) -> bool:
        """Return False: cron does not say."""
        return False

    def waits(self, name: str) -> bool:
        """Return True: it runs whenever its file exists."""
        return True

    def enabling(self, name: str) -> str:
        """Return what shows whether cron runs: nothing else can be off."""
        return "service cron start"

    def ending(self, name: str) -> str:
        """Name the process: there is no service that could be stopped."""
        return f"SIGTERM for the process that 'pgrep -fl \"schedule run {name}\"' shows"

    def next(self, name: str) -> str | None:
        """Return None: cron does not say."""
        return None
