"""The words of the project as plain data: dataset, plan, set, result. No behaviour beyond small derivations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum

from kopiatomic.immutable import immutable
from kopiatomic.paths import topmost

UNMOUNTED = "/.unmounted"
"""Where in the view datasets appear that have no place of their own."""

VOLUMES = "/.volumes"
"""Where in the view volumes appear."""

SCRATCH = "scratch"
"""The directory below the view's own one that an engine may write to as it likes."""


class Layout(StrEnum):
    """How a view is arranged."""

    MERGED = "merged"
    """Every dataset at its own path below one root."""
    IN_PLACE = "in-place"
    """Every dataset at its true path, in a namespace where all else is as it was."""


@immutable
class PlannedPath:
    """A path in the live system as it was when the plan was made. Never passed to a system call directly: users decide what it
    leads to now, and that may never respond. To look at it, unpack it in a child (``system/looking.py``); all other code compares
    text.
    """

    text: str

    def __bool__(self) -> bool:
        return bool(self.text)


@immutable
class Dataset:
    """A ZFS filesystem or volume, or a Btrfs subvolume: what is snapshotted as a unit.

    ``name`` is the ZFS name, or for Btrfs the path the subvolume is seen at. ``pool`` is the ZFS pool, or the UUID of
    the Btrfs filesystem. ``mountpoint`` is where it is really mounted (file name decoded with ``os.fsdecode``), or empty.
    ``subvolume`` and ``device`` are Btrfs's: the subvolume's id, and a device to mount its filesystem from. A ``volume``
    is ZFS's block device: in the view it is a file. ``guid`` is ZFS's.
    """

    filesystem: str
    name: str
    pool: str
    mountpoint: PlannedPath
    subvolume: int = 0
    device: str = ""
    volume: bool = False
    guid: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is known by, wherever it is moved to: nothing else ever has the same."""
        return self.filesystem, self.pool, self.guid or (str(self.subvolume) if self.subvolume else self.name)


@immutable
class Taken:
    """A dataset that the run takes, and the place in the view (absolute, below the view's root) where it appears.

    ``parts`` are the paths below its top that are shown; the empty one stands for the whole, and then it is the only one.
    """

    dataset: Dataset
    place: str
    named: bool
    """Whether the user named it; otherwise a flag, a pattern or a property brought it in."""
    parts: tuple[str, ...] = ("",)
    again: tuple[tuple[str, str], ...] = ()
    """Where else it is mounted, and the part that is seen there; in place these are frozen as well."""
    owner: int = 0
    """The user that it belongs to; a ZFS dataset is root's."""
    outside: tuple[str, ...] = ()
    """Btrfs: paths below its top of what is nested in it and was found outside of every part that is shown with ``-r``."""
    hidden: tuple[str, ...] = ()
    """Btrfs: paths below its top of nested subvolumes whose empty folders would end the engine's backup."""
    whole: str = ""
    """In place: who besides root could move one of the parts. Then all of it is shown at its mount point, below the parts."""

    @property
    def places(self) -> tuple[str, ...]:
        """Where its parts appear."""
        return tuple(f"{self.place.rstrip('/')}/{part}" if part else self.place for part in self.parts)

    @property
    def asked(self) -> tuple[tuple[str, str], ...]:
        """Every place at which a part of what was asked for is in the view, and that part."""
        return (*zip(self.places, self.parts, strict=True), *self.again)

    @property
    def shown(self) -> tuple[tuple[str, str], ...]:
        """Every place at which a part of it is in the view, and that part."""
        return ((self.place, ""), *self.asked) if self.whole else self.asked


class Verdict(StrEnum):
    """What became of a dataset in the plan, in a word or two."""

    TAKEN = "taken"
    NOT_ASKED_FOR = "not asked for"
    NOT_MOUNTED = "not mounted"
    KEY_NOT_LOADED = "key not loaded"
    NO_MOUNT_POINT = "no mount point"
    EXCLUDED = "excluded"
    COVERED = "covered"
    MOUNTED_ELSEWHERE = "mounted elsewhere"
    OUTSIDE = "outside the named path"
    BOOT_ENVIRONMENT = "boot environment not booted"
    SUSPENDED = "suspended pool"
    READ_ONLY_POOL = "read-only pool"
    VOLUME = "volume"
    NAME_TOO_LONG = "name too long"
    READ_ONLY_SNAPSHOT = "read-only snapshot"
    RECEIVED = "received copy"
    DUPLICATE = "duplicate"
    REFUSED = "refused"
    DELETED = "deleted meanwhile"
    MOVED = "moved meanwhile"
    NO_ROOM = "no room"
    BAD_PROPERTY = "bad property"
    NOT_THE_JAILS = "not the jail's"


@immutable
class Refusal:
    """Why a dataset that a plan takes cannot be taken, found out after the plan was made.

    Whoever finds that out for one dataset says so with this and goes on with the others; :func:`kopiatomic.planning.plan.select`
    alone decides what follows: it fails where the dataset was named, and gives it a verdict otherwise. ``verdict`` is
    DELETED only where that is proven by the dataset's id, MOVED where its place does not lead to it any more. A fault of a
    whole pool or filesystem is no refusal but a KopiatomicError.
    """

    dataset: Dataset
    reason: str
    verdict: Verdict = Verdict.REFUSED
    hint: str = ""
    kind: str = "cannot-take"
    """What programs are told where it was named."""


@immutable
class Judged:
    """A dataset that was named, implied or is close by, and what became of it. ``reason`` is a sentence without its stop."""

    name: str
    filesystem: str
    verdict: Verdict
    reason: str
    mountpoint: str = ""
    """Where it is mounted and can be seen; empty where it is not."""
    places: tuple[str, ...] = ()
    """Where it appears in the view."""
    incomplete: bool = False
    """Whether it is not taken and a user would believe it to be: then the run ends with exit code 3."""
    line: str = ""
    """What is said of it together with others that are missing for the same reason; empty: its name and its reason."""
    hint: str = ""
    """What to do so that it can be taken."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What the verdict was found from."""
    owner: int | None = None
    """The user that it belongs to, where users make their own: Btrfs."""
    count: int = 1
    """How many it stands for, all in ``name``: of very many that are alike not each has a verdict."""


MIGHT_HANG = "hidden: it might not answer"
"""What is noted of what is not shown in place for this reason: a server or a daemon must answer for it."""


@immutable
class Uncovered:
    """A filesystem that is mounted in the tree of a taken dataset and is not in the backup. ``size`` in bytes, if known."""

    point: str
    fstype: str
    source: str
    inside: str
    """The taken dataset whose tree it is mounted in."""
    size: int | None = None
    note: str = ""
    live: bool = False
    """Whether it is seen in the view all the same, as it is and not frozen (in place)."""


@immutable
class Hidden:
    """In place: a live directory that an empty one of ours stands for, since somebody could move what is in it.

    ``who`` is that somebody, in words, ``place`` the first of those in it that are shown all the same.
    """

    directory: str
    who: str
    place: str


@immutable
class Plan:
    """What a run takes and where it appears. ``taken`` is in mount order: parents before children.

    ``root`` is the directory on the host that the view is mounted on; in place one of our own, that no engine looks for.

    ``judged`` has each dataset that was looked at exactly once, in the order of the names' tree (see ``Judged.count``).
    """

    root: str
    taken: tuple[Taken, ...]
    scaffolds: tuple[str, ...] = ()
    """Places of mounts that are not taken, between one that is and another below it: empty directories stand for them."""
    judged: tuple[Judged, ...] = ()
    uncovered: tuple[Uncovered, ...] = ()
    beside: tuple[Uncovered, ...] = ()
    """In place: what is mounted outside of the trees of all that is taken; there it is seen as it is."""
    hidden: tuple[Hidden, ...] = ()
    relit: tuple[Uncovered, ...] = ()
    """In place: those of ``beside`` that what is shown would hide, and that are seen as they are all the same."""
    notes: tuple[str, ...] = ()
    layout: Layout = Layout.MERGED
    live_system: bool = False
    """In place: whether the kernel's filesystems (/proc, /sys, /dev) and /run are to be as they are. Not for backups."""
    writable: tuple[str, ...] = ()
    """In place: what an engine must write, and so is live where it lies in a frozen tree."""
    bookmark: str = ""
    """ZFS: the bookmark that is kept on each dataset, so that the next run knows what has changed. Empty: none."""

    @property
    def sources(self) -> tuple[str, ...]:
        """What the engine is given: the root of the view, or the topmost true paths."""
        if self.layout is Layout.MERGED:
            return (self.root,)
        return topmost(place for taken in self.taken for place in taken.places)

    @property
    def covered(self) -> tuple[str, ...]:
        """In place: the topmost directories that are not seen as they are, but frozen or hidden."""
        places = [place for taken in self.taken for place, _ in taken.shown]
        return topmost([*places, *(hidden.directory for hidden in self.hidden)])

    @property
    def scratch(self) -> str:
        """In place: a directory of ours outside of all sources, for an engine to write into; it goes with the view."""
        return f"{self.root}/{SCRATCH}"

    @property
    def might_hang(self) -> list[str]:
        """In place: what is not shown for this reason, in words."""
        return [f"{u.point} ({u.fstype})" for u in (*self.uncovered, *self.beside) if u.note == MIGHT_HANG]

    @property
    def top(self) -> str:
        """The directory that all places are below, as the engine sees it."""
        return "/" if self.layout is Layout.IN_PLACE else self.root

    def path(self, place: str) -> str:
        """Where the engine finds a place of the view."""
        return place if self.layout is Layout.IN_PLACE else self.root + place.rstrip("/")

    @property
    def left_out(self) -> tuple[Judged, ...]:
        """Those that are not taken."""
        return tuple(judged for judged in self.judged if judged.verdict is not Verdict.TAKEN)
