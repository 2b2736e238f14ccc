"""Linux: the launcher is the first process of a PID namespace, and alone in a mount namespace: all ends with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence

from kopiatomic.filesystems import KINDS
from kopiatomic.filesystems.backends import Leftovers
from kopiatomic.model.mounts import Mount, visible
from kopiatomic.model.plan import Layout, Plan
from kopiatomic.platforms.linux import view as linux_view
from kopiatomic.platforms.linux.in_place import InPlaceView
from kopiatomic.platforms.linux.merged import MergedView
from kopiatomic.platforms.platform import Record
from kopiatomic.platforms.steps import Step
from kopiatomic.system import linux, mountinfo


class LinuxPlatform:
    """Satisfies :class:`kopiatomic.platforms.Platform`."""

    outlives = False

    @property
    def filesystems(self) -> Sequence[str]:
        """All kinds: how each is mounted it says itself."""
        return tuple(KINDS)

    def leftovers(self) -> Mapping[str, Leftovers]:
        """None: mounts end with their namespace."""
        return {}

    def check(self, _plan: Plan) -> list[str]:
        """What it cannot do is told by the kernel, when it is asked to."""
        return []

    def directories(self, root: str, _run_id: str) -> Sequence[str]:
        """All is mounted on the mount root, or on what is mounted there."""
        return (root,)

    def view(self, plan: Plan, steps: Sequence[Step], _run_id: str, _record: Record) -> linux_view.LinuxView:
        """In either layout."""
        if plan.layout is Layout.IN_PLACE:
            return InPlaceView(plan.root, steps, live_system=plan.live_system)
        return MergedView(plan.root, steps)

    def adopt(self) -> None:
        """Orphans are the launcher's, with which they end."""

    def fork(self) -> int:
        """The child is the first process of a new PID namespace."""
        try:
            return linux.fork_into_pid_namespace()
        except OSError as error:
            raise linux_view.refused("a PID namespace cannot be made", error) from None

    def enter(self) -> HostMounts:
        """Into a mount namespace of our own."""
        linux.die_with_parent(signal.SIGKILL)
        outside = HostMounts()
        linux_view.enter()
        return outside

    def tie(self) -> None:
        """It ends with its PID namespace."""

    def kill_others(self) -> None:
        """All in the PID namespace, of which we are the first."""
        os.kill(-1, signal.SIGKILL)

    def end_others(self) -> int:
        """So that nothing can change or use the view any more."""
        strays = 0
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                # It had ended before.
                continue
            self.kill_others()
            while True:
                os.waitpid(-1, 0)
                strays += 1
        except (ChildProcessError, ProcessLookupError):
            return strays

    def end_orphans(self) -> None:
        """The kernel has ended them with the launcher."""


class HostMounts:
    """Follows the host's unmounts where its propagation is private, so that our copies of its mounts pin nothing.

    A mountinfo file stays with the namespace that it was opened in, and poll(2) tells when that table changes.
    """

    def __init__(self) -> None:
        self._fd = os.open(mountinfo.SELF, os.O_RDONLY | os.O_CLOEXEC)
        self._before = self._read()

    def fileno(self) -> int:
        """The descriptor of that file."""
        return self._fd

    def _read(self) -> list[Mount]:
        os.lseek(self._fd, 0, os.SEEK_SET)
        data = bytearray()
        while chunk := os.read(self._fd, 1 << 16):
            data += chunk
        return mountinfo.parse(bytes(data))

    def follow(self) -> None:
        """Detach our copies of the mounts that the host has unmounted since."""
        now = self._read()
        stay = {_key(m) for m in now}
        gone = {_key(m) for m in self._before} - stay
        self._before = now
        if not gone:
            return
        ours = visible(mountinfo.read())
        for point, mount in sorted(ours.items(), reverse=True):
            if _key(mount) in gone:
                try:
                    linux.detach(point)
                except OSError:
                    # Propagation has taken it away already.
                    continue


def _key(mount: Mount) -> tuple[str, str, str]:
    return mount.point, mount.device, mount.root
