"""The main process's side of keeper and launcher: starts them, talks to them, and makes sure that all of them end."""

from __future__ import annotations

import gc
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from kopiatomic.errors import EndError, KopiatomicError, unforeseen
from kopiatomic.filesystems.backends import Maker
from kopiatomic.hooks.holder import Held
from kopiatomic.hooks.together import Together
from kopiatomic.model.plan import Plan
from kopiatomic.model.record import Losses, Recorded
from kopiatomic.model.report import HoldEnd
from kopiatomic.model.snapshots import Sets
from kopiatomic.platforms.platform import Platform, RecordIntents
from kopiatomic.platforms.steps import View, steps_of
from kopiatomic.runs import keeper, launcher
from kopiatomic.runs.patience import HeldUpError, Patience
from kopiatomic.runs.streams import Streams
from kopiatomic.state.ownership import PREFIX
from kopiatomic.system import channel, children, host, libzfs_core, process, signals, worker
from kopiatomic.system.channel import Channel, ClosedError
from kopiatomic.text import first_few

RELEASE_TIMEOUT = 180.0
"""Seconds to wait until the keeper has removed everything; it reports within 60 for each pool, unless one hangs."""

_SHELL_TOLD_AGAIN = 1.0
"""Seconds between two requests to a shell to end."""

_ASKED_AGAIN = 0.5
"""Seconds between two looks whether a held view is still wanted."""

_LAUNCHER_TIMEOUT = 10.0
_KILLED_TIMEOUT = 30.0
"""Seconds that an engine has to end after SIGKILL; only an uninterruptible call takes longer."""

_HELD_UP_TIMEOUT = 2.0
"""The same where something holds the kernel up, which may be why it does not end."""


