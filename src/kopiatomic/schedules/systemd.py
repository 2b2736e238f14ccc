"""Schedules on Linux: instances of ``kopiatomic@.service`` and ``kopiatomic@.timer``, each with drop-ins of its own.

The templates come with the program. A distribution's package puts them where its units are; where none has, they are put
into /etc/systemd/system beside the drop-ins, kept up to date by every ``schedule install``, and removed with the last
schedule. So what is the same for all is in one place that one can read, and a schedule's own files hold its own matters.

What a killed run left is removed twice over: by ``ExecStopPost=``, also while the machine shuts down, and by a unit of its
own that is started when the service has failed. Where the whole control group was killed at once (``systemctl kill``), the
kernel kills what systemd 254 and later put into that group afterwards as well (seen with systemd 257 on Linux 6.18).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from importlib import resources
from itertools import pairwise
from typing import Any

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError, UsageError, advice_of, unforeseen
from kopiatomic.schedules import files
from kopiatomic.schedules.schedule import Calendar, File, Schedule, backup, command, described, understood
from kopiatomic.system import process
from kopiatomic.text import printable

_UNITS = "etc/systemd/system"
_PACKAGED = ("usr/lib/systemd/system", "lib/systemd/system", "usr/local/lib/systemd/system")
"""Where packages put units (systemd.unit(5), "Unit File Load Path")."""

_TEMPLATES = ("kopiatomic@.service", "kopiatomic@.timer")
_DROP_IN = "10-schedule.conf"
"""Sorts before ``override.conf``, which ``systemctl edit`` writes: what an administrator says there comes later and counts."""

_TIMEOUT = 90.0
_CHECK_TIMEOUT = 600.0
"""Seconds. The engine's own questions have limits of their own."""

_LOOK_AHEAD = 8 * 24 * 60
"""How many starts are looked at for the longest time between two: each minute of more than a week."""

_ELAPSE = re.compile(r"(?:Next elapse|Iter\S* #\d+): \w{3} (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.\d+)? UTC")
_LONGEST_DELAY = 3600.0


