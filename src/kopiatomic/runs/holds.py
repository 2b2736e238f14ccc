"""The writers that a run holds still: what is found of each, and where in the backup their files lie."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems import KINDS
from kopiatomic.hooks import kinds
from kopiatomic.hooks.holder import Around, Finding, Place, Wanted, require_in_backup
from kopiatomic.model.plan import Plan, Taken
from kopiatomic.paths import is_at_or_below
from kopiatomic.system import looking


class Places:
    """Tells where in a plan's datasets a path without links lies."""

    def __init__(self, plan: Plan) -> None:
        # The deepest first: a dataset that is mounted in another has what is below it.
        self._places = sorted(
            ((place, taken) for taken in plan.taken for place, _ in taken.asked),
            key=lambda one: len(one[0]),
            reverse=True,
        )

    def __call__(self, path: str) -> Place | None:
        """Return the place of an absolute path; None if it is not in the backup. Raises KopiatomicError, OSError, Interrupted."""
        found = next((one for one in self._places if is_at_or_below(path, one[0])), None)
        if found is None:
            return None
        place, taken = found
        # What is mounted or nested in between has another number (st_dev), on ZFS and Btrfs alike.
        here, there = looking.call(lambda: (_device(place), _device(path)), path)
        return _place(taken) if here == there else None


def _device(path: str) -> int:
    looking.at(path)
    return os.stat(path).st_dev


def _place(taken: Taken) -> Place:
    dataset = taken.dataset
    whole = KINDS[dataset.kind].one_instant
    return Place(dataset.name, f"{dataset.kind} {dataset.pool}" + ("" if whole else f" {dataset.name}"))


def find(
    wanted: Sequence[Wanted], plan: Plan, environment: Mapping[str, str], left_out: Callable[[KopiatomicError], None]
) -> Iterator[Finding]:
    """Ask for all writers that are wanted, in their order.

    ``left_out`` is called where one that is not required cannot be held. Raises KopiatomicError for one that is, and Interrupted.
    """
    around = Around(Places(plan), environment)
    for one in wanted:
        try:
            findings = kinds.find(one, around)
            require_in_backup(one, findings)
        except KopiatomicError as error:
            if one.required:
                raise
            left_out(error)
        else:
            yield from findings
