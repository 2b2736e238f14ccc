"""kopiatomic exec: any command inside the frozen instant, with the caller's own streams."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kopiatomic.state.records import Records
from tests.btrfs.conftest import Family, Gate, children, wait_for
from tests.support.filesystems import Btrfs
from tests.support.parts import share
from tests.support.programs import Completed, Kopiatomic, command

pytestmark = pytest.mark.in_part(24)

Leftovers = Callable[..., list[str]]
Exec = Callable[..., Completed]
GIGABYTE = share(1 << 30, 1 << 28)


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    data = btrfs.subvolume("data")
    (data / "file").write_text("frozen\n")
    return data


@pytest.fixture
def execute(kopiatomic: Kopiatomic, data: Path, tmp_path: Path, leftovers: Leftovers) -> Exec:
    """Run a command in the frozen instant of `data`; nothing of it may be left."""

    def execute(*argv: str | Path, options: tuple[str | Path, ...] = (), cwd: Path = tmp_path, **env: str) -> Completed:
        words = kopiatomic.argv("exec", *options, data, "--", *argv)
        ended = command(*words, env={**kopiatomic.environment, **env}, cwd=cwd, check=False)
        assert leftovers(Path("/frozen")) == [], str(ended)
        return ended

    return execute


# Streams


def test_a_gigabyte_passes_both_ways_as_it_is(kopiatomic: Kopiatomic, data: Path) -> None:
    """No byte is looked at on the way; what we must say is on stderr, and that is nothing."""
    block = os.urandom(1 << 20)
    expected = hashlib.sha256()
    read = hashlib.sha256()
    argv = kopiatomic.argv("exec", data, "--", "cat")
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=kopiatomic.environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        feeder = os.fork()
        if feeder == 0:
            process.stdout.close()
            for _ in range(GIGABYTE >> 20):
                process.stdin.write(block)
            process.stdin.flush()
            os._exit(0)
        process.stdin.close()
        while piece := process.stdout.read(1 << 20):
            read.update(piece)
        os.waitpid(feeder, 0)
        for _ in range(GIGABYTE >> 20):
            expected.update(block)
        assert process.wait(30) == 0
        assert process.stderr.read() == b""
    assert read.hexdigest() == expected.hexdigest()


def test_who_is_at_the_other_end_hears_when_the_command_closes_it(
    kopiatomic: Kopiatomic, data: Path, gate: Gate
) -> None:
    """Not only when all is removed: no process of ours keeps the caller's pipes open."""
    script = f"exec <&- >&-; {gate.command}"
    argv = kopiatomic.argv("exec", data, "--", "sh", "-c", script)
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=kopiatomic.environment, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        gate.wait()
        assert process.stdout.read() == b""
        with pytest.raises(BrokenPipeError):
            process.stdin.write(b"x")
        assert process.poll() is None
        gate.let_go()
        assert process.wait(20) == 0


def test_stderr_is_the_commands_and_ours(execute: Exec) -> None:
    ended = execute("sh", "-c", "printf one; printf two >&2")
    assert (ended.stdout, ended.stderr) == ("one", "two")


def test_verbose_says_more_on_stderr_only(execute: Exec) -> None:
    ended = execute("printf", "one", options=("--verbose",))
    assert ended.stdout == "one"
    assert "taking 1 snapshot(s)" in ended.stderr


def test_no_descriptor_but_three_reaches_the_command(kopiatomic: Kopiatomic, data: Path) -> None:
    foreign = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(foreign, True)
    argv = kopiatomic.argv("exec", data, "--", "sh", "-c", "ls /proc/$$/fd")
    ended = subprocess.run(
        argv, env=kopiatomic.environment, pass_fds=[foreign], capture_output=True, text=True, check=True
    )
    os.close(foreign)
    # 10 is the shell's own.
    assert set(ended.stdout.split()) - {"10", "255"} == {"0", "1", "2"}


# What it ends with


@pytest.mark.parametrize(
    ("script", "code"), [("true", 0), ("exit 3", 3), ("exit 75", 75), ("kill -9 $$", 137), ("kill -9 0", 137)]
)
def test_the_exit_code_is_the_commands(script: str, code: int, execute: Exec) -> None:
    ended = execute("sh", "-c", script)
    assert (ended.returncode, ended.stderr) == (code, "")


