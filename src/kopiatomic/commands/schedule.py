"""The commands of ``kopiatomic schedule``: what each does, from its arguments to its exit code."""

from __future__ import annotations

import os
import pwd
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

from kopiatomic import errors, presence
from kopiatomic.commands import profiles
from kopiatomic.commands.failures import ended, require_root
from kopiatomic.commands.history import result_of
from kopiatomic.config.invocation import Invocation
from kopiatomic.config.options import Options, check_name
from kopiatomic.config.profile import Profile
from kopiatomic.errors import EndError, KopiatomicError, UsageError
from kopiatomic.hooks.hook import AT_THE_END
from kopiatomic.immutable import immutable
from kopiatomic.model.report import Report
from kopiatomic.model.schedule import Schedule
from kopiatomic.monitoring import lateness
from kopiatomic.output.console import Console
from kopiatomic.output.summary import duration
from kopiatomic.planning import plan
from kopiatomic.schedules import environment, files, started, trust
from kopiatomic.schedules.files import State
from kopiatomic.schedules.schedule import DAILY, Scheduler
from kopiatomic.schedules.schedule import backup as schedule_words
from kopiatomic.schedules.schedule import check_name as check_schedule_name
from kopiatomic.secrets.masking import Secrets
from kopiatomic.state.liveness import Life, life
from kopiatomic.state.records import Records, RunRecord
from kopiatomic.system import clock
from kopiatomic.text import printable

FORMAT = "kopiatomic-schedules-1"

_CLEAN_UP = 240.0
"""Seconds that the end of a run may take beyond what its options allow: snapshots and mounts are removed, and afterwards
what ``recover`` finds (it gives a run's leftovers 180 s)."""


@immutable
class Place:
    """Where schedules are installed, and what they start. From ``top`` on, all files must belong to root only."""

    scheduler: Scheduler
    argv0: str
    caller: Mapping[str, str]
    top: str = "/"


@immutable
class ScheduleRequest:
    """The arguments of ``schedule install``. ``words`` are those of the backup, ``options`` their parsed form.

    Of a profile there are no words, and its file says when.
    """

    name: str
    calendar: str
    credentials: Mapping[str, str]
    words: Sequence[str]
    options: Options
    profile: Profile | None = None
    config_dir: str | None = None
    """The folder of the profile, if it is not the system's."""


def install(wanted: ScheduleRequest, place: Place, console: Console, *, yes: bool) -> int:
    """Have the system make this backup at these times; return the exit code."""

    def run() -> int:
        schedule, unsure = _schedule(wanted, place, console)
        scheduler = place.scheduler
        found = [(file, files.state(file)) for file in scheduler.files(schedule)]
        for file, state in found:
            if state is not State.SAME:
                console.result(f"{file.path} ({state.value}):")
                console.verbatim("\n".join(f"  {line}" for line in file.content.splitlines()))
        for text in unsure:
            console.warning(text)
        if all(state is State.SAME for _, state in found):
            console.result(f"The files of {schedule.name} are as they should be.")
        else:
            _confirm(f"Write that and start {schedule.name} {_when(schedule)}?", yes=yes)
        console.acted = True
        # Before anything is written: a backup that cannot work is not installed.
        _ask(scheduler, schedule, console)
        for file, _ in found:
            files.write(file, top=place.top)
        scheduler.start(schedule.name)
        _say_installed(scheduler, schedule, console)
        return errors.SAVED

    return ended(run, console)


