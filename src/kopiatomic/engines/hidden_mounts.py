"""What is hidden from a backup in place but was in the engine's last one, so that it would look as if it had been deleted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from kopiatomic.engines.written import source_of
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.plan import Plan
from kopiatomic.text import printable


def warnings(engine: str, plan: Plan, held: Callable[[Mapping[str, str]], Collection[str]]) -> list[str]:
    """Name the hidden mounts in which the last backup shows something.

    ``held`` gets their paths with the source of each, and returns the paths in which it does. It is only called if there are any;
    if it cannot tell (KopiatomicError), that is a warning as well.
    """
    hidden = {
        u.point: (u.fstype, source)
        for u in plan.uncovered
        if not u.live and (source := source_of(u.point, plan)) is not None
    }
    if not hidden:
        return []
    try:
        found = held({point: source for point, (_, source) in hidden.items()})
    except KopiatomicError as error:
        what = printable(next(iter(hidden))) + (f" and {len(hidden) - 1} more" if len(hidden) > 1 else "")
        return [
            f"{what}: hidden from this backup, and whether {engine} had it in the last one is not known: {error.message}"
        ]
    return [
        f"{printable(point)} ({printable(fstype)}) is hidden from this backup, and was in {engine}'s last one of "
        f"{printable(source)}: there it will look as if it had been deleted"
        for point, (fstype, source) in hidden.items()
        if point in found
    ]
