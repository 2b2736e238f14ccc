"""A profile on a timer: its file says when, and a later change of that is not missed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kopiatomic.commands import profiles
from kopiatomic.commands import schedule as scheduling
from kopiatomic.commands.profiles import Folder
from kopiatomic.commands.schedule import Place, ScheduleRequest
from kopiatomic.errors import KopiatomicError
from kopiatomic.output.console import Console
from kopiatomic.schedules import on
from kopiatomic.schedules.cron import Cron
from kopiatomic.schedules.schedule import understood
from tests.unit.commands.test_schedule import Machine, machine

pytestmark = pytest.mark.in_part(5)

__all__ = ["machine"]

Install = Callable[[], int]

PROFILE = """
[select]
datasets = ["tank"]
[engine.environment]
KOPIA_PASSWORD = { file = "%s" }
[hooks]
hook_timeout = "20m"
"""


@pytest.fixture
def folder(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KOPIATOMIC_STATE_DIR", str(machine.base / "state"))
    folder = machine.base / "profiles"
    folder.mkdir(mode=0o755)
    # The timer's own process looks at everything from / on, and pytest's folders are below /tmp.
    text = machine.program.read_text()
    machine.program.write_text(
        text.replace(
            "\nmain()", "\nfrom kopiatomic.schedules import trust\ntrust.check = lambda *_, **__: None\nmain()"
        )
    )
    return folder


@pytest.fixture
def install(machine: Machine, folder: Path) -> Install:
    def install() -> int:
        found = Folder(str(folder), top=str(machine.base)).load("home")
        options = profiles.options(found, {})
        wanted = ScheduleRequest("home", "", {}, (), options, profile=found, config_dir=str(folder))
        caller = {name: value for name, value in machine.caller.items() if name != "KOPIA_PASSWORD"}
        place = Place(machine.scheduler, str(machine.program), caller, top=str(machine.base))
        return scheduling.install(wanted, place, Console(), yes=True)

    return install


def write(machine: Machine, folder: Path, schedule: str = "") -> None:
    path = folder / "home.toml"
    path.touch(0o600)
    path.write_text(PROFILE % machine.credential + schedule)


def unit(machine: Machine, kind: str) -> list[str]:
    return (machine.root / f"etc/systemd/system/kopiatomic@home.{kind}.d/10-schedule.conf").read_text().splitlines()


def test_the_unit_runs_the_profile_at_its_times_with_its_secret(
    machine: Machine, folder: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        machine, folder, '[schedule]\ncalendar = "*:00"\nrandom_delay = "5m"\npersistent = false\non_battery = false\n'
    )
    assert install() == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert f"Repository: filesystem {machine.kopia.repository}" in said
    service, timer = unit(machine, "service"), unit(machine, "timer")
    assert any(line.startswith("ExecStart=:") and line.endswith("run --schedule home home") for line in service)
    assert f"Environment=KOPIATOMIC_CONFIG_DIR={folder}" in service
    assert service.index("ConditionACPower=true") < service.index("[Service]")
    assert timer[-3:] == ["OnCalendar=*:00", "RandomizedDelaySec=300", "Persistent=false"]
    assert not any("KOPIA_PASSWORD" in line for line in service)
    installed = machine.scheduler.read("home")
    assert installed is not None
    assert (installed.profile, installed.words, installed.shown) == ("home", (), "run home")


def test_a_secret_of_the_environment_belongs_into_the_profile(
    machine: Machine,
    folder: Path,
    install: Install,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(machine, folder)
    monkeypatch.setitem(machine.caller, "KOPIA_SERVER_PASSWORD", "hush hush")
    assert install() == 1
    said = capsys.readouterr().err
    assert (
        'below [engine.environment] of the profile where it is: KOPIA_SERVER_PASSWORD = { file = "/root/FILE" }' in said
    )
    assert "--credential" not in said


def test_without_a_schedule_in_the_file_it_starts_every_day(machine: Machine, folder: Path, install: Install) -> None:
    write(machine, folder)
    assert install() == 0
    assert unit(machine, "timer")[-2:] == ["OnCalendar=daily", "RandomizedDelaySec=3600"]
    assert not any("ConditionACPower" in line for line in unit(machine, "service"))


def test_a_change_is_told_until_it_is_installed_again(
    machine: Machine, folder: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> list[str]:
        found = Folder(str(folder), top=str(machine.base)).load("home")
        return scheduling.outdated(scheduling.all_of(machine.scheduler), found, profiles.options(found, {}))

    write(machine, folder)
    assert install() == 0
    assert told() == []
    state = f'[records]\nstate_dir = "{machine.base}/other"\n'
    changes = (
        '[schedule]\ncalendar = "hourly"\n',
        "[schedule]\nrandom_delay = 0\n",
        "[run]\nstop_timeout = 90\n",
        state,
    )
    for change in changes:
        write(machine, folder, change)
        assert told() == ["the schedule home was installed for an older profile: kopiatomic schedule install home"]
        assert install() == 0, capsys.readouterr()
        assert told() == []
    # What a run reads itself needs no installation.
    write(machine, folder, change + '[view]\nname = "other"\n')
    assert told() == []


def test_who_looks_at_schedules_sees_the_profile(
    machine: Machine,
    folder: Path,
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("kopiatomic.schedules.trust.check", lambda *_, **__: None)
    write(machine, folder)
    assert install() == 0
    assert scheduling.of_profiles(scheduling.all_of(machine.scheduler)) == {"home": "daily"}
    write(machine, folder, '[schedule]\ncalendar = "hourly"\n')
    capsys.readouterr()
    assert scheduling.show(machine.scheduler, Console(), name="home", as_json=False) == 0
    said = capsys.readouterr().out
    assert said.startswith("home: kopiatomic run home\n")
    assert "  OUTDATED:      installed for an older profile: kopiatomic schedule install home\n" in said
    assert scheduling.show(machine.scheduler, Console(), name="", as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["schedules"][0]["profile"] == "home"
    (folder / "home.toml").write_text("[selct]\n")
    assert scheduling.show(machine.scheduler, Console(), name="home", as_json=False) == 0
    assert "home.toml:1:2: unknown table [selct]" in capsys.readouterr().out


def test_cron_refuses_what_it_cannot_do(machine: Machine, folder: Path, install: Install, tmp_path: Path) -> None:
    write(machine, folder)
    assert install() == 0
    installed = machine.scheduler.read("home")
    assert installed is not None
    cron = Cron(str(tmp_path))
    plain = replace(installed, program=("/usr/local/bin/kopiatomic",))
    cron.check(plain)
    for changed in ({"random_delay": 1.0}, {"persistent": False}, {"on_battery": False}):
        with pytest.raises(KopiatomicError, match="cron has no random_delay"):
            cron.check(replace(plain, **changed))


def test_what_an_earlier_version_installed_is_understood(machine: Machine) -> None:
    assert machine.install("tank") == 0
    text = "\n".join(unit(machine, "service"))
    line = next(line for line in text.splitlines() if line.startswith("# kopiatomic schedule: "))
    known = json.loads(line.partition(": ")[2])
    for name in ("profile", "asked", "random_delay", "persistent", "on_battery"):
        del known[name]
    found = understood(f"# kopiatomic schedule: {json.dumps(known)}\n")
    assert found == on("linux", str(machine.root)).read("home")
