"""What keeps the processes of a run and its view together on one system."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from kopiatomic.filesystems.backends import Leftovers
from kopiatomic.model.leftovers import Intent
from kopiatomic.model.plan import Plan
from kopiatomic.platforms.steps import Step, View

Record = Callable[[Sequence[Intent]], None]
"""Records what is about to be made besides. Raises StateError; then it must not be made."""


class Built(Protocol):
    """A view. Making this value makes nothing, so that any process of a run can have it."""

    def look(self) -> None:
        """In the keeper, before the launcher is forked, look at what users control. Raises KopiatomicError, OSError."""

    def assemble(self) -> View:
        """Mount everything. Raises KopiatomicError, OSError; what is mounted then is for :meth:`remove`."""

    def engine_root(self) -> int | None:
        """A descriptor of the directory that the engine's root must be; None where it stays."""

    def watch(self, sources: Sequence[str]) -> Reading | None:
        """From now on see which of the sources, as the program has their paths, are looked into; None: not on this system.

        Called when nothing else looks into the view until the program runs. Raises OSError.
        """

    def check(self) -> list[str]:
        """Compare every mount with the one that was made. Returns what is wrong, in words."""

    def remove(self) -> list[str]:
        """Take away what is mounted of it, in whichever process; returns what is left, in words.

        Raises KopiatomicError, OSError where that cannot be told.
        """


class Reading(Protocol):
    """Sees which sources are looked into while a program runs."""

    def fileno(self) -> int:
        """A descriptor that poll(2) finds readable (POLLIN) when there is something to follow."""

    def follow(self) -> None:
        """Follow it."""

    def unread(self) -> tuple[str, ...]:
        """The sources that nobody has looked into. Called once, last, before anything of ours looks into the view."""


class Outside(Protocol):
    """What must be followed of the system outside of the view, while a program runs in it."""

    def fileno(self) -> int:
        """A descriptor that poll(2) finds to have priority data (POLLPRI) when there is something to follow."""

    def follow(self) -> None:
        """Follow it."""


class Platform(Protocol):
    """How that is done on one system. Calls are in the order of a run's processes."""

    @property
    def filesystems(self) -> Sequence[str]:
        """Those that there are."""

    @property
    def outlives(self) -> bool:
        """Whether mounts outlive the processes of a run: then nothing is mounted that is not recorded."""

    def leftovers(self) -> Mapping[str, Leftovers]:
        """What finds the mounts of dead runs, by the kind of their intents."""

    def check(self, plan: Plan) -> list[str]:
        """Refuse what cannot be made of a plan here; returns what the user should know. Raises KopiatomicError, OSError."""

    def directories(self, root: str, run_id: str) -> Sequence[str]:
        """The directories that a run needs for its view and has to itself: the mount root, and what else."""

    def view(self, plan: Plan, steps: Sequence[Step], run_id: str, record: Record) -> Built:
        """The view of a run."""

    def adopt(self) -> None:
        """In main process and keeper, before they fork: see to it that :meth:`end_orphans` finds what their children leave."""

    def fork(self) -> int:
        """In the keeper: fork(2) the launcher. Raises KopiatomicError, OSError."""

    def enter(self) -> Outside | None:
        """In the launcher, first: end with the keeper, and go to where the view is to be. Raises KopiatomicError, OSError."""

    def tie(self) -> None:
        """In the program's process, before it is executed: end with the launcher. Raises OSError."""

    def kill_others(self) -> None:
        """In the launcher: SIGKILL for all that the program has started, and itself. Raises OSError."""

    def end_others(self) -> int:
        """In the launcher: end and reap all of it; returns how many had not ended by themselves. Raises OSError."""

    def end_orphans(self) -> None:
        """In any of the three: end what a process of ours that is gone has left, where that does not end with it.

        Raises OSError.
        """
