"""The writers that a run holds still: what is found of each, and where in the backup their files lie."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from kopiatomic.errors import KopiatomicError, UsageError, unforeseen
from kopiatomic.filesystems import KINDS
from kopiatomic.hooks import kinds
from kopiatomic.hooks.holder import Around, Finding, Place, Wanted, require_in_backup
from kopiatomic.model.plan import Plan, Taken
from kopiatomic.model.report import WriterReport
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
            findings = _asked(one, around)
            require_in_backup(one, findings)
        except KopiatomicError as error:
            if one.required:
                raise
            left_out(error)
        else:
            yield from findings


def foreseen(
    one: Wanted, plan: Plan, environment: Mapping[str, str], *, as_root: bool
) -> tuple[list[WriterReport], KopiatomicError | None]:
    """Return what a plan says of a writer that is wanted, and why it could not be held, as far as that is known.

    Only root sees all that counts: for others nothing is known not to need a hold. Raises UsageError, Interrupted.
    """
    unknown = "not known" if as_root else "not known without root"
    try:
        findings = _asked(one, Around(Places(plan), environment))
    except UsageError:
        raise
    except KopiatomicError as error:
        why = error.message.removeprefix(f"--hold {one}: ")
        return [WriterReport(str(one), f"{unknown}: {why}", needed=None)], error
    reports = []
    for found in findings:
        if found.holder is None and found.in_backup and not as_root:
            text = f"{unknown}: only root sees for certain that nothing must be held"
            reports.append(WriterReport(found.label, text, needed=None))
        else:
            reports.append(reported(found, plan))
    try:
        require_in_backup(one, findings)
    except KopiatomicError as error:
        return reports, error
    return reports, None


def reported(found: Finding, plan: Plan) -> WriterReport:
    """Return what a report says of a writer before it is held."""
    needed, spanning = found.holder is not None, found.frozen and _has_several_instants(plan)
    return WriterReport(found.label, found.text, found.note, needed=needed, spanning=spanning)


def _has_several_instants(plan: Plan) -> bool:
    """Whether what is taken may not share one instant."""
    return len({_place(taken).instant for taken in plan.taken}) > 1


def _asked(one: Wanted, around: Around) -> list[Finding]:
    """Ask what there is of a writer that is wanted. Raises KopiatomicError, Interrupted."""
    try:
        return kinds.find(one, around)
    except OSError as error:
        raise unforeseen(error) from None
