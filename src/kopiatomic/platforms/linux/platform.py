"""Linux: the launcher is the first process of a PID namespace, and alone in a mount namespace: all ends with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence

from kopiatomic.filesystems import KINDS
from kopiatomic.filesystems.backends import Leftovers
from kopiatomic.hooks import leftovers as frozen_groups
from kopiatomic.model.mounts import Mount, visible
from kopiatomic.model.plan import Layout, Plan
from kopiatomic.paths import parents
from kopiatomic.platforms.linux import view as linux_view
from kopiatomic.platforms.linux.in_place import InPlaceView
from kopiatomic.platforms.linux.merged import MergedView
from kopiatomic.platforms.platform import RecordIntents
from kopiatomic.platforms.steps import Step
from kopiatomic.system import linux, mountinfo


class LinuxPlatform:
    """Satisfies :class:`kopiatomic.platforms.Platform`."""

    outlives = False
    records_metadata = True

    @property
    def filesystems(self) -> Sequence[str]:
        """All kinds: how each is mounted it says itself."""
        return tuple(KINDS)

    def leftovers(self) -> Mapping[str, Leftovers]:
        """Return what finds frozen control groups. Mounts end with their namespace."""
        return {"cgroup": frozen_groups}

    def check(self, _plan: Plan) -> list[str]:
        """Return nothing: the kernel reports what it cannot do when asked for it."""
        return []

    def directories(self, root: str, _run_id: str) -> Sequence[str]:
        """Return the mount root: all is mounted on it, or on what is mounted there."""
        return (root,)

    def view(self, plan: Plan, steps: Sequence[Step], _run_id: str, _record: RecordIntents) -> linux_view.LinuxView:
        """Return the view in either layout."""
        if plan.layout is Layout.IN_PLACE:
            return InPlaceView(
                plan.root,
                steps,
                sources=plan.sources,
                live_system=plan.live_system,
                ignore_files=plan.ignore_files,
            )
        return MergedView(plan.root, steps)

    def adopt(self) -> None:
        """Do nothing: orphans belong to the launcher, with which they end."""

    def fork(self) -> int:
        """Fork a child that is the first process of a new PID namespace."""
        try:
            return linux.fork_into_pid_namespace()
        except OSError as error:
            raise linux_view.refused("a PID namespace cannot be made", error) from None

    def enter(self) -> HostMounts:
        """Enter a mount namespace of our own."""
        linux.die_with_parent(signal.SIGKILL)
        host_mounts = HostMounts()
        linux_view.enter(host_mounts.mounts)
        return host_mounts

    def tie(self) -> None:
        """Do nothing: it ends with its PID namespace."""

    def kill_others(self) -> None:
        """Kill all in the PID namespace, whose first process we are."""
        os.kill(-1, signal.SIGKILL)

    def end_others(self) -> int:
        """End them, so that nothing can change or use the view any more."""
        strays = 0
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                # It had already ended.
                continue
            self.kill_others()
            while True:
                os.waitpid(-1, 0)
                strays += 1
        except (ChildProcessError, ProcessLookupError):
            return strays

    def end_orphans(self) -> None:
        """Do nothing: the kernel has ended them with the launcher."""


class HostMounts:
    """Follows the host's unmounts if its propagation is private, so that our copies of its mounts do not keep them busy.

    A mountinfo file stays with the namespace in which it was opened, and poll(2) reports changes of that table.
    """

    def __init__(self) -> None:
        self._fd = os.open(mountinfo.SELF, os.O_RDONLY | os.O_CLOEXEC)
        self.mounts = self._read()
        """What is mounted there, as of the last look."""

    def fileno(self) -> int:
        """Return the descriptor of that file."""
        return self._fd

    def _read(self) -> list[Mount]:
        os.lseek(self._fd, 0, os.SEEK_SET)
        data = bytearray()
        while chunk := os.read(self._fd, 1 << 16):
            data += chunk
        return mountinfo.parse(bytes(data))

    def follow(self) -> None:
        """Detach our copies of the mounts that the host has unmounted since, but not those that contain what we have mounted."""
        now = self._read()
        before = {_key(m) for m in self.mounts}
        gone = before - {_key(m) for m in now}
        self.mounts = now
        if not gone:
            return
        ours = visible(mountinfo.read())
        ways = {directory for point, mount in ours.items() if _key(mount) not in before for directory in parents(point)}
        for point, mount in sorted(ours.items(), reverse=True):
            if _key(mount) in gone and point not in ways:
                try:
                    linux.detach(point)
                except OSError:
                    # Propagation has already unmounted it.
                    continue


def _key(mount: Mount) -> tuple[str, str, str]:
    return mount.point, mount.device, mount.root
