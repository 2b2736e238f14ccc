"""Gathers the facts that a plan is made of. Looks, and changes nothing.

What may not answer (network, FUSE and autofs mounts, suspended pools) is known from the mount table and the kernel's own
statistics, and is never touched.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from kopiatomic import zfs_listing
from kopiatomic.errors import KopiatomicError
from kopiatomic.facts import BtrfsSubvolume, Facts, Setting, ZfsDataset, ZfsPool
from kopiatomic.filesystems import LOCAL, may_hang
from kopiatomic.request import Request, is_path, is_pattern
from kopiatomic.snapshots.btrfs_folder import DIRECTORY as RUNS_DIRECTORY
from kopiatomic.system import btrfs, mountinfo, pools
from kopiatomic.system.mountinfo import Mount
from kopiatomic.text import printable

_LINKS = 40
"""How many symbolic links a path may lead through, as the kernel has it (path_resolution(7))."""

_LOOP = re.compile(r"/dev/(loop\d+)")


def gather(request: Request) -> Facts:
    """Look at what a request can reach. Raises KopiatomicError, Interrupted."""
    mounts = tuple(mountinfo.read())
    seen = mountinfo.visible(mounts)
    names = _literal(request.names)
    resolved = {name: resolve(name, seen) for name in names if is_path(name)}
    datasets, properties, found_pools = _zfs(request, names, resolved, mounts, seen)
    everything = request.everything or any(is_path(n) and is_pattern(n) for n in request.names if n not in resolved)
    return Facts(
        mounts=mounts,
        datasets=datasets,
        pools=found_pools,
        subvolumes=tuple(_btrfs_subvolumes(seen, resolved.values(), everything=everything)),
        resolved=resolved,
        properties=properties,
        directories=_directories(seen, resolved.values(), datasets.values(), unmounted=request.include_unmounted),
        sizes=_sizes(seen),
        loop_files=_loop_files(seen),
    )


def _literal(names: Iterable[str]) -> list[str]:
    """Those of the names that are no patterns. A path that exists is taken literally."""
    return [name for name in names if not is_pattern(name) or (is_path(name) and os.path.lexists(name))]


# Paths


def resolve(name: str, seen: Mapping[str, Mount]) -> str:
    """A path with its links followed, as the kernel would, without a step into what may not answer.

    Raises KopiatomicError.
    """
    waiting = [part for part in reversed(os.path.join(os.getcwd(), name).split("/")) if part not in {"", "."}]
    path = "/"
    links = 0
    while waiting:
        part = waiting.pop()
        if part == "..":
            path = os.path.dirname(path)
            continue
        path = f"{path.rstrip('/')}/{part}"
        _require_answer(name, path, seen)
        try:
            target = os.readlink(path)
        except OSError as error:
            if error.errno == errno.EINVAL:
                continue
            raise _no_such_path(name, error) from None
        links += 1
        if links > _LINKS:
            raise _no_such_path(name, OSError(errno.ELOOP, os.strerror(errno.ELOOP)))
        path = "/" if target.startswith("/") else os.path.dirname(path)
        waiting += [inside for inside in reversed(target.split("/")) if inside not in {"", "."}]
    return path


def _no_such_path(name: str, error: OSError) -> KopiatomicError:
    return KopiatomicError(
        f"{printable(name)}: {error.strerror}",
        kind="no-such-path",
        hint="Name a mount point or a directory, or a dataset in ZFS notation (pool/dataset).",
    )


def _require_answer(name: str, path: str, seen: Mapping[str, Mount]) -> None:
    """Refuse to look at what may not answer. Raises KopiatomicError."""
    mount = seen.get(path)
    if mount is None:
        return
    if may_hang(mount.fstype):
        raise KopiatomicError(
            f"{printable(name)} is on {mount.fstype} ({printable(mount.source)}), which is neither ZFS nor Btrfs",
            kind="unsupported-filesystem",
            hint="Only ZFS datasets and Btrfs subvolumes can be frozen; back this up with kopia directly.",
        )
    if mount.fstype == "zfs" and pools.suspended([mount.source.partition("/")[0].partition("@")[0]]):
        raise zfs_listing.pool_suspended(mount.source.partition("/")[0])


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
        mount = mountinfo.holder(path, seen)
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
    # zfs leaves out what lies in a suspended pool without a word: each pool is looked at.
    of_pools = None if everything else {name.partition("/")[0] for name in datasets}
    return datasets, properties, zfs_listing.pools(of_pools)


def _zfs_present() -> bool:
    return shutil.which("zfs") is not None and os.path.exists("/dev/zfs")


# Btrfs


def _btrfs_subvolumes(seen: dict[str, Mount], named: Iterable[str], *, everything: bool) -> Iterator[BtrfsSubvolume]:
    """The subvolumes that hold the named paths, and all at mount points if asked; then all that are nested in them."""
    paths = list(named)
    if everything:
        paths += [m.point for m in seen.values() if m.fstype == "btrfs"]
    known: set[str] = set()
    for path in paths:
        mount = mountinfo.holder(path, seen)
        if mount.fstype == "btrfs":
            for subvolume in _with_nested(_top_of(path, mount.point), mount.source):
                if subvolume.path not in known:
                    known.add(subvolume.path)
                    yield subvolume


def _top_of(path: str, point: str) -> str:
    """The top directory of the subvolume that holds a path; the mount point where there is none up to it."""
    while path != point:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            path = os.path.dirname(path)
            continue
        try:
            if btrfs.is_top(fd):
                return path
        finally:
            os.close(fd)
        path = os.path.dirname(path)
    return point


def _with_nested(top: str, device: str) -> Iterator[BtrfsSubvolume]:
    """The subvolume at ``top``, if one is there, and those nested in it. Raises KopiatomicError."""
    waiting: list[tuple[str, str | None, int | None]] = [(top, None, None)]
    while waiting:
        path, above, expected = waiting.pop()
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (NotADirectoryError, FileNotFoundError):
            # A file that was named, or a subvolume deleted since: the plan says that no subvolume is there.
            continue
        except OSError as error:
            raise _btrfs_failure(path, error) from None
        try:
            if expected is None and not btrfs.is_top(fd):
                continue
            info = btrfs.subvolume(fd)
            covered = expected is not None and (info.id != expected or not btrfs.is_top(fd))
            yield BtrfsSubvolume(
                path=path,
                id=expected if expected is not None else info.id,
                filesystem=btrfs.filesystem_uuid(fd),
                device=device,
                foreign_snapshot=not covered and info.read_only and info.is_snapshot,
                above=above,
                covered=covered,
            )
            if not covered:
                waiting += [(os.path.join(path, inside), path, id_) for id_, inside in _children(fd, info)]
        except OSError as error:
            if expected is not None and error.errno == errno.ENOENT:
                # Deleted just now.
                continue
            if expected is None or error.errno != errno.ENOTTY:
                raise _btrfs_failure(path, error) from None
            # Another filesystem is mounted there.
            yield BtrfsSubvolume(path, expected, "", device, foreign_snapshot=False, above=above, covered=True)
        finally:
            os.close(fd)


def _children(fd: int, info: btrfs.Subvolume) -> Iterator[tuple[int, str]]:
    """The subvolumes directly in an open one, but for the snapshots of runs that go on at this moment."""
    for id_, inside in btrfs.children(fd):
        if info.id != btrfs.TOP_LEVEL or not inside.startswith(f"{RUNS_DIRECTORY}/"):
            yield id_, inside


def _btrfs_failure(path: str, error: OSError) -> KopiatomicError:
    return KopiatomicError(
        f"the Btrfs subvolume at {printable(path)} cannot be looked at: {error.strerror}",
        kind="btrfs-look",
        hint="Run as root." if isinstance(error, PermissionError) else "See 'dmesg' for what the filesystem says.",
    )


# What else is mounted


def _directories(
    seen: dict[str, Mount], named: Iterable[str], datasets: Iterable[ZfsDataset], *, unmounted: bool
) -> frozenset[str]:
    """Those of the named paths, and of the places of datasets that are not mounted, that are directories now."""
    paths = set(named)
    if unmounted:
        paths |= {d.mountpoint for d in datasets if d.mountpoint.startswith("/")}
    return frozenset(path for path in paths if _answers(path, seen) and os.path.isdir(path))


def _answers(path: str, seen: dict[str, Mount]) -> bool:
    mount = mountinfo.holder(path, seen)
    return not may_hang(mount.fstype) and not (
        mount.fstype == "zfs" and pools.suspended([mount.source.partition("/")[0].partition("@")[0]])
    )


def _sizes(seen: dict[str, Mount]) -> dict[str, int]:
    """Bytes in use of local filesystems that are neither ZFS nor Btrfs."""
    sizes = {}
    for point, mount in seen.items():
        if mount.fstype in LOCAL:
            try:
                status = os.statvfs(point)
            except OSError:
                continue
            sizes[point] = (status.f_blocks - status.f_bfree) * status.f_frsize
    return sizes


def _loop_files(seen: dict[str, Mount]) -> dict[str, str]:
    """The files behind the loop devices that are mounted (Documentation/ABI/testing/sysfs-block-loop)."""
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
