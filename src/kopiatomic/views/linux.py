"""The view on Linux: a private mount namespace in which snapshots are mounted with mount(2), read-only.

Everything here runs in the launcher, alone in its namespaces. Mount points inside frozen trees are opened beneath the
view's root without following links: a frozen tree belongs to its users.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Self

from kopiatomic.errors import KopiatomicError, place_needed
from kopiatomic.filesystems import may_hang
from kopiatomic.model import UNMOUNTED, VOLUMES
from kopiatomic.system import btrfs, linux, mountinfo
from kopiatomic.text import printable
from kopiatomic.views import FILES, SCAFFOLD, Missing, Step, View, missing_text
from kopiatomic.views.volumes import Volumes

_FLAGS = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
_ANY = os.O_PATH | os.O_NOFOLLOW
_PATH = _ANY | os.O_DIRECTORY
_LOOK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def enter() -> None:
    """Go into a mount namespace of our own, in which the host's later changes arrive and from which none leave."""
    try:
        linux.unshare(linux.CLONE_NEWNS)
        if "/" not in mountinfo.visible(mountinfo.read()):
            _stand_on_a_mount()
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_SLAVE)
        linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    except OSError as error:
        raise not_permitted("a private mount namespace cannot be made", error) from None


def _stand_on_a_mount() -> None:
    """In a chroot whose ``/`` is a mere folder: go to a copy of it that is a mount.

    Propagation belongs to a mount, and the one that such a ``/`` lies in is out of reach. The copy is put where no mount
    is passed on from, on ``/proc``, and is the root from then on: all paths stay as they were. Raises OSError.
    """
    here = os.getcwd()
    linux.mount("none", "/proc", None, linux.MS_SLAVE)
    linux.mount("/", "/proc", None, linux.MS_BIND | linux.MS_REC)
    os.chdir("/proc")
    os.chroot(".")
    os.chdir(here)


def not_permitted(what: str, error: OSError) -> KopiatomicError:
    """The message for a namespace or mount that the kernel refuses."""
    return KopiatomicError(
        f"{what}: {error.strerror}",
        kind="namespace",
        hint="kopiatomic needs root with CAP_SYS_ADMIN. A container has to be privileged; a systemd unit must not set "
        "RestrictNamespaces=, SystemCallFilter= without @mount, or a CapabilityBoundingSet= without CAP_SYS_ADMIN.",
    )


@dataclass(frozen=True, slots=True)
class _Print:
    """What tells one mount from any other: compared before and after the engine."""

    step: Step
    mount_id: int
    device: str
    root: str
    inode: int
    subvolume: bytes


