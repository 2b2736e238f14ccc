"""Looks at what users control, in a child process that can be left alone.

A user who may write to a directory may put a link or a mount there at any time. Access to it may then wait for a server or a
daemon that never answers: in the kernel, where no signal interrupts it. So the main process never looks itself. It forks a child,
which notes each path before it accesses it (:func:`at`), and abandons the child if it stays at one of them for too long.
"""

from __future__ import annotations

import errno
import gc
import mmap
import os
import signal
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import NoReturn, Self, TypeVar

from kopiatomic.errors import EndError, KopiatomicError, end_of
from kopiatomic.system import channel, children, descriptors, signals, worker
from kopiatomic.system.channel import Channel, ClosedError
from kopiatomic.text import printable

T = TypeVar("T")

LIMIT = 30.0
"""Seconds that one path may take to answer."""

_ANOTHER = 5.0
"""The same if another path has not answered in this time."""

_CHECK = 1.0
"""Seconds between two checks of the child's progress."""

_END_TIMEOUT = 6.0
"""Seconds that a child has to end a program that it has started, which has 5 (process.run)."""

_KILLED_TIMEOUT = 0.5
"""Seconds that a killed child has to end; only one that waits in the kernel takes longer."""


_LENGTH = struct.Struct("=I")
_NUMBER = struct.Struct("=i")


class NoAnswerError(KopiatomicError):
    """A path did not answer."""


class _Steps:
    """What the child reports continuously: the number of its step, and the path that it is at; empty for none.

    In shared memory: a child that waits in the kernel sends nothing.
    """

    _HEAD = struct.Struct("=QH")
    _ROOM = mmap.PAGESIZE - _HEAD.size

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)

    def note(self, path: str) -> None:
        text = os.fsencode(path)[: self._ROOM]
        number, _ = self._HEAD.unpack_from(self._page)
        self._page[self._HEAD.size : self._HEAD.size + len(text)] = text
        self._HEAD.pack_into(self._page, 0, number + 1, len(text))

    def last(self) -> tuple[int, str]:
        number, length = self._HEAD.unpack_from(self._page)
        return number, os.fsdecode(self._page[self._HEAD.size : self._HEAD.size + length])

    def close(self) -> None:
        self._page.close()


_steps: _Steps | None = None
"""In the child: where it notes its steps."""


def at(path: str) -> None:
    """Note that a path is about to be accessed; empty: a program is, which has a time limit of its own.

    Does nothing in a process that is no such child.
    """
    if _steps is not None:
        _steps.note(path)


def call(look: Callable[[], T], first: str) -> T:
    """Call a function in a child that has none of our descriptors open; its result must be picklable.

    ``first`` is the path that it begins at. Raises what the function raises if that is a KopiatomicError or an OSError, else its
    description as a KopiatomicError; NoAnswerError; Interrupted; OSError if no child can be forked.
    """
    if _steps is not None:
        # This is already such a child.
        return look()
    steps = _Steps()
    steps.note(first)
    try:
        ours, theirs = channel.pair()
        pid = os.fork()
        if pid == 0:
            _serve(look, theirs, steps)
        theirs.close()
        try:
            answer = _receive(ours, steps, pid)
        except BaseException:
            _end(pid, steps)
            raise
        finally:
            ours.close()
        os.waitpid(pid, 0)
    finally:
        steps.close()
    if isinstance(answer, EndError | OSError):
        raise answer
    return answer  # type: ignore[return-value]


def read(path: str, most: int) -> bytes:
    """Return the content of a plain file of at most ``most`` bytes, and of nothing else. Raises as :func:`call`."""
    return call(lambda: _read(path, most), path)


def _read(path: str, most: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with descriptors.closing(fd):
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", path)
        with open(fd, "rb", closefd=False) as file:
            content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most} bytes", path)
    return content


@cache
def real(path: str) -> str:
    """Follow a path's links once: where it led first is what it means from then on. Raises as :func:`call`."""
    return call(lambda: os.path.realpath(path), path)


def _receive(ours: Channel, steps: _Steps, pid: int) -> object:
    """Wait for the answer as long as the child makes progress. Raises KopiatomicError, Interrupted."""
    seen, since = steps.last(), time.monotonic()
    while True:
        try:
            return ours.receive(_CHECK)
        except TimeoutError:
            now = steps.last()
            if now != seen or not now[1]:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since >= LIMIT:
                raise _no_answer(now[1], pid) from None
        except ClosedError:
            raise _killed() from None


