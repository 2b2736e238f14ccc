"""What there is of Btrfs: the subvolumes at and around paths, and those nested in them, as the kernel lists them."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems.backends import Ground
from kopiatomic.filesystems.btrfs.folder import DIRECTORY as RUNS_DIRECTORY
from kopiatomic.filesystems.btrfs.folder import is_clone
from kopiatomic.immutable import immutable
from kopiatomic.model.facts import BtrfsSubvolume
from kopiatomic.model.mounts import Mount, borders, holder
from kopiatomic.model.request import Request, is_path, is_pattern
from kopiatomic.system import btrfs, linux, mountinfo
from kopiatomic.text import printable

_TRIES = 20
"""How often a subvolume is looked for while somebody moves it."""

_MOVED_S = 30.0
"""Seconds after which no subvolume is looked for again: somebody may keep moving thousands of them."""

_LONGEST = 4095
"""The maximum length in bytes of a path that a program can open (PATH_MAX without its end, linux/limits.h)."""

_SHOWN = _LONGEST + 256
"""How many bytes of a longer path are kept, from its beginning: more than any path that something else can have."""


def look(ground: Ground) -> dict[str, Any]:
    """Return the subvolumes that a request can reach, as a field of Facts. Raises KopiatomicError."""
    request = ground.request
    patterns = any(is_path(n) and is_pattern(n) for n in request.names if n not in ground.resolved)
    named = ground.resolved.values()
    return {"subvolumes": tuple(_subvolumes(ground.seen, named, request, everything=request.everything or patterns))}


def _subvolumes(
    seen: dict[str, Mount], named: Iterable[str], request: Request, *, everything: bool
) -> Iterator[BtrfsSubvolume]:
    """Return the subvolumes that hold the named paths, and all at mount points if asked; then all that are nested in them.

    Raises KopiatomicError.
    """
    paths = list(named)
    if everything:
        paths += [m.point for m in seen.values() if m.fstype == "btrfs"]
    known: set[str] = set()
    # Of what is not taken for being nested it matters whether it holds anything.
    look_inside = not (request.recursive or request.everything or request.no_nested)
    for path in paths:
        mount = holder(path, seen)
        if mount.fstype == "btrfs":
            for subvolume in _Walk(mount.source, seen, look_inside=look_inside).of(_top_of(path, seen)):
                if subvolume.path not in known:
                    known.add(subvolume.path)
                    yield subvolume


def _top_of(path: str, seen: dict[str, Mount]) -> str:
    """Return the top directory of the subvolume that holds a path; if there is none, the mount point where the search ends.

    Raises KopiatomicError.
    """
    border = holder(path, borders(seen)).point
    while path != border:
        try:
            with _opened(path, holder(path, seen), os.O_PATH) as fd:
                if btrfs.is_top(fd):
                    return path
        except NotADirectoryError:
            # A file: it lies in what is above it.
            pass
        except OSError as error:
            raise _failure(path, error) from None
        path = os.path.dirname(path)
    return path


@immutable
class _Wanted:
    """A subvolume to look at: the path where it should be; of a nested one its id, and the path of the one it is nested in."""

    path: str
    id: int = 0
    above: str | None = None
    too_long: bool = False


class _MovedError(Exception):
    """A path does not lead to the subvolume: it or a directory above it was moved or deleted meanwhile."""


class _Walk:
    """Looks at the subvolume at a path, if one is there, and at those nested in it."""

    def __init__(self, device: str, seen: dict[str, Mount], *, look_inside: bool) -> None:
        self._device = device
        self._no_device = device.startswith("/") and not presence.exists(device)
        self._seen = seen
        self._look_inside = look_inside
        self._uuid = ""
        self._clone = False
        self._waiting: list[_Wanted] = []
        self._until = time.monotonic() + _MOVED_S

    def of(self, top: str) -> Iterator[BtrfsSubvolume]:
        """Return all of them, each after the one that it is nested in. Raises KopiatomicError."""
        self._waiting = [_Wanted(top)]
        while self._waiting:
            found = self._search(self._waiting.pop())
            if found is not None:
                yield found

    def _search(self, wanted: _Wanted) -> BtrfsSubvolume | None:
        """Look at a subvolume where it is now; None if there is none. Raises KopiatomicError."""
        for _ in range(_TRIES):
            if wanted.too_long:
                return self._unseen(wanted, too_long=True)
            mount = holder(wanted.path, self._seen)
            if mount.fstype != "btrfs":
                # What is mounted over it might not answer.
                break
            try:
                return self._look(wanted, mount)
            except _MovedError:
                if wanted.above is not None:
                    place = self._place_of(wanted, wanted.above)
                    if place is None:
                        return None
                    wanted = place
            if time.monotonic() > self._until:
                break
        return self._unseen(wanted, covered=True)

    def _unseen(self, wanted: _Wanted, *, covered: bool = False, too_long: bool = False) -> BtrfsSubvolume:
        return BtrfsSubvolume(
            wanted.path,
            wanted.id,
            self._uuid,
            self._device,
            above=wanted.above,
            holds=self._holds(wanted),
            covered=covered,
            too_long=too_long,
            no_device=self._no_device,
            clone=self._clone,
        )

    def _holds(self, wanted: _Wanted) -> bool | None:
        """Whether anything is in a subvolume that its path does not lead to; None if that cannot be told."""
        if wanted.above is None or not self._look_inside:
            return None
        try:
            with _opened(wanted.above, holder(wanted.above, self._seen)) as above:
                fd = btrfs.open_subvolume(above, wanted.id)
        except OSError:
            return None
        try:
            return _has_entries(fd)
        finally:
            os.close(fd)

    def _look(self, wanted: _Wanted, mount: Mount) -> BtrfsSubvolume | None:
        """Look at a subvolume; None if none is mounted or was named. Raises _MovedError, KopiatomicError."""
        try:
            with _opened(wanted.path, mount) as fd:
                top = btrfs.is_top(fd)
                if wanted.above is None and not top:
                    return None
                info = btrfs.subvolume(fd)
                if not top or wanted.id not in {0, info.id}:
                    raise _MovedError
                uuid = btrfs.filesystem_uuid(fd)
                if uuid != self._uuid:
                    self._uuid, self._clone = uuid, is_clone(uuid, self._device)
                owner = os.fstat(fd).st_uid
                holds = _has_entries(fd) if self._look_inside and wanted.above is not None else None
                nested = list(_children(fd, info, wanted.path))
        except OSError as error:
            if isinstance(error, NotADirectoryError) and wanted.above is None:
                return None
            if presence.moved(error):
                raise _MovedError from None
            raise _failure(wanted.path, error) from None
        self._waiting += nested
        return BtrfsSubvolume(
            wanted.path,
            info.id,
            self._uuid,
            self._device,
            above=wanted.above,
            uuid=_hexadecimal(info.uuid),
            parent=_hexadecimal(info.parent_uuid),
            received=_hexadecimal(info.received_uuid),
            read_only=info.read_only,
            holds=holds,
            no_device=self._no_device,
            clone=self._clone,
            owner=owner,
        )

    def _place_of(self, wanted: _Wanted, above: str) -> _Wanted | None:
        """Return a nested subvolume as it must be looked for now; None if it is deleted. Raises KopiatomicError."""
        try:
            with _opened(above, holder(above, self._seen)) as fd:
                place = btrfs.child(fd, wanted.id)
        except OSError as error:
            if presence.moved(error):
                return wanted
            raise _failure(above, error) from None
        return None if place is None else _wanted(place, above)


def _hexadecimal(uuid: bytes) -> str:
    return "" if uuid == btrfs.NO_UUID else uuid.hex()


def _has_entries(directory: int) -> bool:
    """Raises OSError."""
    with os.scandir(directory) as entries:
        return next(entries, None) is not None


@contextmanager
def _opened(path: str, mount: Mount, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Open a directory in a mount. Raises OSError; ELOOP also if the path now leads into another mount."""
    fd = linux.open_without_links(path, flags | os.O_DIRECTORY)
    try:
        if mountinfo.id_of(fd) != mount.id:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        yield fd
    finally:
        os.close(fd)


