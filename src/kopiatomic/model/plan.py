"""The project's terms as plain data: dataset, plan, set, result. No behaviour beyond small derivations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum

from kopiatomic.immutable import immutable
from kopiatomic.paths import is_at_or_below, topmost

UNMOUNTED = "/.unmounted"
"""Where in the view datasets appear that have no place of their own."""

VOLUMES = "/.volumes"
"""Where in the view volumes appear."""

RECORD = "/.kopiatomic"
"""Where in a merged view the metadata record is."""

SCRATCH = "scratch"
"""The directory below the view's own one that an engine may write to freely."""


class Layout(StrEnum):
    """How a view is arranged."""

    MERGED = "merged"
    """Every dataset at its own path below one root."""
    IN_PLACE = "in-place"
    """Every dataset at its true path, in a namespace where everything else is unchanged."""


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

    ``name`` is the ZFS name, or for Btrfs the path where the subvolume is visible. ``pool`` is the ZFS pool, or the UUID of
    the Btrfs filesystem. ``mountpoint`` is where it is really mounted (file name decoded with ``os.fsdecode``), or empty.
    ``subvolume`` and ``device`` are for Btrfs: the subvolume's id, and a device to mount its filesystem from. A ``volume``
    is a ZFS block device: in the view it is a file. ``guid`` is for ZFS.
    """

    kind: str
    name: str
    pool: str
    mountpoint: PlannedPath
    subvolume: int = 0
    device: str = ""
    volume: bool = False
    guid: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """The identity of the dataset, wherever it is moved: no other ever has the same."""
        return self.kind, self.pool, self.guid or (str(self.subvolume) if self.subvolume else self.name)


@immutable
class Taken:
    """A dataset that the run takes, and the place in the view (absolute, below the view's root) where it appears.

    ``parts`` are the paths below its top that are shown; the empty one stands for the whole and is then the only one.
    """

    dataset: Dataset
    place: str
    named: bool
    """Whether the user named it; otherwise a flag, a pattern or a property brought it in."""
    parts: tuple[str, ...] = ("",)
    again: tuple[tuple[str, str], ...] = ()
    """Where else it is mounted, and the part that is visible there; in place these are frozen as well."""
    owner: int = 0
    """The user that owns it; a ZFS dataset belongs to root."""
    outside: tuple[str, ...] = ()
    """Btrfs: paths below its top of nested subvolumes that, with ``-r``, were found outside every part that is shown."""
    hidden: tuple[str, ...] = ()
    """Btrfs: paths below its top of nested subvolumes whose empty directories would end the engine's backup."""
    whole: str = ""
    """In place: who other than root could move one of the parts. All of it is then shown at its mount point, below the parts."""

    @property
    def places(self) -> tuple[str, ...]:
        """Where its parts appear."""
        return tuple(f"{self.place.rstrip('/')}/{part}" if part else self.place for part in self.parts)

    @property
    def asked(self) -> tuple[tuple[str, str], ...]:
        """Every place at which a part of what was asked for is in the view, with that part."""
        return (*zip(self.places, self.parts, strict=True), *self.again)

    @property
    def shown(self) -> tuple[tuple[str, str], ...]:
        """Every place at which a part of it is in the view, with that part."""
        return ((self.place, ""), *self.asked) if self.whole else self.asked


class Verdict(StrEnum):
    """What the plan decided about a dataset, in a word or two."""

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

    Code that finds this out for one dataset reports it with this and goes on with the others; only
    :func:`kopiatomic.planning.plan.select` decides what follows: it fails where the dataset was named, and gives it a verdict
    otherwise. ``verdict`` is DELETED only where the dataset's id proves that, MOVED where its place no longer leads to it. A
    fault of a whole pool or filesystem is not a refusal but a KopiatomicError.
    """

    dataset: Dataset
    reason: str
    verdict: Verdict = Verdict.REFUSED
    hint: str = ""
    kind: str = "cannot-take"
    """The error kind reported to programs if the dataset was named."""


@immutable
class Judged:
    """A dataset that was named, implied or is close by, and what became of it. ``reason`` is a sentence without its full stop."""

    name: str
    kind: str
    verdict: Verdict
    reason: str
    mountpoint: str = ""
    """Where it is mounted and visible; otherwise empty."""
    places: tuple[str, ...] = ()
    """Where it appears in the view."""
    incomplete: bool = False
    """Whether it is not taken although a user would expect it to be: the run then ends with exit code 3."""
    line: str = ""
    """The text for it together with others that are missing for the same reason; empty: its name and its reason."""
    hint: str = ""
    """What to do so that it can be taken."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """The facts behind the verdict."""
    owner: int | None = None
    """The user that owns it, where users can make their own: Btrfs."""
    count: int = 1
    """How many datasets it stands for, all in ``name``: if very many are alike, not each has its own verdict."""


MIGHT_HANG = "hidden: it might not answer"
"""The note on what is not shown in place for this reason: a server or a daemon must answer for it."""


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
    """Whether it is visible in the view anyway, live and not frozen (in place)."""


@immutable
class Hidden:
    """In place: a live directory that is replaced by an empty one of ours, because somebody could move what is in it.

    ``who`` names that somebody, in words; ``place`` is the first place in it that is shown anyway.
    """

    directory: str
    who: str
    place: str


@immutable
class Plan:
    """What a run takes and where it appears. ``taken`` is in mount order: parents before children.

    ``root`` is the directory on the host that the view is mounted on; in place, one of our own that no engine looks for.

    ``judged`` has each dataset that was looked at exactly once, in the order of the names' tree (see ``Judged.count``).
    """

    root: str
    taken: tuple[Taken, ...]
    scaffolds: tuple[str, ...] = ()
    """Places of mounts that are not taken, between a taken one and another below it: empty directories stand for them."""
    judged: tuple[Judged, ...] = ()
    uncovered: tuple[Uncovered, ...] = ()
    beside: tuple[Uncovered, ...] = ()
    """In place: what is mounted outside the trees of everything that is taken; it is seen live there."""
    hidden: tuple[Hidden, ...] = ()
    relit: tuple[Uncovered, ...] = ()
    """In place: those of ``beside`` that would be hidden by what is shown, and that are shown live anyway."""
    notes: tuple[str, ...] = ()
    layout: Layout = Layout.MERGED
    live_system: bool = False
    """In place: whether the kernel's filesystems (/proc, /sys, /dev) and /run stay live. Not for backups."""
    writable: tuple[str, ...] = ()
    """In place: what an engine must write to, so that it is live even within a frozen tree."""
    ignore_files: tuple[tuple[str, str], ...] = ()
    """In place: names and contents of files that have an engine leave out a directory of ours that is in a source."""
    record: str = ""
    """The place of the metadata record in the view (in place, its true path); empty if there is none."""
    bookmark: str = ""
    """ZFS: the bookmark that is kept on each dataset, so that the next run knows what has changed. Empty: no bookmark."""

    @property
    def sources(self) -> tuple[str, ...]:
        """What is passed to the engine: the root of the view, or the topmost true paths."""
        if self.layout is Layout.MERGED:
            return (self.root,)
        return topmost(place for taken in self.taken for place in taken.places)

    @property
    def record_source(self) -> str:
        """In place: the path of the metadata record if no source holds it, so that an engine is given it as well; else empty."""
        held = self.layout is Layout.MERGED or any(is_at_or_below(self.record, source) for source in self.sources)
        return "" if held else self.record

    @property
    def given(self) -> tuple[str, ...]:
        """All paths that an engine is given to back up: the sources, and that of the metadata record."""
        return (*self.sources, *filter(None, [self.record_source]))

    @property
    def covered(self) -> tuple[str, ...]:
        """In place: the topmost directories that are not seen live, but frozen or hidden."""
        places = [place for taken in self.taken for place, _ in taken.shown]
        return topmost([*places, *(hidden.directory for hidden in self.hidden)])

    @property
    def scratch(self) -> str:
        """In place: a directory of ours outside all sources for an engine to write to; it is removed with the view."""
        return f"{self.root}/{SCRATCH}"

    @property
    def might_hang(self) -> list[str]:
        """In place: what is not shown because it might hang, in words."""
        return [f"{u.point} ({u.fstype})" for u in (*self.uncovered, *self.beside) if u.note == MIGHT_HANG]

    @property
    def top(self) -> str:
        """The directory that contains all places, as the engine sees it."""
        return "/" if self.layout is Layout.IN_PLACE else self.root

    def path(self, place: str) -> str:
        """Return the path at which the engine finds a place of the view."""
        return place if self.layout is Layout.IN_PLACE else self.root + place.rstrip("/")

    @property
    def left_out(self) -> tuple[Judged, ...]:
        """The datasets that are not taken."""
        return tuple(judged for judged in self.judged if judged.verdict is not Verdict.TAKEN)
