"""What ``zfs`` and ``zpool`` list of datasets and pools, read so that no name or property can be mistaken for another."""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError, pool_suspended
from kopiatomic.filesystems.backends import Ground
from kopiatomic.filesystems.zfs import program
from kopiatomic.model.facts import NO_DATASET, PropertySetting, ZfsDataset, ZfsPool
from kopiatomic.model.mounts import Mount, holder
from kopiatomic.model.request import is_path, is_pattern
from kopiatomic.system import fstab, host, libzfs_core, process, zfs_program
from kopiatomic.text import printable

LIST_TIMEOUT = 120.0
"""Seconds allowed for one listing: a suspended pool or a dead device must not hang a plan."""

_LONGEST = 255
"""The maximum length of a file name in bytes on any filesystem (NAME_MAX, limits.h(0p))."""

_COLUMNS = "name,type,canmount,keystatus,guid"


def run(argv: list[str], *, may_fail: bool = False) -> process.Finished:
    """Run ``zfs`` or ``zpool`` for a plan (:func:`zfs_program.run`), and say in words what is wrong. Raises KopiatomicError."""
    try:
        return zfs_program.run(argv, timeout=LIST_TIMEOUT, may_fail=may_fail)
    except zfs_program.FailedError as error:
        raise _failure(error.finished) from None
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


def _lines(finished: process.Finished) -> list[str]:
    # Not splitlines(): a property may contain characters that are line ends for Python and not for zfs.
    return finished.stdout.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n") if finished.stdout else []


def datasets(
    names: Sequence[str], user_property: str, *, everything: bool, depth: int | None
) -> tuple[dict[str, ZfsDataset], dict[str, str]]:
    """Return datasets by name, without mount points, and the user property's values where it is set or inherited.

    ``everything``: all datasets; otherwise those named and what is below them, ``depth`` levels (None: all). Raises
    KopiatomicError.
    """
    scope: list[str] = []
    if not everything:
        for name in names:
            _check_kind(name)
        scope = [*(["-r"] if depth is None else ["-d", str(depth)]), "--", *names]
    result, listed = _listed(scope, [user_property])
    if listed is None:
        # A property contains a tab or a newline, and perhaps with it what looks like another dataset's line.
        result, listed = _listed(scope, [])
        if listed is None:
            raise KopiatomicError(
                "'zfs list' does not list what it was asked to",
                kind="zfs-list",
                hint="Please report it with the output of 'zfs version'.",
            )
        values = _each_value(user_property, list(listed))
    else:
        values = {name: fields[-1] for name, fields in listed.items()}
    found = {name: _dataset(fields) for name, fields in listed.items()}
    if not everything:
        require(names, found, result)
    if result.status != 0:
        # The listing may be incomplete.
        raise _failure(result)
    return found, {name: value for name, value in values.items() if value != "-"}


def _listed(scope: Sequence[str], also: Sequence[str]) -> tuple[process.Finished, dict[str, list[str]] | None]:
    """Return the fields of each dataset, by name; None if the lines are not those that were asked for.

    A property that is asked for ``also`` may contain anything. The name after it reveals that: a value of several lines must end
    in a line that begins with the name, which then occurs twice.
    """
    columns = [*_COLUMNS.split(","), host.here().zoned, *also]
    argv = ["zfs", "list", "-Hp", "-t", "filesystem,volume", "-o", ",".join([*columns, "name"]), *scope]
    result = run(argv, may_fail=True)
    found: dict[str, list[str]] = {}
    for line in _lines(result):
        *fields, name = line.split("\t")
        if len(fields) != len(columns) or fields[0] != name or name in found:
            return result, None
        found[name] = fields
    return result, found


def _dataset(fields: Sequence[str]) -> ZfsDataset:
    name, kind, canmount, keystatus, guid, zoned, *_ = fields
    return ZfsDataset(name, kind, canmount, keystatus, zoned == "on", guid)


def require(names: Collection[str], found: Collection[str], result: process.Finished | None = None) -> None:
    """Refuse names that are not among those found, and suggest similar ones. Raises KopiatomicError."""
    for name in sorted(names):
        _check_kind(name)
        if name not in found:
            raise _missing(name, result or run(["zfs", "list", "-H", "-o", "name", "--", name], may_fail=True))


