"""Btrfs: read-only snapshots of several subvolumes, requested at once; equal ``otransid`` proves one instant.

There is no atomic snapshot of several subvolumes: two or three are tried a few times until one transaction holds them all,
more never share one (docs/architecture.md, "Btrfs").
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from kopiatomic import presence
from kopiatomic.errors import concerns_all
from kopiatomic.filesystems.btrfs import folder
from kopiatomic.filesystems.btrfs.folder import SNAPSHOT, failed
from kopiatomic.model.leftovers import Intent
from kopiatomic.model.mounts import holder, visible
from kopiatomic.model.plan import PlannedPath, Refusal, Taken
from kopiatomic.model.snapshots import Instant, Sets, Snapshot, SnapshotSet
from kopiatomic.system import btrfs, channel, linux, looking, mountinfo
from kopiatomic.system.descriptors import closing
from kopiatomic.text import few, printable

_TRIES = 20
_TRIED = (2, 3)
"""How many subvolumes can share a transaction when requested at once: seen in 40 of 100 tries for two, 15 for
three, never for four."""

_THREADS = 16


@dataclass
class BtrfsMaker:
    """The set of one Btrfs filesystem."""

    run_id: str
    pool: str
    taken: Sequence[Taken]
    bookmark: str = ""
    """ZFS has bookmarks; Btrfs does not need them."""
    refused: list[Refusal] = field(default_factory=list)
    once: bool = False
    _sources: dict[int, btrfs.Subvolume] = field(default_factory=dict)
    """The sources, by position in ``taken``, as they were before: each snapshot changes its source's generation."""
    _origins: set[bytes] = field(default_factory=set)
    """The UUIDs of all sources: with the folder, the proof that a snapshot belongs to this run."""
    _opener: looking.Opener | None = None
    """Opens what users may replace, in a child, because it may not respond. It is there from ``prepare`` to ``read_back``."""
    _made: dict[str, bytes] = field(default_factory=dict)
    """The UUIDs of the snapshots, by path."""
    _lock: int | None = None
    """The run's folder: while a process of the run has it open, nobody considers the run dead."""

    def needs_descriptor(self) -> bool:
        """Return False: nothing in Btrfs can be tied to a descriptor."""
        return False

    def check(self) -> None:
        """Check that the filesystem is writable, and mount its top-level subvolume once."""
        seen = visible(mountinfo.read())
        for taken in self.taken:
            if "ro" in holder(taken.dataset.mountpoint.text, seen).super_options:
                read_only = OSError(errno.EROFS, os.strerror(errno.EROFS))
                raise failed(f"no snapshot can be made of {printable(taken.dataset.name)}", read_only)
        with folder.top(self._device):
            pass

    def intents(self) -> list[Intent]:
        """Return the exact paths, and what each is a snapshot of. Raises KopiatomicError."""
        try:
            self._look_at_sources()
        finally:
            self._end_opener()
        return [
            Intent("btrfs", self.pool, folder.path_of(self.run_id, position), source.uuid.hex())
            for position, source in self._sources.items()
        ]

    def prepare(self) -> None:
        """Check that the subvolumes are the planned ones, and make a place for each snapshot. Raises KopiatomicError, OSError."""
        self._look_at_sources()
        if not self._sources:
            return
        with folder.top(self._device) as top:
            self._lock = folder.make(top, self.run_id, self._where())
        # Each has a directory of its own: the kernel locks the directory during the call, and in one directory the
        # snapshots would be made one after the other, never in one transaction.
        for position in self._sources:
            os.mkdir(str(position), 0o700, dir_fd=self._lock)

    def write_out(self) -> None:
        """Do nothing: sync(2) has ended the transaction."""

    def _open(self, place: PlannedPath) -> int:
        if self._opener is None:
            self._opener = looking.Opener(lambda path: linux.open_without_links(path, folder.OPEN_DIRECTORY))
        return self._opener.open(place.text)

    def _end_opener(self) -> None:
        opener, self._opener = self._opener, None
        if opener is not None:
            opener.close()

    def _look_at_sources(self) -> None:
        """Look at the sources one by one: there may be more of them than a process may have descriptors."""
        left_out = {refusal.dataset.key for refusal in self.refused}
        for position, taken in enumerate(self.taken):
            if taken.dataset.key in left_out:
                continue
            try:
                with self._source(position) as (_, found):
                    self._sources[position] = found
                    self._origins.add(found.uuid)
            except OSError as error:
                self._refuse(position, error, "it cannot be opened")

    @contextmanager
    def _source(self, position: int) -> Iterator[tuple[int, btrfs.Subvolume]]:
        """Open a planned subvolume. Raises OSError; ENOENT if its path leads to another."""
        dataset = self.taken[position].dataset
        fd = self._open(dataset.mountpoint)
        try:
            found = btrfs.subvolume(fd)
            same = found.id == dataset.subvolume and btrfs.filesystem_uuid(fd) == dataset.pool
            if not same or not btrfs.is_top(fd):
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            yield fd, found
        finally:
            os.close(fd)

    def _refuse(self, position: int, error: OSError, what: str) -> None:
        """Leave a subvolume out because of the kernel's error. Raises KopiatomicError if that concerns all of them."""
        dataset = self.taken[position].dataset
        if presence.moved(error) or error.errno == errno.ENOTTY:
            self._leave_out(position, folder.gone(dataset))
            return
        if concerns_all(error.errno):
            raise failed(f"{printable(dataset.name)}: {what}", error)
        reason, hint = folder.reason(error)
        self._leave_out(position, Refusal(dataset, f"{what}: {reason}", hint=hint))

    def _leave_out(self, position: int, refusal: Refusal) -> None:
        self.refused.append(refusal)
        self._sources.pop(position, None)

    def make(self) -> Instant | None:
        """Request all snapshots at once; repeat two or three until they share a transaction, a few times at most."""
        if self._lock is None:
            return None
        instant = self._try(self._lock)
        return instant if self._sources else None

    def _try(self, directory: int) -> Instant:
        tries = _TRIES if len(self._sources) in _TRIED and not self.once else 1
        while True:
            before = time.time_ns(), time.monotonic_ns()
            self._snapshot_all(directory)
            monotonic_after, wall_after = time.monotonic_ns(), time.time_ns()
            tries -= 1
            if tries == 0 or len({self._born(directory, position) for position in self._sources}) <= 1:
                return Instant(before[0], wall_after, before[1], monotonic_after)
            for position in self._sources:
                with _place(directory, position) as place:
                    btrfs.delete(place, SNAPSHOT)

    @staticmethod
    def _born(directory: int, position: int) -> int:
        with _place(directory, position) as place:
            return folder.look(place).born

    def _snapshot_all(self, directory: int) -> None:
        """Make one ioctl per subvolume, from several threads released at once, so that they are as close together as possible.

        Each thread has opened its first subvolume before that, and opens its others one by one. What the kernel refuses is
        left out. Raises KopiatomicError, OSError.
        """
        positions = list(self._sources)
        width = min(_THREADS, len(positions))
        start = threading.Barrier(width)
        refused: dict[int, OSError] = {}
        failures: list[BaseException] = []

        def share(thread: int) -> None:
            waited = False

            def together() -> None:
                nonlocal waited
                if not waited:
                    waited = True
                    start.wait()

            try:
                for position in positions[thread::width]:
                    try:
                        self._snapshot(directory, position, together)
                    except OSError as error:
                        refused[position] = error
                together()
            except threading.BrokenBarrierError:
                # Not all threads could be started, or one has failed.
                return
            except BaseException as failure:
                failures.append(failure)
                start.abort()

        threads: list[threading.Thread] = []
        try:
            for thread in range(width):
                threads.append(threading.Thread(target=share, args=(thread,)))
                threads[-1].start()
        except RuntimeError:
            # Threads that wait for the others would wait for ever.
            start.abort()
            threads.pop()
            failures.append(OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)))
        for started in threads:
            started.join()
        if failures:
            raise failures[0]
        for position, error in sorted(refused.items()):
            self._refuse(position, error, "no snapshot was made of it")

    def _snapshot(self, directory: int, position: int, together: Callable[[], None]) -> None:
        """Snapshot one subvolume as soon as ``together`` returns. Raises OSError, BrokenBarrierError."""
        with self._source(position) as (source, _), _place(directory, position) as place:
            together()
            btrfs.snapshot(source, place, SNAPSHOT, read_only=not self._is_finished_later(position))

    def _is_finished_later(self, position: int) -> bool:
        """Whether something must be taken out of the snapshot before it is made read-only."""
        taken = self.taken[position]
        # Our own directory is in the top-level subvolume.
        return taken.dataset.subvolume == btrfs.TOP_LEVEL or bool(taken.hidden)

    def _finish(self, position: int, place: int) -> None:
        """Remove from a snapshot what must not be in it, as if it had never existed, and make it read-only."""
        try:
            fd = os.open(SNAPSHOT, folder.OPEN_DIRECTORY, dir_fd=place)
            try:
                if self.taken[position].dataset.subvolume == btrfs.TOP_LEVEL:
                    folder.hide(fd)
                for path in self.taken[position].hidden:
                    folder.hide_left_out(fd, path)
                btrfs.make_read_only(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise failed(f"the snapshot of {self._where()} could not be finished", error) from None

    def tie(self, cleanup_fd: int | None) -> None:
        """Do nothing: Btrfs has no hold that ends with a process."""

    def untie(self) -> None:
        """Do nothing: no snapshot is tied."""

    def read_back(self, instant: Instant) -> SnapshotSet:
        """Return the set with the ``otransid`` of each snapshot, read from the snapshots as they are now."""
        self._end_opener()
        snapshots = []
        assert self._lock is not None
        for position, source in list(self._sources.items()):
            path = folder.path_of(self.run_id, position)
            try:
                with _place(self._lock, position) as place:
                    if self._is_finished_later(position):
                        self._finish(position, place)
                    found = folder.look(place)
            except OSError as error:
                what = "its snapshot disappeared right after it was made"
                if concerns_all(error.errno):
                    raise failed(f"{printable(self.taken[position].dataset.name)}: {what}", error) from None
                self._leave_out(position, Refusal(self.taken[position].dataset, what))
                continue
            self._made[path] = found.uuid
            name = self.taken[position].dataset.name
            states = _state(source, source.generation, found), _state(source, found.born, found)
            snapshots.append(Snapshot(name, path, found.born, found.uuid.hex(), None, *states))
        return SnapshotSet("btrfs", self.pool, tuple(snapshots), instant)

    def recall(self, sets: Sets) -> None:
        """Do nothing: the snapshots are identified by their location and their sources."""

    def remove(self) -> list[str]:
        """Delete the run's snapshots and directories: only what is in the run's own directory, by name."""
        self._end_opener()
        try:
            # The lock keeps the filesystem available even if the host has unmounted it meanwhile.
            with folder.top(self._device) as top:
                left = folder.remove(
                    top,
                    self.run_id,
                    lambda entry: entry.subvolume is not None and entry.subvolume.parent_uuid in self._origins,
                    held=self._lock,
                )
                left |= self._moved(top)
        finally:
            channel.close_quietly(self._lock)
            self._lock = None
        return few(
            [
                f"Btrfs snapshot {path} in the top-level subvolume of {self._where()}: {reason} "
                f"({folder.delete_command(self._where(), path)})"
                for path, reason in left.items()
            ]
        )

    def _moved(self, top: int) -> dict[str, str]:
        """Return the snapshots that still exist, by their present paths, and why. Raises KopiatomicError."""
        try:
            places = {name: btrfs.place_of(top, uuid) for name, uuid in self._made.items()}
        except OSError as error:
            raise failed(f"whether all snapshots of {self._where()} are gone cannot be told", error) from None
        return {path: folder.moved(path, name) for name, path in places.items() if path not in {None, name}}

    @property
    def _device(self) -> str:
        return folder.device_of(self.pool, self.taken[0].dataset.device)

    def _where(self) -> str:
        return printable(self._device)


def _place(directory: int, position: int) -> AbstractContextManager[int]:
    """Open the directory of one snapshot in the run's own. Raises OSError."""
    return closing(os.open(str(position), folder.OPEN_DIRECTORY, dir_fd=directory))


def _state(source: btrfs.Subvolume, generation: int, snapshot: btrfs.Subvolume) -> str:
    """Return the state of a subvolume, told by the last change to its tree and to a file in it.

    A snapshot changes the tree of its source, to the transaction in which it is created: after that only somebody else's
    changes give the tree another. Writes that are not on disk yet show only in the snapshot's ``ctransid``; what is
    replayed from the log after a crash shows only in the tree's generation.
    """
    return f"{source.uuid.hex()} {generation} {snapshot.changed}"
