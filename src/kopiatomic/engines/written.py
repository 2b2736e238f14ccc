"""What an engine writes itself: in place it must stay live where it is, and must never be read as data."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.model.plan import Layout, Plan
from kopiatomic.paths import below, is_at_or_below, topmost
from kopiatomic.system import host, looking
from kopiatomic.text import printable


@immutable
class WrittenDirectory:
    """A directory that an engine writes to; ``skipped`` means that it is never read as data."""

    what: str
    path: str
    skipped: bool
    why: str = ""
    """If it is not skipped: what would have to be different."""
    asked: bool = False
    """Whether a person named it."""
    cache: bool = False
    """Whether it is skipped because it is marked as a cache; if it is not marked yet, it is marked."""


_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"
"""How a CACHEDIR.TAG begins (bford.info/cachedir)."""
_TAG = "CACHEDIR.TAG"


def is_cache(path: str) -> bool:
    """Whether a directory is marked as a cache, so that backups may exclude its content."""
    return looking.call(lambda: _is_tagged(path, None), path)


def _is_tagged(path: str, directory: int | None) -> bool:
    try:
        fd = os.open(os.path.join(path, _TAG), os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        with open(fd, "rb") as file:
            return file.read(len(_SIGNATURE)) == _SIGNATURE
    except OSError as error:
        if presence.moved(error):
            return False
        raise


def source_of(path: str, plan: Plan) -> str | None:
    """Return the source of a plan that contains a path."""
    return next((source for source in plan.sources if is_at_or_below(path, source)), None)


def in_place(plan: Plan, path: str) -> bool:
    """Whether a path is not seen live in place: it is in something that is frozen there, or hidden."""
    return plan.layout is Layout.IN_PLACE and is_covered(looking.real(path), plan)


def is_covered(path: str, plan: Plan) -> bool:
    """Whether a path without links is not seen live in place."""
    return any(is_at_or_below(path, directory) for directory in plan.covered)


def is_hidden(path: str, plan: Plan) -> bool:
    """Whether one of our directories replaces what a path without links leads to, so that nothing of it is seen in place."""
    frozen = [place for taken in plan.taken for place, _ in taken.shown]
    tops = [hidden.directory for hidden in plan.hidden]
    nearest = max((d for d in (*frozen, *tops) if is_at_or_below(path, d)), key=len, default=None)
    return nearest is not None and nearest in tops


def _made(path: str, *, mark: bool) -> bool:
    """Make a directory without following links; return whether it had to be marked as a cache. Raises OSError."""
    directory = host.here().make_directory(path, 0o700)
    try:
        if not mark or _is_tagged("", directory):
            return False
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(_TAG, flags, 0o644, dir_fd=directory), "wb") as file:
            file.write(_SIGNATURE + b"\n")
        return True
    finally:
        os.close(directory)


def require_skipped(found: Sequence[WrittenDirectory], plan: Plan) -> None:
    """Raise KopiatomicError for a directory that is in a source and would be read as data."""
    for own in found:
        path = looking.real(own.path)
        # It would be live, and nothing of it frozen, also for an engine that leaves it out.
        if any(is_at_or_below(source, path) for source in plan.sources):
            raise KopiatomicError(
                f"{own.what} {printable(own.path)} is what is backed up, which is read-only",
                kind="own-in-source",
                hint="Name a directory below it that is marked as a cache (CACHEDIR.TAG), or one elsewhere.",
            )
        source = source_of(path, plan)
        if source is not None and not own.skipped:
            raise KopiatomicError(
                f"{own.what} {printable(own.path)} lies in {printable(source)}, which is backed up in place: it is written "
                "while it is read",
                kind="own-in-source",
                hint=own.why
                or "Move it out of what is backed up, leave its dataset out (--exclude), or use --layout merged.",
            )


def prepared(found: Sequence[WrittenDirectory], plan: Plan, warn: Callable[[str], None]) -> Plan:
    """Return the plan with live places for directories that would be frozen or hidden; make (and mark) missing ones.

    Raises KopiatomicError for a directory that would be read as data.
    """
    require_skipped(found, plan)
    paths = set()
    for own in found:
        path = looking.real(own.path)
        if not is_covered(path, plan):
            if own.asked and not looking.call(partial(presence.exists, path), path):
                raise KopiatomicError(
                    f"{own.what} {printable(own.path)}: there is no such directory",
                    kind="no-writable",
                    hint="Make it first, or look at how it is written: nothing else of it would be noticed.",
                )
            continue
        try:
            mark = own.cache and source_of(path, plan) is not None
            if looking.call(partial(_made, path, mark=mark), path):
                what = f"{own.what} {printable(path)} lies in this backup and was not marked as a cache"
                warn(f"{what}: a {_TAG} is in it now")
        except OSError as error:
            raise KopiatomicError(
                f"{own.what} {printable(own.path)} cannot be made: {error.strerror}",
                kind="own-in-source",
                hint="It must exist before the snapshot, so that it has a place there.",
            ) from None
        paths.add(path)
    return with_places(replace(plan, writable=topmost(paths)), topmost(paths))


def with_places(plan: Plan, paths: Sequence[str]) -> Plan:
    """Return a plan in place with our directories for the mounts that are hidden and hold some paths that must be there."""
    mounts = (*plan.uncovered, *plan.beside)
    hidden = {u.point for u in mounts if not u.live and any(below(path, u.point) for path in paths)}
    return replace(plan, scaffolds=tuple(sorted({*plan.scaffolds, *hidden})))
