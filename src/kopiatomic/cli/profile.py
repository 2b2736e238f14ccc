"""The command line of ``kopiatomic profile``: parse, call, print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from kopiatomic.cli.arguments import COMMAND, HELP
from kopiatomic.cli.endings import called
from kopiatomic.cli.options import options
from kopiatomic.cli.schedule import WithWords, all_commands, parsed
from kopiatomic.config.settings import TABLES

if TYPE_CHECKING:
    from kopiatomic.commands.profiles import Folder
    from kopiatomic.output.console import Console


@click.group(context_settings=HELP, no_args_is_help=False)
def profile() -> None:
    """Backups as files: /etc/kopiatomic/NAME.toml says what 'kopiatomic run NAME' does."""


@profile.command(cls=WithWords, context_settings=HELP)
@options("profile new")
@click.pass_context
def new(context: click.Context, /, *, name: str, config_dir: str | None) -> None:
    """Write a commented file to start with, which says what 'kopiatomic ARGUMENT...' does.

    The first run of the profile then continues that history. Without arguments it takes everything that is mounted, with the
    engine that is installed. An existing file is never overwritten.
    """
    import os

    from kopiatomic.commands.profile import new as run

    words = context.meta.get(COMMAND) or ()
    given = _given(words, all_commands(context)) if words else _found_here()
    console = _console()
    raise SystemExit(run(name, given, _folder(config_dir), console, os.environ))


@profile.command("list", context_settings=HELP)
@options("profile list")
def listing(*, config_dir: str | None, as_json: bool) -> None:
    """Show which profiles there are, what each selects, and what came of its last run."""
    from kopiatomic.commands.profile import listing as run

    raise SystemExit(run(_folder(config_dir), _console(), as_json=as_json))


@profile.command(context_settings=HELP)
@options("profile show")
def show(*, name: str, origin: bool, config_dir: str | None, as_json: bool) -> None:
    """Show what a profile says, with all that it extends."""
    from kopiatomic.commands.profile import show as run

    raise SystemExit(run(name, _folder(config_dir), _console(), origin=origin, as_json=as_json))


@profile.command(context_settings=HELP)
@options("profile check")
def check(*, names: tuple[str, ...], file: str | None, offline: bool, config_dir: str | None) -> None:
    """Check profiles, by default all of them: the files, what they select, the engine, its repository, the secrets.

    Nothing is made. With --offline any user can check any file.
    """
    import os

    from kopiatomic.commands.profile import check as run
    from kopiatomic.commands.profiles import work_as_timers_do

    folder, path = _folder(config_dir), None if file is None else os.path.abspath(file)
    work_as_timers_do()
    raise SystemExit(run(names, path, folder, _console(), called(), offline=offline))


@profile.command(context_settings=HELP)
@options("profile schema")
def schema() -> None:
    """Print the JSON Schema of a profile, with which an editor completes and checks."""
    from kopiatomic.config.profile_text import schema as made

    click.echo(json.dumps(made(), indent=2))


def _console() -> Console:
    from kopiatomic.output.console import Console

    return Console(called())


def _folder(asked: str | None) -> Folder:
    from kopiatomic.commands.profiles import folder

    return folder(asked)


def _given(words: Sequence[str], group: click.Group) -> dict[tuple[str, str], Any]:
    """Return what the words of a backup say, by table and key of a profile. Raises click's errors, and UsageError."""
    from kopiatomic.config.options import made_absolute
    from kopiatomic.config.settings import COMMANDS, MOUNT_ROOT, Form, Group

    _, context, raw = parsed(words, group)
    tables = {setting.name: table for table, settings in TABLES.items() for setting in settings}
    given: dict[tuple[str, str], Any] = {}
    for setting in COMMANDS["backup"]:
        if context.get_parameter_source(setting.name) in {None, ParameterSource.DEFAULT}:
            continue
        if setting.name == "holds":
            given["", "hold"] = [_hold(word) for word in context.params["holds"]]
            continue
        if setting.name not in tables:
            if setting.group is not Group.OUTPUT:
                raise click.UsageError(f"{setting.flags[0]} is nothing that a profile says; leave it out", context)
            continue
        as_written = setting.form in {Form.DURATION, Form.SHARE, Form.SIZE}
        value: Any = raw.get(setting.name) if as_written else context.params[setting.name]
        if setting.alone is not None and value == setting.alone:
            value = True
        if setting.repeated:
            value = [made_absolute(setting, one) for one in value]
        elif isinstance(value, str) and setting.form is Form.TEXT:
            value = made_absolute(setting, value)
        given[tables[setting.name], setting.key] = str(value) if setting.form is Form.CHOICE else value
    if not any(given.get(("select", key)) for key in ("datasets", "all", "by_property")):
        raise click.UsageError("the words name no dataset; -a takes all that are mounted", context)
    merged = given.get(("view", "layout"), "merged") == "merged"
    if merged and not {("view", "mount_root"), ("view", "name")} & given.keys():
        # The history of these words goes on.
        given["view", "mount_root"] = MOUNT_ROOT
    return given


def _hold(word: str) -> dict[str, str]:
    """Return what ``--hold`` says of one writer, as a profile says it. Raises UsageError."""
    from kopiatomic.config.options import hold

    wanted = hold(word)
    return {"kind": wanted.kind, **({"name": wanted.name} if wanted.name else {})}


def _found_here() -> dict[tuple[str, str], Any]:
    """Return what a profile begins with on this machine: everything that is mounted, and the engine that is installed."""
    import shutil

    found: dict[tuple[str, str], Any] = {("select", "all"): True}
    installed = next((name for name in ("kopia", "restic", "borg") if shutil.which(name)), "kopia")
    return found | {("engine", "engine"): installed}
