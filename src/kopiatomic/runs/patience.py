"""How long the main process waits for what holds the kernel up: a suspended pool, or a frozen filesystem.

With ``failmode=wait`` a pool whose devices are gone makes every call that needs it wait until ``zpool clear``; a filesystem that
is frozen (fsfreeze(8)) makes every call that changes it wait until it is thawed; and no signal interrupts either. So another
process makes those calls, and the main process can report it and end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kopiatomic.errors import DEVICES_SILENT, KopiatomicError, suspension
from kopiatomic.system import pools, process
from kopiatomic.system.channel import Channel
from kopiatomic.text import printable

CLEAN_UP = 5.0
"""Seconds for the clean-up of a run that has given up waiting."""

_LOOK = 1.0
"""Seconds between two looks."""


class HeldUpError(KopiatomicError):
    """The kernel held the run up for longer than the run waits."""


@dataclass(frozen=True)
class Obstacle:
    """Why calls into the kernel wait, in words: what it is, why they wait, and what ends it; ``kind`` is the error's."""

    kind: str
    what: str
    why: str
    why_it_was: str
    look: str
    remedy: str

    def stops(self, pid: int) -> KopiatomicError:
        """Return the error for a process that waits for the end of this."""
        return KopiatomicError(
            f"{self.what}, and process {pid} waits for it ({self.remedy})",
            kind=self.kind,
            hint=f"{self.look} {self.remedy}.",
        )


class Patience:
    """Waits while watching the pools and the children. ``limit`` is how long (seconds) to wait for what holds one up.

    ``others`` are the other filesystems of the run, by the names to show.
    """

    def __init__(
        self, names: Iterable[str], limit: float, warn: Callable[[str], None], *, others: Iterable[str] = ()
    ) -> None:
        self._names = sorted(set(names))
        self._others = sorted(set(others))
        self._limit = limit
        self._warn = warn
        self._since: float | None = None
        self._next = 0.0
        self.given_up: Obstacle | None = None
        """What was waited for in vain."""

    def interval(self) -> float | None:
        """Return how many seconds to wait at most before the next :meth:`look`; None if nothing can hold the run up."""
        return _LOOK if self._names or self._others else None

    def obstacle(self) -> Obstacle | None:
        """Return what holds this process's children up now, or will."""
        silent = pools.suspended(self._names)
        if silent:
            return Obstacle(
                "pool-suspended",
                suspension(silent),
                DEVICES_SILENT,
                "its devices did not answer",
                "See 'zpool status';",
                f"when its devices are back: zpool clear {', '.join(map(printable, silent))}",
            )
        if self._others and process.child_waits_for_a_thaw():
            one = len(self._others) == 1
            shown = ", ".join(map(printable, self._others[:3])) + (", ..." if len(self._others) > 3 else "")
            return Obstacle(
                "filesystem-frozen",
                f"the filesystem of {shown} is frozen" if one else f"a filesystem is frozen, one of {shown}",
                "nothing can be changed on it",
                "nothing could be changed on it",
                "A program that saves the whole machine, or fsfreeze(8), has frozen it;",
                f"to thaw it: fsfreeze -u {shown if one else 'DIRECTORY'}",
            )
        return None

    def look(self) -> None:
        """Look for an obstacle, at most once a second. Raises HeldUpError."""
        now = time.monotonic()
        if self.interval() is None or now < self._next:
            return
        self._next = now + _LOOK
        obstacle = self.obstacle()
        if obstacle is None:
            self._since = None
            self.given_up = None
            return
        if self._since is None:
            self._since = now
            self._warn(f"{obstacle.what}: {obstacle.why}; waiting {self._limit:g} s for it")
        if now - self._since >= self._limit:
            self.given_up = obstacle
            raise HeldUpError(
                f"{obstacle.what}: {obstacle.why_it_was} for {self._limit:g} s",
                kind=obstacle.kind,
                hint=f"{obstacle.look} {obstacle.remedy}. What this run made goes by itself then.",
            )

    def receive(self, channel: Channel, timeout: float | None = None) -> object:
        """Wait for a message. Raises ClosedError, TimeoutError, Interrupted, HeldUpError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            interval = self.interval()
            span = left if interval is None else min(interval, left if left is not None else interval)
            try:
                return channel.receive(span)
            except TimeoutError:
                if left is not None and (span is None or left <= span):
                    raise
                self.look()

    def receive_at_the_end(self, channel: Channel, timeout: float) -> object:
        """Wait during clean-up: at most ``timeout`` seconds, few if there is an obstacle. Raises ClosedError, TimeoutError."""
        deadline = time.monotonic() + timeout
        since: float | None = None
        while True:
            now = time.monotonic()
            obstacle = self.obstacle()
            if obstacle is None:
                since = None
            elif since is None:
                since = now
            over = since is not None and now - since >= CLEAN_UP
            left = deadline - now
            if over or left <= 0:
                self.given_up = obstacle
                raise TimeoutError
            try:
                return channel.receive(min(_LOOK, left))
            except TimeoutError:
                continue
