"""What keeps the processes of a run and its view together on one system."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from kopiatomic.filesystems.backends import Leftovers
from kopiatomic.model.leftovers import Intent
from kopiatomic.model.plan import Plan
from kopiatomic.platforms.steps import Step, Tree, View
from kopiatomic.system.spawn import User

RecordIntents = Callable[[Sequence[Intent]], None]
"""Records what else is about to be made. Raises StateError; then it must not be made."""


class MountedView(Protocol):
    """A view. Making this value has no effect, so any process of a run can have it."""

    def look(self) -> None:
        """Examine what users control, in the keeper, before the launcher is forked. Raises KopiatomicError, OSError."""

    def assemble(self) -> View:
        """Mount everything. Raises KopiatomicError, OSError; then :meth:`remove` unmounts what was mounted."""

    def engine_root(self) -> int | None:
        """Return a descriptor of the directory that must become the engine's root; None if the root stays."""

    def seen_from_outside(self, launcher: int) -> str:
        """Return the path of what a program in the view has as its root, as processes outside see it; ``launcher`` lives.

        Empty if they see the same. Only root can follow it.
        """

    def temporary(self, point: str, user: User | None) -> AbstractContextManager[str]:
        """Have an empty directory for the temporary files of one program, which no other sees; it goes with the block.

        ``point`` is an empty directory on the host that a program in any view sees, and that may be mounted on. Yield the path
        that the program has it at; empty if the view has no place that this user can reach. Raises KopiatomicError, OSError.
        """

    def watch(self, sources: Sequence[str]) -> AccessWatch | None:
        """Observe from now on which of the sources, given by the program's paths, are looked into; None if impossible here.

        Called when nothing else looks into the view until the program runs. Raises OSError.
        """

    def check(self) -> list[str]:
        """Compare every mount with the one that was made. Return what is wrong, in words."""

    def remove(self) -> list[str]:
        """Unmount what is mounted of it, in whichever process. Return what is left, in words.

        Raises KopiatomicError, OSError if that cannot be known.
        """


@runtime_checkable
class RecordingView(MountedView, Protocol):
    """A view of whose trees a metadata record can be made, when it is assembled and before a program runs in it."""

    def trees(self) -> Iterator[Tree]:
        """Yield each tree of the view that is frozen, open until the next one. Raises OSError."""

    def form(self, dataset: tuple[str, str]) -> str:
        """Return how a dataset, by kind and name, is shown: where, which parts, and what else is mounted in them."""

    def record(self) -> AbstractContextManager[int]:
        """Return a block with the directory of the metadata record, open, in which it is written. Raises OSError."""


class AccessWatch(Protocol):
    """Observes which sources are looked into while a program runs."""

    def fileno(self) -> int:
        """Return a descriptor that is readable for poll(2) (POLLIN) when there are events."""

    def follow(self) -> None:
        """Process the events."""

    def unread(self) -> tuple[str, ...]:
        """Return the sources that no process has looked into. Called once, last, before we look into the view ourselves."""


class HostWatcher(Protocol):
    """What must be followed of the host, outside the view, while a program runs in it."""

    def fileno(self) -> int:
        """Return a descriptor that has priority data for poll(2) (POLLPRI) when there are events."""

    def follow(self) -> None:
        """Process the events."""


class Platform(Protocol):
    """How that is done on one system. Calls are in the order of a run's processes."""

    @property
    def filesystems(self) -> Sequence[str]:
        """The supported filesystems."""

    @property
    def outlives(self) -> bool:
        """Whether mounts outlive the processes of a run: then nothing is mounted without a record."""

    def leftovers(self) -> Mapping[str, Leftovers]:
        """Return what finds what only this system has, such as mounts of dead runs, by the kind of their intents."""

    @property
    def records_metadata(self) -> bool:
        """Whether a metadata record can be made of what is in a view."""

    def check(self, plan: Plan) -> list[str]:
        """Refuse what cannot be made of a plan here. Return what the user should know. Raises KopiatomicError, OSError."""

    def directories(self, root: str, run_id: str) -> Sequence[str]:
        """Return the directories that a run needs exclusively for its view: the mount root, and others."""

    def view(self, plan: Plan, steps: Sequence[Step], run_id: str, record: RecordIntents) -> MountedView:
        """Return the view of a run."""

    def adopt(self) -> None:
        """In main process and keeper, before they fork: make sure that :meth:`end_orphans` finds what their children leave."""

    def fork(self) -> int:
        """Fork the launcher in the keeper. Raises KopiatomicError, OSError."""

    def enter(self) -> HostWatcher | None:
        """In the launcher, first: end with the keeper, and enter the namespaces of the view. Raises KopiatomicError, OSError."""

    def tie(self) -> None:
        """In the program's process, before it is executed: make it end with the launcher. Raises OSError."""

    def kill_others(self) -> None:
        """In the launcher: send SIGKILL to the program and all that it has started. Raises OSError."""

    def end_others(self) -> int:
        """In the launcher: end and reap all of it. Return how many had not ended by themselves. Raises OSError."""

    def end_orphans(self) -> None:
        """In any of the three: end what an ended process of ours has left, if that does not end with it.

        Raises OSError.
        """
