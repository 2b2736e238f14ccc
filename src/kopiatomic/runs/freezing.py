"""The part of a run that does not depend on what the frozen view is for: its lock and record, the plan, the snapshots, the view.

``commands/backup.py`` backs the view up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol, TypeVar

from kopiatomic import filesystems, platforms
from kopiatomic.config.options import Options
from kopiatomic.errors import KopiatomicError, end_of
from kopiatomic.filesystems import Maker
from kopiatomic.immutable import immutable
from kopiatomic.model.engine import Progress
from kopiatomic.model.facts import Facts
from kopiatomic.model.leftovers import Intent
from kopiatomic.model.plan import Plan, Refusal, Verdict
from kopiatomic.model.report import Report
from kopiatomic.model.request import Request, is_pattern
from kopiatomic.model.snapshots import Sets
from kopiatomic.output.summary import cleared_lines
from kopiatomic.paths import below
from kopiatomic.planning import plan
from kopiatomic.planning.gather import gather
from kopiatomic.platforms.steps import View, missing_text
from kopiatomic.runs.patience import Patience
from kopiatomic.runs.recorder import Recorder
from kopiatomic.runs.recovery import Recovery
from kopiatomic.runs.streams import Streams
from kopiatomic.runs.supervisor import Supervisor
from kopiatomic.secrets.masking import Secrets
from kopiatomic.state import liveness, locks, root_leftovers, roots
from kopiatomic.state.locks import Held
from kopiatomic.state.ownership import PREFIX
from kopiatomic.state.records import Records
from kopiatomic.system import linux, signals
from kopiatomic.text import few, first_few, printable

T = TypeVar("T")

_FREEZE_TRIES = 3
_LIST_AGAIN_FOR = 300.0
"""How often, and for how long (seconds), everything is listed again after a dataset was moved."""


class Listener(Protocol):
    """Receives the progress of a run."""

    def hide(self, secrets: Secrets) -> None:
        """Mask these in all later output."""

    def phase(self, text: str) -> None:
        """Announce a new part of the run."""

    def warning(self, text: str) -> None:
        """Report something that the user should know but that does not end the run."""

    def engine_line(self, text: str) -> None:
        """Print a line of the engine's own output, which is safe to print."""

    def progress(self, progress: Progress) -> None:
        """Show how far the engine is."""


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


