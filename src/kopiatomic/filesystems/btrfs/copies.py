"""Btrfs subvolumes that users mean only if they say so: read-only snapshots of what is taken anyway, received copies. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kopiatomic.model.facts import BtrfsSubvolume


def snapshots_of_taken(subvolumes: Iterable[BtrfsSubvolume], taken: Callable[[BtrfsSubvolume], bool]) -> dict[str, str]:
    """Return the read-only snapshots of subvolumes that are taken: by path, with the path of that subvolume.

    A snapshot of such a snapshot is one as well. What ``btrfs receive`` made from a snapshot is not, although it has
    a parent: its received UUID is its own, whereas a snapshot keeps its source's.
    """
    # A snapshot is younger than its source, so it has the higher id.
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
    """Whether ``btrfs receive`` made it and it has not been made writable since."""
    return subvolume.read_only and bool(subvolume.received)
