"""``kopiatomic schedule``: what is asked before, what is installed, shown and removed, and what counts as too late.

systemd is not init here, so no timer starts anything. In place of ``systemctl`` and ``systemd-run`` on a running systemd stand
programs that say so below; ``kopia`` and its repository, and the state database, are real.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kopiatomic import schedules
from kopiatomic.cli import entry as cli
from kopiatomic.cli.schedule import meant
from kopiatomic.commands import backup as run
from kopiatomic.commands import schedule as scheduling
from kopiatomic.commands.schedule import Place, ScheduleRequest
from kopiatomic.config.invocation import Invocation
from kopiatomic.config.options import Options
from kopiatomic.errors import KopiatomicError, LockedError
from kopiatomic.model.plan import Layout
from kopiatomic.model.report import Report
from kopiatomic.model.schedule import Schedule
from kopiatomic.monitoring import lateness
from kopiatomic.output.console import Console
from kopiatomic.runs import selecting
from kopiatomic.schedules import on, systemd
from kopiatomic.schedules.schedule import Scheduler
from kopiatomic.state import locks
from kopiatomic.state.records import Records, RunRecord
from tests.support.programs import Kopia, Kopiatomic
from tests.unit.support.engine_bench import EngineBench
from tests.unit.support.schedules import HOUR, UNITS, error_of, on_freebsd, on_linux, root, schedule, tree, write_all

__all__ = ["on_freebsd", "on_linux", "root"]

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="schedules are root's"), pytest.mark.in_part(13)]


# What is asked of the command line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("home",), "kopiatomic profile new home -- DATASET... makes it"),
        ((), "name a profile, --all of them, or the words of a backup"),
        (("--all", "home"), "--all and names exclude each other"),
        (("--daily", "home"), "the times and secrets of a profile are in its file"),
        (("--", "tank"), "a schedule of words needs a name"),
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
    words, options = meant(["backup", "plan", "-r", "--no-maintenance", "--quiet"], cli.cli)
    assert list(words) == ["plan", "-r", "--no-maintenance", "--quiet"]
    assert options == Options(names=("plan",), recursive=True, maintenance=False)


def test_the_time_to_end_covers_the_engine_a_suspended_pool_the_last_hook_and_cleaning_up() -> None:
    for words, least in (
        (["tank"], 30 + 30 + 180),
        (["--stop-timeout", "10m", "-q", "x", "--hook-timeout", "1h", "tank"], 4800),
    ):
        _, options = meant(words, cli.cli)
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
from kopiatomic.runs import selecting
from tests.unit.support.kopia_fixtures import taken
from kopiatomic.model.plan import Plan
selecting.Selecting.select = lambda _: Plan({source!r}, (taken("/"),))
selecting.Selecting.check_places = lambda *_: None
from kopiatomic.cli.entry import main
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
        tree = Path(__file__).parents[3]
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
        understood, options = meant([*words, "--state-dir", state_dir], cli.cli)
        wanted = ScheduleRequest(name, calendar, handed, understood, options)
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


@pytest.mark.parametrize("fault", ["wrong password", "no repository"])
def test_what_the_engine_refuses_in_the_units_environment_is_not_installed(
    fault: str, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """However well it works in the caller's: there, KOPIA_PASSWORD is set."""
    if fault == "wrong password":
        machine.credential.write_text("wrong\n")
    elif fault == "no repository":
        shutil.rmtree(machine.kopia.repository)
    assert machine.install("tank") == 1
    written = capsys.readouterr()
    wanted = {
        "wrong password": "refuses the password",
        "no repository": "reach",
    }
    assert re.search(rf"in the schedule's own environment: .*{wanted[fault]}.*; nothing was installed", written.err)
    assert tree(machine.root) == {}
    assert machine.said_to_systemctl() == []


