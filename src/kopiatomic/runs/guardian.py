"""The guardian: runs what must come before the snapshots, and what must come after them whatever dies.

If ``before_freeze`` was started, ``after_freeze`` comes to its end at least once. The guardian runs both, in a session of its
own, so that a terminal's Ctrl-C ends neither; if the main process dies, it runs the second by itself, and if it dies, the main
process does. What is owed is recorded before ``before_freeze`` is started, for when all of them die (``runs/owed.py``). It runs
again only if its end is not recorded, and is told so by KOPIATOMIC_AGAIN.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from kopiatomic.errors import EndError, Interrupted, end_of
from kopiatomic.hooks.hook import Moment
from kopiatomic.hooks.run import HookError
from kopiatomic.immutable import immutable
from kopiatomic.model.report import HookRun, Report
from kopiatomic.runs import tied
from kopiatomic.runs.hooks import Hooks, Told
from kopiatomic.runs.owed import Debt
from kopiatomic.system import channel, children, signals, worker
from kopiatomic.system.channel import Channel, ClosedError

_PATIENCE = 10.0
"""Seconds that the guardian gives the keeper of a dead main process for snapshots that are being made: then it lets go."""


@immutable
class _Begin:
    """To the guardian: run ``before_freeze``."""

    told: Told


@immutable
class _End:
    """To the guardian: run ``after_freeze``."""

    told: Told


@immutable
class _Endable:
    """From the guardian: from now on SIGTERM ends ``before_freeze``. One that came earlier would be lost."""


@immutable
class _Line:
    """From the guardian: a line of a hook's output."""

    text: str


@immutable
class _Done:
    """From the guardian: what came of the hooks of a moment, and what ended them."""

    runs: tuple[HookRun, ...]
    error: EndError | None = None


class Guardian:
    """The pair of hooks around the snapshots of a run, in the main process. A context manager: at its end nothing is owed.

    ``making`` is a descriptor that the keeper inherits and closes when the snapshots exist or cannot be made.
    """

    def __init__(self, hooks: Hooks, report: Report, debt: Debt) -> None:
        self._hooks = hooks
        self._report = report
        self._debt = debt
        self._say = hooks.say
        self._channel: Channel | None = None
        self._pid = 0
        self._begun = False
        self._endable = False
        self._ended = False
        self.making: int | None = None

    def __enter__(self) -> Self:
        if not self._hooks.of(Moment.BEFORE_FREEZE, Moment.AFTER_FREEZE):
            return self
        ours, theirs = channel.pair()
        made, self.making = os.pipe2(os.O_CLOEXEC)
        main = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                ours.close()
                os.close(self.making)
                _Serving(self._hooks, self._debt, theirs, made, main).run()
            finally:
                os._exit(0)
        theirs.close()
        os.close(made)
        self._channel = ours
        return self

    def begin(self) -> None:
        """Run ``before_freeze``. Raises HookError, StateError if what is owed cannot be recorded, and Interrupted."""
        if self._channel is None:
            return
        self._debt.incur(self._hooks.of(Moment.AFTER_FREEZE))
        self._begun = True
        told = self._hooks.told(Moment.BEFORE_FREEZE, final=False)
        try:
            self._channel.send(_Begin(told))
            done = self._receive(self._channel)
        except Interrupted:
            with signals.deferred():
                self._stop(self._channel)
            raise
        except ClosedError:
            raise _killed() from None
        self._report.hooks += done.runs
        if done.error is not None:
            raise done.error

    def end(self) -> None:
        """Run ``after_freeze``, if that is owed: once to its end. What goes wrong is in the report."""
        if self._channel is None or self._ended or not self._begun:
            return
        self._ended = True
        self._close_making()
        with signals.deferred():
            try:
                self._channel.send(_End(self._hooks.told(Moment.AFTER_FREEZE, final=False)))
                done = self._receive(self._channel)
            except ClosedError:
                done = self._end_in_its_place()
        self._report.hooks += done.runs

    def _end_in_its_place(self) -> _Done:
        """Run ``after_freeze`` in place of a killed guardian, unless its end is recorded."""
        again = self._debt.again()
        if again is None:
            if self._hooks.of(Moment.AFTER_FREEZE):
                self._report.warnings.append(_NOT_KNOWN)
            return _Done(())
        told = self._hooks.told(Moment.AFTER_FREEZE, final=False, again=again)
        return _after(self._hooks, self._debt, self._say, told)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is None:
            return
        try:
            self.end()
        finally:
            self._close_making()
            self._channel.close()
            children.reap(self._pid)

    def _close_making(self) -> None:
        channel.close_quietly(self.making)
        self.making = None

    def _receive(self, end: Channel) -> _Done:
        """Return what came of the hooks of a moment; their output is shown. Raises ClosedError, Interrupted."""
        while (done := self._received(end)) is None:
            continue
        return done

    def _received(self, end: Channel) -> _Done | None:
        """Take the guardian's next message. Raises ClosedError, Interrupted."""
        message = end.receive()
        if isinstance(message, _Line):
            self._say(message.text)
        elif isinstance(message, _Endable):
            self._endable = True
        return message if isinstance(message, _Done) else None

    def _stop(self, end: Channel) -> None:
        """End ``before_freeze``, and take what came of it until then; the guardian may be dead."""
        done = None
        try:
            while done is None and not self._endable:
                done = self._received(end)
            if done is None:
                os.kill(self._pid, signal.SIGTERM)
                done = self._receive(end)
        except ClosedError:
            return
        self._report.hooks += done.runs


