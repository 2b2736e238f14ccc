"""Backups from profiles with the real engines: histories go on, secrets stay with the engine, one failure stops no other."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.config.profile import load
from kopiatomic.config.profile_text import toml
from tests.btrfs.conftest import wait_for
from tests.support.filesystems import Btrfs
from tests.support.leftovers import processes
from tests.support.programs import Completed, Kopia, Kopiatomic, command
from tests.support.repositories import PASSWORD, Borg, Restic, make
from tests.support.schema import valid

pytestmark = pytest.mark.in_part(5)


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    data = btrfs.subvolume("data")
    (data / "file").write_text("content\n")
    return data


Leftovers = Callable[..., list[str]]
Write = Callable[..., None]
Profiles = Callable[..., Completed]


@pytest.fixture
def write(folder: Path) -> Write:
    """Writes a profile from tables."""

    def write(name: str, **tables: Mapping[str, Any]) -> None:
        lines = []
        for table, content in tables.items():
            environment = content.get("environment", {})
            lines += [f"[{table}]", *(f"{k} = {toml(v)}" for k, v in content.items() if k != "environment")]
            lines += (
                [f"[{table}.environment]", *(f"{k} = {toml(v)}" for k, v in environment.items())] if environment else []
            )
        path = folder / f"{name}.toml"
        path.touch(0o600)
        path.write_text("\n".join(lines))

    return write


@pytest.fixture
def profiles(kopiatomic: Kopiatomic, folder: Path) -> Profiles:
    """kopiatomic with this test's profiles."""

    def profiles(*args: str | Path, env: Mapping[str, str] | None = None) -> Completed:
        return kopiatomic(*args, env={"KOPIATOMIC_CONFIG_DIR": str(folder), **(env or {})})

    return profiles


def document(ended: Completed) -> Any:
    """What --json says, each run in it valid."""
    whole = json.loads(ended.stdout)
    assert whole["format"] == "kopiatomic-profiles-1"
    assert whole["exit_code"] == ended.returncode
    for one in whole["profiles"]:
        valid(json.dumps(one["run"]))
    return whole["profiles"]


def holders(secret: str) -> set[str]:
    """What of which programs has a text in it, of all processes of this machine."""
    found = set()
    for what in ("cmdline", "environ"):
        for path in Path("/proc").glob(f"[0-9]*/{what}"):
            with contextlib.suppress(OSError):
                if secret.encode() in path.read_bytes():
                    found.add(f"{what} of {path.with_name('comm').read_text().strip()}")
    return found


def variables(environment: Mapping[str, str], secret: str, source: Any) -> dict[str, Any]:
    """An engine's variables with its password from elsewhere."""
    return {**environment, secret: source}


@pytest.mark.parametrize("engine", ["kopia", "restic", "borg"])
def test_a_line_of_a_crontab_becomes_a_profile_without_a_new_history(
    engine: str,
    data: Path,
    root: Path,
    kopia: Kopia,
    tmp_path: Path,
    kopiatomic: Kopiatomic,
    profiles: Profiles,
    leftovers: Leftovers,
) -> None:
    """The guide's way: the words behind the command's name are those of the profile. Nothing is read again."""
    # Borg never keeps in mind the files with the newest ctime, so each has one of its own.
    for name in ("file", "other", "newest"):
        (data / name).write_text(name)
        time.sleep(0.05)
    environment = kopia.environment if engine == "kopia" else make(engine, tmp_path / engine).environment
    line = f"17 2 * * *  root  kopiatomic --quiet --engine {engine} --mount-root {root} {data}"
    user, command, *words = line.split()[5:]
    assert (user, command) == ("root", "kopiatomic")
    first = kopiatomic(*words, env=environment)
    assert first.returncode == 0, str(first)

    made = profiles("profile", "new", "home", "--", *words)
    assert made.returncode == 0, str(made)
    ended = profiles("run", "--quiet", "home", "--json", env=environment)
    assert ended.returncode == 0, str(ended)
    (one,) = document(ended)
    statistics = one["run"]["engine"]["statistics"]
    # The others are the metadata record, which is younger than everything else.
    assert statistics["files_total"] == 3 + (3 if engine == "kopia" else 1)
    assert statistics["files_cached"] >= 3
    assert leftovers(root) == []
    if engine == "kopia":
        assert {s["source"]["path"] for s in kopia.json("snapshot", "list", "--all")} == {str(root)}


def test_a_profile_of_a_merged_view_has_a_root_of_its_own(data: Path, profiles: Profiles, write: Write) -> None:
    write("home", select={"datasets": [str(data)]}, engine={"command": ["ls"]})
    ended = profiles("run", "home", "-n", "--json")
    assert document(ended)[0]["run"]["root"] == "/kopia/home"


