"""The in-place layout: each snapshot over its dataset's real mount point, all else as it is.

If the dataset at ``/`` is frozen as well, the whole tree is assembled in a directory of its own, which becomes the engine's root.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

from kopiatomic import paths, presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.mounts import Mount
from kopiatomic.model.plan import SCRATCH
from kopiatomic.paths import below, is_at_or_below
from kopiatomic.platforms.linux.attributes import attributes_of, give
from kopiatomic.platforms.linux.view import (
    ANY,
    LOOK,
    PATH,
    SCAFFOLD_SOURCE,
    LinuxView,
    Tops,
    joined,
    mount_scaffold,
    opened,
    refused,
    relative,
)
from kopiatomic.platforms.steps import LiveStep, Missing, Obstacle, ScaffoldStep, Step, View
from kopiatomic.state import lists
from kopiatomic.system import linux, mountinfo
from kopiatomic.system.descriptors import closing
from kopiatomic.text import printable

_NODES = ("null", "zero", "full", "random", "urandom", "tty")
_RESOLVER = ("/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager", "/run/nscd", "/run/connman")
"""Where /etc/resolv.conf may lead to, and what the C library asks for names."""


class InPlaceView(LinuxView):
    """The frozen trees at their true paths; ``sources`` are those that are backed up.

    ``live_system``: also /proc, /sys, /dev and /run as they are; without it,
    ``ignore_files`` are in those of ours (``Plan.ignore_files``).
    """

    def __init__(
        self,
        base: str,
        steps: Sequence[Step],
        *,
        sources: Sequence[str],
        live_system: bool,
        ignore_files: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(base, steps)
        self._sources = sources
        self._ignore_files = ignore_files
        self._live_system = live_system
        self._live: dict[str, int] = {}
        self._hidden: dict[str, int] = {}
        """The directories that ours stand for, open, by place."""
        self.new_root = any(step.place == "/" for step in steps)
        """Whether the engine must be given another root, which is :meth:`top`."""

    def top(self) -> str:
        """Return the root of the system, or the assembled one."""
        return f"{self._base}/root" if self.new_root else "/"

    def engine_root(self) -> int | None:
        """Open the assembled root, if there is one."""
        return os.open(self.top(), LOOK | os.O_CLOEXEC) if self.new_root else None

    def seen_from_outside(self, launcher: int) -> str:
        """Return the assembled root, if there is one."""
        return super().seen_from_outside(launcher) + (self.top() if self.new_root else "")

    def place_of(self, source: str) -> str:
        """Return its true path."""
        return source

    def recorded(self, shown: Sequence[str]) -> Sequence[str]:
        """Return those in the sources: what is around them is live, or frozen only so that nobody moves them."""
        return [place for place in shown if any(is_at_or_below(place, source) for source in self._sources)]

    def assemble(self) -> View:
        """Mount everything. Raises KopiatomicError; whatever is mounted ends with the namespace."""
        missing = []
        with ExitStack() as stack:
            # What is to stay in sight is opened before it is covered.
            table = {mount.id: mount for mount in mountinfo.read()}
            for step in self._steps:
                if isinstance(step, LiveStep):
                    live = stack.enter_context(_live(step, table))
                    if live is not None:
                        self._live[step.place] = live
                    elif step.dataset:
                        missing.append(Missing(step.dataset, step.place, "it is not mounted there any more", live=True))
            self._steps = [s for s in self._steps if not isinstance(s, LiveStep) or s.place in self._live]
            self._by_place = {step.place: step for step in self._steps}
            self.mount_base()
            stack.callback(self._let_go)
            base = stack.enter_context(closing(os.open(self._base, LOOK | os.O_CLOEXEC)))
            os.mkdir(SCRATCH, 0o700, dir_fd=base)
            if self.new_root:
                os.mkdir("root", dir_fd=base)
            with Tops(base) as tops:
                for step in self._steps:
                    self._hold_above(step.place)
                    found = self.mount(step, tops)
                    if found is not None:
                        missing.append(found)
                    if step.place == "/" and not self._live_system:
                        self._furnish()
            if self.new_root and self._live_system:
                # Now that the live /run is there. Where it is no mount it is frozen, and has no place for that.
                with suppress(OSError), self.open_top() as top:
                    self._show_scratch(top)
        return self.finished(self._steps, missing)

    def covering(self) -> Sequence[str]:
        """Return all places except those in frozen trees."""
        return [joined(self.top(), step.place) for step in self._steps if not isinstance(step, LiveStep)]

    def live_above(self) -> Collection[str]:
        """Return those in none of our mounts; those in a live mount in a frozen tree come later."""
        directories = {directory for step in self._steps for directory in paths.parents(step.place)}
        return {directory for directory in directories if self._is_outside(directory)}

    def _hold_above(self, place: str) -> None:
        """Keep the host's mounts from covering a live mount, in a frozen tree, that contains a place. Raises KopiatomicError."""
        live = [joined(self.top(), d) for d in paths.parents(place) if self._is_live(d) and not self._is_outside(d)]
        if live:
            try:
                self.anchors.hold(live)
            except OSError as error:
                raise refused(f"{printable(place)} cannot be held where it is", error) from None

    def _is_outside(self, directory: str) -> bool:
        return directory not in self._by_place and self.above(directory) is None

    def place(self, top: int, step: Step) -> int:
        """Open the mount point of a step; make it, like the hidden one, only in our own directories. Raises OSError."""
        holder = self.above(step.place)
        if not isinstance(holder, ScaffoldStep):
            return super().place(top, step)
        hidden = self._hidden.get(holder.place)
        for directory in reversed(paths.parents(step.place)):
            if hidden is not None and (inside := below(directory, holder.place)):
                _make_like(top, directory, hidden, inside)
        return linux.make_beneath(top, relative(step.place))

    def mount_on(self, step: Step, target: str, tops: Tops) -> Obstacle | None:
        """Mount a step. Return why what must be shown does not exist, if so. Raises OSError, KopiatomicError."""
        if isinstance(step, LiveStep):
            linux.mount(f"/proc/self/fd/{self._live[step.place]}", target, None, linux.MS_BIND)
            return None
        if isinstance(step, ScaffoldStep) and self._is_live(os.path.dirname(step.place)):
            self._hidden[step.place] = real = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            mount_scaffold(target)
            with self.open_top() as top, opened(top, step.place) as ours:
                give(ours, attributes_of(real))
            return None
        return super().mount_on(step, target, tops)

    def _is_live(self, directory: str) -> bool:
        """Whether a directory is seen as it is."""
        holder = self._by_place.get(directory) or self.above(directory)
        return holder is None or isinstance(holder, LiveStep)

    def _let_go(self) -> None:
        for fd in self._hidden.values():
            os.close(fd)

    def _furnish(self) -> None:
        """Add to the new root what belongs to the running system and not to its frozen tree. Raises KopiatomicError."""
        with self.open_top() as top:
            try:
                _furnish_dev(top, self._ignore_files)
                _furnish_run(top, self._ignore_files)
                self._show_scratch(top)
            except OSError as error:
                raise KopiatomicError(
                    f"the frozen root cannot be furnished: {error.filename or ''} {error.strerror}",
                    kind="frozen-root",
                    hint="It needs empty directories /dev and /run, as every system has.",
                ) from None

    def _show_scratch(self, top: int) -> None:
        with closing(linux.make_beneath(top, relative(self._base))) as target:
            linux.mount(self._base, f"/proc/self/fd/{target}", None, linux.MS_BIND)


