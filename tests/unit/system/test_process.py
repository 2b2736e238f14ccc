"""Programs that kopiatomic asks something are bounded in time and output, and leave nothing running."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kopiatomic.errors import Interrupted
from kopiatomic.system import process, signals
from kopiatomic.system.process import TimeLimitError
from tests.support.moments import ends
from tests.support.programs import command


def test_output_status_and_arguments_come_back() -> None:
    finished = process.run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=10)
    assert (finished.status, finished.stdout, finished.stderr) == (3, b"out\n", b"err\n")
    assert finished.errors == "err"


def test_a_death_by_signal_is_a_negative_status() -> None:
    assert process.run(["sh", "-c", "kill -9 $$"], timeout=10).status == -signal.SIGKILL


def test_standard_input_is_empty() -> None:
    assert process.run(["cat"], timeout=10).stdout == b""


def test_the_environment_is_the_one_given() -> None:
    finished = process.run(["env"], timeout=10, environment={"ONLY": "this", "PATH": os.environ["PATH"]})
    assert set(finished.stdout.decode().split()) == {"ONLY=this", f"PATH={os.environ['PATH']}"}


@pytest.mark.parametrize("redirection", ["", ">&2"], ids=["stdout", "stderr"])
def test_a_flood_of_output_is_read_to_its_end_and_kept_in_part(redirection: str) -> None:
    finished = process.run(
        ["sh", "-c", f"head -c 50000000 /dev/zero {redirection}; echo end >&2"], timeout=30, keep=1000
    )
    assert finished.status == 0
    assert len(finished.stdout) <= 1000
    assert len(finished.stderr) <= 1000


def test_what_is_safe_to_print_has_no_control_characters() -> None:
    finished = process.run(["printf", r"a\033[2Jb\nc\377"], timeout=10)
    shown = process.Finished((), 1, b"", finished.stdout).errors
    assert shown == "a\\x1b[2Jb\nc\\xff"


def test_a_program_that_does_not_end_is_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(TimeLimitError, match=r"sh did not end within 0\.5 s"):
        process.run(["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/child; sleep 60"], timeout=0.5)
    assert time.monotonic() - began < 5
    assert ends(int((tmp_path / "child").read_text()))


def test_a_program_that_closes_its_output_and_does_not_end_is_ended(tmp_path: Path) -> None:
    with pytest.raises(TimeLimitError, match="closed its output and did not end"):
        process.run(["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60 >&- 2>&-"], timeout=0.5)
    assert ends(int((tmp_path / "pid").read_text()))


def test_a_child_that_keeps_the_output_open_is_ended_at_the_time_limit(tmp_path: Path) -> None:
    with pytest.raises(TimeLimitError):
        process.run(["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/child"], timeout=0.5)
    assert ends(int((tmp_path / "child").read_text()))


def test_a_child_that_is_left_in_the_group_is_ended_with_its_parent(tmp_path: Path) -> None:
    finished = process.run(["sh", "-c", f"sleep 60 >&- 2>&- & echo $! > {tmp_path}/child"], timeout=10)
    assert finished.status == 0
    assert ends(int((tmp_path / "child").read_text()))


def test_a_signal_ends_the_wait_and_the_program(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with signals.handled(), pytest.raises(Interrupted) as caught:
        process.run(["sh", "-c", f"echo $$ > {pid}; kill -TERM {os.getpid()}; exec sleep 60"], timeout=30)
    assert caught.value.signum == signal.SIGTERM
    assert ends(int(pid.read_text()))


def test_a_signal_during_clean_up_is_noted_and_raised_at_the_next_wait() -> None:
    with signals.handled():
        with signals.deferred():
            finished = process.run(["sh", "-c", f"kill -INT {os.getpid()}; echo done"], timeout=10)
        assert finished.stdout == b"done\n"
        why = signals.reason()
        assert why is not None
        assert why.signum == signal.SIGINT
        with pytest.raises(Interrupted):
            process.run(["sleep", "60"], timeout=10)


KILLED = """if True:
    import os, signal, sys
    from kopiatomic.system import host, process
    exec(sys.argv[1])
    process.run(["sh", "-c", "echo $$ > pid.new; mv pid.new pid; exec sleep 60"], timeout=60)
