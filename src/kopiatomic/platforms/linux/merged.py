"""The merged layout: every dataset at its own path below one root.

Directories that only hold mount points are made on our own tmpfs, with the attributes of the real ones.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from kopiatomic import paths, presence
from kopiatomic.errors import KopiatomicError, place_needed
from kopiatomic.model.fstypes import may_hang
from kopiatomic.model.mounts import holder, visible
from kopiatomic.model.plan import RECORD, UNMOUNTED, VOLUMES
from kopiatomic.paths import below, is_at_or_below
from kopiatomic.platforms.linux.attributes import Attributes, attributes_of, give
from kopiatomic.platforms.linux.view import (
    LOOK,
    PATH,
    SCAFFOLD_SOURCE,
    LinuxView,
    Tops,
    is_file,
    opened,
    refused,
    relative,
)
from kopiatomic.platforms.steps import RecordStep, ScaffoldStep, SnapshotStep, Step, View
from kopiatomic.system import linux, looking, mountinfo
from kopiatomic.system.descriptors import closing
from kopiatomic.text import printable


class MergedView(LinuxView):
    """The view below the base directory itself."""

    def __init__(self, base: str, steps: Sequence[Step]) -> None:
        super().__init__(base, steps)
        self.scaffolding: dict[str, Attributes] = {}
        """The real directories for which ours stand, as they are."""

    def look(self) -> None:
        """Examine the real directories in a child of the keeper's.

        A child of the launcher's that waited in the kernel would hold up the end of its PID namespace.
        """
        # Of what does not answer no attributes are needed.
        with suppress(looking.NoAnswerError):
            self.scaffolding = looking.call(lambda: _scaffolding(self._steps), mountinfo.SELF)

    def top(self) -> str:
        """Return our tmpfs, or what is mounted on it: the snapshot of the dataset at ``/``."""
        return self._base

    def place_of(self, source: str) -> str:
        """Return its path below the top: the only source is the top itself."""
        return f"/{below(source, self._base)}"

    def recorded(self, shown: Sequence[str]) -> Sequence[str]:
        """Return all, with our own directories above them."""
        return shown if "/" in shown else ["/", *shown]

    def assemble(self) -> View:
        """Mount everything. Raises KopiatomicError; whatever is mounted ends with the namespace."""
        self.mount_base()
        records = any(isinstance(step, RecordStep) for step in self._steps)
        with self.open_top() as base:
            with Tops(base) as tops:
                steps = [piece for step in self._steps for piece in _pieces(step, tops, records=records)]
                missing = [found for step in steps if (found := self.mount(step, tops))]
                snapshots = [step for step in self._steps if isinstance(step, SnapshotStep)]
                status = next((_dress(base, step, tops) for step in snapshots if step.open_top), None)
                # Where a part of a snapshot is shown, the directories above it are in that snapshot: those are frozen.
                for step in snapshots:
                    self.scaffolding |= _above_part(step, tops)
            if status is not None:
                _copy_status(base, ".", status)
        with self.open_top() as root:
            _copy_attributes(root, self.scaffolding)
        return self.finished(steps, missing)

    def place(self, top: int, step: Step) -> int:
        """Open the mount point of a step, making it if it lies on our own tmpfs. Raises OSError."""
        # In a frozen tree this fails with EROFS: only our scaffolding can be written.
        return linux.make_beneath(top, relative(step.place), file=is_file(step))


def _scaffolding(steps: Sequence[Step]) -> dict[str, Attributes]:
    """Return the directories that only hold mount points, with the attributes of the real ones; the top's are those of ``/``."""
    places = {s.place for s in steps if not isinstance(s, ScaffoldStep)}
    seen = visible(mountinfo.read())
    found: dict[str, Attributes] = {}
    for place in places:
        for directory in paths.parents(place):
            # A server that does not answer is not waited for, and keeps the attributes that its directory is made with.
            if directory in found or directory in places or may_hang(holder(directory, seen).fstype):
                continue
            try:
                with closing(linux.open_without_links(directory, PATH)) as fd:
                    found[directory] = attributes_of(fd)
            except OSError:
                # Gone or unreadable: likewise.
                continue
    return found


