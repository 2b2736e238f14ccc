"""Reads files of a filesystem that a program serves (FUSE), where nobody else sees it.

A child of ours, the attendant, takes a mount namespace of its own, and forks the process that becomes the program in it. So the
mounts end with these two, however they end, and no other process can hang at them: the caller only reads a pipe. The attendant
writes what it reads to its standard output, and the program writes all that it says to its standard error.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import stat
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum

from kopiatomic import presence
from kopiatomic.immutable import immutable
from kopiatomic.system import children, descriptors, host, linux
from kopiatomic.system.descriptors import closing

TIME_LIMIT = 120.0
"""Seconds that a program may take until it serves its filesystem."""

_PIECE = 1 << 20
"""How much of a file is read at a time (bytes)."""

_ENDING_TIMEOUT = 5.0
"""Seconds that the program has to end when it is no longer needed, and once more when it is killed."""

_PAUSE = 0.01

_GONE = (errno.ENOTCONN, errno.ECONNABORTED)
"""What every file of a mount has whose program does not answer any more."""

_SIZE = 16 << 20
"""What the filesystem in memory that has the program's mount point, and the covering files, may take (bytes)."""

_HEAD = struct.Struct("=BQQ")
"""A message: its sign, a number, and how many bytes follow."""


class Sign(IntEnum):
    """What a message is about. Its number is that of the file, if not said otherwise."""

    BEGIN = 1
    """A file begins; what follows is its size, in digits."""
    PIECE = 2
    END = 3
    """Every byte of it has come."""
    FAILED = 4
    """It cannot be read to its end; why follows, in words."""
    DONE = 5
    """All files have been looked for."""
    DIED = 6
    """The program has ended before this file was read; what follows is its status, in digits."""
    NOT_SERVED = 7
    """The program has ended without serving anything; its number is 0, what follows its status, in digits."""
    LATE = 8
    """The program took too long to serve anything."""
    NO_TOP = 9
    """The folder that has the files cannot be read: its number is 1 if it does not exist; why follows, in words."""


@immutable
class Wanted:
    """What is to be read."""

    place: str
    """An empty directory that only we can enter. Whoever looks there from outside sees it empty all the time."""
    top: str
    """The folder that has the files, relative to where the program mounts; empty for all of it."""
    names: Sequence[str]
    """The files, relative to that folder."""
    covers: Mapping[str, bytes]
    """Files that the program finds with another content than they have: paths and contents."""


def mount_point(place: str) -> str:
    """Return where the program must mount."""
    return f"{place}/mount"


def attended(wanted: Wanted) -> Callable[[], None]:
    """Return what a child of ours does before it becomes a program (:func:`kopiatomic.system.process.run`).

    The child raises OSError if it cannot have mounts of its own, which ``subprocess`` turns into a SubprocessError here.
    """
    # Not in the child: it would load what that needs.
    system = host.here()

    def attend() -> None:
        gc.disable()
        _seclude(wanted)
        attendant = os.getpid()
        pid = os.fork()
        if pid == 0:
            # What the program says is for its errors.
            os.dup2(2, 1)
            system.end_with_parent(signal.SIGKILL)
            if os.getppid() != attendant:
                os._exit(1)
            return
        try:
            # Also the pipe on which Popen waits for the program's start.
            descriptors.close_all_but(1)
            _Attendant(pid, wanted).work()
        finally:
            os._exit(0)

    return attend


