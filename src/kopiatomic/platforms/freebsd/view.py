"""Views on FreeBSD: the snapshots, mounted below a directory of the run, and a read-only nullfs of each in its place.

All mounts are visible to the whole system and outlive this process, so each is recorded before it is made, and :meth:`remove`
removes them. Destroying a directly mounted snapshot can unmount it; the nullfs over it prevents that (docs/freebsd.md).

Mounting follows links, and a frozen tree belongs to its users; but it does not change any more, so it is enough to check once
that no link leads to a mount point. In a live tree the mount point must be a directory that only root can move.
"""

from __future__ import annotations

import errno
import os
import shlex
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError, concerns_all
from kopiatomic.immutable import immutable
from kopiatomic.model.leftovers import Intent
from kopiatomic.model.mounts import Mount, visible
from kopiatomic.paths import below, is_at_or_below, parents
from kopiatomic.platforms.freebsd import leftovers, permissions
from kopiatomic.platforms.steps import (
    ELSEWHERE,
    LiveStep,
    Missing,
    Obstacle,
    ScaffoldStep,
    SnapshotStep,
    Step,
    View,
    held_by,
    hidden_by,
    holds_something,
    is_frozen,
    missing_text,
    named_and_missing,
)
from kopiatomic.system import freebsd_mounting, freebsd_mounts, safety
from kopiatomic.system.freebsd import Kernel
from kopiatomic.system.freebsd_mounting import Options
from kopiatomic.system.freebsd_paths import open_beneath
from kopiatomic.system.spawn import User
from kopiatomic.text import printable

_SECOND_LOOK = 0.3
"""Seconds until a mount that was not seen is looked for again: MNT_NOWAIT leaves out what somebody tries to unmount, also
where that fails (getfsstat(2))."""


@immutable
class Planned:
    """A step, and how it is mounted: what (``source``), of which type, and where.

    ``whole`` is the run's own directory that shows all of a snapshot, or is our directory itself; empty for what is live.
    """

    step: Step
    source: str
    point: str
    whole: str = ""
    fstype: str = "nullfs"
    options: Options = freebsd_mounting.READ_ONLY


@immutable
class _Fingerprint:
    """What distinguishes one mount from all others: compared before and after the engine.

    In a jail the id is 0. What is live may change, and may not answer: only the mount itself is compared.
    """

    id: int
    fstype: str
    source: str
    device: int = 0
    inode: int = 0


