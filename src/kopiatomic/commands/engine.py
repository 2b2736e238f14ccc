"""``kopiatomic engine``: the engine of a profile by hand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

from kopiatomic.commands import profiles
from kopiatomic.commands.failures import ended, require_root
from kopiatomic.commands.profiles import Folder
from kopiatomic.engines import program
from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.output.console import Console
from kopiatomic.schedules.environment import created
from kopiatomic.system import inherited
from kopiatomic.text import printable


def run(name: str, argv: Sequence[str], folder: Folder, console: Console) -> int:
    """Become the engine of a profile, with its repository, variables and secrets; return only an exit code of failure."""
    return ended(lambda: _run(name, argv, folder, console.command_line), console)


def _run(name: str, argv: Sequence[str], folder: Folder, shown: str) -> NoReturn:
    require_root("a profile's repository and secrets are root's", shown)
    options = profiles.options(folder.load(name), {})
    if options.command is not None:
        raise UsageError(
            f"{name} runs a command of its own, and has no engine", kind="usage", hint="Run that command by hand."
        )
    environment = profiles.engine_environment(options)
    engine = created(options, environment)
    environment |= engine.by_hand(environment)
    variable = f"KOPIATOMIC_{engine.name.upper()}"
    path = program.find(
        environment.get(variable) or engine.name,
        environment,
        kind=engine.name,
        hint=f"Install it, or set {variable} in [engine.environment] to where it is.",
    )
    inherited.hand_on()
    try:
        os.execve(path, [path, *_without(engine.common, argv), *argv], environment)  # noqa: S606 - that is what this is for
    except OSError as error:
        raise KopiatomicError(
            f"cannot start {printable(path)}: {error.strerror}",
            kind=f"{engine.name}-not-executable",
            hint="Is it made for this machine, and is its interpreter installed?",
        ) from None


def _without(options: Sequence[Sequence[str]], argv: Sequence[str]) -> list[str]:
    """Return the words of those options that the user does not give: some programs take no option twice."""
    given = {word.partition("=")[0] for word in argv}
    return [word for words in options if words[0].partition("=")[0] not in given for word in words]
