"""Whether an engine's own files are on what the run takes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems import backends, kind_of
from kopiatomic.immutable import immutable
from kopiatomic.model import mounts
from kopiatomic.model.plan import Plan, Taken
from kopiatomic.paths import is_at_or_below
from kopiatomic.system import host, looking
from kopiatomic.text import printable


def check_repository(engine: str, path: str | None, plan: Plan) -> list[str]:
    """Check whether a repository in a directory (None: it is elsewhere) is on a dataset that the run takes. Returns warnings.

    Raises KopiatomicError of kind repository-in-selection if ``-a`` or ``-r`` brought that dataset in.
    """
    taken = holder(path, plan) if path is not None else None
    if path is None or taken is None:
        return []
    where = f"{engine}'s repository {printable(path)} lies on {printable(taken.dataset.name)}"
    if taken.named:
        return [f"{where}, which is in this backup: the repository is backed up into itself and grows with every run"]
    raise KopiatomicError(
        f"{where}, which -a or -r brought into this backup: it would be backed up into itself",
        kind="repository-in-selection",
        hint="Name the datasets that you want without it, move the repository to a dataset of its own outside of them, "
        f"or name {printable(taken.dataset.name)} as well if you do want it in the backup.",
    )


def notes(engine: str, folders: Iterable[tuple[str, str]], plan: Plan, *, left_out: str) -> list[str]:
    """Return a note on which of the engine's directories (what and where) are on datasets that the run takes, and the effect."""
    found = []
    for what, path in folders:
        taken = holder(path, plan)
        if taken is not None:
            found.append(f"its {what} {printable(path)} on {printable(taken.dataset.name)}")
    return [f"{engine} keeps {' and '.join(found)}, which is in this backup; {left_out}"] if found else []


@immutable
class Place:
    """Where a path leads, links followed, and the dataset that holds it; ``subvolume`` and ``pool`` (a UUID) are set
    where the mount does not tell it (Btrfs).
    """

    path: str
    filesystem: str
    source: str
    subvolume: int = 0
    pool: str = ""


def holder(path: str, plan: Plan) -> Taken | None:
    """Return the dataset of the plan that holds a path, through links and anything else that is mounted.

    Only the path itself is examined, and nothing of the plan's: its places belong to users. Raises KopiatomicError.
    """
    try:
        place = looking.call(lambda: look(path), path)
    except OSError as error:
        raise KopiatomicError(
            f"it cannot be told whether {printable(path)} lies in this backup: {error.strerror}",
            kind="own-place",
            hint="Can root look at it, with all that is mounted on the way?",
        ) from None
    return next((taken for taken in plan.taken if _holds(taken, place)), None)


def look(path: str) -> Place:
    """Return where a path leads; looked up in a child, because it may not respond. Raises OSError.

    A path that does not exist yet is held by whatever holds the nearest directory above it.
    """
    real = os.path.realpath(path)
    while (status := presence.status(real)) is None:
        real = os.path.dirname(real)
    mount = mounts.holder(real, mounts.visible(host.here().mounts()))
    kind = kind_of(mount)
    dataset_in = backends.of(kind).dataset_in if kind else None
    if kind is None or dataset_in is None:
        return Place(os.path.realpath(path), kind.name if kind else mount.fstype, mount.source)
    directory = real if stat.S_ISDIR(status.st_mode) else os.path.dirname(real)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        pool, subvolume = dataset_in(fd)
        return Place(os.path.realpath(path), kind.name, mount.source, subvolume, pool)
    finally:
        os.close(fd)


def _holds(taken: Taken, place: Place) -> bool:
    """Whether the parts taken of a dataset contain the path."""
    dataset = taken.dataset
    by_id = (dataset.pool, dataset.subvolume) == (place.pool, place.subvolume)
    same = by_id if place.subvolume else dataset.name == place.source
    same = same and dataset.kind == place.filesystem
    return same and (taken.parts == ("",) or any(is_at_or_below(place.path, one) for one in taken.places))
