"""Profiles: what a file says, and what each wrong file is told, with its place."""

from __future__ import annotations

import os
import re
import shlex
import socket
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from kopiatomic.config.options import Options
from kopiatomic.config.profile import Profile, ProfileError, check_name, load
from kopiatomic.config.profile_text import schema
from kopiatomic.config.settings import TABLES
from kopiatomic.errors import UsageError
from kopiatomic.system.safety import COPY
from tests.support.programs import SLOWNESS

Write = Callable[..., Path]

VALID = jsonschema.Draft7Validator(schema())


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a profile, by default that of the name "home"."""

    def made(text: str | bytes, name: str = "home", mode: int = 0o600) -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)
        return path

    return made


def read(path: Path) -> Profile:
    return load(str(path))


def wrong(path: Path) -> list[str]:
    """What is wrong with a profile, without the folder."""
    with pytest.raises(ProfileError) as caught:
        load(str(path))
    return caught.value.message.replace(f"{path.parent}/", "").split("\n")


def failure(path: Path) -> ProfileError:
    with pytest.raises(ProfileError) as caught:
        load(str(path))
    return caught.value


EVERYTHING = """
[select]
datasets = ["tank/home", "/srv"]
recursive = true
exclude = ["tank/home/cache"]
by_property = false
no_nested = false
include_unmounted = true
property = "org:backup"

[view]
layout = "in-place"
only_frozen = true
writable = ["/var/lib/x"]

[engine]
engine = "borg"
repository = "/srv/borg"
archive = "${hostname}-{instant}"
options = ["--exclude", "/a b"]
nice = 10
ionice = "best-effort:7"

[engine.environment]
BORG_PASSPHRASE = { file = "/root/borg.pw" }
BORG_RSH = "ssh -i /root/key"

[[hold]]
kind = "mariadb"
name = "shop"
limit = 1
password = { file = "/root/db.pw" }
port = 3307

[[hold]]
kind = "cgroup"
name = "/machine.slice/web.scope"
required = false
timeout = "5s"

[hooks]
pre_hook = "echo ${hostname} ${KOPIATOMIC_RUN_ID}"
hook_timeout = "5m"
environment = { PGPASSWORD = { command = ["pass", "show", "pg"] } }
on_lock = "skip"
after = { shell = "umount ${HERE} ${hostname}" }

[[hooks.before]]
command = ["mount", "/srv/a b"]
timeout = 30

[[hooks.before]]
shell = "test -e /srv/stop && exit 75"
directory = "/srv"

[hooks.in_view]
command = "ls -l"
user = "nobody"
required = false
[hooks.in_view.environment]
TOKEN = { credential = "token" }
LANG = "C"

[run]
timeout = 7200
stop_timeout = "1m"
wait = true
verify = "1%"
verify_limit = "500 MB"
verify_time_limit = "30m"
require_atomic = true

[schedule]
calendar = "Mon..Fri 02:30"
random_delay = "10m"
persistent = true
on_battery = false

