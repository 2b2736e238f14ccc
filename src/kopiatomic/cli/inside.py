"""``kopiatomic exec`` and ``kopiatomic shell``: their parsers and help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import click

from kopiatomic.cli.arguments import COMMAND, HELP, Command, WithCommand
from kopiatomic.cli.endings import called
from kopiatomic.cli.options import options
from kopiatomic.cli.selection import SELECTION


@click.command("exec", cls=WithCommand, context_settings=HELP)
@options("exec", **SELECTION)
@click.pass_context
def execute(context: click.Context, /, *, user: str | None, verbose: bool, **words: Any) -> None:
    """Run COMMAND inside the frozen instant, with the files at their true paths, while the live system goes on unseen.

    Its standard streams are the caller's own. The exit code is COMMAND's; 1 if the view was not what it should be, 3 or 4
    after a 0 where datasets had to be left out or something could not be removed.
    """
    argv = context.meta.get(COMMAND)
    if not argv or not argv[0]:
        raise click.UsageError("exec needs a command: kopiatomic exec DATASET... -- COMMAND [ARGUMENT]...")
    _run_inside(argv, user, words, verbose=verbose)


@click.command(cls=Command, context_settings=HELP)
@options("shell", **SELECTION)
def shell(*, user: str | None, verbose: bool, **words: Any) -> None:
    """Open a shell inside the frozen instant, with the files at their true paths."""
    _run_inside((), user, words, verbose=verbose)


def _run_inside(argv: Sequence[str], user: str | None, words: dict[str, Any], *, verbose: bool) -> NoReturn:
    from kopiatomic.commands.inside import CommandRequest, run
    from kopiatomic.config.options import Options
    from kopiatomic.output.console import Console

    console = Console(called(), verbose=verbose, chatter=verbose, animated=False)
    report = run(Options(live_system=True, **words), CommandRequest(tuple(argv), user), console, called())
    console.report(report, summary=False)
    raise SystemExit(report.exit_code)
