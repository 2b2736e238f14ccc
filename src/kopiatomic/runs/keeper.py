"""The keeper: makes the snapshots, starts the launcher, and outlives it to release and remove what was made.

It has a session of its own, so that a terminal's Ctrl-C does not reach it. It owns the descriptor that ZFS's holds depend on and
closes it last, when everything of the launcher's has ended (docs/architecture.md, "Processes"). If the main process dies, it ends
the rest in the same order.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from kopiatomic.errors import EndError, KopiatomicError, end_of, unforeseen
from kopiatomic.filesystems.backends import Maker
from kopiatomic.hooks.holder import Held
from kopiatomic.hooks.together import Together
from kopiatomic.immutable import immutable
from kopiatomic.model.plan import Plan
from kopiatomic.model.snapshots import Sets
from kopiatomic.platforms.platform import MountedView, Platform, RecordIntents
from kopiatomic.platforms.steps import steps_of
from kopiatomic.runs import launcher, tied
from kopiatomic.system import children, host, inherited, worker
from kopiatomic.system.channel import Channel, ClosedError, close_quietly

_WRITE_OUT = 30.0
"""Seconds that writing out may take before anything is held still: it may wait for a filesystem that does not answer."""

_SPARE = 8
"""Descriptors that are kept for the removal: where they cannot be had, nothing is made that could then not be removed."""


@immutable
class Mount:
    """To the keeper: start the launcher. ``plan`` is the plan of what was made."""

    plan: Plan


@immutable
class Release:
    """To the keeper: the main process has closed its descriptor; release the snapshots."""


@immutable
class Made:
    """From the keeper: the sets; how the writers were held, by label; and those that were not, with the reason."""

    sets: Sets
    held: tuple[Held, ...] = ()
    not_held: tuple[str, ...] = ()


@immutable
class Launched:
    """From the keeper: the launcher's process id, as the main process sees it."""

    pid: int


@immutable
class NamespaceGone:
    """From the keeper: no process of the launcher's is left, and no mount except those that :class:`Released` will name."""


@immutable
class Released:
    """From the keeper, last: what could not be removed, in words."""

    left: tuple[str, ...]


@immutable
class Equipment:
    """What a keeper needs when it is forked."""

    makers: list[Maker]
    cleanup_fd: int | None
    to_main: Channel
    launcher_to_main: Channel
    platform: Platform
    run_id: str
    record: RecordIntents
    close_in_child: Callable[[], None]
    """Closes the main process's own ends."""
    writers: Together
    """What is held still while the snapshots are made."""
    making: int | None
    """A descriptor that is closed when the snapshots exist or cannot be made."""
    main: int
    """The main process."""
    orphaned: Callable[[Sequence[str]], None]
    """Ends the run in place of a dead main process; takes what is left of the snapshots, in words."""


def main(equipment: Equipment) -> None:
    """Run as the keeper."""
    # Close these before anything else is opened: where descriptors are few, the keeper must be able to report that.
    equipment.close_in_child()
    worker.detach()
    _Keeper(equipment).run()


def remove_all(makers: Sequence[Maker]) -> list[str]:
    """Remove all snapshots of a run. Return what is left, in words."""
    left: list[str] = []
    for maker in makers:
        try:
            left += maker.remove()
        except Exception as error:
            left.append(
                f"snapshots of this run may be left: {unforeseen(error).message} (kopiatomic recover removes them)"
            )
    return left


def remove_view(view: MountedView) -> list[str]:
    """Remove what outlives the launcher of the view, before the snapshots go. Return what is left, in words."""
    try:
        return view.remove()
    except (KopiatomicError, OSError) as error:
        return [f"mounts of this run may be left: {unforeseen(error).message} (kopiatomic recover removes them)"]


def untie_all(makers: Sequence[Maker]) -> None:
    """Untie the snapshots, before the last close of the descriptor. Waits as long as a pool is suspended."""
    for maker in makers:
        if maker.needs_descriptor():
            maker.untie()


def _write_out(makers: Sequence[Maker]) -> None:
    """Write out what programs have written, so that the snapshot calls have less to wait for. It may take its time."""

    def write() -> None:
        os.sync()
        for maker in makers:
            maker.write_out()

    with suppress(KopiatomicError):
        worker.call(write, lambda end: end.receive(_WRITE_OUT))


