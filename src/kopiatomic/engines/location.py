"""Whether an engine's own files lie on what the run takes."""

from __future__ import annotations

import os
from collections.abc import Iterable

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.model import Plan, Taken
from kopiatomic.paths import is_at_or_below
from kopiatomic.text import printable


def check_repository(engine: str, path: str | None, plan: Plan) -> list[str]:
    """Look whether a repository in a folder (None: it is elsewhere) lies on a dataset that the run takes. Returns warnings.

    Raises KopiatomicError of kind repository-in-selection where ``-a`` or ``-r`` brought that dataset in.
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
    """Say once which of the engine's folders (what and where) lie on datasets that the run takes, and what comes of it."""
    found = []
    for what, path in folders:
        taken = holder(path, plan)
        if taken is not None:
            found.append(f"its {what} {printable(path)} on {printable(taken.dataset.name)}")
    return [f"{engine} keeps {' and '.join(found)}, which is in this backup; {left_out}"] if found else []


def holder(path: str, plan: Plan) -> Taken | None:
    """The dataset of the plan that holds a path, through links and whatever else is mounted.

    Every ZFS dataset and every Btrfs subvolume has a device number (st_dev) of its own, so that equal numbers mean the same
    dataset: also through bind mounts, and not where a dataset that is not taken is mounted in between.
    """
    device = _device(path)
    if device is None:
        return None
    return next(
        (t for t in plan.taken if _device(t.dataset.mountpoint, climb=False) == device and _shows(t, path)), None
    )


def _shows(taken: Taken, path: str) -> bool:
    """Whether what is taken of a dataset has the path in it; where that is not certain it has."""
    if taken.parts == ("",):
        return True
    real = os.path.realpath(path)
    return any(is_at_or_below(real, place) for place in taken.places)


def _device(path: str, *, climb: bool = True) -> int | None:
    """The device number of a path, or of the nearest folder above it that exists. Raises OSError where that cannot be told.

    Without ``climb`` None stands for all that cannot be looked at: what is taken is its users', who can see to that.
    """
    while True:
        try:
            return os.stat(path).st_dev
        except OSError as error:
            if not climb:
                return None
            if not presence.absent(error):
                raise
            if path == os.path.dirname(path):
                return None
            path = os.path.dirname(path)
