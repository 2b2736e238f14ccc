"""What each kind of system answers in its own way.

:func:`here` is the one place that decides which kind it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Protocol

from kopiatomic.model.mounts import Mount, User


class Host(Protocol):
    """One system. Changes nothing, except by :meth:`make_directory`, :meth:`set_io_class`, :meth:`adopt_orphans` and
    :meth:`end_with_parent`.
    """

    zoned: str
    """ZFS's property that gives a dataset to a jail or a user namespace; its name differs between systems."""

    io_classes: bool
    """Whether a program can have an I/O class."""

    holds: bool
    """Whether writers can be held still while snapshots are made (``hooks/holder.py``)."""

    secludes: bool
    """Whether a process can have mounts of its own, which nobody else sees and which end with it."""

    profiles: str
    """The folder of the profiles, where this system keeps such files (hier(7))."""

    def mounts(self) -> list[Mount]:
        """Return the mount table, in the order in which the mounts were made. Raises OSError, KopiatomicError."""

    def room(self, mounts: int) -> int | None:
        """Return how many more datasets can be mounted in addition to ``mounts`` mounts; None if no limit is known."""

    def in_jail(self) -> bool:
        """Whether this is a FreeBSD jail."""

    def link_target(self, path: str) -> str | None:
        """Return a link's target at an absolute path; None for anything else. Raises OSError; ELOOP if a link leads there."""

    def identity(self, path: str) -> tuple[int, int, int]:
        """Return mount (0: unknown), device and inode at an absolute path that no link may lead through. Raises OSError."""

    def open_directory(self, path: str, *, to_list: bool) -> int:
        """Open the directory at an absolute path that no link may lead through; listing it should not change its times.

        Raises OSError.
        """

    def make_directory(self, path: str, mode: int) -> int:
        """Open the directory at an absolute path that no link may lead through, making what is missing. Raises OSError."""

    def listed_writers(self, at: int | str, gid: int) -> list[str] | None:
        """Return who may write to a file because of an access control list, in words; None if it has no list.

        ``at`` is an open descriptor or a path that is not followed, ``gid`` the file's group. Raises OSError.
        """

    def boot_id(self) -> str:
        """Return an id of this boot of the machine; empty if the kernel has none."""

    def has_zfs(self) -> bool:
        """Whether the kernel has ZFS. Without it there is no pool, whatever is installed."""

    def pools(self) -> list[str] | None:
        """Return the imported pools; None if the kernel does not say. Never waits for a pool."""

    def pool_state(self, pool: str) -> str | None:
        """Return a pool's state in the kernel's words, empty if unknown; None if it is not imported."""

    def transaction_group(self, pool: str) -> int | None:
        """Return the number of a pool's open transaction group; None if the kernel does not say. Waits for nothing."""

    def users(self, sources: Sequence[str], fstype: str) -> Mapping[str, Sequence[User]]:
        """Return the processes with these filesystems mounted in their own namespace, or with open files in them, if visible."""

    def watch(self, pid: int) -> int:
        """Return a descriptor that is readable once a process has ended. Raises ProcessLookupError, OSError."""

    def kill(self, pid: int, watch: int) -> None:
        """Send SIGKILL to a watched process, and to no other. Raises ProcessLookupError if it has ended."""

    def set_io_class(self, text: str) -> None:
        """Give this process an I/O class as ionice(1) has it. Raises OSError: EOPNOTSUPP where there are none."""

    def adopt_orphans(self, *, adopt: bool) -> bool:
        """Choose whether orphaned descendants become our children instead of the first process's; return whether that is new.

        Raises OSError.
        """

    def end_with_parent(self, signum: int) -> None:
        """Have the kernel send this process a signal when its parent ends; none any more if it is 0. Raises OSError."""

    def become(self, uid: int, gid: int, groups: Sequence[int]) -> None:
        """Become a user irrevocably, also for all that this process will execute. Raises OSError."""

    def open_again(self, fd: int, flags: int) -> int:
        """Open the terminal of a descriptor a second time, so that each has its own settings. Raises OSError."""

    def children(self) -> list[int]:
        """Return our children, including adopted ones. While orphans are adopted. Empty if the kernel does not say."""


def system() -> str:
    """Return this system's name, as in ``sys.platform``: linux, freebsd14."""
    return sys.platform


def is_freebsd() -> bool:
    """Whether this system is FreeBSD."""
    return system().startswith("freebsd")


def run_directory() -> str:
    """Return where to keep files that must not survive a boot, without links. FreeBSD has no /run (hier(7))."""
    return os.path.realpath("/var/run") if is_freebsd() else "/run"


@cache
def here() -> Host:
    """Return the host that this process runs on."""
    # Each imports what only its own system has, and without a host ctypes is not needed.
    if is_freebsd():
        from kopiatomic.system import freebsd  # noqa: PLC0415
        from kopiatomic.system.freebsd_host import FreeBSDHost  # noqa: PLC0415

        return FreeBSDHost(freebsd.kernel())
    from kopiatomic.system.linux_host import LinuxHost  # noqa: PLC0415

    return LinuxHost()