[records]
state_dir = "/var/lib/other"
keep_history = "30d"
"""


def test_a_profile_says_what_the_command_line_says(write: Write) -> None:
    profile = read(write(EVERYTHING))
    host = socket.gethostname()
    assert Options(**profile.options()) == Options(
        names=("tank/home", "/srv"),
        recursive=True,
        exclude=("tank/home/cache",),
        include_unmounted=True,
        property="org:backup",
        layout="in-place",  # type: ignore[arg-type]
        only_frozen=True,
        writable=("/var/lib/x",),
        engine="borg",
        repository="/srv/borg",
        archive=f"{host}-{{instant}}",
        options="--exclude '/a b'",
        pre_hook=f"echo {host} ${{KOPIATOMIC_RUN_ID}}",
        hook_timeout=300.0,
        timeout=7200.0,
        stop_timeout=60.0,
        wait=3650 * 86400.0,
        verify=1.0,
        verify_limit=500_000_000,
        verify_time_limit=1800.0,
        require_atomic=True,
        state_dir="/var/lib/other",
        keep_history=30 * 86400.0,
        nice=10,
        ionice="best-effort:7",
        on_lock="skip",
    )
    assert profile.value("schedule", "random_delay") == 600.0
    assert {place: value.value for place, value in profile.environment.items()} == {
        ("engine", "BORG_PASSPHRASE"): {"file": "/root/borg.pw"},
        ("engine", "BORG_RSH"): "ssh -i /root/key",
        ("hooks", "PGPASSWORD"): {"command": ["pass", "show", "pg"]},
    }
    hooks = {
        place[1]: [{key: value.value for key, value in one.values.items()} for one in profile.entries(*place)]
        for place in profile.blocks
        if place[0] == "hooks"
    }
    assert hooks == {
        "before": [
            {"command": "mount '/srv/a b'", "timeout": 30.0},
            {"shell": "test -e /srv/stop && exit 75", "directory": "/srv"},
        ],
        "after": [{"shell": f"umount ${{HERE}} {host}"}],
        "in_view": [{"command": "ls -l", "user": "nobody", "required": False}],
    }
    assert [{key: value.value for key, value in one.values.items()} for one in profile.entries("hold")] == [
        {"kind": "mariadb", "name": "shop", "limit": 1.0, "password": {"file": "/root/db.pw"}, "port": 3307},
        {"kind": "cgroup", "name": "/machine.slice/web.scope", "required": False, "timeout": 5.0},
    ]
    (inside,) = profile.entries("hooks", "in_view")
    assert [(one.name, one.form, one.value) for one in inside.sources()] == [
        ("TOKEN", "credential", "token"),
        ("LANG", "text", "C"),
    ]


@pytest.mark.parametrize(
    "repository",
    [
        "sftp:b@nas:srv/x",
        "rest:https://nas/x",
        "s3:s3.example.org/x",
        "b2:x",
        "ssh://b@nas/./x",
        "b@nas:x",
        "rclone:a:b",
        "/srv/x",
        "local:/srv/x",
        "file:///srv/x",
        "${hostname}:x",
        "/srv/${hostname}",
    ],
)
def test_a_repository_elsewhere_is_no_relative_path(repository: str, write: Write) -> None:
    text = f'[engine]\nengine = "restic"\nrepository = "{repository}"\nenvironment = {{ RESTIC_REPOSITORY = "{repository}" }}\n'
    VALID.validate(tomllib.loads(text))
    profile = read(write(text))
    assert profile.value("engine", "repository") == repository.replace("${hostname}", socket.gethostname())


@pytest.mark.parametrize(
    "line",
    [
        'KOPIA_CONFIG_PATH = "other.config"',
        'GIT_SSH_COMMAND = "ssh"',
        'APP_PATH = "$HOME/x"',
        'APP_FILE = "~/x"',
        'LIB_PATH = "/a:b"',
        'URL_PATH = "https://x/y"',
        'NAME = "a/b"',
        'X_DIR = { file = "/x" }',
        'APP_FILE = "app"',
    ],
)
def test_a_variable_that_names_no_relative_path_is_right(line: str, write: Write) -> None:
    text = f"[engine.environment]\n{line}\n"
    VALID.validate(tomllib.loads(text))
    read(write(text))


def test_the_name_of_the_host_is_replaced_in_all_texts_of_variables(write: Write) -> None:
    """Other references stay: the program that has the variable may expand them."""
    host = socket.gethostname()
    text = (
        '[engine.environment]\nA = "${hostname}-${HOME}"\nRESTIC_PASSWORD = { file = "/root/${hostname}.pw" }\n'
        'B = { credential = "${hostname}" }\n[hooks.environment]\nC = { command = ["pass", "${hostname}/x"] }\n'
        '[hooks.after]\nshell = "true"\nenvironment = { D = "${hostname}" }\n'
    )
    profile = read(write(text))
    assert {place[1]: value.value for place, value in profile.environment.items()} == {
        "A": f"{host}-${{HOME}}",
        "RESTIC_PASSWORD": {"file": f"/root/{host}.pw"},
        "B": {"credential": host},
        "C": {"command": ["pass", f"{host}/x"]},
    }
    (after,) = profile.entries("hooks", "after")
    assert [source.value for source in after.sources()] == [host]


@pytest.mark.parametrize(
    ("cron", "meant"),
    [
        ("@hourly", "hourly"),
        ("@daily", "daily"),
        ("@midnight", "daily"),
        ("@weekly", "weekly"),
        ("@monthly", "monthly"),
        ("@yearly", "yearly"),
        ("*/15 * * * *", "*:0/15"),
        ("0 2 * * 1-5", "Mon..Fri 02:00"),
        ("30  4 * * 0", "Sun 04:30"),
        ("7 * * * *", "*:07"),
        ("@reboot", None),
        ("0 2 1 * *", None),
        ("0 2 * * mon", None),
        ("99 2 * * *", None),
        ("0 24 * * *", None),
        ("*/60 * * * *", None),
    ],
)
def test_a_line_of_cron_is_translated_or_not_at_all(cron: str, meant: str | None, write: Write) -> None:
    said = wrong(write(f'[schedule]\ncalendar = "{cron}"\n'))[0].partition("cron's notation; ")[2]
    if meant is None:
        assert said == 'write it as systemd.time(7) has it, for example "Mon..Fri 02:30"'
    else:
        assert said == f'here that is "{meant}", as systemd.time(7) has it'
        read(write(f'[schedule]\ncalendar = "{meant}"\n'))


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ('[hooks]\npre_hook = "dump --password=hush"\n', "hooks"),
        ('[hooks.after]\ncommand = ["dump", "--password=hush"]\n', "hooks"),
        ('[engine]\noptions = ["--password=hush"]\n', "engine"),
    ],
)
def test_a_password_in_a_hook_belongs_among_the_variables_of_hooks(text: str, table: str, write: Write) -> None:
    assert f"by a variable below [{table}.environment]" in wrong(write(text, mode=0o644))[0]


def test_a_value_knows_its_file_and_line(write: Write) -> None:
    origin = read(write(EVERYTHING)).values["engine", "archive"].origin
    assert origin.position is not None
    assert (origin.text, origin.position.line) == ('archive = "${hostname}-{instant}"', 19)


def test_a_base_is_merged_by_table_and_replaced_by_value(write: Write) -> None:
    write(
        '[select]\nexclude = ["a", "b"]\nrecursive = true\n[engine.environment]\nA = "base"\nB = { file = "/b" }\n',
        "_all",
    )
    write('extends = "_all"\n[select]\nexclude = ["c"]\n[engine.environment]\nA = "middle"\n', "_some")
    profile = read(write('extends = "_some"\n[select]\ndatasets = ["tank"]\n[engine.environment]\nB = "own"\n'))
    assert profile.options() == {"names": ("tank",), "exclude": ("c",), "recursive": True}
    assert [value.value for value in profile.environment.values()] == ["middle", "own"]
    assert profile.values["select", "recursive"].origin.file.endswith("/_all.toml")
    assert [Path(file).name for file in profile.files] == ["home.toml", "_some.toml", "_all.toml"]


WRONG = {
    '[run]\nverify = "some"\n': [
        'home.toml:2:1: verify must be a share such as "1%" or "all", not "some"',
        '    verify = "some"',
        "    ^^^^^^",
    ],
    "[run]\nverify_limit = 500\n": [
        'home.toml:2:1: verify_limit must be a size such as "500M" or "1 GiB", not 500',
        "    verify_limit = 500",
        "    ^^^^^^^^^^^^",
    ],
    "[selct]\n": ["home.toml:1:2: unknown table [selct]; did you mean select?", "    [selct]", "     ^^^^^"],
    "[select]\nrecursiv = true\n": [
        "home.toml:2:1: unknown key recursiv in [select]; did you mean recursive?",
        "    recursiv = true",
        "    ^^^^^^^^",
    ],
    "[select]\nby-property = true\n": [
        "home.toml:2:1: unknown key by-property in [select]; did you mean by_property?",
        "    by-property = true",
        "    ^^^^^^^^^^^",
    ],
    "recursive = true\n": ["home.toml:1:1: recursive belongs into [select]", "    recursive = true", "    ^^^^^^^^^"],
    "[view]\nrecursive = true\n": [
        "home.toml:2:1: recursive belongs into [select], not into [view]",
        "    recursive = true",
        "    ^^^^^^^^^",
    ],
    "speed = 3\n": [
        "home.toml:1:1: unknown key speed: keys other than extends belong into a table ([select], [view], [engine], [hooks], "
        "[run], [schedule], [records])",
        "    speed = 3",
        "    ^^^^^",
    ],
    "[engine]\nlayout_ = 1\n": [
        "home.toml:2:1: unknown key layout_ in [engine]; did you mean layout in [view]?",
        "    layout_ = 1",
        "    ^^^^^^^",
    ],
    "select = true\n": [
        "home.toml:1:1: select must be a table: write [select] on a line of its own, and its keys below",
        "    select = true",
        "    ^^^^^^",
    ],
    '[select]\nrecursive = "yes"\n': [
        'home.toml:2:1: recursive must be true or false, not "yes"',
        '    recursive = "yes"',
        "    ^^^^^^^^^",
    ],
    '[select]\ndatasets = "tank/home"\n': [
        'home.toml:2:1: datasets must be an array of texts, such as ["tank/home"], not "tank/home"',
        '    datasets = "tank/home"',
        "    ^^^^^^^^",
    ],
    "[select]\ndatasets = [\n  'a',\n  5,\n]\n": [
        "home.toml:4:3: datasets must be an array of texts, and holds 5",
        "      5,",
        "      ^",
    ],
    "[select]\ndatasets = ['']\n": [
        "home.toml:2:13: datasets has an empty text",
        "    datasets = ['']",
        " " * 16 + "^",
    ],
    '[select]\ndatasets = ["a\\u0000"]\n': [
        "home.toml:2:13: datasets has a NUL character, which no name and no argument can have",
        '    datasets = ["a\\u0000"]',
        " " * 16 + "^",
    ],
    '[select]\nproperty = "${user}"\n': [
        "home.toml:2:1: property refers to ${user}; only ${hostname} is replaced",
        '    property = "${user}"',
        "    ^^^^^^^^",
    ],
    '[view]\nlayout = "inplace"\n': [
        'home.toml:2:1: layout must be one of "merged", "in-place", not "inplace"; did you mean in-place?',
        '    layout = "inplace"',
        "    ^^^^^^",
    ],
    "[view]\nlayout = in-place\n": [
        'home.toml:2:10: this is not TOML: invalid value: text must be in quotes ("in-place"), and true and false in small '
        "letters",
        "    layout = in-place",
        "             ^",
    ],
    "[select]\nrecursive = true\nrecursive = false\n": [
        "home.toml:3:18: this is not TOML: cannot overwrite a value: this key is there twice",
        "    recursive = false",
        "                     ^",
    ],
    '[select]\nall = true\n[schedule]\ncalendar = "5 14 * * *"\n': [
        'home.toml:4:1: calendar is in cron\'s notation; here that is "14:05", as systemd.time(7) has it',
        '    calendar = "5 14 * * *"',
        "    ^^^^^^^^",
    ],
    '[select]\nall = true\n[schedule]\ncalendar = " @daily "\n': [
        'home.toml:4:1: calendar is in cron\'s notation; here that is "daily", as systemd.time(7) has it',
        '    calendar = " @daily "',
        "    ^^^^^^^^",
    ],
    '[select]\nall = true\n[schedule]\ncalendar = "*/5 2-4 1,2 * mon"\n': [
        'home.toml:4:1: calendar is in cron\'s notation; write it as systemd.time(7) has it, for example "Mon..Fri 02:30"',
        '    calendar = "*/5 2-4 1,2 * mon"',
        "    ^^^^^^^^",
    ],
    'hold = "postgresql"\n': [
        "home.toml:1:1: hold must be a table, [hold], or one of several, [[hold]]",
        '    hold = "postgresql"',
        "    ^^^^",
    ],
    '[[hold]]\nname = "x"\nfrozen = 1.5\npassword = { file = "x" }\nrequired = 1\n': [
        "home.toml:3:1: unknown key frozen in [hold]; its keys are kind, name, timeout, limit, required, checkpoint, host, port, "
        "user, password, database, system_user, client, socket, program, command",
        "    frozen = 1.5",
        "    ^^^^^^",
        "home.toml:4:1: file must be an absolute path: it names the file that holds the secret",
        "    password ***",
        "    ^^^^^^^^",
        "home.toml:5:1: required must be true or false, not 1",
        "    required = 1",
        "    ^^^^^^^^",
        "home.toml:1:3: [hold] must have kind",
        "    [[hold]]",
        "      ^^^^",
    ],
    'hold = [{ kind = "postgresl", naem = "x", limit = "0s", required = "no" }]\n': [
        'home.toml:1:11: kind must be one of "postgresql", "mariadb", "mysql", "unit", "container", "cgroup", "command", '
        'not "postgresl"; did you mean postgresql?',
        '    hold = [{ kind = "postgresl", naem = "x", limit = "0s", required = "no" }]',
        "              ^^^^",
        "home.toml:1:31: unknown key naem in [hold]; did you mean name?",
        '    hold = [{ kind = "postgresl", naem = "x", limit = "0s", required = "no" }]',
        "                                  ^^^^",
        'home.toml:1:43: limit "0s" is shorter than 0.1 s',
        '    hold = [{ kind = "postgresl", naem = "x", limit = "0s", required = "no" }]',
        "                                              ^^^^^",
        'home.toml:1:57: required must be true or false, not "no"',
        '    hold = [{ kind = "postgresl", naem = "x", limit = "0s", required = "no" }]',
        "                                                            ^^^^^^^^",
    ],
    '[[hold]]\nkind = "mariadb"\nport = "3306"\nsocket = true\ntimeot = 5\ncheckpoint = true\npassword = ""\n'
    '[[hold]]\nkind = "command"\ncommand = "\'"\n[[hold]]\nkind = "postgresql"\nport = 0\n': [
        'home.toml:3:1: port must be a whole number, not "3306"',
        '    port = "3306"',
        "    ^^^^",
        "home.toml:4:1: socket must be a text, not true",
        "    socket = true",
        "    ^^^^^^",
        "home.toml:5:1: unknown key timeot in [hold]; did you mean timeout?",
        "    timeot = 5",
        "    ^^^^^^",
        "home.toml:6:1: unknown key checkpoint in [hold]; its keys are kind, name, timeout, limit, required, socket, host, port, "
        "user, password, system_user, client",
        "    checkpoint = true",
        "    ^^^^^^^^^^",
        "home.toml:7:1: password is empty",
        "    password ***",
        "    ^^^^^^^^",
        "home.toml:10:1: command is not words as a shell takes them: no closing quotation",
        '    command = "\'"',
        "    ^^^^^^^",
        "home.toml:13:1: port must be from 1 to 65535, and is 0",
        "    port = 0",
        "    ^^^^",
    ],
    '[[hooks.before]]\ncommand = ["a"]\nshell = "a"\n[hooks.after]\ntimeout = 3\n': [
        "home.toml:1:9: [hooks.before] must have one of command and shell, and no more of them",
        "    [[hooks.before]]",
        "            ^^^^^^",
        "home.toml:4:8: [hooks.after] must have one of command and shell, and no more of them",
        "    [hooks.after]",
        "           ^^^^^",
    ],
    '[hooks]\nbefore = "a"\nafter = [1]\non_success = []\n': [
        "home.toml:2:1: before must be a table, [hooks.before], or one of several, [[hooks.before]]",
        '    before = "a"',
        "    ^^^^^^",
        "home.toml:3:1: after must be a table, [hooks.after], or one of several, [[hooks.after]]",
        "    after = [1]",
        "    ^^^^^",
        "home.toml:4:1: on_success must be a table, [hooks.on_success], or one of several, [[hooks.on_success]]",
        "    on_success = []",
        "    ^^^^^^^^^^",
    ],
    '[[hooks.before]]\nshell = "a"\n[[hooks.before]]\nshel = "b"\nrequired = true\nenvironment = 1\ncommand = "b"\n': [
        "home.toml:4:1: unknown key shel in [hooks.before]; did you mean shell?",
        '    shel = "b"',
        "    ^^^^",
        "home.toml:5:1: unknown key required in [hooks.before]; its keys are command, shell, timeout, user, directory, "
        "environment",
        "    required = true",
        "    ^^^^^^^^",
        "home.toml:6:1: environment must be a table of variables: [hooks.before.environment]",
        "    environment = 1",
        "    ^^^^^^^^^^^",
    ],
    '[hooks]\nbefor = { shell = "a" }\n[hooks.after]\ncommand = ["a", 1]\ndirectory = "x"\nuser = ""\n': [
        "home.toml:2:1: unknown key befor in [hooks]; did you mean before?",
        '    befor = { shell = "a" }',
        "    ^^^^^",
        "home.toml:4:17: command must be an array of texts, and holds 1",
        '    command = ["a", 1]',
        "                    ^",
        "home.toml:5:1: directory must be an absolute path, and x is not",
        '    directory = "x"',
        "    ^^^^^^^^^",
        "home.toml:6:1: user is empty",
        '    user = ""',
        "    ^^^^",
    ],
    "[select]\nall\n": [
        "home.toml:2:4: this is not TOML: expected '=' after a key in a key/value pair: a line is a [table], or KEY = VALUE "
        "(not KEY: VALUE)",
        "    all",
        "       ^",
    ],
    "[select]\ndatasets = ['a'\n": [
        "home.toml:3:1: this is not TOML: unclosed array: the ']' is missing",
        "    ",
        "    ^",
    ],
    '[run]\ntimeout = "2 hours"\n': [
        'home.toml:2:1: timeout must be a duration such as "30s", "10m", "2h" or "1d", not "2 hours"',
        '    timeout = "2 hours"',
        "    ^^^^^^^",
    ],
    "[run]\ntimeout = true\n": [
        'home.toml:2:1: timeout must be a duration such as "30s", "10m", "2h" or "1d", not true',
        "    timeout = true",
        "    ^^^^^^^",
    ],
    "[run]\ntimeout = 0\n": ["home.toml:2:1: timeout 0 is shorter than 0.1 s", "    timeout = 0", "    ^^^^^^^"],
    "[run]\ntimeout = nan\n": [
        "home.toml:2:1: timeout nan is longer than ten years",
        "    timeout = nan",
        "    ^^^^^^^",
    ],
    "[run]\ntimeout = 1e400\n": [
        "home.toml:2:1: timeout inf is longer than ten years",
        "    timeout = 1e400",
        "    ^^^^^^^",
    ],
    "[engine]\nnice = 30\n": ["home.toml:2:1: nice must be from -20 to 19, and is 30", "    nice = 30", "    ^^^^"],
    "[engine]\nnice = 1.5\n": ["home.toml:2:1: nice must be a whole number, not 1.5", "    nice = 1.5", "    ^^^^"],
    '[engine]\nengine = "rustic"\n': [
        'home.toml:2:1: engine must be one of "kopia", "restic", "borg", not "rustic"; did you mean restic?',
        '    engine = "rustic"',
        "    ^^^^^^",
    ],
    '[engine]\nengine = "borg"\ncommand = ["tar"]\n': [
        "home.toml:3:1: command and engine exclude each other: command runs any program, engine one that is known",
        '    command = ["tar"]',
        "    ^^^^^^^",
    ],
    '[engine]\nrepository = "/srv/x"\n': [
        "home.toml:2:1: repository is for restic and borg, and the engine is kopia",
        '    repository = "/srv/x"',
        "    ^^^^^^^^^^",
    ],
    '[engine]\ncommand = "tar"\nskip_unchanged = true\n[view]\nlayout = "in-place"\n': [
        "home.toml:3:1: skip_unchanged is for kopia, and the engine is a command",
        "    skip_unchanged = true",
        "    ^^^^^^^^^^^^^^",
    ],
    '[view]\nlayout = "in-place"\nmount_root = "/x"\n': [
        'home.toml:3:1: mount_root is for layout = "merged", and the layout is "in-place"',
        '    mount_root = "/x"',
        "    ^^^^^^^^^^",
    ],
    "[view]\nonly_frozen = true\n": [
        'home.toml:2:1: only_frozen is for layout = "in-place", and the layout is "merged"',
        "    only_frozen = true",
        "    ^^^^^^^^^^^",
    ],
    '[select]\nextends = "_common"\n': [
        "home.toml:2:1: extends belongs at the top of the file, above all tables",
        '    extends = "_common"',
        "    ^^^^^^^",
    ],
    "[engine.environment]\nA = { command = [] }\n": [
        'home.toml:2:1: command must be an array of words, such as ["pass", "show", "backup"], not an array of something else',
        "    A = { command = [] }",
        "    ^",
    ],
    "[engine]\nenvironment = 3\n": [
        "home.toml:2:1: environment must be a table of variables: [engine.environment]",
        "    environment = 3",
        "    ^^^^^^^^^^^",
    ],
    '[engine.environment]\n"A B" = "x"\n': [
        "home.toml:2:1: A B is not the name of a variable",
        '    "A B" = "x"',
        "    ^^^^^",
    ],
    '[engine.environment]\nA = { fil = "/x" }\n': [
        'home.toml:2:1: A must say one thing, { file = "/root/..." }, { credential = "..." } or { command = ["..."] }, and '
        "says fil; did you mean file?",
        '    A = { fil = "/x" }',
        "    ^",
    ],
    '[engine.environment]\nA = { file = "x" }\n': [
        "home.toml:2:1: file must be an absolute path: it names the file that holds the secret",
        '    A = { file = "x" }',
        "    ^",
    ],
    '[engine.environment]\nA = { command = "pass show" }\n': [
        'home.toml:2:1: command must be an array of words, such as ["pass", "show", "backup"], not a text',
        '    A = { command = "pass ***',
        "    ^",
    ],
    '[engine.environment]\nA = { credential = "/x" }\n': [
        "home.toml:2:1: credential must be a name, without '/': use file for a path",
        '    A = { credential = "/x" }',
        "    ^",
    ],
    '[hooks]\npre_hook = ["a"]\n': [
        "home.toml:2:1: pre_hook must be a text, not an array",
        '    pre_hook = ["a"]',
        "    ^^^^^^^^",
    ],
    "extends = 3\n": [
        "home.toml:1:1: extends must be the name of another profile, not 3",
        "    extends = 3",
        "    ^^^^^^^",
    ],
    'extends = "/etc/x.toml"\n': [
        "home.toml:1:1: extends must be the name of another profile, without folder and '.toml'",
        '    extends = "/etc/x.toml"',
        "    ^^^^^^^",
    ],
    'extends = "none"\n': ["home.toml:1:1: none.toml does not exist", '    extends = "none"', "    ^^^^^^^"],
    'extends = "home"\n': [
        "home.toml:1:1: a profile cannot extend itself: home.toml extends home.toml",
        '    extends = "home"',
        "    ^^^^^^^",
    ],
    '[select]\ndatasets = ["/srv", "./x"]\n': [
        "home.toml:2:21: datasets must be an absolute path, and ./x is not",
        '    datasets = ["/srv", "./x"]',
        " " * 24 + "^",
    ],
    '[select]\ndatasets = ["-r"]\n': [
        "home.toml:2:13: datasets must hold datasets and paths, and -r is an option, which has a key of its own",
        '    datasets = ["-r"]',
        " " * 16 + "^",
    ],
    '[select]\nexclude = ["tank@monday"]\n': [
        "home.toml:2:12: exclude must hold datasets and paths, and tank@monday is a snapshot or bookmark",
        '    exclude = ["tank@monday"]',
        " " * 15 + "^",
    ],
    '[select]\nproperty = "mountpoint"\n': [
        "home.toml:2:1: property must be a user property of ZFS, such as backup:this (see zfsprops(7))",
        '    property = "mountpoint"',
        "    ^^^^^^^^",
    ],
    "[select]\nrecursive = true\nno_nested = true\n": [
        "home.toml:3:1: recursive and no_nested exclude each other: the one takes what is nested in the subvolumes, the other "
        "leaves it out",
        "    no_nested = true",
        "    ^^^^^^^^^",
    ],
    '[view]\nmount_root = "view"\n': [
        "home.toml:2:1: mount_root must be an absolute path, and view is not",
        '    mount_root = "view"',
        "    ^^^^^^^^^^",
    ],
    '[view]\nname = "a\\nb"\n': [
        "home.toml:2:1: name must be one path component, of at most 255 bytes and without control characters",
        '    name = "a\\nb"',
        "    ^^^^",
    ],
    '[view]\nmount_root = "//"\n': [
        "home.toml:2:1: mount_root must be a directory below /, and is / itself",
        '    mount_root = "//"',
        "    ^^^^^^^^^^",
    ],
    '[view]\nname = "a/b"\n': [
        "home.toml:2:1: name must be one path component, not '.' or '..', without a leading dash",
        '    name = "a/b"',
        "    ^^^^",
    ],
    '[engine]\nengine = "restic"\nrepository = "../repository"\n': [
        "home.toml:3:1: repository must be an absolute path, and ../repository is not",
        '    repository = "../repository"',
        "    ^^^^^^^^^^",
    ],
    '[engine]\nengine = "borg"\nrepository = "repo/borg"\n': [
        "home.toml:3:1: repository must be an absolute path, and repo/borg is not",
        '    repository = "repo/borg"',
        "    ^^^^^^^^^^",
    ],
    '[engine.environment]\nRESTIC_PASSWORD_FILE = "pw"\nRESTIC_REPOSITORY = "repo"\nBORG_REPO = "./x:y"\n': [
        "home.toml:2:1: RESTIC_PASSWORD_FILE must be an absolute path, since a timer runs in /",
        "    RESTIC_PASSWORD_FILE ***",
        "    ^^^^^^^^^^^^^^^^^^^^",
        "home.toml:3:1: RESTIC_REPOSITORY must be an absolute path, since a timer runs in /",
        '    RESTIC_REPOSITORY = "repo"',
        "    ^^^^^^^^^^^^^^^^^",
        "home.toml:4:1: BORG_REPO must be an absolute path, since a timer runs in /",
        '    BORG_REPO = "./x:y"',
        "    ^^^^^^^^^",
    ],
    '[engine.environment]\nKOPIA_CONFIG_PATH = "my/kopia"\n[hooks.environment]\nCA_FILE = "./ca"\nMY_DIR = "a/b"\n': [
        "home.toml:2:1: KOPIA_CONFIG_PATH must be an absolute path, since a timer runs in /",
        '    KOPIA_CONFIG_PATH = "my/kopia"',
        "    ^^^^^^^^^^^^^^^^^",
        "home.toml:4:1: CA_FILE must be an absolute path, since a timer runs in /",
        '    CA_FILE = "./ca"',
        "    ^^^^^^^",
        "home.toml:5:1: MY_DIR must be an absolute path, since a timer runs in /",
        '    MY_DIR = "a/b"',
        "    ^^^^^^",
    ],
    '[engine.environment]\nBORG_RSH = "./ssh -q"\nA = { command = ["../get"] }\n': [
        "home.toml:2:1: BORG_RSH must name its program by an absolute path, since a timer starts it in /, and ./ssh is none",
        '    BORG_RSH = "./ssh -q"',
        "    ^^^^^^^^",
        "home.toml:3:1: command must name its program by an absolute path, since a timer starts it in /, and ../get is none",
        '    A = { command = ["../get"] }',
        "    ^",
    ],
    '[hooks]\npre_hook = " ./dump.sh;true"\nafter = { command = ["./a b", "c"] }\nbefore = { shell = "../a" }\n': [
        "home.toml:2:1: pre_hook must name its program by an absolute path, since a timer starts it in /, and ./dump.sh is none",
        '    pre_hook = " ./dump.sh;true"',
        "    ^^^^^^^^",
        "home.toml:3:11: command must name its program by an absolute path, since a timer starts it in /, and ./a is none",
        '    after = { command = ["./a b", "c"] }',
        "              ^^^^^^^",
        "home.toml:4:12: shell must name its program by an absolute path, since a timer starts it in /, and ../a is none",
        '    before = { shell = "../a" }',
        "               ^^^^^",
    ],
    '[engine]\ncommand = "./save"\n': [
        "home.toml:2:1: command must name its program by an absolute path, since a timer starts it in /, and ./save is none",
        '    command = "./save"',
        "    ^^^^^^^",
    ],
    "[select]\nall = true\n[select]\nrecursive = true\n": [
        "home.toml:3:8: this is not TOML: cannot declare [select] twice: put all its keys below the first",
        "    [select]",
        "           ^",
    ],
    "[hooks.environment]\n[run]\n[hooks.environment]\n": [
        "home.toml:3:19: this is not TOML: cannot declare [hooks.environment] twice: put all its keys below the first",
        "    [hooks.environment]",
        " " * 22 + "^",
    ],
    "[run]\nwait = false\n": [
        'home.toml:2:1: wait must be a duration such as "30s", "10m", "2h" or "1d", or true for as long as it takes, not false',
        "    wait = false",
        "    ^^^^",
    ],
    '[engine]\nengine = "rsync"\nrepository = "/srv/x"\narchive = "x"\n[view]\nlayout = "in"\nname = "x"\n': [
        'home.toml:2:1: engine must be one of "kopia", "restic", "borg", not "rsync"',
        '    engine = "rsync"',
        "    ^^^^^^",
        'home.toml:6:1: layout must be one of "merged", "in-place", not "in"',
        '    layout = "in"',
        "    ^^^^^^",
    ],
    '[engine]\npassword = "x"\n[hooks]\nDB_PASSWORD = "y"\n': [
        "home.toml:2:1: unknown key password in [engine]: a secret is a variable, and below [engine.environment] stands where it "
        'is: NAME = { file = "/root/..." }',
        "    password ***",
        "    ^^^^^^^^",
        "home.toml:4:1: unknown key DB_PASSWORD in [hooks]: a secret is a variable, and below [hooks.environment] stands where "
        'it is: NAME = { file = "/root/..." }',
        "    DB_PASSWORD ***",
        "    ^^^^^^^^^^^",
    ],
    '[engine.environment]\nA = ""\n': ["home.toml:2:1: A is empty", '    A = ""', "    ^"],
    "[engine]\ncommand = []\n": ["home.toml:2:1: command is empty", "    command = []", "    ^^^^^^^"],
    '[engine]\noptions = "--tag \'a"\n': [
        "home.toml:2:1: options is not words as a shell takes them: no closing quotation",
        '    options = "--tag \'a"',
        "    ^^^^^^^",
    ],
    '[hooks]\npost_hook = " "\n': ["home.toml:2:1: post_hook is empty", '    post_hook = " "', "    ^^^^^^^^^"],
    '[records]\nstate_dir = "state"\n': [
        "home.toml:2:1: state_dir must be an absolute path, and state is not",
        '    state_dir = "state"',
        "    ^^^^^^^^^",
    ],
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_file_is_told_what_is_wrong_and_where(text: str, write: Write) -> None:
    assert wrong(write(text, mode=0o644)) == WRONG[text]


@pytest.mark.parametrize("text", WRONG)
def test_of_a_file_that_is_not_for_all_no_values_are_shown(text: str, write: Write) -> None:
    """The same is wrong at the same places, and a line is shown up to its equals sign, if at all."""
    shown = wrong(write(text, mode=0o640))
    told = [line for line in shown if not line.startswith(" ")]
    assert told == [line for line in WRONG[text] if not line.startswith(" ")]
    for line in set(shown) - set(told):
        assert re.fullmatch(r"    ( *[\w.-]+ *=|\[\[?[\w.]+\]\]?| *\^+)", line), shown


def test_all_that_is_wrong_is_told_at_once(write: Write) -> None:
    write("[run]\ntimeout = []\n", "_base")
    lines = wrong(write('extends = "_base"\n[select]\nal = true\nrecursive = 1\n[view]\nlayout = "x"\n'))
    assert [line.split(": ")[0] for line in lines if line.startswith(("home", "_base"))] == [
        "home.toml:3:1",
        "home.toml:4:1",
        "home.toml:6:1",
        "_base.toml:2:1",
    ]
    (of_the_base,) = [line for line in lines if line.startswith("_base")]
    assert of_the_base.endswith(" (the base of home.toml)")


def test_a_secret_in_a_file_that_others_can_read_is_refused(write: Write) -> None:
    text = '[engine.environment]\nRESTIC_PASSWORD = "wet paint"\nRESTIC_REPOSITORY = "/srv/x"\n'
    assert read(write(text)).environment["engine", "RESTIC_PASSWORD"].value == "wet paint"
    lines = wrong(write(text, mode=0o640))
    assert lines[0].startswith(
        "home.toml:2:1: RESTIC_PASSWORD holds a secret, and others can read this file: chmod 600 "
    )
    assert lines[0].endswith('{ file = "/root/restic_password" }')
    assert lines[1:] == ["    RESTIC_PASSWORD =", "    ^^^^^^^^^^^^^^^"]
    assert wrong(write(text, mode=0o644))[1:] == lines[1:]


@pytest.mark.parametrize(
    "bad",
    [
        "RESTIC_PASSWORD = wet paint",
        "RESTIC_PASSWORD = ['wet paint']",
        'RESTIC_PASSWORD: "wet paint"',
        'RESTIC_PASSWORD "wet paint"',
        'RESTIC_PASSWORD = {} "wet paint"',
        'RESTIC_PASSWORD = { file = "wet paint" }',
        'RESTIC_PASSWORD = { credential = "wet paint/" }',
        'RESTIC_PASSWORD = { file = "/x", comand = "wet paint" }',
        'RESTIC_CACHE_DIR = 1\nRESTIC_PASSWORD = 2\n[engine]\noptions = ["--password", "wet paint", 3]',
        'P_SECRET = """\nwet paint\\q\n"""',
        'A = \'\'\' x""" \'\'\'\nP_SECRET = """a\nwet paint\\q\n"""',
    ],
)
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_what_a_wrong_file_is_told_repeats_no_secret(bad: str, mode: int, write: Write) -> None:
    assert "wet paint" not in "".join(wrong(write(f"[engine.environment]\n{bad}\n", mode=mode)))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('[engine]\noptions = [\n  "--password"\n  "wetpaint",\n]\n', []),
        ('[hooks]\npre_hook = "curl -u me:wetpaint http://x\n', ["    pre_hook =", "    " + " " * 40 + "^"]),
        ('[hooks]\npre_hook = "curl -u me:wetpaint \\x"\n', ["    pre_hook =", "    " + " " * 34 + "^"]),
        (
            '[hooks.before]\ncommand = ["curl", "-u", "me:wetpaint", 3]\n',
            ["    command =", "    " + " " * 40 + "^"],
        ),
        ('[hooks]\npre_hook = ["curl"\n  wetpaint=\n', []),
        ("[hooks]\npre_hook = '''\nlogin = wetpaint\nwetpaint = x'''\nnope = \"wetpaint\"\n", []),
        ('[engine]\nwetpaint = 1\noptions = [ "a",\n[wetpaint]\n', []),
    ],
)
def test_no_word_of_a_private_file_is_shown_for_a_slip_beside_it(text: str, shown: list[str], write: Write) -> None:
    place, *lines = wrong(write(text))
    assert place.startswith("home.toml:")
    assert lines == shown