@pytest.mark.parametrize(("argv", "code"), [(["no-such-program"], 127), (["/etc/passwd"], 126), (["/etc"], 126)])
def test_what_cannot_be_started_is_said_as_a_shell_does(argv: list[str], code: int, execute: Exec) -> None:
    ended = execute(*argv)
    assert ended.returncode == code
    assert f"{argv[0]} cannot be started" in ended.stderr


def test_a_script_without_its_interpreter_is_not_said_to_be_missing(execute: Exec, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/shell\n")
    script.chmod(0o755)
    ended = execute(script)
    assert ended.returncode == 127
    assert f"{script} cannot be started: what it names as its interpreter is missing" in ended.stderr
    assert "#!" in ended.stderr.partition("\n")[2]


def test_without_the_capability_the_user_is_what_cannot_be(kopiatomic: Kopiatomic, data: Path) -> None:
    words = kopiatomic.argv("exec", "--user", "nobody", data, "--", "true")
    bounded = ("setpriv", "--bounding-set", "-setuid", "--inh-caps", "-setuid")
    ended = command(*bounded, *words, env=kopiatomic.environment, check=False)
    assert ended.returncode == 1
    assert "true cannot be started as another user: Operation not permitted" in ended.stderr
    assert "CAP_SETUID" in ended.stderr


def test_jobs_in_the_background_end_with_it_and_that_is_said(execute: Exec) -> None:
    ended = execute("sh", "-c", "sleep 100 & setsid sleep 100 & exit 5")
    assert ended.returncode == 5
    assert "2 processes that sh left running ended with it" in ended.stderr


def test_a_snapshot_that_was_pulled_away_is_a_failure_whatever_the_command_said(
    kopiatomic: Kopiatomic, data: Path, gate: Gate, btrfs: Btrfs, leftovers: Leftovers
) -> None:
    with kopiatomic.started("exec", data, "--", *gate.command.split()) as process:
        gate.wait()
        (snapshot,) = (name for name in btrfs.snapshots() if "kopiatomic_" in name)
        command("btrfs", "property", "set", "-ts", btrfs.mountpoint / snapshot, "ro", "false")
        command("btrfs", "subvolume", "delete", btrfs.mountpoint / snapshot)
        gate.let_go()
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1, errors
    assert "saw is not the frozen view" in errors
    assert leftovers() == []


@pytest.mark.parametrize(("code", "expected"), [(0, 4), (7, 7)])
def test_what_cannot_be_removed_is_4_after_a_0_only(
    code: int, expected: int, kopiatomic: Kopiatomic, data: Path, make_gate: Callable[[str], Gate], tmp_path: Path
) -> None:
    """Seen from outside the view's directory is empty: who puts something into it keeps us from removing it."""
    view, gate = tmp_path / "view", make_gate(f"exit {code}")
    options = ("--layout", "merged", "--mount-root", view)
    with kopiatomic.started("exec", *options, data, "--", *gate.command.split()) as process:
        gate.wait()
        (view / "foreign").touch()
        gate.let_go()
        _, errors = process.communicate(timeout=20)
    assert process.returncode == expected, errors
    assert "left behind" in errors
    (view / "foreign").unlink()
    recovered = kopiatomic("recover")
    assert recovered.returncode == 0, f"{errors}\n{recovered}"
    assert not view.exists()


def test_what_had_to_be_left_out_is_3_after_a_0_only(kopiatomic: Kopiatomic, data: Path, btrfs: Btrfs) -> None:
    """A dataset that is covered by another mount would be missed."""
    nested = btrfs.subvolume("data/covered")
    command("mount", "-t", "tmpfs", "none", nested)
    try:
        for code, expected in ((0, 3), (6, 6)):
            ended = kopiatomic("exec", "-r", data, "--", "sh", "-c", f"exit {code}")
            assert ended.returncode == expected, str(ended)
            assert "not complete" in ended.stderr
    finally:
        command("umount", nested)


def test_where_nothing_could_be_frozen_our_codes_hold(kopiatomic: Kopiatomic) -> None:
    assert kopiatomic("exec", "/nonexistent", "--", "true").returncode == 1


@pytest.mark.parametrize("words", [[], ["--"], ["--", ""]])
def test_without_a_command_it_is_a_usage_error(words: list[str], kopiatomic: Kopiatomic, data: Path) -> None:
    ended = kopiatomic("exec", data, *words)
    assert ended.returncode == 2
    assert "exec needs a command" in ended.stderr
    assert not Path(kopiatomic.environment["KOPIATOMIC_STATE_DIR"]).exists()


def test_options_behind_the_dashes_are_the_commands(execute: Exec) -> None:
    assert execute("echo", "-r", "--", "--exclude").stdout == "-r -- --exclude\n"


@pytest.mark.parametrize("option", ["-c", "-o", "--engine", "--writable", "--json", "--wait", "-p"])
def test_what_is_a_backups_is_not_offered(option: str, kopiatomic: Kopiatomic, data: Path) -> None:
    assert kopiatomic("exec", option, "x", data, "--", "true").returncode == 2


# Signals


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_command(
    signum: signal.Signals, kopiatomic: Kopiatomic, data: Path, gate: Gate, leftovers: Leftovers
) -> None:
    with kopiatomic.started("exec", data, "--", *gate.command.split()) as process:
        gate.wait()
        process.send_signal(signum)
        process.communicate(timeout=20)
    assert process.returncode == 128 + signum
    assert leftovers() == []


def test_one_that_ignores_it_is_killed(
    kopiatomic: Kopiatomic, data: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    started = tmp_path / "started"
    script = f"trap '' TERM; touch {started}; while :; do sleep 0.05; done"
    with kopiatomic.started("exec", "--stop-timeout", "0.5", data, "--", "sh", "-c", script) as process:
        wait_for(started.exists, "the start")
        process.terminate()
        process.communicate(timeout=10)
    assert process.returncode == 143
    assert leftovers() == []


def test_a_time_limit_ends_it(execute: Exec) -> None:
    began = time.monotonic()
    ended = execute("sleep", "60", options=("--timeout", "1"))
    assert ended.returncode == 1
    assert "the time limit of 1 s" in ended.stderr
    assert time.monotonic() - began < 20


def test_without_a_terminal_ctrl_z_stops_and_resumes_it(kopiatomic: Kopiatomic, data: Path, gate: Gate) -> None:
    with kopiatomic.started("exec", data, "--", *gate.command.split(), group=0) as process:
        gate.wait()
        inside = Family.of(process.pid).engine
        process.send_signal(signal.SIGTSTP)
        # A shell whose child is stopped while it starts a program waits in the kernel for that.
        wait_for(lambda: state(process.pid) == "T" and state(inside) in {"T", "D"}, "the stop")
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: state(process.pid) != "T" and state(inside) == "S", "the resumption")
        gate.let_go()
        assert process.wait(20) == 0


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


@pytest.mark.parametrize("victim", ["main", "keeper", "launcher", "engine"])
@pytest.mark.parametrize("user", [(), ("--user", "nobody")], ids=["as root", "as a user"])
def test_the_death_of_any_one_process_leaves_nothing(
    victim: str,
    user: tuple[str, ...],
    kopiatomic: Kopiatomic,
    data: Path,
    leftovers: Leftovers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command has children; a user's have no descriptor of ours."""
    monkeypatch.chdir("/")
    with kopiatomic.started("exec", *user, data, "--", "sh", "-c", "sleep 100 & sleep 100; true") as process:
        family = wait_for(lambda: with_children(process.pid, 2), "the start")
        os.kill(getattr(family, victim), signal.SIGKILL)
        process.communicate(timeout=30)
    assert process.returncode == {"main": -9, "engine": 137}.get(victim, 1)
    assert leftovers(within=10) == []


def with_children(main: int, count: int) -> Family | None:
    """The processes of a run, once its command has so many children."""
    try:
        family = Family.of(main)
        return family if len(children(family.engine)) == count else None
    except (ValueError, FileNotFoundError):
        return None


# Where it runs


def test_the_files_are_at_their_true_paths_and_the_live_ones_go_on_unseen(
    kopiatomic: Kopiatomic, data: Path, make_gate: Callable[[str], Gate], execute: Exec
) -> None:
    table = Path("/proc/self/mountinfo").read_text()
    gate = make_gate(f"cat {data}/file {data}/gone; ls {data}")
    (data / "gone").write_text("since gone\n")
    with kopiatomic.started("exec", data, "--", *gate.command.split()) as process:
        gate.wait()
        assert Path("/proc/self/mountinfo").read_text() == table
        (data / "file").write_text("live\n")
        (data / "gone").unlink()
        (data / "new").touch()
        # Another one beside it, of a later instant.
        assert execute_beside(kopiatomic, data) == "live\n"
        backup = kopiatomic("--layout", "in-place", "-c", "true", data)
        assert backup.returncode == 0, str(backup)
        gate.let_go()
        assert process.communicate(timeout=20)[0] == "frozen\nsince gone\nfile\ngone\n"
        assert process.returncode == 0
    assert (data / "file").read_text() == "live\n"


def execute_beside(kopiatomic: Kopiatomic, data: Path) -> str:
    ended = kopiatomic("exec", data, "--", "cat", data / "file")
    assert ended.returncode == 0, str(ended)
    return ended.stdout


def test_merged_shows_frozen_and_live_side_by_side(kopiatomic: Kopiatomic, data: Path, gate: Gate) -> None:
    words = ("exec", "--layout", "merged", data, "--")
    with kopiatomic.started(*words, *gate.command.split()) as process:
        gate.wait()
        second = kopiatomic(*words, "true")
        assert second.returncode == 75
        elsewhere = kopiatomic("exec", "--layout", "merged", "--mount-root", gate.folder / "view", data, "--", "true")
        assert elsewhere.returncode == 0, str(elsewhere)
        gate.let_go()
        assert process.wait(20) == 0
    ended = kopiatomic(*words, "diff", "-r", f"/frozen{data}", data)
    assert (ended.returncode, ended.stdout) == (0, "")


@pytest.mark.parametrize("through_a_link", [False, True])
def test_relative_paths_are_frozen(through_a_link: bool, execute: Exec, data: Path, tmp_path: Path) -> None:
    (data / "here").mkdir()
    (data / "here" / "file").write_text("frozen\n")
    (tmp_path / "link").symlink_to(data)
    cwd = (tmp_path / "link" if through_a_link else data) / "here"
    ended = execute("sh", "-c", "cat file $PWD/file; touch x || touch $PWD/x || echo no", cwd=cwd, PWD=str(cwd))
    assert ended.stdout == "frozen\nfrozen\nno\n"


def test_a_working_directory_that_is_not_there_is_an_error(execute: Exec, data: Path, btrfs: Btrfs) -> None:
    """A nested subvolume that is not taken is an empty directory in the frozen tree."""
    inside = btrfs.subvolume("data/nested") / "inside"
    inside.mkdir()
    ended = execute("true", cwd=inside)
    assert ended.returncode == 1
    assert f"the working directory {inside} cannot be entered" in ended.stderr


def test_a_working_directory_that_was_removed_is_an_error(kopiatomic: Kopiatomic, data: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    argv = ["sh", "-c", f'cd {gone}; rmdir {gone}; exec "$@"', "sh", *kopiatomic.argv("exec", data, "--", "true")]
    ended = command(*argv, env=kopiatomic.environment, check=False)
    assert ended.returncode == 1
    assert "the working directory (deleted) cannot be entered" in ended.stderr


def test_its_environment_is_the_callers_and_says_which_instant(
    execute: Exec, data: Path, kopiatomic: Kopiatomic
) -> None:
    before = time.time()
    ended = execute("env", MINE="is kept")
    found = dict(line.split("=", 1) for line in ended.stdout.splitlines())
    assert found["MINE"] == "is kept"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", found["KOPIATOMIC_INSTANT"])
    assert found["KOPIATOMIC_INSTANT"][:16] >= time.strftime("%Y-%m-%dT%H:%M", time.gmtime(before))
    assert found["KOPIATOMIC_SOURCES"] == str(data)
    (record,) = Records(kopiatomic.environment["KOPIATOMIC_STATE_DIR"]).run(found["KOPIATOMIC_RUN_ID"])
    assert record.document is not None
    assert record.document["instant"] == found["KOPIATOMIC_INSTANT"]


def test_the_history_says_what_it_was(execute: Exec, kopiatomic: Kopiatomic, data: Path) -> None:
    execute("sh", "-c", "exit 3", options=("--exclude", "/none"))
    listed = kopiatomic("history").stdout
    assert "ran (3)" in listed
    run_id = listed.splitlines()[1].split()[0]
    shown = kopiatomic("history", run_id).stdout
    assert "Ran:      sh -c 'exit 3' (exec), exit status 3" in shown
    assert f"Root:     exec: --exclude=/none {data}" in shown
    assert "-- sh -c 'exit 3'" in shown


# Another user


def test_a_user_is_wholly_that_user(execute: Exec) -> None:
    script = "id -un; id -u; id -g; id -G; grep -E '^(Cap|NoNew)' /proc/self/status; ls /proc/$$/fd; env"
    ended = execute("sh", "-c", script, options=("--user", "games"), cwd=Path("/"))
    account = pwd.getpwnam("games")
    lines = ended.stdout.splitlines()
    groups = os.getgrouplist("games", account.pw_gid)
    assert lines[:4] == ["games", str(account.pw_uid), str(account.pw_gid), " ".join(map(str, groups))]
    assert [line.split()[1] for line in lines[4:10]] == ["0" * 16] * 5 + ["1"]
    assert {"0", "1", "2"} == set(lines[10 : lines.index(next(line for line in lines if "=" in line))]) - {"10"}
    assert f"HOME={account.pw_dir}" in lines
    assert {"USER=games", "LOGNAME=games", f"SHELL={account.pw_shell}"} <= set(lines)


def test_a_user_by_number_sees_what_that_user_may_see(execute: Exec, data: Path) -> None:
    (data / "secret").write_text("x")
    (data / "secret").chmod(0o600)
    script = f"cat {data}/file; cat {data}/secret || echo no"
    for folder in data.parents:
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    for layout in ("in-place", "merged"):
        top = "/frozen" if layout == "merged" else ""
        ended = execute(
            "sh",
            "-c",
            script.replace(str(data), f"{top}{data}"),
            options=("--user", "65534", "--layout", layout),
            cwd=Path("/"),
        )
        assert ended.stdout == "frozen\nno\n", str(ended)


def test_a_user_reads_the_lists_of_the_run(execute: Exec, data: Path) -> None:
    ended = execute("sh", "-c", "cat $KOPIATOMIC_DATASETS_FILE", options=("--user", "games"), cwd=Path("/"))
    assert (ended.returncode, ended.stdout) == (0, f"{data}\0"), str(ended)


@pytest.mark.parametrize("user", ["root", "games"])
def test_where_the_usual_directory_for_temporary_files_is_frozen_there_is_another(
    user: str, execute: Exec, data: Path
) -> None:
    usual = data / "tmp"
    usual.mkdir()
    usual.chmod(0o1777)
    script = 'stat -c "%a %U" $TMPDIR; stat -f -c %T $TMPDIR; ls -A $TMPDIR; mktemp > /dev/null && echo $TMPDIR'
    words = ("--user", user, "--layout", "in-place")
    ended = execute("sh", "-c", script, options=words, cwd=Path("/"), TMPDIR=str(usual))
    *said, path = ended.stdout.splitlines()
    assert said == [f"700 {user}", "tmpfs"], str(ended)
    assert not Path(path).exists()
    assert [*usual.iterdir()] == []


KEYS = """
import ctypes, os, sys
KEYCTL, ADD_KEY, JOIN, READ = {numbers}
libc = ctypes.CDLL(None)
if sys.argv[1] == "read":
    room = ctypes.create_string_buffer(64)
    print(room.value.decode() if libc.syscall(KEYCTL, READ, int(sys.argv[2]), room, 64) > 0 else "refused")
else:
    libc.syscall(KEYCTL, JOIN, None)
    key = libc.syscall(ADD_KEY, b"user", b"of the test", b"of root", 7, -3)
    os.execvp(sys.argv[2], [*sys.argv[2:], str(key)])
"""


def test_a_user_does_not_have_the_callers_keys(kopiatomic: Kopiatomic, data: Path, tmp_path: Path) -> None:
    """The caller's session keyring holds what a filesystem or a network mount is unlocked with."""
    machine = os.uname().machine
    if machine not in {"x86_64", "aarch64"}:
        pytest.skip("the numbers of the calls are not known to the test")
    numbers = (250, 248, 1, 11) if machine == "x86_64" else (219, 217, 1, 11)
    script = KEYS.replace("{numbers}", str(numbers))
    for user, shown in ((("--user", "games"), "refused\n"), ((), "of root\n")):
        argv = kopiatomic.argv("exec", *user, data, "--", "/usr/bin/python3", "-c", script, "read")
        ended = command(
            sys.executable, "-c", script, "run", *argv, env=kopiatomic.environment, cwd=Path("/"), check=False
        )
        assert ended.stdout == shown, str(ended)


@pytest.mark.parametrize("name", ["no-such-user", "4000000", "99999999999999999999", ""])
def test_an_unknown_user_is_refused_before_anything_is_made(name: str, kopiatomic: Kopiatomic, data: Path) -> None:
    ended = kopiatomic("exec", "--user", name, data, "--", "true")
    assert ended.returncode == 1
    assert "there is no such user" in ended.stderr
    assert not Path(kopiatomic.environment["KOPIATOMIC_STATE_DIR"]).exists()


# What it is for


def test_tar_and_what_it_gives_back(kopiatomic: Kopiatomic, data: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar"
    with archive.open("wb") as file:
        subprocess.run(
            kopiatomic.argv("exec", data, "--", "tar", "-C", data, "-cf", "-", "."),
            env=kopiatomic.environment,
            stdout=file,
            check=True,
        )
    command("tar", "-C", tmp_path, "-xf", archive)
    assert (tmp_path / "file").read_text() == "frozen\n"


def test_rsync(execute: Exec, data: Path, tmp_path: Path) -> None:
    assert execute("rsync", "-a", f"{data}/", f"{tmp_path}/copy/").returncode == 0
    assert (tmp_path / "copy" / "file").read_text() == "frozen\n"


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="sqlite3 is not installed")
@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_a_database_is_dumped_while_the_live_one_is_written(
    journal: str, execute: Exec, data: Path, tmp_path: Path
) -> None:
    """As the README has it: copied first, since what is frozen may need to be recovered, as after a power cut."""
    database, copies = data / "app.db", tmp_path / "copies"
    copies.mkdir()
    command("sqlite3", database, f"PRAGMA journal_mode={journal}; CREATE TABLE t (n INTEGER)")
    # Every number is there twice.
    writer = (
        "import sqlite3, sys, time\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    db.executescript(f'BEGIN; INSERT INTO t VALUES ({n}); INSERT INTO t VALUES ({n}); COMMIT')\n"
        # Who reads must have a chance.
        "    time.sleep(0.002)\n"
    )
    copy = f'd=$(mktemp -d -p {copies}) && cp {database}* "$d" && sqlite3 "$d"/app.db .dump; rm -r "$d"'
    rows_of = "SELECT count(*) FROM t"
    with subprocess.Popen([sys.executable, "-c", writer, str(database)]) as process:
        try:
            query = ("sqlite3", "-cmd", ".timeout 5000", database, rows_of)
            wait_for(lambda: int(command(*query, check=False).stdout or 0) > 100, "some rows")
            ended = execute("sh", "-c", copy)
            after = int(command(*query).stdout)
        finally:
            process.kill()
    assert ended.returncode == 0, str(ended)
    rows = [int(line.split("(")[1].split(")")[0]) for line in ended.stdout.splitlines() if line.startswith("INSERT")]
    assert 100 < len(rows) <= after
    assert rows == [n for n in range(1, len(rows) // 2 + 1) for _ in range(2)]
