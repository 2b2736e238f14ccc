"""A terminal for one run, with its keyboard in the test's hands."""

from __future__ import annotations

import fcntl
import os
import sys
import termios


class Terminal:
    """Give ``become`` to the start of a run, then call ``begun``."""

    def __init__(self) -> None:
        self.keyboard, self._theirs = os.openpty()
        self.name = os.ttyname(self._theirs)
        os.set_blocking(self.keyboard, False)
        self._seen = bytearray()

    def become(self) -> None:
        """In the new process, which leads its session: this is its terminal, and it is in the foreground."""
        # By its name: a fork may have closed what it inherited.
        theirs = os.open(self.name, os.O_RDWR)
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        for fd in (0, 1, 2):
            os.dup2(theirs, fd)
        os.close(theirs)
        # In a fork that goes on as kopiatomic the streams still take themselves for files.
        sys.stdout, sys.stderr = (open(fd, "w", encoding="utf-8", closefd=False) for fd in (1, 2))  # noqa: SIM115

    def begun(self) -> None:
        """The run has the other side now, and it alone."""
        os.close(self._theirs)

    def seen(self) -> str:
        """All that it has shown; must be asked for now and then, or the run waits for the screen."""
        try:
            while data := os.read(self.keyboard, 1 << 16):
                self._seen += data
        except OSError:
            # Nothing more for now, or the other side is closed.
            pass
        return self._seen.decode(errors="replace")

    def press(self, key: bytes) -> None:
        os.write(self.keyboard, key)

    def close(self) -> None:
        """The terminal goes away: SIGHUP to the run, and an error at every later write."""
        os.close(self.keyboard)
