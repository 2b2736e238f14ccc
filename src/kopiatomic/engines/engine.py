"""The interface between a run and an engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

from kopiatomic.engines.names import OddNames
from kopiatomic.engines.written import WrittenDirectory
from kopiatomic.immutable import immutable
from kopiatomic.model.engine import Command, EngineEnd, EngineResult, Progress, Target
from kopiatomic.model.plan import Plan, Refusal
from kopiatomic.model.record import Losses
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
    """The places (absolute, below the root) that are actually mounted in the view."""
    filled: Collection[str]
    """Those of them whose top directory contains files, directories or links."""
    reads_all: bool = False
    """Whether the engine is to read every file, whatever it takes for unchanged: a comparison has shown that it was wrong."""
    unchanged: Mapping[str, EngineResult] = field(default_factory=dict)
    """The sources that need not be read, and the results of the snapshots used instead (``--skip-unchanged``)."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that must be read."""
        return tuple(source for source in self.plan.sources if source not in self.unchanged)

    @property
    def given(self) -> tuple[str, ...]:
        """All paths that the engine is given, if it must read anything: those, and the metadata record if no source holds it."""
        return tuple(path for path in self.plan.given if path not in self.unchanged)

    @property
    def record(self) -> str:
        """The path at which the engine finds the directory of the metadata record; empty if there is none."""
        return self.plan.path(self.plan.record) if self.plan.record else ""

    def places(self, source: str) -> dict[str, str]:
        """Return the places that are mounted in a source, by their path below it (``/`` is the source itself)."""
        found = {}
        for place in self.mounted:
            path = self.plan.path(place)
            if is_at_or_below(path, source):
                found[f"/{below(path, source)}"] = place
        return found

    def started(self, form: str) -> str:
        """Return the instant to the second, in UTC, in a form of strftime(3)."""
        return datetime.fromtimestamp(self.sets.started_ns // 10**9, UTC).strftime(form)

    def named(self, place: str) -> str:
        """Return a place and its dataset, in words."""
        dataset = next((t.dataset.name for t in self.plan.taken if place in t.places), None)
        return printable(place) + (f" ({printable(dataset)})" if dataset is not None else "")

    @property
    def volumes(self) -> Mapping[str, int]:
        """The places of volumes, which are files, and their sizes (bytes)."""
        sizes = {(made.kind, snapshot.dataset): snapshot.size for made in self.sets.sets for snapshot in made.snapshots}
        return {
            t.place: size
            for t in self.plan.taken
            if t.dataset.volume and (size := sizes[t.dataset.kind, t.dataset.name]) is not None
        }


class Engine(Protocol):
    """A backup program with the user's words for it. Nothing has been asked yet, and none of it changes.

    What follows from it: :meth:`check` gives the :class:`Repository`, that gives one :class:`Backup` for a job.
    """

    @property
    def name(self) -> str:
        """The engine's name in messages and JSON."""

    @property
    def secrets(self) -> Sequence[str]:
        """Passwords among its options: none of them may be shown or recorded."""

    @property
    def variables(self) -> tuple[str, ...]:
        """How the variables begin that configure it, and where it saves."""

    def pinned(self, environment: Mapping[str, str]) -> Mapping[str, str]:
        """Return variables that say explicitly what it would find by an environment, so that it depends on nothing else."""

    def by_hand(self, environment: Mapping[str, str]) -> Mapping[str, str]:
        """Return variables with which a person's own call of the program finds the same repository."""

    @property
    def common(self) -> Sequence[Sequence[str]]:
        """The options that every command of the program gets, each as its words: which repository, how to open it."""

    @property
    def remembers(self) -> bool:
        """Whether its repositories are :class:`Remembering`."""

    @property
    def records_apart(self) -> bool:
        """Whether a metadata record in place is a snapshot of its own where no source holds it: :class:`Agreeing`."""

    def refuses(self, plan: Plan) -> list[Refusal]:
        """Return what it cannot save, as far as the plan alone shows; the plan is then made again without that."""

    def breaks_at(self, folder: str) -> bool:
        """Whether a directory of this name, even an empty one, ends its backup."""

    def describe(self, plan: Plan) -> Sequence[str]:
        """Return the argv that a run of this plan would start, for ``-n``: no secrets, unknown parts in words."""

    def check(self, plan: Plan) -> Repository:
        """Make sure that it can back up a plan, before anything is made. Raises KopiatomicError."""


class Repository(Protocol):
    """The repository that an engine found when it was checked, and the program that answered for it."""

    @property
    def version(self) -> str | None:
        """The program's version; None if it is not known."""

    @property
    def warnings(self) -> Sequence[str]:
        """What the check warns of."""

    @property
    def target(self) -> Target:
        """Where it is, and the identity of its snapshots there."""

    @property
    def losses(self) -> Losses | None:
        """What it does not keep of what it saves; None if that is not known."""

    def written(self, plan: Plan) -> list[WrittenDirectory]:
        """Return the directories that the engine writes to; matters in place. The plan may hold less than the one checked."""

    def skips(self, path: str) -> bool:
        """Whether the engine is certain never to read one of the user's directories as data (``--writable``)."""

    def backup(self, job: Job) -> Backup:
        """Return the backup of a view that is mounted."""


class Backup(Protocol):
    """One backup, with what the engine has written so far.

    Order of the calls: ``command`` (unless every source is unchanged), ``feed`` for each piece of output, ``judge`` when it has
    ended, ``finish`` when the snapshots are gone. None of them changes anything except through the program itself.
    """

    def command(self) -> Command:
        """Return the command that backs up the view."""

    def feed(self, stream: str, data: bytes) -> list[str | Progress]:
        """Process output (``stream`` is "stdout" or "stderr"); return lines to pass through and any progress found."""

    def judge(self, end: EngineEnd, odd: OddNames) -> EngineResult:
        """Return the outcome, from the engine's own output.

        ``odd``: names in the view that become the same for an engine that does not keep bytes that are not text, or that made
        it fail.
        """

    def finish(self) -> list[str]:
        """Do what was postponed until the snapshots are gone (maintenance). Returns warnings."""


@immutable
class RecordTerms:
    """What a repository does for a metadata record in place that is a snapshot of its own: a person must agree to it first.

    ``repository`` distinguishes it from others. ``text`` says it in words, and ``command`` how it would be done by hand.
    """

    repository: str
    text: str
    command: Sequence[str]
    """Empty if nothing must be changed."""


@runtime_checkable
class Agreeing(Repository, Protocol):
    """A repository in which a metadata record in place is a snapshot of its own, with a policy that its runs set."""

    def record_terms(self, plan: Plan) -> RecordTerms:
        """Return what is agreed to. Raises KopiatomicError."""

    def accept(self, terms: RecordTerms) -> None:
        """Do what was agreed to. Raises KopiatomicError."""


@runtime_checkable
class Remembering(Repository, Protocol):
    """A repository that can tell whether an earlier snapshot can be used instead of a new one."""

    def terms(self, source: str) -> str:
        """Return a digest of all that a snapshot depends on except the files: repository, policies, options, versions."""

    def standing(self, snapshots: Mapping[str, str]) -> Mapping[str, EngineResult]:
        """Return the results of those snapshots (ids by source) that are complete in the repository. Raises KopiatomicError."""


KOPIA, RESTIC, BORG = "kopia", "restic", "borg"
