"""What systemd and cron read of a schedule is what was meant: systemd's own tools read it here, and say what they understood."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from kopiatomic.commands import schedule as scheduling
from kopiatomic.output.console import Console
from kopiatomic.schedules import crontab, on, systemd
from kopiatomic.schedules.schedule import Calendar, Scheduler
from tests.support.programs import command
from tests.unit.support.schedules import HOUR, NASTY, UNITS, error_of, on_freebsd, on_linux, root, schedule, write_all

__all__ = ["on_freebsd", "on_linux", "root"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="schedules are root's")


# What systemd reads


class Unit:
    """A unit as systemd itself has read it from below a folder: what it says when it is asked to verify it."""

    def __init__(self, root: Path, name: str) -> None:
        words = ["systemd-analyze", "--man=no", "verify", name]
        where = {**os.environ, "SYSTEMD_UNIT_PATH": f"{root / UNITS}:"}
        plain = command(*words, env=where, check=False)
        self.complaints = plain.stderr if plain.returncode else ""
        told = command(*words, env={**where, "SYSTEMD_LOG_LEVEL": "debug"}, check=False).stdout
        part = told.partition(f"-> Unit {name}:\n")[2]
        self.lines = [line.lstrip() for line in re.split(r"\n\t-> (?:Unit|Job) ", part)[0].splitlines()]
        assert self.lines, told

    def values(self, key: str) -> list[str]:
        return [line.removeprefix(f"{key}: ") for line in self.lines if line.startswith(f"{key}: ")]

    def command(self, which: str) -> list[str]:
        """The words of its command, quoted by systemd as a C string where need be."""
        start = next(i for i, line in enumerate(self.lines) if line.startswith(f"-> {which}:"))
        line = next(line for line in self.lines[start:] if line.startswith("Command Line: "))
        words = re.findall(r'"((?:\\.|[^"\\])*)"|(\S+)', line.removeprefix("Command Line: "))
        return [plain or _unescaped(quoted) for quoted, plain in words]


def _unescaped(text: str) -> str:
    known = {"n": "\n", "t": "\t"}

    def meant(found: re.Match[str]) -> str:
        escape = found[1]
        return chr(int(escape, 8)) if escape.isdigit() else known.get(escape, escape)

    return re.sub(r"\\([0-7]{3}|.)", meant, text)


def test_systemd_reads_the_words_as_they_were_given(on_linux: Scheduler, root: Path) -> None:
    one = schedule(words=NASTY)
    write_all(on_linux, one, root)
    unit = Unit(root, "kopiatomic@home.service")
    assert unit.complaints == ""
    assert unit.command("ExecStart") == [*one.program, "backup", "--schedule", "home", *NASTY]
    assert unit.command("ExecStartPost") == [*one.program, "schedule", "overdue", "home"]
    assert unit.command("ExecStopPost") == [*one.program, "recover", "--schedule", "home"]
    recovery = Unit(root, "kopiatomic-recover@home.service")
    assert recovery.complaints == ""
    assert recovery.command("ExecStart") == [*one.program, "recover", "--schedule", "home"]
    # What systemd does not say when it is asked: that it replaces no variables in them.
    commands = re.findall(r"^Exec.*", systemd.service(one) + systemd.recovery(one), re.MULTILINE)
    assert [line.split("/")[0] for line in commands] == [
        "ExecStart=:",
        "ExecStartPost=:",
        "ExecStopPost=:",
        "ExecStart=:",
    ]


def test_systemd_reads_environment_and_credentials_as_they_were_given(on_linux: Scheduler, root: Path) -> None:
    values = {f"V{number}": word for number, word in enumerate(NASTY) if word.isprintable()}
    one = schedule(environment=values, credentials={"KOPIA_PASSWORD": "/root/50% off.pw"})
    write_all(on_linux, one, root)
    unit = Unit(root, "kopiatomic@home.service")
    assert unit.complaints == ""
    assert sorted(unit.values("Environment")) == sorted(f"{name}={value}" for name, value in values.items())
    # It does not say them in what it prints of a unit.
    drop_in = (root / UNITS / "kopiatomic@home.service.d/10-schedule.conf").read_text()
    assert "\nLoadCredential=KOPIA_PASSWORD:/root/50%% off.pw\n" in drop_in


def test_the_service_is_what_a_run_needs(on_linux: Scheduler, root: Path) -> None:
    write_all(on_linux, schedule(end_timeout=720.0), root)
    unit = Unit(root, "kopiatomic@home.service")
    wanted = {
        "Type": "oneshot",
        "KillMode": "mixed",
        "TimeoutStartSec": "infinity",
        "TimeoutStopSec": "12min",
        "OOMScoreAdjust": "-100",
        "OOMPolicy": "continue",
        "IgnoreSIGPIPE": "no",
        "SendSIGKILL": "yes",
        "SuccessExitStatus": "75",
    }
    found = {key: " ".join(unit.values(key)) for key in wanted}
    # What it does not print is looked for in the file.
    text = systemd.template("kopiatomic@.service")
    found |= {key: re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)[0] for key, value in found.items() if not value}
    assert found == wanted
    after = {value.split()[0] for value in unit.values("After")}
    assert {"zfs.target", "local-fs.target", "network-online.target", "time-sync.target"} <= after
    assert "time-sync.target" in {value.split()[0] for value in Unit(root, "kopiatomic@home.timer").values("After")}


def test_the_hardening_makes_no_mount_namespace_and_hides_no_device(on_linux: Scheduler, root: Path) -> None:
    """By what systemd made of it: every setting that would do either is off."""
    write_all(on_linux, schedule(), root)
    unit = Unit(root, "kopiatomic@home.service")
    off = {"MountAPIVFS", "PrivateDevices", "PrivateTmp", "ProtectClock", "ProtectControlGroups", "ProtectHome"}
    off |= {"ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectSystem"}
    found = {key: unit.values(key) for key in off}
    assert {key: value for key, value in found.items() if value != ["no"]} == {}
    assert not [
        line
        for line in unit.lines
        if re.match(r"(Device(?!Policy: auto$)|BindPaths|ReadOnly|Inaccessible|Temporary)", line)
    ]
    assert "RestrictRealtime: yes" in unit.lines
    assert "LockPersonality: yes" in unit.lines


def test_the_timer_makes_up_for_what_was_missed_and_spreads_the_load(on_linux: Scheduler, root: Path) -> None:
    write_all(on_linux, schedule(calendar="Mon..Fri 02:30", interval=72 * HOUR), root)
    unit = Unit(root, "kopiatomic@home.timer")
    assert unit.complaints == ""
    assert unit.values("OnCalendar") == ["Mon..Fri *-*-* 02:30:00"]
    assert unit.values("Persistent") == ["yes"]
    assert unit.values("FixedRandomDelay") == ["yes"]
    assert "RandomizedDelaySec=3600\n" in systemd.timer(schedule())
    assert "RandomizedDelaySec=180\n" in systemd.timer(schedule(interval=HOUR))


def test_a_settings_file_of_the_administrators_counts_more_than_ours(on_linux: Scheduler, root: Path) -> None:
    write_all(on_linux, schedule(), root)
    (root / UNITS / "kopiatomic@home.service.d/override.conf").write_text("[Service]\nTimeoutStopSec=7\n")
    assert Unit(root, "kopiatomic@home.service").values("TimeoutStopSec") == ["7s"]


def test_the_instance_of_no_schedule_is_nothing_that_can_be_started(on_linux: Scheduler, root: Path) -> None:
    write_all(on_linux, schedule(), root)
    words = ["systemd-analyze", "--man=no", "verify", "kopiatomic@other.service"]
    ended = command(*words, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{root / UNITS}:"}, check=False)
    assert ended.returncode != 0
    assert "no ExecStart=" in ended.stderr


def test_the_times_are_enabled_and_disabled_by_the_real_systemctl(on_linux: Scheduler, root: Path) -> None:
    write_all(on_linux, schedule(), root)
    link = root / UNITS / "timers.target.wants/kopiatomic@home.timer"
    on_linux.start("home")
    assert link.is_symlink()
    on_linux.start("home")
    on_linux.stop("home")
    assert not link.is_symlink()


# The calendar


@pytest.mark.parametrize(
    ("wanted", "hours"),
    [
        ("hourly", 1.0),
        ("daily", 24.0),
        ("Mon..Fri 02:30", 72.0),
        ("Mon..Fri *:00", 49.0),
        ("*-*-01 04:00", 31 * 24.0),
        ("*:0/15", 0.25),
    ],
)
def test_the_interval_is_the_longest_time_between_two_starts(
    wanted: str, hours: float, on_linux: Scheduler, on_freebsd: Scheduler
) -> None:
    assert on_linux.calendar("home", wanted) == Calendar(wanted, hours * HOUR)
    assert on_freebsd.calendar("home", wanted).interval == hours * HOUR


def test_the_interval_is_the_same_where_clocks_are_changed(
    on_linux: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert on_linux.calendar("home", "daily").interval == 24 * HOUR
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("wanted", ["", "sometimes", "25:00", "2020-01-01", "2199-01-01", "daily\nhourly", "--help"])
def test_a_calendar_that_systemd_does_not_know_or_that_ends_is_refused(wanted: str, on_linux: Scheduler) -> None:
    error = error_of(lambda: on_linux.calendar("home", wanted))
    assert (error.exit_code, error.kind) == (2, "bad-calendar")
    assert error.hint


@pytest.mark.parametrize(
    ("wanted", "fields"),
    [
        ("minutely", "* * * * *"),
        ("weekly", "0 0 * * 1"),
        ("monthly", "0 0 1 * *"),
        ("quarterly", "0 0 1 1,4,7,10 *"),
        ("02:30", "30 2 * * *"),
        ("02:30:00", "30 2 * * *"),
        ("*-*-* 02:30", "30 2 * * *"),
        ("Mon..Fri 02:30", "30 2 * * 1,2,3,4,5"),
        ("Sat,sunday 12:00", "0 12 * * 0,6"),
        ("Fri..Mon 12:00", "0 12 * * 0,1,5,6"),
        ("Mon..Sun 12:00", "0 12 * * *"),
        ("Mon", "0 0 * * 1"),
        ("*-06-15", "0 0 15 6 *"),
        ("06-15 01:00", "0 1 15 6 *"),
        ("*-*-1..7 03:00", "0 3 1,2,3,4,5,6,7 * *"),
        ("*:0/15", "0,15,30,45 * * * *"),
        ("*:*/20", "0,20,40 * * * *"),
        ("8..18/5:05", "5 8,13,18 * * *"),
        ("00,12:00", "0 0,12 * * *"),
    ],
)
def test_what_cron_can_say_is_said(wanted: str, fields: str) -> None:
    assert crontab.parse(wanted).crontab == fields


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ("02:30:15", "no seconds"),
        ("2027-*-* 02:30", "no years"),
        ("02:30 Europe/Berlin", "not known"),
        ("*-*~01", "'\\*~01'"),
        ("Mon *-*-01", "on either of them"),
        ("*-02-30", "no such day"),
        ("24:00", "out of range"),
        ("*-13-01", "out of range"),
        ("12..6:00", "out of range"),
        ("*:0/0", "out of range"),
        ("Moonday", "no day of the week"),
        ("*-*/2-01", "cannot say"),
        ("@daily", "not known"),
        ("* * * * *", "not known"),
    ],
)
def test_what_cron_cannot_say_is_refused(wanted: str, why: str) -> None:
    error = error_of(lambda: crontab.parse(wanted))
    assert (error.exit_code, error.kind) == (2, "bad-calendar")
    assert re.search(why, error.message), error.message


@pytest.mark.parametrize("wanted", ["weekly", "Mon..Fri 02:30", "8..18/5:05", "*-06-15", "*-*-1..7 03:00", "*-02-29"])
def test_cron_and_systemd_agree_on_the_interval(wanted: str, on_linux: Scheduler) -> None:
    assert crontab.parse(wanted).interval == pytest.approx(on_linux.calendar("x", wanted).interval, rel=0.51)
    if "02-29" not in wanted and "06-15" not in wanted:
        assert crontab.parse(wanted).interval == on_linux.calendar("x", wanted).interval


# FreeBSD's file


def test_the_line_of_cron_has_nothing_in_it_that_a_shell_could_read_otherwise(
    on_freebsd: Scheduler, root: Path
) -> None:
    calendar = on_freebsd.calendar("home", "02:30")
    one = schedule(words=NASTY, calendar=calendar.text, interval=calendar.interval)
    on_freebsd.check(one)
    (path,) = write_all(on_freebsd, one, root)
    assert path == root / "usr/local/etc/cron.d/kopiatomic-home"
    (line,) = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert line == "30 2 * * * root /usr/bin/python3 /usr/bin/true schedule run home"
    assert on_freebsd.read("home") == one
    assert on_freebsd.names() == ["home"]


def test_cron_is_told_a_minute_that_differs_from_schedule_to_schedule(on_freebsd: Scheduler) -> None:
    """Else a hundred hosts wake their repository at once. The same schedule has the same one each time."""
    for pace, hours in (("daily", 24.0), ("hourly", 1.0)):
        texts = {on_freebsd.calendar(f"name{number}", pace).text for number in range(40)}
        assert len(texts) > 10
        assert on_freebsd.calendar("name1", pace) == on_freebsd.calendar("name1", pace)
        assert {crontab.parse(text).interval for text in texts} == {hours * HOUR}


@pytest.mark.parametrize("path", ["/opt/my programs/kopiatomic", "/opt/a%b", "/opt/$x", "relative"])
def test_a_program_that_crons_shell_would_read_as_something_else_is_refused(path: str, on_freebsd: Scheduler) -> None:
    assert error_of(lambda: on_freebsd.check(schedule(program=("/usr/bin/python3", path)))).kind == "bad-path"


def test_crons_folder_stays_also_where_nothing_is_left_in_it(
    on_freebsd: Scheduler, root: Path, lock_directory: Path
) -> None:
    (path,) = write_all(on_freebsd, schedule("d", calendar="02:30", state_dir=str(root / "state")), root)
    assert scheduling.remove(on_freebsd, Console(), name="d", yes=True) == 0
    assert (path.exists(), path.parent.is_dir()) == (False, True)


def test_no_two_of_crons_files_are_of_the_same_second(on_freebsd: Scheduler, root: Path) -> None:
    """cron(8) would take one for the other."""
    for name in ("home", "mail", "srv"):
        (path,) = write_all(on_freebsd, schedule(name, calendar="02:30"), root)
        os.utime(path, (1_700_000_000.5, 1_700_000_000.5))
        on_freebsd.start(name)
    folder = root / "usr/local/etc/cron.d"
    assert sorted(file.stat().st_mtime for file in folder.iterdir()) == [1_699_999_998, 1_699_999_999, 1_700_000_000]


def test_cron_has_no_credentials(on_freebsd: Scheduler) -> None:
    with_one = schedule(credentials={"KOPIA_PASSWORD": "/root/kopia.pw"})
    assert error_of(lambda: on_freebsd.check(with_one)).kind == "no-credentials"


def test_a_platform_without_a_scheduler_of_ours_is_said() -> None:
    assert error_of(lambda: on("darwin")).kind == "no-scheduler"
