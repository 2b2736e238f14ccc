"""Hooks of a profile: programs that root has run at moments of a run, as values."""

from __future__ import annotations

from enum import StrEnum

from kopiatomic.immutable import immutable
from kopiatomic.secrets.source import Source

DEFAULT_TIMEOUT = 600.0
"""Seconds that a hook may take."""


class Moment(StrEnum):
    """When a hook runs, as a profile names it."""

    BEFORE = "before"
    BEFORE_FREEZE = "before_freeze"
    AFTER_FREEZE = "after_freeze"
    IN_VIEW = "in_view"
    AFTER = "after"
    ON_SUCCESS = "on_success"
    ON_INCOMPLETE = "on_incomplete"
    ON_FAILURE = "on_failure"


AT_THE_END = frozenset(Moment) - {Moment.BEFORE, Moment.BEFORE_FREEZE, Moment.IN_VIEW}
"""What runs also when the run has been asked to end."""


@immutable
class Hook:
    """A program and when it runs. ``timeout`` in seconds."""

    moment: Moment
    argv: tuple[str, ...]
    timeout: float = DEFAULT_TIMEOUT
    user: str = ""
    """The name or number of the user that it runs as; empty for root."""
    directory: str = "/"
    required: bool = True
    """In the view: whether its failure fails the run."""
    variables: tuple[Source, ...] = ()
    """Variables for it alone."""
    place: str = ""
    """The file and line of the profile, for messages."""

    @property
    def shown(self) -> str:
        """The name of the hook in messages: its moment, and where it stands."""
        return f"the hook {self.moment.value}" + (f" ({self.place})" if self.place else "")
