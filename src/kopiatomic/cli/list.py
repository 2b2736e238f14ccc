"""``kopiatomic list``: its parser and help."""

from __future__ import annotations

import click

from kopiatomic.cli import options as of_commands
from kopiatomic.cli.arguments import HELP
from kopiatomic.cli.endings import called


@click.command("list", context_settings=HELP)
@of_commands.options("list")
def list_snapshots(
    *,
    engine: str | None,
    repository: str | None,
    options: str,
    profile: str | None,
    config_dir: str | None,
    state_dir: str,
    as_json: bool,
) -> None:
    """List what can be restored: the snapshots in a repository, the newest first."""
    from kopiatomic.commands.list import run
    from kopiatomic.commands.profiles import folder
    from kopiatomic.commands.stored import Access
    from kopiatomic.output.console import Console

    access = Access(engine, repository, options, profile or "")
    raise SystemExit(run(access, folder(config_dir), state_dir, Console(called()), as_json=as_json))
