"""Hooks are the administrator's shell lines: bounded in time, told what happens, never told a password."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kopiatomic.errors import Interrupted, KopiatomicError, UsageError
from kopiatomic.hooks import shell
from kopiatomic.model.plan import Dataset, Plan, PlannedPath, Taken
from kopiatomic.secrets.masking import Secrets
from kopiatomic.state import lists, locks
from kopiatomic.system import signals
from tests.support.moments import ends


def run(line: str, timeout: float = 10, **told: str) -> None:
    shell.run(line, "-p", told, timeout, Secrets([], {}))


def refused(line: str, timeout: float = 10) -> KopiatomicError:
    with pytest.raises(KopiatomicError) as caught:
        run(line, timeout)
    return caught.value


def test_a_hook_is_a_shell_line(tmp_path: Path) -> None:
    run(f"cd {tmp_path} && echo $TOLD > 'a b' || exit 1", TOLD="this")
    assert (tmp_path / "a b").read_text() == "this\n"


@pytest.mark.parametrize(
    ("line", "how"), [("exit 3", "exit status 3"), ("kill -9 $$", r"killed by SIGKILL (9)"), ("nosuchprogram", "127")]
)
def test_a_hook_that_fails_is_named_with_how_it_ended(line: str, how: str) -> None:
    error = refused(line)
    assert error.kind == "hook-failed"
    assert "the hook -p failed" in error.message
    assert how in error.message
    assert line in error.message


def test_a_hook_of_several_lines_is_told_in_one() -> None:
    assert "\n" not in refused("true\n\033[2J false\nexit 1").message


def test_a_hook_that_hangs_is_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    error = refused(f"echo $$ > {tmp_path}/pid; sleep 60; true", timeout=0.3)
    assert time.monotonic() - began < 5
    assert error.kind == "hook-timeout"
    assert "within 0.3 s" in error.message
    assert "--hook-timeout" in (error.hint or "")
    assert ends(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    "start",
    [
        "sleep 60 & echo $! > child",
        "setsid sleep 60 >/dev/null 2>&1 & echo $! > child",
        "(setsid sh -c 'sleep 60 & echo $! > inner; echo $$ > outer; wait' >&- 2>&- &)",
    ],
    ids=["background", "own session", "daemon"],
)
def test_what_a_hook_leaves_running_ends_with_it(start: str, tmp_path: Path) -> None:
    run(f"cd {tmp_path}; {start}; sleep 0.3")
    left = [int(written.read_text()) for written in tmp_path.iterdir()]
    assert left
    assert all(ends(pid) for pid in left)


def test_processes_that_were_there_before_are_left_alone() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        run("true")
        assert other.poll() is None
        other.kill()


def test_passwords_are_not_in_a_hooks_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KOPIA_PASSWORD", "BORG_PASSPHRASE", "B2_ACCOUNT_KEY", "AZURE_ACCOUNT_SAS", "RCLONE_CONFIG_PASS"):
        monkeypatch.setenv(name, "hidden-value")
    monkeypatch.setenv("BORG_REPO", "ssh://me:hidden-value@host/repo")
    monkeypatch.setenv("SUDO_COMMAND", "kopiatomic -o --password=hidden-value /")
    monkeypatch.setenv("KEPT", "kept-value")
    run(f"env > {tmp_path}/env")
    told = (tmp_path / "env").read_text()
    assert "hidden-value" not in told
    assert "KEPT=kept-value" in told


def plan_of(*names: str) -> Plan:
    taken = [Taken(Dataset("zfs", name, "tank", PlannedPath("/x")), "/x", named=True) for name in names]
    return Plan("/kopia", tuple(taken))


def test_a_hook_is_told_of_the_run(lock_directory: Path) -> None:
    assert shell.variables("ID", plan_of("tank/a", "tank/with space")) == {
        "KOPIATOMIC_RUN_ID": "ID",
        "KOPIATOMIC_ROOT": "/kopia",
        "KOPIATOMIC_SOURCES": "/kopia",
        "KOPIATOMIC_SOURCES_FILE": f"{lock_directory}-lists/ID.sources",
        "KOPIATOMIC_DATASETS": "tank/a\ntank/with space",
        "KOPIATOMIC_DATASETS_FILE": f"{lock_directory}-lists/ID.datasets",
    }


def test_lists_are_variables_as_long_as_they_have_room() -> None:
    """64 KiB for all of them: a kernel takes 128 KiB a variable and a third of the stack for all."""
    room = (64 << 10) - len("/kopia")
    assert shell.variables("ID", plan_of("x" * room))["KOPIATOMIC_DATASETS"] == "x" * room
    for too_much in ("x" * (room + 1), "ä" * (room // 2 + 1)):
        told = shell.variables("ID", plan_of(too_much))
        assert not {"KOPIATOMIC_DATASETS", "KOPIATOMIC_SOURCES"} & told.keys()
        assert {"KOPIATOMIC_DATASETS_FILE", "KOPIATOMIC_SOURCES_FILE"} <= told.keys()


def test_a_name_with_a_newline_is_in_the_file_alone(lock_directory: Path) -> None:
    plan = plan_of("tank/a", "tank/b\ntank/forged", "tank/\udcff")
    assert shell.variables("ID", plan)["KOPIATOMIC_DATASETS"] == "tank/a\ntank/\udcff"
    lists.write("ID", plan)
    file = Path(f"{lock_directory}-lists/ID.datasets")
    assert file.read_bytes() == b"tank/a\0tank/b\ntank/forged\0tank/\xff\0"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o400, 0o711)


def test_lists_go_with_the_lock_of_their_run_however_it_ends(lock_directory: Path) -> None:
    run_id, other = "20261128T120000Z-00000001", "20261128T120000Z-00000002"
    with locks.run(run_id, ""):
        lists.write(run_id, plan_of("tank/a"))
        with locks.run(other, ""):
            lists.write(other, plan_of("tank/b"))
        assert [file.name for file in Path(lists.directory()).glob("*.datasets")] == [f"{run_id}.datasets"]
    assert not Path(lists.directory()).exists()

    # One whose processes were all killed leaves its files; who clears what it left removes them.
    (lock_directory / f"run-{run_id}").touch()
    lists.write(run_id, plan_of("tank/a"))
    Path(locks.list_of(run_id, locks.TEMPORARY)).mkdir()
    with locks.claim(run_id):
        pass
    assert not Path(lists.directory()).exists()


def test_lists_are_not_written_where_others_can(lock_directory: Path) -> None:
    Path(lists.directory()).mkdir(mode=0o700)
    Path(lists.directory()).chmod(0o777)
    with pytest.raises(KopiatomicError, match="only root can write to"):
        lists.write("ID", plan_of("tank/a"))


def test_what_an_outer_run_says_of_itself_is_not_handed_on() -> None:
    outer = {"KOPIATOMIC_DATASETS": "outer", "KOPIATOMIC_STATE_DIR": "/kept", "PATH": "/bin"}
    told = {"KOPIATOMIC_RUN_ID": "ID"}
    assert shell.environment(outer, told) == {
        "KOPIATOMIC_STATE_DIR": "/kept",
        "PATH": "/bin",
        "KOPIATOMIC_RUN_ID": "ID",
    }


def test_a_hooks_output_goes_to_stderr_and_its_input_is_empty() -> None:
    code = (
        "from kopiatomic.hooks import shell; from kopiatomic.secrets import masking\n"
        "shell.run('cat; echo said', '-p', {}, 10, masking.Secrets([], {}))"
    )
    ended = subprocess.run([sys.executable, "-c", code], input=b"not this", capture_output=True, check=True)
    assert (ended.stdout, ended.stderr) == (b"", b"said\n")


def test_a_signal_ends_the_hook_before_the_run(tmp_path: Path) -> None:
    with signals.handled(), pytest.raises(Interrupted):
        run(f"echo $$ > {tmp_path}/pid; kill -TERM {os.getpid()}; sleep 60; true")
    assert ends(int((tmp_path / "pid").read_text()))


def test_the_clean_up_of_children_cannot_be_interrupted(tmp_path: Path) -> None:
    with signals.handled(), signals.deferred():
        run(f"setsid sleep 60 & echo $! > {tmp_path}/child; kill -INT {os.getpid()}; sleep 0.2")
        why = signals.reason()
        assert why is not None
        assert why.signum == signal.SIGINT
    assert ends(int((tmp_path / "child").read_text()))


@pytest.mark.parametrize(
    "line",
    [
        "true",
        " ls -l / | wc",
        "cd /; umount x",
        "if true; then ls; fi",
        "A=1 no-such-program",
        "no_such () { true; }; no_such",
        "$PROGRAM",
        "'no such program'",
        "# only a comment",
        ". /etc/none",
        "/bin/ls",
    ],
)
def test_a_line_that_a_run_could_take_is_accepted_and_not_run(line: str) -> None:
    assert shell.check(line) == ""


@pytest.mark.parametrize(
    "line",
    [
        "none | true",
        "none|wc",
        "none || true",
        "/none/of/this; true",
        "none\ntrue",
        "none & wait",
        "none -x 2>&1 | true",
        "none && true || true",
    ],
)
def test_a_line_that_may_succeed_without_its_first_program_is_warned_of(line: str) -> None:
    name = re.split(r"[ ;|\n]", line)[0]
    assert shell.check(line) == f"begins with {name}, which is not there or cannot be executed"


def test_the_program_is_looked_for_where_the_hook_will(tmp_path: Path) -> None:
    """Where that is, its own PATH says, and nothing else."""
    (tmp_path / "of-the-hook").touch(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    assert shell.check("of-the-hook -x", path) == ""
    shell.check_program("of-the-hook", path)
    for look in (shell.check, shell.check_program):
        with pytest.raises(UsageError, match="begins with of-the-hook, which is not there"):
            look("of-the-hook")
        with pytest.raises(UsageError, match="begins with ls, which is not there"):
            look("ls", str(tmp_path))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("no-such-program -x", "begins with no-such-program, which is not there or cannot be executed"),
        ("no-such-program", "begins with no-such-program, which is not there or cannot be executed"),
        ("/etc/passwd", "begins with /etc/passwd, which is not there or cannot be executed"),
        ("/etc", "begins with /etc, which is not there or cannot be executed"),
        ("none;", "begins with none, which"),
        ("none && true", "begins with none, which"),
        ("none 2>&1 >/dev/null", "begins with none, which"),
        ("if true; then", "is no line of a shell: "),
        ("echo 'x", "is no line of a shell: "),
    ],
)
def test_a_line_that_no_run_could_take_is_refused(line: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        shell.check(line)
    assert caught.value.message.startswith(said)
