"""What a kind of filesystem is, as a value that does nothing: its words, what ties its snapshots, how one is mounted. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems.selection import Selection
from kopiatomic.immutable import immutable
from kopiatomic.model.mounts import Mount
from kopiatomic.model.plan import Judged


class Chooser(Protocol):
    """Collects what is asked for of one kind, then judges each of its datasets once. Implemented in ``selection.py``."""

    def ask_by_name(self, name: str) -> bool:
        """Ask for what a word names that is no path; return whether such words can name anything of this kind."""

    def ask_by_path(self, name: str, path: str, mount: Mount) -> None:
        """Ask for the dataset or the part at a path in a mount of this kind. Raises KopiatomicError if that is none."""

    def ask_by_pattern(self, pattern: str) -> int:
        """Ask for what a pattern matches; return how many that are."""

    def ask_for_everything(self) -> None:
        """Ask for all that there is (``-a``)."""

    def ask_by_property(self) -> None:
        """Ask for what the user property selects."""

    def judge(self) -> Iterator[Judged]:
        """Return the verdict on each known dataset. Raises KopiatomicError if one that was named cannot be taken."""


@immutable
class Mounting:
    """How a snapshot is mounted: the arguments of mount(2)."""

    source: str
    fstype: str | None
    """None: ``source`` is a directory in a read-only mount, and is bound."""
    data: str | None = None
    inside: str = ""
    """The path of the snapshot's top below what is mounted; empty if it is that itself."""


def _no_pool(_mount: Mount) -> str:
    return ""


def _never(_mount: Mount) -> bool:
    return False


def _not_known(_dataset: str, _error: OSError) -> KopiatomicError | None:
    return None


@immutable
class Kind:
    """A kind of filesystem."""

    name: str
    """As in ``Dataset.kind``, in records and in JSON."""
    set_word: str
    """What a set of its snapshots is of, in words: "pool"."""
    transaction_word: str
    """What proves one instant, in words: "transaction group"."""
    module: str
    """The module of its backend (``filesystems/backends.py``)."""
    selection: Callable[[Selection], Chooser]
    is_mounted: Callable[[Mount], bool]
    """Whether a mount is of this kind: a dataset, or a snapshot."""
    name_of: Callable[[Mount], str]
    """How the dataset that is mounted is named on the command line."""
    mounting: Callable[[str, str], Mounting]
    """How a snapshot is mounted, by ``Snapshot.source`` and ``Dataset.device``."""
    is_snapshot: Callable[[Mount], bool] = _never
    """Whether a mount of this kind is known to be one of a snapshot."""
    is_tied: bool = False
    """Whether the kernel ties the snapshots to a run's processes, so that they go with the last one."""
    one_instant: bool = False
    """Whether the snapshots of one pool are of one instant, however many they are."""
    suspends: bool = False
    """Whether the kernel may suspend a pool, so that every call into it waits."""
    pool_of: Callable[[Mount], str] = _no_pool
    """The pool of a mount, if it may be suspended."""
    has_bookmarks: bool = False
    """Whether a bookmark can be kept that tells the next run what has changed."""
    has_jails: bool = False
    """Whether a jail may have datasets of its own."""
    caution: str = ""
    """What the proof of one instant does not say, in words."""
    blocked: str = ""
    """What its snapshots stand in the way of besides freeing space, in words that continue a sentence."""
    why_not_mounted: Callable[[str, OSError], KopiatomicError | None] = _not_known
    """Why the snapshot of a dataset could not be mounted, if the error means something particular, which concerns only it."""
