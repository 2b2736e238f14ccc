"""The merged view on FreeBSD: every dataset at its own path below the mount root."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.fstypes import may_hang
from kopiatomic.model.leftovers import Intent
from kopiatomic.model.mounts import Mount, holder, visible
from kopiatomic.paths import below, parents
from kopiatomic.platforms.freebsd.view import FreeBSDView, directories, frozen, joined
from kopiatomic.platforms.steps import ScaffoldStep, SnapshotStep, Step
from kopiatomic.system import freebsd_mounts
from kopiatomic.system.freebsd import Kernel
from kopiatomic.system.freebsd_paths import open_beneath
from kopiatomic.text import printable

_TOP = ScaffoldStep("", "/", named=True)
"""One of our directories is the top of the view if no snapshot is."""


class MergedView(FreeBSDView):
    """``root`` exists, and is empty."""

    def __init__(
        self, root: str, base: str, steps: Sequence[Step], kernel: Kernel, record: Callable[[Sequence[Intent]], None]
    ) -> None:
        if not any(step.place == "/" for step in steps):
            steps = [_TOP, *steps]
        planned = [
            frozen(step, whole, joined(root, step.place))
            for step, whole in zip(steps, directories(base, steps), strict=True)
        ]
        super().__init__(root, base, planned, kernel, record)

    def require(self) -> None:
        """Refuse what is not supported."""
        for step in (p.step for p in self._planned):
            if not (isinstance(step, ScaffoldStep) or _is_plain(step)):
                what = printable(step.dataset or step.place)
                raise KopiatomicError(
                    f"{what} cannot be shown on FreeBSD: neither volumes, nor a dataset at / together with what has no "
                    "place of its own, nor anything but ZFS is supported there",
                    kind="not-on-freebsd",
                    hint="Leave --volumes and --include-unmounted out, or back that up with a command of its own and --name.",
                )

    def finish(self) -> None:
        """Give the directories that only hold mount points the mode, owner and times of the real ones."""
        shown = {p.step.place for p in self._planned if not isinstance(p.step, ScaffoldStep)}
        seen = visible(freebsd_mounts.read(self._kernel))
        for directory in {above for place in shown for above in parents(place)} - shown:
            ours = self.first_mounted([directory, *parents(directory)])
            if ours is None or not isinstance(ours.step, ScaffoldStep):
                # Inside a frozen tree, which has its own attributes.
                continue
            path = f"{ours.whole}/{below(directory, ours.step.place)}".rstrip("/")
            status = _status(directory, seen)
            if status is not None and presence.is_directory(path):
                os.chown(path, status.st_uid, status.st_gid)
                os.chmod(path, stat.S_IMODE(status.st_mode))
                # Nothing is made in it afterwards.
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _is_plain(step: Step) -> bool:
    """Whether a step shows a directory of a ZFS snapshot, with nothing beside it."""
    return isinstance(step, SnapshotStep) and step.kind.name == "zfs" and not step.open_top and not step.file


def _status(directory: str, seen: dict[str, Mount]) -> os.stat_result | None:
    """Return the attributes of a directory of the live system; None if it is gone or a server might not answer."""
    try:
        if may_hang(holder(directory, seen).fstype):
            return None
        fd = open_beneath("/", directory.lstrip("/"))
    except (OSError, KeyError):
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)