class LinuxView:
    """Assembles the view at a root directory, and checks it again after the engine."""

    def __init__(self, root: str, steps: Sequence[Step]) -> None:
        self._root = root
        self._steps = list(steps)
        self._prints: list[_Print] = []
        self._volumes = Volumes()

    def assemble(self) -> View:
        """Mount everything. Raises KopiatomicError; whatever is mounted ends with the namespace."""
        scaffolding = _scaffolding(self._steps)
        try:
            _mount_scaffold(self._root)
        except OSError as error:
            raise not_permitted(f"nothing can be mounted on {printable(self._root)}", error) from None
        missing = []
        with self._open_root() as base:
            with _Tops(base) as tops:
                steps = [piece for step in self._steps for piece in _pieces(step, tops)]
                for step in steps:
                    reason = self._mount(step, tops)
                    if reason is not None:
                        missing.append(self._refuse_named(step, Missing(step.dataset, step.place, reason)))
                status = next((_dress(base, step, tops) for step in self._steps if step.open_top), None)
            if status is not None:
                _copy_status(base, ".", status)
        with self._open_root() as root:
            _copy_attributes(root, scaffolding)
        gone = {m.place for m in missing}
        # Of several at one place the last is the one that is seen.
        self._prints = self._take_prints(list({s.place: s for s in steps if s.place not in gone}.values()))
        return self._described(gone, missing)

    def _described(self, gone: set[str], missing: Sequence[Missing]) -> View:
        shown = [s for s in self._steps if s.place not in gone and s.fstype != SCAFFOLD]
        mounted = [s.place for s in shown if s.fstype != FILES]
        with self._open_root() as root:
            filled = tuple(place for place in mounted if _holds_something(root, place))
        files = [file.place for s in shown for file in s.files]
        # A scaffold that has no place is told by what should have been mounted in it.
        told = tuple(m for m in missing if m.dataset)
        return View(mounted=(*mounted, *files), filled=filled, missing=told)

    def check(self) -> list[str]:
        """Compare every mount with the one that was made. Returns what is wrong, in words."""
        try:
            now = {p.step.place: p for p in self._take_prints([p.step for p in self._prints])}
        except KopiatomicError as error:
            return [error.message, *self._volumes.problems]
        except OSError as error:
            return [f"the view at {printable(self._root)} is gone ({error.strerror}): somebody removed its directory"]
        changed = [p.step for p in self._prints if now[p.step.place] != p]
        replaced = [f"{_what(step)} was taken away or replaced while the engine ran" for step in changed]
        return [*replaced, *self._volumes.problems]

    def _refuse_named(self, step: Step, missing: Missing) -> Missing:
        if step.named:
            raise KopiatomicError(
                missing_text(missing, self._steps),
                kind="place-missing",
                hint="The directory that it is mounted on did not exist at the instant of the snapshot. Leave one of "
                "the two out, or back them up with two commands and --name.",
            )
        return missing

    def _open_root(self) -> AbstractContextManager[int]:
        """The top of the view as it is seen now: our tmpfs, or the snapshot of the dataset at ``/``."""
        return _closing(os.open(self._root, _LOOK | os.O_CLOEXEC))

    def _mount(self, step: Step, tops: _Tops) -> str | None:
        """Mount one step; returns why its place does not exist, if so."""
        with self._open_root() as root:
            try:
                target = _make_place(root, step.place, file=step.file)
            except OSError as error:
                if error.errno in {errno.ENOENT, errno.EROFS}:
                    return "there is no such directory"
                if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                    return "a part of that path is a link or no directory"
                raise KopiatomicError(
                    f"the place {printable(step.place)} cannot be opened: {error.strerror}", kind="place"
                ) from None
        try:
            return self._mount_on(step, f"/proc/self/fd/{target}", tops)
        except OSError as error:
            raise _mount_failed(step, error) from None
        finally:
            os.close(target)

    def _mount_on(self, step: Step, target: str, tops: _Tops) -> str | None:
        """Raises OSError, KopiatomicError; returns why the part that is to be shown does not exist, if so."""
        if step.fstype == SCAFFOLD:
            _mount_scaffold(target)
        elif step.fstype == FILES:
            self._volumes.show(target, step)
        elif step.fstype == "zfs" and not step.part:
            linux.mount(step.source, target, "zfs", _FLAGS)
        else:
            top = tops.of(step)
            try:
                source = linux.open_beneath(top, step.part or ".", _ANY if step.file else _PATH)
            except OSError as error:
                return _PART_MISSING.get(error.errno or 0, error.strerror)
            with _closing(source):
                # A bind of a read-only mount is read-only itself.
                linux.mount(f"/proc/self/fd/{source}", target, None, linux.MS_BIND)
        return None

    def _take_prints(self, steps: Sequence[Step]) -> list[_Print]:
        table = mountinfo.visible(mountinfo.read())
        prints = []
        with self._open_root() as root:
            for step in steps:
                mount = table.get(_joined(self._root, step.place))
                try:
                    kind = _ANY if step.file else _LOOK
                    with _closing(linux.open_beneath(root, _relative(step.place), kind)) as fd:
                        inode = os.fstat(fd).st_ino
                        is_btrfs = step.fstype == "btrfs" and not step.file
                        subvolume = btrfs.subvolume(fd).uuid if is_btrfs else b""
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
                prints.append(_Print(step, mount.id, mount.device, mount.root, inode, subvolume))
        return prints


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _opened(root: int, place: str) -> AbstractContextManager[int]:
    """A directory of the view, to look into. Raises OSError."""
    return _closing(linux.open_beneath(root, _relative(place), _LOOK))