@pytest.mark.parametrize("form", ["file", "command", "credential"])
def test_a_password_from_elsewhere_reaches_the_engine_and_nothing_else(
    form: str,
    repository: Restic | Borg,
    data: Path,
    tmp_path: Path,
    profiles: Profiles,
    write: Write,
    folder: Path,
    leftovers: Leftovers,
) -> None:
    given = repository.environment.copy()
    del given[repository.password_variable]
    secret = folder / "password"
    secret.touch(0o600)
    secret.write_text(f"{PASSWORD}\n")
    source = {"file": str(secret), "command": ["cat", str(secret)], "credential": secret.name}[form]
    seen = tmp_path / "seen"
    hook = f"env > {seen}; for p in /proc/[0-9]*; do cat $p/cmdline; done >> {seen} 2>/dev/null"
    write(
        "home",
        select={"datasets": [str(data)]},
        view={"layout": "in-place"},
        engine={
            "engine": repository.engine,
            "environment": variables(given, repository.password_variable, {form: source}),
        },
        hooks={"post_hook": hook, "environment": {"OF_THE_HOOK": "seen there"}},
    )
    ended = profiles("run", "home", "--json", "--verbose", env={"CREDENTIALS_DIRECTORY": str(folder)})
    assert ended.returncode == 0, str(ended)
    assert len(repository.kept()) == 1
    told = seen.read_text(errors="replace")
    assert "OF_THE_HOOK=seen there" in told
    assert repository.password_variable not in told
    state = tmp_path / "state" / "state.db"
    dumped = "\n".join(map(str, sqlite3.connect(state).execute("SELECT * FROM run"))) + state.read_bytes().decode(
        "latin-1"
    )
    for place in (told, ended.stdout, ended.stderr, dumped, profiles("history", "--json").stdout):
        assert PASSWORD not in place
    assert leftovers() == []


def test_a_password_among_the_options_is_in_no_list_of_processes_and_not_shown(
    kopia: Kopia, data: Path, tmp_path: Path, profiles: Profiles, write: Write, folder: Path
) -> None:
    """kopia's -p too, which for other programs is something else. Nobody is warned of what is not so."""
    given = {name: value for name, value in kopia.environment.items() if name.startswith("KOPIA")}
    password = given.pop("KOPIA_PASSWORD")
    seen = tmp_path / "seen"
    write(
        "home",
        select={"datasets": [str(data)]},
        engine={"options": ["-p", password], "environment": given},
        hooks={"pre_hook": f"for p in /proc/[0-9]*; do cat $p/cmdline; done > {seen} 2>/dev/null || true"},
    )
    ended = profiles("run", "home", "--json", "--mount-root", folder / "view", env={"HOME": str(tmp_path)})
    assert ended.returncode == 0, str(ended)
    shown = profiles("profile", "show", "home").stdout + profiles("profile", "show", "home", "--json").stdout
    hint = profiles("engine", "home", "snapshot", "list", "-p", password).stderr
    assert "kopiatomic engine home -- snapshot list -p '***'" in hint
    assert "must stand behind '--'" in hint
    for place in (seen.read_text(errors="replace"), ended.stdout, ended.stderr, shown):
        assert password not in place
    assert "list of processes" not in ended.stderr


