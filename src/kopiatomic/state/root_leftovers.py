"""View directories that a dead run left: how they are found, proven ours, and removed."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.leftovers import Intent, Leftover
from kopiatomic.state import locks, roots
from kopiatomic.state.liveness import Life
from kopiatomic.state.ownership import Mark
from kopiatomic.system import host
from kopiatomic.text import printable

KIND = "directory"


def recorded(run_id: str, intents: Sequence[Intent]) -> list[Leftover]:
    """Return those of a dead run's directories that are left, deepest first. Raises KopiatomicError if that cannot be known."""
    left = []
    for intent in sorted(intents, key=lambda i: i.name, reverse=True):
        try:
            proof = _proof(intent)
        except OSError as error:
            raise _not_told(intent.name, error) from None
        if proof is not None:
            left.append(_leftover(run_id, intent.name, proof))
    return left


def _not_told(directory: str, error: OSError) -> KopiatomicError:
    return KopiatomicError(
        f"the directory {printable(directory)} cannot be looked at: {error.strerror}",
        kind="directory",
        hint="Is a dead filesystem mounted there? See mount(8).",
    )


def _leftover(run_id: str, directory: str, proof: str) -> Leftover:
    return Leftover(run_id, KIND, "", directory, proof, shlex.join(["rmdir", printable(directory)]))


def _proof(intent: Intent) -> str | None:
    """Return what proves a recorded directory ours; None if it is missing, in use, or may belong to another. Raises OSError."""
    if roots.is_noted(intent.name):
        with locks.clean_up():
            return f"recorded, and noted in {locks.DIRECTORY}" if _unused(intent.name) else None
    status = presence.status(intent.name, follow_links=False)
    if status is None:
        return None
    # In the boot in which it was made there would be a note. Later only the record and its properties can prove it.
    plain = stat.S_ISDIR(status.st_mode) and status.st_uid == 0 and stat.S_IMODE(status.st_mode) == 0o700
    if intent.origin == host.here().boot_id() or not plain or _is_mount_point(intent.name) or os.listdir(intent.name):
        return None
    return "recorded, root's alone, empty, and not there before the run"


def _is_mount_point(directory: str) -> bool:
    return any(mount.point == directory for mount in host.here().mounts())


def unrecorded(_names: Iterable[str] | None, _life: Callable[[Mark], Life], problems: list[str]) -> list[Leftover]:
    """Return the directories that runs of this boot made and no living run needs, recorded or not; deepest first."""
    left = []
    with locks.clean_up():
        for note in locks.notes():
            directory, _ = roots.noted(note)
            try:
                if directory and roots.note_of(directory) == note and _unused(directory):
                    left.append(_leftover("", directory, f"noted in {locks.DIRECTORY}"))
            except OSError as error:
                problems.append(_not_told(directory, error).message)
    return sorted(left, key=lambda leftover: leftover.name, reverse=True)


def _unused(directory: str) -> bool:
    """Whether no living run has a view at or below one of our directories. Raises OSError."""
    if not locks.is_free(directory):
        return False
    inside = [os.path.join(directory, name) for name in presence.names(directory)]
    return all(_unused(path) for path in inside if roots.is_noted(path))


def remove(leftovers: Sequence[Leftover]) -> list[Leftover]:
    """Remove the directories. Return those that are left, with the problem. One that others use belongs to them from now on."""
    left = []
    for leftover in sorted(leftovers, key=lambda o: o.name, reverse=True):
        directory = leftover.name
        with locks.clean_up():
            if not _unused(directory):
                # A run has begun there meanwhile and owns it now.
                continue
            # A mount on it may show anything; the content of the directory itself is visible only without the mount.
            there = presence.is_directory(directory, follow_links=False)
            foreign = there and not _is_mount_point(directory) and not roots.only_ours(directory)
            if foreign and roots.is_noted(directory):
                os.unlink(roots.note_of(directory))
            elif not foreign:
                roots.note(directory)
        if foreign:
            left.append(replace(leftover, problem="it is not empty: it is left to who uses it"))
        elif problems := roots.remove(directory, own=False):
            left.append(replace(leftover, problem=problems[0]))
    return left
