"""A Linux host, asked through /proc and /sys, and by openat2(2), pidfd_open(2), prctl(2)."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.mounts import Mount, User
from kopiatomic.system import linux, linux_acl, linux_users, mountinfo

KSTAT = Path("/proc/spl/kstat/zfs")
"""A folder for each imported pool, with its state in a file (OpenZFS: module/zfs/spa_stats.c, spa_state_init)."""

_KEPT_FREE = 10
"""One in so many mounts is kept free."""

_MEMORY = 32 << 10
"""Bytes for each taken dataset: 22 KiB in the kernel for a Btrfs snapshot and its mount, the rest in our processes (seen on 6.18,
x86-64, with 20,000).
"""

_SHARE = 4
"""One part in so many of the memory may be used for that."""


class LinuxHost:
    """Satisfies :class:`kopiatomic.system.host.Host`."""

    zoned = "zoned"
    io_classes = True
    holds = True
    secludes = True
    profiles = "/etc/kopiatomic"

    def mounts(self) -> list[Mount]:
        """Read /proc/self/mountinfo."""
        try:
            return mountinfo.read()
        except FileNotFoundError:
            raise KopiatomicError(
                f"the mounts cannot be seen: {mountinfo.SELF} is not there",
                kind="no-proc",
                hint="Mount /proc, as a chroot needs it too: mount -t proc proc /proc",
            ) from None

    def room(self, mounts: int) -> int | None:
        """Return what fs.mount-max leaves, minus a tenth, or what a share of the memory allows.

        If the view's namespace is full, the host cannot mount anything either: its mounts propagate there.
        """
        most = _number("/proc/sys/fs/mount-max")
        rooms = [] if most is None else [max(0, most - most // _KEPT_FREE - mounts)]
        rooms += [memory // _MEMORY for memory in _memory()]
        return min(rooms, default=None)

    def in_jail(self) -> bool:
        """Return False: Linux has no jails."""
        return False

    def link_target(self, path: str) -> str | None:
        """Open the link itself, so that the one examined is the one read."""
        fd = linux.open_without_links(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.readlink("", dir_fd=fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else None
        finally:
            os.close(fd)

    def identity(self, path: str) -> tuple[int, int, int]:
        """Use the id of the mount that is visible there."""
        fd = linux.open_without_links(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            return mountinfo.id_of(fd), status.st_dev, status.st_ino
        finally:
            os.close(fd)

    def open_directory(self, path: str, *, to_list: bool) -> int:
        """Open it with O_NOATIME, which the owner and root may use; what is not listed need not be readable."""
        return linux.open_without_links(path, (os.O_RDONLY | os.O_NOATIME if to_list else os.O_PATH) | os.O_DIRECTORY)

    def make_directory(self, path: str, mode: int) -> int:
        """Open it with O_PATH."""
        top = os.open("/", os.O_PATH | os.O_CLOEXEC)
        try:
            return linux.make_beneath(top, path.strip("/") or ".", mode=mode)
        finally:
            os.close(top)

    def listed_writers(self, at: int | str, gid: int) -> list[str] | None:
        """Read POSIX lists, and NFSv4 lists if the filesystem shows them."""
        return linux_acl.writers(at, gid)

    def boot_id(self) -> str:
        """Read the id of random(4)."""
        return linux.boot_id()

    def has_zfs(self) -> bool:
        """Whether its module is loaded."""
        return presence.is_directory("/sys/module/zfs")

    def pools(self) -> list[str] | None:
        """Return those with a folder."""
        return sorted(name for name in presence.names(str(KSTAT)) if presence.exists(str(KSTAT / name / "state")))

    def pool_state(self, pool: str) -> str | None:
        """Read its file."""
        try:
            return (KSTAT / pool / "state").read_text().strip()
        except OSError as error:
            # A pool whose state cannot be read may still be imported.
            return None if presence.absent(error) and not presence.exists(str(KSTAT / pool)) else ""

    def transaction_group(self, pool: str) -> int | None:
        """Return the one in state O of its history (``spa_txg_history_show``, module/zfs/spa_stats.c).

        There is no history if the module's ``zfs_txg_history`` is 0.
        """
        try:
            rows = [line.split() for line in (KSTAT / pool / "txgs").read_text().splitlines()]
        except OSError:
            return None
        return next((int(row[0]) for row in rows if row[2:3] == ["O"]), None)

    def users(self, sources: Sequence[str], fstype: str) -> Mapping[str, Sequence[User]]:
        """Search /proc."""
        return linux_users.find(sources, fstype)

    def watch(self, pid: int) -> int:
        """Return a pidfd."""
        return os.pidfd_open(pid)

    def kill(self, _pid: int, watch: int) -> None:
        """Use the pidfd, which never means another process."""
        signal.pidfd_send_signal(watch, signal.SIGKILL)

    def set_io_class(self, text: str) -> None:
        """Call ioprio_set(2)."""
        linux.set_io_class(text)

    def adopt_orphans(self, *, adopt: bool) -> bool:
        """Use PR_SET_CHILD_SUBREAPER."""
        return linux.adopt_orphans(adopt=adopt)

    def end_with_parent(self, signum: int) -> None:
        """Use PR_SET_PDEATHSIG."""
        linux.die_with_parent(signum)

    def become(self, uid: int, gid: int, groups: Sequence[int]) -> None:
        """Drop all capabilities, and root's keys."""
        linux.new_session_keyring()
        linux.drop_bounding_capabilities()
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        linux.drop_capabilities()
        linux.no_new_privileges()

    def open_again(self, fd: int, flags: int) -> int:
        """Open it through /proc, even if it has no name here."""
        return os.open(f"/proc/self/fd/{fd}", flags)

    def children(self) -> list[int]:
        """Return nothing in a kernel built without CONFIG_PROC_CHILDREN."""
        try:
            with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
                return [int(pid) for pid in file.read().split()]
        except FileNotFoundError:
            return []


def _number(path: str) -> int | None:
    """Return the number in a file of the kernel's; None if the file is missing, or holds other text."""
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return None


def _memory() -> Iterator[int]:
    """Yield the bytes that may be used: of all memory, of what is available, of the limit of each control group above us."""
    try:
        lines = [line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines()]
        group = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (FileNotFoundError, StopIteration):
        return
    known = {line[0]: int(line[1]) << 10 for line in lines}
    yield known["MemTotal:"] // _SHARE
    yield known["MemAvailable:"] * 3 // 4
    path = "/sys/fs/cgroup" + group.removeprefix("0::").rstrip("/")
    while path != "/sys/fs/cgroup":
        most = _number(f"{path}/memory.max")
        if most is not None:
            yield most // _SHARE
        path = os.path.dirname(path)
