"""One dataset of a backup: which one is meant, what belongs to it, and the new one that it is restored into."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from kopiatomic.commands.stored import NO_SUCH, Stored, chosen, described
from kopiatomic.engines.reader import Reader
from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems import KINDS, backends
from kopiatomic.filesystems.backends import NewDataset
from kopiatomic.immutable import immutable
from kopiatomic.model.plan import UNMOUNTED, VOLUMES
from kopiatomic.model.record import RecordedDataset
from kopiatomic.paths import below, is_at_or_below, topmost
from kopiatomic.text import few, first_few, printable
from kopiatomic.trees.target import Target, has_data, is_restoring, understood

_TO_PATH = "Restore by the path instead, into a directory: --to DIR, with the path where it was mounted."


@immutable
class Part:
    """What a dataset has in a backup."""

    dataset: RecordedDataset
    place: str
    """Where it was, as an absolute path."""
    others: tuple[str, ...]
    """The datasets that lay below it."""
    points: tuple[str, ...]
    """Where the topmost of these were, as absolute paths."""


def find(reader: Reader, what: str, name: str) -> Stored:
    """Return the snapshot that is meant and has a dataset. Raises KopiatomicError, which lists what there is if none has it."""
    looked_at: list[Stored] = []

    def holds(stored: Stored) -> bool:
        looked_at.append(stored)
        return stored.problem is not None or _whole(stored, name) is not None

    try:
        return chosen(reader, what, holds)
    except KopiatomicError as error:
        if error.kind != NO_SUCH or not looked_at:
            raise
        raise _missing(looked_at, name) from None


def part_of(stored: Stored, name: str) -> Part:
    """Return a dataset of a snapshot. Raises KopiatomicError if it is not there, or has nothing that a new one can be made of."""
    if stored.problem is not None:
        raise stored.problem
    dataset = _whole(stored, name)
    if stored.index is None or dataset is None or dataset.place is None:
        raise _missing([stored], name)
    place = dataset.place
    if is_at_or_below(place, VOLUMES):
        raise KopiatomicError(
            f"{printable(name)} is a volume: what is saved of it is its image",
            kind="not-a-filesystem",
            hint=f"Restore {printable(place)} into a directory (--to DIR), and write that image to a new volume.",
        )
    nested = [(one.name, at) for one in stored.index.datasets for at, _ in one.places if below(at, place)]
    return Part(
        dataset,
        place,
        tuple(dict.fromkeys(of for of, _ in nested if of != name)),
        topmost(at for _, at in nested if place != "/" or not _is_made_up(at)),
    )


def _is_made_up(place: str) -> bool:
    """Whether a place is not in the tree of the dataset on /, but in a directory of the view."""
    return is_at_or_below(place, UNMOUNTED) or is_at_or_below(place, VOLUMES)


def _whole(stored: Stored, name: str) -> RecordedDataset | None:
    """Return a dataset of which all is in a snapshot; None if it is not. A record may be of several snapshots of one run."""
    for one in stored.index.datasets if stored.index is not None else ():
        if one.name == name and one.place is not None and stored.holds(one.place):
            return one
    return None


def _missing(looked_at: Sequence[Stored], name: str) -> KopiatomicError:
    """Return the error for a dataset that none of some snapshots has."""
    indexes = [stored.index for stored in looked_at if stored.index is not None]
    if not indexes:
        shown = first_few([described(stored.snapshot) for stored in looked_at])
        return KopiatomicError(
            f"{shown} has no metadata record, which alone says what the datasets were",
            kind="no-record",
            hint=_TO_PATH,
        )
    found = [one for index in indexes for one in index.datasets]
    parts = [place for one in found if one.name == name for place, _ in one.places]
    if parts:
        return KopiatomicError(
            f"only parts of {printable(name)} were saved: {first_few(parts)}",
            kind="only-parts",
            hint="Restore these by their paths, into a directory: --to DIR",
        )
    names = dict.fromkeys(printable(one.name) for one in found if one.place is not None)
    return KopiatomicError(
        f"no dataset {printable(name)} was saved; these were: {', '.join(few(list(names), 100)) or 'none'}",
        kind="no-such-dataset",
        hint="A Btrfs subvolume is named by the path where it was.",
    )


@contextmanager
def made(dataset: RecordedDataset, name: str, what: Mapping[str, str]) -> Iterator[tuple[NewDataset, Target]]:
    """Make a dataset like a recorded one, or take the one that the same restore has left. Raises KopiatomicError."""
    make = backends.of(KINDS[dataset.kind]).new_dataset if dataset.kind in KINDS else None
    if make is None:
        raise KopiatomicError(
            f"{printable(dataset.name)} is of the kind {printable(dataset.kind)}, of which no new one can be made here",
            kind="unsupported",
            hint=_TO_PATH,
        )
    restore = hashlib.sha256(json.dumps(dict(what), sort_keys=True).encode()).hexdigest()[:32]
    with understood(name), make(dataset, name, restore) as new:
        if not new.is_ours and not is_restoring(new.fd):
            raise KopiatomicError(
                f"{printable(name)} exists, and nothing may be overwritten",
                kind="target-not-empty",
                hint="Name one that does not exist yet, and rename it afterwards.",
            )
        try:
            yield new, Target.taken(new.path, new.fd, name, what)
        except BaseException:
            if not has_data(new.fd):
                new.discard()
            raise
