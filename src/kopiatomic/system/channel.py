"""Messages between kopiatomic's own processes: pickled objects over a socket pair."""

from __future__ import annotations

import errno
import os
import pickle
import select
import socket
import struct
import time
from array import array
from collections.abc import Sequence

from kopiatomic.system import signals

_LENGTH = struct.Struct("!Q")
_ALONG = b"\0"
"""What descriptors are sent with: a stream socket carries them only along with data (unix(7))."""


class ClosedError(Exception):
    """The other process has ended or closed its end."""


def receive_with_descriptors(end: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Receive at most so many bytes, and copies of descriptors that came along, which programs do not inherit.

    Raises OSError: with EMFILE if this process cannot have as many descriptors as came.
    """
    found = array("i")
    # Not socket.recv_fds: CPython 3.11 passes no flags on to the call, and what is missing is not noticed.
    room = socket.CMSG_SPACE(most * found.itemsize)
    data, carried, flags, _ = end.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in carried:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    if flags & socket.MSG_CTRUNC:
        for fd in found:
            os.close(fd)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return data, found.tolist()


class Channel:
    """One end. Both ends are ours and pass between forks of one process: pickle never sees foreign data."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        """Return the descriptor, for poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end; the other side reads its end of file."""
        self._socket.close()

    def send(self, message: object) -> None:
        """Send one message. Raises ClosedError."""
        data = pickle.dumps(message)
        try:
            self._socket.sendall(_LENGTH.pack(len(data)) + data)
        except (BrokenPipeError, ConnectionResetError):
            raise ClosedError from None

    def receive(self, timeout: float | None = None) -> object:
        """Wait for one message (seconds; None: for ever). Raises ClosedError, TimeoutError, Interrupted.

        Interrupted only where this process handles signals, and never inside ``signals.deferred``.
        """
        wait_readable(self.fileno(), timeout)
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return pickle.loads(self._exactly(length))  # noqa: S301

    def send_descriptors(self, descriptors: Sequence[int]) -> None:
        """Send copies of open descriptors. Raises ClosedError."""
        try:
            socket.send_fds(self._socket, [_ALONG], descriptors)
        except (BrokenPipeError, ConnectionResetError):
            raise ClosedError from None

    def receive_descriptors(self, most: int) -> list[int]:
        """Return copies of what :meth:`send_descriptors` sent, which programs do not inherit.

        Raises ClosedError, and OSError if this process cannot have as many.
        """
        data, found = receive_with_descriptors(self._socket, len(_ALONG), most)
        if not data:
            raise ClosedError
        return found

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                chunk = self._socket.recv(min(size - len(data), 1 << 20))
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                raise ClosedError
            data += chunk
        return bytes(data)


def pair() -> tuple[Channel, Channel]:
    """Return two connected ends; programs that are started inherit neither."""
    one, other = socket.socketpair()
    return Channel(one), Channel(other)


def wait_readable(fd: int, timeout: float | None) -> None:
    """Wait until a descriptor (channel, watch of a process, pipe) is readable. Raises TimeoutError, Interrupted."""
    # A signal that came while signals were deferred no longer wakes a wait.
    signals.check()
    deadline = None if timeout is None else time.monotonic() + timeout
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    wakeup = signals.fd()
    if wakeup is not None:
        poll.register(wakeup, select.POLLIN)
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = dict(poll.poll(None if left is None else left * 1000))
        if wakeup in ready:
            signals.check()
        if fd in ready:
            return
        if left == 0.0:
            raise TimeoutError


def watched_ended(fd: int, timeout: float | None) -> bool:
    """Whether a watched process has fully ended, after waiting at most ``timeout`` seconds."""
    try:
        wait_readable(fd, timeout)
    except TimeoutError:
        return False
    return True


def close_quietly(fd: int | None) -> None:
    """Close a descriptor that may already be closed."""
    if fd is not None:
        try:
            os.close(fd)
        except OSError:
            pass