def _make_like(top: int, place: str, hidden: int, inside: str) -> None:
    """Make a directory in one of ours like the one that it stands for, unless it exists. Raises OSError."""
    with closing(linux.open_beneath(top, relative(os.path.dirname(place)), PATH)) as above:
        try:
            os.mkdir(os.path.basename(place), 0o700, dir_fd=above)
        except FileExistsError:
            return
    # Where the real one was moved meanwhile ours stays root's alone.
    with suppress(OSError), closing(linux.open_beneath(hidden, inside, PATH)) as real, opened(top, place) as ours:
        give(ours, attributes_of(real))


@contextmanager
def _live(step: LiveStep, table: Mapping[int, Mount]) -> Iterator[int | None]:
    """Open what is seen as it is; yield None for a mount that is gone. Raises KopiatomicError for a directory."""
    try:
        fd = linux.open_without_links(step.place, ANY if step.fstype else PATH)
    except OSError as error:
        if step.fstype:
            # It was unmounted, or somebody moved a directory above it.
            yield None
            return
        raise KopiatomicError(
            f"{printable(step.dataset)} cannot be opened at {printable(step.place)}: {error.strerror}", kind="live"
        ) from None
    with closing(fd):
        mount = table.get(mountinfo.id_of(fd))
        there = not step.fstype or (mount is not None and (mount.point, mount.source) == (step.place, step.source))
        yield fd if there else None


def _furnish_dev(top: int, ignore_files: Sequence[tuple[str, str]]) -> None:
    """Make a /dev of the few devices that every program may use. Raises OSError."""
    with opened(top, "dev") as dev:
        linux.mount(SCAFFOLD_SOURCE, f"/proc/self/fd/{dev}", "tmpfs", linux.MS_NOSUID | linux.MS_NOEXEC, "mode=0755")
    with opened(top, "dev") as dev:
        for name in _NODES:
            status = os.stat(f"/dev/{name}")
            os.mknod(name, stat.S_IFCHR | 0o666, status.st_rdev, dir_fd=dev)
            os.chmod(name, 0o666, dir_fd=dev)
        _write(ignore_files, dev)


def _furnish_run(top: int, ignore_files: Sequence[tuple[str, str]]) -> None:
    """Make a /run with only what name resolution needs, and the lists of runs. Raises OSError."""
    with opened(top, "run") as run:
        linux.mount(SCAFFOLD_SOURCE, f"/proc/self/fd/{run}", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755")
    with opened(top, "run") as run:
        _write(ignore_files, run)
    for path in (*_RESOLVER, lists.directory()):
        if presence.is_directory(path):
            with closing(linux.make_beneath(top, relative(path))) as target:
                linux.mount(path, f"/proc/self/fd/{target}", None, linux.MS_BIND)
                flags = linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
            with suppress(OSError), opened(top, path) as bound:
                linux.mount("none", f"/proc/self/fd/{bound}", None, flags)


def _write(files: Sequence[tuple[str, str]], directory: int) -> None:
    """Make files with a content in a directory of ours. Raises OSError."""
    for name, content in files:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=directory)
        with closing(fd):
            os.write(fd, content.encode())
