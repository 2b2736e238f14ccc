"""``kopiatomic engine``: its parser and help."""

from __future__ import annotations

import click

from kopiatomic.cli.arguments import COMMAND, HELP
from kopiatomic.cli.endings import called
from kopiatomic.cli.options import options
from kopiatomic.cli.schedule import WithWords


@click.command(cls=WithWords, context_settings=HELP)
@options("engine")
@click.pass_context
def engine(context: click.Context, /, *, name: str, config_dir: str | None) -> None:
    """Run the engine of a profile by hand, with its repository and secrets: kopiatomic engine NAME -- snapshot list.

    It works on the live system; streams and exit code are the engine's.
    """
    from kopiatomic.commands.engine import run
    from kopiatomic.commands.profiles import folder
    from kopiatomic.output.console import Console

    words = context.meta.get(COMMAND)
    if not words:
        raise click.UsageError("the engine's own words are missing: kopiatomic engine NAME -- snapshot list")
    raise SystemExit(run(name, words, folder(config_dir), Console(called())))
