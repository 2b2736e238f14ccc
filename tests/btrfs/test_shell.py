"""exec and shell at a terminal: a real one, with its keyboard in the test's hands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from tests.btrfs.conftest import Family, only_child, wait_for
from tests.btrfs.test_exec import state
from tests.support.filesystems import Btrfs
from tests.support.programs import Kopiatomic, command
from tests.support.terminal import Terminal

pytestmark = pytest.mark.in_part(12)

Leftovers = Callable[..., list[str]]


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    data = btrfs.subvolume("data")
    (data / "file").write_text("frozen\n")
    return data


class Session:
    """A program whose terminal is in our hands."""

    def __init__(self, terminal: Terminal, process: subprocess.Popen[bytes]) -> None:
        self.terminal = terminal
        self.process = process
        self._told = 0

    @property
    def pid(self) -> int:
        return self.process.pid

    def types(self, text: str) -> None:
        self.terminal.press(text.encode())

    def shows(self, pattern: str) -> re.Match[str]:
        """Wait for something to be shown that was not asked for before."""
        found = wait_for(lambda: re.search(pattern, self.terminal.seen()[self._told :]), f"{pattern!r} on the screen")
        assert isinstance(found, re.Match)
        self._told += found.end()
        return found

    def mode(self) -> list[Any]:
        """How the terminal is set."""
        return termios.tcgetattr(self.terminal.keyboard)

    def is_raw(self) -> bool:
        return not self.mode()[3] & (termios.ECHO | termios.ICANON | termios.ISIG)

    def resize(self, rows: int, columns: int) -> None:
        ioctl(self.terminal.keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def ends(self) -> int:
        """Wait for its end; returns the exit code."""
        wait_for(lambda: (self.terminal.seen(), self.process.poll() is not None)[1], "the end", 20)
        return self.process.returncode


Start = Callable[..., Any]


@pytest.fixture
def started(kopiatomic: Kopiatomic, data: Path, leftovers: Leftovers) -> Start:
    """Start kopiatomic in a terminal of its own; at the end it is as it was, and nothing is left."""

    @contextmanager
    def started(*words: str | Path, stdout: Any = None, ends_itself: bool = True, **env: str) -> Iterator[Session]:
        with session(kopiatomic.argv(*words), {**kopiatomic.environment, **env}, stdout) as opened:
            before = opened.mode()
            yield opened
            if ends_itself:
                opened.ends()
                assert opened.mode() == before
        assert leftovers(Path("/frozen"), within=5) == [], opened.terminal.seen()

    return started


@contextmanager
def session(argv: list[str], environment: dict[str, str], stdout: Any = None) -> Iterator[Session]:
    terminal = Terminal()
    # So that no message is broken into lines.
    ioctl(terminal.keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 300, 0, 0))

    def become() -> None:
        keep = os.dup(1)
        terminal.become()
        if stdout is not None:
            os.dup2(keep, 1)
        os.close(keep)

    process = subprocess.Popen(
        argv,
        env={"TERM": "xterm", **environment},
        stdout=stdout,
        start_new_session=True,
        preexec_fn=become,  # noqa: PLW1509 - there are no threads here
    )
    terminal.begun()
    try:
        yield Session(terminal, process)
    finally:
        process.kill()
        process.wait()


def in_the_end(session: Session, code: int) -> None:
    assert session.ends() == code, session.terminal.seen()


BASH = {"SHELL": "/bin/bash"}


def test_a_shell_says_what_is_frozen_and_what_an_open_one_costs(started: Start, data: Path) -> None:
    with started("shell", data, **BASH) as shell:
        shell.shows(
            rf"frozen at \d{{4}}-\d\d-\d\d [0-9:.]+ UTC \(one instant\): one dataset, in {data}; all else is live"
        )
        shell.shows("as long as this shell is open it keeps the space")
        shell.shows(r"\(frozen \d\d:\d\d:\d\dZ\) .*[#$] ")
        shell.types(f"cat {data}/file; touch {data}/x; echo $KOPIATOMIC_RUN_ID\n")
        shell.shows("frozen\r\n")
        shell.shows("Read-only file system")
        shell.shows(r"\d{8}T\d{6}Z-[0-9a-f]{8}\r\n")
        shell.types("exit 3\n")
        in_the_end(shell, 3)


@pytest.mark.parametrize("program", ["bash", "dash", "sh"])
def test_the_prompt_shows_it(program: str, started: Start, data: Path, kopiatomic: Kopiatomic) -> None:
    """Also where bash's start-up file has a prompt of its own."""
    (Path(kopiatomic.environment["HOME"]) / ".bashrc").write_text("PS1='mine> '\n")
    with started("shell", data, SHELL=str(shutil.which(program))) as shell:
        shell.shows(r"\(frozen \d\d:\d\d:\d\dZ\) " + ("mine> " if program == "bash" else "# "))
        shell.types("\x04")
        in_the_end(shell, 0)


