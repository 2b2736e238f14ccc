"""ZFS: what has changed since an earlier snapshot that no longer exists. A bookmark costs nothing and keeps nothing.

One is kept on each dataset (``--skip-unchanged``). ``written#BOOKMARK``, read from a *newer snapshot* and not from the live
dataset, is 0 exactly if nothing was written in between: content, times, modes, extended attributes, names, links (seen on
2.1.11). It is moved only if something was written, so the states of several repositories can rest on the same one.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems.zfs import program
from kopiatomic.model.leftovers import Leftover
from kopiatomic.state import ownership
from kopiatomic.system import host, libzfs_core, zfs_program
from kopiatomic.text import ended, printable

KIND = "zfs-bookmark"


def follow(snapshots: Mapping[str, str], bookmark: str) -> dict[str, tuple[str, str]]:
    """Return the states before and after each snapshot of one pool (``snapshots``: name and guid), told by the bookmarks.

    The state is the guid of the snapshot that the bookmark was made from; empty if unknown. Bookmarks of datasets that
    have changed are replaced.
    """
    places = {name: f"{name.partition('@')[0]}#{bookmark}" for name in snapshots}
    found = _guids(places.values())
    unchanged = _unchanged([name for name, place in places.items() if place in found], bookmark)
    # Another run may have moved a bookmark in between; it is then unknown since when nothing was written.
    again = _guids(places[name] for name in unchanged)
    states = {
        name: (found[places[name]], found[places[name]])
        for name in unchanged
        if again.get(places[name]) == found[places[name]]
    }
    changed = {places[name]: name for name in snapshots if name not in states}
    made = bool(changed) and _move(changed, [place for place in changed if place in found])
    for name in changed.values():
        states[name] = ("", snapshots[name] if made else "")
    return states


def _guids(places: Iterable[str]) -> dict[str, str]:
    """Return the existing bookmarks, by name, and the guids of the snapshots that they were made from."""
    return program.number(places, "bookmark", "guid")


def _unchanged(names: Iterable[str], bookmark: str) -> list[str]:
    """Return the snapshots whose dataset has not been written to since its bookmark; a dash means that this cannot be known."""
    return [name for name, value in program.number(names, "snapshot", f"written#{bookmark}").items() if value == "0"]


def _move(places: Mapping[str, str], existing: Sequence[str]) -> bool:
    """Make bookmarks of these snapshots; return whether that was possible."""
    try:
        if existing:
            libzfs_core.destroy_bookmarks(existing)
        libzfs_core.bookmark(places)
    except libzfs_core.ZfsCallError:
        # A pool without the feature, a name that is too long, another run that was quicker: the dataset is read next time.
        return False
    return True


def kept() -> list[Leftover]:
    """Return all bookmarks that this host keeps, in all pools. Raises KopiatomicError if they cannot be listed."""
    if not host.here().has_zfs():
        return []
    try:
        result = zfs_program.run(["zfs", "list", "-H", "-t", "bookmark", "-o", "name"])
    except zfs_program.FailedError as error:
        raise KopiatomicError(
            f"the bookmarks cannot be listed ({ended(error.finished.status)})",
            kind="zfs-look",
            hint="See 'zpool status'.",
        ) from None
    names = result.stdout.decode("utf-8", "surrogateescape").splitlines()
    return [
        Leftover(
            run_id="",
            kind=KIND,
            place=name.partition("/")[0].partition("#")[0],
            name=name,
            proof="named by this host's id",
            command=shlex.join(["zfs", "destroy", printable(name)]),
        )
        for name in names
        if name.endswith(f"#{ownership.bookmark()}")
    ]


def remove(bookmarks: Sequence[Leftover]) -> list[Leftover]:
    """Destroy bookmarks; return all, with the problem where there is one. Waits for the kernel."""
    libzfs_core.prepare()
    problems: dict[str, str] = {}
    for pool in sorted({bookmark.place for bookmark in bookmarks}):
        try:
            libzfs_core.destroy_bookmarks([b.name for b in bookmarks if b.place == pool])
        except libzfs_core.ZfsCallError as error:
            problems[pool] = error.message
    return [replace(bookmark, problem=problems.get(bookmark.place)) for bookmark in bookmarks]
