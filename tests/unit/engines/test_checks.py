"""restic and Borg before anything is made: what is wrong is said by kind, and no question waits for an answer."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kopiatomic import engines
from kopiatomic.engines import flags
from kopiatomic.engines.engine import Remembering
from kopiatomic.engines.known_options import Known
from kopiatomic.engines.restic.client import Client
from kopiatomic.engines.restic.engine import ResticRepository
from kopiatomic.engines.written import source_of
from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.model.plan import Plan
from kopiatomic.secrets.masking import MASK, Secrets
from tests.support.repositories import Borg, Restic
from tests.support.small_disk import on_small_disk
from tests.unit.support.engine_bench import EngineBench
from tests.unit.support.kopia_fixtures import Driven, holding, make_job

pytestmark = pytest.mark.in_part(8)


def test_all_is_well(bench: EngineBench) -> None:
    found = bench.engine().check(bench.plan)
    assert found.warnings == ()
    assert found.version is not None
    assert found.version[0].isdigit()
    assert found.target.repository == bench.environment[bench.repository.variable]
    host = socket.gethostname()
    wanted = {"restic": host, "borg": f"{host.partition('.')[0]}-{{instant}}"}
    assert found.target.identity == wanted[bench.repository.engine]


def test_no_password_is_in_the_name_of_a_repository() -> None:
    client = Client([], {"HOME": "/"}, "rest:https://me:hush@host/")
    assert ResticRepository(client, None, ()).target.repository == "rest:https://me:***@host/"


def test_a_file_that_names_the_repository_holds_nothing_up(tmp_path: Path) -> None:
    (tmp_path / "name").write_text("/srv/repository\n")
    assert Client([f"--repository-file={tmp_path}/name"], {"HOME": "/"}, None).where == "/srv/repository"
    assert Client([f"--repository-file={tmp_path}/none"], {"HOME": "/"}, None).where is None
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no plain file"):
        _ = Client([], {"HOME": "/", "RESTIC_REPOSITORY_FILE": f"{tmp_path}/pipe"}, None).where


def test_a_repository_that_is_only_read_is_not_said_to_be_locked(bench: EngineBench) -> None:
    with on_small_disk(bench.repository.path, read_only=True):
        error = bench.refused()
    assert error.kind == f"{bench.repository.engine}-read-only"
    assert "what it writes to is read-only" in error.message
    assert error.message.lower().count("read-only file system") == 1


def test_an_option_that_the_engine_has_not_is_refused_before_anything_is_made(bench: EngineBench) -> None:
    error = bench.refused("--no-such-option")
    assert (error.kind, error.exit_code) == ("engine-option", 2)
    assert "no-such-option" in error.message
    assert bench.engine("--exclude", "*.o", "--verbose").check(bench.plan).warnings == ()


def test_a_wrong_password(bench: EngineBench) -> None:
    bench.environment[bench.repository.password_variable] = "wrong"
    assert bench.refused().kind == f"{bench.repository.engine}-wrong-password"


def test_no_password_is_not_asked_for(bench: EngineBench) -> None:
    """Also on a terminal: ssh and getpass look for one by themselves."""
    del bench.environment[bench.repository.password_variable]
    code = (
        "import sys\nfrom kopiatomic import engines\nfrom kopiatomic.errors import KopiatomicError\n"
        "from tests.unit.support.engine_bench import EngineBench\n"
        f"engine = engines.create(None, [], engine={bench.repository.engine!r}, environment={bench.environment!r})\n"
        f"plan = EngineBench.plan_of(*map(__import__('pathlib').Path, {[str(bench.other)]!r}))\n"
        "try:\n    engine.check(plan)\nexcept KopiatomicError as error:\n    print(error.kind)\n"
    )
    program = bench.base / "program.py"
    program.write_text(code)
    # script(1) gives it a terminal of its own.
    argv = ["script", "-qec", shlex.join(["python3", str(program)]), "/dev/null"]
    tree = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{tree / 'src'}:{tree}:{os.pathsep.join(__import__('sys').path)}"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert f"{bench.repository.engine}-password-missing" in done.stdout, done.stdout


def test_no_repository(bench: EngineBench) -> None:
    kind = f"{bench.repository.engine}-no-repository"
    variable = bench.repository.variable
    for wrong in (str(bench.base / "nowhere"), str(bench.other)):
        bench.environment[variable] = wrong
        error = bench.refused()
        assert error.kind == kind
        assert wrong in error.message
    del bench.environment[variable]
    error = bench.refused()
    assert error.kind == kind
    assert "--repository" in str(error.hint)


def test_of_a_traceback_of_borgs_the_cause_is_told(borg_bench: EngineBench) -> None:
    """A folder that is no repository of its own may have a file of that name, as restic's has."""
    (borg_bench.repository.path / "config").write_bytes(b"\xdb\xff")
    error = borg_bench.refused()
    assert "UnicodeDecodeError: 'utf-8' codec can't decode byte" in error.message
    assert "Traceback" not in error.message


