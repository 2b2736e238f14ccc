"""``kopiatomic schedule``: what is written where, what is refused, what is asked before, and what counts as too late.

systemd is not init here, so nothing is started by a timer: its own tools read what was written (systemd-analyze, and systemctl
on a folder). In place of ``systemctl`` and ``systemd-run`` on a running systemd stand programs that say so below.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kopiatomic import cli, locks, scheduling
from kopiatomic.errors import KopiatomicError, LockedError
from kopiatomic.options import Options
from kopiatomic.output.console import Console
from kopiatomic.records import Records, RunRecord
from kopiatomic.report import Report
from kopiatomic.schedule_cli import _meant
from kopiatomic.schedules import (
    Calendar,
    Schedule,
    Scheduler,
    crontab,
    environment,
    files,
    lateness,
    on,
    systemd,
    trust,
)
from kopiatomic.schedules.files import State
from kopiatomic.scheduling import Place, Wanted
from tests.support.programs import Kopia, Kopiatomic, command

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="schedules are root's")

HOUR = 3600.0
UNITS = "etc/systemd/system"
NASTY = (
    "-r",
    "plain",
    "",
    " ",
    "a b",
    ";",
    "$HOME",
    "${HOME}",
    "$$",
    "%i %n %%",
    'with "quotes"',
    "with 'quotes'",
    "back\\slash\\",
    "\\n",
    "tab\tnew\nline\x7f",
    "*",
    "~",
    "#no comment",
    "é 日本",
    "--x=y z",
    "@:+!-",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What is below it is the machine."""
    made = tmp_path / "machine"
    made.mkdir(0o755)
    return made


@pytest.fixture
def on_linux(root: Path) -> Scheduler:
    return on("linux", str(root))


@pytest.fixture
def on_freebsd(root: Path) -> Scheduler:
    return on("freebsd14", str(root))


def schedule(name: str = "home", **more: Any) -> Schedule:
    given = Schedule(
        name=name,
        calendar="daily",
        interval=24 * HOUR,
        program=("/usr/bin/python3", "/usr/bin/true"),
        words=("-r", "tank"),
        environment={"HOME": "/root", "PATH": environment.PATH},
        credentials={},
        state_dir="/var/lib/kopiatomic",
        end_timeout=300.0,
    )
    return replace(given, **more)


def write_all(scheduler: Scheduler, one: Schedule, top: Path) -> list[Path]:
    for file in scheduler.files(one):
        files.write(file, top=str(top))
    return [Path(file.path) for file in scheduler.files(one)]


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def error_of(call: Callable[[], object]) -> KopiatomicError:
    """What a call refuses: one message with something to do."""
    with pytest.raises(KopiatomicError) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value


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
    assert {"zfs.target", "local-fs.target", "network-online.target"} <= after


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


def test_cron_has_no_credentials(on_freebsd: Scheduler) -> None:
    with_one = schedule(credentials={"KOPIA_PASSWORD": "/root/kopia.pw"})
    assert error_of(lambda: on_freebsd.check(with_one)).kind == "no-credentials"


def test_a_platform_without_a_scheduler_of_ours_is_said() -> None:
    assert error_of(lambda: on("darwin")).kind == "no-scheduler"


# Files


def test_files_are_roots_and_everybody_may_read_them_whatever_the_umask(on_linux: Scheduler, root: Path) -> None:
    before = os.umask(0o077)
    try:
        paths = write_all(on_linux, schedule(), root)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o644] * 4
    assert {stat.S_IMODE(path.parent.stat().st_mode) for path in paths} == {0o755}
    assert sorted(tree(root)) == sorted(str(path.relative_to(root)) for path in paths)


def test_writing_the_same_again_touches_nothing(on_linux: Scheduler, root: Path) -> None:
    paths = write_all(on_linux, schedule(), root)
    before = [path.stat() for path in paths]
    assert [files.state(file) for file in on_linux.files(schedule())] == [State.SAME] * 4
    write_all(on_linux, schedule(), root)
    assert [(s.st_ino, s.st_mtime_ns) for s in before] == [
        (s.st_ino, s.st_mtime_ns) for s in (path.stat() for path in paths)
    ]


def test_a_changed_schedule_replaces_its_files_at_once(on_linux: Scheduler, root: Path) -> None:
    """Who has the old file open goes on reading the old one: it is another file now."""
    *_, service, _timer = write_all(on_linux, schedule(), root)
    with service.open() as old:
        write_all(on_linux, schedule(words=("mail",)), root)
        assert json.dumps(["-r", "tank"]) in old.read()
    found = on_linux.read("home")
    assert found is not None
    assert found.words == ("mail",)


@pytest.mark.parametrize("kind", ["foreign", "edited", "link", "dangling link", "directory"])
def test_what_is_not_ours_is_neither_overwritten_nor_removed(kind: str, on_linux: Scheduler, root: Path) -> None:
    *_, service, _timer = write_all(on_linux, schedule(), root)
    ours = service.read_text()
    service.unlink()
    if kind == "foreign":
        service.write_text("[Service]\nExecStart=/bin/true\n")
    elif kind == "edited":
        service.write_text(ours + "Nice=19\n")
    elif kind == "directory":
        service.mkdir()
    else:
        target = root / "target"
        if kind == "link":
            target.write_text(ours)
        service.symlink_to(target)
    before = tree(root)
    changed = next(file for file in on_linux.files(schedule(words=("mail",))) if file.path == str(service))
    for call in (
        lambda: files.state(changed),
        lambda: files.write(changed, top=str(root)),
        lambda: files.remove(str(service)),
    ):
        error = error_of(call)
        assert error.kind == ("file" if kind == "directory" else "foreign-file")
        assert str(service) in error.message
    assert tree(root) == before
    assert service.is_symlink() == ("link" in kind)


