"""A SHIM that stands in for FreeBSD's kernel on Linux: what it shows is how kopiatomic behaves, never how FreeBSD does.

Its calls are C functions with the prototypes of FreeBSD's manual pages, so that all arguments go through memory as they would
there; structures are read and written by the offsets of FreeBSD's headers, typed here by hand. Mounts are made for real, by
Linux: a nullfs is a bind of one mount, a snapshot the read-only bind of a directory that a test names (or, with real ZFS,
itself), a tmpfs a tmpfs, a devfs the bind of Linux's (or, with a ruleset, a few devices). What Linux does otherwise is refused
here as FreeBSD's sources say: see each function.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import select
import signal
import stat
import struct
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from kopiatomic.model.mounts import Mount, holder, visible
from kopiatomic.system import freebsd_mounting, linux, mountinfo, process
from kopiatomic.system.freebsd import PROTOTYPES, Kernel

MNT_NOWAIT = 2
MNT_BYFSID = 0x08000000
MNT_RDONLY = 0x1
MNT_NOSUID = 0x8
MNT_FLAGS = {"ro": MNT_RDONLY, "noexec": 0x4, "nosuid": MNT_NOSUID}
STATFS_SIZE = 2344

IOVEC = struct.Struct("PN")
REAPER_KILL = struct.Struct("=iIiIi")
REAPER_PIDS = struct.Struct("I60xP")
REAPER_PIDINFO = struct.Struct("=iiI60x")
KEVENT = struct.Struct("NhHIqP32x")

_FLAGS = {"ro": linux.MS_RDONLY, "nosuid": linux.MS_NOSUID, "noexec": linux.MS_NOEXEC}
_MS_PRIVATE = 1 << 18

KSTAT = Path("/proc/spl/kstat/zfs")

JAIL = {
    "security.jail.jailed": 1,
    "security.jail.mount_allowed": 1,
    "security.jail.mount_nullfs_allowed": 1,
    "security.jail.mount_tmpfs_allowed": 1,
    "security.jail.mount_zfs_allowed": 1,
    "security.jail.enforce_statfs": 1,
}
"""The settings of a jail that may make a merged view."""


def record(
    *,
    fstype: str,
    source: str | bytes,
    point: str | bytes,
    fsid: tuple[int, int],
    flags: int = 0,
    version: int = 0x20140518,
) -> bytes:
    """One ``struct statfs`` as a FreeBSD kernel of version 12.0 or later lays it out."""
    data = struct.pack("<IIQ", version, 0, flags)
    data += bytes(8 * 7) + bytes(8 * 4) + bytes(8 * 10)
    data += struct.pack("<IIii", 255, 0, *fsid) + bytes(80)
    data += struct.pack("16s1024s1024s", os.fsencode(fstype), os.fsencode(source), os.fsencode(point))
    assert len(data) == STATFS_SIZE
    return data


_FIRST = 1 << 20
"""Above all ids of Linux's."""


@dataclass(frozen=True)
class _Made:
    number: int
    fstype: str
    source: str
    point: str


def rename_zoned() -> None:
    """Have ``zfs`` know the property ``zoned`` by FreeBSD's name alone (``zfs_prop_init``, zfs_prop.c), for this process."""
    run = process.run
    names = {"jailed": "zoned", "zoned": "jailed"}

    def renamed(argv: Sequence[str], **more: Any) -> process.Finished:
        if argv[0] == "zfs":
            argv = [",".join(names.get(column, column) for column in word.split(",")) for word in argv]
        return run(argv, **more)

    process.run = renamed


