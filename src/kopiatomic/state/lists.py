"""Files with a run's datasets and sources, each name ended by a zero byte: for lists too long for an environment.

They are written before the hook ``-p`` and again for each program in the view, are removed with the run's lock
(``locks.RunLocks``), and are readable by root only, or by the user that a program runs as. Every view shows them at their path.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from kopiatomic.errors import KopiatomicError
from kopiatomic.model.plan import Plan
from kopiatomic.state import locks
from kopiatomic.system import safety

_TRIES = 10
"""How often the directory is made again if another run, as the last, removes it at that moment."""


def directory() -> str:
    """Return the directory of all runs' lists: root's; others may pass through it but not list it."""
    return os.path.dirname(locks.list_of("", ""))


def write(run_id: str, plan: Plan, owner: int = 0) -> None:
    """Write both files, replacing earlier ones, for a user to read. Raises KopiatomicError."""
    try:
        for _ in range(_TRIES):
            _prepare()
            with suppress(FileNotFoundError):
                _write(locks.list_of(run_id, "datasets"), dataset_names(plan), owner)
                _write(locks.list_of(run_id, "sources"), plan.sources, owner)
                return
        raise FileNotFoundError(2, "it is removed again and again")
    except OSError as error:
        raise KopiatomicError(
            f"the lists of this run cannot be written in {directory()}: {error.strerror}",
            kind="lists",
            hint=f"kopiatomic needs a writable {os.path.dirname(directory())} with room for the names of all datasets.",
        ) from None


def mount_point(run_id: str) -> str:
    """Return an empty directory beside a run's lists, which exist: a view may mount a program's own directory on it.

    It goes with the lists. Raises KopiatomicError.
    """
    path = locks.list_of(run_id, locks.TEMPORARY)
    try:
        os.makedirs(path, 0o700, exist_ok=True)
    except OSError as error:
        raise KopiatomicError(
            f"no directory for temporary files can be made in {directory()}: {error.strerror}",
            kind="lists",
            hint=f"kopiatomic needs a writable {os.path.dirname(directory())}.",
        ) from None
    return path


def _prepare() -> None:
    """Make the directory, and check that only root can write to it. Raises OSError, KopiatomicError."""
    with suppress(FileExistsError):
        os.mkdir(directory(), 0o711)
    status = os.lstat(directory())
    safety.require_own(
        status,
        f"{directory()} is not a directory",
        shut=False,
        kind="lists",
        hint=f"Look at it, then: chown root: {directory()}; chmod 711 {directory()}",
    )


def _write(path: str, names: Iterable[str], owner: int) -> None:
    """Write one list. A process that has the file open continues to read the old one. Raises OSError."""
    new = f"{path}.new"
    with suppress(FileNotFoundError):
        os.unlink(new)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    with open(fd, "wb") as file:
        file.writelines(os.fsencode(name) + b"\0" for name in names)
        os.fchown(fd, owner, -1)
    os.rename(new, path)


def dataset_names(plan: Plan) -> list[str]:
    """Return the names of the datasets that a plan takes."""
    return [taken.dataset.name for taken in plan.taken]
