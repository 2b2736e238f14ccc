"""Where a backup in place has its metadata record, and whether it may have one.

The path is one of ours, the same for all runs of a series. Where no source holds it, it is one more path for the engine; for
kopia that is one more source, with snapshots of its own, to which a person must agree first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from kopiatomic.engines.engine import Agreeing, RecordTerms, Repository
from kopiatomic.engines.numbers import understood
from kopiatomic.engines.written import with_places
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.fstypes import SYSTEM
from kopiatomic.model.plan import Plan
from kopiatomic.model.record import place_in
from kopiatomic.model.report import Report
from kopiatomic.paths import is_at_or_below
from kopiatomic.runs.selecting import Selecting
from kopiatomic.state.records import Records
from kopiatomic.system import host, looking, safety
from kopiatomic.text import printable

T = TypeVar("T")

LOST = "attributes, access control lists, hard links, devices, sockets, directory times"
"""What does not come back without it: what kopia, for whose sake people are asked, loses of most trees."""


def planned(plan: Plan, state_directory: str, series: str) -> Plan:
    """Return a plan in place with the path that its record would have; nothing is made. Raises OSError."""
    return replace(plan, record=place_in(looking.real(os.path.abspath(state_directory)), series))


class Recording:
    """Decides it for one run. ``wanted`` is what its words say: whether, or None if a person is to be asked."""

    def __init__(
        self, selecting: Selecting, attempt: Callable[[Callable[[Records], object]], object], wanted: bool | None
    ) -> None:
        self._selecting = selecting
        self._report: Report = selecting.report
        self._attempt = attempt
        self._wanted = wanted
        self._decided: bool | None = None
        """Whether there is one, once that is decided: a plan may be made again."""

    def applied(self, repository: Repository, selected: Plan) -> Plan:
        """Return a plan in place with its metadata record, or without it; then it is said why. Raises Interrupted."""
        if self._decided is False:
            return selected
        try:
            with understood(self._name):
                placed = self._placed(selected)
                if self._decided is None:
                    apart = bool(placed.record_source) and isinstance(repository, Agreeing)
                    self._decided = not apart or self._agreed(repository, placed)
        except KopiatomicError as error:
            self._without(error.message)
        return placed if self._decided else selected

    def _placed(self, selected: Plan) -> Plan:
        """Return the plan with the directory, which is made. Raises KopiatomicError."""
        directory = self._selecting.options.state_dir
        try:
            return _prepared(planned(selected, directory, self._report.series))
        except OSError as error:
            raise KopiatomicError(
                f"its directory in {printable(directory)} cannot be made: {error.strerror}",
                kind="record-place",
                hint="Choose another state directory: --state-dir.",
            ) from None

    @property
    def _name(self) -> str:
        assert self._report.engine is not None
        return self._report.engine.name

    def _without(self, why: str) -> None:
        self._decided = False
        self._report.without_metadata = why
        self._selecting.warn(f"without a metadata record, so what {self._name} loses will not come back: {why}")

    def _agreed(self, repository: Repository, placed: Plan) -> bool:
        """Whether somebody has agreed, now or before; then do what was agreed to. Raises KopiatomicError, Interrupted."""
        assert isinstance(repository, Agreeing)
        terms = repository.record_terms(placed)
        answer = self._wanted
        if answer is None:
            answer = self._kept(terms)
        if answer is None:
            answer = self._asked(terms)
        if answer is None:
            self._without(
                f"nobody has agreed to it yet. It is for {LOST}; with it {terms.text}. --metadata (in a profile: "
                "metadata = true) agrees to that, --no-metadata (metadata = false) goes without it and does not say so"
            )
        elif answer:
            repository.accept(terms)
        else:
            self._report.without_metadata = "that was the answer when a terminal was asked; --metadata changes it"
        return bool(answer)

    def _kept(self, terms: RecordTerms) -> bool | None:
        series = self._report.series
        found = self._attempt(lambda records: records.agreed(series, terms.repository))
        return None if found is None else bool(found)

    def _asked(self, terms: RecordTerms) -> bool | None:
        """Ask the terminal; what it says is kept for the series. None: there is none."""
        series = self._report.series
        answer = self._selecting.listener.ask(
            f"kopia loses {LOST}. A metadata record brings them back: {terms.text}"
            + (f", by: {printable(' '.join(terms.command))}" if terms.command else "")
            + ". Make it, now and in later runs?"
        )
        if answer is not None:
            self._attempt(lambda records: records.agree(series, terms.repository, answer=answer))
        return answer


def _prepared(plan: Plan) -> Plan:
    """Make the directory, so that it has a place in the snapshots. Raises KopiatomicError, OSError."""
    path = plan.record
    if any(is_at_or_below(path, top) for top in SYSTEM):
        raise KopiatomicError(
            f"its place would be {printable(path)}, and no backup has what is there",
            kind="record-place",
            hint="Choose another state directory: --state-dir.",
        )
    why = safety.unsafe_way(path)
    if why:
        raise KopiatomicError(
            f"others than root could put something in its place: {why}",
            kind="record-place",
            hint="Choose another state directory: --state-dir.",
        )
    looking.call(lambda: os.close(host.here().make_directory(path, 0o700)), path)
    return with_places(plan, [path])
