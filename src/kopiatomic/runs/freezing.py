"""The part of a run that does not ask what the frozen view is for: its lock and record, the snapshots, the view.

``commands/backup.py`` backs the view up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from kopiatomic import filesystems
from kopiatomic.errors import end_of
from kopiatomic.filesystems import backends
from kopiatomic.filesystems.backends import Maker
from kopiatomic.hooks.holder import Holder
from kopiatomic.hooks.hook import Moment
from kopiatomic.hooks.together import Together
from kopiatomic.immutable import immutable
from kopiatomic.model.leftovers import Intent
from kopiatomic.model.plan import Plan, Refusal
from kopiatomic.model.report import Report
from kopiatomic.model.snapshots import Sets
from kopiatomic.output.summary import cleared_lines
from kopiatomic.platforms.steps import View
from kopiatomic.runs.hooks import Hooks
from kopiatomic.runs.owed import Debt
from kopiatomic.runs.patience import Patience
from kopiatomic.runs.recorder import Recorder
from kopiatomic.runs.recovery import Allowed, Recovery
from kopiatomic.runs.selecting import Selecting, not_atomic
from kopiatomic.runs.supervisor import Supervisor
from kopiatomic.secrets.masking import Secrets
from kopiatomic.state import liveness, locks, root_leftovers, roots
from kopiatomic.state.locks import RunLocks
from kopiatomic.state.records import Records
from kopiatomic.system import linux, signals
from kopiatomic.text import first_few

if TYPE_CHECKING:
    from kopiatomic.runs.guardian import Guardian

T = TypeVar("T")

_FREEZE_TRIES = 3
_LIST_AGAIN_FOR = 300.0
"""How often, and for how long (seconds), everything is listed again where a dataset was moved."""


@immutable
class Frozen:
    """What exists as long as the view does."""

    supervisor: Supervisor
    sets: Sets
    view: View


def new_run_id() -> str:
    """Return a name for a run: its start to the second (UTC), and 32 random bits."""
    return time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime()) + os.urandom(4).hex()


@contextmanager
def failures_in(report: Report) -> Iterator[None]:
    """Put any failure of the block into the report; the run continues after the block."""
    try:
        yield
    except Exception as error:
        report.error = end_of(error)


@contextmanager
def recorded(selecting: Selecting, secrets: Secrets, shown: str, hooks: Hooks | None = None) -> Iterator[Session]:
    """Hold the lock that marks this run as alive, and keep its record, up to its exit code; failures go into the report.

    ``shown`` is the command line as it may be shown, ``hooks`` are those of the profile.
    """
    report = selecting.report
    for value in secrets.values:
        linux.hide_argument(value)
    records = Records(selecting.options.state_dir)
    try:
        with _locked_and_recorded(selecting, records, secrets, shown, hooks) as session:
            yield session
    finally:
        if report.root:
            with signals.deferred():
                roots.remove_unneeded(selecting.directories())


@contextmanager
def _locked_and_recorded(
    selecting: Selecting, records: Records, secrets: Secrets, shown: str, hooks: Hooks | None
) -> Iterator[Session]:
    report, options = selecting.report, selecting.options
    with locks.run(report.run_id, records.directory) as held:
        recorder = Recorder(records, report, secrets, selecting.warn)
        recorder.begin(shown, options.keep_history, schedule=options.schedule or "", profile=options.profile)
        try:
            with failures_in(report):
                yield Session(selecting, held, recorder, hooks)
        finally:
            with signals.deferred():
                recorder.end()


class Session:
    """A run that has its own lock and is recorded, from its beginning to its exit code."""

    def __init__(self, selecting: Selecting, held: RunLocks, recorder: Recorder, hooks: Hooks | None = None) -> None:
        self._hooks = hooks
        self._selecting = selecting
        self._options = selecting.options
        self._report = selecting.report
        self._listener = selecting.listener
        self._platform = selecting.platform
        self._held = held
        self._recorder = recorder
        self.holders: Sequence[Holder] = ()
        """What is held still while the snapshots are made."""
        self._unfinished = False
        """Whether the keeper lives on, since the kernel holds it up."""

    def attempt(self, call: Callable[[Records], T]) -> T | None:
        """Query the records, or record something. Return None if they cannot be used, which the user is told once."""
        return self._recorder.attempt(lambda: call(self._recorder.records))

    def asked_to_end(self) -> bool:
        """Whether another process has asked this run to end. Raises OSError."""
        return self._held.asked_to_end()

    def take_root(self, root: str, shown: str, wait: float | None) -> None:
        """Lock a view root, or a series, for this run. Raises LockedError after ``wait`` seconds."""
        locks.take_root(self._held, root, self._holder(shown), wait)
        if root == self._report.root:
            for directory in set(self._selecting.directories()) - {root}:
                locks.take_root(self._held, directory, self._holder(shown), None)

    def _holder(self, shown: str) -> Mapping[str, object]:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        return {"run": self._report.run_id, "pid": os.getpid(), "since": since, "command": shown}

    def clear_leftovers(self) -> None:
        """Clear what dead runs left, before this run makes anything."""
        with self._report.phase("recover"):
            recovery = Recovery(
                self._recorder.records,
                own=self._report.run_id,
                dry_run=False,
                warn=self._selecting.warn,
                allowed=Allowed(hooks=frozenset({self._options.profile} - {""})),
            )
            cleared = self._recorder.attempt(recovery.recorded)
            problems: list[str] = []
            recovery.remove(root_leftovers.unrecorded(None, liveness.life, problems))
            recovery.remove_stale_files()
        for line in [*cleared_lines(cleared or recovery.cleared), *problems]:
            self._selecting.warn(line)

    def check(self, selected: Plan) -> None:
        """Check all that can be known before anything is made. Raises KopiatomicError."""
        self._recorder.require(selected)
        self._selecting.check_places(selected)
        self._report_unrecorded(selected)

    def _report_unrecorded(self, plan: Plan) -> None:
        """Name what dead runs left unrecorded in the pools and filesystems of the plan; 'recover' removes it."""
        names: dict[str, set[str]] = {}
        for taken in plan.taken:
            names.setdefault(taken.dataset.kind, set()).add(taken.dataset.pool)
        recovery = Recovery(self._recorder.records, own=self._report.run_id, dry_run=True, warn=self._selecting.warn)
        found = recovery.unrecorded(names)
        for problem in found.problems:
            self._selecting.warn(f"what earlier runs may have left could not be looked for: {problem}")
        left: dict[tuple[str, str | None], list[str]] = {}
        for leftover in found.leftovers:
            proof = f"run {leftover.run_id}, of which there is no record here ({leftover.proof})"
            left.setdefault((proof, leftover.problem), []).append(leftover.name)
        for (run, why), theirs in left.items():
            are, them = ("was", "it") if len(theirs) == 1 else ("were", "them")
            self._selecting.warn(
                f"{first_few(theirs)} {are} left by {run}: " + (why or f"'kopiatomic recover' removes {them}")
            )

    @contextmanager
    def view(self, again: Callable[[], Plan]) -> Iterator[Frozen]:
        """Freeze and mount what the report's plan says; remove everything at the end of the block.

        Where something turns out not to be takeable, ``again`` makes a new plan.
        """
        report = self._report
        try:
            with self._frozen(again) as (supervisor, sets):
                if self._options.require_atomic and not sets.atomic:
                    raise not_atomic(
                        "Btrfs put the snapshots of the subvolumes into different transactions",
                        "Take fewer subvolumes at once. What --hold freezes has one instant without --require-atomic.",
                    )
                # Only now, so that no snapshot shows it.
                for directory in self._selecting.directories():
                    roots.make(directory)
                self._listener.phase("mounting the snapshots")
                with report.phase("mount"):
                    assert report.plan is not None
                    view = supervisor.mount(report.plan)
                self._selecting.report_missing(view)
                yield Frozen(supervisor, sets, view)
        finally:
            with signals.deferred():
                self._let_go_of_root()

    def _let_go_of_root(self) -> None:
        """Remove the mount root, and with it the record of all that was intended."""
        if self._unfinished:
            # The keeper does it: here it might wait for a suspended pool.
            self._held.keep()
            return
        self._report.left_behind += self._without_directories()
        if not self._report.left_behind:
            self._recorder.gone()

    def _without_directories(self) -> list[str]:
        """Remove the directories of the view. Return what is left, in words."""
        return [left for directory in self._selecting.directories() for left in roots.remove(directory)]

    def _orphaned(self, left: Sequence[str]) -> None:
        """In the keeper: end the run in place of the main process, which is gone."""
        try:
            self._recorder.end_as_orphan([*left, *self._without_directories()])
        finally:
            if self._has_guardian:
                # It may run after_freeze for long yet, and whoever clears dead runs must not take this one for dead.
                self._held.keep()
            self._held.let_go()
            roots.remove_unneeded(self._selecting.directories())

    @contextmanager
    def _frozen(self, again: Callable[[], Plan]) -> Iterator[tuple[Supervisor, Sets]]:
        """The sets, made and tied; removed at the end of the block."""
        with self._guarded() as guardian, ExitStack() as processes:
            if guardian is not None:
                with self._report.phase("before-freeze"):
                    guardian.begin()
            supervisor, sets = self._freeze_until_settled(processes, again, guardian)
            self._let_go(guardian)
            self._selecting.report_moved()
            self._selecting.look_again()
            yield supervisor, sets
            released = time.monotonic()
            self._listener.phase("removing the snapshots")
        first = min(s.instant.monotonic_before for s in sets.sets)
        self._report.frozen_seconds = time.monotonic() - first / 1e9
        self._report.durations["release"] = time.monotonic() - released

    @property
    def _has_guardian(self) -> bool:
        hooks = self._hooks
        return hooks is not None and bool(hooks.of(Moment.BEFORE_FREEZE, Moment.AFTER_FREEZE))

    @contextmanager
    def _guarded(self) -> Iterator[Guardian | None]:
        """Have a guardian around the freeze, if the profile has hooks for it."""
        hooks, options = self._hooks, self._options
        if hooks is None or not self._has_guardian:
            yield None
            return
        from kopiatomic.runs.guardian import Guardian  # noqa: PLC0415 - few runs need it

        debt = Debt(self._recorder.records, self._report.run_id, options.profile, options.profile_file)
        try:
            with Guardian(hooks, self._report, debt) as guardian:
                yield guardian
        finally:
            failed = [one.error for one in self._report.hooks if one.moment == Moment.AFTER_FREEZE and one.error]
            self._report.hook_error = next(iter(failed), self._report.hook_error)

    def _let_go(self, guardian: Guardian | None) -> None:
        """Run what is to come right after the snapshots."""
        if guardian is not None:
            with self._report.phase("after-freeze"):
                guardian.end()

    def _freeze_until_settled(
        self, processes: ExitStack, again: Callable[[], Plan], guardian: Guardian | None
    ) -> tuple[Supervisor, Sets]:
        """Try until nothing must be listed again. The processes of the try that made the sets end with ``processes``."""
        deadline = time.monotonic() + _LIST_AGAIN_FOR
        for attempt in range(1, _FREEZE_TRIES + 1):
            last = attempt == _FREEZE_TRIES or time.monotonic() > deadline
            leave_out = partial(self._selecting.leave_out, again=again, last=last)
            made = self._try(processes, leave_out, guardian)
            if made is not None:
                return made
        raise AssertionError("the last try lists nothing again")

    def _try(
        self, processes: ExitStack, leave_out: Callable[[Sequence[Refusal]], bool], guardian: Guardian | None
    ) -> tuple[Supervisor, Sets] | None:
        """Take the snapshots once; None where everything was listed again.

        What turns out not to be takeable is left out of the report's plan, or fails the run: that is for the plan to say.
        """
        report = self._report
        assert report.plan is not None
        makers = backends.makers(report.plan, report.run_id)
        writers = Together(self.holders)
        intents = [*(intent for maker in makers for intent in maker.intents()), *writers.intents()]
        if leave_out([r for maker in makers for r in maker.refused]):
            return None
        with ExitStack() as these:
            making = None if guardian is None else guardian.making
            supervisor = these.enter_context(self._supervised(makers, intents, writers, making))
            try:
                sets = self._freeze(supervisor)
            except BaseException:
                # Not only when the keeper has removed what it made.
                self._let_go(guardian)
                raise
            if leave_out(sets.refused):
                return None
            processes.push(these.pop_all())
        return supervisor, sets

    @contextmanager
    def _supervised(
        self, makers: list[Maker], intents: list[Intent], writers: Together, making: int | None
    ) -> Iterator[Supervisor]:
        """Run the processes of one try; what they could not remove goes into the report."""
        report = self._report
        assert report.plan is not None
        datasets = [taken.dataset for taken in report.plan.taken]
        pools = filesystems.watched((dataset.kind, dataset.pool) for dataset in datasets)
        others = {dataset.pool: dataset.name for dataset in reversed(datasets) if dataset.pool not in pools}
        supervisor = Supervisor(
            report.run_id,
            report.plan,
            makers,
            self._orphaned,
            Patience(pools, self._options.stop_timeout, self._selecting.warn, others=others.values()),
            platform=self._platform,
            record=self._recorder.intend_also,
            writers=writers,
            making=making,
        )
        self._listener.phase(f"taking {len(report.plan.taken)} snapshot(s)")
        try:
            # Two of them may lack the same directory above.
            directories = dict.fromkeys(
                i for directory in self._selecting.directories() for i in roots.intents(directory)
            )
            self._recorder.intend([*intents, *directories], report.plan)
            with supervisor:
                yield supervisor
        finally:
            report.left_behind += supervisor.left
            self._unfinished = supervisor.unfinished

    def _freeze(self, supervisor: Supervisor) -> Sets:
        report = self._report
        with report.phase("snapshot"):
            sets = supervisor.freeze()
        self._note_held(supervisor)
        if sets.sets:
            report.sets = sets
            self._recorder.made()
        return sets

    def _note_held(self, supervisor: Supervisor) -> None:
        """Put into the report how the writers were held still."""
        known = {one.label: one for one in self._report.writers}
        for held in supervisor.held:
            known[held.label].stall = held.stall if held.proven else None
            known[held.label].why = held.why
        for reason in supervisor.not_held:
            self._selecting.warn(reason)
