"""What ``zfs`` and ``zpool`` list of datasets and pools, read so that no name or property can be taken for another."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError, pool_suspended
from kopiatomic.facts import Setting, ZfsDataset, ZfsPool
from kopiatomic.snapshots import zfs_get
from kopiatomic.system import host, libzfs_core, process
from kopiatomic.text import printable

LIST_TIMEOUT = 120.0
"""Seconds that one listing may take: a suspended pool or a dead device must not hang a plan."""

_COLUMNS = "name,type,canmount,keystatus,guid"


def run(argv: list[str]) -> process.Finished:
    """Run ``zfs`` or ``zpool``; its texts are read in the C locale. Raises KopiatomicError."""
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


def _lines(finished: process.Finished) -> list[str]:
    # Not splitlines(): a property may hold characters that Python takes for line ends and zfs does not.
    return finished.stdout.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n") if finished.stdout else []


def datasets(
    names: Sequence[str], user_property: str, *, everything: bool, depth: int | None
) -> tuple[dict[str, ZfsDataset], list[str]]:
    """Datasets by name, without their mount points; and the names of those that have the user property in any way.

    ``everything``: all there are; else those named and what lies below them, ``depth`` levels (None: all). Raises
    KopiatomicError.
    """
    # The property may hold tabs and newlines, and with them what looks like other datasets' lines. The name behind it shows
    # that: a value of several lines has to end in a line that begins with the name, which then is there twice.
    columns = f"{_COLUMNS},{host.here().zoned},{user_property},name"
    argv = ["zfs", "list", "-Hp", "-t", "filesystem,volume", "-o", columns]
    if not everything:
        for name in names:
            _check_kind(name)
        argv += [*(["-r"] if depth is None else ["-d", str(depth)]), "--", *names]
    result = run(argv)
    found: dict[str, ZfsDataset] = {}
    valued: list[str] = []
    for line in _lines(result):
        fields = line.split("\t")
        if len(fields) != 8 or fields[0] != fields[7] or fields[0] in found:
            raise _odd_property(user_property, [fields[0], *reversed(found)])
        name, kind, canmount, keystatus, guid, zoned, value, _ = fields
        found[name] = ZfsDataset(name, kind, canmount, keystatus, zoned == "on", guid)
        if value != "-":
            valued.append(name)
    if not everything:
        require(names, found, result)
    if result.status != 0:
        # What it has listed may be a part.
        raise _failure(result)
    return found, valued


def require(names: Collection[str], found: Collection[str], result: process.Finished | None = None) -> None:
    """Refuse names that are not among those found, with near ones. Raises KopiatomicError."""
    for name in sorted(names):
        _check_kind(name)
        if name not in found:
            raise _missing(name, result or run(["zfs", "list", "-H", "-o", "name", "--", name]))


def _odd_property(user_property: str, names: Iterable[str]) -> KopiatomicError:
    """``names``: whose it may be. Each is asked by itself, because the value can look as if it were another's."""
    for name in names:
        result = run(["zfs", "get", "-H", "-o", "value", user_property, name])
        value = result.stdout.removesuffix(b"\n")
        if result.status == 0 and (b"\t" in value or b"\n" in value):
            return KopiatomicError(
                f"the property {user_property} of {printable(name)} holds a tab or a newline",
                kind="bad-property",
                hint=f"zfs inherit {user_property} {printable(name)}, or set it to on, off or children.",
            )
    return KopiatomicError(
        f"'zfs list' does not list the property {user_property} as it was asked to",
        kind="zfs-list",
        hint="Was it changed just now? Run again; if it happens twice, please report it with the output of 'zfs version'.",
    )


def _check_kind(name: str) -> None:
    """Refuse what can be seen from the name alone not to be a filesystem."""
    for mark, what in (("@", "snapshot"), ("#", "bookmark")):
        if mark in name:
            raise KopiatomicError(
                f"{printable(name)} is a {what}, not a filesystem",
                kind="not-a-filesystem",
                hint=f"Name the dataset itself: {printable(name.partition(mark)[0])}",
            )


def with_mountpoints(asked: Iterable[ZfsDataset]) -> dict[str, ZfsDataset]:
    """Datasets with their ``mountpoint`` property, as far as it says something: not for volumes and mere containers."""
    wanted = [dataset for dataset in asked if dataset.kind == "filesystem" and dataset.canmount != "off"]
    values: dict[str, str] = {}
    for part in process.parts(d.name for d in wanted):
        values |= _mountpoints(part)
    return {d.name: replace(d, mountpoint=values[d.name]) for d in wanted if d.name in values}


