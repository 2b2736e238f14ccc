"""A view that outlives the command that asked for it: the run is that of another process, the holder.

The command, the *starter*, forks the holder before anything is made, and the holder is the run's main process from the beginning
to the end. So one process is responsible at every moment, and all that ends a run ends this one too. What is handed over is
only the right to live: the holder ends with its starter until :meth:`Starter.let_go`, and on its own account afterwards. By then
it has left the starter's session, process group and streams.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from kopiatomic.errors import SAVED, Interrupted, KopiatomicError, unforeseen
from kopiatomic.immutable import immutable
from kopiatomic.model.report import Hold, HoldEnd, HoldReport
from kopiatomic.runs.freezing import Frozen, Session
from kopiatomic.state import locks
from kopiatomic.system import channel, host, process, signals, worker
from kopiatomic.system.channel import Channel, ClosedError

_PAUSE = 0.05


@immutable
class _Ready:
    """From the holder: the view is there; with what the starter is to tell its caller."""

    announcement: object


@immutable
class _LetGo:
    """To the holder: its starter ends now."""


@immutable
class _Ended:
    """From the holder: it has ended, and was never let go."""

    exit_code: int


class _HolderKilledError(KopiatomicError):
    def __init__(self) -> None:
        super().__init__(
            "the process that was to hold the view was killed",
            kind="holder-killed",
            hint="Was it the out-of-memory killer? See 'dmesg' or 'journalctl -k'. What was made is removed.",
        )


def start(hold: Callable[[Starter], int], tell: Callable[[object], None]) -> int:
    """Fork the holder, which calls ``hold``. Return 0 when it is on its own, else the exit code that ``hold`` returned.

    ``tell`` tells the caller what is held; if it fails, or this process ends, the run ends. A signal that asks this process to
    end is passed on. Raises KopiatomicError.
    """
    ours, theirs = channel.pair()
    starter = os.getpid()
    # Before the fork: a signal that comes right after it is passed on, too.
    with signals.handled():
        pid = signals.fork()
        if pid == 0:
            try:
                ours.close()
                _be_holder(hold, theirs, starter)
            finally:
                os._exit(1)
        theirs.close()
        try:
            return _follow(ours, tell)
        except Interrupted as error:
            with signals.deferred():
                with suppress(ProcessLookupError):
                    os.kill(pid, error.signum)
                try:
                    return _follow(ours, None)
                except _HolderKilledError:
                    # By the signal: nothing was there to be removed.
                    raise error from None
        finally:
            ours.close()


def _follow(holder: Channel, tell: Callable[[object], None] | None) -> int:
    """Wait for the holder. Without ``tell`` it is not let go any more. Raises KopiatomicError, Interrupted."""
    while True:
        try:
            message = holder.receive()
            if isinstance(message, _Ready) and tell is not None:
                tell(message.announcement)
                signals.check()
                holder.send(_LetGo())
                return SAVED
        except ClosedError:
            raise _HolderKilledError from None
        if isinstance(message, KopiatomicError):
            raise message
        if isinstance(message, _Ended):
            return message.exit_code


def _be_holder(hold: Callable[[Starter], int], theirs: Channel, starter: int) -> None:
    os.setsid()
    signals.forget()
    host.here().end_with_parent(signal.SIGTERM)
    if os.getppid() != starter:
        # It had ended before the kernel was asked to signal that.
        return
    answer: object
    its_starter = Starter(theirs)
    try:
        answer = _Ended(hold(its_starter))
    except BaseException as error:
        answer = unforeseen(error)
    if not its_starter.has_let_go:
        with suppress(ClosedError):
            theirs.send(answer)


class Starter:
    """The command that has started this process, the holder."""

    def __init__(self, end: Channel) -> None:
        self._channel = end
        self.has_let_go = False
        """Whether this process is on its own: nobody waits for an answer any more."""

    def let_go(self, announcement: object) -> None:
        """Be on our own from now on, when the starter has told its caller that the view is there.

        Raises KopiatomicError if the starter has ended before, and Interrupted.
        """
        worker.leave_streams()
        # From here on the end of the channel says so: a starter that has let us go may end before we notice.
        host.here().end_with_parent(0)
        try:
            self._channel.send(_Ready(announcement))
            self._channel.receive()
        except ClosedError:
            raise KopiatomicError("the command that asked for this view has ended", kind="starter-ended") from None
        self.has_let_go = True
        self._channel.close()


@immutable
class Until:
    """How long a view is held. ``watch`` watches the process, and ``deadline`` is a time of CLOCK_MONOTONIC in seconds."""

    hold: Hold
    watch: int
    deadline: float


@contextmanager
def watching(pid: int, seconds: float) -> Iterator[Until]:
    """Watch the process that a view is to be held for, ``seconds`` from now at the longest. Raises KopiatomicError.

    The caller makes sure that the number means that process until this is entered.
    """
    try:
        watch = host.here().watch(pid)
    except OSError as error:
        raise KopiatomicError(
            f"process {pid}, which the view is to be held for, cannot be watched: {error.strerror}",
            kind="no-process",
            hint="Has it ended? 'ps' lists the processes.",
        ) from None
    try:
        yield Until(Hold(pid, process.name_of(pid), time.time() + seconds), watch, time.monotonic() + seconds)
    finally:
        os.close(watch)


def hold(session: Session, frozen: Frozen, report: HoldReport, until: Until) -> None:
    """Hold a view until its process ends, the deadline, or a request (:func:`end`). Raises KopiatomicError, Interrupted.

    The report has ``until.hold`` already: so it is recorded while the view is held.
    """
    report.ended_by = frozen.supervisor.hold(until.watch, until.deadline, session.asked_to_end)
    problems = frozen.supervisor.check()
    if problems:
        raise KopiatomicError(
            f"what was held is not the frozen view: {'; '.join(problems)}",
            kind="view-changed",
            hint="What was made of it is not to be trusted. Find out who removed it, and run again.",
        )
    if report.ended_by is HoldEnd.DEADLINE:
        raise KopiatomicError(
            "the deadline of the view is over, and the process that it was held for has not ended",
            kind="hold-deadline",
            hint="What was read of it is complete only if its reader had ended. Give it longer.",
        )
    report.held = True


def end(run_id: str, timeout: float) -> bool:
    """Ask a run to end that holds a view, and wait until nothing is left of it. Return whether it was alive.

    Raises KopiatomicError after ``timeout`` seconds, and Interrupted.
    """
    deadline = time.monotonic() + timeout
    if not locks.ask_to_end(run_id):
        return False
    while locks.alive(run_id):
        if time.monotonic() >= deadline:
            raise KopiatomicError(
                f"run {run_id} was asked to end and has not ended after {timeout:g} s",
                kind="hold-stuck",
                hint="See 'zpool status' and 'dmesg' for what the kernel waits for. It goes on ending by itself.",
            )
        signals.sleep(_PAUSE)
    return True