def _check_kind(name: str) -> None:
    """Refuse a name that by itself shows it is not a filesystem."""
    for mark, what in (("@", "snapshot"), ("#", "bookmark")):
        if mark in name:
            raise KopiatomicError(
                f"{printable(name)} is a {what}, not a filesystem",
                kind="not-a-filesystem",
                hint=f"Name the dataset itself: {printable(name.partition(mark)[0])}",
            )


def with_mountpoints(asked: Iterable[ZfsDataset]) -> dict[str, ZfsDataset]:
    """Return datasets with their ``mountpoint`` property where it is meaningful: not for volumes and mere containers."""
    wanted = [dataset for dataset in asked if dataset.kind == "filesystem" and dataset.canmount != "off"]
    values = _each_value("mountpoint", [d.name for d in wanted])
    return {d.name: replace(d, mountpoint=values[d.name]) for d in wanted if d.name in values}


def _require_known(names: Iterable[str], found: Collection[str], result: process.Finished) -> None:
    """Refuse an answer that omits names which are not certain to be gone. Raises KopiatomicError."""
    if set(names) - set(found) - program.gone(result):
        raise _failure(result)


def _each_value(column: str, names: Sequence[str]) -> dict[str, str]:
    """Return the property of those datasets that still exist. Raises KopiatomicError.

    It may contain tabs and newlines, which ``zfs list`` prints raw, and thus what looks like other datasets' lines. The name
    after it reveals that, as in :func:`_listed`: bisection finds the dataset, which is then queried alone, without its name.
    """
    found: dict[str, str] = {}
    waiting = list(process.parts(names))
    while waiting:
        part = waiting.pop()
        alone = len(part) == 1
        columns = column if alone else f"name,{column},name"
        result = run(["zfs", "list", "-H", "-t", "filesystem,volume", "-o", columns, "--", *part], may_fail=True)
        values: dict[str, str] = {}
        if not alone:
            fields = [line.split("\t") for line in _lines(result)]
            values = {line[0]: line[1] for line in fields if len(line) == 3 and line[0] == line[2]}
            if len(values) < len(fields):
                waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
                continue
        elif result.status == 0:
            values[part[0]] = result.stdout.decode("utf-8", "surrogateescape").removesuffix("\n")
        _require_known(part, values, result)
        found |= values
    return found


def settings(values: Mapping[str, str], user_property: str) -> dict[str, PropertySetting]:
    """Return a user property of datasets with known values, and of those that they inherit it from. Raises KopiatomicError."""
    found: dict[str, PropertySetting] = {}
    waiting = dict(values)
    while waiting:
        argv = ["zfs", "get", "-H", "-t", "filesystem,volume", "-o", "source,name", user_property]
        for part in process.parts(waiting):
            result = run([*argv, *part], may_fail=True)
            for line in _lines(result):
                source, name = line.split("\t")
                found[name] = PropertySetting(waiting[name], source)
            _require_known(part, found, result)
        above = {
            s.source.removeprefix("inherited from ") for s in found.values() if s.source.startswith("inherited from ")
        }
        waiting = _each_value(user_property, sorted(above - found.keys()))
    return found


def pools(names: set[str] | None) -> dict[str, ZfsPool]:
    """Return the pools of these names; all pools for None. Raises KopiatomicError."""
    if names is not None and not names:
        return {}
    result = run(["zpool", "list", "-Hp", "-o", "name,health,readonly", "--", *sorted(names or ())])
    found = {}
    for line in _lines(result):
        name, health, read_only = line.split("\t")
        found[name] = ZfsPool(name, health, read_only == "on")
    return found


def look(ground: Ground) -> dict[str, Any]:
    """Return what a request can reach as fields of Facts: datasets, the property that selects, pools, and what fstab says.

    Raises KopiatomicError.
    """
    found, properties, of_pools = _reached(ground)
    from_fstab, problem = _at_boot(found.values(), ground.mounts)
    return {
        "datasets": found,
        "properties": properties,
        "pools": of_pools,
        "at_boot": from_fstab,
        "fstab_problem": problem,
    }


