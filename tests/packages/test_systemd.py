"""Schedules under a real systemd, in clean machines of both Debian suites that it boots: what its user sees of them.

kopia, its repository and the frozen filesystem are real. A limit on its own speed makes it read for as long as is needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.btrfs.conftest import wait_for
from tests.packages.booted import UNITS, Host
from tests.packages.machine import living_run

pytestmark = pytest.mark.in_part(3)


@pytest.fixture
def host(booted: Host) -> Host:
    return booted


@pytest.fixture
def daily(host: Host) -> Iterator[str]:
    """A schedule of the subvolume that nobody but a test starts."""
    host.install("home", "--", "-r", host.home)
    yield "home"
    host.remove("home")
    assert host.leftovers() == []


@pytest.fixture
def slow(host: Host) -> Iterator[None]:
    """kopia needs minutes to save anything new."""
    content = host.filesystem.mountpoint / "home" / "content"
    content.write_bytes(os.urandom(20_000_000))
    host.kopia("repository", "throttle", "set", "--upload-bytes-per-second=10000")
    yield
    host.kopia("repository", "throttle", "set", "--upload-bytes-per-second=unlimited")
    content.unlink()


@pytest.mark.in_part(1)
def test_a_timer_starts_one_backup_after_the_other(host: Host) -> None:
    host.run.shell(f"mkdir -p {UNITS}/kopiatomic@often.timer.d")
    override = f"{UNITS}/kopiatomic@often.timer.d/override.conf"
    host.run.shell(f"printf '[Timer]\\nAccuracySec=100ms\\n' >{override}")
    before = len(host.snapshots())
    installed = host.install("often", "--calendar=*:*:0/5", "--", host.home)
    assert "Repository: " in installed.stdout
    assert "Identity:   root@" in installed.stdout
    try:
        wait_for(lambda: len(host.snapshots()) >= before + 3, "three backups", within=120)
        assert host.state("often") != "failed"
        shown = host.shown("often")
        assert shown["last_saved"]["exit_code"] == 0
    finally:
        host.run.shell(f"rm {override}")
        host.remove("often")
    assert host.leftovers() == []


def test_to_install_it_again_changes_nothing(host: Host, daily: str) -> None:
    again = host.install(daily, "--", "-r", host.home)
    assert f"The files of {daily} are as they should be." in again.stdout
    verified = host.run(
        "systemd-analyze", "--man=no", "verify", f"kopiatomic@{daily}.service", f"kopiatomic@{daily}.timer"
    )
    assert (verified.stdout, verified.stderr) == ("", "")


def test_one_that_is_off_is_shown_as_such(host: Host, daily: str) -> None:
    """As after a removal of the package: the files of schedules stay."""
    assert host.shown(daily)["waits"] is True
    host.run("systemctl", "disable", "--now", f"kopiatomic@{daily}.timer")
    assert host.shown(daily)["waits"] is False
    assert "OFF:" in host.run("kopiatomic", "schedule", "show", daily).stdout
    host.install(daily, "--", "-r", host.home)
    assert host.shown(daily)["waits"] is True


def test_what_cannot_work_in_the_unit_is_not_installed(host: Host) -> None:
    refused = host.run("kopiatomic", "schedule", "install", "--yes", "home", "--", host.home, check=False)
    assert refused.returncode == 1
    assert "in the schedule's own environment: kopia does not know the password" in refused.stderr
    assert host.run("find", UNITS, "-name", "*kopiatomic*").stdout == ""


def test_a_failure_is_one_of_the_unit_too(host: Host, daily: str) -> None:
    assert host.start(daily).returncode == 0
    host.run("mv", "/srv/repository", "/srv/away")
    try:
        assert host.start(daily).returncode != 0
        assert host.state(daily) == "failed"
        assert "kopia cannot reach its repository" in host.journal(daily)
        assert host.shown(daily)["last_run"]["exit_code"] == 1
    finally:
        host.run("mv", "/srv/away", "/srv/repository")
    assert host.start(daily).returncode == 0
    assert host.state(daily) != "failed"
    assert host.shown(daily)["overdue"] is None


def test_a_run_beside_another_is_no_failure_and_on_record(host: Host, daily: str) -> None:
    with living_run(host.run, host.home) as other:
        assert host.start(daily).returncode == 0
        assert host.state(daily) != "failed"
        assert host.shown(daily)["last_run"]["exit_code"] == 75
        host.run("touch", "/tmp/go")
        assert other.wait(60) == 0


def test_a_package_that_is_not_removed_while_a_run_lives_goes_on_with_its_timers(host: Host, daily: str) -> None:
    timer = f"kopiatomic@{daily}.timer"
    stopped = ("systemctl", "show", "--value", "--property=InactiveEnterTimestampMonotonic", timer)
    before = host.run(*stopped).stdout
    with living_run(host.run, host.home) as run:
        refused = host.run("dpkg", "--remove", "kopiatomic", check=False)
        assert (refused.returncode, "is alive" in refused.stderr) == (1, True), str(refused)
        host.run("touch", "/tmp/go")
        assert run.wait(60) == 0
    assert host.run("systemctl", "is-active", timer).stdout == "active\n"
    assert host.run(*stopped).stdout != before
    assert host.start(daily).returncode == 0


@pytest.mark.in_part(2)
@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(
    ("how", "code"), [(("stop",), 143), (("kill", "--kill-whom=all", "--signal=KILL"), None)], ids=["stop", "kill"]
)
def test_a_backup_that_is_ended_in_the_middle_saves_and_leaves_nothing(
    host: Host, daily: str, how: tuple[str, ...], code: int | None
) -> None:
    complete = [s["id"] for s in host.snapshots() if not s.get("incomplete")]
    host.run("systemctl", "start", "--no-block", f"kopiatomic@{daily}")
    wait_for(host.kopia_reads, "kopia to read", within=60)
    assert len(host.filesystem.snapshots()) == 1
    host.run("systemctl", *how, f"kopiatomic@{daily}", timeout=120)
    wait_for(lambda: host.state(daily) in {"failed", "inactive"}, "the unit's end", within=120)
    wait_for(lambda: host.leftovers() == [], "the removal of everything", within=60)
    print(host.journal(daily))
    assert [s["id"] for s in host.snapshots() if not s.get("incomplete")] == complete
    shown = host.shown(daily)
    assert shown["last_run"]["exit_code"] == code
    assert shown["last_run"]["result"] != "saved"


def test_a_plan_in_the_unit_is_that_of_a_shell(host: Host) -> None:
    """The settings are those of the unit; an administrator's drop-in has it print a plan in place of a backup."""
    folder = f"{UNITS}/kopiatomic@planned.service.d"
    words = "kopiatomic plan --json -a -r >/tmp/planned"
    host.run.shell(
        f"mkdir {folder}; printf '[Service]\\nType=oneshot\\nExecStart=/bin/sh -c \"{words}\"\\n' >{folder}/override.conf; "
        "systemctl daemon-reload"
    )
    try:
        started = host.start("planned")
        assert started.returncode == 0, host.journal("planned")
        inside = json.loads(host.run("cat", "/tmp/planned").stdout)
        outside = json.loads(host.run("kopiatomic", "plan", "--json", "-a", "-r").stdout)
        assert str(host.home) in [d["dataset"] for d in inside["datasets"]]
        for plan in (inside, outside):
            assert plan.pop("run_id")
            assert plan.pop("durations")
        assert inside == outside
    finally:
        host.run.shell(f"rm -r {folder}; systemctl daemon-reload")