def test_a_repository_that_cannot_be_reached(bench: EngineBench) -> None:
    remote = {"restic": "rest:http://127.0.0.1:1/x", "borg": "ssh://nobody@127.0.0.1:1/./x"}
    bench.environment[bench.repository.variable] = remote[bench.repository.engine]
    assert bench.refused().kind == f"{bench.repository.engine}-unreachable"


def test_a_repository_that_does_not_answer(bench: EngineBench, monkeypatch: pytest.MonkeyPatch) -> None:
    from kopiatomic.engines import program

    monkeypatch.setattr(program, "TIME_LIMIT", 1.0)
    bench.fake('case "$*" in *version*) exec $REAL "$@";; esac; exec sleep 60')
    assert bench.refused().kind in {f"{bench.repository.engine}-unreachable"}


def test_borgs_repository_is_locked(borg_bench: EngineBench) -> None:
    lock = borg_bench.repository.path / "lock.exclusive"
    lock.mkdir()
    (lock / "elsewhere@1.1-0").touch()
    error = borg_bench.refused()
    assert error.kind == "borg-locked"
    assert "break-lock" in str(error.hint)


def test_restics_repository_is_locked(restic_bench: EngineBench) -> None:
    """By a check, which wants it alone, and which is held still in the midst of it."""
    repository = restic_bench.repository
    locks = repository.path / "locks"
    environment = {**os.environ, **repository.environment}
    with subprocess.Popen([repository.program, "check", "--read-data"], env=environment, stdout=-3) as checking:
        while not any("tmp" not in lock.name for lock in locks.iterdir()) and checking.poll() is None:
            time.sleep(0.001)
        checking.send_signal(signal.SIGSTOP)
        try:
            error = restic_bench.refused()
        finally:
            checking.send_signal(signal.SIGCONT)
    assert error.kind == "restic-locked"
    assert "restic unlock" in str(error.hint)


def test_a_repository_of_a_newer_format(bench: EngineBench) -> None:
    config = bench.repository.path / "config"
    if bench.repository.engine == "borg":
        config.write_text(config.read_text().replace("version = 1", "version = 3"))
    else:
        # restic's is encrypted: its words are told by a stand-in.
        bench.fake(
            'case "$1" in cat) echo "Fatal: config cannot be loaded: unsupported repository version 3" >&2; exit 1;; esac\n'
            'exec $REAL "$@"'
        )
    assert bench.refused().kind == f"{bench.repository.engine}-newer-format"


def test_borg_wants_to_know_that_it_is_the_right_one(borg_bench: EngineBench) -> None:
    """A repository that is somewhere else than before: Borg asks, and nobody is there."""
    moved = borg_bench.repository.folder / "moved"
    borg_bench.engine().check(borg_bench.plan)
    borg_bench.repository.path.rename(moved)
    borg_bench.environment["BORG_REPO"] = str(moved)
    error = borg_bench.refused()
    assert error.kind == "borg-unconfirmed"
    assert "borg info" in str(error.hint)


