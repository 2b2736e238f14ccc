"""Entry point: the commands, and what ends the program before a command has begun."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from collections.abc import Iterator, MutableMapping

import click

from kopiatomic.cli.arguments import NO_WORD_YET
from kopiatomic.cli.endings import end, lack, refuse, refuse_option
from kopiatomic.config.invocation import Invocation
from kopiatomic.system import inherited

_COMMANDS = {
    "backup": "backup",
    "run": "run",
    "plan": "plan",
    "exec": "inside.execute",
    "shell": "inside.shell",
    "recover": "recover",
    "history": "history",
    "list": "list.list_snapshots",
    "restore": "restore",
    "profile": "profile",
    "engine": "engine",
    "schedule": "schedule",
}
"""The commands in the order of the documentation: the module of each in this package, and what it is called there if it has
another name.
"""


class _Loading(MutableMapping[str, click.Command]):
    """The commands by name, each loaded when it is asked for: a start needs one of them."""

    def __getitem__(self, name: str) -> click.Command:
        module, _, attribute = _COMMANDS[name].partition(".")
        found = getattr(importlib.import_module(f"kopiatomic.cli.{module}"), attribute or module)
        assert isinstance(found, click.Command)
        return found

    def __contains__(self, name: object) -> bool:
        return name in _COMMANDS

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)

    def __setitem__(self, name: str, command: click.Command) -> None:
        raise NotImplementedError

    def __delitem__(self, name: str) -> None:
        raise NotImplementedError


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
    commands=_Loading(),
    context_settings={"help_option_names": []},
    add_help_option=False,
)
def cli() -> None:
    """Freeze datasets at one instant and back them up."""


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
    called = Invocation(sys.argv[0], tuple(sys.argv[1:]), dict(os.environ))
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
    except Exception as error:
        # Nobody is shown a traceback.
        from kopiatomic.errors import end_of

        end(end_of(error), called)
