"""What must be asked of the system in another way on each kind of it.

:func:`here` is the one place that decides which kind it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Protocol

from kopiatomic.model.mounts import Mount, User


class Host(Protocol):
    """One system. Makes nothing, but for :meth:`make_directory` and :meth:`adopt_orphans`."""

    zoned: str
    """ZFS's property that gives a dataset to a jail or a user namespace, which has another name on each system."""

    def mounts(self) -> list[Mount]:
        """The mount table, in the order in which the mounts were made. Raises OSError, KopiatomicError."""

    def room(self, mounts: int) -> int | None:
        """How many more datasets can be mounted where there are so many ``mounts``; None where no limit is known."""

    def in_jail(self) -> bool:
        """Whether this is a jail of FreeBSD's."""

    def link_target(self, path: str) -> str | None:
        """What the link at an absolute path holds; None for anything else. Raises OSError; ELOOP where a link leads there."""

    def identity(self, path: str) -> tuple[int, int, int]:
        """Mount (0: not known), device and inode of what is at an absolute path that no link may lead through. Raises OSError."""

    def open_directory(self, path: str, *, to_list: bool) -> int:
        """Open the directory at an absolute path that no link may lead through; listing it leaves its times, if possible.

        Raises OSError.
        """

    def make_directory(self, path: str, mode: int) -> int:
        """Open the directory at an absolute path that no link may lead through, making what is missing. Raises OSError."""

    def listed_writers(self, at: int | str, gid: int) -> list[str] | None:
        """Who may write to a file because of an access control list, in words; None where it has no list.

        ``at`` is an open descriptor or a path that is not followed, ``gid`` the file's group. Raises OSError.
        """

    def boot_id(self) -> str:
        """A name for this boot of the machine; empty where the kernel gives none."""

    def has_zfs(self) -> bool:
        """Whether the kernel has ZFS. Where it has not there is no pool, whatever is installed."""

    def pools(self) -> list[str] | None:
        """The imported pools; None where the kernel does not say. No call here waits for a pool."""

    def pool_state(self, pool: str) -> str | None:
        """The state of a pool as the kernel calls it, empty where that is not said; None where it is not imported."""

    def transaction_group(self, pool: str) -> int | None:
        """The number of a pool's open transaction group; None where the kernel does not say. Waits for nothing."""

    def users(self, sources: Sequence[str], fstype: str) -> Mapping[str, Sequence[User]]:
        """The processes that have filesystems mounted in a namespace of theirs, or something in them open, as far as it shows."""

    def watch(self, pid: int) -> int:
        """A descriptor that is readable as soon as a process has ended. Raises ProcessLookupError, OSError."""

    def kill(self, pid: int, watch: int) -> None:
        """SIGKILL for a process that is watched, and for no other. Raises ProcessLookupError where it has ended."""

    def adopt_orphans(self, *, adopt: bool) -> None:
        """Whether orphaned descendants become our children instead of the first process's. Raises OSError."""

    def descriptors(self) -> Iterable[int]:
        """The numbers that our open descriptors can have."""

    def become(self, uid: int, gid: int, groups: Sequence[int]) -> None:
        """Become a user, for good, also for all that this process will execute. Raises OSError."""

    def open_again(self, fd: int, flags: int) -> int:
        """Open the terminal of a descriptor anew: what is set for this one is not set for that. Raises OSError."""

    def children(self) -> list[int]:
        """Our children, those adopted as well. While orphans are adopted. Empty where the kernel does not say."""


def system() -> str:
    """This system's name, as ``sys.platform`` has it: linux, freebsd14."""
    return sys.platform


def is_freebsd() -> bool:
    """Whether this system is a FreeBSD."""
    return system().startswith("freebsd")


def run_directory() -> str:
    """Where files are kept that a boot does not outlive; without links. FreeBSD has no /run (hier(7))."""
    return os.path.realpath("/var/run") if is_freebsd() else "/run"


@cache
def here() -> Host:
    """The one that this process runs on."""
    # Each imports what only its own system has; and who asks for nothing has no use for ctypes.
    if is_freebsd():
        from kopiatomic.system import freebsd  # noqa: PLC0415
        from kopiatomic.system.freebsd_host import FreeBSDHost  # noqa: PLC0415

        return FreeBSDHost(freebsd.kernel())
    from kopiatomic.system.linux_host import LinuxHost  # noqa: PLC0415

    return LinuxHost()
