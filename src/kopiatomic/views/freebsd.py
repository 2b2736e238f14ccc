"""The merged view on FreeBSD: the snapshots, mounted below a directory of the run, and a read-only nullfs of each in its place.

All mounts are the whole system's and outlive this process, so each is put on record before it is made, and :meth:`remove`
takes them away. A directly mounted snapshot can be pulled away by who destroys it; the nullfs over it stops that
(docs/freebsd.md).

Mounting follows links, and a frozen tree belongs to its users; but it does not change any more, so it is enough to look
once that no link leads to a mount point.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kopiatomic import mount_leftovers
from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems import may_hang
from kopiatomic.model import Intent
from kopiatomic.paths import below, is_at_or_below
from kopiatomic.system import freebsd_mounting, freebsd_mounts
from kopiatomic.system.freebsd import Kernel
from kopiatomic.system.freebsd_paths import open_beneath
from kopiatomic.system.mountinfo import Mount, holder, parents, visible
from kopiatomic.text import printable
from kopiatomic.views import SCAFFOLD, Missing, Step, View, freebsd_host, holds_something, named_and_missing

_SECOND_LOOK = 0.3
"""Seconds until a mount that was not seen is looked for again: MNT_NOWAIT leaves out what somebody tries to unmount, also
where that fails (getfsstat(2))."""

_TOP = Step("", "/", SCAFFOLD, named=True)
"""Where no snapshot is the top of the view, a directory of ours is."""


@dataclass(frozen=True, slots=True)
class _Planned:
    """A step, the directory of the run's own that shows it whole, and the mount point."""

    step: Step
    whole: str
    point: str

    @property
    def source(self) -> str:
        """What the nullfs shows."""
        return f"{self.whole}/{self.step.part}" if self.step.part else self.whole


@dataclass(frozen=True, slots=True)
class _Print:
    """What tells one mount from any other: compared before and after the engine. In a jail the id is 0."""

    id: int
    fstype: str
    source: str
    device: int
    inode: int