def _mount_scaffold(point: str) -> None:
    """A small filesystem in memory for directories that hold mount points. Raises OSError."""
    linux.mount(_SCAFFOLD_SOURCE, point, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0700")


def _what(step: Step) -> str:
    if step.fstype == SCAFFOLD:
        return f"the directory at {printable(step.place)} that holds mount points"
    if step.fstype == FILES:
        return f"the directory at {printable(step.place)} that holds volumes"
    return f"the snapshot of {printable(step.dataset)}"


def _relative(place: str) -> str:
    return place.strip("/") or "."


def _joined(root: str, place: str) -> str:
    return root if place == "/" else root.rstrip("/") + place


def _scaffolding(steps: Sequence[Step]) -> dict[str, os.stat_result]:
    """The directories that only hold mount points, with the attributes of the real ones; the top from ``/``."""
    places = {s.place for s in steps if s.fstype != SCAFFOLD}
    seen = mountinfo.visible(mountinfo.read())
    found: dict[str, os.stat_result] = {}
    for place in places:
        for directory in mountinfo.parents(place):
            # A server that does not answer is not waited for, and keeps the attributes that its directory is made with.
            if directory in found or directory in places or may_hang(mountinfo.holder(directory, seen).fstype):
                continue
            try:
                found[directory] = os.stat(directory)
            except OSError:
                # Gone or unreadable: likewise.
                continue
    return found


def _make_place(root: int, place: str, *, file: bool = False) -> int:
    """Open the directory (or file) to mount on, making it where it lies on our own tmpfs. Raises OSError."""
    relative = _relative(place)
    kind = _ANY if file else _PATH
    try:
        return linux.open_beneath(root, relative, kind)
    except FileNotFoundError:
        if relative == ".":
            raise
    parent = _make_place(root, "/" + relative.rpartition("/")[0])
    try:
        name = relative.rpartition("/")[2]
        # In a frozen tree this fails with EROFS: only our scaffolding can be written.
        if file:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=parent))
        else:
            os.mkdir(name, 0o755, dir_fd=parent)
        return linux.open_beneath(parent, name, kind)
    finally:
        os.close(parent)


def _copy_attributes(root: int, scaffolding: dict[str, os.stat_result]) -> None:
    """Give our directories the mode, owner and times of the real ones; times last, for making entries changes them."""
    ours = {m.device for m in mountinfo.read() if (m.fstype, m.source) == ("tmpfs", _SCAFFOLD_SOURCE)}
    for times_too in (False, True):
        for directory, status in scaffolding.items():
            try:
                fd = linux.open_beneath(root, _relative(directory), _LOOK)
            except OSError:
                # Below a dataset that was left out.
                continue
            try:
                device = os.fstat(fd).st_dev
                if f"{os.major(device)}:{os.minor(device)}" not in ours:
                    # Inside a frozen tree, which has its own attributes.
                    continue
                if times_too:
                    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
                else:
                    os.fchown(fd, status.st_uid, status.st_gid)
                    os.fchmod(fd, status.st_mode & 0o7777)
            finally:
                os.close(fd)


