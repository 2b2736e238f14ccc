"""Resolves named paths as the kernel would, following links once and step by step.

Only links that root alone can exchange are followed. What may not answer is not entered.
"""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Mapping, Sequence

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError, advice_of, pool_suspended, unforeseen
from kopiatomic.model.fstypes import may_hang
from kopiatomic.model.mounts import Mount, holder
from kopiatomic.planning import spelling
from kopiatomic.planning.answering import suspended_pool
from kopiatomic.presence import Meaning
from kopiatomic.system import host, safety
from kopiatomic.text import printable


def resolve(name: str, seen: dict[str, Mount]) -> str:
    """Follow a path's links as the kernel would, entering nothing that may not answer, and return it in its own spelling.

    Raises KopiatomicError.
    """
    spellings = spelling.Spellings(seen)
    waiting = _parts(name if os.path.isabs(name) else os.path.join(os.getcwd(), name))
    path = "/"
    links = 0
    while waiting:
        part = waiting.pop()
        if part == "..":
            path = os.path.dirname(path)
            continue
        path = f"{path.rstrip('/')}/{part}"
        _require_answer(name, path, seen, waiting)
        if path in seen:
            # A mount point cannot be a link.
            continue
        try:
            target = host.here().link_target(path)
        except OSError as error:
            if presence.meaning(error) is not Meaning.REPLACED:
                raise _no_such_path(name, error) from None
            # A directory in it is now a link: start again from the beginning.
            target = path
        if target is None:
            try:
                path = spellings.own(path)
            except OSError as error:
                raise _no_such_path(name, error) from None
            _require_answer(name, path, seen, waiting)
            continue
        links += 1
        if links > safety.LINKS:
            raise _no_such_path(name, OSError(errno.ELOOP, os.strerror(errno.ELOOP)))
        if target != path:
            _require_roots(name, path, target)
        path = "/" if target.startswith("/") else os.path.dirname(path)
        waiting += _parts(target)
    _require_held(name, path, seen)
    return path


def _require_held(name: str, path: str, seen: dict[str, Mount]) -> None:
    """Refuse a path that leads into another mount than the table says. Raises KopiatomicError."""
    try:
        mount, _, _ = host.here().identity(path)
        known = holder(path, seen).id
    except OSError as error:
        raise _no_such_path(name, error) from None
    except KeyError:
        # In a chroot whose root is no mount.
        return
    if mount not in {0, known}:
        raise KopiatomicError(
            f"{printable(name)} leads into another mount than the one that the mount table has at {printable(path)}",
            kind="path-changed",
            hint="Something was mounted or unmounted there just now, or a directory above it was renamed: run again.",
        )


def _require_roots(name: str, link: str, target: str) -> None:
    """Refuse a link that others than root can exchange: they would choose what is backed up. Raises KopiatomicError."""
    try:
        why = safety.unsafe(link)
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise KopiatomicError(
            f"{printable(name)} leads through the link {printable(link)} to {printable(target)}, and {why}",
            kind="link-not-safe",
            hint="Name the directory that is meant, by a path without that link.",
        )


def _parts(path: str) -> list[str]:
    """Return the components of a path, the last one first."""
    return [part for part in reversed(path.split("/")) if part not in {"", "."}]


def _no_such_path(name: str, error: OSError) -> KopiatomicError:
    if advice_of(error):
        return unforeseen(error)
    return KopiatomicError(
        f"{printable(name)}: {error.strerror}",
        kind="no-such-path",
        hint="Name a mount point or a directory, or a dataset in ZFS notation (pool/dataset).",
    )


def _require_answer(name: str, path: str, seen: Mapping[str, Mount], waiting: Sequence[str]) -> None:
    """Refuse to look at what may not answer; ``waiting`` are the components after a path, the last one first.

    Raises KopiatomicError.
    """
    mount = seen.get(path)
    if mount is None:
        return
    if mount.fstype == "autofs":
        if waiting and f"{path}/{waiting[-1]}" in seen:
            # It has already mounted that, and is not asked again.
            return
        if waiting or "indirect" not in mount.super_options:
            raise KopiatomicError(
                f"{printable(name)} is not mounted: {printable(path)} is an automount point (autofs), which a look would mount",
                kind="not-automounted",
                hint=f"ls {shlex.quote(printable(name))}/., then run again",
            )
    if may_hang(mount.fstype):
        raise KopiatomicError(
            f"{printable(name)} is on {mount.fstype} ({printable(mount.source)}), which is neither ZFS nor Btrfs",
            kind="unsupported-filesystem",
            hint="Only ZFS datasets and Btrfs subvolumes can be frozen; back this up with kopia directly.",
        )
    pool = suspended_pool(mount)
    if pool:
        raise pool_suspended(pool)
