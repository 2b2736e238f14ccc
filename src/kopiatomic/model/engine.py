"""What an engine is told, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kopiatomic.immutable import immutable


@immutable
class Command:
    """What the launcher starts: an argv list, and what it needs in its environment besides ours."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    stand_in: str = ""
    """What it has for each byte of a name that is no text, so that two names may become one; empty where it keeps them."""
    directories: Sequence[str] = ()
    """Where such names are looked for, as it has the paths."""


@immutable
class EngineEnd:
    """How the engine ended: ``status`` as ``os.waitstatus_to_exitcode`` gives it (negative: died by that signal)."""

    status: int
    stopped: bool
    """Whether this run stopped it (signal, time limit)."""


@immutable
class FileProblem:
    """A file that the engine could not save."""

    path: str
    message: str


@dataclass(slots=True)
class Saved:
    """What came of one source: a snapshot or archive of the engine's."""

    source: str
    snapshot_id: str | None = None
    saved: bool = True
    complete: bool = True
    message: str = ""
    """Why it is not saved or not complete; else empty."""
    unchanged: bool = False
    """Whether nothing was read: nothing has changed since this earlier snapshot, which stands for it."""


@dataclass(slots=True)
class EngineResult:
    """What came of the backup, read from what the engine wrote and not from its exit status alone.

    ``saved``: there is a snapshot in the repository (or nothing had changed). ``complete``: all of the view is in it.
    """

    saved: bool
    complete: bool
    message: str
    """Why it is not saved or not complete; else empty."""
    snapshot_id: str | None = None
    root_object: str | None = None
    statistics: dict[str, int] = field(default_factory=dict)
    problems: list[FileProblem] = field(default_factory=list)
    """The first 20."""
    problem_count: int = 0
    sources: list[Saved] = field(default_factory=list)
    """One for each source; empty where the engine keeps nothing of the kind."""
    unchanged: bool = False
    """Whether an earlier snapshot stands for it and nothing was read."""


@immutable
class Progress:
    """How far the engine is; None where it does not say. Sizes in bytes."""

    files: int | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    text: str = ""


@immutable
class Target:
    """Where an engine saves, and as whom, in words and without passwords; empty where it is not known."""

    repository: str = ""
    identity: str = ""