def test_a_secret_is_in_the_engine_alone_and_in_no_core_dump(
    data: Path, kopiatomic: Kopiatomic, profiles: Profiles, write: Write, folder: Path, tmp_path: Path
) -> None:
    """A caller who wants core dumps gets none, whichever process of the run it is that dies of a fault."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    if pattern.startswith(("|", "/")):
        pytest.skip(f"this machine keeps core dumps elsewhere: {pattern}")
    secret = folder / "password"
    secret.touch(0o600)
    secret.write_text(f"{PASSWORD}\n")
    write(
        "home",
        select={"datasets": [str(data)]},
        view={"mount_root": str(tmp_path / "view")},
        engine={
            "command": ["sh", "-c", f"touch {tmp_path}/begun; sleep 60"],
            "environment": {"DB_PASSWORD": {"file": str(secret)}},
        },
    )
    place = tmp_path / "cwd"
    place.mkdir()
    # A process that does as it likes dumps core there, so that finding none means something.
    environment = {**kopiatomic.environment, "KOPIATOMIC_CONFIG_DIR": str(folder)}
    words = shlex.join(Kopiatomic.argv("run", "home"))
    script = f"ulimit -S -c unlimited; cd {place}; sleep 60 & kill -ABRT $!; wait $!; mv core* {tmp_path}; exec {words}"
    with subprocess.Popen(["sh", "-c", script], env=environment, stdin=subprocess.DEVNULL) as run:
        wait_for((tmp_path / "begun").exists, "the engine's start")
        of_the_run = [int(line.split()[0]) for line in processes(kopiatomic.environment["KOPIATOMIC_TEST_MARK"])]
        assert len(of_the_run) >= 4
        assert holders(PASSWORD) == {"environ of sh", "environ of sleep"}
        for pid in of_the_run:
            os.kill(pid, signal.SIGABRT)
        run.wait(30)
    assert len(list(tmp_path.glob("core*"))) == 1
    assert [str(path) for top in ("/", place, data) for path in Path(top).glob("core*")] == []
    assert profiles("recover").returncode == 0


def test_a_credential_of_the_unit_is_there_for_each_profile(
    data: Path, profiles: Profiles, write: Write, folder: Path, tmp_path: Path
) -> None:
    (folder / "db").write_text(f"{PASSWORD}\n")
    for name in ("one", "two"):
        write(
            name,
            select={"datasets": [str(data)]},
            view={"mount_root": str(tmp_path / name)},
            engine={
                "command": ["sh", "-c", f'test "$DB_PASSWORD" = "{PASSWORD}" && test -z "$CREDENTIALS_DIRECTORY"'],
                "environment": {"DB_PASSWORD": {"credential": "db"}},
            },
        )
    ended = profiles("run", "--all", "--json", env={"CREDENTIALS_DIRECTORY": str(folder)})
    assert ended.returncode == 0, str(ended)
    assert [one["run"]["exit_code"] for one in document(ended)] == [0, 0]


def test_one_that_cannot_even_be_looked_at_stops_no_other(
    data: Path, profiles: Profiles, write: Write, folder: Path, tmp_path: Path
) -> None:
    (folder / "loop.toml").symlink_to("loop.toml")
    for name in ("first", "last"):
        write(
            name,
            select={"datasets": [str(data)]},
            view={"mount_root": str(tmp_path / name)},
            engine={"command": ["true"]},
        )
    ended = profiles("run", "first", "loop", "last", "--json")
    assert [one["run"]["exit_code"] for one in document(ended)] == [0, ended.returncode, 0]
    assert "Too many levels of symbolic links" in ended.stderr
    checked = profiles("profile", "check", "--offline", "first")
    assert (checked.returncode, checked.stdout) == (
        0,
        "first: the file is right (not looked at: datasets, secrets, engine, times)\n",
    )


def test_root_asks_for_nothing_that_a_users_file_says(data: Path, profiles: Profiles, tmp_path: Path) -> None:
    path, ran = tmp_path / "theirs.toml", tmp_path / "ran"
    path.touch(0o600)
    path.write_text(
        f'[select]\ndatasets = ["{data}"]\n[engine]\nengine = "restic"\n'
        f'[engine.environment]\nRESTIC_PASSWORD = {{ command = ["touch", "{ran}"] }}\n'
    )
    os.chown(path, 65534, 65534)
    refused = profiles("profile", "check", "--file", path)
    assert refused.returncode == 1
    assert "is used by root, and" in refused.stderr
    assert profiles("profile", "check", "--offline", "--file", path).returncode == 0
    assert not ran.exists()


def test_several_profiles_are_given_no_common_root(profiles: Profiles, write: Write, data: Path) -> None:
    for name in ("one", "two"):
        write(name, select={"datasets": [str(data)]}, engine={"command": ["true"]})
    for words in (("--name", "x"), ("--mount-root", "/kopia/x")):
        ended = profiles("run", *words, "one", "two")
        assert (ended.returncode, "one root, and with it one history" in ended.stderr) == (2, True)


def test_what_the_environment_says_to_the_engine_comes_along_and_no_secret(
    data: Path, profiles: Profiles, folder: Path
) -> None:
    environment = {
        "RESTIC_REPOSITORY": "/srv/backup",
        "RESTIC_PASSWORD": PASSWORD,
        "AWS_DEFAULT_REGION": "eu-1",
        "BORG_REPO": "/b",
    }
    made = profiles("profile", "new", "home", "--", "--engine", "restic", data, env=environment)
    assert made.returncode == 0, str(made)
    assert "RESTIC_PASSWORD of this environment is not in the file" in made.stderr
    text = (folder / "home.toml").read_text()
    assert '\nRESTIC_REPOSITORY = "/srv/backup"\n' in text
    assert PASSWORD not in text
    assert "BORG_REPO =" not in text
    shown = json.loads(profiles("profile", "show", "home", "--json").stdout)["profile"]["engine"]["environment"]
    assert shown["RESTIC_REPOSITORY"] == "/srv/backup"


def test_relative_paths_of_a_command_line_become_absolute_ones(
    data: Path, kopiatomic: Kopiatomic, folder: Path, tmp_path: Path
) -> None:
    """Also what the environment says; what is no path of this machine stays as it is."""

    def new(name: str, *words: str | Path, **more: str) -> dict[str, Any]:
        argv = (sys.executable, "-m", "kopiatomic", "profile", "new", "--config-dir", folder, name, "--", *words, data)
        command(*argv, env={**kopiatomic.environment, **more}, cwd=tmp_path)
        return load(str(folder / f"{name}.toml")).options() | {
            variable: value.value for (_, variable), value in load(str(folder / f"{name}.toml")).environment.items()
        }

    words = ("--engine", "restic", "--repository", "repo/x", "-p", "./dump.sh --all", "-q", "true")
    elsewhere = {"RESTIC_PASSWORD_FILE": "pw", "RESTIC_REPOSITORY_FILE": "/r", "RESTIC_PASSWORD_COMMAND": "../a b"}
    made = new("one", *words, **elsewhere)
    assert (made["repository"], made["pre_hook"], made["post_hook"]) == (
        f"{tmp_path}/repo/x",
        f"{tmp_path}/dump.sh --all",
        "true",
    )
    assert (made["RESTIC_PASSWORD_FILE"], made["RESTIC_REPOSITORY_FILE"]) == (f"{tmp_path}/pw", "/r")
    assert made["RESTIC_PASSWORD_COMMAND"] == f"{tmp_path.parent}/a b"
    made = new("two", "--engine", "borg", "--repository", "b@nas:x", BORG_REPO="y", BORG_RSH="ssh")
    assert (made["repository"], made["BORG_REPO"], made["BORG_RSH"]) == ("b@nas:x", f"{tmp_path}/y", "ssh")
    assert new("three", "-c", "./save here")["command"] == f"{tmp_path}/save here"


def test_writers_of_a_command_line_are_in_the_profile(data: Path, profiles: Profiles, folder: Path) -> None:
    holds = ("--hold", "unit:mail.service", "--hold", "mariadb:/run/mysqld/mysqld.sock", "--hold", "postgresql")
    made = profiles("profile", "new", "home", "--", *holds, data)
    assert made.returncode == 0, str(made)
    found = load(str(folder / "home.toml")).entries("hold")
    assert [(entry.value("kind"), entry.value("name")) for entry in found] == [
        ("unit", "mail.service"),
        ("mariadb", "/run/mysqld/mysqld.sock"),
        ("postgresql", None),
    ]


def test_a_run_and_a_check_work_where_a_timer_does(
    data: Path, kopiatomic: Kopiatomic, write: Write, folder: Path, tmp_path: Path
) -> None:
    """What the environment names relative to the caller's directory is not there, and what the options name is."""

    def ended(*words: str | Path) -> Completed:
        argv = (sys.executable, "-m", "kopiatomic", *words)
        more = {"KOPIATOMIC_STATE_DIR": "state", "KOPIATOMIC_CONFIG_DIR": os.path.relpath(folder, tmp_path)}
        return command(*argv, env={**kopiatomic.environment, **more}, cwd=tmp_path, check=False)

    seen = tmp_path / "seen"
    write("home", select={"datasets": [str(data)]}, engine={"command": ["sh", "-c", f"pwd >{seen}"]})
    (tmp_path / "dump.sh").write_text(f"#!/bin/sh\npwd >{seen}.hook\n")
    (tmp_path / "dump.sh").chmod(0o755)
    run = ended("run", "home", "--mount-root", "view", "-p", "./dump.sh")
    assert run.returncode == 0, str(run)
    assert (seen.read_text(), Path(f"{seen}.hook").read_text()) == ("/\n", "/\n")
    assert (tmp_path / "state").is_dir()
    write("other", select={"datasets": [str(data)]}, engine={"engine": "restic", "options": "--cacert=no"})
    for words in (("run", "other"), ("profile", "check", "other"), ("schedule", "check", "--profile", "other")):
        argv = (sys.executable, "-m", "kopiatomic", *words)
        repository = {"RESTIC_REPOSITORY": "repo", "RESTIC_PASSWORD": PASSWORD, "KOPIATOMIC_CONFIG_DIR": str(folder)}
        found = command(*argv, env={**kopiatomic.environment, **repository}, cwd=tmp_path, check=False)
        assert found.returncode == 1, str(found)
        assert str(tmp_path / "repo") not in found.stdout + found.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [(["--engine", "restic"], "the words name no dataset"), (["-n", "-a"], "-n is nothing that a profile says")],
)
def test_words_that_are_no_backup_make_no_profile(words: list[str], why: str, profiles: Profiles, folder: Path) -> None:
    ended = profiles("profile", "new", "home", "--", *words)
    assert (ended.returncode, why in ended.stderr) == (2, True), str(ended)
    assert list(folder.iterdir()) == []


