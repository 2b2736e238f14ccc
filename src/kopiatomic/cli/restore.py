"""``kopiatomic restore``: its parser and help."""

from __future__ import annotations

import click

from kopiatomic.cli import options as of_commands
from kopiatomic.cli.arguments import HELP
from kopiatomic.cli.endings import called


@click.command(context_settings=HELP)
@of_commands.options("restore")
def restore(
    *,
    what: str,
    paths: tuple[str, ...],
    to: str | None,
    dataset: str | None,
    new: str | None,
    names: bool,
    no_metadata: bool,
    engine: str | None,
    repository: str | None,
    options: str,
    profile: str | None,
    config_dir: str | None,
    as_json: bool,
) -> None:
    """Restore what a backup has: all of it, or some absolute paths, into a new directory; or a dataset into a new one.

    WHAT is 'latest', or the beginning of a snapshot's id, of its time or of the id of the run that made it.
    """
    from kopiatomic.commands.profiles import folder
    from kopiatomic.commands.restore import Wanted
    from kopiatomic.commands.restore import restore as run
    from kopiatomic.commands.stored import Access
    from kopiatomic.output.console import Console

    wanted = Wanted(what, paths, to or "", dataset or "", new or "", metadata=not no_metadata, names=names)
    access = Access(engine, repository, options, profile or "")
    raise SystemExit(run(wanted, access, folder(config_dir), Console(called()), as_json=as_json))
