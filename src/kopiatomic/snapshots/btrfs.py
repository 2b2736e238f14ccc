"""Btrfs: read-only snapshots of several subvolumes, asked for at once; equal ``otransid`` proves one instant.

There is no atomic snapshot of several subvolumes: two or three are tried a few times until one transaction holds them all,
more never share one (docs/architecture.md, "Btrfs").
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from kopiatomic.errors import VanishedError
from kopiatomic.model import Instant, Intent, Snapshot, SnapshotSet, Taken
from kopiatomic.snapshots import btrfs_folder as folder
from kopiatomic.snapshots.btrfs_folder import SNAPSHOT, failed
from kopiatomic.system import btrfs, linux, mountinfo
from kopiatomic.text import printable

_TRIES = 20
_TRIED = (2, 3)
"""How many subvolumes can share a transaction when asked for at once: seen in 40 of 100 tries for two, 15 for
three, never for four."""

_THREADS = 16


@dataclass
class BtrfsMaker:
    """The set of one Btrfs filesystem."""

    run_id: str
    pool: str
    taken: Sequence[Taken]
    bookmark: str = ""
    """ZFS has bookmarks; Btrfs knows without."""
    _sources: list[int] = field(default_factory=list)
    _origins: list[bytes] = field(default_factory=list)
    """The UUIDs of what is snapshotted: with the folder, the proof that a snapshot is of this run."""
    _generations: list[int] = field(default_factory=list)
    """The last changes to their trees, right before the snapshots."""

    def needs_descriptor(self) -> bool:
        """Nothing of Btrfs can be tied to a descriptor."""
        return False

    def check(self) -> None:
        """See that the filesystem can be written to, and mount its top-level subvolume once."""
        seen = mountinfo.visible(mountinfo.read())
        for taken in self.taken:
            if "ro" in mountinfo.holder(taken.dataset.mountpoint, seen).super_options:
                read_only = OSError(errno.EROFS, os.strerror(errno.EROFS))
                raise failed(f"no snapshot can be made of {printable(taken.dataset.name)}", read_only)
        with folder.top(self._device):
            pass

    def intents(self) -> list[Intent]:
        """The exact paths, and what each is a snapshot of. Raises VanishedError, KopiatomicError."""
        try:
            self._open_sources()
        finally:
            self._close_sources()
        return [
            Intent("btrfs", self.pool, folder.path_of(self.run_id, position), origin.hex())
            for position, origin in enumerate(self._origins)
        ]

    def prepare(self) -> None:
        """Open the subvolumes and see that they are the planned ones. Raises VanishedError, KopiatomicError."""
        self._open_sources()

    def _open_sources(self) -> None:
        gone = []
        self._origins.clear()
        self._generations.clear()
        for taken in self.taken:
            dataset = taken.dataset
            try:
                fd = linux.open_without_links(dataset.mountpoint, folder.OPEN_DIRECTORY)
                self._sources.append(fd)
                found = btrfs.subvolume(fd)
                self._origins.append(found.uuid)
                self._generations.append(found.generation)
                same = found.id == dataset.subvolume and btrfs.filesystem_uuid(fd) == dataset.pool
                if not btrfs.is_top(fd) or not same:
                    gone.append(dataset.name)
            except OSError as error:
                if error.errno in {*linux.GONE, errno.ENOTTY}:
                    gone.append(dataset.name)
                    continue
                raise failed(f"the subvolume {printable(dataset.name)} cannot be opened", error) from None
        if gone:
            raise VanishedError(gone)

    def make(self) -> Instant:
        """Ask for all snapshots at once; two or three again until they share a transaction, a few times at most."""
        with folder.top(self._device) as top:
            directory = folder.make(top, self.run_id, self._where())
            try:
                return self._make_in(directory)
            finally:
                os.close(directory)

    def _make_in(self, directory: int) -> Instant:
        with ExitStack() as stack:
            # Each in a directory of its own: the kernel locks the directory during the call, and in one directory the
            # snapshots would be made one after the other, never in one transaction.
            places = []
            for position in range(len(self.taken)):
                os.mkdir(str(position), 0o700, dir_fd=directory)
                places.append(os.open(str(position), folder.OPEN_DIRECTORY, dir_fd=directory))
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
            if tries == 0 or len({folder.look(place).born for place in places}) == 1:
                return Instant(before[0], wall_after, before[1], monotonic_after)
            for place in places:
                btrfs.delete(place, SNAPSHOT)

    def _snapshot_all(self, places: list[int]) -> None:
        """One ioctl a subvolume, from several threads let go at once, so that they come as close together as they can."""
        if len(places) == 1:
            self._snapshot(places, 0)
            return
        width = min(_THREADS, len(places))
        start = threading.Barrier(width)
        failures: list[BaseException] = []

        def share(thread: int) -> None:
            try:
                start.wait()
                for position in range(thread, len(places), width):
                    self._snapshot(places, position)
            except threading.BrokenBarrierError:
                # Not all could be started.
                return
            except BaseException as failure:
                failures.append(failure)

        threads: list[threading.Thread] = []
        try:
            for thread in range(width):
                threads.append(threading.Thread(target=share, args=(thread,)))
                threads[-1].start()
        except RuntimeError:
            # Those that wait for the others would wait for ever.
            start.abort()
            threads.pop()
            failures.append(OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)))
        for started in threads:
            started.join()
        if failures:
            raise failures[0]

    def _snapshot(self, places: list[int], position: int) -> None:
        dataset = self.taken[position].dataset
        # Our own directory lies in the top-level subvolume: it is taken out of that snapshot before it is sealed.
        read_only = dataset.subvolume != btrfs.TOP_LEVEL
        try:
            btrfs.snapshot(self._sources[position], places[position], SNAPSHOT, read_only=read_only)
        except OSError as error:
            raise failed(f"no snapshot was made of {printable(dataset.name)}", error) from None

    def _hide_ourselves(self, place: int) -> None:
        """Take our directory out of the snapshot of the top-level subvolume, as if it had never been there."""
        try:
            fd = os.open(SNAPSHOT, folder.OPEN_DIRECTORY, dir_fd=place)
            try:
                folder.hide(fd)
                btrfs.make_read_only(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise failed(f"the snapshot of {self._where()} could not be finished", error) from None

    def tie(self, cleanup_fd: int | None) -> None:
        """Nothing: Btrfs has no hold that ends with a process."""

    def untie(self) -> None:
        """Nothing is tied."""

    def read_back(self, instant: Instant) -> SnapshotSet:
        """``otransid`` of each, read from the snapshots as they are now."""
        snapshots = []
        with folder.top(self._device) as top:
            try:
                for position, taken in enumerate(self.taken):
                    place = os.open(
                        os.path.dirname(folder.path_of(self.run_id, position)), folder.OPEN_DIRECTORY, dir_fd=top
                    )
                    try:
                        found = folder.look(place)
                    finally:
                        os.close(place)
                    snapshots.append(
                        Snapshot(
                            taken.dataset.name,
                            folder.path_of(self.run_id, position),
                            found.born,
                            found.uuid.hex(),
                            before=self._state(position, self._generations[position], found),
                            after=self._state(position, found.born, found),
                        )
                    )
            except OSError as error:
                raise failed(f"a snapshot of {self._where()} disappeared right after it was made", error) from None
        return SnapshotSet("btrfs", self.pool, tuple(snapshots), instant)

    def _state(self, position: int, generation: int, snapshot: btrfs.Subvolume) -> str:
        """What a subvolume holds, told by the last change to its tree and to a file in it.

        A snapshot changes the tree of its source, to the transaction that it is born in: after that only what somebody else
        changed gives the tree another. Writes that are not on the disk yet show in the snapshot's ``ctransid`` alone; what is
        replayed from the log after a crash shows in the tree's generation alone.
        """
        return f"{self._origins[position].hex()} {generation} {snapshot.changed}"

    def remove(self) -> list[str]:
        """Delete the run's snapshots and directories: only what lies in the run's own directory, by name."""
        self._close_sources()
        with folder.top(self._device) as top:
            left = folder.remove(top, self.run_id, self._is_ours)
        return [
            f"Btrfs snapshot {path} in the top-level subvolume of {self._where()}: {reason} "
            f"({folder.delete_command(self._where(), path)})"
            for path, reason in left.items()
        ]

    def _is_ours(self, entry: folder.Entry) -> bool:
        return entry.subvolume is not None and entry.subvolume.parent_uuid in self._origins

    def _close_sources(self) -> None:
        for fd in self._sources:
            os.close(fd)
        self._sources.clear()

    @property
    def _device(self) -> str:
        return self.taken[0].dataset.device

    def _where(self) -> str:
        return printable(self._device)