def test_a_shell_without_a_terminal_is_refused(kopiatomic: Kopiatomic, data: Path) -> None:
    ended = kopiatomic("shell", data)
    assert ended.returncode == 1
    assert "a shell needs a terminal" in ended.stderr
    assert not Path(kopiatomic.environment["KOPIATOMIC_STATE_DIR"]).exists()


def test_a_shell_starts_in_the_root_where_its_directory_is_not(
    started: Start, data: Path, btrfs: Btrfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = btrfs.subvolume("data/nested") / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    with started("shell", "--no-nested", data, **BASH) as shell:
        shell.shows("this shell starts in /")
        shell.types("pwd; echo $PWD; exit\n")
        shell.shows("/\r\n/\r\n")
        in_the_end(shell, 0)


def test_keys_are_echoed_once_and_the_terminal_is_raw_only_meanwhile(started: Start, data: Path) -> None:
    with started("exec", data, "--", "cat") as cat:
        wait_for(cat.is_raw, "the raw mode")
        cat.types("word\n")
        cat.shows("word\r\nword\r\n")
        assert cat.terminal.seen().count("word") == 2
        cat.types("\x04")
        in_the_end(cat, 0)


def test_the_command_has_a_controlling_terminal_of_the_same_size(started: Start, data: Path) -> None:
    script = "tty; stty size < /dev/tty; trap 'stty size; exit 9' WINCH; echo ready; while :; do sleep 0.1; done"
    with started("exec", data, "--", "sh", "-c", script) as program:
        program.shows(r"/dev/pts/\d+\r\n")
        program.shows("ready")
        program.resize(33, 77)
        program.shows("33 77\r\n")
        in_the_end(program, 9)


def test_the_last_that_is_written_is_shown(started: Start, data: Path) -> None:
    """Much of it, and by a program that ends at once."""
    with started("exec", data, "--", "sh", "-c", "seq 20000; printf last") as program:
        in_the_end(program, 0)
        lines = program.terminal.seen().split("\r\n")
        assert lines[-1] == "last"
        assert lines[-20001:-1] == [str(number) for number in range(1, 20001)]


def test_ctrl_c_reaches_the_command_alone(started: Start, data: Path) -> None:
    script = "trap 'echo caught; exit 6' INT; echo ready; while :; do sleep 0.1; done"
    with started("exec", data, "--", "sh", "-c", script) as program:
        program.shows("ready")
        program.types("\x03")
        program.shows("caught")
        in_the_end(program, 6)
        assert "kopiatomic:" not in program.terminal.seen()


def test_jobs_in_a_shell_are_that_shells(started: Start, data: Path) -> None:
    with started("shell", data, **BASH) as shell:
        shell.shows("# ")
        shell.types("sleep 100\n")
        shell.shows("sleep 100\r\n")
        wait_for(lambda: sleeping(shell.pid), "the job")
        shell.types("\x1a")
        shell.shows("Stopped")
        shell.types("jobs; fg\n")
        shell.shows(r"(?s)Stopped.*sleep 100\r\nsleep 100\r\n")
        shell.types("\x03")
        shell.shows(r"\^C")
        shell.types("sleep 100 &\nexit 4\n")
        shell.shows("a process that /bin/bash left running ended with it")
        in_the_end(shell, 4)


def sleeping(main: int) -> bool:
    engine = Family.of(main).engine
    return "sleep" in command("ps", "--ppid", str(engine), "-o", "comm=", check=False).stdout


@pytest.fixture
def outer(kopiatomic: Kopiatomic, data: Path, leftovers: Leftovers) -> Iterator[Session]:
    """An interactive shell of the user's, in which kopiatomic is started as a job."""
    bash = ["bash", "--norc", "-i"]
    with session(bash, {**kopiatomic.environment, "PS1": "outer> "}) as shell:
        shell.shows("outer> ")
        assert data.exists()
        yield shell
        # Until the prompt is back, what is typed is the job's.
        shell.shows("outer> ")
        shell.types("exit\n")
        shell.ends()
    assert leftovers(within=5) == []


def line(kopiatomic: Kopiatomic, *words: str | Path) -> str:
    return " ".join(map(str, kopiatomic.argv(*words)))


READY_CAT = """sh -c 'echo rea""dy; exec cat'"""


def test_ctrl_z_at_a_command_goes_back_to_the_callers_shell(outer: Session, kopiatomic: Kopiatomic, data: Path) -> None:
    cooked = "stty -a | grep -o ' -*icanon'; "
    outer.types(cooked + line(kopiatomic, "exec", data, "--", READY_CAT) + "\n")
    outer.shows(" icanon")
    # What is typed before the command is there is nobody's to be stopped by.
    outer.shows("ready\r\n")
    outer.types("one\n")
    outer.shows("one\r\none\r\n")
    outer.types("\x1a")
    outer.shows("stopped; its snapshots stay")
    outer.shows("Stopped")
    outer.shows("outer> ")
    outer.types("echo be''tween; fg\n")
    outer.shows("between")
    outer.types("two\n")
    outer.shows("two\r\ntwo\r\n")
    outer.types("\x04")
    outer.shows("outer> ")
    outer.types("echo rc=$?\n")
    outer.shows("rc=0\r\n")


def test_in_the_background_it_stops_when_it_wants_the_keyboard(
    outer: Session, kopiatomic: Kopiatomic, data: Path
) -> None:
    outer.types(line(kopiatomic, "exec", data, "--", "sh", "-c", "'echo be''gun; read x; echo \"<$x>\"'") + " &\n")
    outer.shows("begun")
    wait_for(lambda: state(only_child(outer.pid)) == "T", "the stop")
    outer.types("fg\n")
    wait_for(outer.is_raw, "the raw mode")
    outer.types("typed\n")
    outer.shows("<typed>")


def test_in_a_pipeline_the_keyboard_is_left_to_who_wants_it(outer: Session, kopiatomic: Kopiatomic, data: Path) -> None:
    """Such as a pager behind it; and a command that asks for a password still gets it."""
    outer.types(
        line(kopiatomic, "exec", data, "--", "cat", data / "file") + ' | { cat; read x < /dev/tty; echo "<$x>"; }\n'
    )
    outer.shows("frozen\r\n")
    outer.types("typed\n")
    outer.shows("<typed>")
    outer.shows("outer> ")
    script = "'stty -echo < /dev/tty; read x < /dev/tty; stty echo < /dev/tty; echo \"<$x>\"'"
    outer.types(line(kopiatomic, "exec", data, "--", "sh", "-c", script) + " | tr a-z A-Z\n")
    outer.shows("A-Z\r\n")
    wait_for(outer.is_raw, "the raw mode")
    time.sleep(0.3)
    outer.types("secret\n")
    outer.shows("<SECRET>\r\n")
    assert "secret" not in outer.terminal.seen()


def test_output_that_is_no_terminal_is_the_callers(started: Start, data: Path, tmp_path: Path) -> None:
    """Byte for byte, while the keyboard goes to the command."""
    out = tmp_path / "out"
    with (
        out.open("wb") as file,
        started("exec", data, "--", "sh", "-c", "read x; printf '%s\\n' \"$x\"", stdout=file) as program,
    ):
        wait_for(program.is_raw, "the raw mode")
        program.types("word\n")
        in_the_end(program, 0)
    assert out.read_bytes() == b"word\n"


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGQUIT, 131)]
)
@pytest.mark.parametrize("what", ["shell", "exec"])
def test_a_signal_ends_it_and_restores_the_terminal(
    what: str, signum: signal.Signals, code: int, started: Start, data: Path
) -> None:
    words = ("shell", data) if what == "shell" else ("exec", data, "--", "cat")
    with started(*words, **BASH) as program:
        wait_for(program.is_raw, "the raw mode")
        os.kill(program.pid, signum)
        in_the_end(program, code)


