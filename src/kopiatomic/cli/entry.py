"""The command line: parse, call, print. No logic of its own."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from kopiatomic import __version__
from kopiatomic.cli.arguments import (
    COMMAND,
    HELP,
    NO_WORD_YET,
    Command,
    Duration,
    WithCommand,
    complete,
    complete_directory,
    told,
)
from kopiatomic.cli.schedule import schedule
from kopiatomic.model.user_property import PROPERTY, is_user_property
from kopiatomic.state.ownership import is_run_id
from kopiatomic.system import inherited

if TYPE_CHECKING:
    from kopiatomic.errors import KopiatomicError
    from kopiatomic.model.report import Report
    from kopiatomic.output.console import Console

T = TypeVar("T")

_EPILOG = """\
Exit codes: 0 saved; 1 failed, nothing saved; 2 usage; 3 saved but not
complete; 4 saved, but cleaning up or -q failed; 75 another run has the view
root; 128+n ended by signal n.

Other commands: 'kopiatomic plan' says what would be taken and why,
'kopiatomic exec' and 'kopiatomic shell' run any command, or a shell, inside
the frozen instant, 'kopiatomic history' shows what runs did, 'kopiatomic
recover' removes what killed runs left, 'kopiatomic schedule' puts a backup
on a timer. 'kopiatomic backup NAME...' reaches a pool of any name.
"""


class _Commands(click.Group):
    """A first word that is no command belongs to ``backup``: that is what kopiatomic does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # For completion: the first word may still become a command's.
        ctx.meta[NO_WORD_YET] = not args
        if not args or args[0] not in self.commands:
            args = ["backup", *args]
        return super().parse_args(ctx, args)


_state_dir = click.option(
    "--state-dir",
    default="/var/lib/kopiatomic",
    envvar="KOPIATOMIC_STATE_DIR",
    metavar="DIR",
    shell_complete=complete_directory,
    show_default=True,
    show_envvar=True,
    help="Where runs are recorded.",
)


class _VersionOption(click.Option):
    """Refuses to be meant for "verbose": beside something to back up it would end the command, with nothing saved and 0."""

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        # What was not given is absent, empty or a mark of click's, depending on its version.
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
        # Asked for before the other options are looked at, so that nothing else on the line is in its way.
        if "--verbose" in sys.argv[1:]:
            from kopiatomic.commands.about import lines

            click.echo("\n".join(lines()))
        else:
            click.echo(f"kopiatomic {__version__}")
        context.exit()


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": []},
    add_help_option=False,
)
def cli() -> None:
    """Freeze datasets at one instant and back them up."""


def _as_layout(_context: click.Context, _parameter: click.Parameter, value: str) -> Any:
    from kopiatomic.model.plan import Layout

    return Layout(value)


def _property_name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not is_user_property(value):
        raise click.BadParameter(f"{value}: it has to be a user property of ZFS, such as backup:this (see zfsprops(7))")
    return value