def _reached(ground: Ground) -> tuple[dict[str, ZfsDataset], dict[str, PropertySetting], dict[str, ZfsPool]]:
    request, names, resolved, mounts = ground.request, ground.names, ground.resolved, ground.mounts
    wanted = {name for name in names if not is_path(name)}
    for path in resolved.values():
        mount = holder(path, ground.seen)
        if mount.fstype == "zfs" and "@" not in mount.source:
            wanted.add(mount.source)
    patterns = [name for name in request.names if is_pattern(name) and name not in resolved]
    everything = request.everything or bool(patterns) or (request.by_property and not request.names)
    needed = any(not is_path(pattern) for pattern in patterns) or request.by_property
    present = needed or any(m.fstype == "zfs" and "@" not in m.source for m in mounts) or _present()
    if not wanted and not (everything and present):
        return {}, {}, {}
    depth = None if request.recursive or request.by_property else 1
    found, valued = datasets(sorted(wanted), request.property, everything=everything, depth=depth)
    if everything:
        require(wanted, found)
    mounted = {m.source for m in mounts if m.fstype == "zfs"}
    found |= with_mountpoints(d for d in found.values() if d.name not in mounted)
    properties = settings(valued, request.property) if valued else {}
    # zfs leaves out what lies in a suspended pool without a word: each pool is looked at.
    of_pools = None if everything else {name.partition("/")[0] for name in found}
    return found, properties, pools(of_pools)


def _at_boot(known: Iterable[ZfsDataset], mounts: Iterable[Mount]) -> tuple[dict[str, str], str]:
    """Return where /etc/fstab has those mounted at boot that are not; or why that cannot be told of
    those that may be there.
    """
    mounted = {m.source for m in mounts if m.fstype == "zfs"}
    waiting = [d for d in known if d.kind == "filesystem" and d.name not in mounted]
    if not waiting:
        return {}, ""
    try:
        table = fstab.at_boot("zfs")
    except OSError as error:
        return {}, (error.strerror or str(error)) if any(d.mountpoint == "legacy" for d in waiting) else ""
    return {d.name: table[d.name] for d in waiting if d.name in table}, ""


def _present() -> bool:
    return shutil.which("zfs") is not None and presence.exists("/dev/zfs")


def _missing(name: str, result: process.Finished) -> KopiatomicError:
    """Return why a named dataset is not in the listing, with similar names. Raises KopiatomicError."""
    if f"cannot open '{name}': pool I/O is currently suspended" in result.errors:
        return pool_suspended(name.partition("/")[0])
    if f"cannot open '{name}'" not in result.errors:
        return _failure(result)
    everything = run(["zfs", "list", "-H", "-t", "filesystem", "-o", "name"])
    known = everything.stdout.decode("utf-8", "surrogateescape").splitlines()
    if not known:
        return _no_pools()
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    last = name.rpartition("/")[2]
    near += [k for k in known if k.rpartition("/")[2] == last and k not in near][:3]
    hint = "Did you mean " + " or ".join(near) + "?" if near else "'zfs list' shows the datasets there are."
    if len(os.fsencode(name)) <= _LONGEST and presence.exists(name):
        hint += f" To name the directory, write ./{printable(name)}"
    if "invalid" in result.errors:
        return KopiatomicError(f"{printable(name)} is not a valid dataset name", kind="no-such-dataset", hint=hint)
    return KopiatomicError(f"no such dataset: {printable(name)}", kind="no-such-dataset", hint=hint)


def _no_pools() -> KopiatomicError:
    return KopiatomicError(
        "there are no ZFS pools",
        kind="no-pools",
        hint=NO_DATASET if host.here().in_jail() else "'zpool import' shows the pools that could be imported.",
    )


def _failure(result: process.Finished) -> KopiatomicError:
    text = result.errors
    if f"{libzfs_core.DEVICE} and" in text and "are required" in text:
        return libzfs_core.device_error(FileNotFoundError())
    if "modules" in text and "load" in text:
        return KopiatomicError(
            "the ZFS kernel module is not loaded", kind="zfs-module", hint="modprobe zfs (FreeBSD: kldload zfs)"
        )
    if "ermission denied" in text:
        return KopiatomicError(
            "no permission to use /dev/zfs",
            kind="zfs-permission",
            hint="Run as root; in a container or a hardened unit allow the device.",
        )
    if "no datasets available" in text or "no pools available" in text:
        return _no_pools()
    return zfs_program.FailedError(result)