_NOT_KNOWN = (
    "after_freeze has run to its end, but whether it failed is not known: the process that ran it was killed right then"
)


def _killed() -> HookError:
    return HookError(
        "the process that runs before_freeze and after_freeze was killed",
        kind="guardian-killed",
        hint="Was it the out-of-memory killer? See 'dmesg' or 'journalctl -k'. Nothing was saved, and after_freeze has run.",
    )


def _after(hooks: Hooks, debt: Debt, say: Callable[[str], None], told: Told) -> _Done:
    """Run ``after_freeze``, whatever becomes of each of its hooks, and record that it has ended."""
    debt.start()
    with signals.deferred():
        runs = [hooks.call(one, told, say, insistent=False) for one in hooks.of(Moment.AFTER_FREEZE)]
    debt.settle()
    return _Done(tuple(runs))


class _Serving:
    """The guardian's own side."""

    def __init__(self, hooks: Hooks, debt: Debt, to_main: Channel, made: int, main: int) -> None:
        self._hooks = hooks
        self._debt = debt
        self._channel = to_main
        self._made = made
        self._main = main
        self._owed = False

    def run(self) -> None:
        """Run as the guardian."""
        worker.detach()
        try:
            while True:
                message = self._channel.receive()
                if isinstance(message, _Begin):
                    self._owed = True
                    self._channel.send(self._before(message.told))
                elif isinstance(message, _End):
                    done = _after(self._hooks, self._debt, self._tell, message.told)
                    self._owed = False
                    self._channel.send(done)
        except ClosedError:
            if self._owed:
                self._end_alone()

    def _tell(self, text: str) -> None:
        try:
            self._channel.send(_Line(text))
        except ClosedError:
            # Nobody is there to read it; the hook goes on.
            return

    def _before(self, told: Told) -> _Done:
        """Run ``before_freeze`` until one of its hooks fails; SIGTERM ends it, from the main process or by its death."""
        runs: list[HookRun] = []
        try:
            with tied.ended_with(self._main):
                self._channel.send(_Endable())
                for one in self._hooks.of(Moment.BEFORE_FREEZE):
                    runs.append(self._hooks.call(one, told, self._tell))
                    if runs[-1].error is not None:
                        return _Done(tuple(runs), runs[-1].error)
        except Exception as error:
            return _Done(tuple(runs), end_of(error))
        return _Done(tuple(runs))

    def _end_alone(self) -> None:
        """Run ``after_freeze`` in place of a dead main process, when the keeper makes no snapshots any more."""
        poll = select.poll()
        poll.register(self._made, select.POLLIN)
        deadline = time.monotonic() + _PATIENCE
        while (left := deadline - time.monotonic()) > 0 and not poll.poll(left * 1000):
            continue
        _after(self._hooks, self._debt, self._tell, self._hooks.told(Moment.AFTER_FREEZE, final=False))
