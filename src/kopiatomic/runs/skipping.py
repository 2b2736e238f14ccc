"""``--skip-unchanged``: a source in which nothing has changed is not read again; its last snapshot stands for it.

The unit is a whole source: all that is seen in it must be frozen and proven unchanged (``Snapshot.before``), and the snapshot
must still exist, be complete, and have been saved on the same terms. In doubt the source is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from kopiatomic.engines.engine import Engine, Job, Remembering, Repository
from kopiatomic.errors import UsageError
from kopiatomic.model.engine import EngineResult
from kopiatomic.model.plan import Layout
from kopiatomic.model.snapshots import Snapshot
from kopiatomic.paths import parents
from kopiatomic.state.records import StandingSnapshot


def require(engine: Engine, layout: Layout) -> None:
    """Make sure that the engine supports that. Raises UsageError."""
    if layout is not Layout.IN_PLACE or not engine.remembers:
        raise UsageError(
            f"--skip-unchanged is for kopia and --layout in-place, and this is {engine.name}, {layout}",
            kind="usage",
            hint="Leave it out: what has not changed is read again, and hardly anything of it is saved again.",
        )


def remembering(repository: Repository) -> Remembering:
    """Return the repository of an engine that supports that (:func:`require`)."""
    assert isinstance(repository, Remembering)
    return repository


def unchanged(job: Job, repository: Remembering, known: Mapping[str, StandingSnapshot]) -> Mapping[str, EngineResult]:
    """Return the sources that need not be read, with the results of the snapshots used instead. Raises KopiatomicError."""
    candidates = {
        source: known[source].snapshot_id
        for source, states in _states(job, lambda snapshot: snapshot.before).items()
        if source in known and states == known[source].states and repository.terms(source) == known[source].terms
    }
    found = repository.standing(candidates) if candidates else {}
    # One without a metadata record, or whose record is gone, does not stand for one with it.
    return {source: result for source, result in found.items() if result.recorded or not job.plan.record}


def saved(job: Job, repository: Remembering, result: EngineResult) -> dict[str, StandingSnapshot | None]:
    """Return what stands from now on, for each source; None if nothing does."""
    states = _states(job, lambda snapshot: snapshot.after)
    return {
        one.source: StandingSnapshot(one.snapshot_id, repository.terms(one.source), states[one.source])
        if one.saved and one.complete and one.snapshot_id and one.source in states
        else None
        for one in result.sources
    }


def _states(job: Job, state_of: Callable[[Snapshot], str]) -> dict[str, dict[str, list[str]]]:
    """Return dataset, part and state at each place in a source; only for sources where all of it is known."""
    plan, mounted = job.plan, set(job.mounted)
    snapshots = {(made.kind, s.dataset): s for made in job.sets.sets for s in made.snapshots}
    found: dict[str, dict[str, list[str]]] = {source: {} for source in plan.sources}
    # What is seen but not frozen; the root is assembled from more than that.
    unknown = {
        *_sources_of([*plan.scaffolds, *plan.writable, *(u.point for u in plan.uncovered if u.live)], found),
        "/",
    }
    for taken in plan.taken:
        state = state_of(snapshots[taken.dataset.kind, taken.dataset.name])
        for place, part in taken.shown:
            for source in _sources_of([place], found):
                found[source][place] = [taken.dataset.name, part, state]
                if not state or place not in mounted:
                    unknown.add(source)
    return {source: states for source, states in found.items() if source not in unknown}


def _sources_of(places: Iterable[str], sources: Collection[str]) -> Iterator[str]:
    """Return the sources that contain these places."""
    return (path for place in places for path in (place, *parents(place)) if path in sources)
