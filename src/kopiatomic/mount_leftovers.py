"""Mounts that a run made on FreeBSD, where they outlive it: which of those on record are there, and how they go.

Taken for ours is a mount whose type, point and source are on record together: each names the run, by the snapshot's name or
by the run's own directory, which only root enters. It is unmounted by its id, never by force, and never with what is mounted
in it by somebody else.
"""

from __future__ import annotations

import errno
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from kopiatomic import liveness, roots
from kopiatomic.liveness import Life
from kopiatomic.model import Intent, Leftover
from kopiatomic.ownership import Mark, is_run_id
from kopiatomic.system import freebsd_mounting, freebsd_mounts
from kopiatomic.system.freebsd import Kernel
from kopiatomic.system.mountinfo import Mount
from kopiatomic.text import printable

BUSY_TIMEOUT = 5.0
"""Seconds to wait for what uses a mount: programs that were killed just now."""

_OVER_IT = "something is mounted over it"


class MountLeftovers:
    """Satisfies :class:`kopiatomic.snapshots.Leftovers`. ``kernel`` gives the kernel to ask."""

    KIND = "mount"

    def __init__(self, kernel: Callable[[], Kernel], timeout: float = BUSY_TIMEOUT) -> None:
        self._kernel = kernel
        self._timeout = timeout

    def recorded(self, run_id: str, intents: Sequence[Intent], /) -> list[Leftover]:
        """Those of a dead run's mounts that are there, the last one first. Raises KopiatomicError."""
        wanted = _wanted((i.place, i.name, i.origin) for i in intents)
        found = [mount for mount in freebsd_mounts.read(self._kernel()) if _is_wanted(mount, wanted)]
        return [
            _leftover(run_id, mount, wanted[_key(mount)], "on record, with what is mounted there")
            for mount in reversed(found)
        ]

    def unrecorded(
        self, _names: Iterable[str] | None, life: Callable[[Mark], Life], _problems: list[str], /
    ) -> list[Leftover]:
        """The mounts in, or of, a directory that is a dead run's own, the last one first. Raises KopiatomicError."""
        left = []
        for mount in reversed(freebsd_mounts.read(self._kernel())):
            run_id = _run_of(mount.point) or _run_of(mount.source)
            # The directory that it lies in is ours, and so is its run's lock.
            if run_id is not None and life(liveness.mark(run_id)) is Life.DEAD:
                proof = f"of {roots.of_run(run_id)}, that run's own, which only root enters"
                left.append(_leftover(run_id, mount, mount.source, proof))
        return left

    def remove(self, leftovers: Sequence[Leftover], /) -> list[Leftover]:
        """Unmount them; returns those that are left, with the problem. Raises KopiatomicError."""
        problems = clear(self._kernel(), ((o.place, o.name, o.origin) for o in leftovers), self._timeout)
        return [replace(o, problem=problems[o.place, o.name]) for o in leftovers if (o.place, o.name) in problems]


def clear(
    kernel: Kernel, mounts: Iterable[tuple[str, str, str]], timeout: float = BUSY_TIMEOUT
) -> dict[tuple[str, str], str]:
    """Unmount those of these mounts (type, point, origin) that are there, the last one first.

    Returns why those are left that are, by type and point. ``timeout`` in seconds. Raises KopiatomicError.
    """
    wanted = _wanted(mounts)
    deadline = time.monotonic() + timeout
    pause = 0.02
    while True:
        problems = _clear_once(kernel, wanted)
        if not problems or time.monotonic() >= deadline:
            return problems
        time.sleep(pause)
        pause = min(1.0, pause * 2)


def _clear_once(kernel: Kernel, wanted: dict[tuple[str, str], str]) -> dict[tuple[str, str], str]:
    tried: dict[tuple[str, str], str] = {}
    table = freebsd_mounts.read(kernel)
    last = {mount.point: mount for mount in table}
    for mount in reversed(table):
        if not _is_wanted(mount, wanted):
            continue
        try:
            if freebsd_mounts.fsid(mount) is None and last[mount.point] is not mount:
                # By its path it would be the other one that goes.
                tried[_key(mount)] = _OVER_IT
            else:
                freebsd_mounting.unmount(kernel, mount)
        except OSError as error:
            tried[_key(mount)] = _why(mount, error)
    still = [_key(mount) for mount in reversed(freebsd_mounts.read(kernel)) if _is_wanted(mount, wanted)]
    return {key: tried.get(key, "it came back") for key in still}


def _wanted(mounts: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str], str]:
    return {(fstype, point): origin for fstype, point, origin in mounts}


def _key(mount: Mount) -> tuple[str, str]:
    return mount.fstype, mount.point


def _is_wanted(mount: Mount, wanted: dict[tuple[str, str], str]) -> bool:
    return wanted.get(_key(mount)) == mount.source


def _leftover(run_id: str, mount: Mount, origin: str, proof: str) -> Leftover:
    proof = f"{mount.fstype} of {printable(mount.source)}, {proof}"
    command = shlex.join(["umount", printable(mount.point)])
    return Leftover(run_id, MountLeftovers.KIND, mount.fstype, mount.point, proof, command, origin=origin)


def _run_of(path: str) -> str | None:
    """The run whose own directory a path is, or lies in; None for any other."""
    beginning = roots.of_run("")
    if not path.startswith(beginning):
        return None
    run_id = path[len(beginning) :].partition("/")[0]
    return run_id if is_run_id(run_id) else None


def _why(mount: Mount, error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return f"it is in use (by whom: fstat -f {shlex.quote(printable(mount.point))}), or something is mounted in it"
    return error.strerror or str(error)
