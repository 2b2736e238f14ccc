"""The command line of ``kopiatomic schedule``: parse, call, print."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from kopiatomic.cli.arguments import COMMAND, HELP, Command, WithCommand, spellings
from kopiatomic.cli.endings import called, or_end
from kopiatomic.cli.options import options

if TYPE_CHECKING:
    from kopiatomic.commands.schedule import ScheduleRequest
    from kopiatomic.config.options import Options
    from kopiatomic.model.report import Report


class WithWords(WithCommand):
    """A command that takes the words of a backup, or of an engine, after ``--``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            own = self._own(ctx, given)
            mistyped = isinstance(error, click.NoSuchOption) and error.possibilities
            if COMMAND in ctx.meta or mistyped or not 0 < own < len(given):
                raise
            from kopiatomic.secrets.masking import Secrets

            more, words = self._apart(ctx, given[own:])
            meant = ["kopiatomic", *ctx.command_path.split()[1:], *given[:own], *more, "--", *words]
            shown = Secrets(given, os.environ).command_line(meant)
            raise click.UsageError(f"what follows the name must stand behind '--': {shown}", ctx) from None

    def _apart(self, ctx: click.Context, args: list[str]) -> tuple[list[str], list[str]]:
        """Return the options of this command alone, with their values, and all other words."""
        backup = {flag for one in all_commands(ctx).commands["backup"].params for flag in spellings(one)}
        own = {
            flag: isinstance(one, click.Option) and not one.is_flag
            for one in self.params
            for flag in spellings(one)
            if flag not in backup
        }
        mine: list[str] = []
        others: list[str] = []
        rest = iter(args)
        for word in rest:
            name, equals, _ = word.partition("=")
            if not name.startswith("-") or name not in own:
                others.append(word)
                continue
            mine += [word, *([next(rest, "")] if own[name] and not equals else [])]
        return mine, others

    def _own(self, ctx: click.Context, args: list[str]) -> int:
        """Return how many words from the left this command understands."""
        understood = 0
        for count, word in enumerate(args, start=1):
            if word in ctx.help_option_names:
                break
            try:
                super().parse_args(click.Context(self, parent=ctx.parent), args[:count])
                understood = count
            except click.UsageError:
                # The next word may be the value of an option.
                continue
        return understood

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*click.Command.collect_usage_pieces(self, ctx), "-- ARGUMENT..."]

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, " ".join(self.collect_usage_pieces(ctx)))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import ShellComplete

        if COMMAND not in ctx.meta:
            return super().shell_complete(ctx, incomplete)
        backup = all_commands(ctx).commands["backup"]
        return ShellComplete(backup, {}, "kopiatomic", "").get_completions(ctx.meta[COMMAND], incomplete)


def _credential(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value}: it must be a variable's name, '=' and a file")
        found[name] = path
    return found


@click.group(context_settings=HELP, no_args_is_help=False)
def schedule() -> None:
    """Have the system make a backup again and again: a timer of systemd, or cron on FreeBSD."""


@schedule.command(cls=WithWords, context_settings=HELP)
@options("schedule install", credentials={"callback": _credential})
@click.pass_context
def install(
    context: click.Context,
    /,
    *,
    name: str,
    every_profile: bool,
    config_dir: str | None,
    daily: bool,
    hourly: bool,
    calendar: str | None,
    credentials: dict[str, str],
    yes: bool,
) -> None:
    """Make the backup that 'kopiatomic ARGUMENT...' would make, at these times; without ARGUMENT that of the profile NAME.

    The file of a profile says when. Change it as you like: only what it says of the times, credentials and time limits needs
    another installation.

    Says what it will write, asks, checks the engine as the schedule will run, and only then installs anything. Installing
    the same again changes nothing.
    """
    from kopiatomic.commands import profiles
    from kopiatomic.commands.schedule import Place, ScheduleRequest
    from kopiatomic.commands.schedule import install as run
    from kopiatomic.errors import SIGNAL_BASE, end_of
    from kopiatomic.output.console import Console
    from kopiatomic.schedules import here
    from kopiatomic.schedules.schedule import DAILY, HOURLY

    if daily + hourly + (calendar is not None) > 1:
        raise click.UsageError("--daily, --hourly and --calendar exclude each other")
    console = Console(called())
    place = Place(or_end(here, console), called().program, os.environ)
    if COMMAND in context.meta:
        if not name or every_profile:
            raise click.UsageError("a schedule of words needs a name: kopiatomic schedule install NAME -- DATASET...")
        words, meaning = meant(context.meta[COMMAND], all_commands(context))
        wanted = ScheduleRequest(name, calendar or (HOURLY if hourly else DAILY), credentials, words, meaning)
        raise SystemExit(run(wanted, place, console, yes=yes))
    if daily or hourly or calendar is not None or credentials:
        raise click.UsageError("the times and secrets of a profile are in its file; or name the backup: -- DATASET...")
    folder = profiles.folder(config_dir)
    names = or_end(lambda: folder.some([name] if name else [], everything=every_profile), console)
    if not names:
        raise click.UsageError("name a profile, --all of them, or the words of a backup: -- DATASET...")
    codes = []
    for one in names:
        try:
            wanted = _of_profile(one, config_dir)
        except Exception as error:
            # It does not keep the others from being installed.
            failure = end_of(error)
            console.error(failure)
            codes.append(failure.exit_code)
            continue
        codes.append(run(wanted, place, console, yes=yes))
        if codes[-1] > SIGNAL_BASE:
            break
    raise SystemExit(profiles.worst(codes))


