"""Control groups that dead runs have left frozen: thawed by the record, where the thawer was killed with everything else.

This module satisfies :class:`kopiatomic.filesystems.backends.Leftovers`.

What somebody else froze after our run had recorded its intent and before it was killed cannot be told from ours, and is thawed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from kopiatomic.errors import KopiatomicError
from kopiatomic.model.leftovers import Intent, Leftover
from kopiatomic.state.liveness import Life
from kopiatomic.state.ownership import Mark
from kopiatomic.system import cgroups, host
from kopiatomic.system.cgroups import Freezer, GoneError, Group

KIND = "cgroup"
"""The kind of an intent to freeze: ``place`` is where the groups are mounted, ``name`` the group's path, ``origin`` the boot,
``identity`` the inode of its directory.
"""


def recorded(run_id: str, intents: Sequence[Intent], /) -> list[Leftover]:
    """Return the groups that a dead run has recorded and that are still to be frozen. Raises KopiatomicError, OSError."""
    boot = host.here().boot_id()
    found = []
    for intent in intents:
        # No group outlives its boot, and another of the same path has another inode.
        group = _still_there(intent.name, intent.identity) if intent.origin == boot else None
        if group is not None and _is_asked(group):
            command = f"echo 0 > {group.directory}/cgroup.freeze"
            proof = "recorded, with its inode, before it was frozen"
            found.append(
                Leftover(run_id, KIND, intent.place, intent.name, proof, command, identity=intent.identity or "")
            )
    return found


def unrecorded(_names: Iterable[str] | None, _life: Callable[[Mark], Life], _problems: list[str], /) -> list[Leftover]:
    """Return nothing: a frozen group does not say by whom it was frozen."""
    return []


def remove(leftovers: Sequence[Leftover], /) -> list[Leftover]:
    """Thaw them, and return those that are still to be frozen, with the problem. Raises OSError."""
    left = []
    for leftover in leftovers:
        group = _still_there(leftover.name, leftover.identity)
        if group is not None and _with_freezer(group, _thaw):
            left.append(replace(leftover, problem="something freezes it again"))
    return left


def _still_there(path: str, identity: str | None) -> Group | None:
    try:
        group = cgroups.group_at(path)
    except KopiatomicError as error:
        if error.kind == "hold-no-group":
            return None
        raise
    return group if str(group.identity) == identity else None


def _is_asked(group: Group) -> bool:
    return _with_freezer(group, Freezer.is_asked)


def _thaw(freezer: Freezer) -> bool:
    """Thaw it; return whether it is still to be frozen."""
    freezer.ask(frozen=False)
    return freezer.is_asked()


def _with_freezer(group: Group, act: Callable[[Freezer], bool]) -> bool:
    """Return what is found out about a group; False if it has been removed. Raises OSError."""
    try:
        freezer = Freezer(group)
        try:
            return act(freezer)
        finally:
            freezer.close()
    except (GoneError, FileNotFoundError):
        return False
