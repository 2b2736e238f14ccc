"""Gathers the facts that a plan is made of. Only looks, and changes nothing.

What may not answer (network, FUSE and autofs mounts, suspended pools) is known from the mount table and the kernel's own
statistics, and is never touched. Users may exchange directories and links meanwhile: a path is resolved once
(``planning/resolving.py``), and afterwards only opened in its resolved form.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems import KINDS, backends, kind_of
from kopiatomic.filesystems.backends import Backend, Ground
from kopiatomic.model.facts import BtrfsSubvolume, Facts, ZfsDataset
from kopiatomic.model.fstypes import LOCAL
from kopiatomic.model.mounts import Mount, holder, visible
from kopiatomic.model.request import Request, is_path, is_pattern
from kopiatomic.planning import spelling
from kopiatomic.planning.answering import may_wait
from kopiatomic.planning.resolving import resolve
from kopiatomic.system import host, looking, mountinfo, safety
from kopiatomic.text import printable

_LOOP = re.compile(r"/dev/(loop\d+)")


def gather(request: Request) -> Facts:
    """Examine what a request can reach, in a child. Raises KopiatomicError, Interrupted."""
    # Imported here, once, and not in a child that may be one of several.
    known = [backends.of(kind) for kind in KINDS.values()]
    try:
        return looking.call(lambda: _gather(request, known), mountinfo.SELF)
    except looking.NoAnswerError:
        # The mount table now shows what does not answer, and it is not touched.
        return looking.call(lambda: _gather(request, known), mountinfo.SELF)


def _gather(request: Request, known: Sequence[Backend]) -> Facts:
    mounts = spelling.own_table(host.here().mounts())
    seen = visible(mounts)
    resolved = dict(_resolved(request.names, seen))
    names = [name for name in request.names if name in resolved or not is_pattern(name)]
    facts = Facts(mounts=mounts, datasets={}, pools={}, subvolumes=(), resolved=resolved)
    ground = Ground(request, names, resolved, mounts, seen)
    for backend in known:
        facts = replace(facts, **backend.listing(ground))
    patterns = any(is_path(n) and is_pattern(n) for n in request.names if n not in resolved)
    return replace(
        facts,
        directories=_directories(seen, resolved.values(), facts.datasets.values(), unmounted=request.include_unmounted),
        sizes=_sizes(seen),
        loop_files=_loop_files(seen),
        spelled=_spelled(request.exclude, seen),
        movers=_movers(seen, resolved.values(), facts.subvolumes, nested=patterns or bool(request.exclude)),
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
        # One whose content cannot be seen is not known to be empty.
        if empty or presence.moved(error):
            return False
        raise KopiatomicError(
            f"{printable(path)} cannot be looked at: {error.strerror}", kind="path-look", hint="See 'dmesg'."
        ) from None


def _answers(path: str, seen: dict[str, Mount]) -> bool:
    return not may_wait(holder(path, seen))


def _is_dataset(mount: Mount) -> bool:
    kind = kind_of(mount)
    return kind is not None and not kind.is_snapshot(mount)


def _movers(
    seen: dict[str, Mount], named: Iterable[str], subvolumes: Iterable[BtrfsSubvolume], *, nested: bool
) -> dict[str, str]:
    """Return who besides root can move each place that a dataset or a part may have, or what lies above it."""
    paths = [*named, *(m.point for m in seen.values() if _is_dataset(m))]
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