class FreeBSDView:
    """Mounts what a layout has planned, checks it after the engine, and unmounts it.

    ``root`` is the view's top and ``base`` the run's own directory (``roots.of_run``), which exists and is empty. ``record``
    records intents; its exceptions are passed on, and then nothing is mounted.
    """

    def __init__(
        self,
        root: str,
        base: str,
        planned: Sequence[Planned],
        kernel: Kernel,
        record: Callable[[Sequence[Intent]], None],
    ) -> None:
        self._root = root
        self._base = base
        self._kernel = kernel
        self._record = record
        self._planned = planned
        self._intents = _intents(base, planned)
        self._mounted: dict[str, Planned] = {}
        """By place."""
        self._refused: dict[str, str] = {}
        """Why a snapshot could not be mounted aside, by the place there."""
        self._prints: dict[str, _Fingerprint] = {}
        """By mount point."""
        self._lacking: list[Missing] = []
        """What is not in the view as it was at the instant, besides what has no place."""
        self._live: set[str] = set()
        """The points at which something live is seen."""
        self._temporaries = 0
        """How many programs have had a directory for temporary files."""

    def top(self) -> str:
        """Return the path of the view's top directory."""
        return self._root

    def engine_root(self) -> int | None:
        """Return None: the engine's root stays."""
        return None

    def look(self) -> None:
        """Do nothing: attributes of the live system are read while the view is assembled."""

    def assemble(self) -> View:
        """Mount everything. Raises KopiatomicError, OSError; then :meth:`remove` unmounts what was mounted."""
        self.require()
        permissions.require(self._kernel, {p.fstype for p in self._planned})
        require_safe(self._root)
        self._require_free()
        self._record(self._intents)
        self._mount_snapshots()
        missing = [found for planned in self._planned if (found := self._mount(planned))]
        self.finish()
        self._prints = self._take_prints()
        shown = [p for p in self._mounted.values() if is_frozen(p.step)]
        return View(
            mounted=tuple(p.step.place for p in shown),
            filled=tuple(p.step.place for p in shown if holds_something(p.point)),
            # What has no dataset and no place is reported through what should have been mounted in it.
            missing=(*(m for m in missing if m.dataset), *self._lacking),
        )

    def require(self) -> None:
        """Refuse what this layout cannot show. Raises KopiatomicError."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Fill our directories, which exist now. Raises OSError."""

    def finish(self) -> None:
        """Do what is left to do when all is mounted. Raises OSError, KopiatomicError."""

    def _require_free(self) -> None:
        """Refuse a mount root that has mounts: the view would cover them, or contain them."""
        foreign = [m.point for m in freebsd_mounts.read(self._kernel) if is_at_or_below(m.point, self._root)]
        if foreign:
            raise KopiatomicError(
                f"the mount root {printable(self._root)} cannot be used: something is mounted at {printable(foreign[0])}",
                kind="mount-root",
                hint="Another run's view, or what one left ('kopiatomic recover')? Choose another with --mount-root.",
            )

    def _mount_snapshots(self) -> None:
        try:
            freebsd_mounting.mount_tmpfs(self._kernel, self._base)
            for planned in self._planned:
                if planned.whole:
                    os.makedirs(planned.whole, 0o755, exist_ok=True)
            self.prepare()
        except OSError as error:
            raise _mount_failed(f"nothing can be mounted on {printable(self._base)}", error) from None
        for whole, step in _snapshots(self._planned).items():
            try:
                freebsd_mounting.mount_snapshot(self._kernel, step.source, whole)
            except OSError as error:
                failure = _snapshot_failed(step, error)
                named = any(planned.step.named for planned in self._planned if planned.whole == whole)
                if named or (concerns_all(error.errno) and error.errno != errno.EACCES):
                    raise failure from None
                self._refused[whole] = failure.message

    def _mount(self, planned: Planned) -> Missing | None:
        """Mount one step in its place. Return what has no place, if so. Raises KopiatomicError if the user named that."""
        step = planned.step
        if isinstance(step, ScaffoldStep) and not step.named and self._is_needless(step):
            return None
        obstacle = _too_long(planned) or self.obstacle(planned)
        if obstacle is None:
            try:
                freebsd_mounting.mount(
                    self._kernel, planned.fstype, planned.source, planned.point, self.options(planned)
                )
            except OSError as error:
                raise _mount_failed(f"{_what(step)} cannot be shown at {printable(planned.point)}", error) from None
            self._mounted[step.place] = planned
            (self._live.add if isinstance(step, LiveStep) else self._live.discard)(planned.point)
            return None
        missing = obstacle.missing(step)
        if step.named:
            raise named_and_missing(missing) if is_frozen(step) else _nowhere(missing)
        return missing

    def _is_needless(self, scaffold: Step) -> bool:
        """Whether the frozen tree itself has the directories that a scaffold is for; otherwise note what it hides."""
        above = self.first_mounted(parents(scaffold.place))
        if above is None or not is_frozen(above.step):
            return False
        steps = [p.step for p in self._planned]
        inside = [below(place, above.step.place) for place in held_by(scaffold, steps)]
        if all(_is_directory(above.point, path) for path in inside):
            return True
        if _is_directory(above.point, below(scaffold.place, above.step.place)) and holds_something(
            joined(self._root, scaffold.place)
        ):
            self._lacking.append(hidden_by(scaffold, steps, above.step))
        return False

    def options(self, planned: Planned) -> Options:
        """Return the mount options of a step."""
        return planned.options

    def obstacle(self, planned: Planned) -> Obstacle | None:
        """Return why a step's place, or the part to show, does not exist, if so; make it if the place is ours."""
        step = planned.step
        above = self.first_mounted(parents(step.place))
        if above is not None and isinstance(above.step, ScaffoldStep):
            os.makedirs(f"{above.whole}/{below(step.place, above.step.place)}", 0o755, exist_ok=True)
        elif above is not None:
            try:
                os.close(open_beneath(above.point, below(step.place, above.step.place)))
            except OSError as error:
                obstacle = _obstacle(error, above.step.place)
                if isinstance(above.step, LiveStep):
                    return obstacle.gone("")
                return obstacle.further(f" in the snapshot of {printable(above.step.dataset)}")
        if not isinstance(step, SnapshotStep):
            return None
        if planned.whole in self._refused:
            return Obstacle(self._refused[planned.whole])
        try:
            os.close(open_beneath(planned.whole, step.part))
        except OSError as error:
            return _obstacle(error, step.place.removesuffix(step.part)).gone(" in its snapshot")
        return None

    def first_mounted(self, directories: Sequence[str]) -> Planned | None:
        """Return what is mounted at the first of some places that has a mount; None for the top itself."""
        return next((self._mounted[place] for place in directories if place in self._mounted), None)

    def seen_from_outside(self, _launcher: int) -> str:
        """Return nothing: a program has the same root, and the view is visible to the whole system."""
        return ""

    @contextmanager
    def temporary(self, _point: str, user: User | None) -> Iterator[str]:
        """Make one in the run's own directory, where only root comes to it; it is removed with all the rest."""
        if user is not None:
            yield ""
            return
        name = f"temporary-{self._temporaries}"
        self._temporaries += 1
        os.mkdir(f"{self.aside()}/{name}", 0o700)
        yield f"{self._base}/{name}"

    def aside(self) -> str:
        """Return the directory of ours that a program sees, writable, at the run's own directory."""
        return self._base

    def watch(self, _sources: Sequence[str]) -> None:
        """Return None: kqueue(2) has not been seen to report a directory that is opened through a nullfs."""

    def check(self) -> list[str]:
        """Compare every mount with the one that was made. Return what is wrong, in words."""
        problems: list[str] = []
        for pause in (0.0, _SECOND_LOOK):
            time.sleep(pause)
            problems = self._changes()
            if not problems:
                break
        return problems

    def _changes(self) -> list[str]:
        try:
            seen = visible(freebsd_mounts.read(self._kernel))
        except KopiatomicError as error:
            return [f"whether the view is still what was mounted cannot be told: {error.message}"]
        what = self._points()
        changed = [what[point] for point, before in self._prints.items() if self._print(point, seen) != before]
        foreign = [point for point in seen if is_at_or_below(point, self._root) and point not in self._prints]
        return [
            *(f"{thing} was taken away or replaced while the engine ran" for thing in dict.fromkeys(changed)),
            *(f"somebody has mounted something in the view, at {printable(point)}" for point in foreign),
        ]

    def _points(self) -> dict[str, str]:
        """Return the mount points, and what is mounted there in words: in the view, and in the run's own directory."""
        snapshots = _snapshots(self._planned).items()
        points = {whole: _what(step) for whole, step in snapshots if whole not in self._refused}
        return points | {p.point: _what(p.step) for p in self._mounted.values()}

    def _take_prints(self) -> dict[str, _Fingerprint]:
        seen = visible(freebsd_mounts.read(self._kernel))
        prints = {}
        for point, what in self._points().items():
            found = self._print(point, seen)
            if found is None:
                raise KopiatomicError(
                    f"{what} is not what is seen at {printable(point)}, although it was mounted there",
                    kind="view-changed",
                    hint="Somebody mounts or unmounts there just now; find out who, and run again.",
                )
            prints[point] = found
        return prints

    def _print(self, point: str, seen: dict[str, Mount]) -> _Fingerprint | None:
        return _print_of_live(point, seen) if point in self._live else _print(point, seen)

    def remove(self, timeout: float = leftovers.BUSY_TIMEOUT) -> list[str]:
        """Unmount everything; wait so long (seconds) for processes that use it. Return what is left, in words.

        Another process than the one that made the mounts may call it, with a view of the same plan and directories. Raises
        KopiatomicError if that cannot be known.
        """
        mounts = [(i.place, i.name, i.origin) for i in self._intents]
        return [
            f"mount {printable(point)}: {problem} (remove it with: {shlex.join(['umount', printable(point)])})"
            for (_, point, _), problem in leftovers.clear(self._kernel, mounts, timeout).items()
        ]