def _run_ids(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> frozenset[str]:
    for run_id in value:
        if not is_run_id(run_id):
            raise click.BadParameter(f"{run_id}: it has to be the whole id of a run")
    return frozenset(value)


def _datasets(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which datasets."""
    options = [
        click.argument("names", nargs=-1, metavar="DATASET_OR_PATH...", shell_complete=complete),
        click.option(
            "-a",
            "--all",
            "everything",
            is_flag=True,
            help="All mounted ZFS datasets and Btrfs subvolumes, with what is nested in these.",
        ),
        click.option(
            "-r", "--recursive", is_flag=True, help="Also what lies below those named: children, nested subvolumes."
        ),
        click.option(
            "--exclude",
            multiple=True,
            metavar="PATTERN",
            shell_complete=complete,
            help="Leave these out: a name, or a quoted pattern (* in a component, ** any number). Repeatable.",
        ),
        click.option(
            "--by-property",
            is_flag=True,
            help="Those with kopiatomic:backup=on or inherited children; names limit it to their subtrees.",
        ),
        click.option(
            "--property",
            default=PROPERTY,
            metavar="NAME",
            callback=_property_name,
            help="Another ZFS user property for that.",
        ),
        click.option(
            "--no-nested",
            is_flag=True,
            help="Btrfs: without the subvolumes nested in those taken, which are not missed.",
        ),
        click.option("--include-unmounted", is_flag=True, help="ZFS: also those that are not mounted."),
        click.option("--volumes", is_flag=True, help="ZFS: also volumes, each as a file below /.volumes in the view."),
        click.option(
            "--only-frozen", is_flag=True, help="In place: hide what is mounted in these trees and not frozen."
        ),
    ]
    return _with(options, command)


def _with(options: list[Callable[..., Any]], command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def _view(layout: str, root: str) -> list[Callable[..., Any]]:
    """The options that say where the view appears."""
    return [
        click.option(
            "--layout",
            default=layout,
            type=click.Choice(["merged", "in-place"]),
            show_default=True,
            callback=_as_layout,
            help="All below one root, or each at its true path.",
        ),
        click.option(
            "--mount-root",
            default=root,
            metavar="DIR",
            show_default=True,
            shell_complete=complete_directory,
            help="Where a merged view is mounted; in directories that root alone can change.",
        ),
    ]


def _selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what is backed up, with what and as what."""
    options = [
        click.option(
            "-c",
            "--command",
            metavar="COMMAND",
            help="Run COMMAND with the view's root as its last argument instead of kopia.",
        ),
        click.option(
            "--engine",
            type=click.Choice(["kopia", "restic", "borg"]),
            help="What backs the view up.  [default: kopia]",
        ),
        click.option(
            "--repository",
            metavar="REPOSITORY",
            shell_complete=complete_directory,
            help="restic, Borg: their repository, instead of RESTIC_REPOSITORY or BORG_REPO.",
        ),
        click.option(
            "--archive",
            metavar="NAME",
            help="Borg: the archive's name, where {instant} stands for the time.  [default: {hostname}-{instant}]",
        ),
        click.option("-o", "--options", default="", metavar="OPTIONS", help="More options for the engine or COMMAND."),
        click.option(
            "--writable",
            multiple=True,
            metavar="PATH",
            shell_complete=complete_directory,
            help="In place: a directory that the engine has to write to stays live. Repeatable.",
        ),
        click.option(
            "--skip-unchanged",
            is_flag=True,
            help="kopia, in place: where nothing has changed, let the last snapshot stand, and read nothing.",
        ),
        *_view("merged", "/kopia"),
        click.option("--name", metavar="NAME", help="Use DIR/NAME, so that this selection has a history of its own."),
    ]
    return _datasets(_with(options, command))


_stop_timeout = click.option(
    "--stop-timeout",
    default="30s",
    type=Duration(),
    metavar="DURATION",
    show_default=True,
    help="How long the engine or command has to end after a signal, and a suspended pool to resume.",
)
_timeout = click.option(
    "--timeout", type=Duration(least=0.1), metavar="DURATION", help="How long the whole run may take (90, 10m, 2h)."
)
_require_atomic = click.option(
    "--require-atomic",
    is_flag=True,
    help="Fail, before anything is read, unless all share one proven instant and nothing is missing.",
)


def _inside(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of what runs in the view and is no backup."""
    options = [
        click.option("--user", metavar="NAME", help="Run as this user, without any capability."),
        *_view("in-place", "/frozen"),
        _require_atomic,
        _stop_timeout,
        _timeout,
        _state_dir,
        click.option("--verbose", is_flag=True, help="Say more."),
    ]
    return _datasets(_with(options, command))


@cli.command(
    cls=Command,
    context_settings=HELP,
    epilog="\b\n" + _EPILOG.replace("\n\n", "\n\n\b\n"),
    options_metavar="[OPTIONS]",
)
@_selection
@click.option(
    "-n", "--dry-run", is_flag=True, help="Only say what would be taken, where it would appear, what would run."
)
@click.option("-p", "--pre-hook", metavar="COMMAND", help="Shell line to run first; if it fails, nothing is made.")
@click.option("-q", "--post-hook", metavar="COMMAND", help="Shell line to run last, also after a failure.")
@click.option(
    "--hook-timeout",
    default="10m",
    type=Duration(least=0.1),
    metavar="DURATION",
    show_default=True,
    help="How long a hook may take.",
)
@_stop_timeout
@_timeout
@click.option(
    "--wait",
    type=Duration(),
    metavar="[=DURATION]",
    help="Wait for another run on the same view root, instead of exit code 75.",
)
@_require_atomic
@click.option("--no-maintenance", is_flag=True, help="Leave kopia's own maintenance out.")
@click.option(
    "--schedule", metavar="NAME", help="Put it on record as a run of this schedule; 'kopiatomic schedule' sets it."
)
@_state_dir
@click.option(
    "--keep-history",
    default="400d",
    type=Duration(),
    metavar="DURATION",
    show_default=True,
    help="How long runs stay on record.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--verbose", is_flag=True, help="Say more.")
@click.option("--quiet", is_flag=True, help="Only warnings and errors.")
@click.option(
    "-v",
    "--version",
    cls=_VersionOption,
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version; with --verbose those of all that takes part.",
)
def backup(*, as_json: bool, verbose: bool, quiet: bool, no_maintenance: bool, **options: Any) -> None:
    """Back up DATASETs (tank/home) or mount points (/home), frozen at one instant, with kopia.

    Snapshots them together, mounts the snapshots read-only below /kopia where only the backup sees them, runs 'kopia
    snapshot create /kopia', and removes everything again.
    """
    from kopiatomic.commands.backup import backup as run
    from kopiatomic.config.options import Options
    from kopiatomic.output.console import Console

    console = Console(verbose=verbose, quiet=quiet, chatter=not as_json or verbose)
    _finish(run(Options(maintenance=not no_maintenance, **options), console), console, as_json=as_json)


@cli.command(cls=Command, context_settings=HELP)
@_selection
@click.option("--facts", "save_facts", is_flag=True, help="Print what was found as JSON, to plan from it elsewhere.")
@click.option("--from-facts", type=click.File("r", encoding="utf-8"), metavar="FILE", help="Plan from such a file.")
@click.option("--diff-last", is_flag=True, help="Say what changed against the last run of that root.")
@_state_dir
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--verbose", is_flag=True, help="Also the facts behind each verdict.")
@click.option("--quiet", is_flag=True, help="Only warnings and errors.")
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
    from kopiatomic.commands.failures import compare, facts_text
    from kopiatomic.config.options import Options
    from kopiatomic.model.facts import load
    from kopiatomic.output.console import Console

    console = Console(verbose=verbose, quiet=quiet, chatter=not as_json or verbose)
    if save_facts:
        raise SystemExit(facts_text(Options(**options), console))
    found = None
    if from_facts is not None:
        found = told(lambda: load(from_facts.read()), console)
    report = run(Options(dry_run=True, facts=found, **options), console)
    if diff_last and report.plan is not None:
        compare(options["state_dir"], report, console)
    _finish(report, console, as_json=as_json)


@cli.command("exec", cls=WithCommand, context_settings=HELP)
@_inside
@click.pass_context
def execute(context: click.Context, /, *, user: str | None, verbose: bool, **options: Any) -> None:
    """Run COMMAND inside the frozen instant, with the files at their true paths, while the live system goes on unseen.

    Its standard streams are the caller's own. The exit code is COMMAND's; 1 if the view was not what it should be, 3 or 4
    after a 0 where datasets had to be left out or something could not be removed.
    """
    argv = context.meta.get(COMMAND)
    if not argv or not argv[0]:
        raise click.UsageError("exec needs a command: kopiatomic exec DATASET... -- COMMAND [ARGUMENT]...")
    _run_inside(argv, user, options, verbose=verbose)


@cli.command(cls=Command, context_settings=HELP)
@_inside
def shell(*, user: str | None, verbose: bool, **options: Any) -> None:
    """Open a shell inside the frozen instant, with the files at their true paths."""
    _run_inside((), user, options, verbose=verbose)


def _run_inside(argv: Sequence[str], user: str | None, options: dict[str, Any], *, verbose: bool) -> NoReturn:
    from kopiatomic.commands.inside import Wanted, run
    from kopiatomic.config.options import Options
    from kopiatomic.output.console import Console

    console = Console(verbose=verbose, chatter=verbose, animated=False)
    report = run(Options(live_system=True, **options), Wanted(tuple(argv), user), console)
    console.report(report, summary=False)
    raise SystemExit(report.exit_code)


@cli.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-n", "--dry-run", is_flag=True, help="Only say what is left and what would be done.")
@click.option(
    "--forget",
    is_flag=False,
    flag_value="",
    metavar="[RUN]",
    help="Take a dead run off the record first: its disks are gone for good. "
    "Without RUN: forget what --skip-unchanged keeps, its bookmarks included.",
)
@click.option("--schedule", metavar="NAME", help="Only what runs of this schedule have on record.")
@click.option(
    "--unrecorded", is_flag=True, help="ZFS: also snapshots that have this host's mark and of which there is no record."
)
@click.option(
    "--received", is_flag=True, help="Also snapshots of other hosts' runs, and those that were received with a stream."
)
@click.option(
    "--assume-dead",
    multiple=True,
    metavar="RUN",
    callback=_run_ids,
    help="Take a run for dead that cannot be judged from here, such as one of another container. Repeatable.",
)
@_state_dir
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def recover(
    *,
    dry_run: bool,
    forget: str | None,
    schedule: str | None,
    unrecorded: bool,
    received: bool,
    assume_dead: frozenset[str],
    state_dir: str,
    as_json: bool,
) -> None:
    """Remove what killed runs left, and nothing that is not proven to be theirs.

    Every run does this for what is on record before it makes anything of its own. This command also finds by itself what
    no record speaks of. Exit code 0: nothing of this host's is left. 4: something is.
    """
    from kopiatomic.commands.failures import recover as run
    from kopiatomic.output.console import Console
    from kopiatomic.runs.recovery import Allowed

    if forget is not None and schedule is not None:
        raise click.UsageError("--forget and --schedule exclude each other")
    if (unrecorded or received) and schedule is not None:
        raise click.UsageError("--schedule goes by the record alone: it excludes --unrecorded and --received")
    allowed = Allowed(unrecorded=unrecorded, received=received, assumed_dead=assume_dead)
    raise SystemExit(
        run(state_dir, Console(), dry_run=dry_run, as_json=as_json, forget=forget, schedule=schedule, allowed=allowed)
    )


@cli.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run_id", metavar="[RUN]", default="")
@click.option("--limit", default=20, type=click.IntRange(min=1), metavar="N", show_default=True, help="How many runs.")
@_state_dir
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def history(*, run_id: str, limit: int, state_dir: str, as_json: bool) -> None:
    """List the last runs, or show one whole (the beginning of its id is enough)."""
    from kopiatomic.commands.failures import history as run
    from kopiatomic.output.console import Console

    raise SystemExit(run(state_dir, Console(), run_id=run_id, limit=limit, as_json=as_json))


cli.add_command(schedule)


def _finish(report: Report, console: Console, *, as_json: bool) -> NoReturn:
    """Print a report and end with its exit code."""
    console.acted = not report.dry_run
    if as_json:
        from kopiatomic.output.document import document

        console.end()
        console.document(document(report))
    console.report(report, summary=not as_json)
    raise SystemExit(console.exit_code(report.exit_code))


def main() -> None:
    """Entry point of the program."""
    # What is imported and listed is no garbage, and looking for some takes a tenth of the time that a start takes. A run looks
    # again once it has its processes (runs/supervisor.py).
    gc.disable()
    inherited.settle()
    if "_KOPIATOMIC_COMPLETE" in os.environ:
        from kopiatomic.cli import completion

        completion.register()
    stdout = sys.stdout
    try:
        cli.main(prog_name="kopiatomic", standalone_mode=False)
    except click.ClickException as error:
        _refuse(error.format_message())
    except ImportError as error:
        _lack(error)
    except OSError as error:
        # All that prints here is help, version and completion: a run has its own way with outputs.
        from kopiatomic.output.console import discard, write

        discard(sys.stdout)
        write(sys.stderr, f"kopiatomic: the output could not be written: {error.strerror}")
        raise SystemExit(1) from None
    except SystemExit:
        if sys.stdout is not stdout:
            # click has put another in its place: help or version went into a closed pipe.
            raise SystemExit(0) from None
        raise
    except (click.exceptions.Abort, KeyboardInterrupt):
        # Nothing has begun: a run has handlers of its own.
        from kopiatomic.errors import Interrupted

        _end(Interrupted(signal.SIGINT))


def _refuse(message: str) -> NoReturn:
    """End because the command line makes no sense."""
    from kopiatomic.errors import UsageError

    _end(UsageError(message, kind="usage", hint="'kopiatomic -h' shows the options."))


def _lack(error: ImportError) -> NoReturn:
    """End because Python is not whole: FreeBSD, for one, has sqlite3 in a package of its own."""
    from kopiatomic.errors import KopiatomicError

    module = (error.name or "").partition(".")[0].lstrip("_")
    package = f"py{sys.version_info.major}{sys.version_info.minor}-{module}"
    hint = (
        f"Install {module or 'it'} for that Python; on FreeBSD, where it is a package of its own: pkg install {package}"
    )
    _end(KopiatomicError(f"{sys.executable} cannot load what kopiatomic needs: {error}", kind="no-module", hint=hint))


def _end(error: KopiatomicError) -> NoReturn:
    """Print the error of what has not begun, and end."""
    from kopiatomic.model.report import Report
    from kopiatomic.output.console import Console

    _finish(Report(run_id="", root="", error=error), Console(), as_json="--json" in sys.argv)
