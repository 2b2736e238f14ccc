"""What a schedule does not touch, what it does not start, and what it takes of its caller's environment."""

from __future__ import annotations

import json
import os
import shlex
import stat
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.config.options import HoldBlock, Options
from kopiatomic.hooks.holder import Wanted
from kopiatomic.hooks.hook import Hook, Moment
from kopiatomic.schedules import environment, files, started, systemd, trust
from kopiatomic.schedules.files import State
from kopiatomic.schedules.schedule import Scheduler
from kopiatomic.secrets.source import Source
from tests.support.programs import Kopiatomic
from tests.unit.support.schedules import UNITS, error_of, on_freebsd, on_linux, root, schedule, tree, write_all

__all__ = ["on_freebsd", "on_linux", "root"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="schedules are root's")


# Files


def test_files_are_roots_and_everybody_may_read_them_whatever_the_umask(on_linux: Scheduler, root: Path) -> None:
    before = os.umask(0o077)
    try:
        paths = write_all(on_linux, schedule(), root)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o644] * 5
    assert {stat.S_IMODE(path.parent.stat().st_mode) for path in paths} == {0o755}
    assert sorted(tree(root)) == sorted(str(path.relative_to(root)) for path in paths)


def test_writing_the_same_again_touches_nothing(on_linux: Scheduler, root: Path) -> None:
    paths = write_all(on_linux, schedule(), root)
    before = [path.stat() for path in paths]
    assert [files.state(file) for file in on_linux.files(schedule())] == [State.SAME] * 5
    write_all(on_linux, schedule(), root)
    assert [(s.st_ino, s.st_mtime_ns) for s in before] == [
        (s.st_ino, s.st_mtime_ns) for s in (path.stat() for path in paths)
    ]


def test_a_changed_schedule_replaces_its_files_at_once(on_linux: Scheduler, root: Path) -> None:
    """Who has the old file open goes on reading the old one: it is another file now."""
    *_, service, _timer, _recovery = write_all(on_linux, schedule(), root)
    with service.open() as old:
        write_all(on_linux, schedule(words=("mail",)), root)
        assert json.dumps(["-r", "tank"]) in old.read()
    found = on_linux.read("home")
    assert found is not None
    assert found.words == ("mail",)


@pytest.mark.parametrize("kind", ["foreign", "edited", "link", "dangling link", "directory"])
def test_what_is_not_ours_is_neither_overwritten_nor_removed(kind: str, on_linux: Scheduler, root: Path) -> None:
    *_, service, _timer, _recovery = write_all(on_linux, schedule(), root)
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
    own = ["10-schedule.conf", "10-schedule.conf", "kopiatomic-recover@home.service"]
    assert [path.name for path in write_all(on_linux, schedule(), root)] == own
    # An administrator's own in front of the package's is theirs.
    (root / UNITS / "kopiatomic@.timer").write_text("[Timer]\n")
    assert [path.name for path in write_all(on_linux, schedule(), root)] == own


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
    from kopiatomic.schedules.schedule import check_name

    assert error_of(lambda: check_name(name)).exit_code == 2


# Who could change what root would run


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """A program as an installer puts it down."""
    program = tmp_path / "opt/kopiatomic/bin/kopiatomic"
    program.parent.mkdir(parents=True)
    for folder in (tmp_path / "opt", tmp_path / "opt/kopiatomic", program.parent):
        folder.chmod(0o755)
    program.write_text("#!/usr/bin/python3\nfrom kopiatomic.cli.entry import main\n\nmain()\n")
    program.chmod(0o755)
    return program


