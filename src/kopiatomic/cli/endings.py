"""How a command ends: with a report, or with an error from before it began."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

import click

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
    from kopiatomic.errors import KopiatomicError

    try:
        return load()
    except KopiatomicError as error:
        console.error(error)
        raise SystemExit(error.exit_code) from None


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
    from kopiatomic.errors import UsageError

    end(UsageError(message, kind="usage", hint=f"'{command.removesuffix(' backup')} -h' shows the options."), called)


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

    finish(Report(run_id="", root="", error=error), Console(called), as_json="--json" in called.words)
