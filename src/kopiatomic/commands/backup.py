"""The stack of a backup: the only place that knows the order of things."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace

from kopiatomic import engines
from kopiatomic.commands.failures import require_root
from kopiatomic.config import credentials
from kopiatomic.config.invocation import Invocation
from kopiatomic.config.options import Options, check_name, words
from kopiatomic.engines.engine import Engine, Job, Remembering
from kopiatomic.engines.numbers import understood
from kopiatomic.engines.written import Own, in_place, prepared, require_skipped
from kopiatomic.errors import KopiatomicError
from kopiatomic.hooks import shell
from kopiatomic.model.engine import EngineEnd, EngineResult, Progress
from kopiatomic.model.plan import Layout, Plan
from kopiatomic.model.report import EngineReport, Report
from kopiatomic.planning import plan
from kopiatomic.runs import skipping
from kopiatomic.runs.freezing import Freezing, Frozen, Listener, failures_in, new_run_id
from kopiatomic.runs.launcher import Checked, Start
from kopiatomic.runs.streams import Pipes
from kopiatomic.secrets.masking import Secrets
from kopiatomic.state import lists, roots
from kopiatomic.system import inherited, signals
from kopiatomic.text import ended, first_few, printable

_NOT_SKIPPED = (
    "It would be read while it is written: mark it as a cache (CACHEDIR.TAG), or move it out of what is backed up."
)

_NOTHING_READ = Checked(EngineEnd(0, stopped=False), ())
"""What there is to say of the engine where every source was unchanged."""

_REFUSES_TO_STOP = "kopiatomic: Ctrl-Z does not stop a run: it would keep its snapshots for as long; Ctrl-C ends it"


def backup(options: Options, listener: Listener, called: Invocation = Invocation()) -> Report:  # noqa: B008 - immutable
    """Do a whole run. Every failure is in the report, defects of kopiatomic included; nothing is raised."""
    report = Report(new_run_id(), options.mount_root, dry_run=options.dry_run)

    with signals.handled(limit=options.timeout, on_stop=_REFUSES_TO_STOP), failures_in(report):
        _Run(options, report, listener, called).run()
    return report


def check(options: Options, listener: Listener, called: Invocation = Invocation()) -> Report:  # noqa: B008 - immutable
    """Look, plan and ask the engine, as a run does before it makes anything; nothing is made and nothing recorded.

    The report says of the engine where it would save. Every failure is in it; nothing is raised.
    """
    report = Report(new_run_id(), options.mount_root, dry_run=True)
    with signals.handled(limit=options.timeout, on_stop=None), failures_in(report):
        _Run(options, report, listener, called).check()
    return report


class _Run:
    def __init__(self, options: Options, report: Report, listener: Listener, called: Invocation) -> None:
        self._options = options
        self._called = called
        self._report = report
        self._listener = listener
        self._secrets: Secrets
        self._freezing: Freezing
        self._remembering: Remembering | None = None
        self._handed: dict[str, str] = {}
        """What the engine alone has in its environment."""

    def check(self) -> None:
        engine, _ = self._begin()
        selected = self._report.plan = self._freezing.select()
        self._freezing.check_places(selected)
        self._ask(engine, selected)
        if selected.layout is Layout.IN_PLACE:
            require_skipped(self._written(engine, selected), selected)
        assert self._report.engine is not None
        self._report.engine.target = engine.target

    def _begin(self) -> tuple[Engine, str]:
        """The engine, and the command line as it may be shown. Raises KopiatomicError where the words make no sense."""
        options, report = self._options, self._report
        plan.require_names(options.request("", ""))
        if options.name is not None:
            check_name(options.name)
        command = None if options.command is None else words("-c", options.command)
        extra = words("-o", options.options)
        self._handed = credentials.take(os.environ)
        engine = engines.create(
            command,
            extra,
            engine=options.engine,
            repository=options.repository,
            archive=options.archive,
            maintenance=options.maintenance,
            environment={**os.environ, **self._handed},
        )
        if options.skip_unchanged:
            self._remembering = skipping.require(engine, options.layout)
        self._secrets = Secrets(self._called.words, os.environ, [*engine.secrets, *self._handed.values()])
        self._listener.hide(self._secrets)
        shown = self._secrets.command_line(["kopiatomic", *self._called.words])
        if not options.dry_run:
            require_root(
                "making and mounting snapshots needs root",
                hint=f"sudo {printable(shown)}   (-n shows without root what would be done)",
            )
        report.root, report.series = self._place(engine)
        self._freezing = Freezing(
            options, report, self._listener, self._secrets, refuses=engine.refuses, breaks_at=engine.breaks_at
        )
        return engine, shown

    def run(self) -> None:
        options, report = self._options, self._report
        engine, shown = self._begin()
        freezing = self._freezing
        if options.dry_run:
            report.plan = freezing.select()
            report.engine = EngineReport(engine.name, None, self._shown(engine.describe(report.plan)))
            return
        with freezing.recorded(shown):
            freezing.take_root(report.series, shown, options.wait)
            if report.series != report.root:
                freezing.take_root(report.root, shown, None)
            freezing.clear_leftovers()
            report.plan = freezing.select()
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
        return roots.of_run(self._report.run_id), f"in place: {printable(shlex.join(asked))}"

    def _shown(self, argv: Sequence[str]) -> list[str]:
        """An argv as it may be shown."""
        return self._secrets.hide_words(argv)

    def _prepare(self, engine: Engine, selected: Plan) -> None:
        """Everything that can be known before anything is made."""
        report = self._report
        with report.phase("check"):
            self._freezing.check(selected)
            self._ask(engine, selected)
            report.plan = self._with_writable(engine, selected)

    def _ask(self, engine: Engine, selected: Plan) -> None:
        """Have the engine say whether it can back this up. Raises KopiatomicError."""
        asked = self._report.engine = EngineReport(engine.name, None)
        self._listener.phase(f"checking {engine.name}")
        with understood(engine.name):
            warnings = engine.check(selected)
        for warning in warnings:
            self._freezing.warn(warning)
        asked.version = engine.version

    def _with_writable(self, engine: Engine, selected: Plan) -> Plan:
        """The plan with what must stay live in the frozen trees. Raises KopiatomicError where it would be read as data."""
        if selected.layout is not Layout.IN_PLACE:
            return selected
        return prepared(self._written(engine, selected), selected, self._freezing.warn)

    def _written(self, engine: Engine, selected: Plan) -> list[Own]:
        """The directories that are written to while the engine reads."""
        paths = map(os.path.abspath, self._options.writable)
        asked = [Own("--writable", path, engine.skips(path), _NOT_SKIPPED) for path in paths]
        return [*engine.own(selected), *asked]

    def _finish(self, engine: Engine) -> None:
        """What the engine put off; the backup is saved, so nothing that goes wrong here makes it a failure."""
        try:
            with understood(engine.name):
                warnings = engine.finish()
            for warning in warnings:
                self._freezing.warn(warning)
        except KopiatomicError as error:
            self._freezing.warn(f"{engine.name}'s maintenance: {error.message}")
        except OSError as error:
            self._freezing.warn(f"{engine.name}'s maintenance: {error.strerror}")

    def _between_hooks(self, engine: Engine) -> None:
        """``-p`` before anything is made, ``-q`` once and last in every run that came this far."""
        options, report = self._options, self._report
        assert report.plan is not None
        with failures_in(report):
            lists.write(report.run_id, report.plan)
            if options.pre_hook is not None:
                self._listener.phase("running the hook -p")
                with report.phase("pre-hook"):
                    told = shell.variables(report.run_id, report.plan)
                    shell.run(options.pre_hook, "-p", told, options.hook_timeout, self._secrets)
            self._backup(engine)
            with report.phase("maintenance"):
                self._finish(engine)
        reached = options.pre_hook is not None or "snapshot" in report.durations
        if options.post_hook is not None and reached:
            self._post_hook(options.post_hook)

    def _post_hook(self, line: str) -> None:
        report = self._report
        assert report.plan is not None
        result = report.engine.result if report.engine else None
        outcome = {
            "KOPIATOMIC_RESULT": report.result,
            "KOPIATOMIC_EXIT_CODE": str(report.exit_code),
            "KOPIATOMIC_KOPIA_SNAPSHOT_ID": (result.snapshot_id or "") if result else "",
        }
        self._listener.phase("running the hook -q")
        with report.phase("post-hook"), signals.deferred():
            try:
                told = {**shell.variables(report.run_id, report.plan), **outcome}
                shell.run(line, "-q", told, self._options.hook_timeout, self._secrets)
            except KopiatomicError as error:
                report.hook_error = error

    def _backup(self, engine: Engine) -> None:
        """Freeze, mount, back up, check, and remove everything again; then look at what was saved."""
        report = self._report
        assert report.plan is not None
        assert report.engine is not None
        with self._freezing.view(
            lambda: Pipes(self._taker(engine)), lambda: self._with_writable(engine, self._freezing.select())
        ) as frozen:
            # The plan may have changed: a dataset has vanished.
            job = Job(report.run_id, report.plan, frozen.sets, frozen.view.mounted, frozenset(frozen.view.filled))
            job = self._without_unchanged(job)
            checked = self._run_engine(engine, frozen, job) if job.sources else _NOTHING_READ
        report.engine.end = checked.end if job.sources else None
        with report.phase("verify"), signals.deferred(), understood(engine.name):
            report.engine.result = engine.judge(replace(job, equal=checked.equal), checked.end)
        self._conclude(checked)
        if self._remembering is not None:
            saved = skipping.saved(job, self._remembering, report.engine.result)
            self._freezing.attempt(lambda records: records.stand(report.series, saved))

    def _without_unchanged(self, job: Job) -> Job:
        """The job without the sources in which nothing has changed (``--skip-unchanged``)."""
        engine, series = self._remembering, self._report.series
        if engine is None:
            return job
        with self._report.phase("compare"):
            known = self._freezing.attempt(lambda records: records.standing(series)) or {}
            try:
                with understood("the engine"):
                    job = replace(job, unchanged=skipping.unchanged(job, engine, known))
            except KopiatomicError as error:
                self._freezing.warn(f"all is read, whether it has changed or not: {error.message}")
            # What is read now may come to nothing.
            self._freezing.attempt(lambda records: records.stand(series, dict.fromkeys(job.sources)))
        return job

    def _taker(self, engine: Engine) -> Callable[[str, bytes], None]:
        """What takes the engine's output."""

        def take(stream: str, data: bytes) -> None:
            for found in engine.feed(stream, data):
                if isinstance(found, Progress):
                    self._listener.progress(found)
                else:
                    self._listener.engine_line(found)

        return take

    def _run_engine(self, engine: Engine, frozen: Frozen, job: Job) -> Checked:
        report = self._report
        assert report.engine is not None
        command = engine.command(job)
        report.engine.argv = self._shown(command.argv)
        self._listener.phase(f"{engine.name} is backing up {first_few(job.sources)}")
        # What is taken may have changed.
        lists.write(job.run_id, job.plan)
        environment = shell.environment({**os.environ, **self._handed}, shell.variables(job.run_id, job.plan))
        if in_place(job.plan, inherited.temporary_directory()):
            environment["TMPDIR"] = job.plan.scratch
        with report.phase("engine"):
            return frozen.supervisor.run(Start(command, environment, sources=job.sources), self._options.stop_timeout)

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
        self._require_read(checked, result)
        if not result.complete:
            report.incomplete.append(result.message)

    def _require_read(self, checked: Checked, result: EngineResult) -> None:
        """Refuse the success of an engine that has not looked into the view: it, or its server, has read live files.

        Of the user's own command it is only said. Raises KopiatomicError.
        """
        assert self._report.engine is not None
        name = self._report.engine.name
        if checked.unwatched:
            self._freezing.warn(f"whether {name} has read the frozen view could not be seen: {checked.unwatched}")
        if self._options.command is not None:
            if checked.unread:
                self._freezing.warn(
                    f"{name} has not looked into {first_few(checked.unread)}: if it hands its work to a process outside of "
                    "the view (docker exec, ssh, a service), that one reads live files, or none"
                )
            return
        unread = [one for one in result.sources if one.saved and one.source in checked.unread]
        if not unread:
            return
        result.saved = result.complete = False
        for one in unread:
            one.saved = one.complete = False
            one.message = "nobody has looked into it in the frozen view"
        kept = first_few([one.snapshot_id for one in unread if one.snapshot_id])
        raise KopiatomicError(
            f"{name} reported success, and nobody has looked into {first_few([one.source for one in unread])} in the frozen "
            "view: what it saved was read elsewhere",
            kind="view-not-read",
            hint=f"Is {name} a script here that hands its work to a process outside of the view (docker exec, ssh, a "
            f"service)? Use a {name} that runs by itself"
            + (f", and delete what was saved of live files ({kept})." if kept else "."),
        )


def _engine_failed(name: str, message: str, end: EngineEnd) -> KopiatomicError:
    return KopiatomicError(
        message or f"{name} failed ({ended(end.status)})", kind="engine-failed", hint="Nothing was saved."
    )
