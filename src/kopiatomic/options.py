"""What the command line asks of a run, as data, and what can be said about it before anything is looked at."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from kopiatomic.errors import UsageError
from kopiatomic.text import printable


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says. Times in seconds."""

    names: tuple[str, ...] = ()
    everything: bool = False
    recursive: bool = False
    command: str | None = None
    options: str = ""
    pre_hook: str | None = None
    post_hook: str | None = None
    hook_timeout: float = 600.0
    stop_timeout: float = 30.0
    mount_root: str = "/kopia"
    name: str | None = None
    require_atomic: bool = False
    dry_run: bool = False
    maintenance: bool = True


def check_name(name: str) -> None:
    """Refuse a --name that is no plain directory name. Raises UsageError."""
    if name in {"", ".", ".."} or "/" in name or name.startswith("-"):
        raise UsageError(
            f"--name {printable(name)}: it has to be one path component, not '.' or '..', without a leading dash",
            kind="bad-name",
            hint="For example: --name home",
        )


def words(flag: str, text: str) -> list[str]:
    """Split as a shell splits words. Raises UsageError."""
    try:
        found = shlex.split(text)
    except ValueError as error:
        raise UsageError(
            f"{flag}: {str(error)[0].lower()}{str(error)[1:]} in: {printable(text)}",
            kind="bad-quotes",
            hint="Quotes have to be in pairs, as in a shell.",
        ) from None
    if flag == "-c" and not found:
        raise UsageError("-c: the command is empty", kind="no-command", hint="For example: -c 'tar -cf /backup.tar'")
    return found
