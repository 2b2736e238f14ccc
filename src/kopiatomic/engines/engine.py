"""What an engine is to a run, and what it is handed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

from kopiatomic.engines.names import Equal
from kopiatomic.engines.written import Own
from kopiatomic.immutable import immutable
from kopiatomic.model.engine import Command, EngineEnd, EngineResult, Progress, Target
from kopiatomic.model.plan import Plan, Refusal
from kopiatomic.model.snapshots import Sets
from kopiatomic.paths import below, is_at_or_below
from kopiatomic.text import printable


@immutable
class Job:
    """What an engine is asked to back up."""

    run_id: str
    plan: Plan
    sets: Sets
    mounted: Sequence[str]
    """The places (absolute, below the root) that really are mounted in the view."""
    filled: Collection[str]
    """Those of them whose top directory holds files, directories or links."""
    equal: Equal = Equal()
    """Names in the view that are one for an engine which does not keep bytes that are no text; known at the end."""
    unchanged: Mapping[str, str] = field(default_factory=dict)
    """The sources that need not be read, and the snapshots that stand for them (``--skip-unchanged``)."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Those that must be read."""
        return tuple(source for source in self.plan.sources if source not in self.unchanged)

    def places(self, source: str) -> dict[str, str]:
        """The places that are mounted in a source, by their path below it (``/`` is the source itself)."""
        found = {}
        for place in self.mounted:
            path = self.plan.path(place)
            if is_at_or_below(path, source):
                found[f"/{below(path, source)}"] = place
        return found

    def started(self, form: str) -> str:
        """The instant to the second, in UTC, in a form of strftime(3)."""
        return datetime.fromtimestamp(self.sets.started_ns // 10**9, UTC).strftime(form)

    def named(self, place: str) -> str:
        """A place and its dataset, in words."""
        dataset = next((t.dataset.name for t in self.plan.taken if place in t.places), None)
        return printable(place) + (f" ({printable(dataset)})" if dataset is not None else "")

    @property
    def volumes(self) -> Mapping[str, int]:
        """The places of volumes, which are files, and their sizes (bytes)."""
        sizes = {snapshot.dataset: snapshot.size for made in self.sets.sets for snapshot in made.snapshots}
        return {
            t.place: size for t in self.plan.taken if t.dataset.volume and (size := sizes[t.dataset.name]) is not None
        }


class Engine(Protocol):
    """What the run needs of a backup program.

    Order of the calls: ``refuses``, ``check``, ``command``, ``feed`` for each piece of output, ``judge`` when it has ended,
    ``finish`` when the snapshots are gone. None of them changes anything but through the program itself.
    """

    @property
    def name(self) -> str:
        """The engine's name in words and JSON."""

    @property
    def version(self) -> str | None:
        """Its version, known after ``check``; None where it was not asked."""

    @property
    def secrets(self) -> Sequence[str]:
        """Passwords that stood among its options: none of them may be shown or recorded."""

    def refuses(self, plan: Plan) -> list[Refusal]:
        """What of a plan it cannot save, as can be told from the plan alone; the plan is made again without that."""

    def breaks_at(self, folder: str) -> bool:
        """Whether a folder of this name ends its backup, even an empty one."""

    def check(self, plan: Plan) -> list[str]:
        """Make sure that it can work, before anything is made. Returns warnings; raises KopiatomicError."""

    @property
    def target(self) -> Target:
        """The repository that it has found, and what its snapshots there go by. Known after ``check``."""

    def own(self, plan: Plan) -> list[Own]:
        """The directories that it writes to. Called after ``check``; of interest in place."""

    def skips(self, path: str) -> bool:
        """Whether it surely never reads a directory of the user's as data (``--writable``)."""

    def command(self, job: Job) -> Command:
        """The command that backs the view up."""

    def describe(self, plan: Plan) -> Sequence[str]:
        """The argv that a run of this plan would start, for ``-n``: no secrets, what is not known yet in words."""

    def feed(self, stream: str, data: bytes) -> list[str | Progress]:
        """Take output (``stream`` is "stdout" or "stderr"); returns lines to pass through and progress found in it."""

    def judge(self, job: Job, end: EngineEnd) -> EngineResult:
        """What came of it, from the engine's own words. Called while nothing is removed yet only for its messages."""

    def finish(self) -> list[str]:
        """What was put off until the snapshots are gone (maintenance). Returns warnings."""


@runtime_checkable
class Remembering(Protocol):
    """An engine that can tell whether an earlier snapshot may stand for a new one. Called after ``check``."""

    def terms(self, source: str) -> str:
        """All that a snapshot depends on beside the files: where it is saved, policies, options, versions; as a digest."""

    def standing(self, snapshots: Mapping[str, str]) -> Mapping[str, str]:
        """Those of the snapshots (by source) that are in the repository, complete. Raises KopiatomicError."""


KOPIA, RESTIC, BORG = "kopia", "restic", "borg"
