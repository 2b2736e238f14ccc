"""The open descriptors of this process: which there are, and how they are closed."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

_LISTING = "/proc/self/fd"


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Yield a descriptor, and close it at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


def _listed() -> list[int] | None:
    """Return the numbers of the open descriptors, and of one that is closed again; None if the kernel does not list them.

    In a chroot Linux may have no /proc, and FreeBSD has no such listing: where a linprocfs(5) leads to /dev/fd, that has the
    first three only, unless a fdescfs(5) is mounted. So a listing that lacks its own descriptor is none.
    """
    try:
        found = [int(name) for name in os.listdir(_LISTING)]
    except OSError:
        return None
    return found if max(found, default=0) > 2 else None


def _limit() -> int:
    """Return the limit of our descriptors' numbers. On Linux it may be a thousand million."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def keep_from_programs(most: int | None = None) -> None:
    """Keep all but the first three from the programs that this process becomes or starts.

    Where they cannot be listed, those whose numbers are below the limit, and below ``most``.
    """
    found: Iterable[int] | None = _listed()
    if found is None:
        found = range(_limit() if most is None else min(_limit(), most))
    for fd in found:
        if fd > 2:
            try:
                os.set_inheritable(fd, False)
            except OSError:
                # Not open, or the descriptor of the listing itself.
                continue


def close_all() -> None:
    """Close all but the first three."""
    close_all_but(2)


def close_all_but(end: int) -> None:
    """Close all but the first three and this one."""
    found = _listed()
    if found is None:
        # Not every kernel closes a range at once.
        os.closerange(3, end)
        os.closerange(end + 1, _limit())
        return
    for fd in found:
        if fd > 2 and fd != end:
            with suppress(OSError):
                os.close(fd)
