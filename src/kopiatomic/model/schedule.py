"""A schedule as data: what is started, when, and as what."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from kopiatomic.immutable import immutable
from kopiatomic.text import printable


@immutable
class Schedule:
    """One schedule. Times in seconds."""

    name: str
    calendar: str
    """When it starts, in the form of systemd.time(7)."""
    interval: float
    """The longest time between two starts."""
    program: tuple[str, ...]
    """The argv of kopiatomic, absolute."""
    words: tuple[str, ...]
    """The words of the backup; empty for a profile."""
    environment: Mapping[str, str]
    """The whole environment of its processes, except what the platform adds."""
    credentials: Mapping[str, str]
    """The files that hold the engine's secrets, by the variable that each is for."""
    state_dir: str
    end_timeout: float
    """How long a run may take to end, clean-up included."""
    profile: str = ""
    """The profile that it runs; empty for words."""
    asked: str = ""
    """What the profile says of when it starts; ``calendar`` is what this system makes of it."""
    random_delay: float | None = None
    """Up to how long a start is delayed; None for what suits the interval."""
    persistent: bool = True
    """Whether a missed start is made up for."""
    on_battery: bool = True
    """Whether it starts on battery power, too."""

    def agrees(self, other: Schedule) -> bool:
        """Whether another says the same of when and how it is started: what is installed, and not read at each run."""
        return all(getattr(self, name) == getattr(other, name) for name in _INSTALLED)

    @property
    def shown(self) -> str:
        """What it runs, as the words of a command line."""
        return printable(shlex.join(["run", self.profile] if self.profile else self.words))


_INSTALLED = ("asked", "random_delay", "persistent", "on_battery", "end_timeout", "state_dir")
