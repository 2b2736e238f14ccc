"""Btrfs: read-only snapshots of several subvolumes, asked for at once; equal ``otransid`` proves one instant.

They lie in ``.kopiatomic/kopiatomic_RUN/N/snapshot`` of the filesystem's top-level subvolume, root's alone, reached
through a mount that is attached nowhere. There is no atomic snapshot of several subvolumes: two or three are tried a few
times until one transaction holds them all, more never share one (docs/architecture.md, "Btrfs").
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from kopiatomic.errors import KopiatomicError, VanishedError
from kopiatomic.model import Instant, Snapshot, SnapshotSet, Taken
from kopiatomic.system import btrfs, linux, mountinfo
from kopiatomic.text import printable

DIRECTORY = ".kopiatomic"
"""Our directory in the top-level subvolume: 0700, there only while a run lives."""

_TRIES = 20
_TRIED = (2, 3)
"""How many subvolumes can share a transaction when asked for at once: seen in 40 of 100 tries for two, 15 for
three, never for four."""

_THREADS = 16
_SNAPSHOT = "snapshot"
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class BtrfsMaker:
    """The set of one Btrfs filesystem."""

    name: str
    pool: str
    taken: Sequence[Taken]
    _sources: list[int] = field(default_factory=list)

    def needs_descriptor(self) -> bool:
        """Nothing of Btrfs can be tied to a descriptor."""
        return False

    def check(self) -> None:
        """Mount the top-level subvolume once, where only this process sees it.

        Never where the filesystem is read-only: to mount it once more would make it writable for everybody, without a
        word (fs/btrfs/super.c, btrfs_reconfigure_for_mount; seen on 6.18).
        """
        seen = mountinfo.visible(mountinfo.read())
        for taken in self.taken:
            if "ro" in mountinfo.holder(taken.dataset.mountpoint, seen).super_options:
                read_only = OSError(errno.EROFS, os.strerror(errno.EROFS))
                raise _failed(f"no snapshot can be made of {printable(taken.dataset.name)}", read_only)
        with self._top():
            pass

    def prepare(self) -> None:
        """Open the subvolumes and see that they are the planned ones. Raises VanishedError, KopiatomicError."""
        gone = []
        for taken in self.taken:
            dataset = taken.dataset
            try:
                fd = os.open(dataset.mountpoint, _OPEN_DIRECTORY)
                self._sources.append(fd)
                if not btrfs.is_top(fd) or btrfs.subvolume(fd).id != dataset.subvolume:
                    gone.append(dataset.name)
            except (FileNotFoundError, NotADirectoryError):
                gone.append(dataset.name)
            except OSError as error:
                raise _failed(f"the subvolume {printable(dataset.name)} cannot be opened", error) from None
        if gone:
            raise VanishedError(gone)

    def make(self) -> Instant:
        """Ask for all snapshots at once; two or three again until they share a transaction, a few times at most."""
        with self._top() as top:
            directory = self._make_directory(top)
            try:
                return self._make_in(directory)
            finally:
                os.close(directory)

    def _make_directory(self, top: int) -> int:
        """Make the run's directory, root's alone, and open it. Raises KopiatomicError."""
        path = f"{DIRECTORY}/{self.name}"
        for _ in range(100):
            try:
                with _kept_times(top), suppress(FileExistsError):
                    os.mkdir(DIRECTORY, 0o700, dir_fd=top)
                status = os.stat(DIRECTORY, dir_fd=top, follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o077:
                    raise KopiatomicError(
                        f"{DIRECTORY} in the top-level subvolume of {self._where()} is not ours: "
                        "it is not a directory that only root can enter",
                        kind="btrfs-directory",
                        hint=f"Look at it (mount {self._where()} with subvolid=5) and rename it.",
                    )
                os.mkdir(path, 0o700, dir_fd=top)
                return os.open(path, _OPEN_DIRECTORY, dir_fd=top)
            except FileNotFoundError:
                # Another run ended and took the directory away between two of these calls.
                continue
            except OSError as error:
                raise _failed(f"no directory for the snapshots of {self._where()} can be made", error) from None
        raise _failed(f"no directory for the snapshots of {self._where()} can be made", OSError(errno.EBUSY, "busy"))

    def _make_in(self, directory: int) -> Instant:
        with ExitStack() as stack:
            # Each in a directory of its own: the kernel locks the directory during the call, and in one directory the
            # snapshots would be made one after the other, never in one transaction.
            places = []
            for position in range(len(self.taken)):
                os.mkdir(str(position), 0o700, dir_fd=directory)
                places.append(os.open(str(position), _OPEN_DIRECTORY, dir_fd=directory))
                stack.callback(os.close, places[-1])
            instant = self._try(places)
            for place, taken in zip(places, self.taken, strict=True):
                if taken.dataset.subvolume == btrfs.TOP_LEVEL:
                    self._hide_ourselves(place)
            return instant

    def _try(self, places: list[int]) -> Instant:
        tries = _TRIES if len(places) in _TRIED else 1
        while True:
            before = time.time_ns(), time.monotonic_ns()
            self._snapshot_all(places)
            monotonic_after, wall_after = time.monotonic_ns(), time.time_ns()
            tries -= 1
            if tries == 0 or len({_look(place).born for place in places}) == 1:
                return Instant(before[0], wall_after, before[1], monotonic_after)
            for place in places:
                btrfs.delete(place, _SNAPSHOT)

    def _snapshot_all(self, places: list[int]) -> None:
        """One ioctl a subvolume, from several threads let go at once, so that they come as close together as they can."""
        if len(places) == 1:
            self._snapshot(places, 0)
            return
        from concurrent.futures import ThreadPoolExecutor
        from threading import Barrier

        width = min(_THREADS, len(places))
        start = Barrier(width)

        def share(thread: int) -> None:
            start.wait()
            for position in range(thread, len(places), width):
                self._snapshot(places, position)

        with ThreadPoolExecutor(width) as pool:
            for future in [pool.submit(share, thread) for thread in range(width)]:
                future.result()

    def _snapshot(self, places: list[int], position: int) -> None:
        dataset = self.taken[position].dataset
        # Our own directory lies in the top-level subvolume: it is taken out of that snapshot before it is sealed.
        read_only = dataset.subvolume != btrfs.TOP_LEVEL
        try:
            btrfs.snapshot(self._sources[position], places[position], _SNAPSHOT, read_only=read_only)
        except OSError as error:
            raise _failed(f"no snapshot was made of {printable(dataset.name)}", error) from None

    def _hide_ourselves(self, place: int) -> None:
        """Take our directory out of the snapshot of the top-level subvolume, as if it had never been there."""
        try:
            fd = os.open(_SNAPSHOT, _OPEN_DIRECTORY, dir_fd=place)
            try:
                with _kept_times(fd):
                    _remove_directories(DIRECTORY, fd)
                btrfs.make_read_only(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise _failed(f"the snapshot of {self._where()} could not be finished", error) from None

    def tie(self, cleanup_fd: int | None) -> None:
        """Nothing: Btrfs has no hold that ends with a process."""

    def read_back(self, instant: Instant) -> SnapshotSet:
        """``otransid`` of each, read from the snapshots as they are now."""
        snapshots = []
        with self._top() as top:
            try:
                for position, taken in enumerate(self.taken):
                    place = os.open(f"{DIRECTORY}/{self.name}/{position}", _OPEN_DIRECTORY, dir_fd=top)
                    try:
                        found = _look(place)
                    finally:
                        os.close(place)
                    snapshots.append(Snapshot(taken.dataset.name, _path(self.name, position), found.born))
            except OSError as error:
                raise _failed(f"a snapshot of {self._where()} disappeared right after it was made", error) from None
        return SnapshotSet("btrfs", self.pool, tuple(snapshots), instant)

    def remove(self) -> list[str]:
        """Delete the run's snapshots and directories: only what lies in the run's own directory, by name."""
        for fd in self._sources:
            os.close(fd)
        self._sources.clear()
        with self._top() as top:
            try:
                directory = os.open(f"{DIRECTORY}/{self.name}", _OPEN_DIRECTORY, dir_fd=top)
            except FileNotFoundError:
                return []
            try:
                left = [text for place in os.listdir(directory) if (text := self._remove_place(directory, place))]
            finally:
                os.close(directory)
            if not left:
                os.rmdir(f"{DIRECTORY}/{self.name}", dir_fd=top)
                with _kept_times(top):
                    _remove_if_empty(DIRECTORY, top)
        return left

    def _remove_place(self, directory: int, name: str) -> str | None:
        """Delete one snapshot and its directory; returns what is left, in words."""
        try:
            place = os.open(name, _OPEN_DIRECTORY, dir_fd=directory)
            try:
                btrfs.delete(place, _SNAPSHOT)
            except FileNotFoundError:
                # Not made yet, or deleted by somebody else.
                pass
            finally:
                os.close(place)
            os.rmdir(name, dir_fd=directory)
        except OSError as error:
            path = f"{DIRECTORY}/{self.name}/{name}/{_SNAPSHOT}"
            return (
                f"Btrfs snapshot {path} in the top-level subvolume of {self._where()}: {error.strerror} "
                f"(mount that with subvolid=5, then: btrfs subvolume delete MOUNT/{path})"
            )
        return None

    def _where(self) -> str:
        return printable(self.taken[0].dataset.device)

    @contextmanager
    def _top(self) -> Iterator[int]:
        """The top-level subvolume, open as a directory, through a mount that only this block has."""
        device = self.taken[0].dataset.device
        try:
            detached = linux.detached_mount("btrfs", device, {"subvolid": str(btrfs.TOP_LEVEL)})
        except OSError as error:
            raise _failed(f"the top-level subvolume of {printable(device)} cannot be mounted", error) from None
        try:
            top = os.open(".", _OPEN_DIRECTORY, dir_fd=detached)
        finally:
            os.close(detached)
        try:
            yield top
        finally:
            os.close(top)


def _path(name: str, position: int) -> str:
    """Where a snapshot lies below the top-level subvolume."""
    return f"{DIRECTORY}/{name}/{position}/{_SNAPSHOT}"


def _look(place: int) -> btrfs.Subvolume:
    fd = os.open(_SNAPSHOT, _OPEN_DIRECTORY, dir_fd=place)
    try:
        return btrfs.subvolume(fd)
    finally:
        os.close(fd)


def _remove_directories(name: str, above: int) -> None:
    """Remove a tree that holds nothing but directories; rmdir(2) refuses anything else, and mount points."""
    fd = os.open(name, _OPEN_DIRECTORY, dir_fd=above)
    try:
        for inside in os.listdir(fd):
            _remove_directories(inside, fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=above)


@contextmanager
def _kept_times(directory: int) -> Iterator[None]:
    """Give a directory its old times back after the block has changed an entry in it."""
    before = os.fstat(directory)
    try:
        yield
    finally:
        os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))


def _remove_if_empty(name: str, top: int) -> None:
    try:
        os.rmdir(name, dir_fd=top)
    except OSError as error:
        # Another run is in it, or has removed it.
        if error.errno not in {errno.ENOTEMPTY, errno.ENOENT}:
            raise


def _failed(what: str, error: OSError) -> KopiatomicError:
    reason, hint = _REASONS.get(error.errno or 0, (error.strerror or str(error), "See 'dmesg'."))
    return KopiatomicError(f"{what}: {reason}", kind="btrfs-snapshot", hint=hint)


_REASONS = {
    errno.ENOSPC: ("the filesystem is full", "Free space ('btrfs filesystem usage'), then run again."),
    errno.EDQUOT: ("its quota is reached", "Free space, or raise the limit ('btrfs qgroup show')."),
    errno.EROFS: (
        "the filesystem is read-only",
        "Mount it writable; see 'dmesg' if it became read-only by itself.",
    ),
    errno.EPERM: ("not permitted", "Run as root, with the capability CAP_SYS_ADMIN."),
    errno.EACCES: ("not permitted", "Run as root, with the capability CAP_SYS_ADMIN."),
}
