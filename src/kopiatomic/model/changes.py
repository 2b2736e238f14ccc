"""What a plan takes that the last run of its series did not, and the other way round. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import field

from kopiatomic.immutable import immutable
from kopiatomic.model.plan import Plan
from kopiatomic.text import first_few, printable


@immutable
class Moved:
    """A dataset that appears at other places of the view than before."""

    name: str
    before: tuple[str, ...]
    now: tuple[str, ...]


@immutable
class Changes:
    """A selection beside that of the run ``last``; None where none is recorded, and then nothing is compared."""

    last: str | None = None
    added: Sequence[str] = field(default=())
    removed: Sequence[str] = field(default=())
    moved: Sequence[Moved] = field(default=())

    @property
    def of_datasets(self) -> str:
        """What was added and removed, in a few words; empty where it is the same."""
        parts = [f"without {first_few(self.removed)}"] * bool(self.removed)
        return " and ".join(parts + [f"with {first_few(self.added)}"] * bool(self.added))

    def lines(self, series: str) -> list[str]:
        """All of it, a line each."""
        where = printable(series)
        if self.last is None:
            return [f"No run under {where} is recorded."]
        lines = [f"  new: {printable(name)}" for name in self.added]
        lines += [f"  not any more: {printable(name)}" for name in self.removed]
        lines += [f"  {printable(m.name)}: {_list(m.now)} and no longer {_list(m.before)}" for m in self.moved]
        against = f"the last run under {where} ({self.last})"
        return [f"Against {against}:", *lines] if lines else [f"The same datasets at the same places as in {against}."]


def _list(places: Sequence[str]) -> str:
    return "at " + ", ".join(map(printable, places))


def selection(plan: Plan) -> str:
    """What a plan takes and where that appears, for the records."""
    places = {taken.dataset.name: taken.places for taken in plan.taken}
    return json.dumps({"taken": list(places), "places": places})


def between(last: tuple[str, str] | None, plan: Plan) -> Changes:
    """Compare a plan with the last run's id and selection, if there is one. An older version's has no places."""
    if last is None:
        return Changes()
    run_id, text = last
    known = json.loads(text)
    before, now = set(known["taken"]), {taken.dataset.name: taken.places for taken in plan.taken}
    places: Mapping[str, Sequence[str]] = known.get("places", {})
    return Changes(
        last=run_id,
        added=sorted(now.keys() - before),
        removed=sorted(before - now.keys()),
        moved=[
            Moved(name, tuple(places[name]), now[name])
            for name in sorted(now.keys() & places.keys())
            if tuple(places[name]) != now[name]
        ],
    )
