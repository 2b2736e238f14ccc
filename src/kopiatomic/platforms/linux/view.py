"""Views on Linux: a private mount namespace in which snapshots are mounted with mount(2), read-only.

Everything here runs in the launcher, alone in its namespaces. Mount points inside frozen trees are opened beneath the view's top
without following links: a frozen tree belongs to its users.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import Self

from kopiatomic import paths, presence
from kopiatomic.errors import KopiatomicError, advice_of, concerns_all
from kopiatomic.filesystems import backends
from kopiatomic.filesystems.kind import Mounting
from kopiatomic.immutable import immutable
from kopiatomic.model.mounts import Mount, holder, visible
from kopiatomic.paths import is_at_or_below
from kopiatomic.platforms.linux.anchors import Anchors
from kopiatomic.platforms.linux.volumes import Volumes
from kopiatomic.platforms.steps import (
    ELSEWHERE,
    LiveStep,
    Missing,
    Obstacle,
    RecordStep,
    ScaffoldStep,
    SnapshotStep,
    Step,
    Tree,
    View,
    VolumesStep,
    held_by,
    hidden_by,
    holds_something,
    is_frozen,
    named_and_missing,
)
from kopiatomic.system import inotify, linux, mountinfo
from kopiatomic.system.descriptors import closing
from kopiatomic.system.spawn import User
from kopiatomic.text import printable

FLAGS = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
_KEPT = {"noexec": linux.MS_NOEXEC, "nosymfollow": linux.MS_NOSYMFOLLOW}
"""What each place keeps of the mount that is there on the host."""

ANY = os.O_PATH | os.O_NOFOLLOW
PATH = ANY | os.O_DIRECTORY
LOOK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

_DESCRIPTORS = 512
"""More than a launcher has open otherwise."""


def enter(mounts: Sequence[Mount]) -> None:
    """Enter our own mount namespace, to which the host's later changes propagate and from which none do.

    ``mounts`` are those of the host, which the namespace begins with. Raises KopiatomicError.
    """
    _have_descriptors(len(mounts))
    try:
        linux.unshare(linux.CLONE_NEWNS)
        if "/" not in visible(mounts):
            _stand_on_a_mount()
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_SLAVE)
        linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    except OSError as error:
        raise refused("a private mount namespace cannot be made", error) from None


def _have_descriptors(mounts: int) -> None:
    """Raise our limit if there are very many mounts: each that stays visible, or lies above a place, is held open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = mounts + _DESCRIPTORS
    if needed > soft:
        # Root may; where that is refused, opening them says so.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(needed, hard)))


def _stand_on_a_mount() -> None:
    """In a chroot whose ``/`` is a plain folder: change to a copy of it that is a mount.

    Propagation belongs to a mount, and the one that contains such a ``/`` is out of reach. The copy is put where no mount
    propagates from, on ``/proc``, and becomes the root: all paths stay the same. Raises OSError.
    """
    here = os.getcwd()
    linux.mount("none", "/proc", None, linux.MS_SLAVE)
    linux.mount("/", "/proc", None, linux.MS_BIND | linux.MS_REC)
    os.chdir("/proc")
    os.chroot(".")
    os.chdir(here)


def refused(what: str, error: OSError) -> KopiatomicError:
    """Return the message for a namespace or mount that the kernel refuses."""
    if error.errno == errno.ENOSPC:
        return KopiatomicError(
            f"{what}: a limit of mounts or namespaces is reached",
            kind="mount-limit",
            hint="'sysctl fs.mount-max user.max_mnt_namespaces user.max_pid_namespaces' shows the limits. A run needs a mount "
            "for each dataset besides those of the host.",
        )
    advice = advice_of(error)
    if advice is not None:
        return KopiatomicError(f"{what}: {error.strerror}", kind="system", hint=advice)
    if error.errno not in {errno.EPERM, errno.EACCES}:
        return KopiatomicError(f"{what}: {error.strerror}", kind="mount", hint="See 'dmesg' for what the kernel says.")
    return KopiatomicError(
        f"{what}: {error.strerror}",
        kind="namespace",
        hint="kopiatomic needs root with CAP_SYS_ADMIN. A container must be privileged; a systemd unit must not set "
        "RestrictNamespaces=, SystemCallFilter= without @mount, or a CapabilityBoundingSet= without CAP_SYS_ADMIN.",
    )


