"""The end of children: seen without reaping them, brought about, and asked for again without harm."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from kopiatomic.system import children

Fork = Callable[[Callable[[], object]], int]


@pytest.fixture
def fork() -> Iterator[Fork]:
    """Fork a child that calls a function and ends; what is left of them ends with the test."""
    forked = []

    def begin(do: Callable[[], object]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                do()
            finally:
                os._exit(0)
        forked.append(pid)
        return pid

    yield begin
    for pid in forked:
        children.kill(pid)
        children.reap(pid)


def sleep() -> None:
    time.sleep(60)


def wait_for_the_end(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_an_end_is_seen_and_does_not_reap(fork: Fork) -> None:
    pid = fork(sleep)
    assert not children.has_ended(pid)
    children.kill(pid)
    wait_for_the_end(pid)
    assert children.has_ended(pid)
    assert children.has_ended(pid)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert children.has_ended(pid)


def test_what_has_been_reaped_is_killed_and_reaped_again_without_harm(fork: Fork) -> None:
    pid = fork(lambda: None)
    os.waitpid(pid, 0)
    children.kill(pid)
    children.reap(pid)


def test_reaping_waits_only_if_asked_to(fork: Fork) -> None:
    pid = fork(sleep)
    children.reap(pid, wait=False)
    assert not children.has_ended(pid)
    children.kill(pid)
    children.reap(pid)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_a_child_that_obeys_is_reaped(fork: Fork) -> None:
    pid = fork(sleep)
    assert children.stop(pid, signal.SIGTERM, 10)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_a_child_that_does_not_obey_in_time_is_left_running(fork: Fork) -> None:
    ready, theirs = os.pipe()

    def deaf() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(theirs, b".")
        sleep()

    pid = fork(deaf)
    os.read(ready, 1)
    os.close(ready)
    os.close(theirs)
    assert not children.stop(pid, signal.SIGTERM, 0.1)
    assert not children.has_ended(pid)
