"""Schedules on Linux: instances of ``kopiatomic@.service`` and ``kopiatomic@.timer``, each with its own drop-ins.

The templates come with the program. A distribution's package puts them with its units; otherwise they are put into
/etc/systemd/system beside the drop-ins, updated by every ``schedule install``, and removed with the last schedule. So what all
share is in one readable place, and a schedule's own files hold only what is specific to it.

Two units remove what a killed run left: ``ExecStopPost=``, even while the machine shuts down, and a separate unit that is started
when the service has failed. If the whole control group was killed at once (``systemctl kill``), the kernel also kills what
systemd 254 and later put into that group afterwards (seen with systemd 257 on Linux 6.18).
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import resources
from itertools import pairwise
from typing import Any

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError, UsageError, advice_of, unforeseen
from kopiatomic.model.schedule import Schedule
from kopiatomic.schedules import files
from kopiatomic.schedules.schedule import (
    CHECK_TIMEOUT,
    Calendar,
    File,
    answer_of,
    backup,
    check,
    command,
    described,
    understood,
)
from kopiatomic.system import host, process
from kopiatomic.text import printable

_UNITS = "etc/systemd/system"
_PACKAGED = ("usr/lib/systemd/system", "lib/systemd/system", "usr/local/lib/systemd/system")
"""Where packages put units (systemd.unit(5), "Unit File Load Path")."""

_TEMPLATES = ("kopiatomic@.service", "kopiatomic@.timer")
_DROP_IN = "10-schedule.conf"
"""Sorts before ``override.conf``, which ``systemctl edit`` writes: an administrator's settings come later and win."""

_TIMEOUT = 90.0
"""Seconds."""

_LOOK_AHEAD = 8 * 24 * 60
"""How many starts to examine for the longest time between two: each minute of more than a week."""

_ELAPSE = re.compile(r"(?:Next elapse|Iter\S* #\d+): \w{3} (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.\d+)? UTC")
_LONGEST_DELAY = 3600.0