SEVERAL = 2_500


def test_very_many_mistakes_are_told_at_once(write: Write) -> None:
    """On one line of 20 KB. What is told of it does not grow with the square of them."""
    keys = ", ".join(f"k{number} = 1" for number in range(SEVERAL))
    began = time.monotonic()
    lines = wrong(write(f"select = {{ {keys}, recursive = 1 }}\n", mode=0o644))
    assert time.monotonic() - began < 5 * SLOWNESS
    assert lines[:3] == ["home.toml:1:12: unknown key k0 in [select]", "    ... k0 ...", "        ^^"]
    assert lines[-1] == f"and {SEVERAL + 1 - 100} more"
    assert len([line for line in lines if line.startswith("home.toml")]) == 100
    assert max(map(len, lines)) < 160


def test_a_long_line_is_cut_to_the_name_of_the_key(write: Write) -> None:
    long = "x" * 200
    assert wrong(write(f'[run]\n{long} = "wetpaint"\n', mode=0o644))[1:] == [
        f"    ... {'x' * 80} ...",
        f"        {'^' * 80}",
    ]
    assert wrong(write(f'[run]\nwait = [ "{long}"\n', mode=0o644)) == [
        "home.toml:3:1: this is not TOML: unclosed array: the ']' is missing",
        "    ",
        "    ^",
    ]
    assert len(wrong(write(f'[run]\nwait = "{long}" x\n', mode=0o644))) == 1


