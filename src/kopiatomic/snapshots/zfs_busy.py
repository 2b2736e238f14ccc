"""Why a ZFS snapshot cannot be destroyed: who holds it, who has it mounted or open."""

from __future__ import annotations

from kopiatomic.ownership import TAG
from kopiatomic.snapshots import zfs_get
from kopiatomic.system import host
from kopiatomic.text import first_few, printable


def why(name: str) -> str:
    """In words. Our own hold is no reason: it stays where the kernel could not release it, for one of the others."""
    if any(mount.source == name for mount in host.here().mounts()):
        return "somebody has mounted it"
    tags = foreign_tags(name)
    if tags:
        return f"somebody else holds it ({first_few(tags)}; see: zfs holds {printable(name)})"
    users = host.here().users(name, "zfs")
    if users:
        return f"in use by {first_few([str(user) for user in users])}"
    return "it is busy: a clone, a receive, or a process that has it open and could not be found"


def foreign_tags(name: str) -> list[str]:
    """The tags of all holds but ours, fit to print."""
    # Where it cannot be told, what follows may tell.
    held = zfs_get.run(["holds", "-H", name]).stdout.decode("utf-8", "surrogateescape")
    # A tag may hold anything, and the time behind it does not.
    tags = [line.partition("\t")[2].rpartition("\t")[0] for line in held.splitlines()]
    return [printable(tag) for tag in tags if tag != TAG]
