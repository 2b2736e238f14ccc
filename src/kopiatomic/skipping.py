"""``--skip-unchanged``: a source in which nothing has changed is not read again, its last snapshot stands for it.

The unit is a whole source: all that is seen in it has to be frozen and proven unchanged (``Snapshot.before``), and the snapshot
has to be where it was saved, complete, and saved on the same terms. In doubt it is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kopiatomic.engines import Engine, Job, Remembering
from kopiatomic.errors import UsageError
from kopiatomic.model import EngineResult, Layout, Plan
from kopiatomic.paths import is_at_or_below
from kopiatomic.records import Standing


def require(engine: Engine, layout: Layout) -> Remembering:
    """The engine, if it can do that. Raises UsageError."""
    if layout is not Layout.IN_PLACE or not isinstance(engine, Remembering):
        raise UsageError(
            f"--skip-unchanged is for kopia and --layout in-place, and this is {engine.name}, {layout}",
            kind="usage",
            hint="Leave it out: what has not changed is read again, and hardly anything of it is saved again.",
        )
    return engine


def unchanged(job: Job, engine: Remembering, known: Mapping[str, Standing]) -> Mapping[str, str]:
    """The sources that need not be read, and the snapshots that stand for them. Raises KopiatomicError."""
    candidates = {}
    for source in job.plan.sources:
        last = known.get(source)
        states = _states(job, source, before=True)
        if last is not None and states is not None and states == last.states and engine.terms(source) == last.terms:
            candidates[source] = last.snapshot_id
    return engine.standing(candidates) if candidates else {}


def saved(job: Job, engine: Remembering, result: EngineResult) -> dict[str, Standing | None]:
    """What stands from now on, for each source; None where nothing does."""
    found: dict[str, Standing | None] = {}
    for one in result.sources:
        states = _states(job, one.source, before=False)
        complete = one.saved and one.complete and one.snapshot_id
        found[one.source] = (
            Standing(one.snapshot_id or "", engine.terms(one.source), states) if complete and states else None
        )
    return found


def _states(job: Job, source: str, *, before: bool) -> dict[str, list[str]] | None:
    """Which part of which dataset is seen at each place in a source, and in which state; None where that is not known."""
    if _is_mixed(job.plan, source):
        return None
    snapshots = {(made.filesystem, s.dataset): s for made in job.sets.sets for s in made.snapshots}
    mounted = set(job.mounted)
    found = {}
    for taken in job.plan.taken:
        for place, part in taken.shown:
            if not is_at_or_below(place, source):
                continue
            snapshot = snapshots[taken.dataset.filesystem, taken.dataset.name]
            state = snapshot.before if before else snapshot.after
            if not state or place not in mounted:
                return None
            found[place] = [taken.dataset.name, part, state]
    return found


def _is_mixed(plan: Plan, source: str) -> bool:
    """Whether something is seen in a source that is not frozen."""
    live: Sequence[str] = [*plan.scaffolds, *plan.writable, *(u.point for u in plan.uncovered if u.live)]
    return source == "/" or any(is_at_or_below(point, source) for point in live)
