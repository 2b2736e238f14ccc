"""What an engine writes itself: in place it has to stay live where it lies, and must never be read as data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from kopiatomic.errors import KopiatomicError
from kopiatomic.model import Layout, Plan
from kopiatomic.text import printable


@dataclass(frozen=True, slots=True)
class Own:
    """A directory that an engine writes to; ``skipped`` says that no rule lets it be read as data."""

    what: str
    path: str
    skipped: bool
    why: str = ""
    """Where it is not skipped: what would have to be different."""


def source_of(path: str, plan: Plan) -> str | None:
    """The source of a plan that a path lies in."""
    return next((s for s in plan.sources if path == s or path.startswith(s.rstrip("/") + "/")), None)


def in_place(plan: Plan, path: str) -> bool:
    """Whether a path would be frozen, or read, because it lies in a source at its true path."""
    return plan.layout is Layout.IN_PLACE and source_of(os.path.realpath(path), plan) is not None


def writable(found: Sequence[Own], plan: Plan) -> tuple[str, ...]:
    """Those that lie in a source, made if they are missing, so that they exist in the snapshot too.

    Raises KopiatomicError for one that would be read as data.
    """
    paths = set()
    for own in found:
        path = os.path.realpath(own.path)
        source = source_of(path, plan)
        if source is None:
            continue
        if not own.skipped:
            raise KopiatomicError(
                f"{own.what} {printable(own.path)} lies in {printable(source)}, which is backed up in place: it is written "
                "while it is read",
                kind="own-in-source",
                hint=own.why
                or "Move it out of what is backed up, leave its dataset out (--exclude), or use --layout merged.",
            )
        try:
            os.makedirs(path, 0o700, exist_ok=True)
        except OSError as error:
            raise KopiatomicError(
                f"{own.what} {printable(own.path)} cannot be made: {error.strerror}",
                kind="own-in-source",
                hint="It has to exist before the snapshot, so that it has a place there.",
            ) from None
        paths.add(path)
    return tuple(sorted(p for p in paths if not any(p.startswith(f"{q}/") for q in paths)))
