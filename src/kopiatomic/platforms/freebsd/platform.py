"""FreeBSD: no namespaces. Each process removes what the one before it made, and kills what that one left.

Main process, keeper and launcher adopt the orphans below them (procctl(2)), so nothing that the engine started escapes; launcher
and engine are killed when their parent ends. The mounts are visible to the whole system: the launcher removes them at its end,
else the keeper, else the main process, else the next run or ``recover`` by the record.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence

from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems.backends import Leftovers
from kopiatomic.model.plan import UNMOUNTED, Layout, Plan
from kopiatomic.platforms.freebsd import in_place as freebsd_in_place
from kopiatomic.platforms.freebsd import permissions
from kopiatomic.platforms.freebsd.in_place import InPlaceView
from kopiatomic.platforms.freebsd.leftovers import MountLeftovers
from kopiatomic.platforms.freebsd.merged import MergedView
from kopiatomic.platforms.freebsd.view import FreeBSDView
from kopiatomic.platforms.platform import RecordIntents
from kopiatomic.platforms.steps import Step
from kopiatomic.state import roots
from kopiatomic.system import freebsd_processes
from kopiatomic.system.freebsd import Kernel
from kopiatomic.text import printable


class FreeBSDPlatform:
    """Satisfies :class:`kopiatomic.platforms.Platform`."""

    filesystems = ("zfs",)
    outlives = True
    records_metadata = False

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._parent = 0
        """The process that forked the launcher."""

    def leftovers(self) -> Mapping[str, Leftovers]:
        """Return what finds mounts: they are recorded."""
        return {"mount": MountLeftovers(lambda: self._kernel)}

    def check(self, plan: Plan) -> list[str]:
        """Refuse what is not supported, what a jail may lack, and what has no safe place."""
        volume = next((taken.dataset.name for taken in plan.taken if taken.dataset.volume), None)
        if volume is not None:
            raise _not_built(f"{printable(volume)}, a volume,", "Leave --volumes out.")
        places = [place for taken in plan.taken for place in taken.places]
        if "/" in places and any(place.startswith(f"{UNMOUNTED}/") for place in places):
            raise _not_built("a dataset at / together with what has no place of its own", "Leave one of the two out.")
        in_place = plan.layout is Layout.IN_PLACE
        permissions.require(self._kernel, freebsd_in_place.filesystems(plan) if in_place else ())
        return permissions.warnings(self._kernel) + (freebsd_in_place.refuse(plan) if in_place else [])

    def directories(self, root: str, run_id: str) -> Sequence[str]:
        """Return the mount root, and the directory where the snapshots are mounted."""
        return tuple(dict.fromkeys((root, roots.of_run(run_id))))

    def view(self, plan: Plan, steps: Sequence[Step], run_id: str, record: RecordIntents) -> FreeBSDView:
        """Return the view in either layout."""
        if plan.layout is Layout.IN_PLACE:
            return InPlaceView(plan.root, plan, steps, self._kernel, record)
        return MergedView(plan.root, roots.of_run(run_id), steps, self._kernel, record)

    def adopt(self) -> None:
        """Use PROC_REAP_ACQUIRE."""
        freebsd_processes.adopt_orphans(self._kernel)

    def fork(self) -> int:
        """Fork as for any other child."""
        self._parent = os.getpid()
        return os.fork()

    def enter(self) -> None:
        """Stay: the view is visible to the whole system."""
        freebsd_processes.die_with_parent(self._kernel, signal.SIGKILL)
        if os.getppid() != self._parent:
            # It had ended before the kernel was asked to signal that.
            os.kill(os.getpid(), signal.SIGKILL)
        freebsd_processes.adopt_orphans(self._kernel)

    def tie(self) -> None:
        """Use PROC_PDEATHSIG_CTL, which a program keeps unless it gains privileges when executed (procctl(2))."""
        freebsd_processes.die_with_parent(self._kernel, signal.SIGKILL)

    def kill_others(self) -> None:
        """Use PROC_REAP_KILL. Never kill(2) of -1, which here means every process of the system."""
        freebsd_processes.kill_descendants(self._kernel)

    def end_others(self) -> int:
        """Kill them until none is left."""
        return freebsd_processes.end_descendants(self._kernel)

    def end_orphans(self) -> None:
        """Do the same: whichever of the three is left has no other children then."""
        freebsd_processes.end_descendants(self._kernel)


def _not_built(what: str, hint: str) -> KopiatomicError:
    return KopiatomicError(
        f"{what} cannot be frozen on FreeBSD: that is not built yet", kind="not-on-freebsd", hint=hint
    )
