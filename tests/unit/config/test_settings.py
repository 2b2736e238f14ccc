"""The table of settings is where an option is defined: the command line, README and the defaults of a run agree with it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields

import click
import pytest

from kopiatomic.cli.entry import cli
from kopiatomic.config.options import Options, duration, size
from kopiatomic.config.settings import COMMANDS, Form, Setting
from tests.support.programs import SOURCE

README = (SOURCE.parent / "README.md").read_text()


def commands(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


def test_every_command_has_the_options_of_the_table_and_no_others() -> None:
    found = {name: [parameter.name for parameter in command.params] for name, command in commands(cli)}
    assert found == {name: [setting.name for setting in settings] for name, settings in COMMANDS.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_and_a_flag_mean_one_thing_in_a_command(command: str) -> None:
    names = [setting.name for setting in COMMANDS[command]]
    flags = [flag for setting in COMMANDS[command] for flag in setting.flags]
    assert len(set(names)) == len(names)
    assert len(set(flags)) == len(flags)


def test_a_name_is_of_one_group_wherever_it_is() -> None:
    groups: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for settings in COMMANDS.values():
        for setting in settings:
            if setting.flags and setting.name not in {"dry_run", "schedule"}:
                groups.setdefault((setting.name, setting.flags), set()).add(setting.group)
    assert {name: found for name, found in groups.items() if len(found) > 1} == {}


def value_of(setting: Setting) -> object:
    """The default as a run has it."""
    if setting.repeated:
        return ()
    if setting.form is Form.FLAG:
        return False
    if setting.form is Form.DURATION and setting.default is not None:
        return duration(setting.default)
    if setting.form is Form.SIZE:
        return size(setting.default)
    return setting.default


def test_a_run_that_is_told_nothing_has_the_defaults_of_the_table() -> None:
    plain = Options()
    known = {field.name for field in fields(Options)}
    for setting in COMMANDS["backup"]:
        if setting.name in known:
            assert getattr(plain, setting.name) == value_of(setting), setting.name


def test_every_option_of_a_backup_is_taken_by_its_command_or_is_part_of_what_a_run_is_asked_for() -> None:
    taken = set(inspect.signature(cli.commands["backup"].callback).parameters)  # type: ignore[arg-type]
    known = {field.name for field in fields(Options)}
    assert {setting.name for setting in COMMANDS["backup"]} - taken - known == {"version"}


def test_the_table_of_the_readme_has_the_options_of_a_backup() -> None:
    rows = re.search(r"(?s)\n\| option \| \|\n(.*?)\n\n", README)
    assert rows is not None
    cells = [line.split(" | ")[0] for line in rows[1].splitlines()[1:]]
    shown = {flag for cell in cells for flag in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", cell)}
    assert shown == {flag for setting in COMMANDS["backup"] for flag in setting.flags} | {"-h", "--help"}