def test_the_engine_by_hand_has_repository_and_password(
    repository: Restic | Borg, data: Path, profiles: Profiles, write: Write, folder: Path
) -> None:
    given = {name: value for name, value in repository.environment.items() if name != repository.variable}
    write(
        "home",
        select={"datasets": [str(data)]},
        engine={"engine": repository.engine, "repository": str(repository.path), "environment": given},
    )
    assert profiles("run", "home", "--mount-root", folder / "view").returncode == 0
    listed = profiles("engine", "home", "--", *(["snapshots"] if repository.engine == "restic" else ["list"]))
    assert listed.returncode == 0, str(listed)
    assert repository.kept()[0].id[:8] in listed.stdout
    assert profiles("engine", "home", "--", "--no-such-option").returncode not in {0, 3, 4}


def test_what_a_profile_says_of_the_password_holds_whatever_the_environment_says(
    restic: Restic, data: Path, profiles: Profiles, write: Write, folder: Path
) -> None:
    wrong = folder / "wrong.pw"
    wrong.write_text("not the password\n")
    around = {"RESTIC_PASSWORD_FILE": str(wrong)}
    write("home", select={"datasets": [str(data)]}, engine={"engine": "restic", "environment": restic.environment})
    ran = profiles("run", "home", "--mount-root", folder / "view", env=around)
    assert ran.returncode == 0, str(ran)
    listed = profiles("engine", "home", "--", "snapshots", env=around)
    assert (listed.returncode, restic.kept()[0].id[:8] in listed.stdout) == (0, True), str(listed)