def _mountpoints(names: list[str]) -> dict[str, str]:
    """The property of those of the datasets that exist still. Raises KopiatomicError.

    It may hold tabs and newlines, which ``zfs list`` prints raw, and so what looks like other datasets' lines. The name behind it
    shows that, as in :func:`datasets`: whose it is, is found by halves, and one alone is asked for without its name.
    """
    alone = len(names) == 1
    columns = "mountpoint" if alone else "name,mountpoint,name"
    result = run(["zfs", "list", "-H", "-t", "filesystem", "-o", columns, "--", *names])
    found: dict[str, str] = {}
    if alone and result.status == 0:
        found[names[0]] = result.stdout.decode("utf-8", "surrogateescape").removesuffix("\n")
    for line in () if alone else _lines(result):
        fields = line.split("\t")
        if len(fields) != 3 or fields[0] != fields[2] or fields[0] in found:
            middle = len(names) // 2
            return _mountpoints(names[:middle]) | _mountpoints(names[middle:])
        found[fields[0]] = fields[1]
    _require_known(names, found, result)
    return found


def _require_known(names: Iterable[str], found: Collection[str], result: process.Finished) -> None:
    """Refuse an answer that leaves names out that are not certain to be gone. Raises KopiatomicError."""
    if set(names) - set(found) - zfs_get.gone(result):
        raise _failure(result)


def settings(names: Sequence[str], user_property: str) -> dict[str, Setting]:
    """A user property of these datasets, and of those that they have it from. Raises KopiatomicError.

    The values are those that :func:`datasets` has seen: without tabs and newlines.
    """
    found: dict[str, Setting] = {}
    waiting = list(names)
    while waiting:
        argv = ["zfs", "get", "-H", "-t", "filesystem,volume", "-o", "source,name,value", user_property]
        for part in process.parts(waiting):
            result = run([*argv, *part])
            for line in _lines(result):
                fields = line.split("\t")
                if len(fields) != 3:
                    raise _odd_property(user_property, part)
                source, name, value = fields
                found[name] = Setting(value, source)
            _require_known(part, found, result)
        above = {
            s.source.removeprefix("inherited from ") for s in found.values() if s.source.startswith("inherited from ")
        }
        waiting = sorted(above - found.keys())
    return found


def pools(names: set[str] | None) -> dict[str, ZfsPool]:
    """The pools of these names; all for None. Raises KopiatomicError."""
    if names is not None and not names:
        return {}
    result = run(["zpool", "list", "-Hp", "-o", "name,health,readonly", "--", *sorted(names or ())])
    if result.status != 0:
        raise _failure(result)
    found = {}
    for line in _lines(result):
        name, health, read_only = line.split("\t")
        found[name] = ZfsPool(name, health, read_only == "on")
    return found


def _missing(name: str, result: process.Finished) -> KopiatomicError:
    """Why a named dataset is not in the listing, with near names."""
    if f"cannot open '{name}': pool I/O is currently suspended" in result.errors:
        return pool_suspended(name.partition("/")[0])
    if f"cannot open '{name}'" not in result.errors:
        return _failure(result)
    everything = run(["zfs", "list", "-H", "-t", "filesystem", "-o", "name"])
    if everything.status != 0:
        return _failure(everything)
    known = everything.stdout.decode("utf-8", "surrogateescape").splitlines()
    if not known:
        return _no_pools()
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    last = name.rpartition("/")[2]
    near += [k for k in known if k.rpartition("/")[2] == last and k not in near][:3]
    hint = "Did you mean " + " or ".join(near) + "?" if near else "'zfs list' shows the datasets there are."
    if presence.exists(name):
        hint += f" To name the directory, write ./{printable(name)}"
    if "invalid" in result.errors:
        return KopiatomicError(f"{printable(name)} is not a valid dataset name", kind="no-such-dataset", hint=hint)
    return KopiatomicError(f"no such dataset: {printable(name)}", kind="no-such-dataset", hint=hint)


def _no_pools() -> KopiatomicError:
    return KopiatomicError(
        "there are no ZFS pools",
        kind="no-pools",
        hint="'zpool import' shows the pools that could be imported.",
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
    return KopiatomicError(
        f"'{' '.join(result.argv[:2])}' failed: {text or f'exit status {result.status}'}",
        kind="zfs-list",
        hint=f"Type '{' '.join(result.argv[:2])}' by hand; what it needs is missing or broken.",
    )