def test_any_other_failure(bench: EngineBench) -> None:
    bench.fake('case "$*" in *version*) exec $REAL "$@";; esac; echo strange >&2; exit 77')
    error = bench.refused()
    assert error.kind == f"{bench.repository.engine}-failed"
    assert "exit status 77" in error.message
    assert "strange" in error.message


def test_the_program_is_not_there(bench: EngineBench) -> None:
    del bench.environment[f"KOPIATOMIC_{bench.repository.engine.upper()}"]
    bench.environment["PATH"] = str(bench.one)
    assert bench.refused().kind == f"{bench.repository.engine}-missing"


@pytest.mark.parametrize("version", ["0.9.6", "2.0.0b14"])
def test_a_version_that_is_not_supported(version: str, bench: EngineBench) -> None:
    name = bench.repository.engine
    bench.fake(f'case " $* " in *[\\ -]version\\ *) echo {name} {version} compiled with x;; *) exec $REAL "$@";; esac')
    if name == "restic" and version.startswith("2"):
        bench.engine().check(bench.plan)
        return
    assert bench.refused().kind == f"{name}-unsupported"


def test_a_version_that_nobody_knows(bench: EngineBench) -> None:
    bench.fake('case " $* " in *[\\ -]version\\ *) echo dev;; *) exec $REAL "$@";; esac')
    (warning,) = bench.engine().check(bench.plan).warnings
    assert "is not known ('dev')" in warning


def test_it_does_not_claim_to_remember(bench: EngineBench) -> None:
    assert bench.engine().remembers == isinstance(bench.unasked(), Remembering)


# Options


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("restic", ["--dry-run"]),
        ("restic", ["-vn"]),
        ("restic", ["--help"]),
        ("restic", ["-qh"]),
        ("restic", ["--version"]),
        ("borg", ["--help"]),
        ("borg", ["-h"]),
        ("borg", ["--hel"]),
        *(
            ("kopia", [f"--{flag}"])
            for flag in ("help", "version", "help-man", "completion-bash", "completion-script-zsh")
        ),
        ("kopia", ["--parallel=abc"]),
        ("kopia", ["--tags=nocolon"]),
        ("kopia", ["--tags=a:b", "--tags", "nocolon"]),
        ("restic", ["--stdin"]),
        ("restic", ["--files-from=/x"]),
        ("restic", ["--skip-if-unchanged"]),
        ("restic", ["--", "/etc"]),
        ("borg", ["-sn"]),
        ("borg", ["--paths-from-stdin"]),
        ("borg", ["--content-from-command"]),
    ],
)
def test_options_that_make_it_something_else(engine: str, words: list[str]) -> None:
    with pytest.raises(UsageError):
        engines.create(None, words, engine=engine, environment={})


@pytest.mark.parametrize(
    "words",
    [
        {"command": ["tar"], "engine": "restic"},
        {"engine": None, "repository": "/x"},
        {"engine": "kopia", "repository": "/x"},
        {"engine": "restic", "archive": "x"},
        {"engine": "borg", "archive": "a/b"},
    ],
)
def test_words_that_do_not_go_together(words: dict[str, object]) -> None:
    command = words.pop("command", None)
    with pytest.raises(UsageError):
        engines.create(command, [], environment={}, **words)  # type: ignore[arg-type]


SYNTAX = flags.Syntax(
    Known(
        valued=frozenset({"--repo"}),
        switches=frozenset({"--one-file-system", "--verbose"}),
        long={"-r": "--repo", "-x": "--one-file-system", "-v": "--verbose"},
    ),
    refused={},
)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--repo", "/a"], [("--repo", "/a")]),
        (["--repo=/a", "-x"], [("--repo", "/a"), ("--one-file-system", "")]),
        (["-r", "/a"], [("--repo", "/a")]),
        (["-r/a"], [("--repo", "/a")]),
        (["-xr/a"], [("--one-file-system", ""), ("--repo", "/a")]),
        (["-xr", "-b"], [("--one-file-system", ""), ("--repo", "-b")]),
        (["-v=2"], [("--verbose", "2")]),
        (["-z", "b", "-x"], [("-z", "b"), ("--one-file-system", "")]),
        (["-z=/b", "-x"], [("-z", "/b"), ("--one-file-system", "")]),
        (["--repo"], [("--repo", "")]),
    ],
)
def test_how_options_are_read(words: list[str], found: list[tuple[str, str]]) -> None:
    assert [(given.flag, given.value) for given in flags.parse("x", words, SYNTAX)] == found