def test_the_engine_by_hand_opens_the_repository_as_the_options_say(
    restic: Restic, data: Path, profiles: Profiles, write: Write, folder: Path
) -> None:
    given = dict(restic.environment)
    right, wrong = folder / "right.pw", folder / "wrong.pw"
    right.write_text(given.pop("RESTIC_PASSWORD"))
    wrong.write_text("not the password")
    options = ["--password-file", str(right), "--exclude=*.o"]
    write(
        "home", select={"datasets": [str(data)]}, engine={"engine": "restic", "options": options, "environment": given}
    )
    assert profiles("profile", "check", "home").returncode == 0
    listed = profiles("engine", "home", "--", "snapshots", env={"RESTIC_PASSWORD_COMMAND": "echo wrong"})
    assert listed.returncode == 0, str(listed)
    # What is said by hand holds.
    refused = profiles("engine", "home", "--", "snapshots", f"--password-file={wrong}")
    assert "wrong password" in refused.stderr, str(refused)


def test_a_failure_stops_no_other_and_the_worst_code_is_that_of_all(
    data: Path, profiles: Profiles, write: Write, folder: Path, leftovers: Leftovers
) -> None:
    root = {"mount_root": str(folder / "view")}
    for name, program in (("one", "false"), ("two", "ls"), ("three", "ls")):
        write(name, select={"datasets": [str(data)]}, view={**root, "name": name}, engine={"command": [program]})
    (folder / "_wrong.toml").write_text("[select]\nwhat = 1\n")
    (folder / "four.toml").write_text('extends = "_wrong"\n')
    ended = profiles("run", "--all", "--json")
    assert ended.returncode == 1
    assert [(one["profile"], one["run"]["exit_code"]) for one in document(ended)] == [
        ("four", 2),
        ("one", 1),
        ("three", 0),
        ("two", 0),
    ]
    listed = profiles("profile", "list", "--json")
    last = {one["name"]: (one["last_run"] or {}).get("result") for one in json.loads(listed.stdout)["profiles"]}
    assert (last["one"], last["two"]) == ("failed", "saved")
    assert listed.returncode == 1
    assert "_wrong.toml:2:1: unknown key what in [select]" in listed.stderr
    assert leftovers(folder / "view") == []