"""


def test_a_program_ends_with_a_killed_parent(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", KILLED, ""], cwd=tmp_path, env=environment) as parent:
        while not (tmp_path / "pid").exists():
            assert parent.poll() is None
            time.sleep(0.01)
        parent.kill()
    assert ends(int((tmp_path / "pid").read_text()))


def test_a_program_does_not_start_where_its_parent_was_killed_before_it_was_tied(tmp_path: Path) -> None:
    kill_first = """if True:
        tie = host.here().end_with_parent
        def late(signum):
            with open("child", "w") as file:
                file.write(str(os.getpid()))
            os.kill(starter, signal.SIGKILL)
            while os.getppid() == starter:
                continue
            tie(signum)
        starter = os.getpid()
        host.here().end_with_parent = late
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", KILLED, kill_first], cwd=tmp_path, env=environment) as parent:
        assert parent.wait(30) == -signal.SIGKILL
    assert ends(int((tmp_path / "child").read_text()))
    assert not (tmp_path / "pid").exists()


def test_programs_run_side_by_side(tmp_path: Path) -> None:
    # Each waits for the other: one after the other they would never end.
    a, b = tmp_path / "a", tmp_path / "b"
    os.mkfifo(a)
    os.mkfifo(b)
    first, second = f"echo one >{a}; cat {b}", f"cat {a}; echo two >{b}; exit 3"
    found = process.run_together([["sh", "-c", first], ["sh", "-c", second]], timeout=10)
    assert [(one.status, one.stdout) for one in found] == [(0, b"two\n"), (3, b"one\n")]


def test_of_programs_side_by_side_none_outlives_one_that_cannot_be_started(tmp_path: Path) -> None:
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)

    def programs() -> Iterator[list[str]]:
        yield ["sh", "-c", f"echo $$ >{fifo}; exec sleep 60"]
        pids.append(int(fifo.read_text()))
        yield ["/no/such/program"]

    pids: list[int] = []
    with pytest.raises(FileNotFoundError):
        process.run_together(programs(), timeout=10)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


@pytest.mark.parametrize(
    ("program", "error"), [("/no/such/program", FileNotFoundError), ("/etc/passwd", PermissionError)]
)
def test_a_program_that_cannot_be_started_is_an_error_at_once(program: str, error: type[OSError]) -> None:
    with pytest.raises(error):
        process.run([program], timeout=10)


def test_no_descriptor_of_ours_reaches_a_program() -> None:
    read_end, write_end = os.pipe()
    try:
        listed = process.run([sys.executable, "-c", "import os; print(os.listdir('/proc/self/fd'))"], timeout=10)
        assert f"'{write_end}'" not in listed.stdout.decode()
    finally:
        os.close(read_end)
        os.close(write_end)


def test_a_program_finds_no_terminal_to_ask_on(tmp_path: Path) -> None:
    """Where the caller has one: script(1) gives it."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os\nfrom kopiatomic.system import process\n"
        "os.close(os.open('/dev/tty', os.O_RDWR))\n"
        "print(process.run(['sh', '-c', 'exec 3</dev/tty; echo found'], timeout=10).stdout)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = ["script", "-qec", shlex.join([sys.executable, str(program)]), "/dev/null"]
    done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "b''", done.stdout


def test_words_are_parted_so_that_a_program_can_be_started_with_them() -> None:
    """Short ones weigh most: the kernel counts a pointer for each."""
    words = ["w"] * 800_000 + ["x" * 255] * 20_000 + ["\udcff\u20ac" * 60] * 5000
    parted = process.parts(words)
    assert [word for part in parted for word in part] == words
    assert 1 < len(parted) < 100
    for part in parted:
        assert process.run(["true", *part], timeout=60).status == 0
    assert process.parts([]) == []


@pytest.mark.parametrize("stack", ["256", "unlimited"])
def test_how_much_goes_together_goes_by_the_stack(stack: str) -> None:
    """In KiB: execve(2) takes a quarter of it, but 6 MiB at the most."""
    script = """if True:
        from kopiatomic.system import process
        parted = process.parts(["w" * 60] * 100_000)
        assert sum(map(len, parted)) == 100_000
        for part in parted[:3]:
            assert process.run(["true", *part], timeout=60).status == 0
    """
    command("sh", "-c", f'ulimit -s {stack}; exec "$0" -c "$1"', sys.executable, script)
