"""The sequence of a backup: the only place that knows the order of the steps."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from kopiatomic import engines, errors
from kopiatomic.commands.failures import require_root_to_freeze
from kopiatomic.config import credentials
from kopiatomic.config.invocation import Invocation
from kopiatomic.config.options import HoldBlock, Options, check_name, words
from kopiatomic.engines.engine import KOPIA, Backup, Job, Remembering, Repository
from kopiatomic.engines.numbers import understood
from kopiatomic.engines.ways import combined
from kopiatomic.engines.written import WrittenDirectory, in_place, prepared, require_skipped
from kopiatomic.errors import KopiatomicError, LockedError, UsageError
from kopiatomic.hooks import shell
from kopiatomic.hooks.holder import Holder, with_secrets
from kopiatomic.hooks.hook import Moment
from kopiatomic.hooks.run import SKIP, HookError
from kopiatomic.model.engine import EngineEnd, EngineResult, Progress
from kopiatomic.model.plan import RECORD, Layout, Plan
from kopiatomic.model.record import FAILED
from kopiatomic.model.report import EngineReport, Report, WriterReport
from kopiatomic.model.verified import DIFFERS, Verified
from kopiatomic.planning import plan
from kopiatomic.runs import in_view, metadata, skipping
from kopiatomic.runs.comparing import Comparing
from kopiatomic.runs.freezing import Frozen, Session, failures_in, new_run_id, recorded
from kopiatomic.runs.hooks import Hooks, Prepared
from kopiatomic.runs.launcher import Checked, Start, StartOptions
from kopiatomic.runs.recording import Recording, planned
from kopiatomic.runs.selecting import Listener, Selecting
from kopiatomic.runs.streams import Pipes
from kopiatomic.secrets.masking import Secrets
from kopiatomic.state import lists, roots
from kopiatomic.system import host, inherited, signals, spawn
from kopiatomic.system.channel import close_quietly
from kopiatomic.text import ended, first_few, printable
from kopiatomic.trees import cache

_NOT_SKIPPED = (
    "It would be read while it is written: mark it as a cache (CACHEDIR.TAG), or move it out of what is backed up."
)

_LOOKING = "looking for the writers to hold still"

_NOTHING_READ = Checked(EngineEnd(0, stopped=False), ())
"""What there is to say of the engine where every source was unchanged."""

_REFUSES_TO_STOP = "kopiatomic: Ctrl-Z does not stop a run: it would keep its snapshots for as long; Ctrl-C ends it"


def backup(options: Options, listener: Listener, called: Invocation = Invocation()) -> Report:  # noqa: B008 - immutable
    """Do a whole run. Every failure is in the report, including defects in kopiatomic; nothing is raised."""
    report = Report(new_run_id(), options.mount_root, dry_run=options.dry_run)

    with signals.handled(limit=options.timeout, on_stop=_REFUSES_TO_STOP):
        begun: list[_Run] = []
        with failures_in(report):
            begun.append(_Run(options, report, listener, called))
            begun[0].run()
        if report.error is not None and not options.dry_run and not any(run.is_over for run in begun):
            _tell_failed(begun[0].hooks if begun else _hooks_alone(options, report, listener, called), report)
    return report


def check(options: Options, listener: Listener, called: Invocation = Invocation()) -> Report:  # noqa: B008 - immutable
    """Look, plan and query the engine, as a run does before it makes anything; nothing is made and nothing recorded.

    The report says where the engine would save. Of a dry run, only the plan is looked at. Every failure is in the report;
    nothing is raised.
    """
    report = Report(new_run_id(), options.mount_root, dry_run=True)
    with signals.handled(limit=options.timeout, on_stop=None), failures_in(report):
        run = _Run(options, report, listener, called)
        run.check_plan()
        if not options.dry_run:
            run.check_engine()
    return report


def _tell_failed(hooks: Hooks, report: Report) -> None:
    """Run ``on_failure`` where the run did not come so far that it could do that itself."""
    with signals.deferred():
        report.warnings += [error.message for error in hooks.run_all(Moment.ON_FAILURE)]


def _hooks_alone(options: Options, report: Report, listener: Listener, called: Invocation) -> Hooks:
    """Return the hooks ``on_failure`` of a run that could not begin, as far as the values of their variables can be had."""
    folder = credentials.folder_of(called.environment or os.environ)
    ready: list[Prepared] = []
    for hook in options.hooks if os.geteuid() == 0 else ():
        if hook.moment is not Moment.ON_FAILURE:
            continue
        try:
            found = credentials.resolve([*options.hook_variables, *hook.variables], folder)
        except KopiatomicError as error:
            report.warnings.append(f"{hook.shown} is not run: {error.message}")
        else:
            ready.append(Prepared(hook, found.values))
    secrets = Secrets(called.words, os.environ, [value for one in ready for value in one.variables.values()])
    listener.hide(secrets)
    base = secrets.withheld_from(os.environ)
    return Hooks(ready, base, report, secrets=secrets, profile=options.profile, say=listener.engine_line)


class _Run:
    def __init__(self, options: Options, report: Report, listener: Listener, called: Invocation) -> None:
        """Raises KopiatomicError where the words make no sense, or a backup is not for who asks."""
        plan.require_names(options.request("", ""))
        if options.name is not None:
            check_name(options.name)
        if options.ionice is not None and not host.here().io_classes:
            raise UsageError(
                "ionice: only Linux has I/O classes",
                kind="usage",
                hint="Leave it out of [engine]; nice works here as well.",
            )
        command = None if options.command is None else words("-c", options.command)
        extra = words("-o", options.options)
        blocks = options.hold_wanted()
        if blocks and not host.here().holds:
            raise UsageError(
                f"hold {blocks[0].wanted}: writers are held still on Linux only",
                kind="usage",
                hint="Have hooks do it, which work here as well: before_freeze holds a writer, after_freeze lets it go.",
            )
        self._options = options
        self._blocks = blocks
        self._report = report
        self._listener = listener
        # As the program was called, since another run of this process may have come before.
        self._folder = folder = credentials.folder_of(called.environment or os.environ)
        # Hooks are not to find what is the engine's.
        os.environ.pop("CREDENTIALS_DIRECTORY", None)
        taken = credentials.handed(folder)
        holds = [block.sources for block in blocks]
        groups = [options.variables, options.hook_variables, *holds, *(hook.variables for hook in options.hooks)]
        # A dry run needs no secret, and may be anybody's.
        plain = [credentials.plain(group) for group in groups] if options.dry_run else None
        own, of_hooks, *more = plain or credentials.resolve_each(groups, folder)
        of_holds, of_each = more[: len(holds)], more[len(holds) :]
        self._wanted = [(block.wanted, each.values) for block, each in zip(blocks, of_holds, strict=True)]
        """The writers to hold still, and the secret ones among their settings."""
        self._handed = combined(taken, own.values)
        """What the engine alone has in its environment."""
        self._of_hooks = of_hooks.values
        self._engine = engine = engines.create(
            command,
            extra,
            engine=options.engine,
            repository=options.repository,
            archive=options.archive,
            maintenance=options.maintenance,
            environment=combined(os.environ, self._handed),
        )
        if options.verify is not None and options.command is not None:
            raise UsageError(
                "--verify: what a command of your own (-c) has saved cannot be read back",
                kind="usage",
                hint="Leave it out, or use --engine.",
            )
        if options.skip_unchanged:
            skipping.require(engine, options.layout)
        self._secrets = Secrets(
            called.words,
            os.environ,
            [
                *engine.secrets,
                *taken.values(),
                *(secret for one in (own, of_hooks, *more) for secret in one.secrets),
            ],
        )
        listener.hide(self._secrets)
        self._words = called.words
        self._shown = self._secrets.command_line(["kopiatomic", *called.words])
        """The command line as it may be shown."""
        if not options.dry_run:
            require_root_to_freeze(self._shown, "-n shows without root what would be done. As root: ")
        self._recording: Recording | None = None
        """What decides whether a backup in place has a metadata record; None before that is asked."""
        self._begun = False
        """Whether the run has come to the hook ``before``, whether there is one or not."""
        self.is_over = False
        """Whether the hooks that come last have run."""
        self.hooks = Hooks(
            [
                Prepared(hook, {**of_hooks.values, **each.values})
                for hook, each in zip(options.hooks, of_each, strict=True)
            ],
            self._secrets.withheld_from(os.environ),
            report,
            secrets=self._secrets,
            profile=options.profile,
            say=listener.engine_line,
        )
        report.root, report.series = self._place()
        self._selecting = Selecting(options, report, listener, refuses=engine.refuses, breaks_at=engine.breaks_at)

    def check_plan(self) -> None:
        selected = self._report.plan = self._selecting.select()
        self._selecting.check_places(selected)

    def check_engine(self) -> None:
        selected = self._report.plan
        assert selected is not None
        repository = self._checked(selected)
        if selected.layout is Layout.IN_PLACE:
            require_skipped(self._written(repository, selected), selected)
        assert self._report.engine is not None
        self._report.engine.target = repository.target
        self._writers(selected)

    def run(self) -> None:
        options, report, engine = self._options, self._report, self._engine
        if options.dry_run:
            report.plan = self._selecting.select()
            self._plan_writers(report.plan)
            report.plan = self._foreseen(report.plan)
            argv = self._secrets.hide_words(engine.describe(report.plan))
            report.engine = EngineReport(engine.name, None, argv)
            return
        with recorded(self._selecting, self._secrets, self._shown, self.hooks) as session:
            with failures_in(report):
                session.take_root(report.series, self._shown, options.wait)
                if report.series != report.root:
                    session.take_root(report.root, self._shown, None)
                session.clear_leftovers()
                self._before()
                if not report.skipped:
                    report.plan = self._selecting.select()
                    repository = self._prepare(session, report.plan)
                    self._between_hooks(session, repository)
            self._afterwards()

    def _before(self) -> None:
        """Run ``before``, which may say that there is nothing to back up now. Raises HookError, Interrupted."""
        self._begun = True
        if not self.hooks.of(Moment.BEFORE):
            return
        self._listener.phase("running the hook before")
        with self._report.phase("before"):
            try:
                self.hooks.run(Moment.BEFORE)
            except HookError as error:
                if error.status != SKIP:
                    raise
                self._report.skipped = f"{error.message}: there is nothing to back up now"

    def _afterwards(self) -> None:
        """Run what comes last: ``after`` if ``before`` was started, then what the profile wants by the result."""
        report = self._report
        with signals.deferred():
            if self._begun:
                failed = self._last(Moment.AFTER)
                report.hook_error = report.hook_error or next(iter(failed), None)
            moment = self._by_result()
            for error in self._last(moment) if moment is not None else []:
                self._selecting.warn(error.message)
        self.is_over = True

    def _last(self, moment: Moment) -> list[KopiatomicError]:
        if not self.hooks.of(moment):
            return []
        self._listener.phase(f"running the hook {moment.value}")
        with self._report.phase(moment.value.replace("_", "-")):
            return self.hooks.run_all(moment)

    def _by_result(self) -> Moment | None:
        """Return which hooks the run's result asks for."""
        report = self._report
        if report.skipped or (isinstance(report.error, LockedError) and self._options.on_lock == "skip"):
            return None
        if report.exit_code == errors.SAVED:
            return Moment.ON_SUCCESS
        return Moment.ON_INCOMPLETE if report.exit_code in {errors.INCOMPLETE, errors.UNCLEAN} else Moment.ON_FAILURE

    def _place(self) -> tuple[str, str]:
        """Return where on the host the view is mounted, and the series that this run belongs to. Raises KopiatomicError."""
        options = self._options
        if options.layout is Layout.MERGED:
            resolved = roots.resolve(options.view_root())
            return resolved, resolved
        asked = [self._engine.name, *options.selection_words()]
        return roots.of_run(self._report.run_id), f"in place: {printable(shlex.join(asked))}"

    def _prepare(self, session: Session, selected: Plan) -> Repository:
        """Check everything that can be known before anything is made; return the repository that is saved to."""
        report = self._report
        with report.phase("check"):
            session.check(selected)
            repository = self._checked(selected)
            report.plan = self._final(session, repository, selected)
            session.holders = self._writers(selected)
        return repository

    def _writers(self, selected: Plan) -> list[Holder]:
        """Find the writers that must be held still. Raises KopiatomicError, Interrupted."""
        if not self._wanted:
            return []
        from kopiatomic.runs import holds  # noqa: PLC0415 - few runs need it

        self._listener.phase(_LOOKING)
        base = self._secrets.withheld_from(os.environ)
        wanted = [with_secrets(one, more) for one, more in self._wanted]
        found = holds.find(wanted, selected, base, lambda error: self._selecting.warn(error.warning))
        self._report.writers = [one.report for one in found]
        return [one.holder for one in found if one.holder is not None]

    def _plan_writers(self, selected: Plan) -> None:
        """Say what would be held still, as far as this user may know; the first that would fail a run fails the plan as well.

        Raises UsageError, Interrupted.
        """
        report = self._report
        if self._options.facts is not None:
            not_asked = "not asked: the plan is made from a file"
            report.writers = [WriterReport(str(one), not_asked, needed=None) for one, _ in self._wanted]
            return
        if not self._wanted:
            return
        from kopiatomic.runs import holds  # noqa: PLC0415 - few plans need it

        self._listener.phase(_LOOKING)
        as_root = os.geteuid() == 0
        base = self._secrets.withheld_from(os.environ)
        known = holds.Known()
        for block in self._blocks:
            one = block.wanted
            found: list[WriterReport]
            problem: KopiatomicError | None
            try:
                # Another user may not read them, and asks as far as that goes.
                more = self._secrets_of(block) if as_root else credentials.plain(block.sources).values
            except KopiatomicError as error:
                found, problem = [holds.failed(one, error)], error
            else:
                one = with_secrets(one, more)
                found, problem = holds.foreseen(one, selected, base, as_root=as_root)
            report.writers += [
                replace(each, label=label) for each in found if (label := known.added(one, each.label)) is not None
            ]
            if problem is None or not as_root:
                continue
            if not one.required:
                self._selecting.warn(problem.warning)
            elif report.error is None:
                report.error = problem
            elif problem.message != report.error.message:
                self._selecting.warn(problem.warning)
        unknown = [one.label for one in report.writers if one.needed is None]
        if unknown and not as_root:
            self._selecting.warn(
                f"only root can find out whether {first_few(unknown)} must be held still: sudo {self._shown}"
            )

    def _secrets_of(self, block: HoldBlock) -> Mapping[str, str]:
        """Return the secret ones among a writer's settings, as a run reads them. Raises KopiatomicError, Interrupted."""
        resolved = credentials.resolve(block.sources, self._folder)
        self._secrets.add(resolved.secrets)
        return resolved.values

    def _checked(self, selected: Plan) -> Repository:
        """Have the engine check whether it can back this up; return the repository that it found. Raises KopiatomicError."""
        engine = self._engine
        asked = self._report.engine = EngineReport(engine.name, None)
        self._listener.phase(f"checking {engine.name}")
        with understood(engine.name):
            repository = engine.check(selected)
        # One in a profile is in no list of processes.
        if any(secret in word for secret in engine.secrets for word in self._words):
            self._selecting.warn(
                "a password in -o can be read by every local user in the list of processes, as long as kopiatomic runs; "
                "let kopia remember it (kopia repository connect) or set KOPIA_PASSWORD instead"
            )
        for warning in repository.warnings:
            self._selecting.warn(warning)
        asked.version = repository.version
        return repository

    def _final(self, session: Session, repository: Repository, selected: Plan) -> Plan:
        """Return the plan with what depends on the repository. Raises KopiatomicError, Interrupted."""
        return self._with_record(session, repository, self._with_writable(repository, selected))

    def _with_record(self, session: Session, repository: Repository, selected: Plan) -> Plan:
        """Return the plan with the place of the metadata record, if one is made. Raises Interrupted."""
        possible = self._selecting.platform.records_metadata and repository.losses is not None
        if not possible or self._options.metadata is False:
            return selected
        if selected.layout is Layout.MERGED:
            return replace(selected, record=RECORD)
        if self._recording is None:
            self._recording = Recording(self._selecting, session.attempt, self._options.metadata)
        return self._recording.applied(repository, selected)

    def _foreseen(self, selected: Plan) -> Plan:
        """Return the plan of a dry run in place with the metadata record that a run would have, or say why it depends."""
        options = self._options
        unasked = selected.layout is Layout.MERGED or options.command is not None or options.facts is not None
        if unasked or options.metadata is False or not self._selecting.platform.records_metadata:
            return selected
        placed = planned(selected, options.state_dir, self._report.series)
        if options.metadata is None and placed.record_source and self._engine.records_apart:
            self._report.without_metadata = (
                f"a run makes a record at {printable(placed.record)} only if that was agreed to: --metadata"
            )
            return selected
        return placed

    def _with_writable(self, repository: Repository, selected: Plan) -> Plan:
        """Return the plan with what must stay live in the frozen trees. Raises KopiatomicError if that would be read as data."""
        if selected.layout is not Layout.IN_PLACE:
            return selected
        return prepared(self._written(repository, selected), selected, self._selecting.warn)

    def _written(self, repository: Repository, selected: Plan) -> list[WrittenDirectory]:
        """Return the directories that are written to while the engine reads."""
        paths = map(os.path.abspath, self._options.writable)
        asked = [
            WrittenDirectory("--writable", path, repository.skips(path), _NOT_SKIPPED, asked=True) for path in paths
        ]
        return [*repository.written(selected), *asked]

    def _finish(self, backup: Backup) -> None:
        """Do what the engine postponed; the backup is saved, so nothing that goes wrong here makes it a failure."""
        engine = self._engine
        try:
            with understood(engine.name):
                warnings = backup.finish()
            for warning in warnings:
                self._selecting.warn(warning)
        except KopiatomicError as error:
            self._selecting.warn(f"{engine.name}'s maintenance: {error.message}")
        except OSError as error:
            self._selecting.warn(f"{engine.name}'s maintenance: {error.strerror}")

    def _between_hooks(self, session: Session, repository: Repository) -> None:
        """Run ``-p`` before anything is made, and ``-q`` once and last in every run that gets this far."""
        options, report = self._options, self._report
        assert report.plan is not None
        with failures_in(report):
            lists.write(report.run_id, report.plan)
            if options.pre_hook is not None:
                self._listener.phase("running the hook -p")
                with report.phase("pre-hook"):
                    variables = {**self._of_hooks, **shell.variables(report.run_id, report.plan)}
                    shell.run(options.pre_hook, "-p", variables, options.hook_timeout, self._secrets)
            made = self._backup(session, repository)
            with report.phase("maintenance"):
                self._finish(made)
        reached = options.pre_hook is not None or "snapshot" in report.durations
        if options.post_hook is not None and reached:
            self._post_hook(options.post_hook)

    def _post_hook(self, line: str) -> None:
        report = self._report
        assert report.plan is not None
        outcome = shell.outcome(report)
        self._listener.phase("running the hook -q")
        with report.phase("post-hook"), signals.deferred():
            try:
                variables = {**self._of_hooks, **shell.variables(report.run_id, report.plan), **outcome}
                shell.run(line, "-q", variables, self._options.hook_timeout, self._secrets)
            except KopiatomicError as error:
                report.hook_error = error

    def _backup(self, session: Session, repository: Repository) -> Backup:
        """Freeze, mount, back up, check, and remove everything again; then examine what was saved. Returns what was done."""
        report = self._report
        assert report.plan is not None
        assert report.engine is not None
        remembering = skipping.remembering(repository) if self._options.skip_unchanged else None
        with session.view(lambda: self._final(session, repository, self._selecting.select())) as frozen:
            # The plan may have changed meanwhile: a dataset has vanished.
            job = Job(report.run_id, report.plan, frozen.sets, frozen.view.mounted, frozenset(frozen.view.filled))
            if remembering is not None:
                job = self._without_unchanged(session, job, remembering)
            comparing = None
            if self._options.verify is not None:
                comparing = Comparing(self._options, self._options.verify, self._engine, report, session.attempt)
                job = replace(job, reads_all=comparing.known.reads_all)
            self._record_metadata(frozen, job, repository)
            self._in_view(frozen, job)
            made = repository.backup(job)
            checked = self._run_engine(frozen, job, made) if job.sources else _NOTHING_READ
            if comparing is not None:
                self._judge(made, checked)
                self._compare(frozen, job, repository, comparing, checked)
        report.engine.end = checked.end if job.sources else None
        if report.engine.result is None:
            self._judge(made, checked)
        assert report.engine.result is not None
        self._conclude(checked, report.engine.result)
        if remembering is not None:
            saved = skipping.saved(job, remembering, report.engine.result)
            session.attempt(lambda records: records.stand(report.series, saved))
        return made

    def _judge(self, made: Backup, checked: Checked) -> None:
        """Have the engine say what came of it."""
        assert self._report.engine is not None
        with self._report.phase("verify"), signals.deferred(), understood(self._engine.name):
            self._report.engine.result = made.judge(checked.end, checked.odd)

    def _compare(
        self, frozen: Frozen, job: Job, repository: Repository, comparing: Comparing, checked: Checked
    ) -> None:
        """Compare what was saved with the frozen view, if it was saved. Raises KopiatomicError, Interrupted."""
        engine = self._report.engine
        assert engine is not None
        assert engine.result is not None
        result = engine.result
        if checked.problems or checked.end.stopped or not result.saved or not job.sources:
            return
        self._listener.phase(f"comparing what {engine.name} has saved with the frozen view")
        with self._report.phase("verification"):
            try:
                found = comparing.made(frozen.supervisor, job, repository, self._engine_environment(job))
                self._report.verified = found
            except KopiatomicError as error:
                self._report.incomplete.append(f"what was saved is not verified: {error.message}")
        for warning in comparing.warnings:
            self._selecting.warn(warning)

    def _without_unchanged(self, session: Session, job: Job, repository: Remembering) -> Job:
        """Return the job without the sources in which nothing has changed (``--skip-unchanged``)."""
        series = self._report.series
        with self._report.phase("compare"):
            known = session.attempt(lambda records: records.standing(series)) or {}
            try:
                with understood("the engine"):
                    job = replace(job, unchanged=skipping.unchanged(job, repository, known))
            except KopiatomicError as error:
                self._selecting.warn(f"all is read, whether it has changed or not: {error.message}")
            # What is read now may come to nothing.
            session.attempt(lambda records: records.stand(series, dict.fromkeys(job.sources)))
        return job

    def _record_metadata(self, frozen: Frozen, job: Job, repository: Repository) -> None:
        """Record what the engine would lose; without that the backup is not complete. Raises KopiatomicError, Interrupted."""
        report = self._report
        assert report.engine is not None
        if not job.plan.record or not job.sources:
            return
        assert repository.losses is not None
        self._listener.phase("recording what the engine would lose")
        with report.phase("metadata"):
            try:
                about = metadata.about(job.plan, report.engine)
                with self._record_cache() as directory:
                    made = frozen.supervisor.record(repository.losses, about, directory)
            except KopiatomicError as error:
                if error.kind != FAILED:
                    raise
                report.incomplete.append(error.message)
                return
        report.metadata = made
        if made.cache_problem:
            self._selecting.warn(f"the cache of metadata records cannot be used: {made.cache_problem}")
        if made.unreadable:
            named = first_few([f"{printable(one.path)} ({one.why})" for one in made.named])
            report.incomplete.append(f"what {made.unreadable} entries have could not be recorded: {named}")

    @contextmanager
    def _record_cache(self) -> Iterator[int | None]:
        """Open what was recorded of datasets that may not have changed; None where that cannot be had."""
        directory = None
        try:
            directory = cache.open_in(self._options.state_dir)
        except KopiatomicError as error:
            self._selecting.warn(error.message)
        try:
            yield directory
        finally:
            close_quietly(directory)

    def _in_view(self, frozen: Frozen, job: Job) -> None:
        """Run the hooks ``in_view``: each reads the frozen view, before the engine. Raises KopiatomicError, Interrupted."""
        for one in self.hooks.of(Moment.IN_VIEW):
            self._listener.phase("running the hook in_view")
            with self._report.phase("in-view"):
                ran = in_view.run(one, self.hooks, frozen.supervisor, job, self._options.stop_timeout)
            self._report.hooks.append(ran)
            if ran.error is None:
                continue
            if one.hook.required:
                raise ran.error
            self._report.incomplete.append(ran.error.message)

    def _run_engine(self, frozen: Frozen, job: Job, made: Backup) -> Checked:
        report, engine = self._report, self._engine
        assert report.engine is not None
        command = made.command()
        report.engine.argv = self._secrets.hide_words(command.argv)
        self._listener.phase(f"{engine.name} is backing up {first_few(job.sources)}")
        # What is taken may have changed meanwhile.
        lists.write(job.run_id, job.plan)
        environment = shell.environment(self._engine_environment(job), shell.variables(job.run_id, job.plan))

        def take(stream: str, data: bytes) -> None:
            for found in made.feed(stream, data):
                if isinstance(found, Progress):
                    self._listener.progress(found)
                else:
                    self._listener.engine_line(found)

        with report.phase("engine"):
            priority = spawn.Priority(self._options.nice, self._options.ionice)
            start = Start(command, environment, StartOptions(priority=priority), sources=job.sources)
            return frozen.supervisor.run(start, Pipes(take), self._options.stop_timeout)

    def _engine_environment(self, job: Job) -> dict[str, str]:
        """Return what the engine has in its environment, but for what says which run it is of."""
        environment = combined(os.environ, self._handed)
        if in_place(job.plan, inherited.temporary_directory()):
            environment["TMPDIR"] = job.plan.scratch
        return environment

    def _conclude(self, checked: Checked, result: EngineResult) -> None:
        """Combine the engine's end, its own output and the check of the mounts into the run's outcome."""
        report = self._report
        assert report.engine is not None
        if checked.problems:
            report.engine.result = replace(result, saved=False)
            raise KopiatomicError(
                f"what {report.engine.name} saved is not the frozen view: {'; '.join(checked.problems)}",
                kind="view-changed",
                hint=f"Find out who removed it, delete that snapshot of {report.engine.name}'s, and run again."
                if result.snapshot_id
                else "Find out who removed it, and run again.",
            )
        reason = signals.reason()
        if checked.end.stopped and reason is not None:
            report.engine.result = replace(result, saved=False, complete=False)
            raise reason
        if not result.saved:
            raise _engine_failed(report.engine.name, result.message, checked.end)
        self._require_read(checked, result)
        if not result.complete:
            report.incomplete.append(result.message)
        if report.verified is not None and not report.verified.equal:
            raise _differs(report.engine.name, report.verified)

    def _require_read(self, checked: Checked, result: EngineResult) -> None:
        """Refuse the success of an engine that has not looked into the view: it, or its server, has read live files.

        For the user's own command this is only a warning. Raises KopiatomicError.
        """
        assert self._report.engine is not None
        name = self._report.engine.name
        if checked.unwatched:
            self._selecting.warn(f"whether {name} has read the frozen view could not be seen: {checked.unwatched}")
        if self._options.command is not None:
            if checked.unread:
                self._selecting.warn(
                    f"{name} has not looked into {first_few(checked.unread)}: if it hands its work to a process outside of "
                    "the view (docker exec, ssh, a service), that one reads live files, or none"
                )
            return
        unread = [one for one in result.sources if one.saved and one.source in checked.unread]
        if not unread:
            return
        why = "nobody has looked into it in the frozen view"
        sources = [
            replace(one, saved=False, complete=False, message=why) if one in unread else one for one in result.sources
        ]
        self._report.engine.result = replace(result, saved=False, complete=False, sources=sources)
        kept = first_few([one.snapshot_id for one in unread if one.snapshot_id])
        raise KopiatomicError(
            f"{name} reported success, and nobody has looked into {first_few([one.source for one in unread])} in the frozen "
            "view: what it saved was read elsewhere",
            kind="view-not-read",
            hint=f"Is {name} a script here that hands its work to a process outside of the view (docker exec, ssh, a "
            f"service)? Use a {name} that runs by itself"
            + (f", and delete what was saved of live files ({kept})." if kept else "."),
        )


def _differs(name: str, verified: Verified) -> KopiatomicError:
    """Return the error that a backup is not what was frozen."""
    first = verified.differences[0]
    more = f", and {verified.difference_count - 1} more" if verified.difference_count > 1 else ""
    again = " The next run has kopia read every file again." if verified.changed_unseen and name == KOPIA else ""
    return KopiatomicError(
        f"what {name} has saved differs from the frozen view: {printable(first.path)}: {printable(first.what)}{more}",
        kind=DIFFERS,
        hint=f"Do not rely on this backup. Check the repository with {name}'s own means, and the disk.{again}",
    )


def _engine_failed(name: str, message: str, end: EngineEnd) -> KopiatomicError:
    return KopiatomicError(
        message or f"{name} failed ({ended(end.status)})", kind="engine-failed", hint="Nothing was saved."
    )