def directories(base: str, steps: Sequence[Step]) -> list[str]:
    """Return for each step the run's own directory that shows it whole; empty for what is live.

    A snapshot has one, however many parts of it are shown.
    """
    snapshots: dict[str, str] = {}
    found = []
    for position, step in enumerate(steps):
        if isinstance(step, LiveStep):
            found.append("")
        elif isinstance(step, SnapshotStep):
            found.append(snapshots.setdefault(step.source, f"{base}/s{len(snapshots)}"))
        else:
            found.append(f"{base}/d{position}")
    return found


def frozen(step: Step, whole: str, point: str) -> Planned:
    """Return a read-only nullfs of a snapshot, of a part of one, or of one of our directories."""
    part = step.part if isinstance(step, SnapshotStep) else ""
    return Planned(step, f"{whole}/{part}" if part else whole, point, whole)


def joined(root: str, place: str) -> str:
    """Return the path of a place of the view."""
    return root if place == "/" else root.rstrip("/") + place


def require_safe(root: str) -> None:
    """Refuse a mount root that others could move or replace by a link: mounting uses its path."""
    why = unsafe(root)
    if why is not None:
        raise KopiatomicError(
            f"the mount root {printable(root)} cannot be used: {why}",
            kind="mount-root",
            hint="Choose another with --mount-root, all of whose parent directories are root's, such as /kopia.",
        )


