"""``kopiatomic history``: its parser and help."""

from __future__ import annotations

import click

from kopiatomic.cli.endings import called
from kopiatomic.cli.options import options


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@options("history")
def history(*, run_id: str, limit: int, state_dir: str, as_json: bool) -> None:
    """List the last runs, or show one whole (the beginning of its id is enough)."""
    from kopiatomic.commands.history import history as run
    from kopiatomic.output.console import Console

    raise SystemExit(run(state_dir, Console(called()), run_id=run_id, limit=limit, as_json=as_json))
