"""The words of the project as plain data: dataset, plan, set, result. No behaviour beyond small derivations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """A path in the live system as the plan was made. No call of the system takes it: what it leads to by now is its users' to
    say, and may never answer. What looks at it unpacks it in a child (``system/looking.py``); everything else compares texts.
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
"""What is noted of what is not shown in place for this reason: a server or a daemon has to answer for it."""


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
    """In place: what an engine has to write, and so is live where it lies in a frozen tree."""
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


@immutable
class Snapshot:
    """One snapshot of a set. ``source`` is what is mounted: ``pool/ds@snap``, or the Btrfs subvolume's id."""

    dataset: str
    source: str
    transaction: int
    """ZFS: ``createtxg``. Btrfs: ``otransid``."""
    identity: str = ""
    """What no other snapshot has, whatever its name. ZFS: ``guid``. Btrfs: the subvolume's UUID."""
    size: int | None = None
    """Of a volume: its exact size in bytes."""
    before: str = ""
    """The state that the dataset is proven to have been in since: the ``after`` of an earlier snapshot. Empty: not known."""
    after: str = ""
    """The state that this snapshot is of; nothing else has it. Empty: it cannot be told."""


@immutable
class Intent:
    """Something that a run is about to make, or has made.

    ``kind`` is "zfs", "btrfs", "mount" (FreeBSD) or "directory". ``place`` is the pool, the UUID of the Btrfs filesystem,
    the type of the mount, or empty; ``name`` the snapshot's name, its path below the top-level subvolume, the mount point,
    or the directory. ``origin`` is what a Btrfs snapshot is made of (that subvolume's UUID), what is mounted, or the
    boot that a directory is made in. ``identity`` is the snapshot's guid (ZFS) or UUID (Btrfs) and ``transaction`` its
    createtxg or otransid: None until it is made.
    """

    kind: str
    place: str
    name: str
    origin: str = ""
    identity: str | None = None
    transaction: int | None = None
    between: tuple[int, int] | None = None
    """ZFS: the first and the last transaction group that it can be of; None where the kernel does not tell."""


class Claim(StrEnum):
    """What stands for it that a thing with a run's name may be removed."""

    PROVEN = "proven"
    """The record, or a mark that only root can make: it goes."""
    UNRECORDED = "unrecorded"
    """Nothing but a property, which others can be allowed to set: it goes with ``--unrecorded`` only."""
    UNJUDGED = "unjudged"
    """Its run may be alive where our locks do not show it: it goes with ``--assume-dead`` only."""
    RECEIVED = "received"
    """Another host's run made it, or it came with a stream: it is counted, and goes with ``--received`` only."""


@immutable
class Leftover:
    """Something that a dead run left. ``kind`` is "zfs-snapshot", "btrfs-snapshot", "mount" or "directory".

    ``place``, ``name`` and ``origin`` as in :class:`Intent`; the origin of a ZFS snapshot that was renamed is its name on
    record. ``proof`` says why it is ours, ``command`` is what a person would type to remove it.
    """

    run_id: str
    kind: str
    place: str
    name: str
    proof: str
    command: str
    problem: str | None = None
    """Why it is not, or could not be, removed."""
    origin: str = ""
    claim: Claim = Claim.PROVEN
    identity: str = ""
    """ZFS: the snapshot's guid, so that another one by its name is not taken for it."""


@immutable
class Instant:
    """The clocks right before and right after the snapshot call: the instant lies between the two. Nanoseconds."""

    wall_before: int
    wall_after: int
    monotonic_before: int
    monotonic_after: int


@immutable
class SnapshotSet:
    """The snapshots of one pool or one Btrfs filesystem, with what proves or disproves their one instant."""

    filesystem: str
    pool: str
    snapshots: tuple[Snapshot, ...]
    instant: Instant
    untied_ns: int | None = None
    """From right before the snapshot call until the kernel had tied the set to the run's processes; None where nothing of
    it can be tied. Nanoseconds, monotonic."""

    @property
    def one_instant(self) -> bool:
        """Equal transactions are the proof: a TXG (ZFS) or a commit (Btrfs) is one state of the whole filesystem."""
        return len({snapshot.transaction for snapshot in self.snapshots}) == 1


@immutable
class Sets:
    """All the sets of a run, and what of the plan is in none of them."""

    sets: tuple[SnapshotSet, ...]
    refused: tuple[Refusal, ...] = ()

    @property
    def atomic(self) -> bool:
        """Whether everything in the view shares one proven instant."""
        return len(self.sets) == 1 and self.sets[0].one_instant

    @property
    def started_ns(self) -> int:
        """Wall clock (ns since the epoch) right before the first snapshot call: the instant that is printed and used."""
        return min(s.instant.wall_before for s in self.sets)

    @property
    def skew_ns(self) -> int:
        """Upper bound of the time between any two snapshots (ns, monotonic); 0 where one instant is proven."""
        if self.atomic:
            return 0
        first = min(s.instant.monotonic_before for s in self.sets)
        return max(s.instant.monotonic_after for s in self.sets) - first


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
