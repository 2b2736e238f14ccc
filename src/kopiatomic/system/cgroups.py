"""Control groups of the kernel's second version (cgroups(7)): where they are, which processes are in one, how one is frozen.

Only /proc and the groups' own filesystem are read here, which wait for nothing (the kernel's admin-guide/cgroup-v2.rst).
"""

from __future__ import annotations

import errno
import os
import re
import select
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.model.mounts import visible
from kopiatomic.paths import below, is_at_or_below
from kopiatomic.system import host, signals
from kopiatomic.text import printable

_FREEZE = "cgroup.freeze"
_EVENTS = "cgroup.events"
_PROCESSES = "cgroup.procs"


@immutable
class Hierarchy:
    """Where the groups are mounted, and which group that mount shows at its top."""

    point: str
    root: str


@immutable
class Group:
    """A control group. ``path`` is as in /proc/PID/cgroup; ``identity`` the inode of its directory, which no later one gets."""

    path: str
    directory: str
    identity: int


@immutable
class Member:
    """A process in a group."""

    pid: int
    name: str


def hierarchy() -> Hierarchy:
    """Return where the groups of version 2 are. Raises KopiatomicError if there are none."""
    for mount in visible(host.here().mounts()).values():
        if mount.fstype == "cgroup2":
            return Hierarchy(mount.point, mount.root)
    raise KopiatomicError(
        "processes cannot be frozen: no control groups of version 2 are mounted here",
        kind="hold-no-freezer",
        hint="Linux has them since 5.2 with systemd.unified_cgroup_hierarchy=1 on the kernel's command line, or: "
        "mount -t cgroup2 none /sys/fs/cgroup/unified",
    )


def belong_to_systemd() -> bool:
    """Whether systemd runs here, and makes all groups (sd_booted(3)). Raises OSError."""
    return presence.is_directory("/run/systemd/system")


def group_at(path: str) -> Group:
    """Return the group with a path as in /proc/PID/cgroup. Raises KopiatomicError."""
    where = hierarchy()
    if path.startswith("/..") or not is_at_or_below(path, where.root):
        raise KopiatomicError(
            f"the control group {printable(path)} is outside of this container",
            kind="hold-elsewhere",
            hint="Hold it where kopiatomic sees it: on the host.",
        )
    directory = f"{where.point}/{below(path, where.root)}".rstrip("/")
    found = presence.status(directory, follow_links=False)
    if found is None:
        raise KopiatomicError(
            f"there is no control group {printable(path)}",
            kind="hold-no-group",
            hint=f"Is it running? 'systemd-cgls' shows them; they are looked for below {where.point}.",
        )
    return Group(path, directory, found.st_ino)


def path_of(pid: int) -> str:
    """Return the path of the group that a process is in. Raises KopiatomicError if the process has ended."""
    try:
        with open(f"/proc/{pid}/cgroup", "rb") as file:
            lines = file.read().split(b"\n")
    except (FileNotFoundError, ProcessLookupError):
        raise KopiatomicError(
            f"process {pid} has ended", kind="hold-no-process", hint="Has it just been stopped or restarted? Try again."
        ) from None
    for line in lines:
        if line.startswith(b"0::"):
            return os.fsdecode(line[3:]).removesuffix(" (deleted)")
    # The kernel has no such line if version 2 is not mounted anywhere.
    hierarchy()
    raise KopiatomicError(
        f"process {pid} is in no control group of version 2",
        kind="hold-no-freezer",
        hint="See /proc/PID/cgroup: the line that begins with 0:: is missing.",
    )


def members(group: Group) -> list[Member]:
    """Return the processes in a group and in those below it. Raises OSError."""
    found: list[Member] = []
    waiting = [group.directory]
    while waiting:
        directory = waiting.pop()
        pids, inside = _listed(directory)
        found += [Member(pid, name) for pid in pids if (name := _name(pid))]
        waiting += inside
    return sorted(found, key=lambda member: member.pid)