@pytest.mark.parametrize(
    "key",
    ["a." * 32 + "a = 1", "[" + "a . " * 32 + "a]", "x = { " + '"a b".' * 32 + "a = 1 }", "a." * 200_000 + "a = 1"],
)
def test_no_key_is_too_deep_to_be_read(key: str, write: Write) -> None:
    assert wrong(write(f"{key}\n")) == ["home.toml: a key in it has more than 32 parts"]
    shallow = key.replace("a . ", "", 1).replace('"a b".', "", 1).removeprefix("a.")
    if len(key) < 1000:
        assert "more than 32 parts" not in "".join(wrong(write(f"{shallow}\n")))
    dots = "a." * 40
    read(write(f"[select] # {dots}\ndatasets = [\"{dots}\", '{dots}', \"\"\"{dots}\n{dots}\"\"\", '''{dots}''']\n"))


@pytest.mark.parametrize("number", ["0x" + "f" * 6000, "9" * 6000])
def test_a_number_of_any_length_is_told_in_our_own_words(number: str, write: Write) -> None:
    told = "".join(wrong(write(f"[engine]\nnice = {number}\n")))
    assert "4300" not in told
    assert "a very large number" in told or "this is not TOML: a number has more digits than any that is of use" in told


def test_no_argument_has_a_nul_character(write: Write) -> None:
    told = wrong(write('[engine.environment]\nX = { command = ["a\\u0000b"] }\n'))
    assert told[0] == "home.toml:2:1: command has a NUL character, which no argument can have"