class Shim:
    """The stand-in. ``kernel`` is what kopiatomic is handed.

    ``snapshots`` says which directory a snapshot shows; None: they are ZFS's.
    ``calls`` has each call with the words in it. ``jailed`` shows no file
    system ids. ``fail_at`` makes the n-th nmount (from 0) fail with an errno. ``skipped`` are mount points that are left out of
    so many coming looks at the table, as mounts that are just being unmounted. What it knows of its mounts is in the file
    ``state``, if there is one, for the next shim and for other processes to know as well. ``before_nmount`` and
    ``before_unmount`` are called with what is asked for; what they raise is what the call says.
    """

    def __init__(
        self,
        snapshots: Mapping[str, Path] | None = MappingProxyType({}),
        sysctls: Mapping[str, int] | None = None,
        state: Path | None = None,
    ) -> None:
        self.snapshots = None if snapshots is None else dict(snapshots)
        self.sysctls: dict[str, tuple[int, int]] = {name: (value, 4) for name, value in (sysctls or {}).items()}
        self.calls: list[tuple[str, ...]] = []
        self.jailed = False
        self.fail_at: dict[int, int] = {}
        self.skipped: dict[str, int] = {}
        self.before_nmount: Callable[[Mapping[str, str]], None] = lambda _options: None
        self.before_unmount: Callable[[str], None] = lambda _name: None
        self._state = state
        self._made: dict[int, _Made] = {}
        self._pending: _Made | None = None
        """What is being mounted: who is killed right after the call has not said which one it became."""
        functions = {name: _c_function(name, getattr(self, f"_{name}")) for name in PROTOTYPES}
        self.kernel = Kernel(**functions)

    # The table

    def table(self) -> list[Mount]:
        """Linux's mounts in the order in which they were made, ours with the type and source that FreeBSD would show.

        Linux gives an id again as soon as it is free. So ours have a number of their own in its place.
        """
        self._load()
        found = []
        for mount in mountinfo.read():
            made = self._made.get(mount.id, self._pending)
            if made is not None and made.point == mount.point:
                mount = replace(mount, id=made.number, fstype=made.fstype, source=made.source)  # noqa: PLW2901
            elif mount.fstype == "devtmpfs":
                mount = replace(mount, fstype="devfs", source="devfs")  # noqa: PLW2901
            found.append(mount)
        return found

    def made(self) -> list[Mount]:
        """The mounts that were made through this shim and are there."""
        return [mount for mount in self.table() if mount.id >= _FIRST]

    def ours(self) -> list[tuple[str, str, str]]:
        """Their types, sources and points."""
        return [(mount.fstype, mount.source, mount.point) for mount in self.made()]

    def _getfsstat(self, buffer: int | None, size: int, mode: int) -> int:
        """kern_getfsstat: fills what there is room for; ids are zero in a jail; MNT_NOWAIT skips what is being unmounted."""
        assert mode == MNT_NOWAIT, "any other mode waits for dead servers"
        if buffer is None:
            return len(self.table())
        records = []
        for mount in self.table():
            if self.skipped.get(mount.point, 0) > 0:
                self.skipped[mount.point] -= 1
                continue
            major, _, minor = mount.device.partition(":")
            first = os.makedev(int(major), int(minor)) & 0xFFFFFFFF
            fsid = (0, 0) if self.jailed else (ctypes.c_int32(first).value, mount.id)
            flags = sum(flag for name, flag in MNT_FLAGS.items() if name in mount.options)
            flags |= MNT_FLAGS["ro"] if mount.read_only else 0
            records.append(record(fstype=mount.fstype, source=mount.source, point=mount.point, fsid=fsid, flags=flags))
        fitting = records[: size // STATFS_SIZE]
        data = b"".join(fitting)
        ctypes.memmove(buffer, data, len(data))
        return len(fitting)

    # Mounting

    def _nmount(self, vector: int, count: int, flags: int) -> int:
        """vfs_donmount: names and values in turn, each with its zero byte; the kernel's words go to ``errmsg``."""
        assert flags == 0
        pieces = [IOVEC.unpack_from(ctypes.string_at(vector, IOVEC.size * count), IOVEC.size * i) for i in range(count)]
        options: dict[str, str] = {}
        message = None
        for (name_at, name_size), (value_at, value_size) in zip(pieces[::2], pieces[1::2], strict=True):
            name = ctypes.string_at(name_at, name_size)
            assert name.endswith(b"\0")
            if name == b"errmsg\0":
                message = (value_at, value_size)
                continue
            value = ctypes.string_at(value_at, value_size)
            assert value.endswith(b"\0")
            options[name[:-1].decode()] = os.fsdecode(value[:-1])
        self.before_nmount(options)
        number = self.fail_at.get(sum(call[0] == "nmount" for call in self.calls))
        source = options.get("from") or options.get("target", "")
        self.calls.append(("nmount", options["fstype"], source, options["fspath"]))
        if number is not None:
            assert message is not None
            ctypes.memmove(message[0], b"the shim was told to fail\0", 26)
            raise OSError(number, "")
        if len(os.fsencode(options["fspath"])) > 1023:
            raise OSError(errno.ENAMETOOLONG, "")
        self._mount(options, source)
        return 0

    def _mount(self, options: Mapping[str, str], source: str) -> None:
        point, fstype = os.path.realpath(options["fspath"]), options["fstype"]
        self._load()
        number = max((made.number for made in self._made.values()), default=_FIRST) + 1
        made = _Made(number, fstype, source, point)
        if fstype == "zfs" and any(mount.source == source for mount in self.table()):
            # A snapshot is mounted once only (openzfs/zfs#14884).
            raise OSError(errno.EBUSY, "")
        self._pending = made
        self._save()
        try:
            self._mount_on_linux(options, source, point)
            self._made[visible(mountinfo.read())[point].id] = made
        finally:
            self._pending = None
            self._save()

    def _mount_on_linux(self, options: Mapping[str, str], source: str, point: str) -> None:
        fstype = options["fstype"]
        flags = sum(flag for name, flag in _FLAGS.items() if name in options)
        if fstype == "tmpfs":
            linux.mount("tmpfs", point, "tmpfs", flags, f"mode={options['mode']}")
        elif fstype == "devfs":
            _devfs(point, options.get("ruleset"))
        elif fstype in {"fdescfs", "procfs"}:
            linux.mount("proc", point, "proc", 0)
        elif fstype == "zfs":
            assert {"ro", "nosuid"} <= options.keys()
            if self.snapshots is None:
                linux.mount(source, point, "zfs", flags)
            elif source not in self.snapshots:
                raise OSError(errno.ENOENT, "")
            else:
                _bind(str(self.snapshots[source]), point, flags)
        else:
            assert fstype == "nullfs"
            assert "target" in options
            if os.path.samefile(source, point) and self._seen(point)[0].fstype == "nullfs":
                # nullfs_mount: what is shown there already would lock itself.
                raise OSError(errno.EDEADLK, "")
            _bind(source, point, flags)

    def _save(self) -> None:
        if self._state is not None:
            beside = self._state.with_suffix(".new")
            beside.write_bytes(pickle.dumps((self._made, self._pending)))
            beside.rename(self._state)

    def _load(self) -> None:
        if self._state is not None and self._state.exists():
            self._made, self._pending = pickle.loads(self._state.read_bytes())  # noqa: S301

    def _unmount(self, name: bytes, flags: int) -> int:
        """kern_unmount and dounmount: EBUSY while a nullfs shows something of it, or anything uses it."""
        self.before_unmount(os.fsdecode(name))
        self.calls.append(("unmount", os.fsdecode(name)))
        if flags == MNT_BYFSID:
            word, _, rest = name.partition(b":")
            assert word == b"FSID"
            wanted = int(rest.partition(b":")[2])
            found = next((mount for mount in self.table() if mount.id == wanted), None)
            if found is None:
                raise OSError(errno.ENOENT, "")
        else:
            assert flags == 0
            # The last in the table of those with this point.
            at = [mount for mount in self.table() if os.fsencode(mount.point) == name]
            if not at:
                raise OSError(errno.EINVAL, "")
            found = at[-1]
        self._take_away(found, force=False)
        return 0

    def _seen(self, *points: str) -> list[Mount]:
        """The mounts that are seen at, or hold, paths."""
        seen = visible(mountinfo.read())
        table = {mount.id: mount for mount in self.table()}
        found = []
        for point in points:
            linux_id = holder(point, seen).id
            found.append(table[self._made[linux_id].number if linux_id in self._made else linux_id])
        return found

    def _uppers(self, lower: Mount) -> list[Mount]:
        """The nullfs mounts that show something of a mount."""
        found = [mount for mount in self.made() if mount.fstype == "nullfs"]
        below = self._seen(*(mount.source for mount in found))
        return [mount for mount, shown in zip(found, below, strict=True) if shown.id == lower.id]

    def _take_away(self, mount: Mount, *, force: bool) -> None:
        if self._uppers(mount) or self._seen(mount.point)[0].id != mount.id:
            raise OSError(errno.EBUSY, "")
        if force:
            linux.detach(mount.point)
        elif _libc().umount2(os.fsencode(mount.point), 0) != 0:
            raise OSError(ctypes.get_errno(), "")

    def destroy(self, snapshot: str) -> None:
        """``zfs destroy`` by somebody: unmounts by force first; upper mounts stop that unless they are unmounted as well.

        As zfs_unmount_snap and dounmount do, with ``vfs.recursive_forced_unmount``. Raises OSError (EBUSY).
        """
        lower = next(mount for mount in self.made() if mount.source == snapshot)
        if self.sysctls.get("vfs.recursive_forced_unmount", (0, 1))[0]:
            for upper in reversed(self._uppers(lower)):
                self._take_away(upper, force=True)
        self._take_away(lower, force=True)

    # Processes

    def _procctl(self, idtype: int, pid: int, command: int, data: int | None) -> int:
        """PROC_PDEATHSIG_CTL (11), PROC_REAP_ACQUIRE (2), _RELEASE (3), _GETPIDS (5), _KILL (6), on the caller itself only."""
        assert (idtype, pid) == (0, os.getpid())
        self.calls.append(("procctl", str(command)))
        if command == 11:
            assert data is not None
            linux.die_with_parent(ctypes.c_int.from_address(data).value)
        elif command == 2:
            if data is not None:
                raise OSError(errno.EINVAL, "")
            if not linux.adopt_orphans(adopt=True):
                raise OSError(errno.EBUSY, "")
        elif command == 3:
            if data is not None:
                raise OSError(errno.EINVAL, "")
            if not linux.adopt_orphans(adopt=False):
                raise OSError(errno.EINVAL, "")
        elif command == 5:
            assert data is not None
            self._reap_getpids(data)
        else:
            assert command == 6
            assert data is not None
            self._reap_kill(data)
        return 0

    def _reap_kill(self, data: int) -> None:
        """reap_kill as in older releases: one pass over those who live now; ESRCH where there is nobody."""
        signum, flags, _, _, _ = REAPER_KILL.unpack(ctypes.string_at(data, REAPER_KILL.size))
        assert flags == 0
        killed = 0
        for pid in _living_descendants(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, signum)
                killed += 1
        ctypes.memmove(data, REAPER_KILL.pack(signum, flags, 0, killed, -1), REAPER_KILL.size)
        if not killed:
            raise OSError(errno.ESRCH, "")

    def _reap_getpids(self, data: int) -> None:
        """reap_getpids: those that there is room for; the rest of the table stays as it was."""
        count, table = REAPER_PIDS.unpack(ctypes.string_at(data, REAPER_PIDS.size))
        ours = [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
        found = [(pid, child) for child in ours for pid in (child, *_living_descendants(child))]
        for position, (pid, child) in enumerate(found[:count]):
            entry = REAPER_PIDINFO.pack(pid, child, 1 | (2 if pid == child else 0))
            ctypes.memmove(table + position * REAPER_PIDINFO.size, entry, REAPER_PIDINFO.size)

    def _kqueue(self) -> int:
        """kqueue(2): another descriptor that poll(2) takes. A fork inherits this one, which FreeBSD's does not."""
        return int(_libc().epoll_create1(0))

    def _kevent(self, queue: int, changes: int, count: int, events: int | None, room: int, timeout: int | None) -> int:
        """kevent(2) of one process's end (EVFILT_PROC, EV_ADD, NOTE_EXIT), which ended ones that are not reaped have as well."""
        assert (count, events, room, timeout) == (1, None, 0, None)
        pid, *what, data, udata = KEVENT.unpack(ctypes.string_at(changes, KEVENT.size))
        assert (what, data, udata) == ([-5, 1, 0x80000000], 0, 0)
        watched = os.pidfd_open(pid)
        wanted = struct.pack("=IQ", select.EPOLLIN, 0)
        if _libc().epoll_ctl(queue, 1, watched, wanted) != 0:
            raise OSError(ctypes.get_errno(), "")
        return 0

    # Settings

    def _sysctlbyname(self, name: bytes, value: int, size: int, new: int | None, new_size: int) -> int:
        """sysctl(3): as many bytes as the setting has; ENOENT for one that this kernel has not."""
        assert (new, new_size) == (None, 0)
        found = self._setting(name.decode())
        if found is None:
            raise OSError(errno.ENOENT, "")
        room = ctypes.c_size_t.from_address(size)
        assert room.value >= len(found)
        room.value = len(found)
        ctypes.memmove(value, found, len(found))
        return 0

    def _setting(self, name: str) -> bytes | None:
        """One that the test has set, or what Linux says in its own place of the boot and of the pools."""
        if name in self.sysctls:
            number, width = self.sysctls[name]
            return number.to_bytes(width, "little", signed=True)
        if name == "kern.boot_id":
            return bytes.fromhex(linux.boot_id().replace("-", ""))
        beginning, end = "kstat.zfs.", ".misc.state"
        if not (name.startswith(beginning) and name.endswith(end)):
            return None
        pool = name[len(beginning) : -len(end)].replace("%25", ".")
        try:
            return b"\n" + (KSTAT / pool / "state").read_bytes() + b"\0"
        except OSError:
            return None


def _bind(source: str, point: str, flags: int) -> None:
    """A directory of one mount, with flags of its own: what is mounted in it is not shown."""
    linux.mount(source, point, None, linux.MS_BIND)
    _nobody_elses(point)
    linux.mount("none", point, None, linux.MS_BIND | linux.MS_REMOUNT | flags)


def _nobody_elses(point: str) -> None:
    """What is mounted in it shall not appear in what it shows as well: FreeBSD has no propagation."""
    linux.mount("none", point, None, _MS_PRIVATE)


def _devfs(point: str, ruleset: str | None) -> None:
    """devfs_mount: all devices, or those that a ruleset leaves; nothing can be made in it."""
    if ruleset is None:
        linux.mount("/dev", point, None, linux.MS_BIND)
        _nobody_elses(point)
        return
    assert ruleset.isdecimal()
    linux.mount("none", point, "tmpfs", linux.MS_NOSUID, "mode=0755")
    for name in ("null", "zero", "random", "urandom"):
        os.mknod(f"{point}/{name}", stat.S_IFCHR | 0o666, os.stat(f"/dev/{name}").st_rdev)
    linux.mount("none", point, None, linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY)


def mount_nullfs(kernel: Kernel, source: str, point: str) -> None:
    """Have it mounted read-only, as what is frozen is."""
    freebsd_mounting.mount(kernel, "nullfs", source, point, freebsd_mounting.READ_ONLY)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _c_function(name: str, function: Callable[..., int]) -> Any:
    """A C function whose errno is that of the OSError that the Python function raises."""

    def call(*arguments: Any) -> int:
        try:
            return function(*arguments)
        except OSError as error:
            ctypes.set_errno(error.errno or errno.EIO)
            return -1
        except BaseException:
            # ctypes would only print it, and the test go on.
            traceback.print_exc()
            os._exit(70)

    return PROTOTYPES[name](call)


def _living_descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            with suppress(FileNotFoundError):
                found += _living_descendants(int(child))
                if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.append(int(child))
    return found


def isolated(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a process and a mount namespace of its own: what it mounts ends with it."""

    @wraps(test)
    def run(*arguments: Any, **more: Any) -> None:
        told, tells = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(told)
            problem = "it ended by itself"
            try:
                os.setsid()
                linux.die_with_parent(signal.SIGKILL)
                linux.unshare(linux.CLONE_NEWNS)
                linux.mount("none", "/", None, linux.MS_REC | _MS_PRIVATE)
                test(*arguments, **more)
                problem = ""
            except BaseException:
                problem = traceback.format_exc()
            finally:
                os.write(tells, problem.encode()[:60000])
                os._exit(0)
        os.close(tells)
        with os.fdopen(told, "rb") as file:
            problem = file.read().decode()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if problem or status:
            pytest.fail(problem or f"the test's process ended with {status}", pytrace=False)

    return run
