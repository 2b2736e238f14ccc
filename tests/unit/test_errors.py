"""Errors survive the way from keeper and launcher to the main process, and carry their exit code."""

import errno
import signal

import pytest

from kopiatomic.errors import EndError, Interrupted, KopiatomicError, LockedError, UsageError, concerns_all, internal
from kopiatomic.system import channel
from kopiatomic.system.process import TimeLimitError


def sent(error: EndError) -> object:
    """An error as the other end of a channel gets it."""
    one, other = channel.pair()
    one.send(error)
    return other.receive(10)


@pytest.mark.parametrize("cls", [KopiatomicError, UsageError, LockedError, TimeLimitError])
def test_an_error_arrives_in_another_process_as_it_was_raised(cls: type[KopiatomicError]) -> None:
    arrived = sent(cls("it failed", kind="a-kind", hint="do this"))
    assert isinstance(arrived, KopiatomicError)
    assert type(arrived) is cls
    assert (arrived.message, arrived.kind, arrived.hint, str(arrived)) == (
        "it failed",
        "a-kind",
        "do this",
        "it failed",
    )
    assert arrived.exit_code == cls.exit_code


def test_an_interruption_arrives_with_its_signal() -> None:
    arrived = sent(Interrupted(signal.SIGTERM))
    assert isinstance(arrived, Interrupted)
    assert (arrived.signum, arrived.exit_code, arrived.kind) == (signal.SIGTERM, 143, "interrupted")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EPERM, errno.ENOMEM, errno.EMFILE])
def test_what_is_wrong_with_a_whole_pool_or_with_this_system_is_no_datasets_fault(number: int) -> None:
    assert concerns_all(number)


@pytest.mark.parametrize("number", [errno.ETXTBSY, errno.EDQUOT, errno.ENAMETOOLONG, errno.ENOENT, errno.ELOOP, None])
def test_what_is_wrong_with_one_dataset_says_nothing_of_the_others(number: int | None) -> None:
    assert not concerns_all(number)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KopiatomicError("", kind=""), 1),
        (UsageError("", kind=""), 2),
        (LockedError("", kind=""), 75),
        (Interrupted(signal.SIGHUP), 129),
        (Interrupted(signal.SIGINT), 130),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: EndError, code: int) -> None:
    assert error.exit_code == code


def test_a_defect_is_told_in_one_line_with_its_place() -> None:
    try:
        dict[str, str]()["missing"]
    except KeyError as error:
        told = internal(error)
    assert told.message.startswith("internal error: KeyError: 'missing' (test_errors.py:")
    assert told.kind == "internal"
    assert "report it" in (told.hint or "")
