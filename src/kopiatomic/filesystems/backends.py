"""What is done with each kind of filesystem: its snapshots are made, found again and mounted, its datasets are listed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from kopiatomic.filesystems import KINDS
from kopiatomic.filesystems.kind import Kind
from kopiatomic.immutable import immutable
from kopiatomic.model.facts import PropertySetting
from kopiatomic.model.leftovers import Intent, Leftover
from kopiatomic.model.mounts import Mount
from kopiatomic.model.plan import Dataset, Plan, Refusal, Taken
from kopiatomic.model.record import RecordedDataset
from kopiatomic.model.request import Request
from kopiatomic.model.snapshots import Instant, Sets, SnapshotSet
from kopiatomic.state.liveness import Life
from kopiatomic.state.ownership import Mark


class Maker(Protocol):
    """Makes and removes the set of one pool or one filesystem.

    Order of the calls: ``check`` (in the main process, before everything, hooks included), ``intents`` (in the same process; they
    are recorded), ``prepare`` (in the keeper), ``write_out`` (where something is held still while the snapshots are made),
    ``make`` (only the snapshots, so that the instants of several sets are close together), ``tie`` (to the life of the run's
    processes, where the kernel offers that), ``read_back``; when none of its snapshots is mounted any more, ``untie``; and when
    the run's descriptor is closed, ``remove``.

    What cannot be taken is put into ``refused``, in the process that found it out, and the rest is made. What concerns the
    whole pool or filesystem is raised.
    """

    refused: list[Refusal]
    once: bool
    """Whether ``make`` must not be repeated for a better proof, as something is held still meanwhile."""

    def check(self) -> None:
        """Check whether a set can be made at all: libraries, devices, permissions. Raises KopiatomicError."""

    def intents(self) -> list[Intent]:
        """Return what ``make`` will make, by exact name. Raises KopiatomicError."""

    def prepare(self) -> None:
        """Check that what will be snapshotted still exists, and do what would otherwise delay ``make``.

        Raises KopiatomicError.
        """

    def write_out(self) -> None:
        """Write out what ``make`` would otherwise have to, so that it is short. In a child, since the filesystem may not answer.

        Raises KopiatomicError.
        """

    def make(self) -> Instant | None:
        """Make all snapshots except refused ones; return None if that leaves nothing. Raises KopiatomicError."""

    def tie(self, cleanup_fd: int | None) -> None:
        """Have the kernel remove the snapshots when the last copy of the descriptor is closed. Raises KopiatomicError."""

    def untie(self) -> None:
        """Wait, before that last close, for what it would wait for. Call this in any process that has none of them mounted."""

    def read_back(self, instant: Instant) -> SnapshotSet:
        """Return the set as the filesystem shows it now: the transactions that are the proof, the states that tell what changed.

        Raises KopiatomicError.
        """

    def recall(self, sets: Sets) -> None:
        """Take over what identifies the snapshots, in a process other than the one that read them back."""

    def remove(self) -> list[str]:
        """Make sure that no snapshot of the set is left, whether it was tied or not, made completely or in part.

        A process other than the one that made them may call this. Returns what is left, in words.
        """

    def needs_descriptor(self) -> bool:
        """Whether ``tie`` needs a descriptor, that is, whether the kernel ties the set."""


class Leftovers(Protocol):
    """Finds and removes the snapshots that dead runs left. Implemented by a module of functions."""

    KIND: str

    def recorded(self, run_id: str, intents: Sequence[Intent], /) -> list[Leftover]:
        """Return a dead run's intents that exist and are, or may be, ours. Raises KopiatomicError if that is uncertain."""

    def unrecorded(
        self, names: Iterable[str] | None, life: Callable[[Mark], Life], problems: list[str], /
    ) -> list[Leftover]:
        """Return snapshots in these pools or filesystems (None: all) that bear the name of a run which is not known to be alive.

        What could not be examined is added to ``problems``, in words. Raises KopiatomicError if nothing could be examined.
        """

    def remove(self, leftovers: Sequence[Leftover], /) -> list[Leftover]:
        """Remove them and return what is left, with the problem. May wait for the kernel. Raises KopiatomicError."""


class Bookmarks(Protocol):
    """What is kept on datasets after a run, to know what has changed at the next. Implemented by a module of functions."""

    def kept(self) -> list[Leftover]:
        """Return all that this host keeps. Raises KopiatomicError if they cannot be listed."""

    def remove(self, bookmarks: Sequence[Leftover], /) -> list[Leftover]:
        """Destroy bookmarks; return all, with the problem where there is one. Raises KopiatomicError."""