def test_a_write_that_fails_leaves_nothing_behind(
    on_linux: Scheduler, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    error = error_of(lambda: write_all(on_linux, schedule(), root))
    assert (error.kind, tree(root)) == ("file", {})
    assert "No space left" in error.message


def test_a_folder_that_others_can_write_to_gets_no_file(on_linux: Scheduler, root: Path) -> None:
    (root / UNITS).mkdir(parents=True)
    (root / "etc").chmod(0o777)
    assert error_of(lambda: write_all(on_linux, schedule(), root)).kind == "not-roots-alone"
    assert tree(root) == {}


def test_templates_that_a_package_has_brought_are_used_and_not_written(on_linux: Scheduler, root: Path) -> None:
    packaged = root / "usr/lib/systemd/system"
    packaged.mkdir(parents=True)
    for name in ("kopiatomic@.service", "kopiatomic@.timer"):
        (packaged / name).write_text(systemd.template(name))
    assert [path.name for path in write_all(on_linux, schedule(), root)] == ["10-schedule.conf"] * 2
    # An administrator's own in front of the package's is theirs.
    (root / UNITS / "kopiatomic@.timer").write_text("[Timer]\n")
    assert [path.name for path in write_all(on_linux, schedule(), root)] == ["10-schedule.conf"] * 2


def test_templates_of_an_earlier_version_are_brought_up_to_date(on_linux: Scheduler, root: Path) -> None:
    write_all(on_linux, schedule(), root)
    template = root / UNITS / "kopiatomic@.service"
    template.write_text(files.marked("[Service]\nType=oneshot\n"))
    states = {Path(file.path).name: files.state(file) for file in on_linux.files(schedule("mail"))}
    assert states["kopiatomic@.service"] is State.CHANGED
    assert states["kopiatomic@.timer"] is State.SAME
    write_all(on_linux, schedule("mail"), root)
    assert "KillMode=mixed" in template.read_text()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "-x", "a b", "a@b", "ü", "x" * 51, "a\nb", "a.b"])
def test_a_name_that_is_no_plain_word_is_refused(name: str) -> None:
    from kopiatomic.schedules import check_name

    assert error_of(lambda: check_name(name)).exit_code == 2


# Who could change what root would run


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """A program as an installer puts it down."""
    program = tmp_path / "opt/kopiatomic/bin/kopiatomic"
    program.parent.mkdir(parents=True)
    for folder in (tmp_path / "opt", tmp_path / "opt/kopiatomic", program.parent):
        folder.chmod(0o755)
    program.write_text("#!/usr/bin/python3\nfrom kopiatomic.cli import main\n\nmain()\n")
    program.chmod(0o755)
    return program


def test_a_program_of_roots_alone_is_started_by_its_path_and_its_python(installation: Path, tmp_path: Path) -> None:
    assert trust.installed(str(installation), top=str(tmp_path)) == (sys.executable, str(installation))


def _give_to_a_group(path: Path) -> None:
    os.chown(path, 0, 12345)
    path.chmod(0o775)


@pytest.mark.parametrize("what", ["opt", "opt/kopiatomic", "opt/kopiatomic/bin", "opt/kopiatomic/bin/kopiatomic"])
@pytest.mark.parametrize(
    ("change", "who"),
    [
        (lambda path: path.chmod(0o757), "everybody"),
        (_give_to_a_group, "group 12345"),
        (lambda path: os.chown(path, 12345, 0), "user 12345"),
    ],
    ids=["everybody", "group", "owner"],
)
def test_a_program_that_others_can_exchange_is_refused(
    what: str, change: Callable[[Path], object], who: str, installation: Path, tmp_path: Path
) -> None:
    change(tmp_path / what)
    error = error_of(lambda: trust.installed(str(installation), top=str(tmp_path)))
    assert error.kind == "not-roots-alone"
    assert who in error.message
    assert str(tmp_path / what) in error.message
    assert "chmod go-w" in str(error.hint)