def _killed() -> KopiatomicError:
    return KopiatomicError(
        "the process that looks at paths was killed",
        kind="looker-killed",
        hint="Was it the out-of-memory killer? See 'dmesg' or 'journalctl -k'.",
    )


def _no_answer(path: str, pid: int) -> NoAnswerError:
    return NoAnswerError(
        f"{printable(path)} did not answer within {LIMIT:g} s",
        kind="no-answer",
        hint="What is mounted there, or where a link on the way leads, hangs: end its server or daemon, or unmount it (mount(8), "
        f"umount(8)). Process {pid} waits for it in the kernel, has nothing else open, and ends when that lets it.",
    )


def _end(pid: int, steps: _Steps) -> None:
    """End a child that is no longer needed, and the program that it waits for; leave it alone if it waits for a path."""
    _, path = steps.last()
    if path or not children.stop(pid, signal.SIGTERM, _END_TIMEOUT):
        children.stop(pid, signal.SIGKILL, _KILLED_TIMEOUT)


def _serve(look: Callable[[], object], theirs: Channel, steps: _Steps) -> NoReturn:
    try:
        _begin(theirs.fileno(), steps)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with signals.handled():
            theirs.send(_answer(look))
    except ClosedError:
        # No process waits any more.
        pass
    except OSError as error:
        theirs.send(error)
    finally:
        os._exit(0)


def _begin(end: int, steps: _Steps | None) -> None:
    """In a child: close everything but this descriptor, since its parent must be able to close completely what it has open."""
    global _steps
    _steps = steps
    # The garbage collector must not close these numbers again, which may be reused now.
    gc.disable()
    signals.forget()
    descriptors.close_all_but(end)
    worker.detach()


def _answer(look: Callable[[], object]) -> object:
    try:
        return look()
    except OSError as error:
        return error
    except Exception as error:
        return end_of(error)


class Opener:
    """Opens paths in a child, one after the other, for any of our threads. A context manager.

    ``how`` opens a path there. A child whose path does not answer is abandoned, and the next path gets a new one.
    """

    def __init__(self, how: Callable[[str], int]) -> None:
        self._how = how
        self._lock = threading.Lock()
        self._limit = LIMIT
        self._child: tuple[socket.socket, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, path: str) -> int:
        """Return a descriptor. Raises OSError; TimeoutError if the path does not answer; KopiatomicError, Interrupted."""
        with self._lock:
            try:
                number, fds = self._ask(os.fsencode(path))
            except TimeoutError:
                self.close()
                text = f"it did not answer within {self._limit:g} s"
                # A user who makes one path wait can do so with many; a sleeping disk has woken up meanwhile.
                self._limit = min(LIMIT, _ANOTHER)
                raise TimeoutError(errno.ETIMEDOUT, text, path) from None
            except BaseException:
                self.close()
                raise
        if number:
            raise OSError(number, os.strerror(number), path)
        return fds[0]

    def _ask(self, path: bytes) -> tuple[int, list[int]]:
        """Return an error number, and if it is 0 a descriptor. Raises TimeoutError, KopiatomicError, Interrupted, OSError."""
        ours, _ = self._child = self._child or self._start()
        try:
            ours.sendall(_LENGTH.pack(len(path)) + path)
            channel.wait_readable(ours.fileno(), self._limit)
            answer, fds = channel.receive_with_descriptors(ours, _NUMBER.size, 1)
        except ConnectionError:
            answer = b""
        if not answer:
            raise _killed()
        return _NUMBER.unpack(answer)[0], fds

    def _start(self) -> tuple[socket.socket, int]:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            try:
                _begin(theirs.fileno(), None)
                self._serve(theirs)
            finally:
                os._exit(0)
        theirs.close()
        return ours, pid

    def _serve(self, theirs: socket.socket) -> None:
        """Answer in the child, until its parent has closed the other end."""
        with theirs.makefile("rb") as questions:
            while head := questions.read(_LENGTH.size):
                path = os.fsdecode(questions.read(*_LENGTH.unpack(head)))
                try:
                    fd = self._how(path)
                except OSError as error:
                    theirs.sendall(_NUMBER.pack(error.errno or errno.EIO))
                    continue
                socket.send_fds(theirs, [_NUMBER.pack(0)], [fd])
                os.close(fd)

    def close(self) -> None:
        """End the child. If it waits in the kernel, it is left alone."""
        if self._child is not None:
            ours, pid = self._child
            self._child = None
            ours.close()
            children.stop(pid, signal.SIGKILL, _KILLED_TIMEOUT)