def test_a_run_that_found_another_is_not_listed_as_a_failure(
    data: Path, kopiatomic: Kopiatomic, profiles: Profiles, write: Write, folder: Path, tmp_path: Path
) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"
    command = ["sh", "-c", f"touch {begun}; while [ ! -e {go} ]; do sleep 0.05; done"]
    write(
        "slow",
        select={"datasets": [str(data)]},
        view={"mount_root": str(tmp_path / "view")},
        engine={"command": command},
    )
    with kopiatomic.started("run", "slow", env={"KOPIATOMIC_CONFIG_DIR": str(folder)}) as first:
        wait_for(begun.exists, "the engine's start")
        assert profiles("run", "slow").returncode == 75
        listed = json.loads(profiles("profile", "list", "--json").stdout)["profiles"]
        assert listed[0]["last_run"]["exit_code"] == 75
        assert "another run had the root, " in profiles("profile", "list").stdout
        go.touch()
        assert first.wait(30) == 0


def test_an_option_holds_against_the_file(data: Path, profiles: Profiles, write: Write) -> None:
    write("home", select={"datasets": [str(data)]}, view={"mount_root": "/one"}, engine={"command": ["ls"]})
    assert document(profiles("run", "home", "-n", "--json", "--mount-root", "/two"))[0]["run"]["root"] == "/two"


def test_the_engine_gives_way_and_our_own_processes_do_not(
    data: Path, profiles: Profiles, write: Write, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    script = tmp_path / "engine.sh"
    script.write_text(f"nice > {seen}; ionice -p $$ >> {seen}; cat /proc/1/stat | cut -d' ' -f19 >> {seen}\n")
    engine = {"command": ["sh", str(script)], "nice": 7, "ionice": "best-effort:6"}
    write("home", select={"datasets": [str(data)]}, view={"mount_root": str(tmp_path / "view")}, engine=engine)
    ended = profiles("run", "home")
    assert ended.returncode == 0, str(ended)
    nice, io, launcher = seen.read_text().splitlines()
    assert (nice, io, launcher) == (str(7), "best-effort: prio 6", str(os.nice(0)))


@pytest.mark.parametrize("spoil", ["file", "folder", "base"])
def test_what_others_can_change_is_not_run(
    spoil: str, data: Path, profiles: Profiles, write: Write, folder: Path, tmp_path: Path
) -> None:
    touched = tmp_path / "touched"
    write("_base", select={"datasets": [str(data)]}, engine={"command": ["touch", str(touched)]})
    write("home", select={})
    (folder / "home.toml").write_text('extends = "_base"\n')
    path = {"file": folder / "home.toml", "folder": folder, "base": folder / "_base.toml"}[spoil]
    path.chmod(0o777)
    ended = profiles("run", "home")
    assert ended.returncode == 1
    assert f"is used by root, and everybody can change {path}" in ended.stderr.replace("group root and ", "")
    assert not touched.exists()
    checked = profiles("profile", "check", "home", "--offline")
    assert checked.returncode == 1
    path.chmod(0o755 if path.is_dir() else 0o600)
    assert profiles("profile", "check", "home", "--offline").returncode == 0


def test_check_looks_at_all_that_a_run_needs(
    restic: Restic, data: Path, profiles: Profiles, write: Write, folder: Path, leftovers: Leftovers
) -> None:
    given = variables(restic.environment, "RESTIC_PASSWORD", {"file": str(folder / "none")})
    write("home", select={"datasets": [str(data)]}, engine={"engine": "restic", "environment": given})
    ended = profiles("profile", "check")
    assert ended.returncode == 1
    assert "the value of RESTIC_PASSWORD cannot be had" in ended.stderr
    assert "No such file" in ended.stderr
    write("home", select={"datasets": [str(data)]}, engine={"engine": "restic", "environment": restic.environment})
    ended = profiles("profile", "check")
    assert ended.returncode == 0, str(ended)
    assert f"home: {data}; restic saves to {restic.path}" in ended.stdout
    write(
        "other",
        select={"datasets": [str(data)]},
        view={"mount_root": "/kopia", "name": "home"},
        engine={"command": ["ls"]},
    )
    assert "home, other share the root /kopia/home" in profiles("profile", "check", "other").stderr
    assert leftovers() == []


def test_check_says_at_once_all_that_is_wrong(data: Path, profiles: Profiles, write: Write, folder: Path) -> None:
    write(
        "home",
        select={"datasets": [str(data / "none")]},
        engine={"engine": "restic", "environment": {"RESTIC_PASSWORD": {"file": str(folder / "none")}}},
        hooks={"pre_hook": "no-such-program --now", "post_hook": "if true; then"},
        schedule={"calendar": "never"},
    )
    ended = profiles("profile", "check")
    assert ended.returncode == 1, str(ended)
    for said in (
        f"{folder}/home.toml:8:1: pre_hook begins with no-such-program, which is not there or cannot be executed",
        f"{folder}/home.toml:9:1: post_hook is no line of a shell: ",
        "the value of RESTIC_PASSWORD cannot be had",
        f"{data}/none",
        f"{folder}/home.toml:11:1: calendar never: ",
        "home: NOT right, as said above",
    ):
        assert said in ended.stderr + ended.stdout, str(ended)
    assert not (data / "now").exists()


def test_check_looks_on_behind_each_error(data: Path, profiles: Profiles, write: Write, folder: Path) -> None:
    """All names that are not there, all secrets, options: at once."""
    names = [str(data), str(data / "none"), str(folder / "nowhere")]
    write(
        "home",
        select={"datasets": names},
        engine={
            "engine": "restic",
            "options": ["--no-such-option"],
            "environment": {"RESTIC_PASSWORD": {"file": str(folder / "one.pw")}},
        },
        hooks={"environment": {"PGPASSWORD": {"file": str(folder / "two.pw")}}},
    )
    ended = profiles("profile", "check")
    for said in ("one.pw", "two.pw", f"{data}/none: ", f"{folder}/nowhere: "):
        assert said in ended.stderr, str(ended)
    assert "Each run needs all of these values" in ended.stderr
    assert "No backup was started" not in ended.stderr
    write("home", select={"datasets": names}, engine={"options": ["more"]})
    ended = profiles("profile", "check")
    for said in ("-o: more is neither", f"{data}/none: ", f"{folder}/nowhere: "):
        assert ended.stderr.count(said) == 1, str(ended)
    # A name that is right is not complained about.
    assert f"kopiatomic: {data}: " not in ended.stderr


def test_check_ends_as_each_run_would(
    btrfs: Btrfs, data: Path, kopia: Kopia, profiles: Profiles, write: Write, folder: Path
) -> None:
    nested = btrfs.subvolume("data/nested")
    (nested / "file").write_text("x")
    write("home", select={"datasets": [str(data)]}, engine={"environment": kopia.environment})
    ended = profiles("profile", "check", "home")
    run = profiles("run", "home", "--mount-root", folder / "view")
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("kopiatomic: not complete: ")]
    assert (ended.returncode, run.returncode) == (3, 3), f"{ended}{run}"
    assert line in ended.stderr.splitlines()
    assert "its runs end with 3" in ended.stdout
    write("home", select={"datasets": [str(data)], "no_nested": True}, engine={"environment": kopia.environment})
    ended = profiles("profile", "check", "home")
    assert (ended.returncode, "end with 3" in ended.stdout) == (0, False), str(ended)


