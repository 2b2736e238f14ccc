"""A FreeBSD host, asked by getfsstat(2), sysctl(3), kqueue(2) and procctl(2)."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence

from kopiatomic import presence
from kopiatomic.model.mounts import Mount, User
from kopiatomic.system import freebsd, freebsd_mounts, freebsd_paths, freebsd_processes, libzfs_core
from kopiatomic.system.freebsd import Kernel


class FreeBSDHost:
    """Satisfies :class:`kopiatomic.system.host.Host`."""

    io_classes = False
    holds = False
    secludes = False
    profiles = "/usr/local/etc/kopiatomic"
    zoned = "jailed"
    """zfs-jail(8); ``zoned`` is refused (``zfs_prop_init`` in OpenZFS's ``zcommon/zfs_prop.c``, 2.0 and later)."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def mounts(self) -> list[Mount]:
        """Call getfsstat(2)."""
        return freebsd_mounts.read(self.kernel)

    def room(self, _mounts: int) -> int | None:
        """Return None: no limit but memory is known, and root decides who may make datasets there."""
        return None

    def in_jail(self) -> bool:
        """Read security.jail.jailed."""
        return bool(freebsd.number(self.kernel, "security.jail.jailed"))

    def link_target(self, path: str) -> str | None:
        """Open the path component by component, for lack of an openat2(2)."""
        return freebsd_paths.link_target(path)

    def identity(self, path: str) -> tuple[int, int, int]:
        """Use the device number, which each mount has for itself."""
        status = freebsd_paths.status(path)
        return 0, status.st_dev, status.st_ino

    def open_directory(self, path: str, *, to_list: bool) -> int:  # noqa: ARG002 - it has no O_NOATIME
        """Open the path component by component; each must be readable."""
        return freebsd_paths.open_beneath("/", path.strip("/"))

    def make_directory(self, path: str, mode: int) -> int:
        """Open the path component by component as well."""
        return freebsd_paths.make_beneath("/", path.strip("/"), mode)

    def listed_writers(self, at: int | str, gid: int) -> list[str] | None:  # noqa: ARG002 - docs/freebsd.md
        """Return None: access control lists are not read, the mode must do."""
        return None

    def boot_id(self) -> str:
        """Read ``kern.boot_id``: 16 random bytes (``sysctl_bootid``, sys/kern/kern_mib.c)."""
        try:
            return (freebsd.setting(self.kernel, "kern.boot_id", 16) or b"").hex()
        except OSError as error:
            # The kernel does not have enough randomness yet.
            if error.errno == errno.ENXIO:
                return ""
            raise

    def has_zfs(self) -> bool:
        """Look for the device, which devfs shows as long as the module is loaded."""
        return presence.exists(libzfs_core.DEVICE)

    def pools(self) -> list[str] | None:
        """Return None: it would mean a search through all sysctls."""
        return None

    def pool_state(self, pool: str) -> str | None:
        """Read the pool's sysctl (``spa_state_init``), in whose name dots are escaped (``__kstat_create``, spl_kstat.c)."""
        name = f"kstat.zfs.{pool.replace('.', '%25')}.misc.state"
        try:
            found = freebsd.setting(self.kernel, name, 256)
        except OSError:
            return ""
        return None if found is None else found.rstrip(b"\0").decode("ascii", "replace").strip()

    def transaction_group(self, pool: str) -> int | None:  # noqa: ARG002 - nothing here says it
        """Return None: its history is a sysctl of no fixed size, which has not been tried."""
        return None

    def users(self, sources: Sequence[str], fstype: str) -> Mapping[str, Sequence[User]]:  # noqa: ARG002 - fstat(1) tells
        """Return nothing: without mount namespaces, the mount table shows all that is mounted."""
        return {}

    def watch(self, pid: int) -> int:
        """Return a kqueue(2)."""
        return freebsd_processes.watch(self.kernel, pid)

    def kill(self, pid: int, watch: int) -> None:
        """Use the id, which another process can get only after the end that the queue reports."""
        freebsd_processes.kill(pid, watch)

    def set_io_class(self, text: str) -> None:  # noqa: ARG002 - idprio(1) is of processors
        """Refuse: there are no I/O classes."""
        raise OSError(errno.EOPNOTSUPP, "this system has no I/O classes")

    def adopt_orphans(self, *, adopt: bool) -> bool:
        """Use PROC_REAP_ACQUIRE and PROC_REAP_RELEASE."""
        if adopt:
            return freebsd_processes.adopt_orphans(self.kernel)
        return freebsd_processes.let_orphans_go(self.kernel)

    def end_with_parent(self, signum: int) -> None:
        """Use PROC_PDEATHSIG_CTL."""
        freebsd_processes.die_with_parent(self.kernel, signum)

    def become(self, uid: int, gid: int, groups: Sequence[int]) -> None:
        """Change the ids: root's privileges go with the user id. A set-user-id program can gain them again."""
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)

    def open_again(self, fd: int, flags: int) -> int:
        """Open it by its name in /dev."""
        return os.open(os.ttyname(fd), flags)

    def children(self) -> list[int]:
        """Use PROC_REAP_GETPIDS."""
        return freebsd_processes.children(self.kernel)