class Systemd:
    """systemd as the scheduler; ``root`` is what its files are below."""

    def __init__(self, root: str = "/") -> None:
        self._root = root
        self._units = os.path.join(root, _UNITS)

    @property
    def runs(self) -> bool:
        """As sd_booted(3) finds it out."""
        return presence.is_directory(os.path.join(self._root, "run/systemd/system"))

    def calendar(self, name: str, wanted: str) -> Calendar:
        """Have systemd itself say when it would start. Raises UsageError, and KopiatomicError without systemd."""
        if "\n" in wanted:
            raise _bad_calendar(wanted, "it has several lines")
        argv = ["systemd-analyze", "calendar", f"--iterations={_LOOK_AHEAD}", "--", wanted]
        finished = _run(argv, environment={**os.environ, "TZ": "UTC", "LC_ALL": "C"})
        if finished.status != 0:
            raise _bad_calendar(wanted, finished.errors.rpartition(": ")[2] or "it is not understood")
        times = [
            datetime.fromisoformat(f"{found}+00:00").timestamp()
            for found in _ELAPSE.findall(finished.stdout.decode("utf-8", "replace"))
        ]
        if len(times) < 2:
            raise _bad_calendar(wanted, "it comes once more, or never again")
        interval = max(later - earlier for earlier, later in pairwise(times))
        return Calendar(wanted, interval)

    def check(self, schedule: Schedule) -> None:
        """A unit must be UTF-8."""
        for word in (*schedule.program, *schedule.words, *schedule.environment.values()):
            try:
                word.encode()
            except UnicodeEncodeError:
                raise KopiatomicError(
                    f"{printable(word)} is not UTF-8, which a unit of systemd must be",
                    kind="not-utf8",
                    hint="Name it by a pattern, such as '*' for what cannot be written.",
                ) from None

    def advice(self, variable: str) -> str:
        """A credential."""
        return f"Put it into a file that root alone can read, and hand that over: --credential {variable}=/root/FILE."

    def files(self, schedule: Schedule) -> list[File]:
        """Both drop-ins, the unit that recovers, and the templates unless a package has brought them."""
        found = [
            File(self._path(f"kopiatomic@{schedule.name}.service.d/{_DROP_IN}"), files.marked(service(schedule))),
            File(self._path(f"kopiatomic@{schedule.name}.timer.d/{_DROP_IN}"), files.marked(timer(schedule))),
            File(self._path(_recovery_unit(schedule.name)), files.marked(recovery(schedule))),
        ]
        return [
            *(
                File(self._path(name), files.marked(template(name)))
                for name in _TEMPLATES
                if not self._packaged(name) or self._is_ours(self._path(name))
            ),
            *found,
        ]

    def _path(self, name: str) -> str:
        return os.path.join(self._units, name)

    def _is_ours(self, path: str) -> bool:
        """Not so where an administrator has put a template over a package's."""
        return not presence.is_link(path) and files.is_ours(files.text(path) or "")

    def _packaged(self, name: str) -> bool:
        return any(presence.exists(os.path.join(self._root, folder, name)) for folder in _PACKAGED)

    def file(self, name: str) -> str:
        """The drop-in of its service."""
        return self._path(f"kopiatomic@{name}.service.d/{_DROP_IN}")

    def leftovers(self, name: str) -> list[str]:
        """Its files, and with the last schedule the templates that we wrote."""
        found = [self._path(f"kopiatomic@{name}.{kind}.d/{_DROP_IN}") for kind in ("timer", "service")]
        found.append(self._path(_recovery_unit(name)))
        if set(self.names()) <= {name}:
            found += [self._path(template) for template in _TEMPLATES]
        return found

    def names(self) -> list[str]:
        """Those that have a drop-in of ours."""
        return sorted(set(self._named()))

    def _named(self) -> Iterator[str]:
        for entry in presence.names(self._units):
            found = re.fullmatch(r"kopiatomic@(.+)\.service\.d", entry)
            if found is not None and presence.exists(self._path(f"{entry}/{_DROP_IN}"), follow_links=False):
                yield found[1]

    def read(self, name: str) -> Schedule | None:
        """What the drop-in of the service says."""
        text = files.text(self._path(f"kopiatomic@{name}.service.d/{_DROP_IN}"))
        return None if text is None else understood(text)

    def ask(self, schedule: Schedule) -> Mapping[str, Any] | None:
        """In a unit that lives for the question, with the settings of the real one (systemd-run(1))."""
        if not self.runs:
            return None
        finished = _run(ask_argv(schedule), timeout=_CHECK_TIMEOUT)
        try:
            answer: Mapping[str, Any] = json.loads(finished.stdout)
        except ValueError:
            raise KopiatomicError(
                f"the check in the unit's environment gave no answer: {finished.why}",
                kind="no-answer",
                hint="'journalctl -e' may say why.",
            ) from None
        return answer

    def start(self, name: str) -> None:
        """Enable the timer and start it anew, so that new times count. Without systemd running it is enabled only."""
        timer_ = f"kopiatomic@{name}.timer"
        if not self.runs:
            self._systemctl(f"--root={self._root}", "enable", timer_)
            return
        self._systemctl("daemon-reload")
        self._systemctl("enable", timer_)
        self._systemctl("restart", timer_)

    def stop(self, name: str) -> None:
        """Disable the timer."""
        where = ["--now"] if self.runs else [f"--root={self._root}"]
        self._systemctl("disable", *where, f"kopiatomic@{name}.timer")

    def stopped(self, name: str) -> None:
        """Have systemd forget units and failures, and the time of the last start that Persistent= goes by."""
        stamp = os.path.join(self._root, f"var/lib/systemd/timers/stamp-kopiatomic@{name}.timer")
        # There is none where it has never started, or where this is another systemd's place for it.
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(stamp)
        if self.runs:
            self._systemctl("daemon-reload")
            units = (f"kopiatomic@{name}.service", f"kopiatomic@{name}.timer", _recovery_unit(name))
            _run(["systemctl", "reset-failed", *units])

    def busy(self, name: str) -> bool:
        """Whether the service, or what recovers after it, is neither inactive nor failed."""
        if not self.runs:
            return False
        units = (f"kopiatomic@{name}.service", _recovery_unit(name))
        return not set(_shown("ActiveState", *units).split()) <= {"inactive", "failed"}

    def waits(self, name: str) -> bool:
        """Whether its timer is active, which it also is while the service runs; where systemd does not run, that is not known."""
        return not self.runs or _shown("ActiveState", f"kopiatomic@{name}.timer").strip() == "active"

    def ending(self, name: str) -> str:
        """The service's own way, which sends SIGTERM to the run alone."""
        return f"systemctl stop kopiatomic@{name}.service"

    def next(self, name: str) -> str | None:
        """Its next time, as systemd says it."""
        if not self.runs:
            return None
        return printable(_shown("NextElapseUSecRealtime", f"kopiatomic@{name}.timer").strip()) or None

    def _systemctl(self, *words: str) -> None:
        finished = _run(["systemctl", "--quiet", *words])
        if finished.status != 0:
            raise KopiatomicError(
                f"systemctl {' '.join(words)} failed: {finished.why}",
                kind="systemctl",
                hint="Look at what it says ('journalctl -e'), then give the command again.",
            )


# What is written


def template(name: str) -> str:
    """A unit that comes with the program."""
    return resources.files("kopiatomic.schedules").joinpath("units", name).read_text(encoding="utf-8")