def test_what_links_lead_to_is_looked_at_as_well(installation: Path, tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.mkdir(0o755)
    (usual / "kopiatomic").symlink_to("../opt/kopiatomic/bin/kopiatomic")
    program = usual / "kopiatomic"
    assert trust.installed(str(program), top=str(tmp_path))[1] == str(program)
    (tmp_path / "opt").chmod(0o777)
    assert "opt" in error_of(lambda: trust.installed(str(program), top=str(tmp_path))).message
    (tmp_path / "opt").chmod(0o755)
    usual.chmod(0o777)
    assert "usual" in error_of(lambda: trust.installed(str(program), top=str(tmp_path))).message
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert error_of(lambda: trust.check(str(loop), "the program", top=str(tmp_path))).kind == "not-roots-alone"


def test_its_python_and_what_that_imports_are_looked_at(
    installation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir(0o777)
    packages.chmod(0o777)
    monkeypatch.setattr(sys, "path", [str(packages), *sys.path])
    assert "imports from" in error_of(lambda: trust.installed(str(installation), top=str(tmp_path))).message
    packages.chmod(0o755)
    python = packages / "python3"
    python.write_text("")
    python.chmod(0o777)
    monkeypatch.setattr(sys, "executable", str(python))
    assert "its Python" in error_of(lambda: trust.installed(str(installation), top=str(tmp_path))).message


def test_the_folders_of_the_system_itself_are_looked_at() -> None:
    trust.check("/usr/bin/env", "the program")
    assert error_of(lambda: trust.check("/tmp", "the program")).kind == "not-roots-alone"


def test_a_module_is_no_program(kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic("schedule", "install", "--yes", "home", "--", "-c", "true", "tank")
    assert ended.returncode == 1
    assert "is no program that a timer could start" in ended.stderr
    assert "Traceback" not in ended.stderr


# The environment of a schedule


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    """Programs that are there. Nothing is asked of them here."""
    folder = tmp_path / "bin"
    folder.mkdir(0o755)
    for name in ("kopia", "restic", "borg"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


def environment_for(
    caller: dict[str, str], tmp_path: Path, *credentials: str, **options: Any
) -> environment.Environment:
    path = f"{tmp_path}/bin"
    return environment.of(Options(**options), {"PATH": path, **caller}, "/root", credentials, top=str(tmp_path))


@pytest.mark.usefixtures("engines")
def test_home_configuration_path_and_program_are_fixed(tmp_path: Path) -> None:
    found = environment_for({"HOME": "/home/ann", "LANG": "C", "KOPIATOMIC_TEST": "1"}, tmp_path)
    assert found.variables == {
        "HOME": "/root",
        "PATH": environment.PATH,
        "KOPIA_CONFIG_PATH": "/root/.config/kopia/repository.config",
        "KOPIATOMIC_KOPIA": f"{tmp_path}/bin/kopia",
    }
    assert found.left_out == ()


@pytest.mark.usefixtures("engines")
def test_where_kopias_configuration_is_said_elsewhere_that_is_the_one(tmp_path: Path) -> None:
    given = environment_for({"KOPIA_CONFIG_PATH": "/etc/kopia.config"}, tmp_path).variables
    assert given["KOPIA_CONFIG_PATH"] == "/etc/kopia.config"
    by_option = environment_for({}, tmp_path, options="--config-file=/srv/x.config").variables
    assert by_option["KOPIA_CONFIG_PATH"] == "/srv/x.config"
    elsewhere = environment_for({"XDG_CONFIG_HOME": "/srv/config"}, tmp_path).variables
    assert elsewhere["KOPIA_CONFIG_PATH"] == "/srv/config/kopia/repository.config"


@pytest.mark.usefixtures("engines")
def test_secrets_of_the_caller_are_named_and_left_out(tmp_path: Path) -> None:
    caller = {
        "RESTIC_REPOSITORY": "rest:https://me:hush@host/",
        "RESTIC_PASSWORD": "hush",
        "RESTIC_PASSWORD_FILE": "/root/restic.pw",
        "RESTIC_CACHE_DIR": "/srv/cache",
        "AWS_ACCESS_KEY_ID": "hush",
        "AWS_SECRET_ACCESS_KEY": "hush",
        "AWS_DEFAULT_REGION": "north",
        "B2_ACCOUNT_KEY": "hush",
        "KOPIA_PASSWORD": "of another engine",
        "http_proxy": "http://me:hush@proxy/",
    }
    found = environment_for(caller, tmp_path, "AWS_SECRET_ACCESS_KEY", engine="restic")
    assert "hush" not in str(found.variables)
    assert found.left_out == (
        "AWS_ACCESS_KEY_ID",
        "B2_ACCOUNT_KEY",
        "RESTIC_PASSWORD",
        "RESTIC_REPOSITORY",
        "http_proxy",
    )
    kept = {"RESTIC_PASSWORD_FILE", "RESTIC_CACHE_DIR", "AWS_DEFAULT_REGION", "KOPIATOMIC_RESTIC", "HOME", "PATH"}
    assert set(found.variables) == kept


def test_an_engine_that_others_can_exchange_is_refused(engines: Path, tmp_path: Path) -> None:
    (engines / "borg").chmod(0o777)
    error = error_of(lambda: environment_for({}, tmp_path, engine="borg"))
    assert (error.kind, "the engine borg" in error.message) == ("not-roots-alone", True)
    (engines / "borg").unlink()
    assert error_of(lambda: environment_for({}, tmp_path, engine="borg")).kind == "borg-missing"


@pytest.mark.usefixtures("engines")
def test_a_command_is_looked_for_where_the_schedule_will(tmp_path: Path) -> None:
    assert set(environment_for({}, tmp_path, command="true").variables) == {"HOME", "PATH"}
    error = error_of(lambda: environment_for({}, tmp_path, command="kopia"))
    assert (error.kind, environment.PATH in str(error.hint)) == ("command-missing", True)


@pytest.mark.parametrize("fault", ["mode", "empty", "directory", "missing", "relative", "name", "owner"])
def test_a_credential_has_to_be_a_file_of_roots_alone(fault: str, tmp_path: Path) -> None:
    file = tmp_path / "kopia.pw"
    file.write_text("hush\n")
    file.chmod(0o600)
    name, path = "KOPIA_PASSWORD", str(file)
    environment.check_credential(name, path, top=str(tmp_path))
    if fault == "mode":
        file.chmod(0o640)
    elif fault == "empty":
        file.write_text("")
    elif fault == "directory":
        file.unlink()
        file.mkdir(0o700)
    elif fault == "missing":
        file.unlink()
    elif fault == "owner":
        os.chown(file, 12345, 0)
    name = "kopia-password" if fault == "name" else name
    path = "kopia.pw" if fault == "relative" else path
    error = error_of(lambda: environment.check_credential(name, path, top=str(tmp_path)))
    assert error.kind == ("not-roots-alone" if fault in {"missing", "owner"} else "bad-credential")


# What is asked of the command line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("home",), "the words of a backup are missing"),
        (("home", "--"), "the words of a backup are missing"),
        (("home", "--", "plan", "tank"), "'plan' is another command"),
        (("home", "--", "schedule", "show"), "'schedule' is another command"),
        (("home", "--", "-v", "tank"), "--version is nothing for a schedule"),
        (("home", "--", "tank", "-h"), "--help is nothing for a schedule"),
        (("home", "--", "-n", "tank"), "-n is nothing for a schedule"),
        (("home", "--", "--schedule", "x", "tank"), "--schedule is nothing for a schedule"),
        (("home", "--", "--no-such-flag", "tank"), "No such option"),
        (("home", "--", "-r"), "no dataset was named"),
        (("home", "--", "--name", "a/b", "tank"), "one path component"),
        (("--daily", "--hourly", "home", "--", "tank"), "exclude each other"),
        (("--calendar", "hourly", "--hourly", "home", "--", "tank"), "exclude each other"),
        (("--credential", "x", "home", "--", "tank"), "a variable's name, '=' and a file"),
        (("a b", "--", "tank"), "cannot be named"),
        (("home", "--", "-o", "--password=hush", "tank"), "a password stands among the words"),
        (("home", "--", "-o", "--password=abc", "tank"), "a password stands among the words"),
        (("home", "--", "-p", "PGPASSWORD=hushhush pg_dump", "tank"), "a password stands among the words"),
        (("home", "--", "--engine", "restic", "--repository", "rest:http://a:hush@h/", "tank"), "a password stands"),
    ],
)
def test_words_that_make_no_schedule_are_exit_code_2(words: Sequence[str], said: str, kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic("schedule", "install", "--yes", *words)
    assert ended.returncode == 2, ended
    assert said in ended.stderr
    assert "hush" not in ended.stderr.replace("hushhush", "")
    assert ended.stdout == ""


def test_a_dataset_that_is_named_like_a_command_is_reached_through_backup() -> None:
    words, options = _meant(["backup", "plan", "-r", "--no-maintenance", "--quiet"])
    assert list(words) == ["plan", "-r", "--no-maintenance", "--quiet"]
    assert options == Options(names=("plan",), recursive=True, maintenance=False)


def test_the_time_to_end_covers_the_engine_a_suspended_pool_the_last_hook_and_cleaning_up() -> None:
    for words, least in (
        (["tank"], 30 + 30 + 180),
        (["--stop-timeout", "10m", "-q", "x", "--hook-timeout", "1h", "tank"], 4800),
    ):
        _, options = _meant(words)
        assert scheduling._end_timeout(options) > least


# Installing, showing, removing


PASSWORD = "a password for tests"  # noqa: S105

_SYSTEMD_RUN = """\
#!{python}
# In the place of systemd-run, since no systemd runs here: starts the program with the environment and the credentials that it
# was told, as the service manager would, and with nothing else. Each '$$' is a '$' to systemd.
import os, re, shutil, subprocess, sys, tempfile
words = sys.argv[1:]
options, program = words[: words.index("--")], [word.replace("$$", "$") for word in words[words.index("--") + 1 :]]
environment = dict(o.removeprefix("--setenv=").split("=", 1) for o in options if o.startswith("--setenv="))
with tempfile.TemporaryDirectory() as folder:
    for option in options:
        if option.startswith("--property=LoadCredential="):
            name, path = option.removeprefix("--property=LoadCredential=").split(":", 1)
            shutil.copy(path, os.path.join(folder, name))
            environment["CREDENTIALS_DIRECTORY"] = folder
    sys.exit(subprocess.run(program, env=environment).returncode)
"""

_PROGRAM = """\
#!{python}
# kopiatomic, with a folder for what it would freeze: there is neither ZFS nor Btrfs here.
import sys
sys.path[:0] = {path!r}
from kopiatomic import freezing
from tests.unit.kopia_fixtures import taken
from kopiatomic.model import Plan
freezing.Freezing.select = lambda _: Plan({source!r}, (taken("/"),))
freezing.Freezing.check_places = lambda *_: None
from kopiatomic.cli import main
main()
"""


class Machine:
    """A machine below a folder, on which systemd seems to run; what it is told is kept."""

    def __init__(self, base: Path, kopia: Kopia, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base = base
        self.root = base / "machine"
        self.told = base / "told"
        self.kopia = kopia
        self.program = base / "opt/kopiatomic"
        self.credential = base / "kopia.pw"
        self.credential.write_text(f"{PASSWORD}\n")
        self.credential.chmod(0o600)
        self.caller = {**os.environ, **kopia.environment, "KOPIATOMIC_STATE_DIR": str(base / "state")}
        self.scheduler = on("linux", str(self.root))
        self._programs(monkeypatch)

    def _programs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (self.root / "run/systemd/system").mkdir(parents=True)
        folders = [self.base / "opt", self.base / "stand-ins", self.base / "source"]
        for folder in (self.root, *folders):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
        systemctl = f'#!/bin/sh\n# In the place of systemctl, since no systemd runs here.\necho "$@" >> {self.told}\n'
        tree = Path(__file__).parents[2]
        path = [str(tree / "src"), str(tree), *sys.path]
        contents = {
            self.program: _PROGRAM.format(python=sys.executable, path=path, source=str(self.base / "source")),
            self.base / "stand-ins/systemctl": systemctl,
            self.base / "stand-ins/systemd-run": _SYSTEMD_RUN.format(python=sys.executable),
        }
        for file, content in contents.items():
            file.write_text(content)
            file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{self.base / 'stand-ins'}:{os.environ['PATH']}")

    def install(
        self, *words: str, name: str = "home", calendar: str = "daily", credential: bool = True, yes: bool = True
    ) -> int:
        handed = {"KOPIA_PASSWORD": str(self.credential)} if credential else {}
        state_dir = self.caller["KOPIATOMIC_STATE_DIR"]
        meant, options = _meant([*words, "--state-dir", state_dir] if "--state-dir" not in words else words)
        wanted = Wanted(name, calendar, handed, meant, options)
        place = Place(self.scheduler, str(self.program), self.caller, top=str(self.base))
        return scheduling.install(wanted, place, Console(), yes=yes)

    def said_to_systemctl(self) -> list[str]:
        lines = self.told.read_text().splitlines() if self.told.exists() else []
        self.told.unlink(missing_ok=True)
        return [line for line in lines if not line.startswith("show")]


@pytest.fixture
def machine(tmp_path: Path, kopia: Kopia, lock_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, kopia, monkeypatch)


def test_it_says_what_it_writes_checks_the_engine_as_the_schedule_will_run_and_installs(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.install("-r", "tank") == 0, capsys.readouterr()
    said = capsys.readouterr().out
    for path, content in tree(machine.root).items():
        assert f"{machine.root}/{path} (new):" in said
        assert all(f"  {line}" in said for line in content.decode().splitlines())
    assert re.search(
        r"^Checked:    kopia \d+\.\d+\.\d+ in the schedule's own environment, 1 dataset", said, re.MULTILINE
    )
    assert re.search(rf"^Repository: filesystem {machine.kopia.repository} \(id [0-9a-f]+\)$", said, re.MULTILINE)
    assert re.search(r"^Identity:   root@\S+$", said, re.MULTILINE)
    assert said.splitlines()[-1].startswith("Installed home")
    timer = "kopiatomic@home.timer"
    assert machine.said_to_systemctl() == [
        "--quiet daemon-reload",
        f"--quiet enable {timer}",
        f"--quiet restart {timer}",
    ]
    assert machine.scheduler.names() == ["home"]


def test_no_file_has_the_password(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.install("tank") == 0
    assert not [path for path, content in tree(machine.root).items() if PASSWORD.encode() in content]
    written = capsys.readouterr()
    assert PASSWORD not in written.out + written.err
    assert "KOPIA_PASSWORD" not in written.err


@pytest.mark.parametrize("fault", ["no password", "wrong password", "no repository"])
def test_what_the_engine_refuses_in_the_units_environment_is_not_installed(
    fault: str, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """However well it works in the caller's: there, KOPIA_PASSWORD is set."""
    if fault == "wrong password":
        machine.credential.write_text("wrong\n")
    elif fault == "no repository":
        shutil.rmtree(machine.kopia.repository)
    assert machine.install("tank", credential=fault != "no password") == 1
    written = capsys.readouterr()
    wanted = {
        "no password": "KOPIA_PASSWORD is not set",
        "wrong password": "refuses the password",
        "no repository": "reach",
    }
    assert re.search(rf"in the schedule's own environment: .*{wanted[fault]}.*; nothing was installed", written.err)
    if fault == "no password":
        assert "KOPIA_PASSWORD holds a secret" in written.err
    assert tree(machine.root) == {}
    assert machine.said_to_systemctl() == []


def test_installing_the_same_again_changes_and_asks_nothing(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.install("tank") == 0
    before = {path: (machine.root / path).stat().st_ino for path in tree(machine.root)}
    capsys.readouterr()
    # Nobody can be asked here: it would fail.
    assert machine.install("tank", yes=False) == 0
    assert "as they should be" in capsys.readouterr().out
    assert {path: (machine.root / path).stat().st_ino for path in tree(machine.root)} == before
    assert machine.install("mail", yes=False) == 1
    assert "--yes" in capsys.readouterr().err


def test_the_answer_is_the_persons(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        """In the place of a person at a terminal."""

        def __init__(self, answer: str) -> None:
            self._answer = answer

        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return self._answer

    for answer in ("\n", "n\n", "", "no way\n"):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        assert machine.install("tank", yes=False) == 1
        assert tree(machine.root) == {}
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert machine.install("tank", yes=False) == 0
    assert tree(machine.root) != {}


def test_where_no_systemd_runs_it_says_that_nothing_was_checked(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(machine.root / "run")
    assert machine.install("tank") == 0
    written = capsys.readouterr()
    assert "could not be checked in the unit's environment: systemd does not run here" in written.err
    assert "Checked:" not in written.out
    assert machine.said_to_systemctl() == [f"--quiet --root={machine.root} enable kopiatomic@home.timer"]


def test_a_foreign_file_stops_it_before_anything_is_written(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = machine.root / UNITS / "kopiatomic@home.timer.d/10-schedule.conf"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("[Timer]\nOnCalendar=yearly\n")
    assert machine.install("tank") == 1
    assert "is not kopiatomic's" in capsys.readouterr().err
    assert list(tree(machine.root)) == [str(foreign.relative_to(machine.root))]


def test_several_stand_side_by_side_and_go_one_by_one(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.install("tank/home") == 0
    assert machine.install("--name", "mail", "tank/mail", name="mail", calendar="hourly") == 0
    assert machine.scheduler.names() == ["home", "mail"]
    both = tree(machine.root)
    machine.said_to_systemctl()
    assert scheduling.remove(machine.scheduler, Console(), name="home", yes=True) == 0
    assert set(tree(machine.root)) == {path for path in both if "@home" not in path}
    assert machine.said_to_systemctl() == [
        "--quiet disable --now kopiatomic@home.timer",
        "--quiet daemon-reload",
        "reset-failed kopiatomic@home.service kopiatomic@home.timer",
    ]
    capsys.readouterr()
    assert scheduling.remove(machine.scheduler, Console(), name="home", yes=True) == 1
    assert "no schedule home is installed" in capsys.readouterr().err
    stamp = machine.root / "var/lib/systemd/timers/stamp-kopiatomic@mail.timer"
    stamp.parent.mkdir(parents=True)
    stamp.touch()
    assert scheduling.remove(machine.scheduler, Console(), name="mail", yes=True) == 0
    assert tree(machine.root) == {}
    assert not list((machine.root / UNITS).iterdir())


def test_removing_leaves_what_is_not_ours(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.install("tank") == 0
    kept = [machine.root / UNITS / name for name in ("kopiatomic@home.service.d/override.conf", "kopiatomic@.timer")]
    for path in kept:
        path.write_text("# mine\n")
    capsys.readouterr()
    assert scheduling.remove(machine.scheduler, Console(), name="home", yes=True) == 0
    assert set(tree(machine.root)) == {str(path.relative_to(machine.root)) for path in kept}
    assert "kopiatomic@.timer is not kopiatomic's" in capsys.readouterr().err


def test_removing_asks_and_refuses_while_a_run_lives(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.install("tank") == 0
    assert scheduling.remove(machine.scheduler, Console(), name="home", yes=False) == 1
    records = Records(machine.caller["KOPIATOMIC_STATE_DIR"])
    run = RunRecord("20261122T101112Z-01234567", "0", "k", "/kopia", 1.0, None, None, None, None, "home")
    records.begin(run, keep=1e9)
    with locks.run(run.id):
        assert scheduling.remove(machine.scheduler, Console(), name="home", yes=True) == 1
    assert f"run {run.id} of the schedule home is alive" in capsys.readouterr().err
    assert machine.scheduler.names() == ["home"]
    # It was killed: no process has its lock.
    assert scheduling.remove(machine.scheduler, Console(), name="home", yes=True) == 0


def test_a_systemctl_that_fails_is_said(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    (machine.base / "stand-ins/systemctl").write_text("#!/bin/sh\necho Access denied >&2\nexit 4\n")
    assert machine.install("tank") == 1
    assert "systemctl daemon-reload failed: Access denied" in capsys.readouterr().err


def test_the_question_is_asked_with_the_settings_of_the_service() -> None:
    one = schedule(words=("$HOME", "a b"), credentials={"KOPIA_PASSWORD": "/root/x y"})
    argv = systemd.ask_argv(one)
    options, words = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    assert words == [*one.program, "schedule", "check", "--", "$$HOME", "a b"]
    assert {f"--setenv={name}={value}" for name, value in one.environment.items()} < set(options)
    assert "--property=LoadCredential=KOPIA_PASSWORD:/root/x y" in options
    settings = {o.removeprefix("--property=").split("=")[0] for o in options if o.startswith("--property=")}
    assert settings == {
        "IgnoreSIGPIPE",
        "KillMode",
        "LoadCredential",
        "LockPersonality",
        "OOMPolicy",
        "OOMScoreAdjust",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "SystemCallArchitectures",
    }


# Too late


def saved(records: Records, number: int, started: float, code: int, name: str = "home") -> None:
    result = {0: "saved", 3: "incomplete", 4: "unclean"}.get(code, "failed")
    run = RunRecord(f"20261122T101112Z-{number:08x}", "0", "k", "/kopia", started, None, None, None, None, name)
    records.begin(run, keep=1e12)
    records.end(replace(run, result=result, exit_code=code, document={}))


@pytest.fixture
def records(tmp_path: Path, lock_directory: Path) -> Records:
    return Records(str(tmp_path / "state"))


def overdue(records: Records, now: float) -> KopiatomicError | None:
    return lateness.Standing(schedule(interval=HOUR), records.scheduled("home")).overdue(now)


def test_one_run_that_found_the_view_root_taken_is_no_failure(records: Records) -> None:
    saved(records, 1, 1000.0, 0)
    saved(records, 2, 1000.0 + HOUR, 75)
    assert overdue(records, 1000.0 + HOUR + 5) is None
    assert [run.exit_code for run in records.scheduled("home")] == [75, 0]


@pytest.mark.parametrize("code", [1, 3, 4, 75, 143])
def test_three_intervals_without_a_complete_success_are_a_failure_that_says_since_when(
    code: int, records: Records
) -> None:
    saved(records, 1, 1_700_000_000.0, 0)
    saved(records, 2, 1_700_000_000.0 + 3 * HOUR, code)
    # Of another schedule, and by hand.
    saved(records, 3, 1_700_000_000.0 + 3 * HOUR, 0, "mail")
    saved(records, 4, 1_700_000_000.0 + 3 * HOUR, 0, "")
    assert overdue(records, 1_700_000_000.0 + 3 * HOUR) is None
    error = overdue(records, 1_700_000_000.0 + 3 * HOUR + 1)
    assert error is not None
    assert (error.exit_code, error.kind) == (1, "overdue")
    assert "no complete success since 2023-11-14 22:13:20 UTC" in error.message
    saved(records, 5, 1_700_000_000.0 + 3 * HOUR, 0)
    assert overdue(records, 1_700_000_000.0 + 3 * HOUR + 1) is None


def test_one_that_never_succeeded_is_late_three_intervals_after_its_first_run(records: Records) -> None:
    assert overdue(records, 1e9) is None
    for number in range(5):
        saved(records, number, 1000.0 + number * HOUR, 75)
    assert overdue(records, 1000.0 + 3 * HOUR) is None
    error = overdue(records, 1000.0 + 3 * HOUR + 1)
    assert error is not None
    assert "no complete success at all since its first run on record, 1970-01-01 00:16:40 UTC" in error.message


def test_what_the_unit_asks_afterwards_fails_where_it_is_late(
    records: Records, on_linux: Scheduler, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(on_linux, schedule(interval=HOUR, state_dir=records.directory), root)
    saved(records, 1, time.time() - 2 * HOUR, 0)
    saved(records, 2, time.time(), 75)
    assert scheduling.overdue(on_linux, Console(), name="home") == 0
    shutil.rmtree(records.directory)
    saved(records, 1, time.time() - 4 * HOUR, 0)
    saved(records, 2, time.time(), 75)
    assert scheduling.overdue(on_linux, Console(), name="home") == 1
    assert "no complete success since" in capsys.readouterr().err


def test_show_says_what_came_of_them(
    records: Records, on_linux: Scheduler, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scheduling.show(on_linux, Console(), name="", as_json=False) == 0
    assert capsys.readouterr().out == "No schedule is installed.\n"
    here: dict[str, Any] = {"interval": HOUR, "state_dir": records.directory}
    for one in (schedule(**here), schedule("mail", words=("--name", "my mail", "tank"), **here)):
        write_all(on_linux, one, root)
    saved(records, 1, 1_700_000_000.0, 0)
    saved(records, 2, time.time(), 75)
    assert scheduling.show(on_linux, Console(), name="", as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "home: kopiatomic -r tank"
    assert "20261122T101112Z-00000002" in lines[2]
    assert lines[2].endswith("failed (75)")
    assert lines[3].endswith("20261122T101112Z-00000001, 2023-11-14 22:13:20 UTC, saved (0)")
    assert "OVERDUE" in lines[4]
    assert lines[5] == "mail: kopiatomic --name 'my mail' tank"
    assert [line.split()[-3:] for line in lines[7:]] == [["none", "on", "record"]] * 2
    assert scheduling.show(on_linux, Console(), name="home", as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "kopiatomic-schedules-1"
    (home,) = document["schedules"]
    assert (home["name"], home["words"], home["interval_seconds"]) == ("home", ["-r", "tank"], HOUR)
    assert (home["last_run"]["exit_code"], home["last_saved"]["exit_code"]) == (75, 0)
    assert "since 2023-11-14" in home["overdue"]
    assert home["files"] == [
        f"{root}/{UNITS}/kopiatomic@home.{kind}.d/10-schedule.conf" for kind in ("timer", "service")
    ]
    assert scheduling.show(on_linux, Console(), name="nobody", as_json=False) == 1


def test_one_that_was_changed_by_hand_is_still_shown(on_linux: Scheduler, root: Path, records: Records) -> None:
    *_, service, _timer = write_all(on_linux, schedule(state_dir=records.directory), root)
    service.write_text(service.read_text() + "Nice=19\n")
    assert on_linux.read("home") == schedule(state_dir=records.directory)


# What cron starts


@pytest.fixture
def started_by_cron(
    on_freebsd: Scheduler, root: Path, records: Records, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Report], tuple[int, dict[str, str]]]:
    """Have ``schedule run`` end in a report; returns the exit code, and the environment and words of the backup."""
    one = schedule(
        calendar="02:30", interval=HOUR, state_dir=records.directory, environment={"HOME": "/root", "X": "y"}
    )
    write_all(on_freebsd, one, root)
    monkeypatch.setattr(sys, "argv", ["kopiatomic", "schedule", "run", "home"])

    def start(report: Report) -> tuple[int, dict[str, str]]:
        environ = {"FROM_CRON": "1"}
        seen: dict[str, str] = {}

        def backup(found: Schedule) -> Report:
            seen.update(environ)
            assert found == one
            assert sys.argv[1:] == ["backup", "--schedule", "home", "-r", "tank"]
            return report

        code = scheduling.start(on_freebsd, Console(quiet=True), name="home", backup=backup, environ=environ)
        return code, seen

    return start


def locked() -> Report:
    return Report("id", "/kopia", error=LockedError("another run has the view root /kopia", kind="locked"))


def test_cron_starts_the_backup_in_the_environment_of_the_schedule(
    started_by_cron: Callable[[Report], tuple[int, dict[str, str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    failed = Report("id", "/kopia", error=KopiatomicError("it failed", kind="k", hint="do this"))
    assert started_by_cron(failed) == (1, {"HOME": "/root", "X": "y"})
    assert "it failed" in capsys.readouterr().err


def test_cron_has_no_mail_to_send_for_one_that_found_the_view_root_taken(
    started_by_cron: Callable[[Report], tuple[int, dict[str, str]]],
    records: Records,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved(records, 1, time.time() - 2 * HOUR, 0)
    saved(records, 2, time.time(), 75)
    assert started_by_cron(locked())[0] == 0
    written = capsys.readouterr()
    assert (written.out, written.err) == ("", "")
    shutil.rmtree(records.directory)
    saved(records, 1, time.time() - 4 * HOUR, 0)
    assert started_by_cron(locked())[0] == 75
    written = capsys.readouterr()
    assert "no complete success since" in written.err
    assert "another run has the view root" in written.err


def test_what_cron_will_start_is_asked_in_an_environment_that_has_nothing_else(
    on_freebsd: Scheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    program.write_text(
        "import json, os, sys\nprint(json.dumps({'argv': sys.argv[1:], 'environment': dict(os.environ)}))\n"
    )
    monkeypatch.setenv("KOPIA_PASSWORD", "the caller's")
    one = schedule(program=("/usr/bin/python3", str(program)), environment={"HOME": "/root"})
    answer = on_freebsd.ask(one)
    assert answer is not None
    assert answer["argv"] == ["schedule", "check", "--", "-r", "tank"]
    assert set(answer["environment"]) <= {"HOME", "LC_CTYPE"}


def test_without_systemds_tools_it_is_said(
    on_linux: Scheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert error_of(lambda: on_linux.calendar("home", "daily")).kind == "no-systemd"


# Recovering what one run left


def test_recovering_a_schedule_looks_at_its_own_runs_alone(
    records: Records, lock_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs were killed before they made anything, one of the schedule; its lock file is still there."""
    from kopiatomic.commands import recover

    ours, other = (f"20261122T101112Z-{number:08x}" for number in (1, 2))
    for run_id, name in ((ours, "home"), (other, "")):
        records.begin(RunRecord(run_id, "0", "k", "/kopia", 1.0, None, None, None, None, name), keep=1e12)
    locks.prepare()
    Path(locks.path_of("root", "/kopia")).touch()
    assert recover(records.directory, Console(), dry_run=False, as_json=True, schedule="home") == 0
    assert json.loads(capsys.readouterr().out)["interrupted"] == [ours]
    assert {run.id: run.result for run in records.history(9)} == {ours: "interrupted", other: None}
    assert os.listdir(lock_directory) == []


# The whole command line


def test_show_and_remove_of_a_machine_without_schedules(kopiatomic: Kopiatomic) -> None:
    """On the real folders of this machine, which nothing here writes to."""
    assert not [name for name in os.listdir("/etc/systemd/system") if name.startswith("kopiatomic@")]
    ended = kopiatomic("schedule", "show", "--json")
    assert (ended.returncode, json.loads(ended.stdout)["schedules"]) == (0, [])
    ended = kopiatomic("schedule", "remove", "--yes", "home")
    assert (ended.returncode, "no schedule home is installed" in ended.stderr) == (1, True)
    assert kopiatomic("schedule").returncode == 2


def test_what_only_units_start_is_not_in_the_help() -> None:
    group = cli.cli.commands["schedule"]
    hidden = {name for name, one in group.commands.items() if one.hidden}  # type: ignore[attr-defined]
    assert hidden == {"check", "overdue", "run"}


def test_the_check_answers_in_json_also_where_it_fails(kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic("schedule", "check", "--", "-c", "true", "/nowhere")
    answer = json.loads(ended.stdout)
    assert ended.returncode == 1
    assert "/nowhere" in answer["error"]["message"]
    assert answer["repository"] is None


def test_names_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.shell_completion import ShellComplete

    from kopiatomic import completion

    monkeypatch.setattr(completion, "schedules", lambda: ["home", "mail"])
    monkeypatch.setattr(completion, "datasets", lambda: {"tank", "tank/home"})

    def complete(*words: str) -> list[str]:
        found = ShellComplete(cli.cli, {}, "kopiatomic", "").get_completions(list(words[:-1]), words[-1])
        return [item.value for item in found]

    assert complete("schedule", "remove", "h") == ["home"]
    assert complete("schedule", "show", "") == ["home", "mail"]
    assert sorted(complete("schedule", "")) == ["install", "remove", "show"]
    assert complete("schedule", "install", "new", "--", "tank/") == ["tank/home"]
    assert complete("schedule", "install", "new", "--", "-r", "tank", "--layout", "in") == ["in-place"]
    assert "--calendar" in complete("schedule", "install", "--")
    assert "--recursive" in complete("schedule", "install", "new", "--", "--rec")