def test_check_warns_of_a_secret_that_a_timer_will_not_have(
    restic: Restic, data: Path, profiles: Profiles, write: Write
) -> None:
    said = "RESTIC_PASSWORD of this environment is not in the profile, and no timer has it"
    write("home", select={"datasets": [str(data)]}, engine={"engine": "restic"})
    ended = profiles("profile", "check", env=restic.environment)
    assert (ended.returncode, said in ended.stderr) == (0, True), str(ended)
    write("home", select={"datasets": [str(data)]}, engine={"engine": "restic", "environment": restic.environment})
    ended = profiles("profile", "check", env={**restic.environment, "KOPIA_PASSWORD": "other"})
    assert (ended.returncode, "warning" in ended.stderr) == (0, False), str(ended)


def test_each_line_says_of_which_of_several_profiles_it_is(
    data: Path, profiles: Profiles, write: Write, kopiatomic: Kopiatomic, folder: Path
) -> None:
    for name in ("one", "two"):
        write(name, select={"datasets": [str(data / name)]}, engine={"command": ["ls"]})
    ended = profiles("run", "--quiet", "one", "two")
    told = [line for line in ended.stderr.splitlines() if not line.startswith("  ")]
    assert [line.split(f": {data}")[0] for line in told] == ["kopiatomic: one", "kopiatomic: two"], str(ended)
    assert ended.stdout == ""
    assert profiles("run", "--quiet", "one").stderr.startswith(f"kopiatomic: {data}/one: ")
    # Both on one pipe, as on a terminal.
    environment = {**kopiatomic.environment, "KOPIATOMIC_CONFIG_DIR": str(folder)}
    script = f"{shlex.join([sys.executable, '-m', 'kopiatomic'])} run one two 2>&1"
    shown = command("sh", "-c", script, env=environment, check=False).stdout.splitlines()
    assert [line for line in shown if line in {"one:", "two:"}] == ["one:", "two:"]
    assert all("one: " in line for line in shown[shown.index("one:") + 1 : shown.index("two:")] if line[0] != " "), (
        shown
    )


