"""The options of a command, built for click from the table of settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from kopiatomic.cli.arguments import (
    Converted,
    Duration,
    complete,
    complete_directory,
    complete_profile,
    complete_schedule,
)
from kopiatomic.config.settings import COMMANDS, Completion, Form, Setting

_COMPLETE = {
    Completion.DATASETS: complete,
    Completion.DIRECTORIES: complete_directory,
    Completion.SCHEDULES: complete_schedule,
    Completion.PROFILES: complete_profile,
}


def options(command: str, **special: dict[str, Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add this command's options to a function; ``special`` has additional arguments for click, by option name."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for setting in reversed(COMMANDS[command]):
            function = _parameter(setting, special.get(setting.name, {}))(function)
        return function

    return decorate


def _parameter(setting: Setting, special: dict[str, Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    more: dict[str, Any] = {"shell_complete": _COMPLETE[setting.completion]} if setting.completion else {}
    if not setting.flags:
        more |= {"nargs": -1} if setting.repeated else {}
        more |= {"default": setting.default} if setting.default is not None else {}
        return click.argument(setting.name, metavar=setting.value, **more, **special)
    more |= {"help": setting.help}
    if setting.form is Form.ANSWER:
        no, yes = setting.flags
        return click.option(f"{yes}/{no}", setting.name, default=None, **more, **special)
    if setting.form is Form.FLAG:
        return click.option(*setting.flags, setting.name, is_flag=True, **more, **special)
    more |= {"metavar": setting.value} if setting.value is not None else {}
    more |= {"default": setting.default} if setting.default is not None else {}
    more |= {"show_default": True} if setting.shows_default else {}
    more |= {"multiple": True} if setting.repeated else {}
    more |= {"envvar": setting.variable, "show_envvar": True} if setting.variable is not None else {}
    if setting.form is Form.TEXT and setting.alone is not None:
        more |= {"is_flag": False, "flag_value": setting.alone}
    return click.option(*setting.flags, setting.name, type=_type(setting), **more, **special)


def _type(setting: Setting) -> Any:
    match setting.form:
        case Form.CHOICE:
            return click.Choice(list(setting.choices))
        case Form.DURATION:
            return Duration(least=setting.least)
        case Form.SHARE | Form.SIZE:
            return Converted(setting.form)
        case Form.COUNT:
            return click.IntRange(min=1)
        case Form.FILE:
            return click.File("r", encoding="utf-8")
    return str
