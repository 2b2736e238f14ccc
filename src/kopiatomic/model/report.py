"""The report of a run: what happened, as data. The console and ``--json`` print it; nothing else says how the run ended."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from kopiatomic import errors
from kopiatomic.errors import EndError, Interrupted, KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.model.changes import Changes
from kopiatomic.model.engine import EngineEnd, EngineResult, Target
from kopiatomic.model.plan import Plan
from kopiatomic.model.record import Recorded
from kopiatomic.model.snapshots import Sets
from kopiatomic.model.verified import Verified


@immutable
class HookRun:
    """A hook of the profile that was run: its moment, where it stands, how long it took (seconds), and what went wrong."""

    moment: str
    place: str
    seconds: float
    error: KopiatomicError | None = None


ONE_INSTANT = "one instant for what was held"
"""What snapshots of several instants are for a writer whose processes were frozen; for others it is not proven."""


@dataclass(slots=True)
class WriterReport:
    """A writer that was to be held still: what the plan says of it, and how it was held."""

    label: str
    text: str
    note: str = ""
    needed: bool | None = True
    """Whether it had to be held; None: a plan could not find out."""
    spanning: bool = False
    """Whether its processes are frozen while snapshots are made that may be of several instants."""
    stall: int | None = None
    """How long it had to wait (ns); None if it was not held."""
    why: str = ""
    """What proves that it was held, or why it was not."""


@dataclass(slots=True)
class EngineReport:
    """What the engine was asked to do, and the outcome."""

    name: str
    version: str | None
    argv: Sequence[str] = ()
    end: EngineEnd | None = None
    result: EngineResult | None = None
    target: Target | None = None
    """Where it saves; known if only that was asked for."""


@dataclass(slots=True)
class Report:
    """The report of a backup, filled in as the run goes on and complete at its end, however it ends."""

    kind: ClassVar[str] = "backup"
    success: ClassVar[str] = "saved"
    """The word for its outcome if it did what was asked for."""
    run_id: str
    root: str
    """The directory on the host that the view is mounted on."""
    series: str = ""
    """What consecutive runs have in common: their view root, or in place what they were asked for."""
    dry_run: bool = False
    plan: Plan | None = None
    changes: Changes | None = None
    """The differences from the last run of the series; None if not asked for, or if they could not be determined."""
    sets: Sets | None = None
    engine: EngineReport | None = None
    frozen_seconds: float | None = None
    """How long the snapshots existed."""
    durations: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    """Why a saved backup does not hold all that was asked for."""
    left_behind: list[str] = field(default_factory=list)
    error: EndError | None = None
    hook_error: KopiatomicError | None = None
    """What went wrong in a hook when the rest was done: ``-q``, after_freeze, after."""
    hooks: list[HookRun] = field(default_factory=list)
    """The hooks of the profile that were run, in this order."""
    writers: list[WriterReport] = field(default_factory=list)
    """The writers that were to be held still, in their order."""
    metadata: Recorded | None = None
    """The metadata record that was made; None if there is none."""
    without_metadata: str = ""
    """Why there is none although nobody said so for this run; empty otherwise."""
    verified: Verified | None = None
    """What came of comparing the backup with the frozen view; None if that was not asked for, or could not be done."""
    skipped: str = ""
    """Why there was nothing to back up, by the word of the hook ``before``; empty if it did not say so."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a part of the run (seconds)."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.durations[name] = self.durations.get(name, 0.0) + time.monotonic() - start

    def one_instant_for(self, writer: WriterReport) -> bool:
        """Whether snapshots that are not proven to share one instant are one instant for a writer (:data:`ONE_INSTANT`).

        In a dry run: whether they would be, as far as a plan can tell.
        """
        if self.dry_run:
            return writer.spanning
        held = writer.spanning and writer.stall is not None
        return held and self.sets is not None and not self.sets.atomic

    @property
    def saved(self) -> bool:
        """Whether a backup is in the repository and is certain to be of the frozen view."""
        return bool(self.engine and self.engine.result and self.engine.result.saved)

    @property
    def exit_code(self) -> int:
        """The documented exit code: 0 only if everything that was asked for was done."""
        if isinstance(self.error, Interrupted):
            return self.error.exit_code
        if self.error is not None:
            return self.error.exit_code
        if not self.dry_run and not self.saved and not self.skipped:
            return errors.FAILED
        if self.left_behind or self.hook_error is not None:
            return errors.UNCLEAN
        return errors.INCOMPLETE if self.incomplete else errors.SAVED

    @property
    def result(self) -> str:
        """The outcome in one word, for hooks and programs."""
        if isinstance(self.error, Interrupted):
            return "interrupted"
        done = "skipped" if self.skipped else self.success
        return {
            errors.SAVED: "planned" if self.dry_run else done,
            errors.INCOMPLETE: "incomplete",
            errors.UNCLEAN: "unclean",
        }.get(self.exit_code, "failed")


@dataclass(slots=True)
class CommandReport(Report):
    """The report of a command that was run in the view: the run ends as the command did, if our part succeeded."""

    kind: ClassVar[str] = "exec"

    @property
    def status(self) -> int | None:
        """The command's end as a shell reports it: its exit status, or 128 + n if signal n ended it. None: it never ran."""
        if self.engine is None or self.engine.end is None:
            return None
        status = self.engine.end.status
        return status if status >= 0 else errors.SIGNAL_BASE - status

    @property
    def exit_code(self) -> int:
        """The command's exit code, unless something worse must be reported."""
        if self.error is not None:
            return self.error.exit_code
        if self.status is None:
            return errors.FAILED
        if self.status == 0 and self.left_behind:
            return errors.UNCLEAN
        if self.status == 0 and self.incomplete:
            return errors.INCOMPLETE
        return self.status

    @property
    def result(self) -> str:
        """The outcome of our part in one word."""
        if isinstance(self.error, Interrupted):
            return "interrupted"
        if self.error is not None or self.status is None:
            return "failed"
        if self.left_behind:
            return "unclean"
        return "incomplete" if self.incomplete else "ran"


@dataclass(slots=True)
class ShellReport(CommandReport):
    """The report of a shell."""

    kind: ClassVar[str] = "shell"


@immutable
class Hold:
    """For which process a view is held, and until when at the latest."""

    process: int
    program: str
    """The process's name; empty if this system does not tell."""
    deadline: float
    """In seconds since the epoch, by the clock when it was set."""


class HoldEnd(StrEnum):
    """What ended the holding of a view, where nothing went wrong."""

    PROCESS = "process"
    """The named process has ended."""
    REQUEST = "request"
    """Another process has asked for it."""
    DEADLINE = "deadline"
    """It came first."""


@dataclass(slots=True)
class HoldReport(Report):
    """The report of a view that was held for another program: it succeeds if the view was there, and frozen, to the end."""

    kind: ClassVar[str] = "hold"
    success: ClassVar[str] = "ran"
    hold: Hold | None = None
    ended_by: HoldEnd | None = None
    held: bool = False

    @property
    def saved(self) -> bool:
        """Whether the view was held to the end."""
        return self.held
