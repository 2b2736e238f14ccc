"""The kinds of writers that can be held: a line for each. What one needs is imported at its first use."""

from __future__ import annotations

import importlib
from typing import cast

from kopiatomic.errors import UsageError
from kopiatomic.hooks.holder import Around, Finding, Kind, Wanted, check_settings
from kopiatomic.text import printable

KINDS: dict[str, tuple[str, str]] = {
    "postgresql": ("kopiatomic.hooks.postgresql", "POSTGRESQL"),
    "mariadb": ("kopiatomic.hooks.mariadb", "MARIADB"),
    "mysql": ("kopiatomic.hooks.mariadb", "MYSQL"),
    "unit": ("kopiatomic.hooks.freezer", "UNIT"),
    "container": ("kopiatomic.hooks.freezer", "CONTAINER"),
    "cgroup": ("kopiatomic.hooks.freezer", "CGROUP"),
    "command": ("kopiatomic.hooks.command", "COMMAND"),
}
"""By name: the module, and the name of its value."""


def of(name: str) -> Kind:
    """Return a kind. Raises UsageError if there is none of this name."""
    if name not in KINDS:
        raise UsageError(
            f"--hold {printable(name)}: there is no such kind of writer",
            kind="hold-kind",
            hint=f"There are: {', '.join(KINDS)}.",
        )
    module, value = KINDS[name]
    return cast(Kind, getattr(importlib.import_module(module), value))


def find(wanted: Wanted, around: Around) -> list[Finding]:
    """Ask what there is of a kind that is asked for. Raises as :meth:`kopiatomic.hooks.holder.Kind.find`."""
    kind = of(wanted.kind)
    check_settings(kind, wanted)
    return kind.find(wanted, around)
