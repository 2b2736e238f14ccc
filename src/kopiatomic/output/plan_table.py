"""A plan as a person reads it: one line per dataset with its verdict, and what is in these trees without being covered."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator

from kopiatomic.model.plan import Judged, Layout, Plan, Verdict
from kopiatomic.model.report import EngineReport
from kopiatomic.output.columns import Cell
from kopiatomic.output.summary import Line, other_filesystems, shielded, uncovered
from kopiatomic.text import printable

MARKS = {True: "+", False: "-"}
"""Taken or not, so that the table is also readable without colour."""


def headline(plan: Plan) -> Line:
    """Return how many datasets are taken, and how many that a user would miss are not."""
    missing = sum(judged.count for judged in plan.left_out if judged.incomplete)
    count = len(plan.taken)
    taken = f"Would save {count} dataset{'' if count == 1 else 's'} {_where(plan)}"
    if missing:
        return "yellow", f"{taken}, but not {missing} that would be missed; nothing was changed"
    return "bold", f"{taken}; nothing was changed"


def _where(plan: Plan) -> str:
    if plan.layout is Layout.IN_PLACE:
        return f"in place, as {', '.join(map(printable, plan.sources))}"
    return f"below {printable(plan.root)}"


def table(plan: Plan) -> list[list[Cell]]:
    """Return the verdicts, below a header: name, verdict, and where the dataset appears or why it does not."""
    heads = ["", "DATASET", "VERDICT", "WHERE IT APPEARS, OR WHY NOT"]
    rows: list[list[Cell]] = [[("bold", head) for head in heads]]
    for judged in plan.judged:
        taken = judged.verdict is Verdict.TAKEN
        style = "green" if taken else ("red" if judged.incomplete else "")
        name, place = printable(judged.name), printable(where(plan, judged))
        rows.append([(style, MARKS[taken]), ("", name), (style, str(judged.verdict)), ("", place)])
    return rows


def where(plan: Plan, judged: Judged) -> str:
    """Return where a taken dataset appears and where that comes from; otherwise the reason."""
    if judged.verdict is not Verdict.TAKEN:
        return judged.reason + (" (a run ends with exit code 3 for it)" if judged.incomplete else "")
    places = ", ".join(plan.path(place) for place in judged.places)
    usual = judged.places == (judged.mountpoint,)
    return places if usual else f"{places} ({judged.reason})"


def lines(plan: Plan, engine: EngineReport, *, verbose: bool) -> Iterator[Line]:
    """Yield what follows the table: what is missing from it, what is left out by reason, what else is in these trees."""
    others = other_filesystems(plan)
    yield from (("red", f"Missing: {line}") for line in dict.fromkeys(j.line for j in plan.left_out if j.line))
    counts = Counter(str(judged.verdict) for judged in plan.left_out)
    if counts:
        reasons = ", ".join(f"{verdict} {count}" for verdict, count in counts.most_common())
        yield "", f"Left out: {counts.total()} ({reasons})"
    if others:
        yield (
            "bold",
            "In these trees and not frozen:"
            if any(u.live for u in others)
            else "In these trees and not in the backup:",
        )
        yield from (("", f"  {uncovered(u)}") for u in others)
    shields = shielded(plan)
    if shields:
        yield "bold", "Not as it is on the host, so that nobody can move what is backed up:"
        yield from (("", f"  {line}") for line in shields)
    if verbose:
        yield "bold", "What the verdicts are from:"
        for judged in plan.judged:
            facts = ", ".join(f"{key} {printable(value)}" for key, value in judged.facts.items())
            yield "", f"  {printable(judged.name)}: {judged.reason}; {facts}"
            if judged.hint:
                yield "", f"    {judged.hint}"
    if engine.argv:
        yield "", "Command:  " + shlex.join(map(printable, engine.argv))
