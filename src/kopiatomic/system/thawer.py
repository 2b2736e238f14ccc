"""The thawer: a program that has a frozen control group run again when the process that froze it no longer can.

It runs in a control group of its own and exists before anything is frozen. Its input is a pipe from that process, and ends with
it. Uses only the standard library, so that it starts quickly and needs little memory.

| it reads | it does |
|---|---|
| ``freeze SECONDS`` | answers ``armed``; from now on it thaws the group after so many seconds, or at the end of its input |
| ``done`` | ends |
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time

_LINE = 4096


def main(directory: str, own: str, home: str) -> None:
    """Watch over the control group in a directory.

    ``own`` is a group to make for ourselves, and ``home`` the one to go back to at the end; both are empty if we already have one
    of our own. Raises OSError.
    """
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP):
        # It ends with what it watches over: within seconds.
        signal.signal(signum, signal.SIG_IGN)
    if own:
        os.mkdir(own, 0o755)
    try:
        if own:
            _join(own)
        _watch(directory)
    finally:
        if own:
            # Nobody can remove a group that has a process in it.
            _join(home)
            os.rmdir(own)


def _watch(directory: str) -> None:
    freeze = os.open(f"{directory}/cgroup.freeze", os.O_WRONLY | os.O_CLOEXEC)
    os.write(1, b"ready\n")
    if not _is_let_off():
        _thaw(freeze)


def _join(group: str) -> None:
    with open(f"{group}/cgroup.procs", "w", encoding="ascii") as file:
        file.write("0")


def _is_let_off() -> bool:
    """Wait. Return whether nothing is frozen any more, so that nothing must be done."""
    deadline: float | None = None
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while True:
        if not poll.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000):
            return False
        # Lines are shorter than PIPE_BUF, so each comes whole (pipe(7)).
        text = os.read(0, _LINE)
        if not text:
            return deadline is None
        for line in text.splitlines():
            word, _, seconds = line.partition(b" ")
            if word == b"done":
                return True
            deadline = time.monotonic() + float(seconds)
            os.write(1, b"armed\n")


def _thaw(freeze: int) -> None:
    try:
        os.write(freeze, b"0")
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        # The group has been removed, so nothing is left in it.
