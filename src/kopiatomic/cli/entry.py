"""Entry point: the commands, and what ends the program before a command has begun."""

from __future__ import annotations

import gc
import os
import signal
import sys

import click

from kopiatomic.cli.arguments import NO_WORD_YET
from kopiatomic.cli.backup import backup
from kopiatomic.cli.endings import end, lack, refuse, refuse_option
from kopiatomic.cli.engine import engine
from kopiatomic.cli.history import history
from kopiatomic.cli.inside import execute, shell
from kopiatomic.cli.plan import plan
from kopiatomic.cli.profile import profile
from kopiatomic.cli.recover import recover
from kopiatomic.cli.run import run
from kopiatomic.cli.schedule import schedule
from kopiatomic.config.invocation import Invocation
from kopiatomic.system import inherited


class _Commands(click.Group):
    """Gives a first word that is not a command to ``backup``: that is what kopiatomic does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # For completion: the first word may still become a command.
        ctx.meta[NO_WORD_YET] = not args
        if not args or args[0] not in self.commands:
            args = ["backup", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": []},
    add_help_option=False,
)
def cli() -> None:
    """Freeze datasets at one instant and back them up."""


for command in (backup, run, plan, execute, shell, recover, history, profile, engine, schedule):
    cli.add_command(command)


def main() -> None:
    """Run the program."""
    # What is imported and listed is not garbage, and looking for some takes a tenth of the start-up time. A run enables
    # collection once it has its processes (runs/supervisor.py).
    gc.disable()
    inherited.settle()
    if "_KOPIATOMIC_COMPLETE" in os.environ:
        from kopiatomic.cli import completion

        completion.register()
    stdout = sys.stdout
    called = Invocation(sys.argv[0], tuple(sys.argv[1:]), os.environ)
    try:
        cli.main(list(called.words), prog_name="kopiatomic", standalone_mode=False, obj=called)
    except click.NoSuchOption as error:
        refuse_option(error, called, cli)
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        refuse(error.format_message(), context.command_path if context is not None else "kopiatomic", called)
    except ImportError as error:
        lack(error, called)
    except OSError as error:
        # Everything that prints here is help, version and completion: a run handles outputs in its own way.
        from kopiatomic.output.console import discard, write

        discard(sys.stdout)
        write(sys.stderr, f"kopiatomic: the output could not be written: {error.strerror}")
        raise SystemExit(1) from None
    except SystemExit:
        if sys.stdout is not stdout:
            # click has replaced it with another: help or version went into a closed pipe.
            raise SystemExit(0) from None
        raise
    except (click.exceptions.Abort, KeyboardInterrupt):
        # Nothing has begun: a run has its own handlers.
        from kopiatomic.errors import Interrupted

        end(Interrupted(signal.SIGINT), called)