class FreeBSDView:
    """Mounts the steps of a view, checks them after the engine, and takes them away again.

    ``root`` is the view's top and ``base`` a directory that is the run's own (``roots.of_run``): both exist, and are empty.
    ``record`` puts intents on record; what it raises is passed on, and nothing is mounted then.
    """

    def __init__(
        self, root: str, base: str, steps: Sequence[Step], kernel: Kernel, record: Callable[[Sequence[Intent]], None]
    ) -> None:
        self._root = root
        self._base = base
        self._kernel = kernel
        self._record = record
        self._planned = _plan(root, base, steps)
        self._intents = _intents(base, self._planned)
        self._mounted: dict[str, _Planned] = {}
        """By place."""
        self._prints: dict[str, _Print] = {}
        """By mount point."""

    def top(self) -> str:
        """The path of the view's top directory."""
        return self._root

    def engine_root(self) -> int | None:
        """None: the engine's root stays."""
        return None

    def assemble(self) -> View:
        """Mount everything. Raises KopiatomicError, OSError; what is mounted then is for :meth:`remove`."""
        _refuse_what_is_not_built(self._planned)
        freebsd_host.require(self._kernel)
        _require_safe(self._root)
        self._require_free()
        self._record(self._intents)
        self._mount_snapshots()
        missing = [found for planned in self._planned if (found := self._mount(planned))]
        self._copy_attributes()
        self._prints = self._take_prints()
        shown = [p for p in self._mounted.values() if p.step.fstype != SCAFFOLD]
        return View(
            mounted=tuple(p.step.place for p in shown),
            filled=tuple(p.step.place for p in shown if holds_something(p.point)),
            # What has no dataset and no place is told by what should have been mounted in it.
            missing=tuple(m for m in missing if m.dataset),
        )

    def _require_free(self) -> None:
        """Refuse a mount root that has mounts: the view would cover them, or they would be in it."""
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
                os.makedirs(planned.whole, 0o755, exist_ok=True)
        except OSError as error:
            raise _mount_failed(f"nothing can be mounted on {printable(self._base)}", error) from None
        for whole, step in {p.whole: p.step for p in self._planned if p.step.fstype != SCAFFOLD}.items():
            try:
                freebsd_mounting.mount_snapshot(self._kernel, step.source, whole)
            except OSError as error:
                raise _snapshot_failed(step, error) from None

    def _mount(self, planned: _Planned) -> Missing | None:
        """Mount one step in its place; returns what has none, if so. Raises KopiatomicError where the user named that."""
        step = planned.step
        reason = _too_long(planned) or self._obstacle(planned)
        if reason is None:
            try:
                freebsd_mounting.mount_nullfs(self._kernel, planned.source, planned.point)
            except OSError as error:
                raise _mount_failed(f"{_what(step)} cannot be shown at {printable(planned.point)}", error) from None
            self._mounted[step.place] = planned
            return None
        missing = Missing(step.dataset, step.place, reason)
        if step.named:
            raise named_and_missing(missing)
        return missing

    def _obstacle(self, planned: _Planned) -> str | None:
        """Why a step's place, or the part that is to be shown, does not exist, if so; a place of ours is made."""
        step = planned.step
        above = self._holder(parents(step.place))
        if above is not None and above.step.fstype == SCAFFOLD:
            os.makedirs(f"{above.whole}/{below(step.place, above.step.place)}", 0o755, exist_ok=True)
        elif above is not None:
            try:
                os.close(open_beneath(above.source, below(step.place, above.step.place)))
            except OSError as error:
                return f"{_reason(error, above.step.place)} in the snapshot of {printable(above.step.dataset)}"
        try:
            os.close(open_beneath(planned.whole, step.part))
        except OSError as error:
            return f"{_reason(error, step.place.removesuffix(step.part))} in its snapshot"
        return None

    def _holder(self, directories: Sequence[str]) -> _Planned | None:
        """What is mounted at the first of some places that has anything; None for the top itself."""
        return next((self._mounted[place] for place in directories if place in self._mounted), None)

    def _copy_attributes(self) -> None:
        """Give the directories that only hold mount points the mode, owner and times of the real ones."""
        shown = {p.step.place for p in self._planned if p.step.fstype != SCAFFOLD}
        seen = visible(freebsd_mounts.read(self._kernel))
        for directory in {above for place in shown for above in parents(place)} - shown:
            ours = self._holder([directory, *parents(directory)])
            if ours is None or ours.step.fstype != SCAFFOLD:
                # Inside a frozen tree, which has its own attributes.
                continue
            path = f"{ours.whole}/{below(directory, ours.step.place)}".rstrip("/")
            status = _status(directory, seen)
            if status is not None and os.path.isdir(path):
                os.chown(path, status.st_uid, status.st_gid)
                os.chmod(path, stat.S_IMODE(status.st_mode))
                # Nothing is made in it after this.
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def check(self) -> list[str]:
        """Compare every mount with the one that was made. Returns what is wrong, in words."""
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
        changed = [what[point] for point, before in self._prints.items() if _print(point, seen) != before]
        foreign = [point for point in seen if is_at_or_below(point, self._root) and point not in self._prints]
        return [
            *(f"{thing} was taken away or replaced while the engine ran" for thing in dict.fromkeys(changed)),
            *(f"somebody has mounted something in the view, at {printable(point)}" for point in foreign),
        ]

    def _points(self) -> dict[str, str]:
        """The mount points, and what is mounted there in words: in the view, and aside."""
        points = {p.whole: _what(p.step) for p in self._planned if p.step.fstype != SCAFFOLD}
        return points | {p.point: _what(p.step) for p in self._mounted.values()}

    def _take_prints(self) -> dict[str, _Print]:
        seen = visible(freebsd_mounts.read(self._kernel))
        prints = {}
        for point, what in self._points().items():
            found = _print(point, seen)
            if found is None:
                raise KopiatomicError(
                    f"{what} is not what is seen at {printable(point)}, although it was mounted there",
                    kind="view-changed",
                    hint="Somebody mounts or unmounts there just now; find out who, and run again.",
                )
            prints[point] = found
        return prints

    def remove(self, timeout: float = mount_leftovers.BUSY_TIMEOUT) -> list[str]:
        """Take all mounts away; wait so long (seconds) for who uses them. Returns what is left, in words.

        Another process than the one that made them may call it, with a view of the same root, directory and steps.
        Raises KopiatomicError where that cannot be told.
        """
        mounts = [(i.place, i.name, i.origin) for i in self._intents]
        return [
            f"mount {printable(point)}: {problem} (remove it with: {shlex.join(['umount', printable(point)])})"
            for (_, point), problem in mount_leftovers.clear(self._kernel, mounts, timeout).items()
        ]