def test_a_path_behind_an_unknown_option_is_refused_whether_or_not_it_is_there() -> None:
    """Whoever has written the options may not be allowed to know."""

    def said(path: str) -> str:
        with pytest.raises(UsageError) as refused:
            flags.parse("x", ["--zz", path], SYNTAX)
        return refused.value.message.replace(path, "PATH") + str(refused.value.hint)

    assert said("/etc/passwd") == said("/no/such/file")


# Borg's files of patterns


@pytest.fixture
def patterns() -> Iterator[Path]:
    """A folder of root's: pytest's are below /tmp, where users are."""
    made = Path(tempfile.mkdtemp(prefix="kopiatomic-patterns-", dir="/run"))
    yield made
    shutil.rmtree(made)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="it is about what root has Borg read")


@as_root
def test_a_file_of_patterns_may_not_add_sources_and_is_not_quoted(borg_bench: EngineBench, patterns: Path) -> None:
    (patterns / "shadow").write_text("- *.o\nroot:hunter2zz\n")
    error = borg_bench.refused(f"--patterns-from={patterns}/shadow")
    assert f"line 2 of {patterns}/shadow has Borg back up more" in error.message
    assert "hunter2zz" not in error.message + str(error.hint)
    (patterns / "indented").write_text("+ /home\n  R /etc\n")
    assert "line 2 of" in borg_bench.refused("--patterns-fro", str(patterns / "indented")).message
    assert "cannot be read: No such file" in borg_bench.refused("--patterns-from", str(patterns / "none")).message
    (patterns / "plain").write_text("# R /etc is no line\n+ /home\n- *.o\n")
    assert borg_bench.engine("--patterns-from", str(patterns / "plain")).check(borg_bench.plan).warnings == ()


@as_root
@pytest.mark.parametrize("how", ["file", "folder", "link"])
def test_nor_be_one_that_a_user_can_change_until_borg_reads_it(
    borg_bench: EngineBench, patterns: Path, how: str
) -> None:
    path = patterns / "folder" / "patterns"
    path.parent.mkdir()
    path.write_text("- *.o\n")
    os.chown(path.parent if how == "folder" else path, 12345, 12345)
    if how == "link":
        (patterns / "link").symlink_to(path)
        path = patterns / "link"
    error = borg_bench.refused(f"--patterns-from={path}")
    assert (error.kind, "user 12345 can" in error.message) == ("not-roots-alone", True), error.message


@as_root
@pytest.mark.parametrize("what", ["pipe", "directory", "large"])
def test_what_is_no_file_of_patterns_holds_nothing_up(borg_bench: EngineBench, patterns: Path, what: str) -> None:
    path = patterns / "patterns"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 5 << 20)
    wanted = "it is larger than 4194304 bytes" if what == "large" else "it is no plain file"
    assert wanted in borg_bench.refused(f"--patterns-from={path}").message


def test_nothing_that_an_option_names_is_looked_at_before_the_check(tmp_path: Path) -> None:
    """A profile is checked offline without a look at anything but the profile."""
    for words in (["--patterns-from", str(tmp_path / "none")], ["--exclude-from", str(tmp_path / "none")]):
        engines.create(None, words, engine="borg", environment={"HOME": "/"})


def test_values_that_a_backup_would_not_take_are_refused(bench: EngineBench, tmp_path: Path) -> None:
    wrong = {
        "restic": ["--time=x", "--time=2020-01-01", "--exclude-file=/nonexistent", "--iexclude-file=/nonexistent"],
        "borg": ["--exclude-from=/nonexistent", "--compression=zz"],
    }
    for words in wrong[bench.repository.engine]:
        assert bench.refused(words).kind == "engine-option", words
    file = tmp_path / "exclusions"
    file.write_text("*.o\n")
    flag = {"restic": "--exclude-file", "borg": "--exclude-from"}[bench.repository.engine]
    assert bench.engine(f"{flag}={file}").check(bench.plan).warnings == ()


