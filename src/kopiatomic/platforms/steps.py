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


@immutable
class VolumeFile:
    """A volume's snapshot, and the file that it becomes: its place in the view, and its size (bytes)."""

    dataset: str
    place: str
    snapshot: str
    size: int


@immutable
class Step:
    """One mount of the view, at ``place`` below the view's root. Each is one of the classes below, which say what it shows.

    ``dataset`` is that of a snapshot; of anything else, what messages call it, or empty. ``named`` says that the view is of no
    use without it.
    """

    dataset: str
    place: str
    named: bool = field(default=False, kw_only=True)


@immutable
class SnapshotStep(Step):
    """Shows a snapshot, or the ``part`` of it that has this path below its top; empty for the whole."""

    kind: Kind
    """The kind of filesystem that the snapshot is of."""
    source: str
    """``Snapshot.source``."""
    device: str = ""
    """``Dataset.device``."""
    part: str = ""
    open_top: bool = False
    """Whether entries of ours must stand beside those of the snapshot's top directory."""
    file: bool = False
    """Whether the part is no directory."""
    outside: tuple[str, ...] = ()
    """Where, below the snapshot's top, nested subvolumes must have been that the plan does not show in the part."""

    @property
    def mounting(self) -> Mounting:
        """How the snapshot is mounted where there are mount namespaces (Linux)."""
        return self.kind.mounting(self.source, self.device)


@immutable
class VolumesStep(Step):
    """Shows volumes as files in one directory. ``instant`` is their time, in nanoseconds since the epoch."""

    files: tuple[VolumeFile, ...]
    instant: int


@immutable
class LiveStep(Step):
    """Shows what the host has there, which is not frozen: a mount, of this type, or, without a type, a directory."""

    fstype: str = ""
    source: str = ""
    """The mount's, as in the mount table."""


@immutable
class ScaffoldStep(Step):
    """Shows an empty directory of ours, which holds mount points inside a frozen tree."""


@immutable
class RecordStep(Step):
    """Shows a directory of ours with the metadata record in it, which is written when everything is mounted."""


def is_frozen(step: Step) -> bool:
    """Whether a step shows something frozen: a snapshot, or volumes."""
    return not isinstance(step, LiveStep | ScaffoldStep | RecordStep)


@immutable
class Tree:
    """A frozen tree of a view, open until the next one; all of it is on one filesystem."""

    place: str
    fd: int
    dataset: tuple[str, str] | None
    """The kind and the name of what it is a snapshot of; None if it is a directory of ours that stands for a real one."""


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
    ours = bool(plan.record) or any(place.startswith((f"{UNMOUNTED}/", f"{VOLUMES}/")) for place in places)
    steps: list[Step] = [ScaffoldStep("", place) for place in {*plan.scaffolds, *(h.directory for h in plan.hidden)}]
    live = [u for u in (*plan.uncovered, *plan.relit) if u.live]
    steps += [LiveStep(f"{u.fstype} {u.source}" if u.inside else "", u.point, u.fstype, u.source) for u in live]
    steps += [LiveStep(f"the directory {path}, which must be writable,", path) for path in plan.writable]
    files = []
    for taken in plan.taken:
        snapshot = made[taken.dataset.kind, taken.dataset.name]
        if taken.dataset.volume:
            assert snapshot.size is not None
            files.append(VolumeFile(taken.dataset.name, taken.place, snapshot.source, snapshot.size))
            continue
        steps += [
            SnapshotStep(
                dataset=taken.dataset.name,
                place=place,
                kind=KINDS[taken.dataset.kind],
                source=snapshot.source,
                device=taken.dataset.device,
                named=taken.named and place in taken.places,
                part=part,
                open_top=ours and place == "/",
                outside=taken.outside if place == taken.places[0] else (),
            )
            for place, part in taken.shown
        ]
    if plan.record:
        steps.append(RecordStep("", plan.record))
    if files:
        steps.append(VolumesStep("", VOLUMES, tuple(files), sets.started_ns, named=True))
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