@immutable
class _Fingerprint:
    """What distinguishes one mount from all others: compared before and after the engine."""

    step: Step
    mount_id: int
    device: str
    root: str
    inode: int
    identity: bytes


class LinuxView:
    """Mounts the steps of a view, and checks them again after the engine. A layout says where its top is."""

    def __init__(self, base: str, steps: Sequence[Step]) -> None:
        self._base = base
        """The directory on the host that a tmpfs of ours is mounted on."""
        self._steps = list(steps)
        self._by_place = {step.place: step for step in steps}
        self._prints: list[_Fingerprint] = []
        self._shown: list[Step] = []
        """What is mounted, after the whole is assembled."""
        self._lacking: list[Missing] = []
        """What is not in the view as it was at the instant, besides what has no place."""
        self._needless: set[str] = set()
        """The places of scaffolds that were not needed."""
        self._volumes = Volumes()
        self.anchors: Anchors
        self._host: dict[str, Mount] = {}
        """What is mounted on the host, by point."""

    def look(self) -> None:
        """Do nothing, unless a layout needs something of the live system that may not answer."""

    def assemble(self) -> View:
        """Mount everything. Raises KopiatomicError; whatever is mounted ends with the namespace."""
        raise NotImplementedError

    def top(self) -> str:
        """Return the path of the view's top directory."""
        raise NotImplementedError

    def engine_root(self) -> int | None:
        """Return a descriptor of the directory that must become the engine's root; None if the root stays."""
        return None

    def seen_from_outside(self, launcher: int) -> str:
        """Return the launcher's root, in its mount namespace."""
        return f"/proc/{launcher}/root"

    @contextmanager
    def temporary(self, point: str, user: User | None) -> Iterator[str]:
        """Mount a filesystem in memory, which belongs to the user, for the time of the block. Raises KopiatomicError."""
        mounted = self._mount_temporary(point, user)
        if mounted is None:
            yield ""
            return
        with closing(mounted):
            try:
                yield point
            finally:
                # A program of root's may have unmounted it itself.
                if mountinfo.id_of(mounted) in {mount.id for mount in mountinfo.read()}:
                    linux.detach(f"/proc/self/fd/{mounted}")

    def _mount_temporary(self, point: str, user: User | None) -> int | None:
        """Return its top, open; None where a frozen ``/run`` hides what is ours. Raises KopiatomicError."""
        owner = "" if user is None else f",uid={user.uid},gid={user.gid}"
        root = self.engine_root()
        with closing(os.open("/", LOOK | os.O_CLOEXEC) if root is None else root) as top:
            try:
                with closing(linux.open_beneath(top, relative(point), PATH)) as target:
                    flags = linux.MS_NOSUID | linux.MS_NODEV
                    linux.mount(SCAFFOLD_SOURCE, f"/proc/self/fd/{target}", "tmpfs", flags, f"mode=0700{owner}")
                return linux.open_beneath(top, relative(point), PATH)
            except OSError as error:
                if presence.absent(error):
                    return None
                raise refused(f"no directory for temporary files can be mounted on {point}", error) from None

    def watch(self, sources: Sequence[str]) -> inotify.AccessWatch:
        """Observe which of the sources are looked into from now on. Raises OSError."""
        # The top is opened before it may be watched itself: what we look into would count.
        with self.open_top() as top, inotify.watching() as access_watch:
            for source in sources:
                with closing(linux.open_beneath(top, relative(self.place_of(source)), PATH)) as directory:
                    access_watch.add(source, directory)
        return access_watch

    def place_of(self, source: str) -> str:
        """Return the place in the view of a source, given by the program's path."""
        raise NotImplementedError

    def mount_base(self) -> None:
        """Mount our tmpfs, first of all. Raises KopiatomicError."""
        try:
            self._host = visible(mountinfo.read())
            self.anchors = Anchors([self._base, *self.covering()], self._host)
            self.anchors.hold([*paths.parents(self._base), *self.live_above()])
            mount_scaffold(self._base)
        except OSError as error:
            raise refused(f"nothing can be mounted on {printable(self._base)}", error) from None

    def covering(self) -> Sequence[str]:
        """Return the paths outside our tmpfs that will be mounted over."""
        return ()

    def live_above(self) -> Collection[str]:
        """Return the directories outside our tmpfs, above the paths of :meth:`covering`, that are seen as they are."""
        return ()

    def finished(self, steps: Sequence[Step], missing: Sequence[Missing]) -> View:
        """Note what was mounted, so that it can be checked. Return the view as it is. Raises OSError."""
        self.anchors.settle()
        gone = {m.place for m in missing}
        # Of several at one place the last is the one that is seen. What is live may change.
        last = {s.place: s for s in steps if s.place not in gone | self._needless}
        self._prints = self._take_prints([s for s in last.values() if not isinstance(s, LiveStep)])
        self._shown = [s for s in steps if s.place not in gone | self._needless]
        shown = [s for s in self._steps if s.place not in gone]
        mounted = [s.place for s in shown if isinstance(s, SnapshotStep)]
        with self.open_top() as top:
            filled = tuple(place for place in mounted if _is_filled(top, place))
        files = [file.place for s in shown if isinstance(s, VolumesStep) for file in s.files]
        # What has no dataset and no place is reported through what should have been mounted in it.
        reported = tuple(m for m in missing if m.dataset)
        return View(mounted=(*mounted, *files), filled=filled, missing=(*reported, *self._lacking))

    def check(self) -> list[str]:
        """Compare every mount with the one that was made. Return what is wrong, in words."""
        try:
            now = {p.step.place: p for p in self._take_prints([p.step for p in self._prints])}
        except KopiatomicError as error:
            return [error.message, *self._volumes.problems]
        except OSError as error:
            return [f"the view at {printable(self._base)} is gone ({error.strerror}): somebody removed its directory"]
        changed = [p.step for p in self._prints if now[p.step.place] != p]
        replaced = [f"{_what(step)} was taken away or replaced while the engine ran" for step in changed]
        return [*replaced, *self._volumes.problems]

    def recorded(self, shown: Sequence[str]) -> Sequence[str]:
        """Return where trees begin that the metadata record is of; ``shown`` are places that are frozen, or stand for such."""
        raise NotImplementedError

    def trees(self) -> Iterator[Tree]:
        """Yield each tree that is frozen, or stands for one, open until the next; each on one filesystem. Raises OSError."""
        shown = {p.step.place: p.step for p in self._prints if _is_tree(p.step)}
        devices: dict[str, int] = {}
        with self.open_top() as top:
            for place in self.recorded([*shown]):
                with opened(top, place) as fd:
                    device = devices[place] = os.fstat(fd).st_dev
                    above = next((devices[p] for p in paths.parents(place) if p in devices), None)
                    if device != above:
                        step = shown.get(place)
                        yield Tree(place, fd, _key(step) if isinstance(step, SnapshotStep) else None)

    def form(self, dataset: tuple[str, str]) -> str:
        """Return how a dataset is shown: the steps of it, and those in its places."""
        own = [step for step in self._shown if isinstance(step, SnapshotStep) and _key(step) == dataset]
        inside = [step for step in self._shown if any(is_at_or_below(step.place, one.place) for one in own)]
        return json.dumps([_form(step) for step in sorted({*own, *inside}, key=lambda step: step.place)])

    @contextmanager
    def record(self) -> Iterator[int]:
        """Yield the directory of the metadata record, open; nothing can be written to it afterwards. Raises OSError."""
        place = next((p.step.place for p in self._prints if isinstance(p.step, RecordStep)), None)
        if place is None:
            raise FileNotFoundError(errno.ENOENT, "somebody removed its directory")
        with self.open_top() as top, opened(top, place) as fd:
            yield fd
            flags = linux.MS_BIND | linux.MS_REMOUNT | FLAGS
            linux.mount("none", f"/proc/self/fd/{fd}", None, flags)

    def remove(self) -> list[str]:
        """Do nothing: all of it ends with the namespace."""
        return []

    def open_top(self) -> AbstractContextManager[int]:
        """Open the top of the view as it is seen now."""
        return closing(os.open(self.top(), LOOK | os.O_CLOEXEC))

    def mount(self, step: Step, tops: Tops) -> Missing | None:
        """Mount one step. Return what has no place, if so. Raises KopiatomicError if the user named that."""
        if isinstance(step, ScaffoldStep) and self._is_needless(step):
            self._needless.add(step.place)
            del self._by_place[step.place]
            return None
        obstacle = self._obstacle_to(step, tops)
        if obstacle is None:
            return None
        missing = obstacle.missing(step)
        if step.named:
            raise named_and_missing(missing)
        return missing

    def _is_needless(self, scaffold: Step) -> bool:
        """Whether the frozen tree itself has the directories that a scaffold is for; otherwise note what it hides."""
        holder = self.above(scaffold.place)
        if holder is None or not is_frozen(holder):
            return False
        with self.open_top() as top:
            if all(_is_directory(top, place) for place in held_by(scaffold, self._steps)):
                return True
            if _is_directory(top, scaffold.place) and _is_filled(top, scaffold.place):
                self._lacking.append(hidden_by(scaffold, self._steps, holder))
        return False

    def _obstacle_to(self, step: Step, tops: Tops) -> Obstacle | None:
        """Mount one step. Return why its place does not exist, if so."""
        with self.open_top() as root:
            try:
                target = self.place(root, step)
            except OSError as error:
                gone = presence.moved(error) or error.errno == errno.EROFS
                if gone or not (step.named or concerns_all(error.errno)):
                    found, inside = _obstacle(root, relative(step.place), "/", error), self._inside(step.place)
                    return found.further(inside) if inside else found.gone("")
                raise KopiatomicError(
                    f"the place {printable(step.place)} cannot be opened: {error.strerror}", kind="place"
                ) from None
        try:
            obstacle = self.mount_on(step, f"/proc/self/fd/{target}", tops)
            if obstacle is None and isinstance(step, SnapshotStep):
                self._restrict(step)
            return obstacle
        except OSError as error:
            failure = _mount_failed(step, error)
            if step.named or not is_frozen(step) or (concerns_all(error.errno) and not _known_failure(step, error)):
                raise failure from None
            return Obstacle(failure.message)
        finally:
            os.close(target)

    def above(self, place: str) -> Step | None:
        """Return the step whose mount holds a place of the view; None if only our scaffolding does."""
        return next((self._by_place[p] for p in paths.parents(place) if p in self._by_place), None)

    def _inside(self, place: str) -> str:
        """Return whose frozen tree holds a place, in words; empty if ours does."""
        holder = self.above(place)
        return "" if holder is None or not is_frozen(holder) else f" in the snapshot of {printable(holder.dataset)}"

    def place(self, top: int, step: Step) -> int:
        """Open the mount point of a step. Raises OSError."""
        return linux.open_beneath(top, relative(step.place), ANY if is_file(step) else PATH)

    def mount_on(self, step: Step, target: str, tops: Tops) -> Obstacle | None:
        """Mount a step. Return why the part to show does not exist, if so. Raises OSError, KopiatomicError."""
        if isinstance(step, ScaffoldStep | RecordStep):
            mount_scaffold(target)
        elif isinstance(step, VolumesStep):
            self._volumes.show(target, step)
        else:
            assert isinstance(step, SnapshotStep)
            if not step.part and not step.mounting.inside:
                _mount_snapshot(step.mounting, target)
                return None
            with tops.of(step) as top:
                self._lacking += _strayed(step, top)
                return self._bind(step, top, target)
        return None

    def _restrict(self, step: Step) -> None:
        """Apply to a place the flags of the host's mount, which no snapshot has by itself. Raises OSError."""
        options = holder(step.place, self._host).options
        kept = sum(flag for name, flag in _KEPT.items() if name in options)
        if kept:
            with self.open_top() as root, closing(linux.open_beneath(root, relative(step.place), ANY)) as mounted:
                flags = linux.MS_BIND | linux.MS_REMOUNT | FLAGS | kept
                linux.mount("none", f"/proc/self/fd/{mounted}", None, flags)

    @staticmethod
    def _bind(step: SnapshotStep, top: int, target: str) -> Obstacle | None:
        """Show a snapshot, or a part of it, whose top directory is open. As :meth:`mount_on`."""
        try:
            source = linux.open_beneath(top, step.part or ".", ANY if step.file else PATH)
        except OSError as error:
            return _obstacle(top, step.part, step.place.removesuffix(step.part), error).gone(" in its snapshot")
        with closing(source):
            if backends.of(step.kind).is_left_out(source):
                return Obstacle(f"{printable(step.place)} is a subvolume of its own").gone(" in its snapshot")
            # A bind of a read-only mount is read-only itself.
            linux.mount(f"/proc/self/fd/{source}", target, None, linux.MS_BIND)
        return None

    def _take_prints(self, steps: Sequence[Step]) -> list[_Fingerprint]:
        table = {mount.id: mount for mount in mountinfo.read()}
        prints = []
        with self.open_top() as root:
            for step in steps:
                try:
                    kind = ANY if is_file(step) else LOOK
                    with closing(linux.open_beneath(root, relative(step.place), kind)) as fd:
                        mount = table.get(mountinfo.id_of(fd))
                        inode = os.fstat(fd).st_ino
                        identity = _identity(step, fd)
                except OSError as error:
                    raise KopiatomicError(
                        f"{_what(step)} is gone from the view: {error.strerror}",
                        kind="view-changed",
                    ) from None
                if mount is None:
                    raise KopiatomicError(
                        f"{_what(step)} is not mounted in the view any more",
                        kind="view-changed",
                    )
                prints.append(_Fingerprint(step, mount.id, mount.device, mount.root, inode, identity))
        return prints


