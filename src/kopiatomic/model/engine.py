"""What is passed to an engine, and what it reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field

from kopiatomic.immutable import immutable


@immutable
class Command:
    """What the launcher starts: an argv list, and the variables it needs in addition to our environment."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    stand_in: str = ""
    """What it writes for each byte of a name that is not text, so that two may become the same; empty if it keeps them."""
    directories: Sequence[str] = ()
    """Where to look for such names, with paths as the command sees them."""
    breaks_at: str = ""
    """The ending of a directory's name that makes it fail, which is looked for there as well; empty without one."""


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


@immutable
class Saved:
    """The outcome for one source: a snapshot or archive in the engine's repository."""

    source: str
    snapshot_id: str | None = None
    saved: bool = True
    complete: bool = True
    message: str = ""
    """Why it is not saved or not complete; otherwise empty."""
    unchanged: bool = False
    """Whether nothing was read, because nothing has changed since this earlier snapshot."""


@immutable
class EngineResult:
    """The outcome of the backup, read from what the engine wrote and not from its exit status alone.

    ``saved``: there is a snapshot in the repository (or nothing had changed). ``complete``: it holds the whole view.
    """

    saved: bool
    complete: bool
    message: str
    """Why it is not saved or not complete; otherwise empty."""
    snapshot_id: str | None = None
    root_object: str | None = None
    statistics: Mapping[str, int] = field(default_factory=dict)
    problems: Sequence[FileProblem] = ()
    """The first 20."""
    problem_count: int = 0
    sources: Sequence[Saved] = ()
    """One per source; empty if the engine does not keep separate sources."""
    unchanged: bool = False
    """Whether nothing was read and an earlier snapshot is used instead."""
    recorded: bool = False
    """Whether the metadata record is in it, by the engine's own list."""


@immutable
class Progress:
    """How far the engine has got; None where it does not say. Sizes in bytes."""

    files: int | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    text: str = ""


@immutable
class Target:
    """Where an engine saves, and as which user, in words and without passwords; empty where unknown."""

    repository: str = ""
    identity: str = ""
