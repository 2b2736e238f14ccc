"""The kinds of writers that can be held: a line for each. What one needs is imported at its first use."""

from __future__ import annotations

import difflib
import importlib
from typing import cast

from kopiatomic.errors import UsageError
from kopiatomic.hooks.holder import Around, Finding, Kind, Wanted
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

_OTHERS = (
    f"There are: {', '.join(KINDS)} (the last in a profile only). "
    "What has all its files in one directory, as SQLite and Redis, needs none."
)


def of(name: str) -> Kind:
    """Return a kind. Raises UsageError if there is none of this name."""
    if name not in KINDS:
        near = difflib.get_close_matches(name, KINDS, n=1)
        raise UsageError(
            f"--hold {printable(name)}: there is no such kind of writer",
            kind="hold-kind",
            hint=f"Did you mean {near[0]}?" if near else _OTHERS,
        )
    module, value = KINDS[name]
    return cast(Kind, getattr(importlib.import_module(module), value))


def find(wanted: Wanted, around: Around) -> list[Finding]:
    """Ask what there is of a kind that is asked for. Raises as :meth:`kopiatomic.hooks.holder.Kind.find`."""
    return of(wanted.kind).find(wanted, around)
