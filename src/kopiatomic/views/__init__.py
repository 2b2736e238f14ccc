"""Views: how a set's snapshots become one directory tree. The steps are pure data; a platform module carries them out."""

from __future__ import annotations

from dataclasses import dataclass

from kopiatomic.model import Plan, Sets
from kopiatomic.text import printable

SCAFFOLD = "scaffold"
"""The kind of a step that is no snapshot: an empty directory of ours that holds mount points inside a frozen tree."""


@dataclass(frozen=True, slots=True)
class Step:
    """One mount of the view: ``source`` (of a filesystem ``fstype``) at ``place`` below the view's root.

    For Btrfs ``source`` is a path below the top-level subvolume of ``device``. ``part`` is the path below the snapshot's top
    that is shown; empty for the whole.
    """

    dataset: str
    place: str
    fstype: str
    source: str
    device: str
    named: bool
    part: str = ""


@dataclass(frozen=True, slots=True)
class Missing:
    """A dataset whose place does not exist in what lies above it in the view."""

    dataset: str
    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class View:
    """The view as it was assembled. Places are absolute, below the root."""

    mounted: tuple[str, ...]
    filled: tuple[str, ...]
    """Those whose top directory holds files, directories or links."""
    missing: tuple[Missing, ...]


def merged(plan: Plan, sets: Sets) -> list[Step]:
    """The steps of the merged layout: every snapshot at its dataset's own path below the root, parents first."""
    sources = {(s.filesystem, snapshot.dataset): snapshot.source for s in sets.sets for snapshot in s.snapshots}
    scaffolds = [Step("", place, SCAFFOLD, "", "", named=False) for place in plan.scaffolds]
    steps = [
        Step(
            dataset=taken.dataset.name,
            place=place,
            fstype=taken.dataset.filesystem,
            source=sources[taken.dataset.filesystem, taken.dataset.name],
            device=taken.dataset.device,
            named=taken.named,
            part=part,
        )
        for taken in plan.taken
        for part, place in zip(taken.parts, taken.places, strict=True)
    ]
    return sorted([*scaffolds, *steps], key=lambda step: step.place.rstrip("/").split("/"))


def above(place: str, steps: list[Step]) -> Step | None:
    """The step whose mount holds a place of the view; None where only our scaffolding does."""
    holders = [s for s in steps if s.place != place and (s.place == "/" or place.startswith(s.place + "/"))]
    return max(holders, key=lambda s: len(s.place), default=None)


def missing_text(missing: Missing, steps: list[Step]) -> str:
    """Both datasets of a place that does not exist, in words."""
    holder = above(missing.place, steps)
    inside = f" in the snapshot of {printable(holder.dataset)}" if holder else ""
    return f"{printable(missing.dataset)} cannot appear at {printable(missing.place)}: {missing.reason}{inside}"