@pytest.mark.parametrize("flag", ["--debug-profile", "--debug-prof"])
def test_a_check_of_borgs_options_writes_nothing(borg_bench: EngineBench, tmp_path: Path, flag: str) -> None:
    borg_bench.engine(f"{flag}={tmp_path}/written", "--show-rc").check(borg_bench.plan)
    assert not (tmp_path / "written").exists()


def test_mounts_that_would_be_left_out_are_refused(bench: EngineBench) -> None:
    error = bench.refused("-x")
    assert error.kind == "one-file-system"
    assert str(bench.inner) in error.message
    bench.engine("-x").check(bench.plan_of(bench.other))


def test_a_time_of_the_users_is_warned_of(bench: EngineBench) -> None:
    words = {"restic": "--time=2020-01-01 00:00:00", "borg": "--timestamp=2020-01-01T00:00:00"}
    (warning,) = bench.engine(words[bench.repository.engine]).check(bench.plan).warnings
    assert "not the instant" in warning


# Secrets


@pytest.mark.parametrize("words", [["-r", "{}"], ["--repo={}"], []])
def test_a_password_in_the_repositorys_name_is_in_no_argv(words: list[str], restic_bench: EngineBench) -> None:
    url = "rest:https://ann:geheim@backup.example/ann"
    engine = restic_bench.engine(*(w.format(url) for w in words), repository=None if words else url)
    assert list(engine.secrets) == ["geheim"]
    assert "geheim" not in " ".join(engine.describe(restic_bench.plan))
    restic_bench.fake('echo "$RESTIC_REPOSITORY" > $0.seen; echo "restic 0.14.0"; [ "$1" = version ]')
    restic_bench.environment["RESTIC_REPOSITORY_FILE"] = "/other"
    with pytest.raises(KopiatomicError):
        restic_bench.engine("-r", url).check(restic_bench.plan)
    assert (restic_bench.base / "fake.seen").read_text() == url + "\n"


@pytest.mark.parametrize("words", [["--rsh", "{}"], ["--rsh={}"]])
def test_a_password_in_borgs_remote_shell_is_in_no_argv(words: list[str], borg_bench: EngineBench) -> None:
    shell = "sshpass -p hunter2zz ssh"
    options = [word.format(shell) for word in words]
    engine = borg_bench.engine(*options)
    assert "hunter2zz" not in " ".join(engine.describe(borg_bench.plan))
    borg_bench.fake('echo "$*" "in $BORG_RSH" >> $0.seen; exec $REAL "$@"')
    borg_bench.environment["BORG_RSH"] = "another"
    Driven(borg_bench.engine(*options).check(borg_bench.plan).backup(make_job(borg_bench.plan)), borg_bench)
    seen = [line.partition(" in ") for line in (borg_bench.base / "fake.seen").read_text().splitlines()]
    assert {words.split()[0] for words, _, _ in seen} >= {"--version", "info", "create"}
    assert [words for words, _, _ in seen if "hunter2zz" in words or "rsh" in words] == []
    assert {variable for _, _, variable in seen} == {shell}


def test_a_password_in_a_url_is_masked() -> None:
    line = ["kopiatomic", "--repository", "rest:https://ann:geheim@backup.example/ann", "x"]
    hidden = Secrets(line, {}).command_line(line)
    assert "geheim" not in hidden
    assert f"https://ann:{MASK}@backup.example/ann" in hidden
    assert Secrets(line, {}).values == ["geheim"]
    assert Secrets(["ssh://ann@host:22/./x"], {}).values == []


# What it writes itself


def owned(bench: EngineBench, *options: str) -> dict[str, tuple[str, bool]]:
    return {o.what: (o.path, o.skipped) for o in bench.unasked(*options).written(bench.plan)}


