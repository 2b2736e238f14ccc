"""``kopiatomic run``: its parser and help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from kopiatomic.cli.arguments import HELP, Command
from kopiatomic.cli.endings import called, end
from kopiatomic.cli.options import options
from kopiatomic.cli.selection import SELECTION
from kopiatomic.config.settings import COMMANDS, Form, Setting

if TYPE_CHECKING:
    from kopiatomic.model.report import Report
    from kopiatomic.output.console import Console


@click.command(cls=Command, context_settings=HELP)
@options("run", **SELECTION)
@click.pass_context
def run(
    context: click.Context,
    /,
    *,
    profiles: tuple[str, ...],
    every_profile: bool,
    config_dir: str | None,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    **words: Any,
) -> None:
    """Make the backups of PROFILEs, one after another: what /etc/kopiatomic/PROFILE.toml says.

    Each is a run of its own, with its own record; a failure of one does not stop the others. An option that is given here
    holds against the file.
    """
    from kopiatomic.commands.profiles import folder, work_as_timers_do
    from kopiatomic.commands.run import RunRequest
    from kopiatomic.commands.run import document as document_of_all
    from kopiatomic.commands.run import run as make
    from kopiatomic.errors import KopiatomicError
    from kopiatomic.output.console import Console
    from kopiatomic.output.document import document

    if not profiles and not every_profile:
        raise click.UsageError("name a profile, or --all of them")
    given = {
        setting.name: _absolute(setting, words[setting.name])
        for setting in COMMANDS["run"]
        if setting.name in words and context.get_parameter_source(setting.name) is ParameterSource.COMMANDLINE
    }
    place = folder(config_dir)
    work_as_timers_do()
    documents: list[dict[str, Any]] = []
    several = every_profile or len(profiles) > 1

    def console() -> Console:
        return Console(called(), verbose=verbose, quiet=quiet, chatter=not as_json or verbose)

    def begin(name: str, shown: Console) -> None:
        if several:
            if not as_json and not quiet:
                shown.result(f"{name}:")
            shown.about(name)

    def done(name: str, report: Report, shown: Console) -> None:
        if as_json:
            shown.end()
            documents.append({"profile": name, "run": shown.hidden(document(report))})
        shown.report(report, summary=not as_json)

    try:
        code = make(RunRequest(profiles, every_profile, place, given), console, called(), begin, done)
    except KopiatomicError as error:
        end(error, called())
    if as_json:
        last = console()
        last.acted = True
        last.document(document_of_all(code, documents))
        code = last.exit_code(code)
    raise SystemExit(code)


def _absolute(setting: Setting, value: Any) -> Any:
    """Return an option as it still means the same in another directory."""
    from kopiatomic.config.options import made_absolute

    if setting.repeated:
        return tuple(made_absolute(setting, one) for one in value)
    return made_absolute(setting, value) if setting.form is Form.TEXT else value
