"""Messages between kopiatomic's processes arrive whole, and an end is noticed."""

import os
import resource
import signal
import socket
import threading
import time

import pytest

from kopiatomic.errors import Interrupted, UsageError
from kopiatomic.system import channel, signals
from kopiatomic.system.channel import ClosedError


def test_a_message_arrives_as_it_was_sent() -> None:
    one, other = channel.pair()
    one.send({"a": (1, "x")})
    assert other.receive() == {"a": (1, "x")}


def test_messages_arrive_in_order_and_apart() -> None:
    one, other = channel.pair()
    for number in range(100):
        one.send(number)
    assert [other.receive() for _ in range(100)] == list(range(100))


def test_a_message_larger_than_the_sockets_buffer_arrives() -> None:
    one, other = channel.pair()
    large = os.urandom(5 << 20)
    sender = threading.Thread(target=one.send, args=[large])
    sender.start()
    assert other.receive(10) == large
    sender.join()


def test_descriptors_arrive_and_no_program_inherits_them() -> None:
    one, other = channel.pair()
    reading, writing = os.pipe()
    one.send("these")
    one.send_descriptors([reading, writing])
    os.close(reading)
    os.close(writing)
    assert other.receive() == "these"
    copies = other.receive_descriptors(4)
    assert [os.get_inheritable(fd) for fd in copies] == [False, False]
    os.write(copies[1], b"x")
    assert os.read(copies[0], 2) == b"x"
    for fd in copies:
        os.close(fd)


def test_descriptors_for_which_there_is_no_room_are_an_error() -> None:
    one, other = channel.pair()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    one.send_descriptors([0, 1, 2])
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            other.receive_descriptors(4)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    os.close(os.dup(0))


def test_descriptors_of_a_process_that_is_gone_are_an_end() -> None:
    one, other = channel.pair()
    one.close()
    with pytest.raises(ClosedError):
        other.receive_descriptors(4)


def test_an_error_arrives_in_a_forked_process() -> None:
    one, other = channel.pair()
    pid = os.fork()
    if pid == 0:
        one.close()
        other.send(UsageError("no", kind="k", hint="h"))
        os._exit(0)
    other.close()
    message = one.receive(10)
    os.waitpid(pid, 0)
    assert isinstance(message, UsageError)
    assert (message.message, message.hint) == ("no", "h")


def test_the_end_of_the_other_process_is_noticed() -> None:
    one, other = channel.pair()
    other.close()
    with pytest.raises(ClosedError):
        one.receive()
    with pytest.raises(ClosedError):
        one.send("x")


def test_a_message_that_was_cut_off_is_an_end() -> None:
    one, other = channel.pair()
    os.write(other.fileno(), b"\0\0\0\0\0\0\0\x20only a part")
    other.close()
    with pytest.raises(ClosedError):
        one.receive()


def test_waiting_has_a_limit() -> None:
    one, _other = channel.pair()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        one.receive(0.2)
    assert 0.15 < time.monotonic() - began < 3


def test_a_signal_ends_a_wait() -> None:
    one, _other = channel.pair()
    with signals.handled():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGHUP)).start()
        with pytest.raises(Interrupted) as caught:
            one.receive(10)
    assert caught.value.signum == signal.SIGHUP


def test_a_signal_does_not_end_a_wait_of_clean_up() -> None:
    one, other = channel.pair()
    with signals.handled(), signals.deferred():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        threading.Timer(0.4, other.send, ("still here",)).start()
        assert one.receive(10) == "still here"
        why = signals.reason()
        assert why is not None
        assert why.signum == signal.SIGINT


def test_a_signal_that_was_ignored_at_the_start_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handled():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
            assert signals.count() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ends_are_not_inherited_by_programs() -> None:
    one, other = channel.pair()
    assert not os.get_inheritable(one.fileno())
    assert not os.get_inheritable(other.fileno())


def test_descriptors_for_which_there_is_no_room_are_an_error_and_none_stays() -> None:
    """The kernel delivers as many as fit, and says so by a flag alone."""
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull) as null:
        socket.send_fds(theirs, [b"x"], [null.fileno()] * 3)
        before = set(os.listdir("/proc/self/fd"))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(null.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                channel.receive_with_descriptors(ours, 1, 3)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert set(os.listdir("/proc/self/fd")) == before