def _of_profile(name: str, config_dir: str | None) -> ScheduleRequest:
    """Return the request to schedule a profile. Raises KopiatomicError."""
    from kopiatomic.commands import profiles
    from kopiatomic.commands.schedule import ScheduleRequest

    found = profiles.folder(config_dir).load(name)
    asked = None if config_dir is None else os.path.abspath(config_dir)
    return ScheduleRequest(name, "", {}, (), profiles.options(found, {}), profile=found, config_dir=asked)


@schedule.command(context_settings=HELP)
@options("schedule show")
def show(*, name: str, as_json: bool) -> None:
    """Say which schedules there are, when they start, and what came of them."""
    from kopiatomic.commands.schedule import show as run
    from kopiatomic.output.console import Console
    from kopiatomic.schedules import here

    console = Console(called())
    raise SystemExit(run(or_end(here, console), console, name=name, as_json=as_json))


@schedule.command(context_settings=HELP)
@options("schedule remove")
def remove(*, name: str, yes: bool) -> None:
    """Take a schedule away. Its runs stay recorded."""
    from kopiatomic.commands.schedule import remove as run
    from kopiatomic.output.console import Console
    from kopiatomic.schedules import here

    console = Console(called())
    raise SystemExit(run(or_end(here, console), console, name=name, yes=yes))


# What schedules themselves start


@schedule.command(cls=WithWords, context_settings=HELP, hidden=True)
@options("schedule check")
@click.pass_context
def check(context: click.Context, /, *, profile: str | None) -> None:
    """Say as JSON whether the backup could be made, where it would be saved and as whom."""
    from kopiatomic.commands.schedule import check as run
    from kopiatomic.output.console import Console

    console = Console(called(), quiet=True)
    if profile is not None:
        raise SystemExit(run(or_end(lambda: _options_of(profile), console), console, called()))
    words, meaning = meant(context.meta.get(COMMAND) or (), all_commands(context))
    raise SystemExit(run(meaning, console, replace(called(), words=tuple(words))))


@schedule.command(context_settings=HELP, hidden=True)
@options("schedule overdue")
def overdue(*, name: str) -> None:
    """Fail where the schedule has had no complete success for three of its intervals."""
    from kopiatomic.commands.schedule import overdue as run
    from kopiatomic.output.console import Console
    from kopiatomic.schedules import here

    console = Console(called())
    raise SystemExit(run(or_end(here, console), console, name=name))


@schedule.command("run", context_settings=HELP, hidden=True)
@options("schedule run")
@click.pass_context
def start(context: click.Context, /, *, name: str) -> None:
    """Make the backup of the schedule: what cron starts."""
    from kopiatomic.commands.backup import backup as make
    from kopiatomic.commands.schedule import start as run
    from kopiatomic.model.schedule import Schedule
    from kopiatomic.output.console import Console
    from kopiatomic.schedules import here

    console = Console(called(), quiet=True)

    def made(found: Schedule, words: Sequence[str]) -> Report:
        meaning = _options_of(found.profile) if found.profile else meant(found.words, all_commands(context))[1]
        return make(replace(meaning, schedule=found.name), console, replace(called(), words=tuple(words)))

    raise SystemExit(run(or_end(here, console), console, name=name, backup=made, environ=os.environ))


def _options_of(profile: str) -> Options:
    """Return what a profile of the folder in the environment asks for. Raises KopiatomicError."""
    from kopiatomic.commands import profiles

    found = profiles.folder(os.environ.get("KOPIATOMIC_CONFIG_DIR")).load(profile)
    profiles.work_as_timers_do()
    return replace(profiles.options(found, {}), profile=profile)


def all_commands(context: click.Context) -> click.Group:
    found = context.find_root().command
    assert isinstance(found, click.Group)
    return found


def parsed(words: Sequence[str], group: click.Group) -> tuple[Sequence[str], click.Context, Mapping[str, Any]]:
    """Return the words of a backup without its name, their context, and what each gives before it is converted.

    ``group`` has the command that they are for. Raises click's errors.
    """
    backup = group.commands["backup"]
    if words and words[0] == backup.name:
        words = words[1:]
    elif words and words[0] in group.commands:
        raise click.UsageError(
            f"these words make a backup, and '{words[0]}' is another command; '-- backup {words[0]}' is a dataset of that name"
        )
    if not words:
        raise click.UsageError("the words of a backup are missing: kopiatomic schedule install NAME -- DATASET...")
    # Creating a context from these would show version or help, and exit.
    assert isinstance(backup, Command)
    called_by = "kopiatomic backup"
    context = click.Context(backup, info_name=called_by, **backup.context_settings)
    given, _, _ = backup.make_parser(context).parse_args(backup.spelled_out(list(words)))
    for parameter in backup.get_params(context):
        for flag in {"--version", "--help"}.intersection(parameter.opts):
            if parameter.name in given:
                raise click.UsageError(f"{flag} is nothing for a schedule")
    return words, backup.make_context(called_by, list(words)), given


def meant(words: Sequence[str], group: click.Group) -> tuple[Sequence[str], Options]:
    """Return the words of a backup without its name, and what they mean to the one in ``group``. Raises click's errors."""
    from kopiatomic.config.options import Options

    words, context, _ = parsed(words, group)
    params = context.params
    of_the_output = {"as_json", "verbose", "quiet", "no_maintenance"}
    wanted = {name: value for name, value in params.items() if name not in of_the_output}
    return words, Options(maintenance=not params["no_maintenance"], **wanted)
