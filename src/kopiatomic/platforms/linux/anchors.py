"""Holds live directories above places in the view's namespace, so that no later mount of the host's covers them.

A new mount of the host's propagates to each of our mounts that follows the one it is made on. So each directory between ``/`` and
a place is bound onto itself, and finally made independent of the host's. A mount below it should still disappear when the host
unmounts it: an unmount propagates to what follows the mount that it stood on. So below each of these mounts there is one more, of
nothing but its mount point, which still follows the host's. Only what is on the way to a place may not disappear: our own
mounts would go with it, and whatever the host mounts there next would be seen in their stead.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress

from kopiatomic.errors import KopiatomicError
from kopiatomic.model.fstypes import may_hang
from kopiatomic.model.mounts import Mount, visible
from kopiatomic.paths import below, parents
from kopiatomic.system import linux, mountinfo, safety
from kopiatomic.system.descriptors import closing
from kopiatomic.text import printable

_MOVED_AT_MOST = 500
"""How many mounts below one directory are moved, each of which needs a descriptor; the launcher finds out when the others go."""

_ANY = os.O_PATH | os.O_NOFOLLOW
_DIRECTORY = _ANY | os.O_DIRECTORY


class Anchors:
    """The directories that are held.

    ``places`` are the paths of all that will be mounted over, ``points`` the mount points that are visible before that.
    """

    def __init__(self, places: Collection[str], points: Iterable[str]) -> None:
        self._places = places
        self._held: set[str] = set()
        self._independent: list[int] = []
        """The mounts that will no longer follow the host's, open."""
        self._above_mounts = {directory for point in points if point not in places for directory in parents(point)}
        """Directories with mounts below them that stay as they are."""
        self._ways = {directory for place in places for directory in parents(place)}
        self._entries: dict[str, set[str]] = {}
        for place in places:
            for entry in (place, *parents(place)[:-1]):
                above, _, name = entry.rpartition("/")
                self._entries.setdefault(above or "/", set()).add(name)

    def hold(self, directories: Iterable[str]) -> None:
        """Hold directories. Raises OSError, KopiatomicError if others than root could move a place in one of them."""
        # The deepest first, so that what is mounted in several of them is moved with the innermost.
        for directory in sorted({*directories} - {"/", *self._held}, key=lambda path: path.count("/"), reverse=True):
            self._hold(directory)

    def _hold(self, directory: str) -> None:
        with ExitStack() as stack:
            fd = stack.enter_context(closing(linux.open_without_links(directory, _DIRECTORY)))
            kept: dict[str, int] = {}
            covered: list[str] = []
            copied = False
            for name, mount in _mounted_in(directory, fd) if directory in self._above_mounts else ():
                if f"{directory}/{name}" in self._places:
                    covered.append(name)
                elif may_hang(mount.fstype) or len(kept) == _MOVED_AT_MOST:
                    # What may not answer cannot be moved, since moving would open it: a copy of it must do.
                    copied = True
                else:
                    with suppress(OSError):
                        opened = stack.enter_context(closing(linux.open_beneath(fd, name, _ANY)))
                        if mountinfo.id_of(opened) == mount.id:
                            kept[name] = opened
            # Not opened by its path: a mount of the host's that came over it since would be held in its stead, and ours go on
            # following the host.
            held = linux.bind_onto_itself(fd, recursive=copied)
            self._held.add(directory)
            self._independent.append(held)
            for name in covered if copied else ():
                with suppress(OSError):
                    os.close(_uncovered(held, name))
            owners = {}
            for name, mounted in kept.items():
                # What a user has moved meanwhile no longer has a place.
                with suppress(OSError):
                    owners[name], below_it = _hang(held, name, mounted)
                    if f"{directory}/{name}" in self._ways:
                        self._independent.append(below_it)
                    else:
                        os.close(below_it)
            self._require_safe(directory, held, owners)

    def _require_safe(self, directory: str, held: int, owners: Mapping[str, int]) -> None:
        """Check what the plan found; only root could have changed it since. ``owners`` are those of mount points.

        Raises OSError, KopiatomicError.
        """
        for name in self._entries.get(directory, ()):
            who = safety.movers(held, name)
            if not who and safety.is_sticky(os.fstat(held)) and owners.get(name):
                who = "the owner of a mount point in it"
            if who:
                raise KopiatomicError(
                    f"{printable(directory)} is not safe: {who} can change what is on the way to a place",
                    kind="place-not-safe",
                    hint="Run again: it was safe when the plan was made.",
                )

    def settle(self) -> None:
        """Stop the propagation of the host's mounts into what is held. Raises OSError."""
        for fd in self._independent:
            linux.mount("none", f"/proc/self/fd/{fd}", None, linux.MS_PRIVATE)
            os.close(fd)
        self._independent.clear()
        self._held.clear()


def _mounted_in(directory: str, fd: int) -> Iterator[tuple[str, Mount]]:
    """Yield what is visibly mounted on the mount of an open directory, below that: its path there, and the mount."""
    holder = mountinfo.id_of(fd)
    table = {mount.id: mount for mount in mountinfo.read()}
    for point, mount in visible(table.values()).items():
        name = below(point, directory)
        lowest = mount
        while lowest.parent in table and table[lowest.parent].point == point != "/":
            lowest = table[lowest.parent]
        if lowest.parent == holder and name:
            yield name, mount


def _uncovered(held: int, name: str) -> int:
    """Open what our copies of mounts cover below a held directory, detaching these. Raises OSError."""
    own = mountinfo.id_of(held)
    while True:
        fd = linux.open_beneath(held, name, _ANY)
        try:
            if mountinfo.id_of(fd) == own:
                return fd
            linux.detach(f"/proc/self/fd/{fd}")
        except OSError:
            os.close(fd)
            raise
        os.close(fd)


def _hang(held: int, name: str, mounted: int) -> tuple[int, int]:
    """Put a mount that was below a directory there again, on a mount of its mount point.

    Return that point's owner, and the mount of it, open. Raises OSError.
    """
    with closing(_uncovered(held, name)) as under:
        owner = os.fstat(under).st_uid
        point = linux.bind_onto_itself(under, recursive=False)
    try:
        linux.mount(f"/proc/self/fd/{mounted}", f"/proc/self/fd/{point}", None, linux.MS_MOVE)
    except OSError:
        os.close(point)
        raise
    return owner, point