class NewDataset(Protocol):
    """A dataset that a backup is restored into: made for it, or left by such a restore that was interrupted.

    It is open, and reached, in a block of code. It stays when that is left by an exception, so that the same restore can go on in
    it, but where nothing has been restored into it.
    """

    @property
    def path(self) -> str:
        """Where it is reached in the block. Nobody but root can enter what leads there, or can exchange it."""

    @property
    def fd(self) -> int:
        """Its top, open."""

    @property
    def is_ours(self) -> bool:
        """Whether it is known to be made for this restore; if not, what is in it must show that."""

    @property
    def inherited(self) -> Sequence[str]:
        """The extended attributes of its own that what is made in it inherits, whether it had them or not."""

    @property
    def commands(self) -> Sequence[str]:
        """What a person types into a shell to give it the rest of what is recorded; nothing of it has been done."""

    @property
    def notes(self) -> Sequence[str]:
        """What is recorded and cannot be set by any of these, as sentences."""

    def discard(self) -> None:
        """Note that nothing has been restored into it: if the block fails, it is removed where this process has made it."""

    def settle(self) -> list[str]:
        """Set what must come after the data, and remove our mark; return what is not as it is recorded, in words.

        Raises KopiatomicError.
        """


@immutable
class Ground:
    """What a listing starts from. ``names`` are the request's that exist or are no pattern; ``resolved`` the named paths, with
    links followed; ``seen`` the visible mounts by point.
    """

    request: Request
    names: Sequence[str]
    resolved: Mapping[str, str]
    mounts: Sequence[Mount]
    seen: dict[str, Mount]


def _nothing(_ground: Ground) -> Mapping[str, Any]:
    return {}


def _no_identity(_fd: int) -> bytes:
    return b""


def _no_properties(_datasets: Sequence[Dataset]) -> Mapping[str, Mapping[str, PropertySetting]]:
    return {}


def _never(_fd: int) -> bool:
    return False


def _never_respelled(_mount: Mount, _name: str) -> bool:
    return False


@immutable
class Backend:
    """What a kind does. Its folder has a module ``backend`` with one of these, called ``BACKEND``."""

    maker: Callable[[str, str, Sequence[Taken], str], Maker]
    """Makes a maker of a run's id, a pool or filesystem, what is taken in it, and the bookmark to keep."""
    leftovers: Leftovers
    listing: Callable[[Ground], Mapping[str, Any]] = _nothing
    """Looks at what there is, in a child: fields of :class:`kopiatomic.model.facts.Facts`. Raises KopiatomicError, OSError."""
    identity: Callable[[int], bytes] = _no_identity
    """Returns what tells the snapshot that a directory is open in from any other; empty if its mount does. Raises OSError."""
    is_left_out: Callable[[int], bool] = _never
    """Whether an open directory of a snapshot stands for a dataset that was nested there and is not in it. Raises OSError."""
    respells: Callable[[Mount, str], bool] = _never_respelled
    """Whether a name in a mounted dataset may have other spellings there. Raises KopiatomicError."""
    bookmarks: Bookmarks | None = None
    """None: nothing is kept on a dataset."""
    properties: Callable[[Sequence[Dataset]], Mapping[str, Mapping[str, PropertySetting]]] = _no_properties
    """Returns what is set on datasets beside their files, by dataset. Raises KopiatomicError, Interrupted."""
    new_dataset: Callable[[RecordedDataset, str, str], AbstractContextManager[NewDataset]] | None = None
    """Makes a dataset like a recorded one, of a name, for the restore with an id, or takes the one that this restore has left.

    None: none can be made. Raises KopiatomicError, OSError.
    """
    dataset_in: Callable[[int], tuple[str, int]] | None = None
    """Returns the pool and the id (``Dataset.subvolume``) of the dataset that a directory is open in; None if the mount tells
    which it is. Raises OSError."""


def of(kind: Kind) -> Backend:
    """Return the backend of a kind. It is imported at its first use: a command that needs only the words starts faster."""
    found = importlib.import_module(kind.module).BACKEND
    assert isinstance(found, Backend)
    return found


def makers(plan: Plan, run_id: str) -> list[Maker]:
    """Return one maker for each pool and each Btrfs filesystem of the plan, ZFS first."""
    groups: dict[tuple[str, str], list[Taken]] = {}
    for taken in plan.taken:
        groups.setdefault((taken.dataset.kind, taken.dataset.pool), []).append(taken)
    order = sorted(groups, key=lambda key: (list(KINDS).index(key[0]), key[1]))
    return [of(KINDS[kind]).maker(run_id, pool, groups[kind, pool], plan.bookmark) for kind, pool in order]
