"""Gathers what a plan is made of: the mount table, ZFS's datasets, Btrfs's subvolumes. Looks, and changes nothing."""

from __future__ import annotations

import difflib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from kopiatomic.errors import KopiatomicError
from kopiatomic.snapshots.btrfs_folder import DIRECTORY as RUNS_DIRECTORY
from kopiatomic.system import btrfs, libzfs_core, mountinfo, process
from kopiatomic.text import printable

LIST_TIMEOUT = 120.0
"""Seconds that one listing may take: a suspended pool or a dead device must not hang a plan."""

_COLUMNS = "name,type,canmount,keystatus"


@dataclass(frozen=True, slots=True)
class ZfsDataset:
    """A line of ``zfs list``: ``kind`` is "filesystem" or "volume"; "-" stands for what a dataset does not have."""

    name: str
    kind: str
    canmount: str
    keystatus: str
    mountpoint: str = ""
    """The property, asked for only where ``canmount`` is on and the dataset is not mounted: the mount table is the truth
    about all others."""

    @property
    def should_be_mounted(self) -> bool:
        """Whether it is not mounted although ZFS would mount it by itself at boot."""
        return self.canmount == "on" and self.mountpoint not in {"", "-", "none", "legacy"}


@dataclass(frozen=True, slots=True)
class ZfsPool:
    """A line of ``zpool list``."""

    name: str
    health: str
    read_only: bool

    @property
    def suspended(self) -> bool:
        """Whether its devices do not answer."""
        return self.health == "SUSPENDED"


@dataclass(frozen=True, slots=True)
class BtrfsSubvolume:
    """A subvolume and the path it is seen at. ``above`` is the path of the one that it is nested in, if reached so."""

    path: str
    id: int
    filesystem: str
    device: str
    foreign_snapshot: bool
    """A read-only snapshot: somebody's copy of another subvolume (snapper and the like), not live data."""
    above: str | None = None
    covered: bool = False
    """Whether something else is mounted over it, so that its path leads elsewhere."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that :func:`kopiatomic.plan.select` needs to know."""

    mounts: tuple[mountinfo.Mount, ...]
    datasets: Mapping[str, ZfsDataset]
    pools: Mapping[str, ZfsPool]
    subvolumes: tuple[BtrfsSubvolume, ...]
    resolved: Mapping[str, str]
    """The paths that were named, links followed."""


def is_path(name: str) -> bool:
    """Whether a name on the command line is a path and not a ZFS name."""
    return name.startswith(("/", "./", "../")) or name in {".", ".."}


def gather(names: Iterable[str], *, everything: bool, recursive: bool) -> Facts:
    """Look at what the names, ``-a`` and ``-r`` can reach. Raises KopiatomicError, Interrupted."""
    mounts = tuple(mountinfo.read())
    seen = mountinfo.visible(mounts)
    resolved = {name: _resolve(name) for name in names if is_path(name)}
    wanted = {name for name in names if not is_path(name)}
    for path in resolved.values():
        mount = mountinfo.holder(path, seen)
        if mount.fstype == "zfs" and "@" not in mount.source:
            wanted.add(mount.source)
    zfs_mounted = any(m.fstype == "zfs" and "@" not in m.source for m in mounts)
    datasets: dict[str, ZfsDataset] = {}
    pools: dict[str, ZfsPool] = {}
    if wanted or (everything and (zfs_mounted or _zfs_present())):
        datasets = _zfs_datasets(sorted(wanted), everything=everything, recursive=recursive)
        datasets |= _unmounted(datasets.values(), {m.source for m in mounts if m.fstype == "zfs"})
        # zfs leaves out what lies in a suspended pool without a word: with -a each pool is looked at.
        pools = _zfs_pools(None if everything else {name.partition("/")[0] for name in datasets})
    return Facts(
        mounts=mounts,
        datasets=datasets,
        pools=pools,
        subvolumes=tuple(_btrfs_subvolumes(seen, resolved.values(), everything=everything)),
        resolved=resolved,
    )


def _resolve(name: str) -> str:
    try:
        return os.path.realpath(name, strict=True)
    except OSError as error:
        raise KopiatomicError(
            f"{printable(name)}: {error.strerror}",
            kind="no-such-path",
            hint="Name a mount point, or a dataset in ZFS notation (pool/dataset).",
        ) from None


def _zfs_present() -> bool:
    return shutil.which("zfs") is not None and os.path.exists("/dev/zfs")


def _zfs(argv: list[str]) -> process.Finished:
    """Run ``zfs`` or ``zpool``; its texts are read in the C locale."""
    try:
        return process.run(argv, timeout=LIST_TIMEOUT, environment={**os.environ, "LC_ALL": "C"}, keep=1 << 30)
    except FileNotFoundError:
        raise KopiatomicError(
            f"ZFS is not installed: there is no command '{argv[0]}'",
            kind="zfs-missing",
            hint="Debian and Ubuntu: apt install zfsutils-linux. Btrfs subvolumes are named by a path that begins with / or ./",
        ) from None
    except process.TimeLimitError:
        raise KopiatomicError(
            f"'{argv[0]} {argv[1]}' did not answer within {LIST_TIMEOUT:g} s",
            kind="zfs-timeout",
            hint="Is a pool suspended? See 'zpool status'.",
        ) from None