def service(schedule: Schedule) -> str:
    """The drop-in of the service: what to run, with what."""
    lines = [
        described(schedule).rstrip("\n"),
        "[Unit]",
        f"OnFailure={_recovery_unit(schedule.name)}",
        "[Service]",
        *_environment(schedule),
        *(f"LoadCredential={name}:{_specifiers(path)}" for name, path in sorted(schedule.credentials.items())),
        _exec("ExecStart", command(schedule, "backup", *backup(schedule))),
        "# After a success, and after exit code 75: since when has there been no complete success?",
        _exec("ExecStartPost", command(schedule, "schedule", "overdue", schedule.name)),
        "# Also where all of the run was killed: what it left.",
        _exec("ExecStopPost", command(schedule, "recover", "--schedule", schedule.name)),
        f"TimeoutStopSec={schedule.end_timeout:.0f}",
    ]
    return "\n".join(lines) + "\n"


def recovery(schedule: Schedule) -> str:
    """The unit that removes what a run left whose whole service was killed."""
    lines = [
        "[Unit]",
        f"Description=Removal of what a failed run of kopiatomic@{schedule.name}.service left",
        "Documentation=man:kopiatomic(8)",
        "[Service]",
        "Type=oneshot",
        *_environment(schedule),
        _exec("ExecStart", command(schedule, "recover", "--schedule", schedule.name)),
    ]
    return "\n".join(lines) + "\n"


def _recovery_unit(name: str) -> str:
    return f"kopiatomic-recover@{name}.service"


def _environment(schedule: Schedule) -> Iterator[str]:
    for name, value in sorted(schedule.environment.items()):
        yield f"Environment={quoted(f'{name}={value}')}"


def timer(schedule: Schedule) -> str:
    """The drop-in of the timer: when."""
    return (
        f"[Timer]\nOnCalendar={_specifiers(schedule.calendar)}\n"
        f"RandomizedDelaySec={min(schedule.interval / 20, _LONGEST_DELAY):.0f}\n"
    )


def _exec(key: str, argv: list[str]) -> str:
    # ':' has systemd replace no variables in the words.
    return f"{key}=:{' '.join(map(quoted, argv))}"


def quoted(word: str) -> str:
    """A word as systemd reads it back (systemd.syntax(7)): specifiers and escapes made harmless."""
    if re.fullmatch(r"[A-Za-z0-9_./:=@,+-]+", word):
        return word
    return '"' + "".join(map(_escaped, word)) + '"'


def _escaped(character: str) -> str:
    if character in {"\\", '"'}:
        return f"\\{character}"
    if character == "%":
        return "%%"
    return f"\\x{ord(character):02x}" if ord(character) < 0x20 or ord(character) == 0x7F else character


def _specifiers(value: str) -> str:
    return value.replace("%", "%%")


# What is asked of the unit before there is one


_NOT_FOR_A_QUESTION = re.compile(r"Type|Exec\w+|SuccessExitStatus|Timeout\w+")


def ask_argv(schedule: Schedule) -> list[str]:
    """The argv that has ``schedule check`` answer in the service's own environment.

    Words are given to the service manager, which replaces variables in them: each ``$`` is doubled.
    """
    argv = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--service-type=exec"]
    for line in template("kopiatomic@.service").partition("[Service]\n")[2].splitlines():
        key, equals, _ = line.partition("=")
        if equals and not line.startswith("#") and not _NOT_FOR_A_QUESTION.fullmatch(key):
            argv.append(f"--property={line}")
    argv += [f"--property=LoadCredential={name}:{path}" for name, path in sorted(schedule.credentials.items())]
    argv += [f"--setenv={name}={value}" for name, value in sorted(schedule.environment.items())]
    words = command(schedule, "schedule", "check", "--", *schedule.words)
    return [*argv, "--", *(word.replace("$", "$$") for word in words)]


def _bad_calendar(wanted: str, why: str) -> UsageError:
    return UsageError(
        f"--calendar {printable(wanted)}: {why}",
        kind="bad-calendar",
        hint="For example 'Mon..Fri 02:30'; 'systemd-analyze calendar' explains one, systemd.time(7) all of them.",
    )


def _run(
    argv: list[str], *, timeout: float = _TIMEOUT, environment: Mapping[str, str] | None = None
) -> process.Finished:
    try:
        return process.run(argv, timeout=timeout, environment=environment)
    except OSError as error:
        if advice_of(error):
            raise unforeseen(error) from None
        raise KopiatomicError(
            f"{argv[0]} cannot be started: {error.strerror}",
            kind="no-systemd",
            hint="A schedule needs systemd on Linux. Without it, start kopiatomic from cron: man 8 kopiatomic, EXAMPLES.",
        ) from None


def _shown(key: str, *units: str) -> str:
    """A property of units, as systemd says it. Raises KopiatomicError where it does not."""
    finished = _run(["systemctl", "show", f"--property={key}", "--value", *units])
    if finished.status != 0:
        raise KopiatomicError(
            f"systemctl cannot say the {key} of {', '.join(units)}: {finished.why}",
            kind="systemctl",
            hint="Does systemd answer ('systemctl status')?",
        )
    return finished.stdout.decode("utf-8", "replace")