def _listed(directory: str) -> tuple[list[int], list[str]]:
    try:
        with open(f"{directory}/{_PROCESSES}", encoding="ascii") as file:
            pids = [int(word) for word in file.read().split()]
        with os.scandir(directory) as entries:
            return pids, [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        # One that has been removed meanwhile; or a group of threads, whose processes are those of the group above.
        if presence.absent(error) or error.errno in {errno.ENODEV, errno.EOPNOTSUPP}:
            return [], []
        raise


def _name(pid: int) -> str:
    """Return a process's name; empty if it has ended."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def forebears(pid: int) -> list[int]:
    """Return a process and those above it that can be seen, nearest first."""
    found = [pid]
    while (parent := _parent(found[-1])) > 0:
        found.append(parent)
    return found


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # proc_pid_stat(5): the name may hold anything.
            return int(file.read().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def user_of(pid: int) -> int | None:
    """Return the user id that a process runs as; None if it has ended. Raises OSError."""
    found = presence.status(f"/proc/{pid}")
    return None if found is None else found.st_uid


def shares_our_numbers(pid: int) -> bool:
    """Whether a process is in our PID namespace; one of a container is not. Raises OSError."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")
    except (FileNotFoundError, ProcessLookupError):
        return False


def has_open(pid: int, path: str) -> bool:
    """Whether a process has the file at a path open, by its name. Raises OSError."""
    return any(target == path for target in _opened(pid))


def _opened(pid: int) -> Iterator[str]:
    for name in presence.names(f"/proc/{pid}/fd"):
        try:
            yield os.readlink(f"/proc/{pid}/fd/{name}")
        except (FileNotFoundError, ProcessLookupError):
            # It was closed meanwhile.
            continue


def remove_unused(directory: str, name: re.Pattern[str]) -> None:
    """Remove the groups directly in a directory that have such a name and no process. Raises OSError."""
    for entry in presence.names(directory):
        match = name.fullmatch(entry)
        # The pattern's first group is the process that made it: one that still lives may be about to use it.
        if match is not None and not presence.exists(f"/proc/{match[1]}"):
            remove(f"{directory}/{entry}")


def remove(directory: str) -> None:
    """Remove the group in a directory, if it is there and has no process. Raises OSError."""
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno != errno.EBUSY and not presence.absent(error):
            raise


class GoneError(Exception):
    """The group has been removed, and had no process left then."""


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise GoneError from None
        raise


class Freezer:
    """Freezes one group. Its files are opened here, so that another group of the same path is never touched.

    Raises OSError; every method also raises GoneError.
    """

    def __init__(self, group: Group) -> None:
        with _told(), ExitStack() as stack:
            self._freeze = os.open(f"{group.directory}/{_FREEZE}", os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, self._freeze)
            self._events = os.open(f"{group.directory}/{_EVENTS}", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, self._events)
            self._files = stack.pop_all()

    def is_frozen(self) -> bool:
        """Whether no process in it runs: frozen here, or by a group above it."""
        with _told():
            return b"frozen 1" in os.pread(self._events, 4096, 0)

    def is_asked(self) -> bool:
        """Whether somebody has asked the kernel to freeze it, whether that is done or not."""
        with _told():
            return os.pread(self._freeze, 16, 0).strip() == b"1"

    def ask(self, *, frozen: bool) -> None:
        """Have the kernel freeze it, or let it run."""
        with _told():
            os.pwrite(self._freeze, b"1" if frozen else b"0", 0)

    def wait(self, deadline: float) -> None:
        """Wait until it is frozen. ``deadline`` is of ``time.monotonic``. Raises TimeoutError, Interrupted."""
        poll = select.poll()
        if (wakeup := signals.fd()) is not None:
            poll.register(wakeup, select.POLLIN)
        # The kernel reports a change of what was read last (cgroup-v2.rst: "cgroup.events").
        poll.register(self._events, select.POLLPRI)
        while not self.is_frozen():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            poll.poll(left * 1000)
            signals.check()

    def close(self) -> None:
        """Close its files. Changes nothing."""
        self._files.close()
