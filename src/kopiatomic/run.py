"""The stack of a run: the only place that knows the order of things."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from kopiatomic import engines, hooks, locks, plan, root_leftovers, roots, snapshots
from kopiatomic.engines import Engine, Job
from kopiatomic.engines.own import Own, in_place, prepared
from kopiatomic.errors import Interrupted, KopiatomicError, VanishedError, unforeseen
from kopiatomic.gather import gather
from kopiatomic.launcher import Checked
from kopiatomic.locks import Held
from kopiatomic.masking import Secrets
from kopiatomic.model import EngineEnd, Layout, Plan, Progress, Sets
from kopiatomic.options import Options, check_name, words
from kopiatomic.output.summary import cleared_lines
from kopiatomic.ownership import PREFIX
from kopiatomic.patience import Patience
from kopiatomic.recorder import Recorder
from kopiatomic.records import Records
from kopiatomic.recovery import Recovery
from kopiatomic.report import EngineReport, Report
from kopiatomic.request import is_pattern
from kopiatomic.supervisor import Supervisor
from kopiatomic.system import linux, signals
from kopiatomic.text import ended, first_few, printable
from kopiatomic.views import View, missing_text

_FREEZE_TRIES = 3

_NOT_SKIPPED = (
    "It would be read while it is written: mark it as a cache (CACHEDIR.TAG), or move it out of what is backed up."
)

_REFUSES_TO_STOP = "kopiatomic: Ctrl-Z does not stop a run: it would keep its snapshots for as long; Ctrl-C ends it"


class Listener(Protocol):
    """Who is told of a run while it goes on."""

    def phase(self, text: str) -> None:
        """A new part of the run begins."""

    def warning(self, text: str) -> None:
        """Something that the user should know and that does not end the run."""

    def engine_line(self, text: str) -> None:
        """A line of the engine's own output, safe to print."""

    def progress(self, progress: Progress) -> None:
        """How far the engine is."""


def new_run_id() -> str:
    """A name for a run: its start to the second (UTC), and 32 random bits."""
    return time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime()) + os.urandom(4).hex()


def backup(options: Options, listener: Listener) -> Report:
    """Do a whole run. Every failure is in the report, defects of kopiatomic included; nothing is raised."""
    report = Report(new_run_id(), options.mount_root, dry_run=options.dry_run)

    with signals.handled(limit=options.timeout, on_stop=_REFUSES_TO_STOP), _failures_in(report):
        _Run(options, report, listener).run()
    return report


@contextmanager
def _failures_in(report: Report) -> Iterator[None]:
    """Put a failure of the block into the report, whatever it is; the run goes on behind the block."""
    try:
        yield
    except KopiatomicError as error:
        report.error = error
    except Exception as error:
        report.error = unforeseen(error)