def _schedule(wanted: ScheduleRequest, place: Place, console: Console) -> tuple[Schedule, list[str]]:
    """Return the schedule to install, and what about it cannot be judged. Raises KopiatomicError, UsageError."""
    check_schedule_name(wanted.name)
    _check_words(wanted, place.scheduler)
    options = wanted.options
    _require_root(console)
    profile = wanted.profile
    calendar = place.scheduler.calendar(wanted.name, wanted.calendar if profile is None else _calendar(profile))
    for name, path in wanted.credentials.items():
        environment.check_credential(name, path, top=place.top)
    program = trust.installed(place.argv0, console.command_line, top=place.top)
    home = pwd.getpwuid(0).pw_dir
    # What the profile itself says does not come from here.
    handed = {*wanted.credentials, *(source.name for source in options.variables)}
    # Its options are read at each run, and may be others by then.
    fixed = options if profile is None else replace(options, options="")
    variables = environment.of(fixed, place.caller, home, handed, top=place.top)
    environment.check_no_secrets(variables, _advice(wanted, place.scheduler), console.command_line)
    unsure = started.check(options, variables, top=place.top)
    state_dir = os.path.abspath(options.state_dir)
    schedule = Schedule(
        name=wanted.name,
        calendar=calendar.text,
        interval=calendar.interval,
        program=program,
        words=tuple(wanted.words),
        environment={
            **variables,
            # What a profile says of it is read at each run.
            **({} if profile and profile.value("records", "state_dir") else {"KOPIATOMIC_STATE_DIR": state_dir}),
            **({"KOPIATOMIC_CONFIG_DIR": wanted.config_dir} if wanted.config_dir else {}),
        },
        credentials=dict(wanted.credentials),
        state_dir=state_dir,
        end_timeout=_end_timeout(options),
        **({} if profile is None else _times(profile)),
    )
    place.scheduler.check(schedule)
    return schedule, unsure


def _calendar(profile: Profile) -> str:
    return str(profile.value("schedule", "calendar", DAILY))


def _times(profile: Profile) -> dict[str, Any]:
    """Return what a profile says of its starts, as the fields of a schedule."""
    return {
        "profile": profile.name,
        "asked": _calendar(profile),
        "random_delay": profile.value("schedule", "random_delay"),
        "persistent": profile.value("schedule", "persistent", True),
        "on_battery": profile.value("schedule", "on_battery", True),
    }


def outdated(installed: Sequence[Schedule], profile: Profile, options: Options) -> list[str]:
    """Return those of the schedules that were installed for an older version of a profile, in words: what a run does not read."""
    return [
        f"the schedule {one.name} was {_OUTDATED.format(name=one.name)}"
        for one in installed
        if one.profile == profile.name and not one.agrees(_now(one, profile, options))
    ]


_OUTDATED = "installed for an older profile: kopiatomic schedule install {name}"


def _now(installed: Schedule, profile: Profile, options: Options) -> Schedule:
    """Return a schedule as it would be installed now, as far as :meth:`Schedule.agrees` asks."""
    state_dir = os.path.abspath(options.state_dir)
    return replace(installed, end_timeout=_end_timeout(options), state_dir=state_dir, **_times(profile))


def of_profiles(installed: Sequence[Schedule]) -> dict[str, str]:
    """Return when each profile starts that has a schedule, in words."""
    return {one.profile: one.calendar for one in installed if one.profile}


def _check_words(wanted: ScheduleRequest, scheduler: Scheduler) -> None:
    """Refuse words that are not a backup, or that would put a secret where every user can read it. Raises UsageError."""
    options = wanted.options
    plan.require_names(options.request("", ""))
    if options.name is not None:
        check_name(options.name)
    if options.dry_run or options.schedule is not None:
        flag = "-n" if options.dry_run else "--schedule"
        raise UsageError(f"{flag} is nothing for a schedule", kind="usage", hint=f"Leave {flag} out.")
    engine = environment.created(options, {})
    if engine.secrets or Secrets(wanted.words, {}).found:
        raise UsageError(
            "a password stands among the words of the backup, and every user can read a schedule's",
            kind="secret-in-words",
            hint=_advice(wanted, scheduler)("KOPIA_PASSWORD"),
        )


def _advice(wanted: ScheduleRequest, scheduler: Scheduler) -> Callable[[str], str]:
    """Return what says how a secret can reach the engine."""
    return scheduler.advice if wanted.profile is None else _advice_for_a_profile


def _advice_for_a_profile(variable: str) -> str:
    return f'Write below [engine.environment] of the profile where it is: {variable} = {{ file = "/root/FILE" }}.'


