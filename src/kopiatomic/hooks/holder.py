"""What holds a writer still while the snapshots are made: the values and Protocols that all kinds share.

A *kind* finds the writers of one sort and says of each what must be done. A *holder* does it. It is made in the main process and
used in the keeper, in this order:

| call | what is done | what is held |
|---|---|---|
| ``intents`` (main process) | says what must be recorded first | nothing |
| ``prepare`` | takes its time: clients are connected, the thawer is started, a checkpoint is made | nothing |
| ``hold`` | returns when it is held | from here on |
| ``settle`` | writes out what a snapshot would not have, once everything is held | everything |
| ``release`` | releases it, and says whether it was held throughout | nothing from here on |
| ``close`` | releases it if that has not happened, and ends what ``prepare`` has started; in any case, once | nothing |

Between ``hold`` and ``release`` nothing may be logged or recorded. Whatever is held is tied to a process's death, or to a limit
that the server or the thawer keeps, so nothing stays held when the keeper is killed or stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, Protocol

from kopiatomic.errors import KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.model.leftovers import Intent
from kopiatomic.text import printable

TIMEOUT = 10.0
"""Seconds within which a writer must be held, by default."""

LIMIT = 10.0
"""Seconds that it may be held at most, by default."""

SHORT_LIMIT = 2.0
"""The same for frozen processes and for a database's lock: others wait for them."""


@immutable
class Wanted:
    """What ``--hold KIND[:NAME]``, or a ``[[hold]]`` of a profile, asks for. Times are in seconds."""

    kind: str
    name: str = ""
    timeout: float = TIMEOUT
    """How long it may take until it is held."""
    limit: float | None = None
    """How long it may be held at most; None: as the kind has it."""
    required: bool = True
    """Whether a backup fails without it."""
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The kind's own keys; a password may be one of them."""

    def __str__(self) -> str:
        return printable(f"{self.kind}:{self.name}" if self.name else self.kind)


@immutable
class Place:
    """Where a path lies in the backup. All paths with the same ``instant`` are in one proven instant."""

    dataset: str
    instant: str


PlaceOf = Callable[[str], Place | None]
"""Returns the place of an absolute path without links; None if it is not in the backup."""


@immutable
class Around:
    """What a kind knows of the backup. ``environment`` is for commands of the user's own: it has no secrets."""

    place_of: PlaceOf
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


@immutable
class Held:
    """How a writer was held. ``stall`` is in nanoseconds: how long it had to wait; 0 if it did not have to.

    ``proven``: it was held without interruption until it was released. ``why`` says what proves it, or what happened.
    """

    label: str
    stall: int
    proven: bool
    why: str


class Holder(Protocol):
    """Holds one writer still. Deadlines are of ``time.monotonic``.

    After one of its methods has raised, only ``close`` is called. That is called while signals are deferred.
    """

    label: str
    """As in the plan: "postgresql 15/main"."""
    wanted: Wanted

    def intents(self) -> Sequence[Intent]:
        """Return what must be recorded before it is held, so that it can be released after a kill of everything.

        Raises KopiatomicError.
        """

    def prepare(self, deadline: float, /) -> None:
        """Do all that takes time and holds nothing. Raises KopiatomicError."""

    def hold(self, deadline: float, /) -> None:
        """Hold it; return when it is held. Raises KopiatomicError, Interrupted."""

    def settle(self) -> None:
        """Write out what its filesystems have in memory and a snapshot would not have. Raises KopiatomicError."""

    def release(self) -> Held:
        """Release it. Raises nothing: what went wrong is part of the answer."""

    def close(self) -> None:
        """Release it if it is held, and end what was started for it. Raises nothing."""


@immutable
class Finding:
    """One line of the plan: what was found of one writer, and what is done about it.

    ``holder`` is None if nothing must be done. ``note`` is what else should be known.
    """

    label: str
    text: str
    holder: Holder | None = None
    in_backup: bool = True
    note: str = ""
    frozen: bool = False
    """Whether its processes are frozen, so that snapshots of several instants are one instant for it."""

    def __str__(self) -> str:
        return f"{self.label}: {self.text}"


@immutable
class Key:
    """A key that a kind has of its own in a profile: what its value is, and what it means."""

    type: type
    """bool, int (a port), str, or list: words."""
    help: str
    default: str | None = None
    is_secret: bool = False
    """Whether the value may stand elsewhere."""


class Kind(Protocol):
    """A sort of writers. One module for each, with a value ``KIND`` or several, and a line in ``hooks/kinds.py``."""

    name: str
    """As in ``--hold``."""
    settings: Mapping[str, Key]
    """Its own keys in a profile."""
    programs: Sequence[str]
    """Those of them that name a program which is started, alone or with its arguments."""

    def find(self, wanted: Wanted, around: Around) -> list[Finding]:
        """Ask what is there; a finding for each writer, at least one. Called in the main process.

        Raises KopiatomicError if there is no writer of this kind and name, or it cannot be asked; UsageError; Interrupted.
        """


def with_secrets(wanted: Wanted, values: Mapping[str, Any]) -> Wanted:
    """Return what is wanted, with settings that were elsewhere."""
    return replace(wanted, settings={**wanted.settings, **values})


def not_in_backup(wanted: Wanted, findings: Sequence[Finding]) -> KopiatomicError | None:
    """Return the error for writers whose files are not in the backup; None if all are."""
    outside = [str(finding) for finding in findings if not finding.in_backup]
    if not outside:
        return None
    return KopiatomicError(
        f"--hold {wanted}: {'; '.join(outside)}",
        kind="hold-not-in-backup",
        hint="Add the dataset that it lies in, or set required = false for it.",
    )


def not_in_time(label: str, what: str, timeout: float) -> KopiatomicError:
    """Return the error for a writer that was not held in time. ``what`` says what it waited for."""
    return KopiatomicError(
        f"{label} could not be held within {timeout:g} s: {what}",
        kind="hold-timeout",
        hint="Try again when it is less busy, or give it a longer timeout. Everything has been released.",
    )
