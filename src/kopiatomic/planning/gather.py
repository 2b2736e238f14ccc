"""Gathers the facts that a plan is made of. Only looks, and changes nothing.

What may not answer (network, FUSE and autofs mounts, suspended pools) is known from the mount table and the kernel's own
statistics, and is never touched. Users may exchange directories and links meanwhile: a path is resolved once
(``planning/resolving.py``), and afterwards only opened in its resolved form.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems.btrfs.folder import DIRECTORY as RUNS_DIRECTORY
from kopiatomic.filesystems.zfs import listing as zfs_listing
from kopiatomic.immutable import immutable
from kopiatomic.model.facts import BtrfsSubvolume, Facts, Setting, ZfsDataset, ZfsPool
from kopiatomic.model.fstypes import LOCAL, may_hang
from kopiatomic.model.mounts import Mount, borders, holder, visible
from kopiatomic.model.request import Request, is_path, is_pattern
from kopiatomic.planning import spelling
from kopiatomic.planning.resolving import resolve
from kopiatomic.system import btrfs, fstab, host, linux, looking, mountinfo, pools, safety
from kopiatomic.text import printable

_TRIES = 20
"""How often to look for a subvolume that is being moved."""

_MOVED_S = 30.0
"""Seconds after which the search for moved ones ends: a user may move thousands of them all the time."""

_LONGEST = 4095
"""The longest path in bytes that a program can open (PATH_MAX without its final byte, linux/limits.h)."""

_SHOWN = _LONGEST + 256
"""How many bytes to keep of the beginning of a longer one: so many that nothing else can have it as its path."""

_LOOP = re.compile(r"/dev/(loop\d+)")


def gather(request: Request) -> Facts:
    """Examine what a request can reach, in a child. Raises KopiatomicError, Interrupted."""
    try:
        return looking.call(lambda: _gather(request), mountinfo.SELF)
    except looking.NoAnswerError:
        # Now the mount table shows what does not answer, and it is not touched.
        return looking.call(lambda: _gather(request), mountinfo.SELF)


def _gather(request: Request) -> Facts:
    mounts = spelling.own_table(host.here().mounts())
    seen = visible(mounts)
    resolved = dict(_resolved(request.names, seen))
    names = [name for name in request.names if name in resolved or not is_pattern(name)]
    datasets, properties, found_pools = _zfs(request, names, resolved, mounts, seen)
    at_boot, fstab_problem = _at_boot(datasets.values(), mounts)
    patterns = any(is_path(n) and is_pattern(n) for n in request.names if n not in resolved)
    subvolumes = tuple(_btrfs_subvolumes(seen, resolved.values(), request, everything=request.everything or patterns))
    return Facts(
        mounts=mounts,
        datasets=datasets,
        pools=found_pools,
        subvolumes=subvolumes,
        resolved=resolved,
        properties=properties,
        directories=_directories(seen, resolved.values(), datasets.values(), unmounted=request.include_unmounted),
        sizes=_sizes(seen),
        loop_files=_loop_files(seen),
        spelled=_spelled(request.exclude, seen),
        at_boot=at_boot,
        fstab_problem=fstab_problem,
        movers=_movers(seen, resolved.values(), subvolumes, nested=patterns or bool(request.exclude)),
        jailed=host.here().in_jail(),
        room=host.here().room(len(mounts)),
    )


# Paths


def _resolved(names: Iterable[str], seen: dict[str, Mount]) -> Iterator[tuple[str, str]]:
    """Return the paths among the names, with links followed. A path that looks like a pattern and exists is taken literally.

    Raises KopiatomicError.
    """
    for name in filter(is_path, names):
        try:
            yield name, resolve(name, seen)
        except KopiatomicError:
            if not is_pattern(name):
                raise


def _spelled(patterns: Iterable[str], seen: dict[str, Mount]) -> dict[str, str]:
    """Return the absolute patterns that their directories spell differently, with that spelling. Raises OSError."""
    spellings = spelling.Spellings(seen)
    found = {pattern: spellings.of_pattern(pattern) for pattern in patterns if pattern.startswith("/")}
    return {pattern: own for pattern, own in found.items() if own != pattern}


# ZFS


def _zfs(
    request: Request,
    names: Iterable[str],
    resolved: Mapping[str, str],
    mounts: Iterable[Mount],
    seen: dict[str, Mount],
) -> tuple[dict[str, ZfsDataset], dict[str, Setting], dict[str, ZfsPool]]:
    wanted = {name for name in names if not is_path(name)}
    for path in resolved.values():
        mount = holder(path, seen)
        if mount.fstype == "zfs" and "@" not in mount.source:
            wanted.add(mount.source)
    patterns = [name for name in request.names if is_pattern(name) and name not in resolved]
    everything = request.everything or bool(patterns) or (request.by_property and not request.names)
    needed = any(not is_path(pattern) for pattern in patterns) or request.by_property
    present = needed or any(m.fstype == "zfs" and "@" not in m.source for m in mounts) or _zfs_present()
    if not wanted and not (everything and present):
        return {}, {}, {}
    depth = None if request.recursive or request.by_property else 1
    datasets, valued = zfs_listing.datasets(sorted(wanted), request.property, everything=everything, depth=depth)
    if everything:
        zfs_listing.require(wanted, datasets)
    mounted = {m.source for m in mounts if m.fstype == "zfs"}
    datasets |= zfs_listing.with_mountpoints(d for d in datasets.values() if d.name not in mounted)
    properties = zfs_listing.settings(valued, request.property) if valued else {}
    # zfs silently omits what lies in a suspended pool, so each pool is checked.
    of_pools = None if everything else {name.partition("/")[0] for name in datasets}
    return datasets, properties, zfs_listing.pools(of_pools)


def _at_boot(datasets: Iterable[ZfsDataset], mounts: Iterable[Mount]) -> tuple[dict[str, str], str]:
    """Return where /etc/fstab mounts at boot those that are not mounted; or why that is unknown, if any may be in it."""
    mounted = {m.source for m in mounts if m.fstype == "zfs"}
    waiting = [d for d in datasets if d.kind == "filesystem" and d.name not in mounted]
    if not waiting:
        return {}, ""
    try:
        table = fstab.at_boot("zfs")
    except OSError as error:
        return {}, (error.strerror or str(error)) if any(d.mountpoint == "legacy" for d in waiting) else ""
    return {d.name: table[d.name] for d in waiting if d.name in table}, ""


def _zfs_present() -> bool:
    return shutil.which("zfs") is not None and presence.exists("/dev/zfs")


# Btrfs


def _btrfs_subvolumes(
    seen: dict[str, Mount], named: Iterable[str], request: Request, *, everything: bool
) -> Iterator[BtrfsSubvolume]:
    """Yield the subvolumes that hold the named paths, and all at mount points if asked; then all nested in them."""
    paths = list(named)
    if everything:
        paths += [m.point for m in seen.values() if m.fstype == "btrfs"]
    known: set[str] = set()
    # For nested ones that are not taken, it matters whether they hold anything.
    look_inside = not (request.recursive or request.everything or request.no_nested)
    for path in paths:
        mount = holder(path, seen)
        if mount.fstype == "btrfs":
            for subvolume in _Walk(mount.source, seen, look_inside=look_inside).of(_top_of(path, seen)):
                if subvolume.path not in known:
                    known.add(subvolume.path)
                    yield subvolume


def _top_of(path: str, seen: dict[str, Mount]) -> str:
    """Return the top directory of the subvolume that holds a path; otherwise the mount point where the search ends.

    Raises KopiatomicError.
    """
    border = holder(path, borders(seen)).point
    while path != border:
        try:
            with _opened(path, holder(path, seen), os.O_PATH) as fd:
                if btrfs.is_top(fd):
                    return path
        except NotADirectoryError:
            # A file: it lies in its directory's subvolume.
            pass
        except OSError as error:
            raise _btrfs_failure(path, error) from None
        path = os.path.dirname(path)
    return path


@immutable
class _Wanted:
    """A subvolume to examine: its expected path; if nested also its id, and the subvolume above it."""

    path: str
    id: int = 0
    above: str | None = None
    too_long: bool = False


class _MovedError(Exception):
    """A path does not lead to the subvolume: it, or a directory above it, was just moved or deleted."""


class _Walk:
    """Examines the subvolume at a path, if one is there, and those nested in it."""

    def __init__(self, device: str, seen: dict[str, Mount], *, look_inside: bool) -> None:
        self._device = device
        self._no_device = device.startswith("/") and not presence.exists(device)
        self._seen = seen
        self._look_inside = look_inside
        self._uuid = ""
        self._waiting: list[_Wanted] = []
        self._until = time.monotonic() + _MOVED_S

    def of(self, top: str) -> Iterator[BtrfsSubvolume]:
        """Yield all of them, each after the one that it is nested in. Raises KopiatomicError."""
        self._waiting = [_Wanted(top)]
        while self._waiting:
            found = self._search(self._waiting.pop())
            if found is not None:
                yield found

    def _search(self, wanted: _Wanted) -> BtrfsSubvolume | None:
        """Examine a subvolume wherever it is now; return None if it does not exist. Raises KopiatomicError."""
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
        )

    def _holds(self, wanted: _Wanted) -> bool | None:
        """Whether a subvolume that its path does not lead to holds anything; None if that cannot be known."""
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
        """Examine a subvolume; return None if none is mounted or was named. Raises _MovedError, KopiatomicError."""
        try:
            with _opened(wanted.path, mount) as fd:
                top = btrfs.is_top(fd)
                if wanted.above is None and not top:
                    return None
                info = btrfs.subvolume(fd)
                if not top or wanted.id not in {0, info.id}:
                    raise _MovedError
                self._uuid = btrfs.filesystem_uuid(fd)
                owner = os.fstat(fd).st_uid
                holds = _has_entries(fd) if self._look_inside and wanted.above is not None else None
                nested = list(_children(fd, info, wanted.path))
        except OSError as error:
            if isinstance(error, NotADirectoryError) and wanted.above is None:
                return None
            if presence.moved(error):
                raise _MovedError from None
            raise _btrfs_failure(wanted.path, error) from None
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
            owner=owner,
        )

    def _place_of(self, wanted: _Wanted, above: str) -> _Wanted | None:
        """Return where to look for a nested subvolume now; None if it was deleted. Raises KopiatomicError."""
        try:
            with _opened(above, holder(above, self._seen)) as fd:
                place = btrfs.child(fd, wanted.id)
        except OSError as error:
            if presence.moved(error):
                return wanted
            raise _btrfs_failure(above, error) from None
        return None if place is None else _wanted(place, above)


def _hexadecimal(uuid: bytes) -> str:
    return "" if uuid == btrfs.NO_UUID else uuid.hex()


def _has_entries(directory: int) -> bool:
    """Whether a directory has entries. Raises OSError."""
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
    """Yield the subvolumes directly in an open one, except the snapshots of runs in progress."""
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


def _btrfs_failure(path: str, error: OSError) -> KopiatomicError:
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


# What else is mounted


def _directories(
    seen: dict[str, Mount], named: Iterable[str], datasets: Iterable[ZfsDataset], *, unmounted: bool
) -> frozenset[str]:
    """Return the named paths that are directories now, and the empty ones among the places of unmounted datasets.

    The content of an unmounted dataset's directory belongs to the dataset above, and would be hidden.
    """
    found = {path for path in named if _answers(path, seen) and _is_directory(path)}
    if unmounted:
        places = {d.mountpoint for d in datasets if d.mountpoint.startswith("/")}
        found |= {path for path in places if _answers(path, seen) and _is_directory(path, empty=True)}
    return frozenset(found)


def _is_directory(path: str, *, empty: bool = False) -> bool:
    try:
        fd = host.here().open_directory(path, to_list=empty)
        try:
            return not empty or not os.listdir(fd)
        finally:
            os.close(fd)
    except OSError as error:
        # A directory whose content cannot be seen is not known to be empty.
        if empty or presence.moved(error):
            return False
        raise KopiatomicError(
            f"{printable(path)} cannot be looked at: {error.strerror}", kind="path-look", hint="See 'dmesg'."
        ) from None


def _answers(path: str, seen: dict[str, Mount]) -> bool:
    mount = holder(path, seen)
    return not may_hang(mount.fstype) and not (
        mount.fstype == "zfs" and pools.suspended([mount.source.partition("/")[0].partition("@")[0]])
    )


def _movers(
    seen: dict[str, Mount], named: Iterable[str], subvolumes: Iterable[BtrfsSubvolume], *, nested: bool
) -> dict[str, str]:
    """Return who besides root can move each place that a dataset or a part may have, or what lies above it."""
    paths = [*named, *(m.point for m in seen.values() if m.fstype in {"zfs", "btrfs"} and "@" not in m.source)]
    # What is nested has its place in a frozen tree, unless a pattern chose it alone or left out what it is nested in.
    paths += [subvolume.path for subvolume in subvolumes if nested or subvolume.above is None]

    def silent(directory: str) -> str:
        if directory == "/" or _answers(directory, seen):
            return ""
        mount = holder(directory, seen)
        return f"whoever serves {printable(mount.point)} ({printable(mount.fstype)})"

    return safety.look(paths, silent)


def _sizes(seen: dict[str, Mount]) -> dict[str, int]:
    """Return the bytes in use of local filesystems that are neither ZFS nor Btrfs."""
    sizes = {}
    for point, mount in seen.items():
        if mount.fstype in LOCAL:
            looking.at(point)
            try:
                status = os.statvfs(point)
            except OSError:
                continue
            sizes[point] = (status.f_blocks - status.f_bfree) * status.f_frsize
    return sizes


def _loop_files(seen: dict[str, Mount]) -> dict[str, str]:
    """Return the files behind mounted loop devices (Documentation/ABI/testing/sysfs-block-loop)."""
    files = {}
    for mount in seen.values():
        found = _LOOP.fullmatch(mount.source)
        if found is not None:
            try:
                data = Path("/sys/block", found.group(1), "loop/backing_file").read_bytes()
            except OSError:
                continue
            files[mount.source] = os.fsdecode(data.removesuffix(b"\n"))
    return files
