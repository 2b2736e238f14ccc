"""Makes calls that the kernel may hold up for ever (a suspended pool) in a child process, which can be left alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TypeVar

from kopiatomic.errors import EndError, KopiatomicError, end_of
from kopiatomic.system import channel, inherited, signals
from kopiatomic.system.channel import Channel, ClosedError

T = TypeVar("T")


class StuckError(KopiatomicError):
    """A child process waits in the kernel. It continues by itself when the kernel lets it."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} waits in the kernel", kind="stuck", hint="See 'zpool status' and 'dmesg'.")
        self.pid = pid


def call(function: Callable[[], T], receive: Callable[[Channel], object]) -> T:
    """Call a function in a child that no terminal's signal reaches; its result must be picklable.

    ``receive`` waits for the result on a channel, and raises TimeoutError when it has waited long enough. Raises what the
    function raises if that is a KopiatomicError, else its description as one; StuckError; OSError if no child can be forked.
    """
    ours, theirs = channel.pair()
    pid = os.fork()
    if pid == 0:
        try:
            _serve(function, ours, theirs)
        finally:
            os._exit(0)
    theirs.close()
    try:
        answer = receive(ours)
        os.waitpid(pid, 0)
    except TimeoutError:
        raise StuckError(pid) from None
    except ClosedError:
        os.waitpid(pid, 0)
        raise KopiatomicError("a process that removes leftovers was killed", kind="worker-killed") from None
    finally:
        ours.close()
    if isinstance(answer, EndError):
        raise answer
    return answer  # type: ignore[return-value]


def _serve(function: Callable[[], object], ours: Channel, theirs: Channel) -> None:
    ours.close()
    detach()
    try:
        result: object = function()
    except Exception as error:
        result = end_of(error)
    try:
        theirs.send(result)
    except ClosedError:
        # No process waits any more; the work is done.
        return


def detach() -> None:
    """In a forked child: start a session of its own, which no signal that asks a run to end reaches.

    It may outlive the main process, and then must not keep its caller waiting for the end of a pipe.
    """
    os.setsid()
    leave_streams()
    signals.forget()
    # The channel, not a signal, reports a main process that died.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for signum in (*signals.ENDING, signal.SIGTSTP):
        signal.signal(signum, signal.SIG_IGN)


def leave_streams() -> None:
    """Close the standard streams: whoever reads them may wait for the end of a pipe."""
    null = inherited.open_null()
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