def test_a_program_of_roots_alone_is_started_by_its_path_and_its_python(installation: Path, tmp_path: Path) -> None:
    assert trust.installed(str(installation), "kopiatomic x", top=str(tmp_path)) == (sys.executable, str(installation))


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
    error = error_of(lambda: trust.installed(str(installation), "kopiatomic x", top=str(tmp_path)))
    assert error.kind == "not-roots-alone"
    assert who in error.message
    assert str(tmp_path / what) in error.message
    # What a user may have put there is not given to root, and a folder is shut for nobody.
    path = tmp_path / what
    owned = path.stat().st_uid == 0 and path.is_file()
    command = f"Look at it, then: chmod go-w {shlex.quote(str(path))}"
    assert error.hint == (command if owned else "Copy it to where root alone can write, after reading it.")


def test_what_links_lead_to_is_looked_at_as_well(installation: Path, tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.mkdir(0o755)
    (usual / "kopiatomic").symlink_to("../opt/kopiatomic/bin/kopiatomic")
    program = usual / "kopiatomic"
    assert trust.installed(str(program), "kopiatomic x", top=str(tmp_path))[1] == str(program)
    (tmp_path / "opt").chmod(0o777)
    assert "opt" in error_of(lambda: trust.installed(str(program), "kopiatomic x", top=str(tmp_path))).message
    (tmp_path / "opt").chmod(0o755)
    usual.chmod(0o777)
    assert "usual" in error_of(lambda: trust.installed(str(program), "kopiatomic x", top=str(tmp_path))).message
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
    assert (
        "imports from"
        in error_of(lambda: trust.installed(str(installation), "kopiatomic x", top=str(tmp_path))).message
    )
    packages.chmod(0o755)
    python = packages / "python3"
    python.write_text("")
    python.chmod(0o777)
    monkeypatch.setattr(sys, "executable", str(python))
    assert (
        "its Python" in error_of(lambda: trust.installed(str(installation), "kopiatomic x", top=str(tmp_path))).message
    )


@pytest.mark.parametrize("what", ["module", "package", "in a package", "compiled", "path file", "linked"])
def test_whatever_its_python_may_import_is_looked_at(
    what: str, installation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "packages"
    for path in ("one/__pycache__", "other", "no-package"):
        (folder / path).mkdir(parents=True)
    paths = {
        "module": "module.py",
        "package": "one",
        "in a package": "one/module.py",
        "compiled": "one/__pycache__/module.pyc",
        "path file": "x.pth",
        "linked": "elsewhere",
    }
    for path in ("module.py", "one/__init__.py", "one/module.py", "one/__pycache__/module.pyc", "x.pth", "notes.txt"):
        (folder / path).touch()
    (tmp_path / "elsewhere").mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "one" / "loop").symlink_to(folder / "one")
    (folder / "one" / "nowhere.py").symlink_to("nowhere")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    # None of these is ever imported.
    os.chown(folder / "notes.txt", 12345, 0)
    os.chown(folder / "no-package", 12345, 0)
    trust.installed(str(installation), "kopiatomic x", top=str(tmp_path))
    found = tmp_path / paths[what] if what == "linked" else folder / paths[what]
    os.chown(found, 12345, 0)
    error = error_of(lambda: trust.installed(str(installation), "kopiatomic x", top=str(tmp_path)))
    assert (error.kind, f"user 12345 can change {found}" in error.message) == ("not-roots-alone", True)


# What its words and variables name


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A program of somebody else's."""
    program = tmp_path / "evil"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    os.chown(program, 12345, 0)
    return program


def judged(tmp_path: Path, variables: dict[str, str] | None = None, /, **options: Any) -> list[str]:
    """What is said; only what lies below ``tmp_path`` is looked at."""
    return started.check(Options(**options), {"PATH": environment.PATH, **(variables or {})}, top=str(tmp_path))


@pytest.mark.parametrize(
    "line",
    [
        "EVIL",
        "cd / && EVIL -x",
        "true; A=b EVIL",
        "if true; then EVIL; fi",
        "! EVIL | cat",
        "(EVIL) > /dev/null 2>&1",
        "x=$(EVIL)",
        "nice -n 10 EVIL",
        "env A=b timeout 10s EVIL",
        "sh EVIL",
        ". EVIL",
        "sh -c 'true; EVIL'",
        "flock /run/lock EVIL",
        "true\nEVIL\n",
        "find /x -exec EVIL {} +",
    ],
)
def test_a_program_in_a_hook_that_others_can_change_is_refused(line: str, evil: Path, tmp_path: Path) -> None:
    found = line.replace("EVIL", str(evil))
    for call in (lambda: judged(tmp_path, pre_hook=found), lambda: judged(tmp_path, post_hook=found)):
        error = error_of(call)
        assert (error.kind, str(evil) in error.message) == ("not-roots-alone", True)


@pytest.mark.parametrize(
    "line",
    [
        "pg_dump() { true; }; cd /var/backups || exit 1",
        "for x in a b; do echo $x; done; case x in x) true ;; esac",
        "cat DATA > DATA",
        "systemctl stop postgresql && sync # not EVIL at all",
    ],
)
def test_a_line_that_runs_nothing_of_others_is_not_refused(line: str, evil: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.touch()
    os.chown(data, 12345, 0)
    judged(tmp_path, pre_hook=line.replace("DATA", str(data)).replace("EVIL", str(evil)))


@pytest.mark.parametrize(
    "line",
    ["$HOME/x", "./x", "nosuchprogram", "sudo -u ann EVIL", "ssh host EVIL", "echo `EVIL`", 'echo "', "cat DATA"],
)
def test_what_cannot_be_judged_is_said_and_not_refused(line: str, evil: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.touch()
    os.chown(data, 12345, 0)
    (said,) = judged(tmp_path, pre_hook=line.replace("DATA", str(data)).replace("EVIL", str(evil)))
    assert said.startswith("whether root alone can change all that -p runs cannot be judged: ")
    assert judged(tmp_path, pre_hook="true; cp -p /etc/hostname /tmp/x; echo done") == []


@pytest.mark.parametrize("name", ["RESTIC_PASSWORD_COMMAND", "BORG_PASSCOMMAND", "BORG_RSH", "RCLONE_PASSWORD_COMMAND"])
def test_a_command_in_a_variable_is_looked_at(name: str, evil: Path, tmp_path: Path) -> None:
    assert error_of(lambda: judged(tmp_path, {name: f"{evil} -x"})).kind == "not-roots-alone"
    assert error_of(lambda: judged(tmp_path, {name: f"sh -c '{evil}'"})).kind == "not-roots-alone"
    assert judged(tmp_path, {name: "cat /root/pw"}) == []


def said_by_profile(name: str, form: str, value: str | tuple[str, ...]) -> Source:
    return Source(name, form, value, "/etc/kopiatomic/home.toml:9:1")


def test_what_a_profile_itself_says_is_looked_at(evil: Path, tmp_path: Path) -> None:
    """Its variables are not in the schedule's environment: the run reads them."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "users").mkdir()
    os.chown(tmp_path / "users", 12345, 0)
    wrong: list[dict[str, Any]] = [
        {"variables": (said_by_profile("RESTIC_PASSWORD", "command", (str(evil), "-x")),)},
        {"variables": (said_by_profile("RESTIC_PASSWORD_COMMAND", "text", str(evil)),)},
        {"variables": (said_by_profile("RESTIC_PASSWORD_FILE", "text", str(evil)),)},
        {"variables": (said_by_profile("PATH", "text", f"/usr/bin:{tmp_path}/users"),)},
        {"variables": (said_by_profile("LD_PRELOAD", "text", str(evil)),)},
        {"hook_variables": (said_by_profile("TOKEN", "command", ("sh", "-c", str(evil))),)},
        # Not yet there, where a user could make it at any time.
        {"hook_variables": (said_by_profile("PATH", "text", f"{tmp_path}/users/bin:/usr/bin"),)},
        {"hooks": (Hook(Moment.BEFORE, ("x",), variables=(said_by_profile("TOKEN", "command", (str(evil),)),)),)},
    ]
    for options in wrong:
        assert error_of(partial(judged, tmp_path, **options)).kind == "not-roots-alone", options
    right: list[dict[str, Any]] = [
        {"variables": (said_by_profile("RESTIC_PASSWORD", "command", ("cat", "/root/pw")),)},
        {"variables": (said_by_profile("PATH", "text", f"/usr/local/bin:/usr/bin:{tmp_path}/bin"),)},
        {"hook_variables": (said_by_profile("WORD", "text", str(evil)),)},
    ]
    for options in right:
        assert judged(tmp_path, **options) == [], options


def holding(kind: str, *sources: Source, **settings: Any) -> dict[str, Any]:
    return {"hold_blocks": (HoldBlock(Wanted(kind, "shop", settings=settings), sources),)}


@pytest.mark.parametrize(
    "options",
    [
        lambda evil: holding("command", command=[evil, "-x"]),
        lambda evil: holding("command", command=["sh", "-c", f"flock /run/lock {evil}"]),
        lambda evil: holding("command", command=["python3", evil]),
        lambda evil: holding("postgresql", client=evil),
        lambda evil: holding("mariadb", client=evil, system_user="root"),
        lambda evil: holding("mysql", client=evil),
        lambda evil: holding("container", program=evil),
        lambda evil: holding("mariadb", said_by_profile("password", "command", (evil,))),
    ],
)
def test_a_program_in_a_hold_that_others_can_change_is_refused(
    options: Callable[[str], dict[str, Any]], evil: Path, tmp_path: Path
) -> None:
    error = error_of(partial(judged, tmp_path, **options(str(evil))))
    assert (error.kind, f"user 12345 can change {evil}" in error.message) == ("not-roots-alone", True)


def test_which_hold_names_a_program_that_others_can_change_is_said(evil: Path, tmp_path: Path) -> None:
    error = error_of(partial(judged, tmp_path, **holding("mariadb", client=str(evil))))
    assert error.message == f"{evil} in hold mariadb:shop: {evil} is used by root, and user 12345 can change {evil}"


def test_holds_that_start_nothing_of_others_are_not_refused(evil: Path, tmp_path: Path) -> None:
    mine = tmp_path / "client"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    right: list[dict[str, Any]] = [
        holding("command", command=["/bin/sh", "-c", "echo held; cat"]),
        holding("postgresql", client=str(mine), user=str(evil)),
        holding("unit"),
        holding("cgroup"),
        {"holds": ("postgresql", "unit:mail.service")},
    ]
    for options in right:
        assert judged(tmp_path, **options) == [], options
    (said,) = judged(tmp_path, **holding("command", command=["sudo", "-u", "ann", str(evil)]))
    assert said.startswith("whether root alone can change all that hold command:shop runs cannot be judged: ")


def test_programs_of_hooks_are_looked_for_on_the_hooks_own_path(evil: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "dump").symlink_to(evil)
    path = said_by_profile("PATH", "text", f"{tmp_path}/bin:/usr/bin")
    found: list[dict[str, Any]] = [
        {"hook_variables": (path,), "pre_hook": "dump all"},
        {"hook_variables": (path,), "hooks": (Hook(Moment.BEFORE, ("dump", "all")),)},
        {"hooks": (Hook(Moment.BEFORE, ("/bin/sh", "-c", "dump all"), variables=(path,)),)},
    ]
    for options in found:
        error = error_of(partial(judged, tmp_path, **options))
        assert (error.kind, str(evil) in error.message) == ("not-roots-alone", True), options


@pytest.mark.parametrize("name", ["KOPIA_CONFIG_PATH", "RESTIC_PASSWORD_FILE", "BORG_KEY_FILE", "RCLONE_CONFIG"])
def test_a_configuration_that_others_can_change_is_refused(name: str, evil: Path, tmp_path: Path) -> None:
    error = error_of(lambda: judged(tmp_path, {name: str(evil)}))
    assert (error.kind, f"what {name} names" in error.message) == ("not-roots-alone", True)
    assert judged(tmp_path, {name: str(tmp_path / "not-there-yet")}) == []


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("restic", "--password-command='EVIL x'"),
        ("restic", "-o sftp.command='EVIL -s'"),
        ("borg", "--rsh 'EVIL -i key'"),
        (None, "EVIL"),
    ],
)
def test_a_command_among_the_options_is_looked_at(engine: str | None, words: str, evil: Path, tmp_path: Path) -> None:
    command = "tar -c" if engine is None else None
    wanted = words.replace("EVIL", str(evil))
    error = error_of(lambda: judged(tmp_path, engine=engine, command=command, options=wanted))
    assert error.kind == "not-roots-alone"


def test_a_device_behind_a_link_is_left_as_it_is(tmp_path: Path) -> None:
    link = tmp_path / "home.toml"
    link.symlink_to("/dev/null")
    error = error_of(lambda: trust.check(str(link), "the profile", top="/dev"))
    assert "everybody can change /dev/null" in error.message
    assert error.hint == "Copy it to where root alone can write, after reading it."


def test_a_command_that_is_advised_can_be_copied(tmp_path: Path) -> None:
    path = tmp_path / "x; touch PWNED #.toml"
    path.touch()
    path.chmod(0o666)
    error = error_of(lambda: trust.check(str(path), "the profile", top=str(tmp_path)))
    assert error.hint == f"Look at it, then: chmod go-w {shlex.quote(str(path))}"


def test_nobody_is_told_to_take_a_folder_from_everybody(tmp_path: Path) -> None:
    error = error_of(lambda: trust.check("/var/tmp", "the program"))
    assert "chown" not in str(error.hint)
    assert "chmod" not in str(error.hint)


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


def environment_for(caller: dict[str, str], tmp_path: Path, *credentials: str, **options: Any) -> Mapping[str, str]:
    path = f"{tmp_path}/bin"
    return environment.of(Options(**options), {"PATH": path, **caller}, "/root", credentials, top=str(tmp_path))


@pytest.mark.usefixtures("engines")
def test_home_configuration_path_and_program_are_fixed(tmp_path: Path) -> None:
    found = environment_for({"HOME": "/home/ann", "LANG": "C", "KOPIATOMIC_TEST": "1"}, tmp_path)
    assert found == {
        "HOME": "/root",
        "PATH": environment.PATH,
        "KOPIA_CONFIG_PATH": "/root/.config/kopia/repository.config",
        "KOPIATOMIC_KOPIA": f"{tmp_path}/bin/kopia",
    }


@pytest.mark.usefixtures("engines")
def test_where_kopias_configuration_is_said_elsewhere_that_is_the_one(tmp_path: Path) -> None:
    given = environment_for({"KOPIA_CONFIG_PATH": "/etc/kopia.config"}, tmp_path)
    assert given["KOPIA_CONFIG_PATH"] == "/etc/kopia.config"
    by_option = environment_for({}, tmp_path, options="--config-file=/srv/x.config")
    assert by_option["KOPIA_CONFIG_PATH"] == "/srv/x.config"
    elsewhere = environment_for({"XDG_CONFIG_HOME": "/srv/config"}, tmp_path)
    assert elsewhere["KOPIA_CONFIG_PATH"] == "/srv/config/kopia/repository.config"


def test_what_a_profile_says_to_the_engine_holds(engines: Path, tmp_path: Path) -> None:
    """Its program may be on no PATH, and its configuration elsewhere than the caller's."""
    own = (
        said_by_profile("KOPIATOMIC_KOPIA", "text", f"{engines}/kopia"),
        said_by_profile("XDG_CONFIG_HOME", "text", "/srv/config"),
    )
    found = environment_for({"PATH": "/nowhere"}, tmp_path, variables=own)
    assert found["KOPIATOMIC_KOPIA"] == f"{engines}/kopia"
    assert found["KOPIA_CONFIG_PATH"] == "/srv/config/kopia/repository.config"
    os.chown(engines / "kopia", 12345, 0)
    assert error_of(lambda: environment_for({}, tmp_path, variables=own)).kind == "not-roots-alone"


SECRETS = {
    "RESTIC_REPOSITORY": "rest:https://me:hush@host/",
    "RESTIC_PASSWORD": "hush",
    "AWS_ACCESS_KEY_ID": "hush",
    "AWS_SECRET_ACCESS_KEY": "hush",
    "AZURE_ACCOUNT_KEY": "hush==",
    "AZURE_ACCOUNT_SAS": "?sv=2022&sig=hush",
    "B2_ACCOUNT_KEY": "hush",
    "RCLONE_CONFIG_PASS": "hush",
    "http_proxy": "http://me:hush@proxy/",
}
NO_SECRETS = {
    "RESTIC_PASSWORD_FILE": "/root/restic.pw",
    "RESTIC_PASSWORD_COMMAND": "cat /root/restic.pw",
    "RESTIC_CACHE_DIR": "/srv/cache",
    "RESTIC_KEY_HINT": "12ab",
    "AWS_DEFAULT_REGION": "north",
    "AZURE_ACCOUNT_NAME": "ann",
    "GOOGLE_APPLICATION_CREDENTIALS": "/root/google.json",
}


@pytest.mark.usefixtures("engines")
def test_what_holds_no_secret_is_part_of_a_schedule(on_linux: Scheduler, tmp_path: Path) -> None:
    found = environment_for({**NO_SECRETS, "KOPIA_PASSWORD": "of another engine"}, tmp_path, engine="restic")
    assert set(found) == {*NO_SECRETS, "KOPIATOMIC_RESTIC", "HOME", "PATH"}
    environment.check_no_secrets(found, on_linux.advice, "kopiatomic x")


@pytest.mark.usefixtures("engines")
@pytest.mark.parametrize("name", SECRETS)
def test_a_variable_that_holds_a_secret_is_refused_unless_it_is_a_credential(
    name: str, on_linux: Scheduler, on_freebsd: Scheduler, tmp_path: Path
) -> None:
    caller = {**NO_SECRETS, name: SECRETS[name]}
    found = environment_for(caller, tmp_path, engine="restic")
    error = error_of(lambda: environment.check_no_secrets(found, on_linux.advice, "kopiatomic x"))
    assert (error.kind, "hush" in error.message) == ("secret-in-environment", False)
    assert error.message.startswith(f"{name} of this environment")
    assert f"--credential {name}=" in str(error.hint)
    assert str(error.hint).endswith(f": env -u {name} kopiatomic x")
    assert "--credential" not in str(
        error_of(lambda: environment.check_no_secrets(found, on_freebsd.advice, "kopiatomic x")).hint
    )
    environment.check_no_secrets(
        environment_for(caller, tmp_path, name, engine="restic"), on_linux.advice, "kopiatomic x"
    )
    environment.check_credential(name, str(_credential(tmp_path)), top=str(tmp_path))


def _credential(folder: Path) -> Path:
    file = folder / "credential"
    file.write_text("hush\n")
    file.chmod(0o600)
    return file


def test_an_engine_that_others_can_exchange_is_refused(engines: Path, tmp_path: Path) -> None:
    (engines / "borg").chmod(0o777)
    error = error_of(lambda: environment_for({}, tmp_path, engine="borg"))
    assert (error.kind, "the engine borg" in error.message) == ("not-roots-alone", True)
    (engines / "borg").unlink()
    assert error_of(lambda: environment_for({}, tmp_path, engine="borg")).kind == "borg-missing"


@pytest.mark.usefixtures("engines")
def test_a_command_is_looked_for_where_the_schedule_will(tmp_path: Path) -> None:
    assert set(environment_for({}, tmp_path, command="true")) == {"HOME", "PATH"}
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