@pytest.mark.parametrize("victim", ["keeper", "launcher", "engine"])
def test_who_is_killed_leaves_the_terminal_as_it_was(victim: str, started: Start, data: Path) -> None:
    with started("shell", data, **BASH) as shell:
        wait_for(shell.is_raw, "the raw mode")
        shell.shows("# ")
        os.kill(getattr(Family.of(shell.pid), victim), signal.SIGKILL)
        in_the_end(shell, 137 if victim == "engine" else 1)


def test_a_terminal_that_goes_away_ends_it(started: Start, data: Path) -> None:
    with started("shell", data, ends_itself=False, **BASH) as shell:
        shell.shows("# ")
        shell.types("sleep 100\n")
        wait_for(lambda: sleeping(shell.pid), "the job")
        shell.terminal.close()
        assert shell.process.wait(20) == 129


def test_a_terminal_that_goes_away_while_nobody_minds_hangs_the_commands_up(
    kopiatomic: Kopiatomic, data: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    """Under nohup: the command's own terminal goes with the caller's."""
    script = f"trap 'echo hup > {tmp_path}/said; exit 0' HUP; echo ready; while :; do sleep 0.1; done"
    argv = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *kopiatomic.argv("exec", data, "--", "sh", "-c", script)]
    with session(argv, kopiatomic.environment) as program:
        program.shows("ready")
        program.terminal.close()
        assert program.process.wait(20) == 0
    assert (tmp_path / "said").read_text() == "hup\n"
    assert leftovers() == []