def _above_part(step: SnapshotStep, tops: Tops) -> dict[str, Attributes]:
    """Return the directories between the top of a step's snapshot and the part that it shows, as they are frozen.

    Empty if the part is shown at a path of another form, or does not exist. Raises KopiatomicError.
    """
    if not step.part or not step.place.endswith(f"/{step.part}"):
        return {}
    found = {}
    mountpoint = step.place.removesuffix(f"/{step.part}") or "/"
    above = [place for place in paths.parents(step.place) if is_at_or_below(place, mountpoint)]
    try:
        with tops.of(step) as top:
            for place in above:
                with closing(linux.open_beneath(top, below(place, mountpoint) or ".", PATH)) as fd:
                    found[place] = attributes_of(fd)
    except OSError as error:
        if not presence.absent(error):
            raise refused(f"the directories above {printable(step.place)} cannot be looked at", error) from None
    return found


def _copy_attributes(root: int, scaffolding: dict[str, Attributes]) -> None:
    """Give our directories the mode, owner and times of the real ones; times last, since making entries changes them."""
    ours = {m.device for m in mountinfo.read() if (m.fstype, m.source) == ("tmpfs", SCAFFOLD_SOURCE)}
    for times_too in (False, True):
        for directory, attributes in scaffolding.items():
            try:
                fd = linux.open_beneath(root, relative(directory), LOOK)
            except OSError:
                # Below a dataset that was left out.
                continue
            try:
                device = os.fstat(fd).st_dev
                if f"{os.major(device)}:{os.minor(device)}" not in ours:
                    # Inside a frozen tree, which has its own attributes.
                    continue
                if times_too:
                    os.utime(fd, ns=(attributes.status.st_atime_ns, attributes.status.st_mtime_ns))
                else:
                    give(fd, attributes)
            finally:
                os.close(fd)


# The frozen top directory as one of ours, so that there is room in it for more


def _pieces(step: Step, tops: Tops, *, records: bool) -> Iterator[Step]:
    """Yield a step as it is; for one whose top must be opened, yield each entry of its top directory separately.

    Links are not mounts: :func:`_dress` makes them. Raises KopiatomicError.
    """
    if not isinstance(step, SnapshotStep) or not step.open_top:
        yield step
        return
    with tops.of(step) as path, opened(path, ".") as top, os.scandir(top) as entries:
        for entry in entries:
            place = f"/{entry.name}"
            if place == RECORD and records:
                _require_ours(step, entry)
                continue
            if place in {UNMOUNTED, VOLUMES}:
                raise place_needed(f"{printable(place)} exists in {printable(step.dataset)}", place)
            if not entry.is_symlink():
                file = not entry.is_dir(follow_symlinks=False)
                yield replace(step, place=place, part=entry.name, file=file, open_top=False)


def _require_ours(step: SnapshotStep, entry: os.DirEntry[str]) -> None:
    """Refuse what is where the metadata record must be, but for what runs themselves have in the top of a filesystem.

    Raises KopiatomicError.
    """
    status = entry.stat(follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or stat.S_IMODE(status.st_mode) != 0o700:
        raise KopiatomicError(
            f"{RECORD} exists in {printable(step.dataset)}, where the metadata record has its place",
            kind="same-place",
            hint=f"Rename {RECORD}, or leave the record out: --no-metadata",
        )


def _dress(root: int, step: SnapshotStep, tops: Tops) -> os.stat_result:
    """Give our top directory the links and extended attributes of the frozen one. Return the frozen one's status.

    Raises KopiatomicError.
    """
    try:
        with tops.of(step) as path, opened(path, ".") as top:
            with os.scandir(top) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        os.symlink(os.readlink(entry.name, dir_fd=top), entry.name, dir_fd=root)
                        _copy_status(root, entry.name, entry.stat(follow_symlinks=False))
            for name in os.listxattr(top):
                os.setxattr(root, name, os.getxattr(top, name))
            return os.fstat(top)
    except OSError as error:
        raise KopiatomicError(
            f"the top directory of the frozen tree cannot be shown as it is: {error.strerror}",
            kind="place",
            hint="Back up what is below /.unmounted or /.volumes with a command of its own and --name.",
        ) from None


def _copy_status(directory: int, name: str, status: os.stat_result) -> None:
    """Copy owner, mode and times; a link has no mode."""
    os.chown(name, status.st_uid, status.st_gid, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=directory)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=directory, follow_symlinks=False)
