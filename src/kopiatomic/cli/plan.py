"""``kopiatomic plan``: its parser and help."""

from __future__ import annotations

from typing import IO, Any

import click

from kopiatomic.cli.arguments import HELP, Command
from kopiatomic.cli.endings import called, finish, or_end
from kopiatomic.cli.options import options
from kopiatomic.cli.selection import SELECTION


@click.command(cls=Command, context_settings=HELP)
@options("plan", **SELECTION)
def plan(
    *,
    save_facts: bool,
    from_facts: IO[str] | None,
    diff_last: bool,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Say what a run with the same words would take, where it would appear, and why; nothing is changed.

    The exit code is what a run would end with for these reasons.
    """
    from kopiatomic.commands.backup import backup as run
    from kopiatomic.commands.plan import compare, print_facts
    from kopiatomic.config.options import Options
    from kopiatomic.model.facts import load
    from kopiatomic.output.console import Console

    console = Console(called(), verbose=verbose, quiet=quiet, chatter=not as_json or verbose)
    if save_facts:
        raise SystemExit(print_facts(Options(**options), console))
    found = None
    if from_facts is not None:
        found = or_end(lambda: load(from_facts.read()), console)
    report = run(Options(dry_run=True, facts=found, **options), console, called())
    if diff_last and report.plan is not None:
        compare(options["state_dir"], report, console)
    finish(report, console, as_json=as_json)
