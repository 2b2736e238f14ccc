"""Variables that are several ways to say one thing to an engine: what one place says by one of them, no other place undoes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

_WAYS = (
    frozenset({"RESTIC_PASSWORD", "RESTIC_PASSWORD_FILE", "RESTIC_PASSWORD_COMMAND"}),
    frozenset({"RESTIC_REPOSITORY", "RESTIC_REPOSITORY_FILE"}),
    frozenset({"BORG_PASSPHRASE", "BORG_PASSCOMMAND", "BORG_PASSPHRASE_FD"}),
    frozenset({"KOPIA_CONFIG_PATH", "XDG_CONFIG_HOME"}),
)
"""Each engine has an order of its own among them: restic takes a file or command before a password, Borg a passphrase before a
command, and kopia its configuration's path before the folder of configurations."""


def without_others(variables: Mapping[str, str], said: Collection[str]) -> dict[str, str]:
    """Return variables without the other ways to say what those of these names say."""
    others = {name for ways in _WAYS if not ways.isdisjoint(said) for name in ways.difference(said)}
    return {name: value for name, value in variables.items() if name not in others}


def combined(variables: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which ``own`` holds against ``variables``, whichever way either says it."""
    return {**without_others(variables, own), **own}