class Supervisor:
    """The processes of one run. A context manager: however the block is left, none of them stays.

    Afterwards ``left`` names, in words, what could not be removed. ``unfinished`` says that the kernel holds the keeper up:
    it lives on, removes everything when it can, and calls ``orphaned``.
    """

    def __init__(
        self,
        run_id: str,
        plan: Plan,
        makers: list[Maker],
        orphaned: Callable[[Sequence[str]], None],
        patience: Patience,
        *,
        platform: Platform,
        record: RecordIntents,
        writers: Together | None = None,
        making: int | None = None,
    ) -> None:
        """``writers`` are held still while the snapshots are made.

        ``making`` is a descriptor that the keeper closes when the snapshots exist or cannot be made.
        """
        self._making = making
        self._writers = writers or Together(())
        self.held: Sequence[Held] = ()
        """How the writers were held."""
        self.not_held: Sequence[str] = ()
        """Why those that are not required were not held."""
        self._platform = platform
        self._record = record
        self._sets: Sets | None = None
        self._run_id = run_id
        self._plan = plan
        self._makers = makers
        self._orphaned = orphaned
        self._patience = patience
        self._streams: Streams | None = None
        """Those of the program that was started last."""
        self._cleanup_fd: int | None = None
        self._launcher_pid = 0
        self._launcher_watch: int | None = None
        self.left: list[str] = []
        self.unfinished = False

    def __enter__(self) -> Self:
        if any(maker.needs_descriptor() for maker in self._makers):
            self._cleanup_fd = libzfs_core.open_cleanup_descriptor()
        self._keeper, to_main = channel.pair()
        self._launcher, launcher_to_main = channel.pair()
        equipment = keeper.Equipment(
            makers=self._makers,
            cleanup_fd=self._cleanup_fd,
            to_main=to_main,
            launcher_to_main=launcher_to_main,
            platform=self._platform,
            run_id=self._run_id,
            record=self._record,
            writers=self._writers,
            making=self._making,
            main=os.getpid(),
            close_in_child=self._close_own_ends,
            orphaned=self._orphaned,
        )
        self._platform.adopt()
        # What exists now stays until the end; without further collection its pages stay shared with the children.
        gc.freeze()
        gc.enable()
        self._keeper_pid = os.fork()
        if self._keeper_pid == 0:
            try:
                keeper.main(equipment)
            finally:
                os._exit(0)
        to_main.close()
        launcher_to_main.close()
        return self

    def _close_own_ends(self) -> None:
        self._keeper.close()
        self._launcher.close()

    def freeze(self) -> Sets:
        """Wait until the keeper has made the sets. Raises KopiatomicError, Interrupted."""
        message = self._from_keeper()
        assert isinstance(message, keeper.Made)
        self._sets = sets = message.sets
        self.held, self.not_held = message.held, message.not_held
        for maker in self._makers:
            maker.recall(sets)
        return sets

    def mount(self, plan: Plan) -> View:
        """Have the view assembled from a plan of what was made. Raises KopiatomicError, Interrupted."""
        self._plan = plan
        try:
            self._keeper.send(keeper.Mount(plan))
        except ClosedError:
            raise _died("keeper") from None
        message = self._from_keeper()
        assert isinstance(message, keeper.Launched)
        with suppress(ProcessLookupError):
            # It may already have failed and ended; the reason is in the channel.
            self._launcher_watch = host.here().watch(message.pid)
            self._launcher_pid = message.pid
        view = self._from_launcher()
        assert isinstance(view, View)
        return view

    def record(self, losses: Losses, about: Mapping[str, Any], cache: int | None) -> Recorded:
        """Have the metadata record of the view made; ``cache`` is its directory, open. Raises KopiatomicError, Interrupted."""
        assert self._sets is not None
        states = {
            (made.kind, one.dataset): (one.before, one.after) for made in self._sets.sets for one in made.snapshots
        }
        self._tell_launcher(launcher.Record(losses, about, states))
        try:
            self._launcher.send_descriptors([] if cache is None else [cache])
        except ClosedError:
            raise _died("launcher") from None
        recorded = self._from_launcher()
        assert isinstance(recorded, Recorded)
        return recorded

    def run(
        self, start: launcher.Start, streams: Streams, stop_timeout: float, *, limit: float | None = None
    ) -> launcher.Checked:
        """Start a program in the view and wait for its end, ``limit`` seconds at most. Raises KopiatomicError, Interrupted.

        When that time is over, it is stopped and TimeLimitError is raised. A signal that asks the run to end stops it: politely
        once, with SIGKILL after ``stop_timeout`` seconds or at the next signal; after that no other is started. Another program,
        with other streams, can be started when one has ended, also where that could not be started (StartError).
        """
        signals.check()
        self._close_streams()
        theirs = streams.open()
        self._streams = streams
        with streams.attended():
            self._start(start, theirs)
            stopping = _Stopping(
                self._launcher, stop_timeout, self._patience, shell=start.options.stop == signal.SIGHUP, limit=limit
            )
            result: launcher.Checked | None = None
            while result is None or streams.unfinished:
                stopping.consider()
                self._look_for_an_obstacle(stopping)
                for fd, events in self._ready(streams, stopping, ended=result is not None):
                    if fd == signals.fd():
                        signals.drain()
                        streams.after_signal(self._tell_launcher)
                    elif fd != self._launcher.fileno():
                        streams.handle(fd, events)
                    else:
                        # How it ended must be known even, and above all, if a signal has stopped it.
                        with signals.deferred():
                            message = self._from_launcher()
                        if isinstance(message, launcher.Checked):
                            result = message
                        else:
                            streams.handle_message(message, self._tell_launcher)
        self._close_streams()
        if signals.count():
            # It may have received the same signal (systemctl stop signals the whole group) before the launcher was told.
            return replace(result, end=replace(result.end, stopped=True))
        if stopping.is_late:
            raise process.TimeLimitError(f"it did not end within {limit:g} s", kind="time-limit")
        return result

    def hold(self, watch: int, deadline: float, asked: Callable[[], bool]) -> HoldEnd:
        """Keep the view until a watched process has ended, or until ``asked`` says so, which is called twice a second.

        The deadline is a time of CLOCK_MONOTONIC in seconds. Return which of the three came first. Raises KopiatomicError,
        Interrupted.
        """
        while not asked():
            left = deadline - time.monotonic()
            if left <= 0:
                return HoldEnd.DEADLINE
            self._patience.look()
            poll = select.poll()
            ends = (self._launcher.fileno(), self._keeper.fileno())
            for fd in (watch, *ends, signals.fd()):
                if fd is not None:
                    poll.register(fd, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(_milliseconds(left, _ASKED_AGAIN))}
            signals.check()
            # Nothing is sent meanwhile: one that says something has failed, or ended.
            if ends[0] in ready:
                self._from_launcher()
            if ends[1] in ready:
                self._from_keeper()
            if watch in ready:
                return HoldEnd.PROCESS
        return HoldEnd.REQUEST

    def check(self) -> Sequence[str]:
        """Return what is wrong with the mounts, in words, while no program runs. Raises KopiatomicError, Interrupted."""
        self._tell_launcher(launcher.Check())
        message = self._from_launcher()
        assert isinstance(message, launcher.Problems)
        return message.found

    def seen_from_outside(self) -> str:
        """Return the path of what a program in the view has as its root, as processes outside see it."""
        assert self._sets is not None
        steps = steps_of(self._plan, self._sets)
        view = self._platform.view(self._plan, steps, self._run_id, self._record)
        return view.seen_from_outside(self._launcher_pid)

    def _start(self, start: launcher.Start, theirs: launcher.ProgramStreams) -> None:
        """Send the launcher a program and its streams, which no process of ours but the launcher has from then on."""
        try:
            self._launcher.send(replace(start, foreground=theirs.foreground))
            self._launcher.send_descriptors(theirs.descriptors())
        except ClosedError:
            raise _died("launcher") from None
        finally:
            theirs.close()

    def _close_streams(self) -> None:
        if self._streams is not None:
            self._streams.close()
        self._streams = None

    def _ready(self, streams: Streams, stopping: _Stopping, *, ended: bool) -> list[tuple[int, int]]:
        """Wait until there is something to do. Return the ready descriptors, with poll(2)'s events."""
        poll = select.poll()
        for fd, events in streams.interests().items():
            poll.register(fd, events)
        if not ended:
            poll.register(self._launcher.fileno(), select.POLLIN)
        wakeup = signals.fd()
        if wakeup is not None:
            poll.register(wakeup, select.POLLIN)
        return poll.poll(_milliseconds(stopping.interval(), self._patience.interval()))

    def _tell_launcher(self, message: object) -> None:
        try:
            self._launcher.send(message)
        except ClosedError:
            raise _died("launcher") from None

    def _look_for_an_obstacle(self, stopping: _Stopping) -> None:
        """Give up on what holds the kernel up after waiting for it long enough. Raises HeldUpError."""
        try:
            self._patience.look()
        except HeldUpError:
            stopping.kill()
            raise

    def _from_keeper(self) -> object:
        try:
            message = self._patience.receive(self._keeper)
        except ClosedError:
            raise _died("keeper") from None
        if isinstance(message, EndError):
            raise message
        return message

    def _from_launcher(self) -> object:
        try:
            message = self._patience.receive(self._launcher)
        except ClosedError:
            raise _died("launcher") from None
        if isinstance(message, KopiatomicError):
            raise message
        return message

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with signals.deferred():
            try:
                self._release()
            except Exception as error:
                # What is not known to be gone counts as left: its record stays.
                self.left.append(
                    f"snapshots of this run may be left: {unforeseen(error).message} (kopiatomic recover removes them)"
                )

    def _release(self) -> None:
        """End the launcher first, with everything below it; then close our copy of the descriptor; then the keeper's."""
        self._launcher.close()
        if self._launcher_watch is not None:
            # Do not wait here for what holds the kernel up: the keeper does that.
            timeout = 0.0 if self._patience.obstacle() else _LAUNCHER_TIMEOUT
            if not channel.watched_ended(self._launcher_watch, timeout):
                with suppress(ProcessLookupError):
                    host.here().kill(self._launcher_pid, self._launcher_watch)
                channel.watched_ended(self._launcher_watch, timeout)
            os.close(self._launcher_watch)
        self._close_streams()
        try:
            if children.has_ended(self._keeper_pid):
                raise ClosedError
            self._release_keeper()
        except ClosedError:
            # The keeper was killed, and the launcher with it. End and remove in its place what does not end with them.
            children.reap(self._keeper_pid)
            self._platform.end_orphans()
            self._remove_in_its_place()
        finally:
            self._keeper.close()
            self._close_descriptor()

    def _close_descriptor(self) -> None:
        channel.close_quietly(self._cleanup_fd)
        self._cleanup_fd = None

    def _release_keeper(self) -> None:
        """Release the keeper. Raises ClosedError if it was killed."""
        self._close_descriptor()
        self._keeper.send(keeper.Release())
        deadline = time.monotonic() + RELEASE_TIMEOUT
        message: object = None
        try:
            while not isinstance(message, keeper.Released):
                message = self._patience.receive_at_the_end(self._keeper, max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            self._leave_alone(self._keeper_pid)
            return
        self.left += message.left
        children.reap(self._keeper_pid)

    def _remove_in_its_place(self) -> None:
        """Remove everything in another child: the last close of the descriptor may wait for a pool."""
        makers = self._makers
        # Until it had made the snapshots, nothing was mounted.
        steps = [] if self._sets is None else steps_of(self._plan, self._sets)
        view = self._platform.view(self._plan, steps, self._run_id, self._record)

        def remove() -> list[str]:
            left = keeper.remove_view(view)
            keeper.untie_all(makers)
            self._close_descriptor()
            return left + keeper.remove_all(makers)

        def receive(end: Channel) -> object:
            # Not before the child has its copy: ours must not be the last.
            self._close_descriptor()
            return self._patience.receive_at_the_end(end, RELEASE_TIMEOUT)

        try:
            self.left += worker.call(remove, receive)
        except worker.StuckError as error:
            self._leave_alone(error.pid)
        except (KopiatomicError, OSError) as error:
            self.left.append(f"snapshots of this run may be left: {error} (kopiatomic recover removes them)")

    def _leave_alone(self, pid: int) -> None:
        """Report which processes still wait, and for what. They continue by themselves when the kernel lets them."""
        self.unfinished = True
        waiting = ", ".join(f"{process_id} ({name})" for process_id, name in process.family(pid))
        names = [taken.dataset.name for taken in self._plan.taken]
        what = f"{len(names)} snapshot(s) named {PREFIX}{self._run_id} of {first_few(names)}"
        given_up = self._patience.given_up
        unknown = "the kernel is not done yet (see 'zpool status', 'dmesg')"
        why = f"{given_up.what} ({given_up.remedy})" if given_up else unknown
        self.left.append(
            f"{what}, for which these processes still wait: {waiting}; {why}. They remove all of it then; if they were "
            "killed: kopiatomic recover"
        )


def _milliseconds(*intervals: float | None) -> float | None:
    """Return the shortest of some intervals in seconds, for poll(2)."""
    known = [interval for interval in intervals if interval is not None]
    # At most an hour: poll(2) takes an int of milliseconds.
    return min(3600.0, *known) * 1000 + 1 if known else None


class _Stopping:
    """Stops the engine after a signal: once politely, then by force.

    A shell is signalled every second: bash ignores a SIGHUP that arrives while it starts (seen on 5.2).
    """

    def __init__(
        self, to_launcher: Channel, timeout: float, patience: Patience, *, shell: bool, limit: float | None = None
    ) -> None:
        self._limit = None if limit is None else time.monotonic() + limit
        self.is_late = False
        """Whether its own time was over."""
        self._channel = to_launcher
        self._pause = _SHELL_TOLD_AGAIN if shell else timeout
        self._again = 0.0
        self._timeout = timeout
        self._patience = patience
        self._deadline: float | None = None
        self._forced: float | None = None

    def consider(self) -> None:
        """Do what is due now. Raises KopiatomicError if even SIGKILL has not ended the engine."""
        self.is_late = self.is_late or (self._limit is not None and time.monotonic() >= self._limit)
        if self._deadline is None and (signals.count() or self.is_late):
            self._deadline = time.monotonic() + self._timeout
            self._tell()
        elif self._deadline is not None and self._forced is None and self._due():
            self.kill()
        elif self._deadline is not None and self._forced is None and time.monotonic() >= self._again:
            self._tell()
        elif self._forced is not None and time.monotonic() - self._forced > self._killed_timeout():
            raise KopiatomicError(
                "the engine was killed and does not end: it waits in the kernel",
                kind="engine-stuck",
                hint="For a suspended pool or a network filesystem? See 'zpool status', 'dmesg'. It ends when the kernel "
                "lets it, and what this run made goes with it.",
            )

    def _killed_timeout(self) -> float:
        return _HELD_UP_TIMEOUT if self._patience.obstacle() else _KILLED_TIMEOUT

    def _tell(self) -> None:
        self._again = time.monotonic() + self._pause
        self._send(forcefully=False)

    def kill(self) -> None:
        """End the engine by force."""
        if self._forced is None:
            self._forced = time.monotonic()
            self._send(forcefully=True)

    def _due(self) -> bool:
        return signals.insisted() or (self._deadline is not None and time.monotonic() >= self._deadline)

    def interval(self) -> float | None:
        """Return how many seconds to wait at most before something is due."""
        if self._forced is not None:
            return _HELD_UP_TIMEOUT
        if self._deadline is None:
            return None if self._limit is None else max(0.0, self._limit - time.monotonic())
        return max(0.0, min(self._deadline, self._again) - time.monotonic())

    def _send(self, *, forcefully: bool) -> None:
        try:
            self._channel.send(launcher.Stop(forcefully))
        except ClosedError:
            # The reader of the channel notices the end.
            return


def _died(who: str) -> KopiatomicError:
    return KopiatomicError(
        f"the {who} of this run was killed",
        kind=f"{who}-killed",
        hint="Was it the out-of-memory killer? See 'dmesg' or 'journalctl -k'. What was made is removed.",
    )
