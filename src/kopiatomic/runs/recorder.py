"""What one run records, step by step. Where the state database cannot be used, the user is warned once and the run continues.

Where safety needs the record (the kernel ties no Btrfs snapshot, and no mount on FreeBSD), :meth:`Recorder.require` refuses to
continue without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from kopiatomic import __version__, platforms
from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems import KINDS
from kopiatomic.model import changes
from kopiatomic.model.leftovers import Intent
from kopiatomic.model.plan import Plan
from kopiatomic.model.report import Report
from kopiatomic.output.document import document
from kopiatomic.secrets.masking import Secrets
from kopiatomic.state import liveness
from kopiatomic.state.records import INTERRUPTED, Records, RunRecord
from kopiatomic.state.state_file import NewerStateError, StateError
from kopiatomic.text import printable

T = TypeVar("T")


class Recorder:
    """The record of one run. Problems with it go to ``warn``."""

    def __init__(self, records: Records, report: Report, secrets: Secrets, warn: Callable[[str], None]) -> None:
        self.records = records
        self._report = report
        self._secrets = secrets
        self._warn = warn
        self.problem: StateError | NewerStateError | None = None
        """Why there is no record."""
        self._begun = False
        self._run: RunRecord
        self._began = time.monotonic()

    def begin(self, command: str, keep: float, *, schedule: str, profile: str) -> None:
        """Begin the record. Raises NewerStateError."""
        self._run = RunRecord(
            self._report.run_id,
            __version__,
            command,
            self._report.series,
            time.time(),
            ended=None,
            result=None,
            exit_code=None,
            document=None,
            schedule=schedule,
            mark_text=str(liveness.mark(self._report.run_id)),
            profile=profile,
        )
        self.attempt(lambda: self.records.begin(self._run, keep=keep))
        self._begun = True

    def require(self, plan: Plan) -> None:
        """Refuse a plan that is not safe without a record. Raises StateError."""
        untied = platforms.here().outlives or any(not KINDS[taken.dataset.kind].is_tied for taken in plan.taken)
        if self.problem is not None and untied:
            raise self.problem

    def intend(self, intents: Sequence[Intent], plan: Plan) -> None:
        """Record what is about to be made. Raises StateError where that is needed and impossible."""
        run = self._report
        # Only a backup has a history in which something may be missing.
        compared = run.kind == "backup"
        last = self.attempt(lambda: self.records.last_selection(run.series, run.run_id)) if compared else None
        if compared and self.problem is None:
            run.changes = changes.between(last, plan)
            if run.changes.of_datasets:
                self._warn(
                    f"the last run under {printable(run.series)} took something else; this one is {run.changes.of_datasets}: "
                    "the history of that path shows datasets come and go (--name gives a selection a history of its own)"
                )
        self.attempt(lambda: self.records.intend(run.run_id, intents, changes.selection(plan)))
        self.require(plan)

    def intend_also(self, intents: Sequence[Intent]) -> None:
        """Record more while the run goes on: what must not be made without a record. Works in any process of the run.

        Raises StateError, NewerStateError.
        """
        self.records.intend_also(self._report.run_id, intents)

    def made(self) -> None:
        """Add what identifies the snapshots that were made."""
        sets = self._report.sets
        assert sets is not None
        # The run goes on, so its result is not known yet.
        document = {**self._document(), "result": None, "exit_code": None}
        self.attempt(lambda: self.records.made(self._report.run_id, sets, document))

    def gone(self) -> None:
        """Record that nothing is left of what was intended."""
        self._at_the_end(lambda: self.records.forget(self._report.run_id))

    def end(self) -> None:
        """Record how the run ended."""
        report = self._report
        ended = replace(
            self._run,
            took=time.monotonic() - self._began,
            result=report.result,
            exit_code=report.exit_code,
            document=self._document(),
        )
        aside = bool(self.records.warnings)
        known = self._at_the_end(lambda: self.records.end(ended))
        aside = self._pass_on() or aside
        if known is False and not aside and self.problem is None:
            self._warn(f"the record of this run in {printable(self.records.path)} was removed while it went on")

    def _at_the_end(self, call: Callable[[], T]) -> T | None:
        """Try even if an earlier call failed: the obstacle may be gone."""
        try:
            return call()
        except (StateError, NewerStateError) as error:
            if self.problem is None:
                self.problem = error
                self._warn(f"{error.message}; so the end of this run is not recorded: {error.hint}")
            return None

    def end_as_orphan(self, left: Sequence[str]) -> None:
        """Record the end in the keeper, when the main process is gone. Problems go unreported: no user is left to read them."""
        try:
            if not left:
                self.records.forget(self._report.run_id)
            self.records.end_dead(self._report.run_id, INTERRUPTED)
        except KopiatomicError:
            return

    def _document(self) -> dict[str, object]:
        hidden: dict[str, object] = self._secrets.hide_in(document(self._report))
        return hidden

    def attempt(self, call: Callable[[], T]) -> T | None:
        """Make a call to the records, unless one has failed before.

        Raises NewerStateError only before the run is recorded: a newer version that takes over meanwhile must not fail the run.
        """
        if self.problem is not None:
            return None
        try:
            result = call()
        except (StateError, NewerStateError) as error:
            if isinstance(error, NewerStateError) and not self._begun:
                raise
            self.problem = error
            self._warn(
                f"{error.message}; this run has no record: if all its processes are killed while the snapshots are made, "
                "only 'kopiatomic recover' finds what they left, by what marks it as ours"
            )
            result = None
        self._pass_on()
        return result

    def _pass_on(self) -> bool:
        """Pass on the warnings of the records. Return whether there were any."""
        any_came = bool(self.records.warnings)
        while self.records.warnings:
            self._warn(self.records.warnings.pop(0))
        return any_came