@pytest.mark.parametrize(
    "text",
    [
        '[engine]\nenvironment = { RESTIC_CACHE_DIR = "/c", RESTIC_PASSWORD = "wet paint" }\n',
        '[engine]\nengine = "restic"\nrepository = "rest:https://u:wetpaint@host/"\n',
        '[engine]\noptions = ["--password=wetpaint"]\n',
        '[engine]\noptions = "--password wetpaint"\n',
        '[engine]\ncommand = ["mysqldump", "--password=wetpaint"]\n',
        '[engine]\nengine = "borg"\noptions = ["--rsh=sshpass -p wetpaint ssh"]\n',
        '[engine]\nengine = "borg"\noptions = ["--rsh", "sshpass -p wetpaint ssh"]\n',
        '[hooks]\npre_hook = "PGPASSWORD=wetpaint pg_dump"\n',
        '[engine]\noptions = ["-p", "wetpaint"]\n',
        '[engine]\nengine = "kopia"\noptions = "-p wetpaint"\n',
        '[engine]\noptions = ["-pwetpaint"]\n',
        '[engine]\ncommand = "/usr/bin/mysqldump"\noptions = ["-pwetpaint"]\n',
        '[engine.environment]\nBORG_PASSCOMMAND = "echo wetpaint"\n',
        '[engine.environment]\nRESTIC_PASSWORD_COMMAND = "/usr/bin/printf %s wetpaint"\n',
    ],
)
def test_no_password_may_stand_in_a_file_that_others_can_read(text: str, write: Write) -> None:
    read(write(text))
    told = "".join(wrong(write(text, mode=0o644)))
    assert "others can read this file: chmod 600 " in told
    assert "paint" not in told


