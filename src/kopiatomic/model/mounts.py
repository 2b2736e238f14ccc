"""The mounts of a system, as plain data, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable

from kopiatomic.immutable import immutable
from kopiatomic.paths import _upwards, below, parents


@immutable
class Mount:
    """One mount. Paths and names are decoded with ``os.fsdecode``. Fields as in proc_pid_mountinfo(5)."""

    id: int
    parent: int
    device: str
    root: str
    point: str
    fstype: str
    source: str
    options: tuple[str, ...]
    super_options: tuple[str, ...]
    propagation: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        """Whether this mount or its whole filesystem is read-only."""
        return "ro" in self.options or "ro" in self.super_options


def visible(mounts: Iterable[Mount]) -> dict[str, Mount]:
    """Return the mount that is visible at each mount point that a path can reach.

    Of mounts stacked on one point the last in the parent chain is visible; a mount is hidden where an ancestor was
    covered by another mount at or above its point.
    """
    by_id = {m.id: m for m in mounts}
    children: dict[int, list[Mount]] = {}
    roots = []
    for mount in by_id.values():
        if mount.parent in by_id and mount.parent != mount.id:
            children.setdefault(mount.parent, []).append(mount)
        else:
            roots.append(mount)
    seen: dict[str, Mount] = {}
    waiting = roots
    while waiting:
        mount = waiting.pop()
        below = children.get(mount.id, [])
        cover = next((m for m in below if m.point == mount.point), None)
        if cover is not None:
            # Everything else that was mounted on this mount is under the cover.
            waiting.append(cover)
            continue
        seen[mount.point] = mount
        waiting.extend(_uncovered(below))
    return seen


def _uncovered(siblings: list[Mount]) -> list[Mount]:
    """Return the children of one mount that no later sibling hides by being mounted on a directory above them.

    The kernel appends to its table, so of two children of one mount the later line was attached later; ids are reused
    and tell nothing.
    """
    latest = {m.point: position for position, m in enumerate(siblings)}
    # Thousands of mounts can be in a few directories: look at each directory once.
    above: dict[str, int] = {}

    def latest_above(path: str) -> int:
        """Return the position of the last sibling mounted above a path; -1 if there is none."""
        new = []
        found = -1
        for directory in _upwards(path):
            if directory in above:
                found = above[directory]
                break
            new.append(directory)
        for directory in reversed(new):
            found = above[directory] = max(found, latest.get(directory, -1))
        return found

    return [m for position, m in enumerate(siblings) if latest_above(m.point) <= position]


def borders(seen: dict[str, Mount]) -> dict[str, Mount]:
    """Return the visible mounts at which a path leads somewhere else than it would without them.

    A directory that is bind-mounted onto itself, as Docker does it, shows the same place of the same filesystem: what is in it
    and below it is what the mount around it has there. A mount whose device is unknown is never treated as one of those.
    """
    return {point: mount for point, mount in seen.items() if not _changes_nothing(mount, seen)}


def _changes_nothing(mount: Mount, seen: dict[str, Mount]) -> bool:
    if mount.point == "/" or not mount.device:
        return False
    try:
        around = holder(parents(mount.point)[0], seen)
    except KeyError:
        return False
    return around.device == mount.device and mount.root == place_in(around, mount.point)


def place_in(mount: Mount, path: str) -> str:
    """Return the path within its filesystem of a path that a mount holds, counted from the root of that filesystem."""
    inside = below(path, mount.point)
    return f"{mount.root.rstrip('/')}/{inside}" if inside else mount.root


def holder(path: str, table: dict[str, Mount]) -> Mount:
    """Return the visible mount that holds an absolute, resolved path. Raises KeyError where not even ``/`` is in the table."""
    for candidate in (path, *parents(path)):
        if candidate in table:
            return table[candidate]
    raise KeyError(path)


@immutable
class User:
    """A process that uses a filesystem."""

    pid: int
    name: str
    uid: int

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name}, user id {self.uid})"
