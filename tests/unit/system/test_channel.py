"""Messages between kopiatomic's processes arrive whole, and an end is noticed."""

import os
import signal
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