def test_whose_password_it_is_the_engine_decides(write: Write) -> None:
    """restic's -p names a file. Which engine it is may be said in another file than the options."""
    write('[engine]\nengine = "restic"\n', "_restic", mode=0o644)
    options = '[engine]\noptions = ["-p", "/root/pw"]\n'
    read(write(f'extends = "_restic"\n{options}', mode=0o644))
    told = wrong(write(options, mode=0o644))
    assert told[0].startswith("home.toml:2:1: options holds a password, and others can read this file: chmod 600 ")
    assert told[1:] == ["    options =", "    ^^^^^^^"]
    also = wrong(write('[engine]\noptions = ["-p", "wetpaint"]\nnice = 30\nrepository = "/x"\n', mode=0o644))
    assert "wetpaint" not in "".join(also)
    assert "wetpaint" not in "".join(wrong(write('[engine]\noptions = ["-p", "wetpaint", 3]\n', mode=0o644)))


def test_a_command_that_prints_a_secret_is_none_where_it_is_kept_elsewhere(write: Write) -> None:
    read(write('[engine.environment]\nBORG_PASSCOMMAND = "cat /root/pw"\nX_COMMAND = "echo x"\n', mode=0o644))


def test_nothing_is_advised_that_does_harm(write: Write, tmp_path: Path) -> None:
    """A command is, for a file of one's own that nobody else can exchange, and it can be copied as it stands."""
    text = '[engine]\noptions = ["--password=wetpaint"]\n'
    path = write(text, "q; touch PWNED; #", mode=0o644)
    assert f"read this file: chmod 600 {shlex.quote(str(path))}, or hand it over" in str(failure(path))
    link = tmp_path / "home.toml"
    link.symlink_to(path)
    assert f"read this file: {COPY}, or hand it over" in str(failure(link))
    link.unlink()
    link.hardlink_to(path)
    assert f"read this file: {COPY}, or hand it over" in str(failure(link))
    if os.geteuid() == 0:
        link.unlink()
        tmp_path.chmod(0o777)
        assert f"read this file: {COPY}, or hand it over" in str(failure(path))
        tmp_path.chmod(0o700)
        os.chown(path, 12345, -1)
        assert f"read this file: {COPY}, or hand it over" in str(failure(path))