def _children(fd: int, info: btrfs.Subvolume, top: str) -> Iterator[_Wanted]:
    """Return the subvolumes directly in an open one, except the snapshots of runs that are going on."""
    for nested in btrfs.children(fd):
        if info.id != btrfs.TOP_LEVEL or not nested.path.startswith(f"{RUNS_DIRECTORY}/"):
            yield _wanted(nested, top)


def _wanted(nested: btrfs.Nested, top: str) -> _Wanted:
    path = os.path.join(top, nested.path)
    name = os.fsencode(path)
    if not nested.too_long and len(name) <= _LONGEST:
        return _Wanted(path, nested.id, top)
    begin, last = name[:_SHOWN].rpartition(b"/")[0], name.rpartition(b"/")[2]
    return _Wanted(os.fsdecode(b"%s/.../%s (subvolume %d)" % (begin, last, nested.id)), nested.id, top, too_long=True)


def _failure(path: str, error: OSError) -> KopiatomicError:
    if presence.moved(error):
        return KopiatomicError(
            f"{printable(path)} was moved or replaced while it was looked at",
            kind="path-changed",
            hint="Run again. Who may write to a directory above it can do so at any time.",
        )
    return KopiatomicError(
        f"the Btrfs subvolume at {printable(path)} cannot be looked at: {error.strerror}",
        kind="btrfs-look",
        hint="Run as root." if isinstance(error, PermissionError) else "See 'dmesg' for what the filesystem says.",
    )
