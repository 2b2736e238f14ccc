"""Directories for views that a dead run left: which they are, what proves them ours, how they go."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from kopiatomic import locks, roots
from kopiatomic.model import Intent, Leftover
from kopiatomic.system import host
from kopiatomic.text import printable

KIND = "directory"


def recorded(run_id: str, intents: Sequence[Intent]) -> list[Leftover]:
    """Those of a dead run's directories that are left, deepest first."""
    found = [(intent.name, _proof(intent)) for intent in sorted(intents, key=lambda i: i.name, reverse=True)]
    return [_leftover(run_id, name, proof) for name, proof in found if proof is not None]


def _leftover(run_id: str, directory: str, proof: str) -> Leftover:
    return Leftover(run_id, KIND, "", directory, proof, shlex.join(["rmdir", printable(directory)]))


def _proof(intent: Intent) -> str | None:
    """What proves a directory on record ours; None if it is not there, is in use, or may be somebody else's."""
    if os.path.exists(roots.note_of(intent.name)):
        with locks.clean_up():
            return f"on record, and noted in {locks.DIRECTORY}" if _unused(intent.name) else None
    try:
        status = os.lstat(intent.name)
        empty = not os.listdir(intent.name)
    except OSError:
        return None
    # In the boot that it was made in there would be a note. After it there is the record, and what it looks like.
    plain = stat.S_ISDIR(status.st_mode) and status.st_uid == 0 and stat.S_IMODE(status.st_mode) == 0o700
    if intent.origin == host.here().boot_id() or not plain or not empty or os.path.ismount(intent.name):
        return None
    return "on record, root's alone, empty, and not there before the run"


def unrecorded(_names: Iterable[str] | None, _is_dead: Callable[[str], bool], _problems: list[str]) -> list[Leftover]:
    """The directories that runs of this boot made and that no living run needs, on record or not; deepest first."""
    left = []
    with locks.clean_up():
        for note in locks.notes():
            with open(note, "rb") as file:
                directory = os.fsdecode(file.read())
            if directory and roots.note_of(directory) == note and _unused(directory):
                left.append(_leftover("", directory, f"noted in {locks.DIRECTORY}"))
    return sorted(left, key=lambda leftover: leftover.name, reverse=True)


def _unused(directory: str) -> bool:
    """Whether no living run has a view at or below a directory of ours."""
    inside = [os.path.join(directory, name) for name in _names_in(directory)]
    return locks.is_free(directory) and all(_unused(path) for path in inside if os.path.exists(roots.note_of(path)))


def _names_in(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def remove(leftovers: Sequence[Leftover]) -> list[Leftover]:
    """Remove the directories; returns those that are left, with the problem. One that somebody uses is theirs from now on."""
    left = []
    for leftover in sorted(leftovers, key=lambda o: o.name, reverse=True):
        directory = leftover.name
        with locks.clean_up():
            if not _unused(directory):
                # A run has begun there meanwhile: it is that one's now.
                continue
            # A mount on it may show anything; what is in the directory itself is seen when that is gone.
            foreign = os.path.isdir(directory) and not os.path.ismount(directory) and not roots.only_ours(directory)
            if foreign and os.path.exists(roots.note_of(directory)):
                os.unlink(roots.note_of(directory))
            elif not foreign:
                roots.note(directory)
        if foreign:
            left.append(replace(leftover, problem="it is not empty: it is left to who uses it"))
        elif problems := roots.remove(directory, own=False):
            left.append(replace(leftover, problem=problems[0]))
    return left
