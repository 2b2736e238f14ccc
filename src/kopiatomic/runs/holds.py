"""The writers that a run holds still: what is found of each, and where in the backup their files lie."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from kopiatomic.errors import KopiatomicError, UsageError, unforeseen
from kopiatomic.filesystems import KINDS
from kopiatomic.hooks import kinds
from kopiatomic.hooks.holder import Around, Finding, Holder, Place, Wanted, not_in_backup
from kopiatomic.immutable import immutable
from kopiatomic.model.plan import Plan, Taken
from kopiatomic.model.report import WriterReport
from kopiatomic.paths import is_at_or_below
from kopiatomic.system import looking

_UNKNOWN = "not known without root"


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


@immutable
class Writer:
    """A writer that was asked for: what a report says of it, and what holds it; None if nothing does."""

    report: WriterReport
    holder: Holder | None = None


def find(
    wanted: Sequence[Wanted], plan: Plan, environment: Mapping[str, str], left_out: Callable[[KopiatomicError], None]
) -> list[Writer]:
    """Ask for all writers that are wanted, in their order; each is found once, in however many words it is wanted.

    ``left_out`` is called where one that is not required cannot be held. Raises KopiatomicError for one that is, and Interrupted.
    """
    around = Around(Places(plan), environment)
    found: list[Writer] = []
    known = Known()
    for one in wanted:
        try:
            findings = _asked(one, around)
        except KopiatomicError as error:
            if one.required:
                raise
            left_out(error)
            found.append(Writer(failed(one, error)))
            continue
        problem = not_in_backup(one, findings)
        if problem is not None:
            if one.required:
                raise problem
            left_out(problem)
        for finding in findings:
            label = known.added(one, finding.label)
            if label is None:
                continue
            if finding.holder is not None:
                finding.holder.label = label
            found.append(Writer(reported(replace(finding, label=label), plan), finding.holder))
    return found


class Known:
    """The writers that have been found, each once and with a label of its own."""

    def __init__(self) -> None:
        self._found: list[tuple[Wanted, str]] = []

    def added(self, one: Wanted, label: str) -> str | None:
        """Add a writer; return its label, or None if it is known already.

        Its label says which one it is among those that are wanted with the same settings; with others it gets a number.
        """
        key = (replace(one, name=""), label)
        if key in self._found:
            return None
        self._found.append(key)
        count = [known for _, known in self._found].count(label)
        return label if count == 1 else f"{label} ({count})"


def foreseen(
    one: Wanted, plan: Plan, environment: Mapping[str, str], *, as_root: bool
) -> tuple[list[WriterReport], KopiatomicError | None]:
    """Return what a plan says of a writer that is wanted, and why it could not be held, as far as that is known.

    Only root sees all that counts: for others nothing is known not to need a hold. Raises UsageError, Interrupted.
    """
    try:
        findings = _asked(one, Around(Places(plan), environment))
    except UsageError:
        raise
    except KopiatomicError as error:
        if as_root:
            return [failed(one, error)], error
        text = f"{_UNKNOWN}: {_why(one, error)}"
        return [WriterReport(str(one), text, needed=None)], error
    reports = []
    for found in findings:
        if found.holder is None and found.in_backup and not as_root:
            text = f"{_UNKNOWN}: only root sees for certain that nothing must be held"
            reports.append(WriterReport(found.label, text, needed=None))
        else:
            reports.append(reported(found, plan))
    return reports, not_in_backup(one, findings)


def reported(found: Finding, plan: Plan) -> WriterReport:
    """Return what a report says of a writer before it is held."""
    needed, spanning = found.holder is not None or not found.in_backup, found.frozen and _has_several_instants(plan)
    why = "" if found.in_backup else found.text
    return WriterReport(found.label, found.text, found.note, needed=needed, spanning=spanning, why=why)


def failed(one: Wanted, error: KopiatomicError) -> WriterReport:
    """Return what a report says of a writer that cannot be held."""
    return WriterReport(str(one), "cannot be held", needed=True, why=_why(one, error))


def _why(one: Wanted, error: KopiatomicError) -> str:
    return error.message.removeprefix(f"--hold {one}: ")


def _has_several_instants(plan: Plan) -> bool:
    """Whether what is taken may not share one instant."""
    return len({_place(taken).instant for taken in plan.taken}) > 1


def _asked(one: Wanted, around: Around) -> list[Finding]:
    """Ask what there is of a writer that is wanted. Raises KopiatomicError, Interrupted."""
    try:
        return kinds.find(one, around)
    except OSError as error:
        raise unforeseen(error) from None
