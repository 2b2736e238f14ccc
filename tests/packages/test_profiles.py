"""Profiles on clean machines with a real systemd: from the words tried by hand to the timer's first run and to what is restored.

Three of them: kopia with one root for all, restic in place, Borg; and three places of a secret.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.btrfs.conftest import wait_for
from tests.packages.booted import PASSWORD, UNITS, Host

pytestmark = pytest.mark.in_part(1)

FOLDER = "/etc/kopiatomic"


@dataclass(frozen=True)
class Case:
    """A profile: the words that it is made from, its secret, and how its user brings the newest backup back to a folder."""

    name: str
    words: tuple[str, ...]
    secret: str
    restore: str
    """A script; ``$TO`` is the folder."""


CASES = (
    Case(
        "files",
        (),
        'KOPIA_PASSWORD = { file = "/etc/kopia.pw" }',
        """id=$(kopiatomic engine files -- snapshot list --json | grep -o '"id":"[^"]*"' | tail -n 1 | cut -d '"' -f 4)\n"""
        "kopiatomic engine files -- snapshot restore $id $TO",
    ),
    Case(
        "letters",
        ("--engine", "restic", "--repository", "/srv/restic", "--layout", "in-place"),
        'RESTIC_PASSWORD = { credential = "restic" }',
        "kopiatomic engine letters -- restore latest --target $TO",
    ),
    Case(
        "archive",
        ("--engine", "borg", "--repository", "/srv/borg", "--name", "archive"),
        'BORG_PASSPHRASE = { command = ["cat", "/etc/kopia.pw"] }',
        "mkdir -p $TO; cd $TO; kopiatomic engine archive -- extract ::$(kopiatomic engine archive -- list --short --last 1)",
    ),
)


@pytest.fixture
def profiles(booted: Host) -> Iterator[Host]:
    """The machine with a repository for each, and the secrets where their profiles look for them."""
    run = booted.run
    run.shell(f"RESTIC_PASSWORD='{PASSWORD}' restic init -q -r /srv/restic")
    run.shell(f"BORG_PASSPHRASE='{PASSWORD}' borg init -e repokey /srv/borg")
    run.shell(
        "mkdir -p -m 700 /etc/credstore.encrypted\n"
        "systemd-creds encrypt --with-key=host --name=restic /etc/kopia.pw /etc/credstore.encrypted/restic"
    )
    yield booted
    for case in CASES:
        run("kopiatomic", "schedule", "remove", "--yes", case.name, check=False)
    run.shell(f"rm -rf {FOLDER} /srv/restic /srv/borg /etc/credstore.encrypted /tmp/restored-*")


def edit(host: Host, case: Case) -> None:
    """What the administrator writes into the file: where the secret is, and when it starts."""
    path = host.run.path(f"{FOLDER}/{case.name}.toml")
    text = path.read_text()
    assert text.count("\n[engine.environment]") == 1
    text = text.replace('# calendar = "daily"', 'calendar = "*:*:0/10"').replace(
        "# random_delay = ", "random_delay = 0  # before: "
    )
    path.write_text(text.replace("\n[engine.environment]", f"\n[engine.environment]\n{case.secret}\n#", 1))


def last_runs(host: Host) -> set[str]:
    """What ``profile list`` says of the last run of any."""
    found = json.loads(host.run("kopiatomic", "profile", "list", "--json").stdout)["profiles"]
    return {"never run" if one["last_run"] is None else one["last_run"]["result"] for one in found}


def test_three_profiles_from_the_first_word_to_a_restored_file(profiles: Host) -> None:
    host = profiles
    for case in CASES:
        host.run("kopiatomic", "profile", "new", case.name, "--", *case.words, "-r", host.home)
        edit(host, case)
    checked = host.run("kopiatomic", "profile", "check")
    for case in CASES:
        assert f"\n{case.name}: {host.home}" in f"\n{checked.stdout}", str(checked)
    assert last_runs(host) == {"never run"}

    try:
        installed = host.run("kopiatomic", "schedule", "install", "--yes", "--all", timeout=180)
        assert installed.returncode == 0, str(installed)
        # One that began since is no matter: its timer starts the next run a moment after.
        looks: list[set[str]] = []

        def have_ended() -> bool:
            looks.append(last_runs(host))
            return looks[-1] <= {"saved", "failed"}

        wait_for(have_ended, "the first run of each", within=180)
        assert looks[-1] == {"saved"}, [host.journal(case.name) for case in CASES]
        for case in CASES:
            (unit,) = json.loads(host.run("kopiatomic", "schedule", "show", "--json", case.name).stdout)["schedules"]
            assert unit["profile"] == case.name
            assert host.state(case.name) != "failed", host.journal(case.name)
        units = host.run("grep", "-r", PASSWORD, UNITS, check=False)
        assert (units.returncode, units.stdout) == (1, "")
        assert PASSWORD not in host.run("journalctl", "--no-pager").stdout
    finally:
        for case in CASES:
            host.remove(case.name)
    assert host.leftovers() == []

    for case in CASES:
        target = f"/tmp/restored-{case.name}"
        host.run.shell(f"TO={target}\n{case.restore}", timeout=120)
        letters = host.run("find", target, "-name", "letter").stdout.splitlines()
        assert len(letters) == 1, letters
        assert host.run.path(letters[0]).read_text() == "Dear Ann,\n"


def test_a_credential_of_the_unit_comes_before_the_store(profiles: Host) -> None:
    """An administrator's drop-in hands another one over; what is in the store then is wrong and does not matter."""
    host, case = profiles, CASES[1]
    host.run("kopiatomic", "profile", "new", case.name, "--", *case.words, host.home)
    edit(host, case)
    host.run("kopiatomic", "schedule", "install", "--yes", case.name)
    host.run("systemctl", "stop", f"kopiatomic@{case.name}.timer")
    drop_in = Path(f"{UNITS}/kopiatomic@{case.name}.service.d/override.conf")
    try:
        host.run.shell(
            f"mkdir -p {drop_in.parent}; printf '[Service]\\nLoadCredential=restic:/etc/kopia.pw\\n' >{drop_in}\n"
            "mkdir -p -m 700 /etc/credstore; umask 077; echo wrong >/etc/credstore/restic; systemctl daemon-reload"
        )
        assert host.start(case.name).returncode == 0, host.journal(case.name)
        host.run.shell(f"rm {drop_in}; systemctl daemon-reload")
        assert host.start(case.name).returncode != 0
        assert "refuses the password" in host.journal(case.name)
    finally:
        host.run.shell(f"rm -f {drop_in} /etc/credstore/restic; systemctl daemon-reload")
        host.remove(case.name)