class Freezing:
    """The frozen view of one run. The mount point and the series must be in ``report`` before anything is called."""

    def __init__(
        self,
        options: Options,
        report: Report,
        listener: Listener,
        secrets: Secrets,
        *,
        refuses: Callable[[Plan], Sequence[Refusal]] = lambda _: (),
        breaks_at: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """``refuses`` and ``breaks_at`` are the engine's (:class:`kopiatomic.engines.Engine`)."""
        self._options = options
        self._refuses = refuses
        self._breaks_at = breaks_at
        self._report = report
        self._listener = listener
        self._secrets = secrets
        self._platform = platforms.here()
        self._held: Held
        self._recorder: Recorder
        self._facts: Facts | None = None
        self._refused: dict[tuple[str, str, str], Refusal] = {}
        """What the plan would take but turned out not to be takeable, by its key."""
        self._moved: dict[tuple[str, str, str], Refusal] = {}
        """What was no longer at its place, so that everything was listed again."""
        self._unfinished = False
        """Whether the keeper lives on because a suspended pool holds it up."""

    @contextmanager
    def recorded(self, shown: str) -> Iterator[None]:
        """Hold the lock that marks this run as alive, and keep its record until its exit code; put failures into the report.

        ``shown`` is the command line as it may be shown.
        """
        for value in self._secrets.values:
            linux.hide_argument(value)
        with locks.run(self._report.run_id) as self._held:
            records = Records(self._options.state_dir)
            self._recorder = Recorder(records, self._report, self._secrets, self.warn)
            self._recorder.begin(shown, self._options.keep_history, self._options.schedule or "")
            try:
                with failures_in(self._report):
                    yield
            finally:
                with signals.deferred():
                    self._recorder.end()

    def attempt(self, call: Callable[[Records], T]) -> T | None:
        """Query the records, or record something. Return None if they cannot be used, which the user is told once."""
        return self._recorder.attempt(lambda: call(self._recorder.records))

    def take_root(self, root: str, shown: str, wait: float | None) -> None:
        """Lock a view root, or a series, for this run. Raises LockedError after ``wait`` seconds."""
        locks.take_root(self._held, root, self._holder(shown), wait)
        if root == self._report.root:
            for directory in set(self._directories()) - {root}:
                locks.take_root(self._held, directory, self._holder(shown), None)

    def _directories(self) -> Sequence[str]:
        """Return the directories that the view needs."""
        return self._platform.directories(self._report.root, self._report.run_id)

    def _holder(self, shown: str) -> Mapping[str, object]:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        return {"run": self._report.run_id, "pid": os.getpid(), "since": since, "command": shown}

    def warn(self, text: str) -> None:
        """Warn the user, once, and add the warning to the report."""
        if text not in self._report.warnings:
            self._report.warnings.append(text)
            self._listener.warning(text)

    def clear_leftovers(self) -> None:
        """Clear what dead runs left, before this run makes anything."""
        with self._report.phase("recover"):
            recovery = Recovery(self._recorder.records, own=self._report.run_id, dry_run=False, warn=self.warn)
            cleared = self._recorder.attempt(recovery.recorded)
            problems: list[str] = []
            recovery.remove(root_leftovers.unrecorded(None, liveness.life, problems))
            recovery.remove_stale_files()
        for line in [*cleared_lines(cleared or recovery.cleared), *problems]:
            self.warn(line)

    def select(self) -> Plan:
        """Return the plan: what is taken. Raises KopiatomicError."""
        with self._report.phase("plan"):
            if self._facts is None:
                self._facts = self._gather()
            selected = plan.select(self._facts, self._request(), self._refused.values())
            while refused := self._refuses(selected):
                self._refused |= {refusal.dataset.key: refusal for refusal in refused}
                selected = plan.select(self._facts, self._request(), self._refused.values())
            selected = self._without_folders(selected, self._facts)
        missed = [o for o in selected.left_out if o.incomplete]
        self._report.incomplete = few(list(dict.fromkeys(o.line or f"{printable(o.name)}: {o.reason}" for o in missed)))
        for note in selected.notes:
            self.warn(note)
        if self._options.require_atomic:
            _require_one_pool(selected)
            self._require_complete()
        return selected

    def _without_folders(self, selected: Plan, facts: Facts) -> Plan:
        """Leave out the empty folders of nested subvolumes that are not taken, where such a folder would end the backup."""
        taken = {t.dataset.name for t in selected.taken}
        ids = {subvolume.path: (subvolume.filesystem, subvolume.id) for subvolume in facts.subvolumes}
        found: dict[tuple[str, int], list[str]] = {}
        for subvolume in facts.subvolumes:
            path, above = subvolume.path, subvolume.above
            if above is not None and path not in taken and self._breaks_at(path.rpartition("/")[2]):
                found.setdefault(ids[above], []).append(below(path, above))
        if not found:
            return selected
        everything = (
            replace(t, hidden=tuple(found.get((t.dataset.pool, t.dataset.subvolume), ()))) for t in selected.taken
        )
        return replace(selected, taken=tuple(everything))

    def _require_complete(self) -> None:
        """Refuse to continue if anything is missing with --require-atomic. Raises KopiatomicError."""
        if self._report.incomplete:
            raise _not_atomic(f"not everything can be taken: {self._report.incomplete[0]}")

    def _gather(self) -> Facts:
        return gather(self._request()) if self._options.facts is None else self._options.facts

    def _request(self) -> Request:
        return self._options.request(self._report.root, f"@{PREFIX}{self._report.run_id}")

    def check(self, selected: Plan) -> None:
        """Check all that can be known before anything is made. Raises KopiatomicError."""
        self._recorder.require(selected)
        self.check_places(selected)
        self._report_unrecorded(selected)

    def check_places(self, selected: Plan) -> None:
        """Make the checks that need no record. Raises KopiatomicError."""
        for directory in self._directories():
            roots.check(directory)
        for warning in self._platform.check(selected):
            self.warn(warning)
        for maker in filesystems.makers(selected, self._report.run_id):
            maker.check()

    def _report_unrecorded(self, plan: Plan) -> None:
        """Name what dead runs left unrecorded in the pools and filesystems of the plan; 'recover' removes it."""
        names: dict[str, set[str]] = {}
        for taken in plan.taken:
            names.setdefault(taken.dataset.filesystem, set()).add(taken.dataset.pool)
        recovery = Recovery(self._recorder.records, own=self._report.run_id, dry_run=True, warn=self.warn)
        found = recovery.unrecorded(names)
        for problem in found.problems:
            self.warn(f"what earlier runs may have left could not be looked for: {problem}")
        left: dict[tuple[str, str | None], list[str]] = {}
        for leftover in found.leftovers:
            proof = f"run {leftover.run_id}, of which there is no record here ({leftover.proof})"
            left.setdefault((proof, leftover.problem), []).append(leftover.name)
        for (run, why), theirs in left.items():
            are, them = ("was", "it") if len(theirs) == 1 else ("were", "them")
            self.warn(f"{first_few(theirs)} {are} left by {run}: " + (why or f"'kopiatomic recover' removes {them}"))

    @contextmanager
    def view(self, streams: Callable[[], Streams], again: Callable[[], Plan]) -> Iterator[Frozen]:
        """Freeze and mount what the report's plan says; remove everything at the end of the block.

        Where something turns out not to be takeable, ``again`` makes a new plan. ``streams`` returns, for each try, those of the
        program that will run.
        """
        report = self._report
        try:
            with self._frozen(streams, again) as (supervisor, sets):
                if self._options.require_atomic and not sets.atomic:
                    raise _not_atomic("Btrfs put the snapshots of the subvolumes into different transactions")
                # Not earlier, so that no snapshot shows it.
                for directory in self._directories():
                    roots.make(directory)
                self._listener.phase("mounting the snapshots")
                with report.phase("mount"):
                    assert report.plan is not None
                    view = supervisor.mount(report.plan)
                self._report_missing(view)
                yield Frozen(supervisor, sets, view)
        finally:
            with signals.deferred():
                self._let_go_of_root()

    def _let_go_of_root(self) -> None:
        """Remove the mount root, and with it the record of all that was intended."""
        if self._unfinished:
            # The keeper removes it: here the call might wait for a suspended pool.
            self._held.keep()
            return
        self._report.left_behind += self._without_directories()
        if not self._report.left_behind:
            self._recorder.gone()

    def _without_directories(self) -> list[str]:
        """Remove the directories of the view. Return what is left, in words."""
        return [left for directory in self._directories() for left in roots.remove(directory)]

    def _orphaned(self, left: Sequence[str]) -> None:
        """In the keeper: end the run in place of the main process, which is gone."""
        try:
            self._recorder.end_as_orphan([*left, *self._without_directories()])
        finally:
            self._held.let_go()

    @contextmanager
    def _frozen(self, streams: Callable[[], Streams], again: Callable[[], Plan]) -> Iterator[tuple[Supervisor, Sets]]:
        """Make and tie the sets; remove them at the end of the block.

        What turns out not to be takeable is left out of the report's plan, or fails the run: the plan decides.
        """
        report = self._report
        deadline = time.monotonic() + _LIST_AGAIN_FOR
        for attempt in range(1, _FREEZE_TRIES + 1):
            last = attempt == _FREEZE_TRIES or time.monotonic() > deadline
            assert report.plan is not None
            makers = filesystems.makers(report.plan, report.run_id)
            intents = [intent for maker in makers for intent in maker.intents()]
            if self._leave_out([r for maker in makers for r in maker.refused], again, last=last):
                continue
            with self._supervised(makers, intents, streams()) as supervisor:
                sets = self._freeze(supervisor)
                if self._leave_out(sets.refused, again, last=last):
                    continue
                self._report_moved()
                self._look_again()
                yield supervisor, sets
                released = time.monotonic()
                self._listener.phase("removing the snapshots")
            first = min(s.instant.monotonic_before for s in sets.sets)
            report.frozen_seconds = time.monotonic() - first / 1e9
            report.durations["release"] = time.monotonic() - released
            return

    @contextmanager
    def _supervised(self, makers: list[Maker], intents: list[Intent], streams: Streams) -> Iterator[Supervisor]:
        """Run the processes of one try; what they could not remove goes into the report."""
        report = self._report
        assert report.plan is not None
        pools = {t.dataset.pool for t in report.plan.taken if t.dataset.filesystem == "zfs"}
        supervisor = Supervisor(
            report.run_id,
            report.plan,
            makers,
            self._orphaned,
            Patience(pools, self._options.stop_timeout, self.warn),
            platform=self._platform,
            record=self._recorder.intend_also,
            streams=streams,
        )
        self._listener.phase(f"taking {len(report.plan.taken)} snapshot(s)")
        try:
            # Two of them may lack the same parent directory.
            directories = dict.fromkeys(i for directory in self._directories() for i in roots.intents(directory))
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
        if sets.sets:
            report.sets = sets
            self._recorder.made()
        return sets

    def _leave_out(self, refused: Sequence[Refusal], again: Callable[[], Plan], *, last: bool) -> bool:
        """Plan again without what cannot be taken. Return whether everything was listed again and must be tried again.

        That is where something was moved, unless this was the ``last`` try. Raises KopiatomicError where one was named, or
        nothing is left.
        """
        if not refused:
            return False
        report = self._report
        assert report.plan is not None
        named = {t.dataset.key for t in report.plan.taken if t.named}
        moved = {r.dataset.key: r for r in refused if r.verdict is Verdict.MOVED}
        list_again = bool(moved) and not last and not named.intersection(r.dataset.key for r in refused)
        if list_again:
            names = [r.dataset.name for r in moved.values()]
            self.warn(f"{first_few(names)} vanished; the datasets are listed again")
            self._moved |= moved
            self._refused.clear()
            self._facts = None
        else:
            self._refused |= {r.dataset.key: r for r in refused}
        report.plan = again()
        return list_again

    def _report_moved(self) -> None:
        """Report what was moved and not found again. Raises KopiatomicError with --require-atomic."""
        report = self._report
        assert report.plan is not None
        taken = {t.dataset.key for t in report.plan.taken}
        gone = [self._moved[key] for key in self._moved.keys() - self._refused.keys() - taken]
        self._miss([f"{printable(m.dataset.name)}: {m.reason}, and is not among what was found then" for m in gone])

    def _miss(self, texts: Sequence[str]) -> None:
        """Record what was asked for and is not in the view. Raises KopiatomicError with --require-atomic."""
        for text in few(texts):
            self._report.incomplete.append(text)
            self.warn(text)
        if texts and self._options.require_atomic:
            self._require_complete()

    def _look_again(self) -> None:
        """Warn of what ``-r`` or ``-a`` would take now but did not when the listing was made."""
        options, report = self._options, self._report
        implied = options.recursive or options.everything or options.by_property
        if not implied and not any(map(is_pattern, options.names)):
            return
        assert report.plan is not None
        with report.phase("plan"):
            try:
                facts = self._gather()
                if self._facts is not None:
                    # How full other filesystems are does not affect what is taken, and what has room stays as planned.
                    facts = replace(facts, sizes=self._facts.sizes, room=self._facts.room)
                # The same facts make the same plan.
                if facts == self._facts:
                    return
                taken = plan.select(facts, self._request(), self._refused.values()).taken
            except KopiatomicError as error:
                self.warn(f"what was created meanwhile could not be listed: {error.message}")
                return
        known = {t.dataset for t in report.plan.taken}
        new = [one.dataset.name for one in taken if one.dataset not in known]
        if new:
            are = "is" if len(new) == 1 else "are"
            self.warn(f"{first_few(new)} appeared after the listing and {are} not in this backup")

    def _report_missing(self, view: View) -> None:
        for missing in view.missing:
            if missing.live:
                self.warn(missing_text(missing))
        self._miss([missing_text(missing) for missing in view.missing if not missing.live])


def _not_atomic(why: str) -> KopiatomicError:
    return KopiatomicError(
        f"--require-atomic: {why}",
        kind="not-atomic",
        hint="Back them up with one command for each pool, or hold the programs that write to them still.",
    )


def _require_one_pool(selected: Plan) -> None:
    """Refuse, before anything is made, what cannot share one instant. Raises KopiatomicError."""
    places = {(t.dataset.filesystem, t.dataset.pool) for t in selected.taken}
    if len(places) > 1:
        where = ", ".join(f"{filesystem} {printable(pool)}" for filesystem, pool in sorted(places))
        raise _not_atomic(f"the datasets lie in {len(places)} pools or filesystems ({where}), which share no instant")
