"""Mounts on FreeBSD, which outlive their run: which of the recorded ones are still there, and how they are removed.

A mount counts as ours if its type, point and source are recorded together: each names the run, by the snapshot's name or by the
run's own directory, which only root can enter. It is unmounted by its id, never by force, and never together with another's mount
in it.
"""

from __future__ import annotations

import errno
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from kopiatomic.model.leftovers import Intent, Leftover
from kopiatomic.model.mounts import Mount
from kopiatomic.state import liveness, roots
from kopiatomic.state.liveness import Life
from kopiatomic.state.ownership import Mark, is_run_id
from kopiatomic.system import freebsd_mounting, freebsd_mounts
from kopiatomic.system.freebsd import Kernel
from kopiatomic.text import printable

BUSY_TIMEOUT = 5.0
"""Seconds to wait for what uses a mount: programs that were just killed."""

_OVER_IT = "something is mounted over it"


class MountLeftovers:
    """Satisfies :class:`kopiatomic.filesystems.Leftovers`. ``kernel`` returns the kernel to ask."""

    KIND = "mount"

    def __init__(self, kernel: Callable[[], Kernel], timeout: float = BUSY_TIMEOUT) -> None:
        self._kernel = kernel
        self._timeout = timeout

    def recorded(self, run_id: str, intents: Sequence[Intent], /) -> list[Leftover]:
        """Return those of a dead run's mounts that are still there, the last one first. Raises KopiatomicError."""
        wanted = {(i.place, i.name, i.origin) for i in intents}
        found = [mount for mount in freebsd_mounts.read(self._kernel()) if _key(mount) in wanted]
        return [
            _leftover(run_id, mount, mount.source, "recorded, with what is mounted there") for mount in reversed(found)
        ]

    def unrecorded(
        self, _names: Iterable[str] | None, life: Callable[[Mark], Life], _problems: list[str], /
    ) -> list[Leftover]:
        """Return the mounts in, or of, a dead run's own directory, the last one first. Raises KopiatomicError."""
        left = []
        for mount in reversed(freebsd_mounts.read(self._kernel())):
            run_id = _run_of(mount.point) or _run_of(mount.source)
            # It lies in our directory, so its run's lock is ours too.
            if run_id is not None and life(liveness.mark(run_id)) is Life.DEAD:
                proof = f"of {roots.of_run(run_id)}, that run's own, which only root enters"
                left.append(_leftover(run_id, mount, mount.source, proof))
        return left

    def remove(self, leftovers: Sequence[Leftover], /) -> list[Leftover]:
        """Unmount them. Return those that are left, with the problem. Raises KopiatomicError."""
        problems = clear(self._kernel(), ((o.place, o.name, o.origin) for o in leftovers), self._timeout)
        by_leftover = [(o, problems.get((o.place, o.name, o.origin))) for o in leftovers]
        return [replace(o, problem=problem) for o, problem in by_leftover if problem is not None]


_Key = tuple[str, str, str]
"""Type, point and origin of a mount: several may be on one point."""


def clear(kernel: Kernel, mounts: Iterable[_Key], timeout: float = BUSY_TIMEOUT) -> dict[_Key, str]:
    """Unmount those of these mounts that are still there, the last one first.

    Return why the remaining ones are left. ``timeout`` in seconds. Raises KopiatomicError.
    """
    wanted = set(mounts)
    deadline = time.monotonic() + timeout
    pause = 0.02
    while True:
        problems = _clear_once(kernel, wanted)
        if not problems or time.monotonic() >= deadline:
            return problems
        time.sleep(pause)
        pause = min(1.0, pause * 2)


def _clear_once(kernel: Kernel, wanted: AbstractSet[_Key]) -> dict[_Key, str]:
    tried: dict[_Key, str] = {}
    table = freebsd_mounts.read(kernel)
    for mount in list(reversed(table)):
        if _key(mount) not in wanted:
            continue
        try:
            top = next(other for other in reversed(table) if other.point == mount.point)
            if freebsd_mounts.fsid(mount) is None and top is not mount:
                # By its path the other mount would be unmounted.
                tried[_key(mount)] = _OVER_IT
            else:
                freebsd_mounting.unmount(kernel, mount)
                table.remove(mount)
        except OSError as error:
            tried[_key(mount)] = _why(mount, error)
    still = [key for mount in reversed(freebsd_mounts.read(kernel)) if (key := _key(mount)) in wanted]
    return {key: tried.get(key, "it came back") for key in still}


def _key(mount: Mount) -> _Key:
    return mount.fstype, mount.point, mount.source


def _leftover(run_id: str, mount: Mount, origin: str, proof: str) -> Leftover:
    proof = f"{mount.fstype} of {printable(mount.source)}, {proof}"
    command = shlex.join(["umount", printable(mount.point)])
    return Leftover(run_id, MountLeftovers.KIND, mount.fstype, mount.point, proof, command, origin=origin)


def _run_of(path: str) -> str | None:
    """Return the run whose own directory a path is, or lies in; None for any other path."""
    beginning = roots.of_run("")
    if not path.startswith(beginning):
        return None
    run_id = path[len(beginning) :].partition("/")[0]
    return run_id if is_run_id(run_id) else None


def _why(mount: Mount, error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return f"it is in use (by whom: fstat -f {shlex.quote(printable(mount.point))}), or something is mounted in it"
    return error.strerror or str(error)