class _Keeper:
    def __init__(self, equipment: Equipment) -> None:
        self._equipment = equipment
        self._channel = equipment.to_main
        self._sets: Sets | None = None
        self._tied = False
        self._launcher: int | None = None
        self._view: MountedView | None = None
        self._left: list[str] = []
        self._main_alive = True
        self._spare: list[int] = []

    def run(self) -> None:
        try:
            while len(self._spare) < _SPARE:
                self._spare.append(inherited.open_null())
            self._equipment.platform.adopt()
            try:
                made = self._make_sets()
            finally:
                close_quietly(self._equipment.making)
            self._sets = made.sets
            self._send(made)
            message = self._receive()
            if isinstance(message, Mount):
                self._launch(message.plan)
                self._wait_for_launcher()
                self._send(NamespaceGone())
                self._receive()
        except ClosedError:
            self._main_alive = False
        except Exception as error:
            self._fail(end_of(error))
        self._end()

    def _receive(self) -> object:
        """Return the main process's next message. Raises ClosedError where that process is gone."""
        if not self._main_alive:
            raise ClosedError
        return self._channel.receive()

    def _fail(self, error: EndError) -> None:
        """Send the error to the main process, and wait until it has closed its copy of the descriptor."""
        self._send(error)
        try:
            self._receive()
        except ClosedError:
            self._main_alive = False

    def _send(self, message: object) -> None:
        try:
            self._channel.send(message)
        except ClosedError:
            self._main_alive = False

    def _make_sets(self) -> Made:
        """Make all snapshot calls back to back, then tie each set, then read each back."""
        makers = self._equipment.makers
        writers = self._equipment.writers
        with writers:
            writers.prepare()
            for maker in makers:
                maker.prepare()
            if writers.any:
                _write_out(makers)
                for maker in makers:
                    maker.once = True
            # Some may wait for others for long, while those that are held make everybody wait.
            with tied.ended_with(self._equipment.main):
                writers.hold()
            # As little as possible from here to the release.
            try:
                made = [(maker, instant) for maker in makers if (instant := maker.make()) is not None]
            finally:
                held = writers.release()
        writers.require_held(held)
        untied = []
        self._tied = True
        for maker, instant in made:
            maker.tie(self._equipment.cleanup_fd)
            since = time.monotonic_ns() - instant.monotonic_before
            untied.append(since if maker.needs_descriptor() else None)
        read = [maker.read_back(instant) for maker, instant in made]
        sets = [replace(one, untied_ns=since) for one, since in zip(read, untied, strict=True) if one.snapshots]
        made_sets = Sets(tuple(sets), tuple(refusal for maker in makers for refusal in maker.refused))
        return Made(made_sets, tuple(held), tuple(error.message for error in writers.left_out))

    def _launch(self, plan: Plan) -> None:
        """Fork the launcher the way the platform does it."""
        assert self._sets is not None
        equipment = self._equipment
        platform = equipment.platform
        steps = steps_of(plan, self._sets)
        self._view = view = platform.view(plan, steps, equipment.run_id, equipment.record)
        view.look()
        pid = platform.fork()
        if pid == 0:
            self._channel.close()
            self._use_spare()
            try:
                launcher.main(equipment.launcher_to_main, platform, view)
            except BaseException as error:
                self._equipment.launcher_to_main.send(unforeseen(error))
            finally:
                os._exit(0)
        self._launcher = pid
        self._equipment.launcher_to_main.close()
        self._send(Launched(pid))

    def _wait_for_launcher(self) -> None:
        """Wait until the launcher and all below it have ended; if the main process dies, end it at once."""
        assert self._launcher is not None
        watch = host.here().watch(self._launcher)
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        if self._main_alive:
            poll.register(self._channel.fileno(), select.POLLIN)
        try:
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if watch in ready:
                    break
                # Nothing is sent while the launcher lives: the main process has ended, or wants the launcher to end.
                poll.unregister(self._channel.fileno())
                self._main_alive = False
                with suppress(ProcessLookupError):
                    host.here().kill(self._launcher, watch)
        finally:
            os.close(watch)
        children.reap(self._launcher)
        self._launcher = None
        self._equipment.platform.end_orphans()

    def _end_launcher(self) -> None:
        if self._launcher is not None:
            children.kill(self._launcher)
            self._wait_for_launcher()

    def _remove_view(self) -> None:
        if self._view is not None:
            self._left = remove_view(self._view)

    def _untie(self) -> None:
        if self._tied:
            untie_all(self._equipment.makers)

    def _use_spare(self) -> None:
        while self._spare:
            os.close(self._spare.pop())

    def _end(self) -> None:
        """Close the descriptor, which destroys ZFS's snapshots, then remove what the kernel does not tie. The last step."""
        self._use_spare()
        for step in (self._end_launcher, self._remove_view, self._untie):
            try:
                step()
            except Exception as error:
                # The next steps must run whatever went wrong here; what is left is found by looking.
                self._send(unforeseen(error))
        close_quietly(self._equipment.cleanup_fd)
        left = self._left + remove_all(self._equipment.makers)
        self._send(Released(tuple(left)))
        if not self._main_alive:
            self._equipment.orphaned(left)
