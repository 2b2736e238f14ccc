"""How long the main process waits for what a suspended pool holds up.

With ``failmode=wait`` a pool whose devices are gone makes every call that needs it wait until ``zpool clear``, and no signal
interrupts that. So another process makes those calls, and the main process can report it and end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from kopiatomic.errors import KopiatomicError
from kopiatomic.system import pools
from kopiatomic.system.channel import Channel
from kopiatomic.text import printable

CLEAN_UP = 5.0
"""Seconds for the clean-up of a run that has given up on a suspended pool."""

_LOOK = 1.0
"""Seconds between two looks at the pools' states."""


class SuspendedError(KopiatomicError):
    """A pool was suspended for longer than the run waits for it."""


class Patience:
    """Waits while watching the pools. ``limit`` is how long (seconds) to wait for a suspended one."""

    def __init__(self, names: Iterable[str], limit: float, warn: Callable[[str], None]) -> None:
        self._names = sorted(set(names))
        self._limit = limit
        self._warn = warn
        self._since: float | None = None
        self._next = 0.0
        self.given_up: list[str] = []
        """The pools that were waited for in vain."""

    def interval(self) -> float | None:
        """Return how many seconds to wait at most before the next :meth:`look`; None if there are no pools."""
        return _LOOK if self._names else None

    def suspended(self) -> list[str]:
        """Return which of the pools are suspended now."""
        return pools.suspended(self._names)

    def look(self) -> None:
        """Look at the pools, at most once a second. Raises SuspendedError."""
        now = time.monotonic()
        if not self._names or now < self._next:
            return
        self._next = now + _LOOK
        suspended = self.suspended()
        if not suspended:
            self._since = None
            self.given_up = []
            return
        shown = ", ".join(map(printable, suspended))
        if self._since is None:
            self._since = now
            self._warn(f"the pool {shown} is suspended: its devices do not answer; waiting {self._limit:g} s for it")
        if now - self._since >= self._limit:
            self.given_up = suspended
            raise SuspendedError(
                f"the pool {shown} is suspended: its devices did not answer for {self._limit:g} s",
                kind="pool-suspended",
                hint=f"See 'zpool status'; when the devices are back: zpool clear {shown}. "
                "What this run made goes by itself then.",
            )

    def receive(self, channel: Channel, timeout: float | None = None) -> object:
        """Wait for a message. Raises ClosedError, TimeoutError, Interrupted, SuspendedError."""
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
        """Wait during clean-up: at most ``timeout`` seconds, few if a pool is suspended. Raises ClosedError, TimeoutError."""
        deadline = time.monotonic() + timeout
        suspended_since: float | None = None
        while True:
            now = time.monotonic()
            if not self.suspended():
                suspended_since = None
            elif suspended_since is None:
                suspended_since = now
            over = suspended_since is not None and now - suspended_since >= CLEAN_UP
            left = deadline - now
            if over or left <= 0:
                self.given_up = self.suspended()
                raise TimeoutError
            try:
                return channel.receive(min(_LOOK, left))
            except TimeoutError:
                continue
