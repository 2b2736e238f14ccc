"""``kopiatomic recover``: its parser and help."""

from __future__ import annotations

import click

from kopiatomic.cli.endings import called
from kopiatomic.cli.options import options
from kopiatomic.state.ownership import is_run_id


def _run_ids(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> frozenset[str]:
    for run_id in value:
        if not is_run_id(run_id):
            raise click.BadParameter(f"{run_id}: it must be the whole id of a run")
    return frozenset(value)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@options("recover", assume_dead={"callback": _run_ids})
def recover(
    *,
    dry_run: bool,
    forget: str | None,
    schedule: str | None,
    unrecorded: bool,
    received: bool,
    assume_dead: frozenset[str],
    no_hooks: bool,
    state_dir: str,
    as_json: bool,
) -> None:
    """Remove what killed runs left, and nothing that is not proven to be theirs; run the after_freeze that they still owe.

    Every run does this for what is recorded before it makes anything of its own. This command also finds by itself what
    no record speaks of. Exit code 0: nothing of this host's is left. 4: something is.
    """
    from kopiatomic.commands.recover import recover as run
    from kopiatomic.output.console import Console
    from kopiatomic.runs.recovery import Allowed

    if forget is not None and schedule is not None:
        raise click.UsageError("--forget and --schedule exclude each other")
    if (unrecorded or received) and schedule is not None:
        raise click.UsageError("--schedule goes by the record alone: it excludes --unrecorded and --received")
    hooks = frozenset[str]() if no_hooks else None
    allowed = Allowed(unrecorded=unrecorded, received=received, assumed_dead=assume_dead, hooks=hooks)
    raise SystemExit(
        run(
            state_dir,
            Console(called()),
            dry_run=dry_run,
            as_json=as_json,
            forget=forget,
            schedule=schedule,
            allowed=allowed,
        )
    )