def test_a_user_may_open_the_terminal(started: Start, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    with started("exec", "--user", "nobody", data, "--", "sh", "-c", "id -un; echo opened > $(tty)") as program:
        program.shows("nobody\r\nopened\r\n")
        in_the_end(program, 0)


SHOWN = "for fd in 0 1 2; do readlink /proc/self/fd/$fd; done; echo typed >&2; id -un > /dev/stdout; "


@pytest.mark.parametrize("streams", ["input from a file", "errors elsewhere"])
def test_a_user_gets_no_descriptor_of_the_callers_terminal(
    streams: str, kopiatomic: Kopiatomic, data: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    """What is written is shown there all the same."""
    other = Terminal()
    redirected = "< /dev/null" if streams == "input from a file" else f"2> {other.name}"
    command = shlex.join(kopiatomic.argv("exec", "--user", "nobody", data, "--", "sh", "-c", SHOWN + "seq 2000"))
    with session(["sh", "-c", f"cd /; exec {command} {redirected}"], dict(kopiatomic.environment)) as program:
        shown = program.shows(r"(?s).*\b2000\r\n")[0] if streams == "input from a file" else ""
        in_the_end(program, 0)
    shown = shown or program.terminal.seen()
    links = re.findall(r"^(/dev/\S+|pipe:\S+)\r$", shown, re.MULTILINE)
    assert len(links) == 3, shown
    assert "nobody\r\n" in shown
    assert [link for link in links if link in {program.terminal.name, other.name}] == []
    assert "typed\r\n" in (shown if streams == "input from a file" else other.seen())
    assert re.findall(r"\d+(?=\r\n)", shown)[-2000:] == [str(number) for number in range(1, 2001)]
    assert leftovers(Path("/frozen"), within=5) == []