def _end_timeout(options: Options) -> float:
    """Return how long a run's end may take: ``--stop-timeout`` for the engine and again for a suspended pool, the hooks that
    still run then, cleaning up.
    """
    hooks = sum(hook.timeout for hook in options.hooks if hook.moment in AT_THE_END)
    last = options.hook_timeout if options.post_hook is not None else 0.0
    return 2 * options.stop_timeout + hooks + last + _CLEAN_UP


def _when(schedule: Schedule) -> str:
    return f"at '{printable(schedule.calendar)}' (every {duration(schedule.interval)} at the most)"


def _confirm(question: str, *, yes: bool) -> None:
    """Ask on the terminal. Raises KopiatomicError if the answer is no, or nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise KopiatomicError(
            "nobody can be asked whether that is right: standard input is no terminal",
            kind="not-confirmed",
            hint="--yes answers the question.",
        )
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise KopiatomicError("nothing was changed", kind="not-confirmed")


def _ask(scheduler: Scheduler, schedule: Schedule, console: Console) -> None:
    """Have files and engine checked in the way the schedule will run, and report the result. Raises KopiatomicError."""
    for text in scheduler.verify(schedule):
        console.warning(text)
    unchecked = scheduler.unchecked
    if unchecked:
        console.warning_once(unchecked)
    answer = scheduler.ask(schedule)
    if answer["error"] is not None:
        error = answer["error"]
        if unchecked:
            # In the chroot where a machine is being made, what is to be backed up may not exist yet.
            console.warning(
                f"in this place the backup could not be made: {error['message']}. It is installed all the same, since the "
                f"machine that starts it may differ. {error['hint'] or ''}".rstrip()
            )
            return
        raise KopiatomicError(
            f"in the schedule's own environment: {error['message']}; nothing was installed",
            kind=error["kind"],
            hint=error["hint"],
        )
    for warning in answer["warnings"]:
        console.warning(warning)
    engine = " ".join(filter(None, [answer["engine"], answer["version"]]))
    console.result(f"Checked:    {engine} in the schedule's own environment, {answer['datasets']} dataset(s)")
    console.result(f"Repository: {answer['repository'] or 'not known'}")
    console.result(f"Identity:   {answer['identity'] or 'not known'}")
    for writer in answer["writers"]:
        console.result(f"Writer:     {writer}")


def _say_installed(scheduler: Scheduler, schedule: Schedule, console: Console) -> None:
    if scheduler.runs:
        following = scheduler.next(schedule.name)
        console.result(f"Installed {schedule.name}{f'; it starts next {following}' if following else ''}.")
    else:
        console.result(f"Installed the files of {schedule.name}; it starts when systemd does.")


def check(options: Options, console: Console, called: Invocation) -> int:
    """Report as JSON whether the backup could be made now, where it would be saved and as which user; return the exit code."""
    from kopiatomic.commands.backup import check as look  # noqa: PLC0415 - it loads all that a run needs

    report = look(options, console, called)
    console.end()
    console.document(_answer(report), indent=None)
    return console.exit_code(errors.SAVED if report.error is None else report.error.exit_code)


def _answer(report: Report) -> dict[str, Any]:
    engine, error = report.engine, report.error
    target = engine.target if engine is not None else None
    return {
        "engine": engine.name if engine is not None else None,
        "version": engine.version if engine is not None else None,
        "repository": target.repository if target is not None else None,
        "identity": target.identity if target is not None else None,
        "datasets": len(report.plan.taken) if report.plan is not None else 0,
        "writers": [f"{writer.label}: {writer.text}" for writer in report.writers],
        "warnings": report.warnings,
        "error": None if error is None else {"message": error.message, "kind": error.kind, "hint": error.hint},
    }


def show(scheduler: Scheduler, console: Console, *, name: str, as_json: bool) -> int:
    """Show what is installed and how its runs ended; return the exit code."""

    def run() -> int:
        _require_root(console)
        found: list[lateness.Standing] = []
        failures: list[EndError] = []
        for one in [_installed(scheduler, name)] if name else all_of(scheduler):
            try:
                found.append(_standing(one))
            except Exception as error:
                # It does not keep the others from being shown.
                failures.append(errors.end_of(error))
        if as_json:
            console.document({"format": FORMAT, "schedules": [_document(one, scheduler) for one in found]})
        else:
            for standing in found:
                for line in _lines(standing, scheduler):
                    console.result(line)
            if not found and not failures:
                console.result("No schedule is installed.")
        for failure in failures:
            console.error(failure)
        return errors.FAILED if failures else errors.SAVED

    return ended(run, console)


def all_of(scheduler: Scheduler) -> list[Schedule]:
    """Return all installed schedules. Raises KopiatomicError if they cannot be read."""
    found = (scheduler.read(name) for name in scheduler.names())
    return [schedule for schedule in found if schedule is not None]


def _installed(scheduler: Scheduler, name: str) -> Schedule:
    """Return an installed schedule. Raises KopiatomicError if it does not exist."""
    check_schedule_name(name)
    found = scheduler.read(name)
    if found is None:
        raise KopiatomicError(
            f"no schedule {name} is installed",
            kind="no-such-schedule",
            hint="'kopiatomic schedule show' lists them; install it (again) with 'kopiatomic schedule install'.",
        )
    return found


def _standing(schedule: Schedule) -> lateness.Standing:
    runs = Records(schedule.state_dir).scheduled(schedule.name)
    return lateness.Standing(schedule, runs, time.time(), clock.synchronised())


def _document(standing: lateness.Standing, scheduler: Scheduler) -> dict[str, Any]:
    schedule = standing.schedule
    saved, late = standing.last_saved, standing.overdue()
    return {
        "name": schedule.name,
        "calendar": schedule.calendar,
        "interval_seconds": schedule.interval,
        "next": scheduler.next(schedule.name),
        "waits": scheduler.waits(schedule.name),
        "words": list(schedule.words),
        "profile": schedule.profile or None,
        "credentials": sorted(schedule.credentials),
        "files": [path for path in scheduler.leftovers(schedule.name) if presence.exists(path, follow_links=False)],
        "last_run": _run(standing.runs[0]) if standing.runs else None,
        "last_saved": _run(saved) if saved is not None else None,
        "overdue": None if late is None else late.message,
    }


def _run(record: RunRecord) -> dict[str, Any]:
    return {
        "run_id": record.id,
        "started": record.started,
        "result": result_of(record),
        "exit_code": record.exit_code,
    }


def _profile_lines(schedule: Schedule) -> list[str]:
    """Return what is wrong with the profile of a schedule."""
    if not schedule.profile:
        return []
    try:
        found = profiles.folder(schedule.environment.get("KOPIATOMIC_CONFIG_DIR")).load(schedule.profile)
        if schedule.agrees(_now(schedule, found, profiles.options(found, {}))):
            return []
        return [f"  {'OUTDATED:':<14} {_OUTDATED.format(name=schedule.name)}"]
    except Exception as error:
        return [f"  {'PROFILE:':<14} {line}" for line in errors.end_of(error).message.splitlines()]


def _lines(standing: lateness.Standing, scheduler: Scheduler) -> list[str]:
    schedule = standing.schedule
    following = scheduler.next(schedule.name)
    idle = "" if scheduler.runs else "; systemd does not run here, and nothing is started before it does"
    lines = [
        f"{schedule.name}: kopiatomic {schedule.shown}",
        f"  Starts:        {_when(schedule)}" + (f", next {following}" if following else "") + idle,
    ]
    for label, record in (
        ("Last run:", standing.runs[0] if standing.runs else None),
        ("Last complete:", standing.last_saved),
    ):
        text = "none recorded"
        if record is not None:
            code = f" ({record.exit_code})" if record.exit_code is not None else ""
            began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record.started))
            text = f"{record.id}, {began}, {result_of(record)}{code}"
        lines.append(f"  {label:<14} {text}")
    if not scheduler.waits(schedule.name):
        lines.append(f"  OFF:           nothing starts it; this turns it on: {scheduler.enabling(schedule.name)}")
    lines += _profile_lines(schedule)
    late = standing.overdue()
    return (
        lines
        if late is None
        else [*lines, f"  {'OVERDUE:' if late.kind == 'overdue' else 'CLOCK:':<14} {late.message}"]
    )


def remove(scheduler: Scheduler, console: Console, *, name: str, yes: bool) -> int:
    """Remove a schedule; return the exit code. Its runs stay recorded."""

    def run() -> int:
        _require_root(console)
        schedule = _installed(scheduler, name)
        _require_idle(scheduler, schedule)
        paths = list(_of_ours(scheduler.leftovers(name), console))
        if scheduler.file(name) not in paths:
            raise KopiatomicError(
                f"the schedule {name} stays: {printable(scheduler.file(name))}, which starts it, was changed by hand",
                kind="changed-by-hand",
                hint="Remove that file yourself, if it is not needed.",
            )
        console.result("\n".join(["These files go:", *(f"  {path}" for path in paths)]))
        _confirm(f"Remove {name}?", yes=yes)
        console.acted = True
        scheduler.stop(name)
        try:
            # A run that it has started meanwhile needs these files at its end.
            _require_idle(scheduler, schedule)
        except KopiatomicError:
            scheduler.start(name)
            raise
        for path in paths:
            files.remove(path)
        scheduler.stopped(name)
        console.result(f"Removed {name}. Its runs stay recorded ('kopiatomic history').")
        return errors.SAVED

    return ended(run, console)


def _of_ours(paths: Sequence[str], console: Console) -> Iterator[str]:
    """Yield those paths that exist and are ours."""
    for path in paths:
        try:
            if files.read(path) is not None:
                yield path
        except KopiatomicError as error:
            console.warning(f"{error.message}; it is left alone")


def _require_idle(scheduler: Scheduler, schedule: Schedule) -> None:
    """Refuse while a run of the schedule is alive: what cleans up after it would be gone. Raises KopiatomicError."""
    runs = Records(schedule.state_dir).scheduled(schedule.name)
    # A run that cannot be judged may be alive.
    alive = next((run.id for run in runs if run.result is None and life(run.mark) is not Life.DEAD), None)
    # A run that has just been started is not recorded yet.
    if alive is not None or scheduler.busy(schedule.name):
        raise KopiatomicError(
            f"a run of the schedule {schedule.name} is alive" + (f": {alive}" if alive is not None else ""),
            kind="run-alive",
            hint=f"Wait for its end, or end it: {scheduler.ending(schedule.name)}",
        )


def overdue(scheduler: Scheduler, console: Console, *, name: str) -> int:
    """Fail if a schedule has had no complete success for too long; return the exit code."""

    def run() -> int:
        late = _standing(_installed(scheduler, name)).overdue()
        if late is not None:
            raise late
        return errors.SAVED

    return ended(run, console)


def start(
    scheduler: Scheduler,
    console: Console,
    *,
    name: str,
    backup: Callable[[Schedule, Sequence[str]], Report],
    environ: MutableMapping[str, str],
) -> int:
    """Make the backup of a schedule, given only its name, which is all that cron has; return the exit code.

    ``environ`` is turned into that of the schedule. If another run has the view root, this is ignored unless it goes on for too
    long: cron sends anything written here as mail.
    """

    def run() -> int:
        schedule = _installed(scheduler, name)
        environ.clear()
        environ.update(schedule.environment)
        report = backup(schedule, schedule_words(schedule))
        if report.exit_code == errors.LOCKED:
            late = _standing(schedule).overdue()
            if late is None:
                return errors.SAVED
            console.error(late)
        console.report(report, summary=False)
        return report.exit_code

    return ended(run, console)


def _require_root(console: Console) -> None:
    require_root("schedules are root's", console.command_line)