def unsafe(path: str, frozen: Collection[str] = ()) -> str | None:
    """Return why a path may lead elsewhere by the time of the mount; None if only root could do that.

    From a directory that is ``frozen`` on upwards nothing can be moved.
    """
    try:
        return safety.unsafe(path, frozen) or None
    except OSError as error:
        return f"{printable(path)}: {error.strerror}"


def _snapshots(planned: Sequence[Planned]) -> dict[str, SnapshotStep]:
    """Return the directories on which snapshots are mounted."""
    return {p.whole: p.step for p in planned if isinstance(p.step, SnapshotStep)}


def _intents(base: str, planned: Sequence[Planned]) -> list[Intent]:
    return [
        Intent("mount", "tmpfs", base, "tmpfs"),
        *(Intent("mount", "zfs", whole, step.source) for whole, step in _snapshots(planned).items()),
        *(Intent("mount", p.fstype, p.point, p.source) for p in planned),
    ]


def _too_long(planned: Planned) -> Obstacle | None:
    longest = max(len(os.fsencode(path)) for path in (planned.point, planned.source))
    if longest < freebsd_mounts.MNAMELEN:
        return None
    return Obstacle(
        f"its path has {longest} bytes there, and FreeBSD mounts paths of up to {freebsd_mounts.MNAMELEN - 1}",
        "Choose a shorter directory with --mount-root, or leave it out (--exclude).",
    )


def _is_directory(top: str, path: str) -> bool:
    try:
        os.close(open_beneath(top, path))
    except OSError as error:
        if presence.moved(error):
            return False
        raise
    return True


def _obstacle(error: OSError, place: str) -> Obstacle:
    """Say why a directory below a place of the view cannot be opened."""
    shown = printable(f"{place.rstrip('/')}/{error.filename}")
    if error.errno == errno.ENOENT:
        return Obstacle(f"{shown} does not exist")
    if error.errno == errno.ELOOP:
        return Obstacle(f"{shown} is a link", ELSEWHERE)
    if error.errno == errno.ENOTDIR:
        return Obstacle(f"{shown} is no directory")
    return Obstacle(f"{shown}: {error.strerror}")


def _print(point: str, seen: dict[str, Mount]) -> _Fingerprint | None:
    """Return the mount that is seen at a point and that its path leads to; None without one, or if they differ."""
    mount = seen.get(point)
    try:
        status = os.stat(point, follow_symlinks=False)
    except OSError:
        return None
    if mount is None or not freebsd_mounts.is_device_of(mount, status.st_dev):
        return None
    return _Fingerprint(max(mount.id, 0), mount.fstype, mount.source, status.st_dev, status.st_ino)


def _print_of_live(point: str, seen: dict[str, Mount]) -> _Fingerprint | None:
    mount = seen.get(point)
    return None if mount is None else _Fingerprint(max(mount.id, 0), mount.fstype, mount.source)


def _what(step: Step) -> str:
    if isinstance(step, ScaffoldStep):
        return f"the directory at {printable(step.place)} that holds mount points"
    if isinstance(step, LiveStep):
        return f"the live {printable(step.place)}"
    return f"the snapshot of {printable(step.dataset)}"


def _nowhere(missing: Missing) -> KopiatomicError:
    """Describe a missing place of no dataset, without which there is no view."""
    return KopiatomicError(
        missing_text(missing),
        kind="place-missing",
        hint="That directory was not there at the instant of the snapshot, or cannot be used: see to it, and run again; or use "
        "--layout merged.",
    )


def _snapshot_failed(step: Step, error: OSError) -> KopiatomicError:
    what = f"{_what(step)} cannot be mounted"
    if error.errno == errno.EACCES:
        return KopiatomicError(
            f"{what}: its encryption key is not loaded", kind="key-not-loaded", hint=f"zfs load-key {step.dataset}"
        )
    if error.errno == errno.EBUSY:
        return KopiatomicError(
            f"{what}: it is mounted already, and FreeBSD mounts a snapshot once",
            kind="mount",
            hint="'mount -v' shows where; somebody looks for new snapshots and mounts them. Unmount it, and run again.",
        )
    return _mount_failed(what, error)


def _mount_failed(what: str, error: OSError) -> KopiatomicError:
    hint = "See 'dmesg' for what the kernel says."
    if error.errno == errno.EPERM:
        hint = "kopiatomic needs root; in a jail also what docs/freebsd.md says of jails."
    return KopiatomicError(f"{what}: {error.strerror}", kind="mount", hint=hint)
