"""Keeps a program from writing anywhere but where it must, whatever the data say that it reads.

A child of ours takes a mount namespace of its own before it becomes the program. All that is mounted there is read-only, without
devices; the directories that the program needs are writable, each by a mount of its own, so that no link(2) leads out of one
either. Through /proc a path could lead into another process's mounts, which are writable: of that the program has its own part.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cache
from types import MappingProxyType

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.mounts import visible
from kopiatomic.paths import topmost
from kopiatomic.system import host, linux, looking, mountinfo
from kopiatomic.system.descriptors import closing

_FLAGS = MappingProxyType(
    {
        "ro": linux.MS_RDONLY,
        "nosuid": linux.MS_NOSUID,
        "nodev": linux.MS_NODEV,
        "noexec": linux.MS_NOEXEC,
        "nosymfollow": linux.MS_NOSYMFOLLOW,
    }
)
"""What a remount would take from a mount if it did not name it; how times of access are kept stays (mount(2))."""

_DEVICES = ("full", "null", "random", "urandom", "zero")
_LINKS = MappingProxyType(
    {
        "fd": "/proc/self/fd",
        "ptmx": "pts/ptmx",
        "stderr": "/proc/self/fd/2",
        "stdin": "/proc/self/fd/0",
        "stdout": "/proc/self/fd/1",
    }
)
"""What the program has in /dev, beside terminals that are its own (``pts``)."""

_SHOWN = ("cpuinfo", "meminfo", "self", "sys")
"""What it has of /proc, as far as the kernel has it: ``self`` is the program."""


def only(paths: Iterable[str]) -> Callable[[], None]:
    """Return what a child of ours does before it becomes a program (:func:`kopiatomic.system.process.run`).

    The program can write only below ``paths``, absolute ones of directories; one that does not exist is left out. The child
    raises OSError if it cannot have mounts of its own, which ``subprocess`` turns into a SubprocessError here.
    """
    wanted = tuple(paths)
    return lambda: _confine(wanted)


@cache
def refusal() -> str | None:
    """Return why programs cannot be confined here, in words; None if they can be. Tries it in a child."""
    if not host.here().secludes:
        return "this system has no mount namespaces"
    try:
        looking.call(_tried, "/")
    except KopiatomicError as error:
        return error.message
    return None


def _tried() -> None:
    try:
        _confine(())
    except OSError as error:
        raise KopiatomicError(f"mounts of its own are refused: {error.strerror}", kind="not-confined") from None


def _confine(paths: Iterable[str]) -> None:
    """In a child: give this process mounts of its own, in which it can write only below some paths. Raises OSError."""
    linux.take_own_mounts(linux.MS_PRIVATE)
    with ExitStack() as ends:

        def mounts_of(path: str) -> tuple[int, int]:
            """Return an open file or directory, and a mount of it that is attached nowhere."""
            fd = ends.enter_context(closing(os.open(path, os.O_PATH | os.O_CLOEXEC)))
            return fd, ends.enter_context(closing(linux.clone_mount(fd, recursive=True)))

        devices = {name: mounts_of(f"/dev/{name}")[1] for name in _DEVICES}
        _restrict(linux.MS_NODEV)
        writable = [mounts_of(path) for path in paths if presence.exists(path)]
        _restrict(linux.MS_RDONLY)
        for fd, tree in writable:
            linux.attach_mount(tree, fd)
        shown = {name: mounts_of(f"/proc/{name}")[1] for name in _SHOWN if presence.exists(f"/proc/{name}")}
        _furnish_dev(devices)
        _furnish_proc(shown)


def _restrict(flags: int) -> None:
    """Set flags of all mounts. Raises OSError."""
    try:
        linux.restrict_mounts("/", flags)
    except OSError as error:
        # A filter of system calls may not know it either.
        if error.errno not in {errno.ENOSYS, errno.EPERM}:
            raise
        seen = visible(mountinfo.read())
        if "/" not in seen:
            raise
        for mount in seen.values():
            kept = sum(flag for option, flag in _FLAGS.items() if option in mount.options)
            linux.mount("none", mount.point, None, linux.MS_BIND | linux.MS_REMOUNT | kept | flags)


def _furnish_dev(devices: dict[str, int]) -> None:
    """Make a /dev of the devices that every program may use. Raises OSError."""
    flags = linux.MS_NOSUID | linux.MS_NOEXEC
    linux.mount("kopiatomic", "/dev", "tmpfs", flags, "mode=755")
    for name, tree in devices.items():
        _attach_file(tree, f"/dev/{name}")
        # Its owner and mode are everybody's.
        linux.mount("none", f"/dev/{name}", None, linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | flags)
    for name, to in _LINKS.items():
        os.symlink(to, f"/dev/{name}")
    os.mkdir("/dev/pts", 0o755)
    linux.mount("kopiatomic", "/dev/pts", "devpts", flags, "ptmxmode=0666,mode=600")
    linux.mount("none", "/dev", None, linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | flags)


def _furnish_proc(shown: dict[str, int]) -> None:
    """Cover each mount of the processes; what is shown of them comes back in /proc. Raises OSError."""
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    points = (mount.point for mount in visible(mountinfo.read()).values() if mount.fstype == "proc")
    covered = [point for point in topmost(points) if presence.is_directory(point)]
    for point in covered:
        linux.mount("kopiatomic", point, "tmpfs", flags, "mode=755")
    for name, tree in shown.items():
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            os.mkdir(f"/proc/{name}", 0o755)
            with closing(os.open(f"/proc/{name}", os.O_PATH | os.O_CLOEXEC)) as fd:
                linux.attach_mount(tree, fd)
        else:
            _attach_file(tree, f"/proc/{name}")
    for point in covered:
        linux.mount("none", point, None, linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | flags)


def _attach_file(tree: int, path: str) -> None:
    with closing(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)) as fd:
        linux.attach_mount(tree, fd)
