"""How a plan's selection differs from that of the last run in its series. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import field

from kopiatomic.immutable import immutable
from kopiatomic.model.plan import Plan
from kopiatomic.text import first_few, printable


@immutable
class Moved:
    """A dataset that appears at other places in the view than before."""

    name: str
    before: tuple[str, ...]
    now: tuple[str, ...]


@immutable
class Changes:
    """The differences from the selection of the run ``last``. With None no run is recorded and nothing is compared."""

    last: str | None = None
    added: Sequence[str] = field(default=())
    removed: Sequence[str] = field(default=())
    moved: Sequence[Moved] = field(default=())

    @property
    def of_datasets(self) -> str:
        """What was added and removed, in a few words; empty if nothing was."""
        parts = [f"without {first_few(self.removed)}"] * bool(self.removed)
        return " and ".join(parts + [f"with {first_few(self.added)}"] * bool(self.added))

    def lines(self, series: str) -> list[str]:
        """Return all differences, one per line."""
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
    """Return what a plan takes and where it appears, as JSON for the records."""
    places = {taken.dataset.name: taken.places for taken in plan.taken}
    return json.dumps({"taken": list(places), "places": places})


def between(last: tuple[str, str] | None, plan: Plan) -> Changes:
    """Compare a plan with the last run's id and selection, if any. Selections recorded by older versions have no places."""
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