class _Tops:
    """The tops of snapshots, open as directories of mounts on directories of our own, which go with the block.

    A bind of a part outlives them.
    """

    def __init__(self, base: int) -> None:
        self._base = base
        self._mounts: dict[str, int] = {}
        self._tops: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._tops:
            os.close(fd)
        for position, fd in enumerate(self._mounts.values()):
            linux.detach(f"/proc/self/fd/{fd}")
            os.close(fd)
            os.rmdir(_ASIDE.format(position), dir_fd=self._base)

    def of(self, step: Step) -> int:
        """The top directory of a step's snapshot. Raises OSError, KopiatomicError."""
        if step.fstype == "zfs":
            return self._mounted(step.source, "zfs", None)
        try:
            mounted = self._mounted(step.device, "btrfs", f"subvolid={btrfs.TOP_LEVEL}")
        except OSError as error:
            raise not_permitted(f"the Btrfs filesystem {printable(step.device)} cannot be mounted", error) from None
        self._tops.append(linux.open_beneath(mounted, step.source, _PATH))
        return self._tops[-1]

    def _mounted(self, source: str, fstype: str, data: str | None) -> int:
        """Mounted once. A detached mount cannot be the source of a bind: it stays attached until the end."""
        if source not in self._mounts:
            name = _ASIDE.format(len(self._mounts))
            os.mkdir(name, 0o700, dir_fd=self._base)
            point = os.open(name, _PATH | os.O_CLOEXEC, dir_fd=self._base)
            try:
                linux.mount(source, f"/proc/self/fd/{point}", fstype, _FLAGS, data)
                self._mounts[source] = linux.open_beneath(self._base, name, _PATH)
            finally:
                os.close(point)
        return self._mounts[source]


_ASIDE = ".aside-{}"
_SCAFFOLD_SOURCE = "kopiatomic"
_PART_MISSING = {
    errno.ENOENT: "there is no such directory in its snapshot",
    errno.ENOTDIR: "it is a link or no directory in its snapshot",
    errno.ELOOP: "a part of that path is a link in its snapshot",
}


# The frozen top directory as one of ours, so that there is room in it for more


def _pieces(step: Step, tops: _Tops) -> Iterator[Step]:
    """A step as it is; for one whose top has to be opened each entry of its top directory for itself.

    Links are no mounts: :func:`_dress` makes them. Raises KopiatomicError.
    """
    if not step.open_top:
        yield step
        return
    with _opened(tops.of(step), ".") as top, os.scandir(top) as entries:
        for entry in entries:
            place = f"/{entry.name}"
            if place in {UNMOUNTED, VOLUMES}:
                raise place_needed(f"{printable(place)} exists in {printable(step.dataset)}", place)
            if not entry.is_symlink():
                file = not entry.is_dir(follow_symlinks=False)
                yield replace(step, place=place, part=entry.name, file=file, open_top=False)


def _dress(root: int, step: Step, tops: _Tops) -> os.stat_result:
    """Give our top directory the links and extended attributes of the frozen one, whose status is returned.

    Raises KopiatomicError.
    """
    try:
        with _opened(tops.of(step), ".") as top:
            with os.scandir(top) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        os.symlink(os.readlink(entry.name, dir_fd=top), entry.name, dir_fd=root)
                        _copy_status(root, entry.name, entry.stat(follow_symlinks=False))
            for name in os.listxattr(top):
                os.setxattr(root, name, os.getxattr(top, name))
            return os.fstat(top)
    except OSError as error:
        raise KopiatomicError(
            f"the top directory of the frozen tree cannot be shown as it is: {error.strerror}",
            kind="place",
            hint="Back up what is below /.unmounted or /.volumes with a command of its own and --name.",
        ) from None


def _copy_status(directory: int, name: str, status: os.stat_result) -> None:
    """Owner, mode and times; a link has no mode."""
    os.chown(name, status.st_uid, status.st_gid, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=directory)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=directory, follow_symlinks=False)


def _holds_something(root: int, place: str) -> bool:
    """Whether a mount holds anything that every backup program keeps: sockets, pipes and devices do not count."""
    with _opened(root, place) as fd, os.scandir(fd) as entries:
        return any(
            entry.is_symlink() or entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
            for entry in entries
        )


def _mount_failed(step: Step, error: OSError) -> KopiatomicError:
    what = f"the snapshot of {printable(step.dataset)} cannot be mounted"
    if error.errno == errno.EPERM:
        return not_permitted(what, error)
    if error.errno == errno.EACCES and step.fstype == "zfs":
        return KopiatomicError(
            f"{what}: its encryption key is not loaded",
            kind="key-not-loaded",
            hint=f"zfs load-key {step.dataset}",
        )
    return KopiatomicError(f"{what}: {error.strerror}", kind="mount", hint="See 'dmesg' for what the kernel says.")
