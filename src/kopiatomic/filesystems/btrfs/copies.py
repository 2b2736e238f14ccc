"""Btrfs subvolumes that nobody means without saying so: read-only snapshots of what is taken anyway, received copies. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kopiatomic.model.facts import BtrfsSubvolume


def snapshots_of_taken(subvolumes: Iterable[BtrfsSubvolume], taken: Callable[[BtrfsSubvolume], bool]) -> dict[str, str]:
    """The read-only snapshots of subvolumes that are taken: by path, the path of that one.

    A snapshot of such a snapshot is one as well. What ``btrfs receive`` has made out of a snapshot is none, although it has
    a parent: its received UUID is its own, whereas a snapshot keeps its source's.
    """
    # A snapshot is younger than its source, and so has the higher id.
    by_age = sorted(subvolumes, key=lambda subvolume: subvolume.id)
    by_uuid: dict[tuple[str, str], list[BtrfsSubvolume]] = {}
    for subvolume in by_age:
        by_uuid.setdefault((subvolume.filesystem, subvolume.uuid), []).append(subvolume)
    found: dict[str, str] = {}
    for subvolume in by_age:
        if not subvolume.read_only or not subvolume.parent:
            continue
        for source in by_uuid.get((subvolume.filesystem, subvolume.parent), ()):
            if subvolume.received not in {"", source.received}:
                continue
            if source.path in found:
                found[subvolume.path] = found[source.path]
            elif taken(source):
                found[subvolume.path] = source.path
    return found


def is_received(subvolume: BtrfsSubvolume) -> bool:
    """Whether ``btrfs receive`` has made it, and nobody has made it writable since."""
    return subvolume.read_only and bool(subvolume.received)
