"""Programs that answer over pipes: what they say, how they end, and that they end with us."""

from __future__ import annotations

import os
import pwd
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kopiatomic.errors import Interrupted
from kopiatomic.system import coprocess, signals, sockets
from kopiatomic.system.coprocess import Coprocess, EndedError
from kopiatomic.system.spawn import User
from tests.support.moments import ends

NOBODY = pwd.getpwnam("nobody")
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


def soon(seconds: float = 10) -> float:
    return time.monotonic() + seconds


@contextmanager
def shell(line: str, *, user: User | None = None, tied: bool = True) -> Iterator[Coprocess]:
    program = Coprocess(["sh", "-c", line], ENVIRONMENT, user=user, tied=tied)
    try:
        yield program
    finally:
        program.kill()


def test_it_answers_line_by_line() -> None:
    with shell("while read -r line; do echo got $line; echo end; done; echo bye; exit 3") as program:
        program.send(b"a\nb\n")
        assert program.line(soon()) == b"got a"
        assert program.lines(b"end", soon()) == []
        assert program.lines(b"end", soon()) == [b"got b"]
        finished = program.finish(soon())
        assert (finished.status, finished.stdout) == (3, b"bye\n")
        assert program.has_ended()


def test_what_ends_too_early_says_why() -> None:
    with shell("echo one; echo it broke >&2; exit 4") as program:
        assert program.line(soon()) == b"one"
        with pytest.raises(EndedError) as caught:
            program.line(soon())
        assert (caught.value.finished.status, str(caught.value)) == (4, "it broke")
        with pytest.raises(EndedError):
            program.send(b"more\n")


def test_one_whose_children_keep_its_pipes_has_ended() -> None:
    with shell("sleep 20 & exit 5") as program:
        began = time.monotonic()
        with pytest.raises(EndedError) as caught:
            program.line(soon())
        assert (caught.value.finished.status, time.monotonic() - began < 5) == (5, True)
    with shell("sleep 20 & echo said; exit 6") as program:
        assert program.finish(soon(5)).stdout == b"said\n"


def test_it_is_waited_for_no_longer_than_said() -> None:
    with shell("sleep 60") as program:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            program.line(soon(0.2))
        with pytest.raises(TimeoutError):
            program.finish(soon(0.2))
        assert time.monotonic() - began < 3
        assert ends(program.pid)


def test_all_of_it_is_killed(tmp_path: Path) -> None:
    with shell(f"sleep 60 & echo $! > {tmp_path}/child; echo begun; wait") as program:
        program.line(soon())
    assert ends(int((tmp_path / "child").read_text()))


def test_a_signal_ends_a_wait() -> None:
    with signals.handled(), shell(f"kill -TERM {os.getpid()}; sleep 60") as program, pytest.raises(Interrupted):
        program.line(soon())


@pytest.mark.parametrize("user", [None, User(NOBODY.pw_uid, NOBODY.pw_gid, (NOBODY.pw_gid,))], ids=["root", "nobody"])
def test_it_ends_with_us_even_as_another_user(user: User | None) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            program = Coprocess(["sh", "-c", "echo $(id -u); exec sleep 60"], ENVIRONMENT, user=user)
            os.write(write, b"%d %s" % (program.pid, program.line(soon())))
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(write)
    number, uid = os.read(read, 100).split()
    assert int(uid) == (user.uid if user else os.getuid())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert ends(int(number))
    os.close(read)


def test_one_that_is_not_tied_notices_the_end_of_its_input(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        program = Coprocess(["sh", "-c", f"echo x; cat; sleep 0.2; touch {tmp_path}/noticed"], ENVIRONMENT, tied=False)
        program.line(soon())
        os._exit(0)
    os.waitpid(pid, 0)
    deadline = soon()
    while not (tmp_path / "noticed").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_program_can_be_run_with_a_text() -> None:
    finished = coprocess.run(["cat"], ENVIRONMENT, soon(), text=b"a text")
    assert (finished.status, finished.stdout) == (0, b"a text")
    with pytest.raises(FileNotFoundError):
        coprocess.run(["/none/program"], ENVIRONMENT, soon())
    assert coprocess.run(["false"], ENVIRONMENT, soon(), text=b"not read").status == 1


def test_no_descriptor_is_left() -> None:
    before = os.listdir("/proc/self/fd")
    with shell("echo x; cat") as program:
        program.line(soon())
    with pytest.raises(FileNotFoundError):
        Coprocess(["/none/program"], ENVIRONMENT)
    assert os.listdir("/proc/self/fd") == before


def test_sockets_that_are_listened_on_are_found(tmp_path: Path) -> None:
    import socket

    path = str(tmp_path / "a socket")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path)
        assert path not in sockets.listening()
        one.listen()
        assert path in sockets.listening()
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(path)
            assert sockets.listening().count(path) == 1
    assert path not in sockets.listening()
