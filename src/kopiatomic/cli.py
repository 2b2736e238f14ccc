"""The command line: parse, call, print. No logic of its own."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from kopiatomic import __version__

if TYPE_CHECKING:
    from kopiatomic.output.console import Console
    from kopiatomic.report import Report

_EPILOG = """\
Exit codes: 0 saved; 1 failed, nothing saved; 2 usage; 3 saved but not
complete; 4 saved, but cleaning up or -q failed; 75 another run has the view
root; 128+n ended by signal n.

A first word that is a command's name is that command: 'kopiatomic backup
NAME...' reaches a pool of any name.
"""


class _Commands(click.Group):
    """A first word that is no command belongs to ``backup``: that is what kopiatomic does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["backup", *args]
        return super().parse_args(ctx, args)


class _Default(click.Command):
    """The command that need not be named: its help speaks of ``kopiatomic`` alone."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage("kopiatomic", " ".join(self.collect_usage_pieces(ctx)))


def _show_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"kopiatomic {__version__}")
        context.exit()


def _complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[Any]:
    """Mounted ZFS datasets and mount points, from the mount table."""
    from click.shell_completion import CompletionItem

    from kopiatomic.system import mountinfo

    names = set()
    for mount in mountinfo.read():
        if mount.fstype == "zfs" and "@" not in mount.source:
            names |= {mount.source, mount.point}
        elif mount.fstype == "btrfs":
            names.add(mount.point)
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": []},
    add_help_option=False,
)
def cli() -> None:
    """Freeze datasets at one instant and back them up."""


@cli.command(
    cls=_Default,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\n" + _EPILOG.replace("\n\n", "\n\n\b\n"),
    options_metavar="[OPTIONS]",
)
@click.argument("names", nargs=-1, metavar="DATASET_OR_PATH...", shell_complete=_complete)
@click.option("-a", "--all", "everything", is_flag=True, help="All mounted ZFS datasets and Btrfs subvolumes.")
@click.option("-r", "--recursive", is_flag=True, help="Also the children of those named.")
@click.option(
    "-n", "--dry-run", is_flag=True, help="Only say what would be taken, where it would appear, what would run."
)
@click.option(
    "-c", "--command", metavar="COMMAND", help="Run COMMAND with the view's root as its last argument instead of kopia."
)
@click.option("-o", "--options", default="", metavar="OPTIONS", help="More options for kopia or COMMAND.")
@click.option("-p", "--pre-hook", metavar="COMMAND", help="Shell line to run first; if it fails, nothing is made.")
@click.option("-q", "--post-hook", metavar="COMMAND", help="Shell line to run last, also after a failure.")
@click.option("--hook-timeout", default=600.0, type=click.FloatRange(min=0.1), metavar="SECONDS", show_default=True)
@click.option(
    "--stop-timeout",
    default=30.0,
    type=click.FloatRange(min=0.0),
    metavar="SECONDS",
    show_default=True,
    help="How long the engine has to end after a signal.",
)
@click.option("--mount-root", default="/kopia", metavar="DIR", show_default=True, help="Where the view is mounted.")
@click.option("--name", metavar="NAME", help="Use DIR/NAME, so that this selection has a history of its own.")
@click.option(
    "--require-atomic", is_flag=True, help="Fail, before anything is saved, unless all share one proven instant."
)
@click.option("--no-maintenance", is_flag=True, help="Leave kopia's own maintenance out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--verbose", is_flag=True, help="Say more.")
@click.option("--quiet", is_flag=True, help="Only warnings and errors.")
@click.option(
    "-v", "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version."
)
def backup(*, as_json: bool, verbose: bool, quiet: bool, no_maintenance: bool, **options: Any) -> None:
    """Back up DATASETs (tank/home) or mount points (/home), frozen at one instant, with kopia.

    Snapshots them together, mounts the snapshots read-only below /kopia where only the backup sees them, runs 'kopia
    snapshot create /kopia', and removes everything again.
    """
    from kopiatomic.options import Options
    from kopiatomic.output.console import Console
    from kopiatomic.run import backup as run

    console = Console(verbose=verbose, quiet=quiet, chatter=not as_json or verbose)
    _finish(run(Options(maintenance=not no_maintenance, **options), console), console, as_json=as_json)


def _finish(report: Report, console: Console, *, as_json: bool) -> NoReturn:
    """Print a report and end with its exit code."""
    if as_json:
        from kopiatomic.output.document import render

        console.end()
        console.result(render(report))
    console.report(report, summary=not as_json)
    raise SystemExit(report.exit_code)


def main() -> None:
    """Entry point of the program."""
    _own_descriptors()
    _own_path()
    _own_streams()
    try:
        cli.main(prog_name="kopiatomic", standalone_mode=False)
    except click.ClickException as error:
        _refuse(error.format_message())
    except OSError as error:
        # All that prints here is help, version and completion: a run has its own way with outputs.
        from kopiatomic.output.console import discard, write

        discard(sys.stdout)
        write(sys.stderr, f"kopiatomic: the output could not be written: {error.strerror}")
        raise SystemExit(1) from None
    except (click.exceptions.Abort, KeyboardInterrupt):
        raise SystemExit(130) from None


def _refuse(message: str) -> NoReturn:
    """End because the command line makes no sense."""
    from kopiatomic.errors import UsageError
    from kopiatomic.output.console import Console
    from kopiatomic.report import Report

    report = Report(
        run_id="", root="", error=UsageError(message, kind="usage", hint="'kopiatomic -h' shows the options.")
    )
    _finish(report, Console(), as_json="--json" in sys.argv)


def _own_path() -> None:
    """Look for programs in sbin where bin is looked in: cron's PATH is /usr/bin:/bin, and zfs is in /usr/sbin."""
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    beside = [f"{folder[:-4]}/sbin" for folder in path if folder.endswith("/bin")]
    os.environ["PATH"] = os.pathsep.join([*path, *(folder for folder in beside if folder not in path)])


def _own_descriptors() -> None:
    """Make sure that 0, 1 and 2 are open, and that nothing else our caller left open reaches an engine."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for entry in os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"):
        if int(entry) > 2:
            try:
                os.set_inheritable(int(entry), False)
            except OSError:
                # The descriptor of the listing itself.
                continue


def _own_streams() -> None:
    """Make sure that stdout and stderr can be written to, whatever was closed and whatever their encoding lacks."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open as long as we live
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
