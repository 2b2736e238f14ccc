"""Views: how a set's snapshots become one directory tree. The steps are pure data; a platform module carries them out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import field, replace

from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems import KINDS
from kopiatomic.filesystems.kind import Kind, Mounting
from kopiatomic.immutable import immutable
from kopiatomic.model.plan import UNMOUNTED, VOLUMES, Plan
from kopiatomic.model.snapshots import Sets
from kopiatomic.paths import below, topmost, tree_order
from kopiatomic.text import first_few, printable

SCAFFOLD = "scaffold"
"""The kind of a step that is no snapshot: an empty directory of ours that holds mount points inside a frozen tree."""

FILES = "files"
"""The kind of a step that shows volumes as files."""

LIVE = "live"
"""The kind of a step that shows what the host has there, and is not frozen."""

OURS = frozenset([SCAFFOLD, LIVE])
"""The kinds of steps that show nothing frozen."""


@immutable
class VolumeFile:
    """A volume's snapshot, and the file that it becomes: its place in the view, and its size (bytes)."""

    dataset: str
    place: str
    snapshot: str
    size: int


@immutable
class Step:
    """One mount of the view, at ``place`` below the view's root. What it ``shows`` is SCAFFOLD, FILES or LIVE; for a snapshot
    the name of its kind of filesystem.

    ``source`` is that of the snapshot (``Snapshot.source``). What is live has the mount's source, and none where it is a
    directory. ``part`` is the path below the snapshot's top that is shown; empty for the whole.
    """

    dataset: str
    place: str
    shows: str
    source: str = ""
    mounting: Mounting | None = None
    """How the snapshot is mounted where there are mount namespaces (Linux), by its kind."""
    named: bool = False
    part: str = ""
    open_top: bool = False
    """Whether entries of ours must stand beside those of the snapshot's top directory."""
    file: bool = False
    """Whether the part is no directory."""
    outside: tuple[str, ...] = ()
    """Where, below the snapshot's top, nested subvolumes must have been that the plan does not show in the part."""
    files: tuple[VolumeFile, ...] = ()
    instant: int = 0
    """Nanoseconds since the epoch: the time of ``files``."""

    @property
    def kind(self) -> Kind | None:
        """The kind of filesystem that the snapshot is of; None for what shows no one snapshot."""
        return KINDS.get(self.shows)


NO_PLACE = (
    "The directory that it is mounted on did not exist at the instant of the snapshot. Leave one of the two out, or back them up "
    "with two commands and --name."
)
GONE = "Somebody removed or replaced it after this run had looked: run again."
ELSEWHERE = (
    "At the instant this path led to elsewhere: after this run had looked, somebody put a link in the place of a directory, and "
    "what it leads to is not what was named. Run again; if the link stays, name the directory that is meant by a path without it."
)
"""What to do about a named dataset, or part, that is not in the view."""


@immutable
class Obstacle:
    """Why something has no place in the view, in words, and what to do if it was named."""

    text: str
    hint: str = NO_PLACE

    def further(self, text: str) -> Obstacle:
        """Return it with more words."""
        return replace(self, text=f"{self.text}{text}")

    def gone(self, text: str) -> Obstacle:
        """Return it as one that no other dataset is to blame for, with more words."""
        return Obstacle(f"{self.text}{text}", GONE if self.hint == NO_PLACE else self.hint)

    def missing(self, step: Step) -> Missing:
        """Return the report of what has no place because of this."""
        return Missing(step.dataset, step.place, self.text, hint=self.hint)


@immutable
class Missing:
    """A dataset whose place does not exist in what lies above it in the view; an empty place is an unknown one."""

    dataset: str
    place: str
    reason: str
    live: bool = False
    """Whether it is no dataset but a mount that would have been seen as it is."""
    hint: str = field(default=NO_PLACE, compare=False)
    """What to do about it where it was named."""


@immutable
class View:
    """The view as it was assembled. Places are absolute, below the root."""

    mounted: tuple[str, ...]
    filled: tuple[str, ...]
    """Those whose top directory holds files, directories or links."""
    missing: tuple[Missing, ...]


def steps_of(plan: Plan, sets: Sets) -> list[Step]:
    """Return what to mount, parents first: every snapshot as planned, and what else must be visible in their trees."""
    made = {(s.kind, snapshot.dataset): snapshot for s in sets.sets for snapshot in s.snapshots}
    places = [place for taken in plan.taken for place in taken.places]
    ours = any(place.startswith((f"{UNMOUNTED}/", f"{VOLUMES}/")) for place in places)
    steps = [Step("", place, SCAFFOLD) for place in {*plan.scaffolds, *(hidden.directory for hidden in plan.hidden)}]
    live = [u for u in (*plan.uncovered, *plan.relit) if u.live]
    steps += [Step(f"{u.fstype} {u.source}" if u.inside else "", u.point, LIVE, u.source) for u in live]
    steps += [Step(f"the directory {path}, which must be writable,", path, LIVE) for path in plan.writable]
    files = []
    for taken in plan.taken:
        snapshot = made[taken.dataset.kind, taken.dataset.name]
        if taken.dataset.volume:
            assert snapshot.size is not None
            files.append(VolumeFile(taken.dataset.name, taken.place, snapshot.source, snapshot.size))
            continue
        kind = KINDS[taken.dataset.kind]
        steps += [
            Step(
                dataset=taken.dataset.name,
                place=place,
                shows=taken.dataset.kind,
                source=snapshot.source,
                mounting=kind.mounting(snapshot.source, taken.dataset.device),
                named=taken.named and place in taken.places,
                part=part,
                open_top=ours and place == "/",
                outside=taken.outside if place == taken.places[0] else (),
            )
            for place, part in taken.shown
        ]
    if files:
        steps.append(Step("", VOLUMES, FILES, named=True, files=tuple(files), instant=sets.started_ns))
    return sorted(steps, key=lambda step: tree_order(step.place))


def held_by(scaffold: Step, steps: Sequence[Step]) -> tuple[str, ...]:
    """Return the places that need a directory in a scaffold."""
    return topmost(step.place for step in steps if below(step.place, scaffold.place))


def hidden_by(scaffold: Step, steps: Sequence[Step], holder: Step) -> Missing:
    """Return the report that a scaffold hides files of the frozen tree that it stands in."""
    return Missing(
        holder.dataset,
        "",
        f"is not complete: what it has in {printable(scaffold.place)} itself, where something else is mounted now, gives "
        f"way to the mount points of {first_few(held_by(scaffold, steps))}",
    )


def missing_text(missing: Missing) -> str:
    """Describe what has no place, and why."""
    if not missing.place:
        return f"{printable(missing.dataset)} {missing.reason}"
    return f"{printable(missing.dataset)} cannot appear at {printable(missing.place)}: {missing.reason}"


def named_and_missing(missing: Missing) -> KopiatomicError:
    """Return the error for a place that is missing although it was asked for by name."""
    return KopiatomicError(
        missing_text(missing),
        kind="place-missing",
        hint=missing.hint,
    )


def holds_something(directory: int | str) -> bool:
    """Whether a directory holds anything that every backup program keeps: sockets, pipes and devices do not count."""
    with os.scandir(directory) as entries:
        return any(
            entry.is_symlink() or entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
            for entry in entries
        )