def test_what_is_no_file_of_text_is_told(tmp_path: Path, write: Write) -> None:
    path = tmp_path / "home.toml"
    assert wrong(path) == ["home.toml: there is no such file"]
    path.mkdir()
    assert wrong(path) == ["home.toml: it is a directory, and must be a file"]
    path.rmdir()
    path.symlink_to("nowhere")
    assert wrong(path) == ["home.toml: it is a symbolic link that leads nowhere"]
    path.unlink()
    path.symlink_to("home.toml")
    assert wrong(path) == ["home.toml: it cannot be read: Too many levels of symbolic links"]
    path.unlink()
    os.mkfifo(path)
    assert wrong(path) == ["home.toml: it is a named pipe, and must be a file"]
    path.unlink()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        assert wrong(path) == ["home.toml: it is a socket or device, and must be a file"]
    path.unlink()
    path.symlink_to("/dev/zero")
    assert wrong(path) == ["home.toml: it is a device, and must be a file"]
    path.unlink()
    assert wrong(write("#" * (10 << 20))) == ["home.toml: it is larger than 1 MiB, and no profile is"]
    assert wrong(write(b"a = 1\nb = '\xe9'\n")) == ["home.toml: line 2 is not UTF-8, which TOML must be (byte 0xe9)"]
    assert wrong(write(b"\xef\xbb\xbf[select]\n"))[0].startswith("home.toml: it begins with a byte order mark")
    deep = wrong(write(f"[select]\ndatasets = {'[' * 5000}{']' * 5000}\n"))
    assert deep == ["home.toml: its tables or arrays are nested too deeply"]


def test_a_name_that_nearly_exists_is_suggested(write: Write) -> None:
    other = write("[select]\nall = true\n", "home-server")
    assert wrong(other.with_name("homeserver.toml")) == [
        "homeserver.toml: there is no such file; did you mean home-server?"
    ]


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-a", "a b", "home.toml", ".hidden", "\x1b"])
def test_a_name_is_a_plain_word(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


def test_every_setting_of_a_backup_is_in_one_table() -> None:
    keys = [setting.key for settings in TABLES.values() for setting in settings]
    assert len(set(keys)) == len(keys)
    assert list(TABLES) == ["select", "view", "engine", "hooks", "run", "schedule", "records"]
