"""``kopiatomic DATASET...``: the parser and help of a backup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from kopiatomic import __version__
from kopiatomic.cli.arguments import HELP, Command
from kopiatomic.cli.endings import called, finish
from kopiatomic.cli.options import options
from kopiatomic.cli.selection import SELECTION

if TYPE_CHECKING:
    from kopiatomic.config.invocation import Invocation
    from kopiatomic.errors import EndError

_EPILOG = """\
Exit codes: 0 saved; 1 failed, nothing saved; 2 usage; 3 saved but not
complete; 4 saved, but cleaning up or -q failed; 75 another run has the view
root; 128+n ended by signal n.

Other commands: 'kopiatomic plan' says what would be taken and why,
'kopiatomic exec' and 'kopiatomic shell' run any command, or a shell, inside
the frozen instant, 'kopiatomic history' shows what runs did, 'kopiatomic
recover' removes what killed runs left, 'kopiatomic schedule' puts a backup
on a timer. 'kopiatomic list' shows what there is to restore, and 'kopiatomic
restore' brings it back. 'kopiatomic profile' keeps backups as files,
'kopiatomic run' makes them, and 'kopiatomic engine' starts the engine of one
by hand.
'kopiatomic backup NAME...' reaches a pool of any name.
"""

_NO_DATASET = frozenset(["no-such-dataset", "no-pools", "zfs-missing", "zfs-module", "zfs-permission"])
"""Kinds of errors of a word that may be no dataset at all."""


class _VersionOption(click.Option):
    """Refuses to be mistaken for "verbose": with something to back up it would end the command with exit code 0 and nothing
    saved.
    """

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        # A missing option is absent, empty or one of click's sentinels, depending on its version.
        names = opts.get("names")
        asked = isinstance(names, Sequence) and bool(names)
        asked = asked or any(opts.get(flag) is True for flag in ("everything", "by_property"))
        if asked and opts.get(self.name or "") is True:
            raise click.UsageError(
                "-v and --version show the version, and go with nothing that is to be backed up; --verbose says more"
            )
        return super().handle_parse_result(ctx, opts, args)


def _show_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        # Checked before the other options are looked at, so that nothing else on the line prevents it.
        if "--verbose" in called().words:
            from kopiatomic.commands.about import lines

            click.echo("\n".join(lines()))
        else:
            click.echo(f"kopiatomic {__version__}")
        context.exit()


@click.command(
    cls=Command,
    context_settings=HELP,
    epilog="\b\n" + _EPILOG.replace("\n\n", "\n\n\b\n"),
    options_metavar="[OPTIONS]",
)
@options(
    "backup",
    **SELECTION,
    version={"cls": _VersionOption, "expose_value": False, "is_eager": True, "callback": _show_version},
)
def backup(*, as_json: bool, verbose: bool, quiet: bool, no_maintenance: bool, **options: Any) -> None:
    """Back up DATASETs (tank/home) or mount points (/home), frozen at one instant, with kopia.

    Snapshots them together, mounts the snapshots read-only below /kopia where only the backup sees them, runs 'kopia
    snapshot create /kopia', and removes everything again.
    """
    from kopiatomic.commands.backup import backup as run
    from kopiatomic.config.options import Options
    from kopiatomic.output.console import Console

    console = Console(called(), verbose=verbose, quiet=quiet, chatter=not as_json or verbose)
    report = run(Options(maintenance=not no_maintenance, **options), console, called())
    if report.error is not None and report.error.kind in _NO_DATASET:
        _suggest_command(report.error, called())
    finish(report, console, as_json=as_json)


def _suggest_command(error: EndError, called: Invocation) -> None:
    """Have an error say that its word may be a mistyped command, or a profile: what is no command is a dataset."""
    import difflib

    from kopiatomic.commands.profiles import folder
    from kopiatomic.errors import KopiatomicError
    from kopiatomic.secrets.masking import Secrets

    words = called.words
    try:
        known = folder(called.environment.get("KOPIATOMIC_CONFIG_DIR")).names()
    except KopiatomicError:
        # Whoever means no profile need not know that there is something wrong with their folder.
        known = []
    if words[-1] in known:
        error.hint = f"{error.hint or ''} If the profile was meant: kopiatomic run {words[-1]}".lstrip()
        return
    commands = click.get_current_context().find_root().command
    assert isinstance(commands, click.Group)
    near = difflib.get_close_matches(words[0], commands.commands, n=1, cutoff=0.7)
    if near and words[0] not in commands.commands:
        meant = Secrets(words, called.environment).command_line(["kopiatomic", near[0], *words[1:]])
        error.hint = f"{error.hint or ''} If a command was meant: {meant}".lstrip()