def _seclude(wanted: Wanted) -> None:
    """Take a mount namespace of our own, and prepare it. Raises OSError."""
    linux.take_own_mounts(linux.MS_PRIVATE)
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("kopiatomic", wanted.place, "tmpfs", flags, f"mode=700,size={_SIZE}")
    os.mkdir(mount_point(wanted.place), 0o700)
    for number, (path, content) in enumerate(wanted.covers.items()):
        cover = f"{wanted.place}/{number}"
        with open(os.open(cover, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(content)
        linux.mount(cover, path, None, linux.MS_BIND)


def _send(sign: Sign, number: int = 0, data: bytes = b"") -> None:
    message = memoryview(_HEAD.pack(sign, number, len(data)) + data)
    while message:
        message = message[os.write(1, message) :]


class _Attendant:
    """Waits for the program's mount and reads the files, one after the other."""

    def __init__(self, pid: int, wanted: Wanted) -> None:
        self._pid = pid
        self._wanted = wanted
        self._top = -1
        self._listed: tuple[str, frozenset[str]] | None = None
        """The folder that was listed last, and what is in it."""

    def work(self) -> None:
        """Do all of it, and end the program."""
        if not self._is_served():
            return
        if self._open_top():
            self._read_all()
        if not children.stop(self._pid, signal.SIGTERM, _ENDING_TIMEOUT):
            children.stop(self._pid, signal.SIGKILL, _ENDING_TIMEOUT)

    def _is_served(self) -> bool:
        """Wait until another filesystem is at the mount point; return False if that does not come."""
        point = mount_point(self._wanted.place)
        before, deadline = os.stat(point).st_dev, time.monotonic() + TIME_LIMIT
        while os.stat(point).st_dev == before:
            if children.has_ended(self._pid):
                _send(Sign.NOT_SERVED, 0, b"%d" % children.status(self._pid))
                return False
            if time.monotonic() >= deadline:
                _send(Sign.LATE)
                return False
            time.sleep(_PAUSE)
        return True

    def _open_top(self) -> bool:
        path = f"{mount_point(self._wanted.place)}/{self._wanted.top}"
        try:
            self._top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with os.scandir(self._top) as entries:
                next(entries, None)
        except OSError as error:
            _send(Sign.NO_TOP, int(presence.absent(error)), (error.strerror or "").encode())
            return False
        return True

    def _read_all(self) -> None:
        for number, name in enumerate(self._wanted.names):
            if not self._read(number, name):
                # It is about to end: the kernel has closed its mount first.
                status = children.status(self._pid)
                _send(Sign.DIED, number, b"%d" % status)
                return
        _send(Sign.DONE)

    def _read(self, number: int, name: str) -> bool:
        """Read a file; nothing is sent of one that does not exist, or is no regular file.

        Return False if the program has gone.
        """
        has_begun = False
        try:
            # A FIFO must not wait for somebody who writes.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with closing(linux.open_beneath(self._top, name, flags)) as fd:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    return True
                has_begun = True
                _send(Sign.BEGIN, number, b"%d" % status.st_size)
                come = 0
                while data := os.read(fd, _PIECE):
                    come += len(data)
                    _send(Sign.PIECE, number, data)
        except OSError as error:
            if error.errno in _GONE:
                children.kill(self._pid)
                return False
            if has_begun or not (presence.moved(error) or self._is_absent(name)):
                _send(Sign.FAILED, number, (error.strerror or "").encode())
            return True
        if come == status.st_size:
            _send(Sign.END, number)
        else:
            _send(Sign.FAILED, number, b"it has %d bytes, and not %d" % (come, status.st_size))
        return True

    def _is_absent(self, name: str) -> bool:
        """Whether a file that cannot be opened is in none of the lists of its folders: kopia has EIO for it, too."""
        above = "."
        for part in name.split("/"):
            try:
                names = self._names(above)
            except OSError as error:
                return presence.absent(error)
            if part not in names:
                return True
            above = f"{above}/{part}"
        return False

    def _names(self, folder: str) -> frozenset[str]:
        if self._listed is None or self._listed[0] != folder:
            with closing(linux.open_beneath(self._top, folder, os.O_RDONLY | os.O_DIRECTORY)) as fd:
                self._listed = folder, frozenset(os.listdir(fd))
        return self._listed[1]


class Messages:
    """Takes the attendant's output piece by piece, and hands each message on."""

    def __init__(self, take: Callable[[Sign, int, bytes], None]) -> None:
        self._take = take
        self._rest = bytearray()

    def feed(self, data: bytes) -> None:
        """Take the next piece. Raises what ``take`` raises."""
        self._rest += data
        start = 0
        while len(self._rest) - start >= _HEAD.size:
            sign, number, length = _HEAD.unpack_from(self._rest, start)
            end = start + _HEAD.size + length
            if end > len(self._rest):
                break
            self._take(Sign(sign), number, bytes(self._rest[start + _HEAD.size : end]))
            start = end
        del self._rest[:start]
