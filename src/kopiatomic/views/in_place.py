"""The in-place layout: each snapshot over its dataset's real mount point, all else as it is.

Where the dataset at ``/`` is frozen as well, the whole tree is put together aside, and the engine's root is that.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from kopiatomic import lists
from kopiatomic.errors import KopiatomicError
from kopiatomic.model import SCRATCH
from kopiatomic.system import linux
from kopiatomic.text import printable
from kopiatomic.views import LIVE, SCAFFOLD, Step, View
from kopiatomic.views.linux import (
    LOOK,
    PATH,
    SCAFFOLD_SOURCE,
    LinuxView,
    Tops,
    closing,
    opened,
    relative,
)

_NODES = ("null", "zero", "full", "random", "urandom", "tty")
_RESOLVER = ("/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager", "/run/nscd", "/run/connman")
"""Where /etc/resolv.conf may lead to, and what the C library asks for names."""

_IGNORE = ".kopiaignore"


class InPlaceView(LinuxView):
    """The frozen trees at their true paths. ``live_system``: /proc, /sys, /dev and /run as they are as well."""

    def __init__(self, base: str, steps: Sequence[Step], *, live_system: bool) -> None:
        super().__init__(base, steps)
        self._live_system = live_system
        self._live: dict[str, int] = {}
        self.new_root = any(step.place == "/" for step in steps)
        """Whether the engine has to be given another root, which is :meth:`top`."""

    def top(self) -> str:
        """The root of the system, or of the one that was put together."""
        return f"{self._base}/root" if self.new_root else "/"

    def engine_root(self) -> int | None:
        """The root that was put together."""
        return os.open(self.top(), LOOK | os.O_CLOEXEC) if self.new_root else None

    def place_of(self, source: str) -> str:
        """Its true path."""
        return source

    def assemble(self) -> View:
        """Mount everything. Raises KopiatomicError; whatever is mounted ends with the namespace."""
        missing = []
        with ExitStack() as stack:
            # What is to stay in sight is opened before it is covered.
            for step in self._steps:
                if step.fstype == LIVE:
                    self._live[step.place] = stack.enter_context(_live(step))
            self.mount_base()
            base = stack.enter_context(closing(os.open(self._base, LOOK | os.O_CLOEXEC)))
            os.mkdir(SCRATCH, 0o700, dir_fd=base)
            if self.new_root:
                os.mkdir("root", dir_fd=base)
            with Tops(base) as tops:
                for step in self._steps:
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

    def place(self, top: int, step: Step) -> int:
        """Open what a step is mounted on; only in a directory of ours it is made. Raises OSError."""
        holder = self.above(step.place)
        if holder is not None and holder.fstype == SCAFFOLD:
            return linux.make_beneath(top, relative(step.place))
        return super().place(top, step)

    def mount_on(self, step: Step, target: str, tops: Tops) -> str | None:
        """Raises OSError, KopiatomicError; returns why what is to be shown does not exist, if so."""
        if step.fstype == LIVE:
            linux.mount(f"/proc/self/fd/{self._live[step.place]}", target, None, linux.MS_BIND)
            return None
        return super().mount_on(step, target, tops)

    def _furnish(self) -> None:
        """Give the new root what is of the running system and no part of its frozen tree. Raises KopiatomicError."""
        with self.open_top() as top:
            try:
                _furnish_dev(top)
                _furnish_run(top)
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


@contextmanager
def _live(step: Step) -> Iterator[int]:
    try:
        fd = linux.open_without_links(step.place, PATH)
    except OSError as error:
        raise KopiatomicError(
            f"{printable(step.dataset)} cannot be opened at {printable(step.place)}: {error.strerror}", kind="live"
        ) from None
    with closing(fd):
        yield fd


def _furnish_dev(top: int) -> None:
    """A /dev of the few devices that every program may use. Raises OSError."""
    with opened(top, "dev") as dev:
        linux.mount(SCAFFOLD_SOURCE, f"/proc/self/fd/{dev}", "tmpfs", linux.MS_NOSUID | linux.MS_NOEXEC, "mode=0755")
    with opened(top, "dev") as dev:
        for name in _NODES:
            status = os.stat(f"/dev/{name}")
            os.mknod(name, stat.S_IFCHR | 0o666, status.st_rdev, dir_fd=dev)
            os.chmod(name, 0o666, dir_fd=dev)
        _ignore_all(dev)


def _furnish_run(top: int) -> None:
    """A /run of nothing but what the resolution of names needs, and the lists of runs. Raises OSError."""
    with opened(top, "run") as run:
        linux.mount(SCAFFOLD_SOURCE, f"/proc/self/fd/{run}", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755")
    with opened(top, "run") as run:
        _ignore_all(run)
    for path in (*_RESOLVER, lists.directory()):
        if os.path.isdir(path):
            with closing(linux.make_beneath(top, relative(path))) as target:
                linux.mount(path, f"/proc/self/fd/{target}", None, linux.MS_BIND)
                flags = linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
            with suppress(OSError), opened(top, path) as bound:
                linux.mount("none", f"/proc/self/fd/{bound}", None, flags)


def _ignore_all(directory: int) -> None:
    """kopia has no exclusions of its own; this it heeds."""
    fd = os.open(_IGNORE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=directory)
    with closing(fd):
        os.write(fd, b"*\n")