def _plan(root: str, base: str, steps: Sequence[Step]) -> list[_Planned]:
    """Each snapshot has one directory, however many parts of it are shown; parents come first."""
    snapshots: dict[str, str] = {}
    planned: list[_Planned] = []
    for step in steps if any(s.place == "/" for s in steps) else (_TOP, *steps):
        if step.fstype == SCAFFOLD:
            whole = f"{base}/d{len(planned)}"
        else:
            whole = snapshots.setdefault(step.source, f"{base}/s{len(snapshots)}")
        planned.append(_Planned(step, whole, root if step.place == "/" else root.rstrip("/") + step.place))
    return planned


def _intents(base: str, planned: Sequence[_Planned]) -> list[Intent]:
    snapshots = {p.whole: p.step.source for p in planned if p.step.fstype != SCAFFOLD}
    return [
        Intent("mount", "tmpfs", base, "tmpfs"),
        *(Intent("mount", "zfs", whole, source) for whole, source in snapshots.items()),
        *(Intent("mount", "nullfs", p.point, p.whole) for p in planned),
    ]


def _refuse_what_is_not_built(planned: Sequence[_Planned]) -> None:
    for step in (p.step for p in planned):
        if step.fstype not in {SCAFFOLD, "zfs"} or step.open_top or step.file:
            what = printable(step.dataset or step.place)
            raise KopiatomicError(
                f"{what} cannot be shown on FreeBSD: neither volumes, nor a dataset at / together with what has no place of "
                "its own, nor anything but ZFS is supported there",
                kind="not-on-freebsd",
                hint="Leave --volumes and --include-unmounted out, or back that up with a command of its own and --name.",
            )


def _require_safe(root: str) -> None:
    """Refuse a mount root that somebody else could move or replace by a link: mounting goes by its path."""
    for directory in parents(root):
        status = os.lstat(directory)
        if status.st_uid != 0 or (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
            raise KopiatomicError(
                f"the mount root {printable(root)} cannot be used: others than root may write to {printable(directory)}",
                kind="mount-root",
                hint="Choose another with --mount-root, all of whose parent directories are root's, such as /kopia.",
            )


def _too_long(planned: _Planned) -> str | None:
    longest = max(len(os.fsencode(path)) for path in (planned.point, planned.source))
    if longest < freebsd_mounts.MNAMELEN:
        return None
    return f"its path has {longest} bytes there, and FreeBSD mounts paths of up to {freebsd_mounts.MNAMELEN - 1}"


def _reason(error: OSError, place: str) -> str:
    """Why a directory below a place of the view cannot be opened."""
    shown = printable(f"{place.rstrip('/')}/{error.filename}")
    if error.errno == errno.ENOENT:
        return f"{shown} does not exist"
    if error.errno in {errno.ELOOP, errno.ENOTDIR}:
        return f"{shown} is {'a link' if error.errno == errno.ELOOP else 'no directory'}"
    return f"{shown}: {error.strerror}"


def _status(directory: str, seen: dict[str, Mount]) -> os.stat_result | None:
    """The attributes of a directory of the live system; None where it is gone or a server might not answer."""
    try:
        if may_hang(holder(directory, seen).fstype):
            return None
        fd = open_beneath("/", directory.lstrip("/"))
    except (OSError, KeyError):
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _print(point: str, seen: dict[str, Mount]) -> _Print | None:
    """The mount that is seen at a point and that its path leads to; None where there is none, or where they differ."""
    mount = seen.get(point)
    try:
        status = os.stat(point, follow_symlinks=False)
    except OSError:
        return None
    if mount is None or not freebsd_mounts.is_device_of(mount, status.st_dev):
        return None
    return _Print(max(mount.id, 0), mount.fstype, mount.source, status.st_dev, status.st_ino)


def _what(step: Step) -> str:
    if step.fstype == SCAFFOLD:
        return f"the directory at {printable(step.place)} that holds mount points"
    return f"the snapshot of {printable(step.dataset)}"


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