def test_an_option_for_another_layout_is_refused_as_its_key_in_the_file_is(
    data: Path, profiles: Profiles, write: Write
) -> None:
    write("mail", select={"datasets": [str(data)]}, view={"layout": "in-place"}, engine={"command": ["ls"]})
    for flag, value in (("--name", "x"), ("--mount-root", "/kopia/x")):
        ended = profiles("run", "mail", flag, value)
        assert ended.returncode == 2, str(ended)
        assert f"{flag} is for --layout merged, and the layout of mail is in-place" in ended.stderr


def test_what_profile_new_says_comes_next(profiles: Profiles, folder: Path) -> None:
    made = profiles("profile", "new", "home", "--", "-a")
    where = f"--config-dir {folder}"
    assert made.stdout.endswith(f"kopiatomic profile check {where} home; kopiatomic run {where} home\n"), str(made)
    made = profiles("profile", "new", "_common", "--", "-a")
    assert made.stdout.endswith('Next: edit it; in the profiles that it is the base of: extends = "_common"\n'), str(
        made
    )


def test_the_list_shows_what_a_run_would_refuse(data: Path, profiles: Profiles, write: Write, folder: Path) -> None:
    """And files that are none, what is only a base, and the last run as values."""
    write("home", select={"datasets": [str(data)]}, engine={"command": ["ls"]})
    write("my home", select={"datasets": [str(data)]})
    write("_common", engine={"command": ["ls"]})

    def listed() -> tuple[int, Any, str]:
        ended = profiles("profile", "list", "--json")
        (one,) = json.loads(ended.stdout)["profiles"]
        return ended.returncode, one, ended.stderr

    code, one, said = listed()
    assert (code, one["last_run"], one["error"]) == (0, None, None)
    assert f"{folder}/my home.toml is not looked at" in said
    for words in (("profile", "check"), ("run", "-n", "--all")):
        assert f"{folder}/my home.toml is not looked at" in profiles(*words).stderr
    run = profiles("run", "home", "--mount-root", folder / "view")
    assert run.returncode == 0, str(run)
    code, one, _ = listed()
    last = one["last_run"]
    assert (last["result"], last["exit_code"]) == ("saved", 0)
    assert abs(last["started"] - time.time()) < 600
    assert f"profile home: {folder}/view" in profiles("history").stdout
    assert "each with its profile" in profiles("history", "home").stderr
    assert last["run_id"] in profiles("history", last["run_id"]).stdout
    shown = profiles("profile", "show", "_common")
    assert (shown.returncode, "only a base for other profiles" in shown.stdout) == (0, True), str(shown)
    (folder / "home.toml").chmod(0o666)
    code, one, said = listed()
    assert (code, one["error"]["kind"]) == (1, "not-roots-alone"), said
    assert profiles("run", "home").returncode == 1


def test_what_is_not_for_the_repository_stays_out_of_a_new_profile(
    data: Path, profiles: Profiles, folder: Path
) -> None:
    environment = {"AWS_DEFAULT_REGION": "eu-1", "B2_ACCOUNT_ID": "x", "RESTIC_COMPRESSION": "max"}
    for name, repository, found in (
        ("one", "s3:x/y", {"AWS_DEFAULT_REGION", "RESTIC_COMPRESSION"}),
        ("two", "rest:https://a:hush@nas/x", {"RESTIC_COMPRESSION"}),
    ):
        words = ("--engine", "restic", "--repository", repository, data)
        made = profiles("profile", "new", name, "--", *words, env=environment)
        assert made.returncode == 0, str(made)
        assert {variable for _, variable in load(str(folder / f"{name}.toml")).environment} == found
        assert ("the repository's address has a password" in made.stderr) == (name == "two")


def test_files_are_checked_by_anybody_without_a_look_at_anything_else(profiles: Profiles, tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('[select]\ndatasets = ["no/such/pool"]\n[engine]\nengine = "borg"\n')
    ended = profiles("profile", "check", "--file", path, "--offline")
    assert (ended.returncode, ended.stdout) == (
        0,
        "site: the file is right (not looked at: datasets, secrets, engine, times)\n",
    ), str(ended)
    path.write_text("[engine]\nengine = 'borg'\n")
    ended = profiles("profile", "check", "--file", path, "--offline")
    assert ended.returncode == 2, str(ended)
    assert not os.path.lexists(tmp_path / "state")