def test_restics_own_folders(restic_bench: EngineBench) -> None:
    home = restic_bench.environment["HOME"]
    assert owned(restic_bench)["restic's cache"] == (restic_bench.environment["RESTIC_CACHE_DIR"], True)
    assert owned(restic_bench, "--cache-dir=/c")["restic's cache"] == ("/c", True)
    assert "restic's cache" not in owned(restic_bench, "--no-cache")
    del restic_bench.environment["RESTIC_CACHE_DIR"]
    assert owned(restic_bench)["restic's cache"] == (f"{home}/.cache/restic", True)
    restic_bench.environment["XDG_CACHE_HOME"] = "/xdg"
    assert owned(restic_bench)["restic's cache"] == ("/xdg/restic", True)


def test_borgs_own_folders(borg_bench: EngineBench) -> None:
    base = borg_bench.environment.pop("BORG_BASE_DIR")
    home = borg_bench.environment["HOME"]
    default = {"borg's cache": (f"{home}/.cache/borg", True)}
    assert owned(borg_bench) == default | {"borg's security folder": (f"{home}/.config/borg/security", True)}
    borg_bench.environment |= {"XDG_CACHE_HOME": "/cache", "XDG_CONFIG_HOME": "/config"}
    assert [path for path, _ in owned(borg_bench).values()] == ["/cache/borg", "/config/borg/security"]
    borg_bench.environment["BORG_BASE_DIR"] = base
    assert [path for path, _ in owned(borg_bench).values()] == [f"{base}/.cache/borg", f"{base}/.config/borg/security"]
    borg_bench.environment |= {"BORG_CACHE_DIR": "/1", "BORG_CONFIG_DIR": "/2"}
    assert [path for path, _ in owned(borg_bench).values()] == ["/1", "/2/security"]
    borg_bench.environment["BORG_SECURITY_DIR"] = "/3"
    assert [path for path, _ in owned(borg_bench).values()] == ["/1", "/3"]


def test_borg_itself_says_the_same(borg_bench: EngineBench) -> None:
    import json

    said = json.loads(borg_bench.repository("info", "--json").stdout)
    folders = dict(owned(borg_bench))
    assert source_of(said["cache"]["path"], replace(borg_bench.plan_of(Path(folders["borg's cache"][0]))))
    assert said["security_dir"].startswith(folders["borg's security folder"][0] + "/")


@pytest.mark.parametrize("with_scheme", [False, True])
def test_a_repository_in_a_source_has_to_be_left_out(with_scheme: bool, bench: EngineBench) -> None:
    inside = bench.one / "repository"
    scheme = {"restic": "local:", "borg": "file://"}[bench.repository.engine] if with_scheme else ""
    bench.environment[bench.repository.variable] = scheme + str(inside)
    what = f"{bench.repository.engine}'s repository"
    assert owned(bench)[what] == (str(inside), False)
    assert owned(bench, f"--exclude={inside}")[what] == (str(inside), True)
    assert owned(bench, "-e", f"{inside}/*")[what] == (str(inside), True)
    assert owned(bench, f"--exclude={inside}2")[what] == (str(inside), False)


@pytest.mark.parametrize("remote", ["sftp:host:/a", "rest:http://h/", "s3:x", "ssh://h/a", "user@host:a", "rclone:a:b"])
def test_a_repository_elsewhere_is_no_folder(remote: str, bench: EngineBench) -> None:
    bench.environment[bench.repository.variable] = remote
    assert f"{bench.repository.engine}'s repository" not in owned(bench)


def test_a_repository_in_the_selection_merged(repository: Restic | Borg, tmp_path: Path) -> None:
    bench = EngineBench(repository, tmp_path)
    implied, named = (Plan("/view", (holding(tmp_path, "/a", named=named),)) for named in (False, True))
    assert bench.refused(plan=implied).kind == "repository-in-selection"
    warnings = bench.engine().check(named).warnings
    assert any("grows with every run" in warning for warning in warnings)
    assert any("its cache" in warning for warning in warnings)