def _zfs_datasets(names: list[str], *, everything: bool, recursive: bool) -> dict[str, ZfsDataset]:
    argv = ["zfs", "list", "-Hp", "-t", "filesystem,volume", "-o", _COLUMNS]
    if not everything:
        for name in names:
            _check_kind(name)
        argv += [*(["-r"] if recursive else []), "--", *names]
    result = _zfs(argv)
    found = {}
    for line in result.stdout.decode("utf-8", "surrogateescape").splitlines():
        name, kind, canmount, keystatus = line.split("\t")
        found[name] = ZfsDataset(name, kind, canmount, keystatus)
    missing = [name for name in names if name not in found]
    if missing:
        raise _missing(missing[0], result)
    if result.status != 0:
        raise _zfs_failure(result)
    return found


def _check_kind(name: str) -> None:
    """Refuse what can be seen from the name alone not to be a filesystem."""
    for mark, what in (("@", "snapshot"), ("#", "bookmark")):
        if mark in name:
            raise KopiatomicError(
                f"{printable(name)} is a {what}, not a filesystem",
                kind="not-a-filesystem",
                hint=f"Name the dataset itself: {printable(name.partition(mark)[0])}",
            )


def _missing(name: str, result: process.Finished) -> KopiatomicError:
    """Why a named dataset is not in the listing, with near names."""
    if f"cannot open '{name}': pool I/O is currently suspended" in result.errors:
        return pool_suspended(name.partition("/")[0])
    if f"cannot open '{name}'" not in result.errors:
        return _zfs_failure(result)
    everything = _zfs(["zfs", "list", "-H", "-t", "filesystem", "-o", "name"])
    known = everything.stdout.decode("utf-8", "surrogateescape").splitlines()
    if not known:
        return _no_pools()
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    last = name.rpartition("/")[2]
    near += [k for k in known if k.rpartition("/")[2] == last and k not in near][:3]
    hint = "Did you mean " + " or ".join(near) + "?" if near else "'zfs list' shows the datasets there are."
    if os.path.exists(name):
        hint += f" To name the directory, write ./{printable(name)}"
    if "invalid" in result.errors:
        return KopiatomicError(f"{printable(name)} is not a valid dataset name", kind="no-such-dataset", hint=hint)
    return KopiatomicError(f"no such dataset: {printable(name)}", kind="no-such-dataset", hint=hint)


def pool_suspended(pool: str) -> KopiatomicError:
    """A pool whose devices have failed: with failmode=wait whatever is asked of it waits for ever."""
    return KopiatomicError(
        f"the pool {printable(pool)} is suspended: its devices do not answer",
        kind="pool-suspended",
        hint=f"See 'zpool status {pool}'; when the devices are back, 'zpool clear {pool}'.",
    )


def _no_pools() -> KopiatomicError:
    return KopiatomicError(
        "there are no ZFS pools",
        kind="no-pools",
        hint="'zpool import' shows the pools that could be imported.",
    )


def _zfs_failure(result: process.Finished) -> KopiatomicError:
    text = result.errors
    if f"{libzfs_core.DEVICE} and" in text and "are required" in text:
        return libzfs_core.device_error(FileNotFoundError())
    if "modules" in text and "load" in text:
        return KopiatomicError("the ZFS kernel module is not loaded", kind="zfs-module", hint="modprobe zfs")
    if "ermission denied" in text:
        return KopiatomicError(
            "no permission to use /dev/zfs",
            kind="zfs-permission",
            hint="Run as root; in a container or a hardened unit allow the device.",
        )
    if "no datasets available" in text or "no pools available" in text:
        return _no_pools()
    return KopiatomicError(
        f"'{' '.join(result.argv[:2])}' failed: {text or f'exit status {result.status}'}", kind="zfs-list"
    )


def _zfs_pools(names: set[str] | None) -> dict[str, ZfsPool]:
    """The pools of these names; all for None."""
    if names is not None and not names:
        return {}
    result = _zfs(["zpool", "list", "-Hp", "-o", "name,health,readonly", "--", *sorted(names or ())])
    if result.status != 0:
        raise _zfs_failure(result)
    pools = {}
    for line in result.stdout.decode("utf-8", "surrogateescape").splitlines():
        name, health, read_only = line.split("\t")
        pools[name] = ZfsPool(name, health, read_only == "on")
    return pools


def _unmounted(datasets: Iterable[ZfsDataset], mounted: set[str]) -> dict[str, ZfsDataset]:
    """Those that are not mounted although they might be, with their ``mountpoint`` property.

    It may hold newlines, which ``zfs list`` prints raw: where the count of lines is off, each is asked for alone.
    """
    asked = [d for d in datasets if d.kind == "filesystem" and d.canmount == "on" and d.name not in mounted]
    if not asked:
        return {}
    argv = ["zfs", "list", "-H", "-o", "mountpoint", "--"]
    values = _zfs([*argv, *(d.name for d in asked)]).stdout.decode("utf-8", "surrogateescape").splitlines()
    if len(values) != len(asked):
        values = [_zfs([*argv, d.name]).stdout.decode("utf-8", "surrogateescape") for d in asked]
    return {d.name: replace(d, mountpoint=value) for d, value in zip(asked, values, strict=True)}


def _btrfs_subvolumes(
    seen: dict[str, mountinfo.Mount], named: Iterable[str], *, everything: bool
) -> Iterator[BtrfsSubvolume]:
    """The subvolumes at the named paths and, for ``-a``, at all mount points; then all that are nested in them."""
    paths = list(named)
    if everything:
        paths += [m.point for m in seen.values() if m.fstype == "btrfs"]
    known: set[str] = set()
    for path in paths:
        mount = mountinfo.holder(path, seen)
        if mount.fstype == "btrfs" and path not in known:
            for subvolume in _with_nested(path, mount.source):
                if subvolume.path not in known:
                    known.add(subvolume.path)
                    yield subvolume


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