class Systemd:
    """systemd as the scheduler. Its files are below ``root``."""

    def __init__(self, root: str = "/") -> None:
        self._root = root
        self._units = os.path.join(root, _UNITS)

    @property
    def runs(self) -> bool:
        """Whether systemd runs, by the test of sd_booted(3)."""
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
        """Refuse words that are not UTF-8, as a unit must be."""
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
        """Suggest a credential."""
        return f"Put it into a file that root alone can read, and hand that over: --credential {variable}=/root/FILE."

    def files(self, schedule: Schedule) -> list[File]:
        """Return both drop-ins, the recovery unit, and the templates unless a package has them."""
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
        """Whether we wrote it: not if an administrator has put a template over a package's."""
        return not presence.is_link(path) and files.is_ours(files.text(path) or "")

    def _packaged(self, name: str) -> bool:
        return any(presence.exists(os.path.join(self._root, folder, name)) for folder in _PACKAGED)

    def file(self, name: str) -> str:
        """Return the drop-in of its service."""
        return self._path(f"kopiatomic@{name}.service.d/{_DROP_IN}")

    def leftovers(self, name: str) -> list[str]:
        """Return its files, and with the last schedule the templates that we wrote."""
        found = [self._path(f"kopiatomic@{name}.{kind}.d/{_DROP_IN}") for kind in ("timer", "service")]
        found.append(self._path(_recovery_unit(name)))
        if set(self.names()) <= {name}:
            found += [self._path(template) for template in _TEMPLATES]
        return found

    def names(self) -> list[str]:
        """Return those that have our drop-in."""
        return sorted(set(self._named()))

    def _named(self) -> Iterator[str]:
        for entry in presence.names(self._units):
            found = re.fullmatch(r"kopiatomic@(.+)\.service\.d", entry)
            if found is not None and presence.exists(self._path(f"{entry}/{_DROP_IN}"), follow_links=False):
                yield found[1]

    def read(self, name: str) -> Schedule | None:
        """Return what the drop-in of the service says."""
        text = files.text(self._path(f"kopiatomic@{name}.service.d/{_DROP_IN}"))
        return None if text is None else understood(text)

    @property
    def unchecked(self) -> str:
        """Return what needs systemd as the service manager: units are read, times computed and the engine asked without it."""
        if self.runs:
            return ""
        return (
            "systemd does not run here. Checked without it: the times and the units (systemd-analyze), and the engine, with the "
            "schedule's environment and credentials. Not checked: whether the service as such can run (its limits, how systemd "
            "hands credentials over), and whether this place sees what the machine that starts it does; when systemd runs, give "
            "the same command again"
        )

    def verify(self, schedule: Schedule) -> list[str]:
        """Without systemd running, have ``systemd-analyze verify`` read the units with what the administrator has added to them.

        A running systemd says the same when the timer is started. Raises KopiatomicError if it refuses one.
        """
        if self.runs:
            return []
        units = (
            f"kopiatomic@{schedule.name}.service",
            f"kopiatomic@{schedule.name}.timer",
            _recovery_unit(schedule.name),
        )
        with _scratch() as scratch:
            for file in self.files(schedule):
                path = os.path.join(scratch, os.path.relpath(file.path, self._units))
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "w", encoding="utf-8") as copy:
                    copy.write(file.content)
            folders = [scratch, self._units, *(os.path.join(self._root, folder) for folder in _PACKAGED)]
            # The folders of the system follow where the list ends with a colon (systemd.unit(5)).
            where = {**os.environ, "SYSTEMD_UNIT_PATH": f"{':'.join(folders)}:", "LC_ALL": "C"}
            finished = _run(
                ["systemd-analyze", "--man=no", "--recursive-errors=no", "verify", *units], environment=where
            )
            said = [line.replace(scratch, self._units) for line in finished.errors.splitlines()]
        # What the service manager merely ignores is an error to systemd-analyze, too.
        if not any("has a bad unit file setting" in line for line in said):
            return [f"systemd-analyze verify: {line}" for line in said]
        raise KopiatomicError(
            f"systemd refuses the units: {'; '.join(said)}; nothing was installed",
            kind="bad-unit",
            hint=f"Is it a setting of yours? See the files in {self._path(units[0])}.d and {self._path(units[1])}.d.",
        )

    def ask(self, schedule: Schedule) -> Mapping[str, Any]:
        """Ask in a temporary unit, with the settings of the real one (systemd-run(1)).

        Without systemd running: with exactly the environment and the credentials that it would have.
        """
        if not self.runs:
            with _scratch() as scratch:
                for name, path in schedule.credentials.items():
                    # The secret itself is written nowhere else.
                    os.symlink(path, os.path.join(scratch, name))
                handed = {"CREDENTIALS_DIRECTORY": scratch} if schedule.credentials else {}
                return answer_of(schedule, {**schedule.environment, **handed})
        finished = _run(ask_argv(schedule), timeout=CHECK_TIMEOUT)
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
        """Enable and restart the timer, so that new times take effect. Without systemd running, only enable it."""
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
        """Have systemd forget units and failures, and the time of the last start that Persistent= uses."""
        stamp = os.path.join(self._root, f"var/lib/systemd/timers/stamp-kopiatomic@{name}.timer")
        # It does not exist if the timer has never started, or if another systemd keeps it elsewhere.
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(stamp)
        if self.runs:
            self._systemctl("daemon-reload")
            units = (f"kopiatomic@{name}.service", f"kopiatomic@{name}.timer", _recovery_unit(name))
            _run(["systemctl", "reset-failed", *units])

    def busy(self, name: str) -> bool:
        """Whether the service, or its recovery unit, is neither inactive nor failed."""
        if not self.runs:
            return False
        units = (f"kopiatomic@{name}.service", _recovery_unit(name))
        return not set(_shown("ActiveState", *units).split()) <= {"inactive", "failed"}

    def waits(self, name: str) -> bool:
        """Whether its timer is active, as it also is while the service runs; without systemd running, whether it is enabled."""
        timer_ = f"kopiatomic@{name}.timer"
        if not self.runs:
            return _run(["systemctl", f"--root={self._root}", "--quiet", "is-enabled", timer_]).status == 0
        return _shown("ActiveState", timer_).strip() == "active"

    def enabling(self, name: str) -> str:
        """Return how to enable its timer."""
        return f"systemctl enable {'--now ' if self.runs else ''}kopiatomic@{name}.timer"

    def ending(self, name: str) -> str:
        """Return the service's own way, which sends SIGTERM to the run alone."""
        return f"systemctl stop kopiatomic@{name}.service"

    def next(self, name: str) -> str | None:
        """Return its next time, in systemd's words."""
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
    """Return a unit that comes with the program."""
    return resources.files("kopiatomic.schedules").joinpath("units", name).read_text(encoding="utf-8")