class _Run:
    def __init__(self, options: Options, report: Report, listener: Listener) -> None:
        self._options = options
        self._report = report
        self._listener = listener
        self._secrets: Secrets
        self._held: Held
        self._recorder: Recorder
        self._unfinished = False
        """Whether the keeper lives on, since a suspended pool holds it up."""

    def run(self) -> None:
        options, report = self._options, self._report
        plan.require_names(options.request("", ""))
        if options.name is not None:
            check_name(options.name)
        command = None if options.command is None else words("-c", options.command)
        extra = words("-o", options.options)
        engine = engines.create(
            command,
            extra,
            engine=options.engine,
            repository=options.repository,
            archive=options.archive,
            maintenance=options.maintenance,
        )
        self._secrets = Secrets(sys.argv[1:], os.environ, engine.secrets)
        shown = self._secrets.command_line(["kopiatomic", *sys.argv[1:]])
        if not options.dry_run and os.geteuid() != 0:
            raise KopiatomicError(
                "making and mounting snapshots needs root",
                kind="not-root",
                hint=f"sudo {printable(shown)}   (-n shows without root what would be done)",
            )
        report.root, report.series = self._place(engine)
        root = report.root
        if options.dry_run:
            report.plan = self._select(root)
            report.engine = EngineReport(engine.name, None, self._shown(engine.describe(report.plan)))
            return
        for value in self._secrets.values:
            linux.hide_argument(value)
        with locks.run(report.run_id) as held, self._recorded(held, shown), _failures_in(report):
            locks.take_root(held, report.series, self._holder(shown), options.wait)
            if report.series != root:
                locks.take_root(held, root, self._holder(shown), None)
            self._clear_leftovers()
            report.plan = self._select(root)
            self._prepare(engine, report.plan)
            self._between_hooks(engine)

    def _place(self, engine: Engine) -> tuple[str, str]:
        """Where on the host the view is mounted, and the series that this run belongs to. Raises KopiatomicError."""
        options = self._options
        if options.layout is Layout.MERGED:
            root = options.mount_root if options.name is None else f"{options.mount_root}/{options.name}"
            resolved = roots.resolve(root)
            return resolved, resolved
        asked = [engine.name, *options.selection_words()]
        return f"{locks.DIRECTORY}/view-{self._report.run_id}", f"in place: {printable(shlex.join(asked))}"

    def _shown(self, argv: Sequence[str]) -> list[str]:
        """An argv as it may be shown."""
        return [self._secrets.hide(word) for word in argv]

    @contextmanager
    def _recorded(self, held: Held, shown: str) -> Iterator[None]:
        """Put the run on record, from its first lock to its exit code."""
        self._held = held
        records = Records(self._options.state_dir)
        self._recorder = Recorder(records, self._report, self._secrets, self._warn)
        self._recorder.begin(shown, self._options.keep_history)
        try:
            yield
        finally:
            with signals.deferred():
                self._recorder.end()

    def _clear_leftovers(self) -> None:
        """Clear what dead runs left, before anything of this one is made."""
        with self._report.phase("recover"):
            recovery = Recovery(self._recorder.records, own=self._report.run_id, dry_run=False, warn=self._warn)
            cleared = self._recorder.attempt(recovery.recorded)
            noted = root_leftovers.unrecorded(None, lambda _: True, [])
            recovery.remove(noted)
            recovery.remove_stale_files()
        for line in cleared_lines(cleared or recovery.cleared):
            self._warn(line)

    def _report_unrecorded(self, plan: Plan) -> None:
        """Name what dead runs left off the record in the pools and filesystems of the plan: 'recover' removes that."""
        names: dict[str, set[str]] = {}
        for taken in plan.taken:
            names.setdefault(taken.dataset.filesystem, set()).add(taken.dataset.pool)
        recovery = Recovery(self._recorder.records, own=self._report.run_id, dry_run=True, warn=self._warn)
        found = recovery.unrecorded(names)
        for problem in found.problems:
            self._warn(f"what earlier runs may have left could not be looked for: {problem}")
        for leftover in found.leftovers:
            self._warn(
                f"{printable(leftover.name)} was left by run {leftover.run_id}, of which there is no record here "
                f"({leftover.proof}): 'kopiatomic recover' removes it"
            )

    def _prepare(self, engine: Engine, selected: Plan) -> None:
        """Everything that can be known before anything is made."""
        report = self._report
        with report.phase("check"):
            self._recorder.require(selected)
            roots.check(report.root)
            for maker in snapshots.makers(selected, report.run_id):
                maker.check()
            self._report_unrecorded(selected)
            report.engine = EngineReport(engine.name, None)
            self._listener.phase(f"checking {engine.name}")
            for warning in engine.check(selected):
                self._warn(warning)
            report.engine.version = engine.version
            report.plan = self._with_writable(engine, selected)

    def _with_writable(self, engine: Engine, selected: Plan) -> Plan:
        """The plan with what has to stay live in the frozen trees. Raises KopiatomicError where it would be read as data."""
        if selected.layout is not Layout.IN_PLACE:
            return selected
        paths = map(os.path.abspath, self._options.writable)
        asked = [Own("--writable", path, engine.skips(path), _NOT_SKIPPED) for path in paths]
        return prepared([*engine.own(selected), *asked], selected, self._warn)

    def _finish(self, engine: Engine) -> None:
        """What the engine put off; the backup is saved, so nothing that goes wrong here makes it a failure."""
        try:
            for warning in engine.finish():
                self._warn(warning)
        except Interrupted:
            raise
        except KopiatomicError as error:
            self._warn(f"{engine.name}'s maintenance: {error.message}")
        except OSError as error:
            self._warn(f"{engine.name}'s maintenance: {error.strerror}")

    def _holder(self, shown: str) -> Mapping[str, object]:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        return {"run": self._report.run_id, "pid": os.getpid(), "since": since, "command": shown}

    def _warn(self, text: str) -> None:
        if text not in self._report.warnings:
            self._report.warnings.append(text)
            self._listener.warning(text)

    def _select(self, root: str) -> Plan:
        with self._report.phase("plan"):
            selected = self._look(root)
        self._report.incomplete = [f"{printable(o.name)}: {o.reason}" for o in selected.left_out if o.incomplete]
        for note in selected.notes:
            self._warn(note)
        if self._options.require_atomic:
            _require_one_pool(selected)
        return selected

    def _look(self, root: str) -> Plan:
        options = self._options
        request = options.request(root, f"@{PREFIX}{self._report.run_id}")
        return plan.select(gather(request) if options.facts is None else options.facts, request)

    def _between_hooks(self, engine: Engine) -> None:
        """``-p`` before anything is made, ``-q`` once and last in every run that came this far."""
        options, report = self._options, self._report
        assert report.plan is not None
        told = hooks.variables(report.run_id, report.plan)
        with _failures_in(report):
            if options.pre_hook is not None:
                self._listener.phase("running the hook -p")
                with report.phase("pre-hook"):
                    hooks.run(options.pre_hook, "-p", told, options.hook_timeout)
            self._backup(engine)
            with report.phase("maintenance"):
                self._finish(engine)
        reached = options.pre_hook is not None or "snapshot" in report.durations
        if options.post_hook is not None and reached:
            self._post_hook(options.post_hook, told)

    def _post_hook(self, line: str, told: Mapping[str, str]) -> None:
        report = self._report
        result = report.engine.result if report.engine else None
        outcome = {
            "KOPIATOMIC_RESULT": report.result,
            "KOPIATOMIC_EXIT_CODE": str(report.exit_code),
            "KOPIATOMIC_KOPIA_SNAPSHOT_ID": (result.snapshot_id or "") if result else "",
        }
        self._listener.phase("running the hook -q")
        with report.phase("post-hook"), signals.deferred():
            try:
                hooks.run(line, "-q", {**told, **outcome}, self._options.hook_timeout)
            except KopiatomicError as error:
                report.hook_error = error

    def _backup(self, engine: Engine) -> None:
        """Freeze, mount, back up, check, and remove everything again; then look at what was saved."""
        report = self._report
        assert report.engine is not None
        try:
            with self._frozen(engine) as (supervisor, sets):
                if self._options.require_atomic and not sets.atomic:
                    raise _not_atomic("Btrfs put the snapshots of the subvolumes into different transactions")
                # Only now, so that no snapshot shows it.
                roots.make(report.root)
                self._listener.phase("mounting the snapshots")
                with report.phase("mount"):
                    view = supervisor.mount()
                self._report_missing(view)
                job = self._job(view, sets)
                checked = self._run_engine(engine, supervisor, job)
        finally:
            with signals.deferred():
                self._let_go_of_root()
        report.engine.end = checked.end
        with report.phase("verify"), signals.deferred():
            report.engine.result = engine.judge(job, checked.end)
        self._conclude(checked)

    def _let_go_of_root(self) -> None:
        """Take the mount root away, and with it the record of all that was intended."""
        if self._unfinished:
            # The keeper does it: here it might wait for a suspended pool.
            self._held.keep()
            return
        self._report.left_behind += roots.remove(self._report.root)
        if not self._report.left_behind:
            self._recorder.gone()

    def _orphaned(self, left: Sequence[str]) -> None:
        """In the keeper: end the run in place of the main process, which is gone."""
        try:
            self._recorder.end_as_orphan([*left, *roots.remove(self._report.root)])
        finally:
            self._held.let_go()

    @contextmanager
    def _frozen(self, engine: Engine) -> Iterator[tuple[Supervisor, Sets]]:
        """The sets, made and tied; removed at the end of the block. Datasets that vanish meanwhile are left out."""
        report = self._report
        for attempt in range(1, _FREEZE_TRIES + 1):
            assert report.plan is not None
            makers = snapshots.makers(report.plan, report.run_id)
            pools = {t.dataset.pool for t in report.plan.taken if t.dataset.filesystem == "zfs"}
            patience = Patience(pools, self._options.stop_timeout, self._warn)
            supervisor = Supervisor(report.run_id, report.plan, makers, self._orphaned, patience)
            self._listener.phase(f"taking {len(report.plan.taken)} snapshot(s)")
            try:
                intents = [intent for maker in makers for intent in maker.intents()]
                self._recorder.intend([*intents, *roots.intents(report.root)], report.plan)
                with supervisor:
                    with report.phase("snapshot"):
                        report.sets = supervisor.freeze()
                    self._recorder.made()
                    self._look_again()
                    yield supervisor, report.sets
                    released = time.monotonic()
                    self._listener.phase("removing the snapshots")
            except VanishedError as error:
                named = {t.dataset.name for t in report.plan.taken if t.named}
                if attempt == _FREEZE_TRIES or named.intersection(error.datasets):
                    raise
                self._warn(f"{', '.join(map(printable, error.datasets))} vanished; the datasets are listed again")
                report.plan = self._with_writable(engine, self._select(report.root))
                continue
            finally:
                report.left_behind += supervisor.left
                self._unfinished = supervisor.unfinished
            first = min(s.instant.monotonic_before for s in report.sets.sets)
            report.frozen_seconds = time.monotonic() - first / 1e9
            report.durations["release"] = time.monotonic() - released
            return

    def _look_again(self) -> None:
        """What ``-r`` or ``-a`` would take by now and did not when the listing was made."""
        options, report = self._options, self._report
        implied = options.recursive or options.everything or options.by_property
        if not implied and not any(map(is_pattern, options.names)):
            return
        assert report.plan is not None
        with report.phase("plan"):
            try:
                taken = self._look(report.root).taken
            except Interrupted:
                raise
            except KopiatomicError as error:
                self._warn(f"what was created meanwhile could not be listed: {error.message}")
                return
        known = {t.dataset for t in report.plan.taken}
        for new in taken:
            if new.dataset not in known:
                self._warn(f"{printable(new.dataset.name)} appeared after the listing and is not in this backup")

    def _report_missing(self, view: View) -> None:
        report = self._report
        for missing in view.missing:
            text = missing_text(missing)
            report.incomplete.append(text)
            self._warn(text)

    def _job(self, view: View, sets: Sets) -> Job:
        assert self._report.plan is not None
        return Job(self._report.run_id, self._report.plan, sets, view.mounted, frozenset(view.filled))

    def _run_engine(self, engine: Engine, supervisor: Supervisor, job: Job) -> Checked:
        report = self._report
        assert report.engine is not None
        command = engine.command(job)
        report.engine.argv = self._shown(command.argv)

        def take(stream: str, data: bytes) -> None:
            for found in engine.feed(stream, data):
                if isinstance(found, Progress):
                    self._listener.progress(found)
                else:
                    self._listener.engine_line(found)

        self._listener.phase(f"{engine.name} is backing up {first_few(job.plan.sources)}")
        environment = {**os.environ, **hooks.variables(job.run_id, job.plan)}
        if in_place(job.plan, tempfile.gettempdir()):
            environment["TMPDIR"] = job.plan.scratch
        with report.phase("engine"):
            return supervisor.run_engine(command, environment, take, self._options.stop_timeout)

    def _conclude(self, checked: Checked) -> None:
        """What the end of the engine, its own words and the check of the mounts say together."""
        report = self._report
        assert report.engine is not None
        result = report.engine.result
        assert result is not None
        if checked.problems:
            result.saved = False
            raise KopiatomicError(
                f"what {report.engine.name} saved is not the frozen view: {'; '.join(checked.problems)}",
                kind="view-changed",
                hint=f"Find out who removed it, delete that snapshot of {report.engine.name}'s, and run again."
                if result.snapshot_id
                else "Find out who removed it, and run again.",
            )
        reason = signals.reason()
        if checked.end.stopped and reason is not None:
            result.saved = result.complete = False
            raise reason
        if not result.saved:
            raise _engine_failed(report.engine.name, result.message, checked.end)
        if not result.complete:
            report.incomplete.append(result.message)


def _engine_failed(name: str, message: str, end: EngineEnd) -> KopiatomicError:
    return KopiatomicError(
        message or f"{name} failed ({ended(end.status)})", kind="engine-failed", hint="Nothing was saved."
    )


def _not_atomic(why: str) -> KopiatomicError:
    return KopiatomicError(
        f"--require-atomic: {why}",
        kind="not-atomic",
        hint="Back them up with one command for each pool, or hold the programs that write to them still.",
    )


def _require_one_pool(selected: Plan) -> None:
    """Refuse, before anything is made, what can share no instant. Raises KopiatomicError."""
    places = {(t.dataset.filesystem, t.dataset.pool) for t in selected.taken}
    if len(places) > 1:
        where = ", ".join(f"{filesystem} {printable(pool)}" for filesystem, pool in sorted(places))
        raise _not_atomic(f"the datasets lie in {len(places)} pools or filesystems ({where}), which share no instant")