def opened(root: int, place: str) -> AbstractContextManager[int]:
    """Open a directory of the view for reading. Raises OSError."""
    return closing(linux.open_beneath(root, relative(place), LOOK))


def mount_scaffold(point: str) -> None:
    """Mount a small filesystem in memory for directories that hold mount points. Raises OSError."""
    linux.mount(SCAFFOLD_SOURCE, point, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0700")


def is_file(step: Step) -> bool:
    """Whether a step shows a part of a snapshot that is no directory."""
    return isinstance(step, SnapshotStep) and step.file


def _is_tree(step: Step) -> bool:
    return isinstance(step, ScaffoldStep) or (isinstance(step, SnapshotStep) and not step.file)


def _key(step: SnapshotStep) -> tuple[str, str]:
    return step.kind.name, step.dataset


def _form(step: Step) -> tuple[str, ...]:
    """Return what a step shows, and where; not of which run."""
    if isinstance(step, SnapshotStep):
        return step.place, *_key(step), step.part, str(step.file), *step.outside
    return step.place, type(step).__name__


def _identity(step: Step, fd: int) -> bytes:
    """Return what tells a step's snapshot from any other, by its place, which is open. Raises OSError."""
    return b"" if is_file(step) or not isinstance(step, SnapshotStep) else backends.of(step.kind).identity(fd)


def _what(step: Step) -> str:
    if isinstance(step, RecordStep):
        return f"the metadata record at {printable(step.place)}"
    if isinstance(step, ScaffoldStep):
        return f"the directory at {printable(step.place)} that holds mount points"
    if isinstance(step, VolumesStep):
        return f"the directory at {printable(step.place)} that holds volumes"
    return f"the snapshot of {printable(step.dataset)}"


def relative(place: str) -> str:
    """Return a place as a path below the view's top, as it is opened."""
    return place.strip("/") or "."


def joined(root: str, place: str) -> str:
    """Return the path of a place of the view."""
    return root if place == "/" else root.rstrip("/") + place


class Tops:
    """The tops of snapshots, in mounts on our own directories, which are removed with the block.

    A bind of a part outlives them.
    """

    def __init__(self, base: int) -> None:
        self._base = base
        self._mounts: dict[Mounting, int] = {}
        """The last few, by what is mounted: there may be more than descriptors."""
        self._names: dict[Mounting, str] = {}
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for whole in [*self._mounts]:
            self._let_go(whole)

    def _let_go(self, whole: Mounting) -> None:
        fd = self._mounts.pop(whole)
        linux.detach(f"/proc/self/fd/{fd}")
        os.close(fd)
        os.rmdir(self._names.pop(whole), dir_fd=self._base)

    @contextmanager
    def of(self, step: SnapshotStep) -> Iterator[int]:
        """Yield the top directory of a step's snapshot, open. Raises OSError, KopiatomicError."""
        mounting = step.mounting
        if not mounting.inside:
            yield self._mounted(mounting)
            return
        try:
            mounted = self._mounted(replace(mounting, inside=""))
        except OSError as error:
            raise refused(f"the {step.kind.set_word} {printable(mounting.source)} cannot be mounted", error) from None
        with closing(linux.open_beneath(mounted, mounting.inside, PATH)) as top:
            yield top

    def _mounted(self, whole: Mounting) -> int:
        """Keep it attached until the end, or until others are needed: a detached mount cannot be the source of a bind."""
        if whole not in self._mounts:
            if len(self._mounts) == _MOST_ASIDE:
                self._let_go(next(iter(self._mounts)))
            name = self._names[whole] = _ASIDE.format(self._count)
            self._count += 1
            os.mkdir(name, 0o700, dir_fd=self._base)
            point = os.open(name, PATH | os.O_CLOEXEC, dir_fd=self._base)
            try:
                _mount_snapshot(whole, f"/proc/self/fd/{point}")
                self._mounts[whole] = linux.open_beneath(self._base, name, PATH)
            finally:
                os.close(point)
        return self._mounts[whole]


def _mount_snapshot(mounting: Mounting, target: str) -> None:
    """Raises OSError."""
    flags = linux.MS_BIND if mounting.fstype is None else FLAGS
    linux.mount(mounting.source, target, mounting.fstype, flags, mounting.data)


_ASIDE = ".aside-{}"
_MOST_ASIDE = 16
SCAFFOLD_SOURCE = "kopiatomic"


def _obstacle(top: int, path: str, place: str, error: OSError) -> Obstacle:
    """Say why a path below an open directory cannot be opened: its first component that is missing, or not a directory.

    ``place`` is that directory's in the view.
    """
    parts = path.split("/")
    for count in range(1, len(parts) + 1):
        beginning = "/".join(parts[:count])
        shown = printable(f"{place.rstrip('/')}/{beginning}")
        try:
            with closing(linux.open_beneath(top, beginning, ANY)) as fd:
                mode = os.fstat(fd).st_mode
        except FileNotFoundError:
            return Obstacle(f"{shown} does not exist")
        except OSError as failure:
            return Obstacle(f"{shown}: {failure.strerror}")
        if not stat.S_ISDIR(mode):
            if stat.S_ISLNK(mode):
                return Obstacle(f"{shown} is a link", ELSEWHERE)
            return Obstacle(f"{shown} is no directory")
    return Obstacle(error.strerror or str(error))


def _is_directory(top: int, place: str) -> bool:
    try:
        with closing(linux.open_beneath(top, relative(place), PATH)):
            return True
    except OSError as error:
        if presence.moved(error):
            return False
        raise


def _is_filled(top: int, place: str) -> bool:
    with opened(top, place) as directory:
        return holds_something(directory)


def _strayed(step: SnapshotStep, top: int) -> Iterator[Missing]:
    """Yield what is nested in a snapshot's dataset and was, at the instant, not where the plan found it outside the part.

    It, or a directory above it, was moved in between: it may have been in the part.
    """
    backend = backends.of(step.kind)
    for path in step.outside:
        try:
            with closing(linux.open_beneath(top, path, PATH)) as fd:
                if backend.is_left_out(fd):
                    continue
        except OSError:
            pass
        name = f"{step.dataset.rstrip('/')}/{path}"
        yield Missing(
            name,
            "",
            f"was moved or deleted between the listing and the instant, and may have been in {printable(step.place)}",
        )


def _known_failure(step: Step, error: OSError) -> KopiatomicError | None:
    """What the kind of filesystem knows of an error, which then concerns this one dataset."""
    return step.kind.why_not_mounted(step.dataset, error) if isinstance(step, SnapshotStep) else None


def _mount_failed(step: Step, error: OSError) -> KopiatomicError:
    known = _known_failure(step, error)
    return known or refused(f"the snapshot of {printable(step.dataset)} cannot be mounted", error)