def service(schedule: Schedule) -> str:
    """Return the drop-in of the service: what to run, with what."""
    lines = [
        described(schedule).rstrip("\n"),
        "[Unit]",
        f"OnFailure={_recovery_unit(schedule.name)}",
        *([] if schedule.on_battery else ["ConditionACPower=true"]),
        "[Service]",
        *_environment(schedule),
        *(f"LoadCredential={name}:{_specifiers(path)}" for name, path in sorted(schedule.credentials.items())),
        _exec("ExecStart", command(schedule, *backup(schedule))),
        "# After a success, and after exit code 75: since when has there been no complete success?",
        _exec("ExecStartPost", command(schedule, "schedule", "overdue", schedule.name)),
        "# Also where all of the run was killed: what it left.",
        _exec("ExecStopPost", command(schedule, "recover", "--schedule", schedule.name)),
        f"TimeoutStopSec={schedule.end_timeout:.0f}",
    ]
    return "\n".join(lines) + "\n"


def recovery(schedule: Schedule) -> str:
    """Return the unit that removes what a run left if its whole service was killed."""
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
    """Return the drop-in of the timer: when to run."""
    delay = min(schedule.interval / 20, _LONGEST_DELAY) if schedule.random_delay is None else schedule.random_delay
    missed = "" if schedule.persistent else "Persistent=false\n"
    return f"[Timer]\nOnCalendar={_specifiers(schedule.calendar)}\nRandomizedDelaySec={delay:.0f}\n{missed}"


def _exec(key: str, argv: list[str]) -> str:
    # With ':' systemd replaces no variables in the words.
    return f"{key}=:{' '.join(map(quoted, argv))}"


def quoted(word: str) -> str:
    """Return a word as systemd reads it back (systemd.syntax(7)), with specifiers and escapes made harmless."""
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


# What is asked of the unit before it exists


_NOT_FOR_A_QUESTION = re.compile(r"Type|Exec\w+|SuccessExitStatus|Timeout\w+")


def ask_argv(schedule: Schedule) -> list[str]:
    """Return the argv that makes ``schedule check`` answer in the service's own environment.

    The service manager replaces variables in the words: each ``$`` is doubled.
    """
    argv = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--service-type=exec"]
    for line in template("kopiatomic@.service").partition("[Service]\n")[2].splitlines():
        key, equals, _ = line.partition("=")
        if equals and not line.startswith("#") and not _NOT_FOR_A_QUESTION.fullmatch(key):
            argv.append(f"--property={line}")
    argv += [f"--property=LoadCredential={name}:{path}" for name, path in sorted(schedule.credentials.items())]
    argv += [f"--setenv={name}={value}" for name, value in sorted(schedule.environment.items())]
    words = command(schedule, *check(schedule))
    return [*argv, "--", *(word.replace("$", "$$") for word in words)]


@contextmanager
def _scratch() -> Iterator[str]:
    """Make a folder that only root can enter, where no user can exchange it; it goes with all that is in it."""
    try:
        with tempfile.TemporaryDirectory(prefix="kopiatomic-check-", dir=host.run_directory()) as folder:
            yield folder
    except OSError as error:
        raise unforeseen(error) from None


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
    """Return a property of units from systemd. Raises KopiatomicError if that fails."""
    finished = _run(["systemctl", "show", f"--property={key}", "--value", *units])
    if finished.status != 0:
        raise KopiatomicError(
            f"systemctl cannot say the {key} of {', '.join(units)}: {finished.why}",
            kind="systemctl",
            hint="Does systemd answer ('systemctl status')?",
        )
    return finished.stdout.decode("utf-8", "replace")
