"""``kopiatomic run``: the backups of profiles, one after another."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kopiatomic.commands import profiles
from kopiatomic.commands.backup import backup
from kopiatomic.commands.failures import require_root_to_freeze
from kopiatomic.commands.profiles import Folder
from kopiatomic.commands.schedule import all_of, outdated
from kopiatomic.config.invocation import Invocation
from kopiatomic.config.profile import Profile
from kopiatomic.errors import SIGNAL_BASE, EndError, UsageError, end_of
from kopiatomic.hooks.holder import Wanted
from kopiatomic.immutable import immutable
from kopiatomic.model.report import Report
from kopiatomic.output.console import Console
from kopiatomic.runs.freezing import failures_in
from kopiatomic.schedules import here
from kopiatomic.system import signals

FORMAT = "kopiatomic-profiles-1"


@immutable
class RunRequest:
    """The arguments of ``run``. ``overrides`` are the options given on the command line, by the names of the settings."""

    names: Sequence[str]
    everything: bool
    folder: Folder
    overrides: Mapping[str, Any]


def run(
    wanted: RunRequest,
    make_console: Callable[[], Console],
    called: Invocation,
    begin: Callable[[str, Console], None],
    done: Callable[[str, Report, Console], None],
) -> int:
    """Run profiles one after another; return the worst exit code. ``begin`` is called before each, ``done`` with each report.

    A failure of one does not stop the others, but a signal does. Raises KopiatomicError for words that make no sense.
    """
    names = wanted.folder.some(wanted.names, everything=wanted.everything)
    if len(names) > 1 and {"mount_root", "name"} & wanted.overrides.keys():
        raise UsageError(
            "--mount-root and --name would give several profiles one root, and with it one history",
            kind="usage",
            hint="Run one profile at a time with them, or write them into each file.",
        )
    if not wanted.overrides.get("dry_run"):
        require_root_to_freeze(make_console().command_line, "-n shows without root what would be done. As root: ")
    for text in wanted.folder.warnings() if wanted.everything else ():
        make_console().warning(text)
    older = _schedules()
    codes = []
    for name in names:
        console = make_console()
        begin(name, console)
        report = _one(wanted, name, console, called, older)
        done(name, report, console)
        console.acted = not report.dry_run
        codes.append(console.exit_code(report.exit_code))
        if codes[-1] > SIGNAL_BASE:
            break
    return profiles.worst(codes)


def document(code: int, runs: Sequence[Mapping[str, Any]], error: EndError | None = None) -> dict[str, Any]:
    """Return the runs of profiles as JSON, or why none of them could begin. ``runs`` have the profile and its run."""
    told = None if error is None else {"kind": error.kind, "message": error.message, "hint": error.hint}
    return {"format": FORMAT, "exit_code": code, "error": told, "profiles": list(runs)}


def _schedules() -> Callable[[Profile], Sequence[str]]:
    """Return what says which schedules were installed for an older version of a profile. They are read once, here."""
    try:
        installed = all_of(here())
    except Exception as error:
        # No backup fails for that.
        unknown = f"whether a schedule was installed for an older profile cannot be told: {end_of(error).message}"
        return lambda _profile: [unknown]
    return lambda profile: outdated(installed, profile, profiles.options(profile, {}))


def _one(
    wanted: RunRequest, name: str, console: Console, called: Invocation, older: Callable[[Profile], Sequence[str]]
) -> Report:
    """Run one profile; every failure is in the report."""
    report = Report(run_id="", root="")
    # A signal must not cost the reports of the runs before this one.
    with signals.handled(), failures_in(report):
        # A dry run acts on nothing, so any user may look at any file; but root's asks the writers as the file says.
        is_dry = bool(wanted.overrides.get("dry_run"))
        profile = wanted.folder.load(name, trusted=not is_dry)
        if is_dry and os.geteuid() == 0 and profile.entries("hold"):
            profile = wanted.folder.load(name, trusted=True)
        found = profiles.options(profile, wanted.overrides)
        for text in older(profile):
            console.warning(text)
        replaced = profile.entries("hold") if wanted.overrides.get("holds") else ()
        if replaced:
            writers = ", ".join(str(Wanted(one.value("kind"), one.value("name", ""))) for one in replaced)
            console.warning(f"--hold stands in place of the writers of the profile, which are not held: {writers}")
        signals.check()
        options = replace(found, profile=name)
    return report if report.error is not None else backup(options, console, called)
