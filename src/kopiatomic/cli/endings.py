"""How a command ends: with a report, or with an error from before it began."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

import click

from kopiatomic.cli.arguments import spellings
from kopiatomic.config.invocation import Invocation

if TYPE_CHECKING:
    from kopiatomic.errors import EndError
    from kopiatomic.model.report import Report
    from kopiatomic.output.console import Console

T = TypeVar("T")


def called() -> Invocation:
    """Return how the program was called, as its entry point found it."""
    found = click.get_current_context().find_root().obj
    assert isinstance(found, Invocation)
    return found


def or_end(load: Callable[[], T], console: Console) -> T:
    """Load something, or end with an error that says what is wrong with it."""
    from kopiatomic.errors import end_of

    try:
        return load()
    except Exception as error:
        failure = end_of(error)
        console.error(failure)
        raise SystemExit(failure.exit_code) from None


def finish(report: Report, console: Console, *, as_json: bool) -> NoReturn:
    """Print a report and end with its exit code."""
    console.acted = not report.dry_run
    if as_json:
        from kopiatomic.output.document import document

        console.end()
        console.document(document(report))
    console.report(report, summary=not as_json)
    raise SystemExit(console.exit_code(report.exit_code))


def refuse(message: str, command: str, called: Invocation) -> NoReturn:
    """End because the command line is invalid."""
    hint = f"'{command.removesuffix(' backup')} -h' shows the options."
    _end_for_usage(message, hint, called)


def refuse_option(error: click.NoSuchOption, called: Invocation, commands: click.Group) -> NoReturn:
    """End because a command has no such option; if others have it, say which, and what was probably meant."""
    from kopiatomic.secrets.masking import Secrets

    option, context = error.option_name, error.ctx
    having = _having(option, commands)
    if context is None or not having:
        refuse(error.format_message(), "kopiatomic" if context is None else context.command_path, called)
    own = context.command_path.removesuffix(" backup")
    *others, last = (f"'{name}'" for name in having)
    of = f"{', '.join(others)} and {last}" if others else last
    message = f"{option} is an option of {of}, and not of '{own}'"
    words = list(called.words)
    hint = f"'{having[0]} -h' says what it does."
    if own == "kopiatomic" and having == ["kopiatomic plan"]:
        # A plan is a dry run.
        words = [word for word in words if word not in {"-n", "--dry-run", "backup"}]
        shown = Secrets(called.words, called.environment).command_line(["kopiatomic", "plan", *words])
        hint = f"'kopiatomic plan' says what a run would do, as -n does: {shown}"
    elif own == "kopiatomic plan" and option in {"-n", "--dry-run"}:
        words.remove(option)
        shown = Secrets(called.words, called.environment).command_line(["kopiatomic", *words])
        hint = f"A plan changes nothing anyway, so leave it out: {shown}"
    _end_for_usage(message, hint, called)


def _having(option: str, commands: click.Group) -> list[str]:
    """Return the commands that a person gives and that have an option, as they are called."""
    found = []
    for name, command in commands.commands.items():
        inner = command.commands.values() if isinstance(command, click.Group) else ()
        for one in (command, *inner):
            own = f"{name} {one.name}" if one is not command else name
            if not one.hidden and any(option in spellings(parameter) for parameter in one.params):
                found.append("kopiatomic" if own == "backup" else f"kopiatomic {own}")
    return found


def _end_for_usage(message: str, hint: str, called: Invocation) -> NoReturn:
    from kopiatomic.errors import UsageError

    end(UsageError(message, kind="usage", hint=hint), called)


def lack(error: ImportError, called: Invocation) -> NoReturn:
    """End because Python is incomplete: FreeBSD, for one, has sqlite3 in a separate package."""
    from kopiatomic.errors import KopiatomicError

    module = (error.name or "").partition(".")[0].lstrip("_")
    package = f"py{sys.version_info.major}{sys.version_info.minor}-{module}"
    hint = (
        f"Install {module or 'it'} for that Python; on FreeBSD, where it is a package of its own: pkg install {package}"
    )
    end(
        KopiatomicError(f"{sys.executable} cannot load what kopiatomic needs: {error}", kind="no-module", hint=hint),
        called,
    )


def end(error: EndError, called: Invocation) -> NoReturn:
    """Print an error from before the command began, and end."""
    from kopiatomic.model.report import Report
    from kopiatomic.output.console import Console

    console, as_json = Console(called), "--json" in called.words
    if as_json and called.words[0] == "run":
        from kopiatomic.commands.run import document

        # Who reads the runs of several profiles expects no single one.
        console.document(document(error.exit_code, [], error))
        console.error(error)
        raise SystemExit(console.exit_code(error.exit_code))
    finish(Report(run_id="", root="", error=error), console, as_json=as_json)