def test_a_password_in_the_callers_environment_is_asked_for_as_a_credential(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.install("tank", credential=False) == 1
    written = capsys.readouterr()
    assert "KOPIA_PASSWORD of this environment would be part of the schedule" in written.err
    assert "--credential KOPIA_PASSWORD=" in written.err
    assert PASSWORD not in written.out + written.err
    assert tree(machine.root) == {}


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


def without_systemd(machine: Machine) -> None:
    """As in a container, or in the chroot where a machine is made."""
    shutil.rmtree(machine.root / "run")


def test_where_no_systemd_runs_it_checks_what_can_be_checked_and_says_what_cannot(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    without_systemd(machine)
    before = set(os.listdir("/run"))
    assert machine.install("tank") == 0
    written = capsys.readouterr()
    assert re.search(
        r"systemd does not run here\. Checked without it: .*units.*engine.*Not checked: .*service", written.err
    )
    # With the credential, which alone has the password.
    assert re.search(r"^Checked:    kopia \d.* in the schedule's own environment, 1 dataset", written.out, re.MULTILINE)
    assert written.out.splitlines()[-1] == "Installed the files of home; it starts when systemd does."
    assert machine.said_to_systemctl() == [f"--quiet --root={machine.root} enable kopiatomic@home.timer"]
    assert not [name for name in set(os.listdir("/run")) - before if "check" in name]


def test_where_no_systemd_runs_a_backup_that_cannot_be_made_here_is_told_and_installed(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    without_systemd(machine)
    machine.credential.write_text("wrong\n")
    assert machine.install("tank") == 0
    written = capsys.readouterr()
    assert re.search(
        r"in this place the backup could not be made: .*refuses the password.*installed all the same", written.err
    )
    assert "Checked:" not in written.out
    assert machine.scheduler.names() == ["home"]


@pytest.mark.parametrize(
    ("setting", "said", "code"),
    [
        ("[Timer]\nOnCalendar=\n", "systemd refuses the units: .*kopiatomic@home.timer.*nothing was installed", 1),
        ("[Timer]\nPersistant=no\n", "Unknown key.*Persistant", 0),
    ],
)
def test_where_no_systemd_runs_the_units_are_verified_with_what_the_administrator_added(
    setting: str, said: str, code: int, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    without_systemd(machine)
    override = machine.root / UNITS / "kopiatomic@home.timer.d/override.conf"
    override.parent.mkdir(parents=True)
    override.write_text(setting)
    assert machine.install("tank") == code
    assert re.search(said, capsys.readouterr().err)
    assert (machine.scheduler.names() == []) == bool(code)


def test_where_no_systemd_runs_show_says_so_and_whether_it_will_be_started(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    without_systemd(machine)
    # The real one, which needs no running systemd for this.
    (machine.base / "stand-ins/systemctl").unlink()
    assert machine.install("tank") == 0
    capsys.readouterr()
    assert scheduling.show(machine.scheduler, Console(), name="home", as_json=False) == 0
    said = capsys.readouterr().out
    assert "systemd does not run here" in said
    assert "OFF:" not in said
    machine.scheduler.stop("home")
    assert scheduling.show(machine.scheduler, Console(), name="home", as_json=False) == 0
    assert "OFF:" in capsys.readouterr().out


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
        "reset-failed kopiatomic@home.service kopiatomic@home.timer kopiatomic-recover@home.service",
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


@pytest.mark.parametrize("system", ["on_linux", "on_freebsd"])
def test_a_schedule_that_was_changed_by_hand_is_not_said_to_be_removed(
    system: str, root: Path, records: Records, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    scheduler: Scheduler = request.getfixturevalue(system)
    write_all(scheduler, replace(schedule(), state_dir=records.directory), root)
    with Path(scheduler.file("home")).open("a") as file:
        file.write("# mine\n")
    before = tree(root)
    assert scheduling.remove(scheduler, Console(), name="home", yes=True) == 1
    told = capsys.readouterr()
    assert f"the schedule home stays: {scheduler.file('home')}, which starts it, was changed by hand" in told.err
    assert "Removed" not in told.out
    assert tree(root) == before


def test_removing_asks_and_refuses_while_a_run_lives(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.install("tank") == 0
    assert scheduling.remove(machine.scheduler, Console(), name="home", yes=False) == 1
    records = Records(machine.caller["KOPIATOMIC_STATE_DIR"])
    run = RunRecord("20261122T101112Z-01234567", "0", "k", "/kopia", 1.0, None, None, None, None, "home")
    records.begin(run, keep=1e9)
    with locks.run(run.id, ""):
        assert scheduling.remove(machine.scheduler, Console(), name="home", yes=True) == 1
    assert f"a run of the schedule home is alive: {run.id}" in capsys.readouterr().err
    assert machine.scheduler.names() == ["home"]
    # It was killed: no process has its lock.
    assert scheduling.remove(machine.scheduler, Console(), name="home", yes=True) == 0


def test_a_run_that_the_timer_starts_while_it_is_stopped_keeps_its_schedule(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.install("tank") == 0
    machine.said_to_systemctl()
    with (machine.base / "stand-ins/systemctl").open("a") as file:
        file.write(
            f"""[ "$1" != show ] || ! grep -q disable {machine.told} || printf '%s\\n' activating '' inactive\n"""
        )
    assert scheduling.remove(machine.scheduler, Console(), name="home", yes=True) == 1
    assert "a run of the schedule home is alive" in capsys.readouterr().err
    assert machine.scheduler.names() == ["home"]
    assert machine.said_to_systemctl()[-1] == "--quiet restart kopiatomic@home.timer"


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
    return lateness.Standing(schedule(interval=HOUR), records.scheduled("home"), now, synchronised=True).overdue()


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
    for number in range(4):
        saved(records, number, 1000.0 + number * HOUR, 75)
    assert overdue(records, 1000.0 + 3 * HOUR) is None
    error = overdue(records, 1000.0 + 3 * HOUR + 1)
    assert error is not None
    assert "no complete success at all since its first recorded run, 1970-01-01 00:16:40 UTC" in error.message


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


def test_records_that_cannot_be_read_are_no_schedule_without_runs(
    records: Records, on_linux: Scheduler, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One database that is a loop of links is named by all that ask, and hides no other schedule."""
    broken = tmp_path / "broken"
    broken.mkdir(mode=0o700)
    (broken / "state.db").symlink_to("state.db")
    write_all(on_linux, schedule("broken", interval=HOUR, state_dir=str(broken)), root)
    write_all(on_linux, schedule(interval=HOUR, state_dir=records.directory), root)
    saved(records, 1, time.time(), 0)
    assert scheduling.overdue(on_linux, Console(), name="broken") == 1
    assert "Too many levels of symbolic links" in capsys.readouterr().err
    assert scheduling.remove(on_linux, Console(), name="broken", yes=True) == 1
    assert scheduling.show(on_linux, Console(), name="", as_json=False) == 1
    said = capsys.readouterr()
    assert said.out.startswith("home: ")
    assert "No schedule is installed" not in said.out
    assert f"{broken}/state.db cannot be used: Too many levels of symbolic links" in said.err


def test_show_says_what_came_of_them(
    records: Records, on_linux: Scheduler, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scheduling.show(on_linux, Console(), name="", as_json=False) == 0
    assert capsys.readouterr().out == "No schedule is installed.\n"
    here: dict[str, Any] = {"interval": HOUR, "state_dir": records.directory}
    for one in (schedule(**here), schedule("mail", words=("--name", "my mail", "tank"), **here)):
        write_all(on_linux, one, root)
        on_linux.start(one.name)
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
    assert [line.split()[-2:] for line in lines[7:]] == [["none", "recorded"]] * 2
    assert scheduling.show(on_linux, Console(), name="home", as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "kopiatomic-schedules-1"
    (home,) = document["schedules"]
    assert (home["name"], home["words"], home["interval_seconds"]) == ("home", ["-r", "tank"], HOUR)
    assert (home["last_run"]["exit_code"], home["last_saved"]["exit_code"]) == (75, 0)
    assert "since 2023-11-14" in home["overdue"]
    assert home["files"] == [
        *(f"{root}/{UNITS}/kopiatomic@home.{kind}.d/10-schedule.conf" for kind in ("timer", "service")),
        f"{root}/{UNITS}/kopiatomic-recover@home.service",
    ]
    assert scheduling.show(on_linux, Console(), name="nobody", as_json=False) == 1


def test_one_whose_timer_is_off_is_shown_as_such(
    on_linux: Scheduler,
    root: Path,
    records: Records,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What systemd says of a timer is shown in tests/packages/test_systemd.py."""
    write_all(on_linux, schedule(state_dir=records.directory), root)
    monkeypatch.setattr(type(on_linux), "waits", lambda _, name: name != "home")
    assert scheduling.show(on_linux, Console(), name="home", as_json=False) == 0
    turn_on = "systemctl enable kopiatomic@home.timer"
    assert f"  OFF:           nothing starts it; this turns it on: {turn_on}\n" in capsys.readouterr().out
    assert scheduling.show(on_linux, Console(), name="home", as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["schedules"][0]["waits"] is False


def test_one_that_was_changed_by_hand_is_still_shown(on_linux: Scheduler, root: Path, records: Records) -> None:
    *_, service, _timer, _recovery = write_all(on_linux, schedule(state_dir=records.directory), root)
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

        def backup(found: Schedule, words: Sequence[str]) -> Report:
            seen.update(environ)
            assert found == one
            assert words == ["backup", "--schedule", "home", "-r", "tank"]
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
    from kopiatomic.commands.recover import recover

    ours, other = (f"20261122T101112Z-{number:08x}" for number in (1, 2))
    for run_id, name in ((ours, "home"), (other, "")):
        records.begin(RunRecord(run_id, "0", "k", "/kopia", 1.0, None, None, None, None, name), keep=1e12)
    locks.prepare()
    Path(locks.path_of("root", "/kopia")).touch()
    (lock_directory / f"run-{ours}").touch()
    assert recover(records.directory, Console(), dry_run=False, as_json=True, schedule="home") == 0
    assert json.loads(capsys.readouterr().out)["interrupted"] == [ours]
    assert {run.id: run.result for run in records.history(9)} == {ours: "interrupted", other: None}
    assert os.listdir(lock_directory) == ["id"]


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


def test_the_check_refuses_in_place_what_a_run_would_and_takes_no_lock(
    restic_bench: EngineBench, lock_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository inside what is backed up would be written while it is read."""
    folder = restic_bench.repository.folder
    plan = restic_bench.plan_of(folder)
    monkeypatch.setattr(selecting.Selecting, "select", lambda _: plan)
    monkeypatch.setattr(selecting.Selecting, "check_places", lambda *_: None)
    for name, value in restic_bench.environment.items():
        monkeypatch.setenv(name, value)
    options = Options(names=("tank",), engine="restic", layout=Layout.IN_PLACE, mount_root=str(folder.parent / "view"))
    refused = run.check(options, Console(quiet=True))
    assert refused.error is not None
    assert refused.error.kind == "own-in-source"
    fine = run.check(replace(options, options=f"--exclude={restic_bench.repository.path}"), Console(quiet=True))
    assert fine.error is None
    assert fine.engine is not None
    assert fine.engine.target is not None
    assert fine.engine.target.repository == str(restic_bench.repository.path)
    assert not lock_directory.exists()


def test_the_command_line_of_install_asks_for_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[ScheduleRequest, Place, bool]] = []

    def record(wanted: ScheduleRequest, place: Place, _console: Console, *, yes: bool) -> int:
        asked.append((wanted, place, yes))
        return 0

    monkeypatch.setattr(scheduling, "install", record)
    for words, calendar in (
        ([], "daily"),
        (["--hourly", "--yes"], "hourly"),
        (["--calendar", "Mon 02:30"], "Mon 02:30"),
    ):
        handed = ["--credential", "KOPIA_PASSWORD=/root/a=b", "--credential", "X=/y"]
        monkeypatch.setattr(
            sys, "argv", ["/opt/kopiatomic", "schedule", "install", *words, *handed, "home", "--", "-r", "tank"]
        )
        with pytest.raises(SystemExit):
            cli.main()
        wanted, place, yes = asked.pop()
        credentials = {"KOPIA_PASSWORD": "/root/a=b", "X": "/y"}
        assert wanted == ScheduleRequest(
            "home", calendar, credentials, ["-r", "tank"], Options(names=("tank",), recursive=True)
        )
        assert (place.argv0, place.top, yes) == ("/opt/kopiatomic", "/", "--yes" in words)


def test_the_command_line_of_cron_makes_the_backup_of_the_schedule(
    on_freebsd: Scheduler, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {"HOME": "/root", "KOPIATOMIC_STATE_DIR": str(tmp_path / "elsewhere")}
    one = schedule(calendar="02:30", words=("-r", "--name", "my home", "--no-maintenance", "tank"), environment=where)
    write_all(on_freebsd, one, root)
    asked: list[Options] = []

    def record(options: Options, _listener: object, called: Invocation) -> Report:
        asked.append(options)
        assert called.words[:3] == ("backup", "--schedule", "home")
        assert dict(os.environ) == where
        return Report("id", "/kopia", error=KopiatomicError("no", kind="k"))

    before = dict(os.environ)
    monkeypatch.setattr(schedules, "here", lambda: on_freebsd)
    monkeypatch.setattr(run, "backup", record)
    monkeypatch.setattr(sys, "argv", ["kopiatomic", "schedule", "run", "home"])
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert ended.value.code == 1
    wanted = Options(names=("tank",), recursive=True, name="my home", maintenance=False, schedule="home")
    assert asked == [replace(wanted, state_dir=where["KOPIATOMIC_STATE_DIR"])]


def test_names_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.shell_completion import ShellComplete

    from kopiatomic.cli import completion

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
