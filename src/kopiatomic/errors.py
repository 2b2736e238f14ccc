"""What can go wrong, as exceptions: each says what failed, on what, why, and what to do about it."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterable

from kopiatomic.text import printable

SAVED = 0
FAILED = 1
USAGE = 2
INCOMPLETE = 3
UNCLEAN = 4
LOCKED = 75
SIGNAL_BASE = 128


class EndError(Exception):
    """Ends a command, with a message for a person and an exit code.

    ``kind`` is a short stable word for programs (JSON output), ``hint`` says what to do.
    """

    exit_code = FAILED

    def __init__(self, message: str, *, kind: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.hint = hint

    @property
    def warning(self) -> str:
        """What failed and what to do, for where that is a warning only."""
        return f"{self.message}. {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the transfer from keeper or launcher to the main process."""
        return _rebuild, (type(self), self.message, self.kind, self.hint)


def _rebuild(cls: type[EndError], message: str, kind: str, hint: str | None) -> EndError:
    return cls(message, kind=kind, hint=hint)


class KopiatomicError(EndError):
    """Something failed."""


class UsageError(KopiatomicError):
    """The command line does not make sense."""

    exit_code = USAGE


class LockedError(KopiatomicError):
    """Another run holds the view root."""

    exit_code = LOCKED


class StartError(KopiatomicError):
    """A program could not be started. ``number`` is the error's, of the program itself or of its working directory."""

    def __init__(self, message: str, *, kind: str, hint: str | None = None, number: int = 0) -> None:
        super().__init__(message, kind=kind, hint=hint)
        self.number = number

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_start, (self.message, self.kind, self.hint, self.number)


def _rebuild_start(message: str, kind: str, hint: str | None, number: int) -> StartError:
    return StartError(message, kind=kind, hint=hint, number=number)


class Interrupted(EndError):
    """A signal asked this run to end. Not a failure: handlers of failures let it through."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}", kind="interrupted")
        self.signum = signum

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return SIGNAL_BASE + self.signum

    def __reduce__(self) -> tuple[object, ...]:
        return Interrupted, (self.signum,)


class TimedOut(Interrupted):
    """The time limit of the whole run has expired: it ends as by SIGTERM, and counts as a failure."""

    def __init__(self, limit: float) -> None:
        super().__init__(signal.SIGALRM)
        self.message = f"stopped: the time limit of {limit:g} s (--timeout) is over"
        self.kind = "timeout"
        self.hint = "Give it longer, or find out what took so long: --verbose shows the times of all parts."
        self.limit = limit

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return FAILED

    def __reduce__(self) -> tuple[object, ...]:
        return TimedOut, (self.limit,)


_OF_ALL = frozenset(
    [
        errno.EACCES,
        errno.EAGAIN,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENODEV,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ENXIO,
        errno.EPERM,
        errno.EROFS,
    ]
)


def concerns_all(number: int | None) -> bool:
    """Whether an error number concerns a whole pool or filesystem, or this system, and not one dataset."""
    return number in _OF_ALL


LIMITS = "Look at limits (ulimit -a, systemd's TasksMax= and LimitNOFILE=), memory and disk space."
"""What to do if the system has run out of something."""

_LIMITED = frozenset([errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM])

FILTERED = (
    "A filter of system calls refuses it: a systemd unit must not set RestrictSUIDSGID=, nor a SystemCallFilter= without "
    "@file-system; a container's profile must know openat2(2). It needs Linux 5.6."
)


class FilteredError(OSError):
    """A system call is refused as such, whatever its arguments."""


def advice_of(error: OSError) -> str | None:
    """Return what to do if the system, not the request, is to blame: a limit, a filter. None in other cases."""
    if isinstance(error, FilteredError):
        return FILTERED
    return LIMITS if error.errno in _LIMITED else None


def end_of(error: BaseException) -> EndError:
    """Return the error that an exception ends a command with: itself, or its form by :func:`unforeseen`."""
    return error if isinstance(error, EndError) else unforeseen(error)


def unforeseen(error: BaseException) -> KopiatomicError:
    """Describe an error that no check foresaw: the system's refusal (descriptors, processes, memory, space), or our own bug."""
    if isinstance(error, KopiatomicError):
        return error
    if not isinstance(error, OSError):
        return internal(error)
    where = f" ({printable(os.fsdecode(error.filename))})" if isinstance(error.filename, str | bytes) else ""
    return KopiatomicError(
        f"the system refused something that kopiatomic needs: {error.strerror or error}{where}",
        kind="filtered" if isinstance(error, FilteredError) else "system",
        hint=advice_of(error) or LIMITS,
    )


def internal(error: BaseException) -> KopiatomicError:
    """Describe one of our own bugs in one line: what, and where in the code."""
    return KopiatomicError(
        f"internal error: {type(error).__name__}: {error}{place_in_code(error)}",
        kind="internal",
        hint="This is a defect of kopiatomic. Please report it with this line and the command.",
    )


def place_in_code(error: BaseException) -> str:
    """Return where an error was raised, in brackets; empty if unknown."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return "" if place is None else f" ({os.path.basename(place.tb_frame.f_code.co_filename)}:{place.tb_lineno})"


def place_needed(what: str, place: str) -> KopiatomicError:
    """Return the error for one of our places that is taken. ``what`` says by what."""
    return KopiatomicError(
        f"{what}, where --include-unmounted and --volumes put what has no place of its own",
        kind="same-place",
        hint=f"Rename {place}, or back up what has no place with a command of its own and --name.",
    )


DEVICES_SILENT = "its devices do not answer"
"""Why a pool is suspended."""


def suspension(pools: Iterable[str]) -> str:
    """Say that pools are suspended."""
    return f"the pool {', '.join(map(printable, pools))} is suspended"


def pool_suspended(pool: str, consequence: str = "") -> KopiatomicError:
    """Return the error for a pool whose devices have failed: with failmode=wait every request to it waits for ever.

    ``consequence`` says what was not done because of it.
    """
    return KopiatomicError(
        f"{consequence}{': ' if consequence else ''}{suspension([pool])}: {DEVICES_SILENT}",
        kind="pool-suspended",
        hint=f"See 'zpool status {pool}'; when the devices are back, 'zpool clear {pool}'.",
    )
