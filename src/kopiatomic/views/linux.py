"""The view on Linux: a private mount namespace in which snapshots are mounted with mount(2), read-only.

Everything here runs in the launcher, alone in its namespaces. Mount points inside frozen trees are opened beneath the
view's root without following links: a frozen tree belongs to its users.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems import may_hang
from kopiatomic.system import btrfs, linux, mountinfo
from kopiatomic.text import printable
from kopiatomic.views import SCAFFOLD, Missing, Step, View, missing_text

_FLAGS = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
_PATH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
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

    def assemble(self) -> View:
        """Mount everything. Raises KopiatomicError; whatever is mounted ends with the namespace."""
        scaffolding = _scaffolding(self._steps)
        try:
            _mount_scaffold(self._root)
        except OSError as error:
            raise not_permitted(f"nothing can be mounted on {printable(self._root)}", error) from None
        base = os.open(self._root, _LOOK | os.O_CLOEXEC)
        missing = []
        try:
            with _tops(base, {s.device for s in self._steps if s.fstype == "btrfs"}) as tops:
                for step in self._steps:
                    reason = self._mount(step, base, tops)
                    if reason is not None:
                        missing.append(self._refuse_named(step, Missing(step.dataset, step.place, reason)))
            with self._open_root() as root:
                _copy_attributes(root, scaffolding)
        finally:
            os.close(base)
        gone = {m.place for m in missing}
        self._prints = self._take_prints([s for s in self._steps if s.place not in gone])
        steps = [p.step for p in self._prints if p.step.fstype != SCAFFOLD]
        with self._open_root() as root:
            filled = tuple(s.place for s in steps if _holds_something(root, s.place))
        # A scaffold that has no place is told by what should have been mounted in it.
        told = tuple(m for m in missing if m.dataset)
        return View(mounted=tuple(s.place for s in steps), filled=filled, missing=told)

    def check(self) -> list[str]:
        """Compare every mount with the one that was made. Returns what is wrong, in words."""
        try:
            now = {p.step.place: p for p in self._take_prints([p.step for p in self._prints])}
        except KopiatomicError as error:
            return [error.message]
        except OSError as error:
            return [f"the view at {printable(self._root)} is gone ({error.strerror}): somebody removed its directory"]
        return [
            f"{_what(p.step)} was taken away or replaced while the engine ran"
            for p in self._prints
            if now[p.step.place] != p
        ]

    def _refuse_named(self, step: Step, missing: Missing) -> Missing:
        if step.named:
            raise KopiatomicError(
                missing_text(missing, self._steps),
                kind="place-missing",
                hint="The directory that it is mounted on did not exist at the instant of the snapshot. Leave one of "
                "the two out, or back them up with two commands and --name.",
            )
        return missing

    @contextmanager
    def _open_root(self) -> Iterator[int]:
        """The top of the view as it is seen now: our tmpfs, or the snapshot of the dataset at ``/``."""
        root = os.open(self._root, _LOOK | os.O_CLOEXEC)
        try:
            yield root
        finally:
            os.close(root)

    def _mount(self, step: Step, base: int, tops: dict[str, int]) -> str | None:
        """Mount one step; returns why its place does not exist, if so."""
        with self._open_root() as root:
            try:
                target = _make_place(root, step.place)
            except OSError as error:
                if error.errno in {errno.ENOENT, errno.EROFS}:
                    return "there is no such directory"
                if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                    return "a part of that path is a link or no directory"
                raise KopiatomicError(
                    f"the place {printable(step.place)} cannot be opened: {error.strerror}", kind="place"
                ) from None
        try:
            return self._mount_on(step, target, base, tops)
        except OSError as error:
            raise _mount_failed(step, error) from None
        finally:
            os.close(target)

    def _mount_on(self, step: Step, target: int, base: int, tops: dict[str, int]) -> str | None:
        """Raises OSError; returns why the part that is to be shown does not exist, if so."""
        if step.fstype == SCAFFOLD:
            _mount_scaffold(f"/proc/self/fd/{target}")
            return None
        if step.fstype == "zfs" and not step.part:
            linux.mount(step.source, f"/proc/self/fd/{target}", "zfs", _FLAGS)
            return None
        with ExitStack() as stack:
            if step.fstype == "zfs":
                top = stack.enter_context(_aside(base, step.source))
            else:
                top = linux.open_beneath(tops[step.device], step.source, _PATH)
                stack.callback(os.close, top)
            try:
                source = linux.open_beneath(top, step.part or ".", _PATH)
            except OSError as error:
                return _PART_MISSING.get(error.errno or 0, error.strerror)
            stack.callback(os.close, source)
            # A bind of a read-only mount is read-only itself.
            linux.mount(f"/proc/self/fd/{source}", f"/proc/self/fd/{target}", None, linux.MS_BIND)
        return None

    def _take_prints(self, steps: Sequence[Step]) -> list[_Print]:
        table = mountinfo.visible(mountinfo.read())
        prints = []
        with self._open_root() as root:
            for step in steps:
                mount = table.get(_joined(self._root, step.place))
                try:
                    fd = linux.open_beneath(root, _relative(step.place), _LOOK)
                    try:
                        inode = os.fstat(fd).st_ino
                        subvolume = btrfs.subvolume(fd).uuid if step.fstype == "btrfs" else b""
                    finally:
                        os.close(fd)
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


def _mount_scaffold(point: str) -> None:
    """A small filesystem in memory for directories that hold mount points. Raises OSError."""
    linux.mount(_SCAFFOLD_SOURCE, point, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0700")


def _what(step: Step) -> str:
    if step.fstype == SCAFFOLD:
        return f"the directory at {printable(step.place)} that holds mount points"
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


def _make_place(root: int, place: str) -> int:
    """Open the directory to mount on, making it where it lies on our own tmpfs. Raises OSError."""
    relative = _relative(place)
    try:
        return linux.open_beneath(root, relative, _PATH)
    except FileNotFoundError:
        if relative == ".":
            raise
    parent = _make_place(root, "/" + relative.rpartition("/")[0])
    try:
        name = relative.rpartition("/")[2]
        # In a frozen tree this fails with EROFS: only our scaffolding can be written.
        os.mkdir(name, 0o755, dir_fd=parent)
        return linux.open_beneath(parent, name, _PATH)
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


@contextmanager
def _tops(base: int, devices: set[str]) -> Iterator[dict[str, int]]:
    """The top-level subvolumes of Btrfs filesystems, each open as a directory of a mount that goes with the block."""
    tops: dict[str, int] = {}
    name = ".top-level"
    try:
        for device in sorted(devices):
            os.mkdir(name, 0o700, dir_fd=base)
            point = os.open(name, _PATH | os.O_CLOEXEC, dir_fd=base)
            try:
                linux.mount(device, f"/proc/self/fd/{point}", "btrfs", _FLAGS, f"subvolid={btrfs.TOP_LEVEL}")
                tops[device] = linux.open_beneath(base, name, _PATH)
            except OSError as error:
                raise not_permitted(f"the Btrfs filesystem {printable(device)} cannot be mounted", error) from None
            finally:
                os.close(point)
            # A detached mount stays usable through its descriptor, but cannot be the source of a bind: keep it attached.
            name += "-"
        yield tops
    finally:
        for fd in tops.values():
            linux.detach(f"/proc/self/fd/{fd}")
            os.close(fd)
        for position in range(len(tops)):
            os.rmdir(".top-level" + "-" * position, dir_fd=base)


@contextmanager
def _aside(base: int, source: str) -> Iterator[int]:
    """A snapshot mounted on a directory of our own, open as a directory; a bind of a part of it outlives the block."""
    os.mkdir(_ASIDE, 0o700, dir_fd=base)
    point = os.open(_ASIDE, _PATH | os.O_CLOEXEC, dir_fd=base)
    try:
        linux.mount(source, f"/proc/self/fd/{point}", "zfs", _FLAGS)
        top = linux.open_beneath(base, _ASIDE, _PATH)
        try:
            yield top
        finally:
            linux.detach(f"/proc/self/fd/{top}")
            os.close(top)
    finally:
        os.close(point)
        os.rmdir(_ASIDE, dir_fd=base)


_ASIDE = ".aside"
_SCAFFOLD_SOURCE = "kopiatomic"
_PART_MISSING = {
    errno.ENOENT: "there is no such directory in its snapshot",
    errno.ENOTDIR: "it is a link or no directory in its snapshot",
    errno.ELOOP: "a part of that path is a link in its snapshot",
}


def _holds_something(root: int, place: str) -> bool:
    """Whether a mount holds anything that every backup program keeps: sockets, pipes and devices do not count."""
    fd = linux.open_beneath(root, _relative(place), _LOOK)
    try:
        with os.scandir(fd) as entries:
            return any(
                entry.is_symlink() or entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
                for entry in entries
            )
    finally:
        os.close(fd)


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
