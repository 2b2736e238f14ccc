"""What our command lines need and click lacks: words followed by a command line, durations, completion of names."""

from __future__ import annotations

from typing import Any

import click

from kopiatomic.config.settings import COMMANDS, Form

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

NO_WORD_YET = "kopiatomic.no-word-yet"
COMMAND = "kopiatomic.command"


_ALONE = {
    flag: setting.alone
    for setting in COMMANDS["backup"]
    if setting.form is Form.DURATION and setting.alone is not None
    for flag in setting.flags
}
"""Durations that may be given without a value, and what they then are."""


def spellings(parameter: click.Parameter) -> list[str]:
    """Return all flags of an option, with those that say its opposite."""
    return [*parameter.opts, *parameter.secondary_opts]


class Command(click.Command):
    """A command that takes datasets. In its help, the default command is called just ``kopiatomic``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self.spelled_out(args))

    def spelled_out(self, args: list[str]) -> list[str]:
        """Give a duration without a value (``--wait``) its implied one: click would take the next word for it."""
        with_value = {
            name
            for parameter in self.params
            if isinstance(parameter, click.Option) and not parameter.is_flag
            for name in parameter.opts
        } - _ALONE.keys()
        words = iter(args)
        result = []
        for word in words:
            result.append(f"{word}={_ALONE[word]}" if word in _ALONE else word)
            if word == "--":
                break
            is_cluster = len(word) > 1 and word[0] == "-" and word[1] != "-"
            if word in with_value or (
                is_cluster and f"-{word[-1]}" in with_value and not _value_begins(word, with_value)
            ):
                result += [value for value in [next(words, None)] if value is not None]
        return [*result, *words]

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        name = "kopiatomic" if self.name == "backup" else f"kopiatomic {self.name}"
        formatter.write_usage(name, " ".join(self.collect_usage_pieces(ctx)))


def _value_begins(cluster: str, with_value: set[str]) -> bool:
    """Whether one of the letters before the last takes the rest of ``-rc...`` as its value."""
    return any(f"-{letter}" in with_value for letter in cluster[1:-1])


class Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Seconds, from ``90``, ``30s``, ``10m``, ``2h`` or ``1d``."""

    name = "duration"

    def __init__(self, *, least: float = 0.0) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from kopiatomic.config.options import duration, within

        if isinstance(value, float):
            return value
        try:
            return within(duration(value), value, self._least)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Converted(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A text of one of the forms in :data:`kopiatomic.config.options.MEASURES`: a share, or a size."""

    def __init__(self, form: Form) -> None:
        self.name = str(form)
        self._form = form

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from kopiatomic.config.options import MEASURES

        if isinstance(value, int | float):
            return value
        try:
            return MEASURES[self._form](value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[Any]:
    """Complete names of datasets, and commands where one may appear. What begins as a path is left to the shell."""
    from click.shell_completion import CompletionItem

    from kopiatomic.cli.completion import datasets

    if COMMAND in context.meta:
        return [CompletionItem(incomplete, type="file")]
    if incomplete.startswith(("/", ".", "~")):
        return [CompletionItem(incomplete, type="dir")]
    names = sorted(datasets())
    if context.meta.get(NO_WORD_YET):
        names += context.find_root().command.commands  # type: ignore[attr-defined]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_schedule(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[Any]:
    """Complete names of schedules."""
    from click.shell_completion import CompletionItem

    from kopiatomic.cli.completion import schedules

    return [CompletionItem(name) for name in schedules() if name.startswith(incomplete)]


def complete_profile(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[Any]:
    """Complete names of profiles."""
    from click.shell_completion import CompletionItem

    from kopiatomic.cli.completion import profiles

    found = profiles(context.params.get("config_dir"))
    return [CompletionItem(name) for name in found if name.startswith(incomplete)]


def complete_directory(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir")]


class WithCommand(Command):
    """A command where the words after ``--`` are a command line of their own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            position = args.index("--")
            ctx.meta[COMMAND] = args[position + 1 :]
            args = args[:position]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "-- COMMAND [ARGUMENT]..."]
