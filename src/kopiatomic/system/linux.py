"""Linux system calls that Python does not offer (mount, unshare, openat2, fsmount, mount_setattr), through ctypes.

Numbers of the calls made through syscall(2) are the same on every architecture that Linux added after 5.1 (openat2:
437, fsopen: 430, fsconfig: 431, fsmount: 432, mount_setattr: 442).
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from functools import cache
from types import MappingProxyType

from kopiatomic import presence
from kopiatomic.errors import FilteredError
from kopiatomic.system import looking

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOSYMFOLLOW = 256
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

_BOOT_ID = "sys/kernel/random/boot_id"
_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_PR_SET_NO_NEW_PRIVS = 38
_OPEN_TREE_CLONE = 1
_AT_RECURSIVE = 0x8000
_MOVE_MOUNT_EMPTY_PATHS = 0x04 | 0x40
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442
_SYS_KEYCTL = MappingProxyType(
    {"x86_64": 250, "aarch64": 219, "riscv64": 219, "loongarch64": 219, "ppc64le": 271, "s390x": 280}
    if sys.maxsize > 1 << 32
    else {"x86_64": 288, "i686": 288, "i586": 288, "aarch64": 311, "armv8l": 311, "armv7l": 311, "armv6l": 311}
)
"""By machine, for programs of 64 and of 32 bits (arch/*/kernel/syscalls/syscall.tbl)."""

_SYS_IOPRIO_SET = MappingProxyType(
    {"x86_64": 251, "aarch64": 30, "riscv64": 30, "loongarch64": 30, "ppc64le": 273, "s390x": 282}
    if sys.maxsize > 1 << 32
    else {"x86_64": 289, "i686": 289, "i586": 289, "aarch64": 314, "armv8l": 314, "armv7l": 314, "armv6l": 314}
)
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASSES = MappingProxyType({"best-effort": 2, "idle": 3})
_IOPRIO_CLASS_SHIFT = 13
_KEYCTL_JOIN_SESSION_KEYRING = 1
_CAPABILITY_VERSION_3 = 0x20080522
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_STATX_DONT_SYNC = 0x4000
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_CLOEXEC = 1
_MOUNT_ATTR_NOSUID = 0x02
_MOUNT_ATTR_NODEV = 0x04
_MOUNT_ATTR_NOEXEC = 0x08


@cache
def boot_id() -> str:
    """Return an id of this boot of the machine; empty if the kernel has none. Raises OSError.

    Read through our own /proc: systemd-nspawn covers the file with another one in each container (``setup_boot_id`` in
    src/nspawn/nspawn.c), although its processes and snapshots are this machine's. If no /proc can be mounted, we cannot mount
    anything else either.
    """
    try:
        above, path = detached_mount("proc", "proc", {}), _BOOT_ID
    except OSError:
        above, path = os.open("/", os.O_PATH | os.O_CLOEXEC), f"proc/{_BOOT_ID}"
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=above), encoding="ascii") as file:
            return file.read().strip()
    except OSError as error:
        if presence.absent(error):
            return ""
        raise
    finally:
        os.close(above)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _failed(*names: str | bytes) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), *(os.fsdecode(n) for n in names))


def hide_argument(value: str) -> None:
    """Overwrite a text in this process's command line, as shown by ps(1); do nothing if that is impossible."""
    try:
        with open("/proc/self/stat", "rb") as file:
            # proc_pid_stat(5): fields 48 and 49, counted from after the name, which may hold anything.
            fields = file.read().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])
    except (OSError, ValueError, IndexError):
        return
    wanted = os.fsencode(value)
    if not wanted or not 0 < start < end:
        return
    words = ctypes.string_at(start, end - start)
    position = words.find(wanted)
    while position >= 0:
        ctypes.memset(start + position, ord("*"), len(wanted))
        position = words.find(wanted, position + len(wanted))


def unshare(flags: int) -> None:
    """Call unshare(2). Raises OSError."""
    if _libc().unshare(flags) != 0:
        raise _failed()


def take_own_mounts(propagation: int) -> None:
    """Enter a mount namespace of our own, with one propagation (MS_PRIVATE, MS_SLAVE) for all of it. Raises OSError."""
    unshare(CLONE_NEWNS)
    mount("none", "/", None, MS_REC | propagation)


def fork_into_pid_namespace() -> int:
    """Call fork(2) so that the child is the first process of a new PID namespace. Raises OSError.

    Later children of the caller are in its own namespace again: in a namespace whose first process has ended, every fork fails
    with ENOMEM (pid_namespaces(7)).
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    child = -1
    try:
        unshare(CLONE_NEWPID)
        child = os.fork()
    finally:
        if child != 0 and _libc().setns(own, CLONE_NEWPID) != 0:
            raise _failed()
        os.close(own)
    return child


def mount(source: str, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """Call mount(2); the error names source and target. Raises OSError."""
    result = _libc().mount(
        os.fsencode(source),
        os.fsencode(target),
        None if fstype is None else fstype.encode(),
        ctypes.c_ulong(flags),
        None if data is None else os.fsencode(data),
    )
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), source, None, target)


def detach(target: str) -> None:
    """Detach a mount from this namespace's tree at once; the kernel frees it when it is no longer used. Raises OSError."""
    if _libc().umount2(os.fsencode(target), MNT_DETACH) != 0:
        raise _failed(target)


def die_with_parent(signum: int) -> None:
    """Have the kernel send this process a signal when its parent ends; none any more if it is 0. Raises OSError."""
    if _libc().prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0:
        raise _failed()


def no_new_privileges() -> None:
    """Prevent programs that this process executes from gaining privileges by a set-user-id bit or file capabilities."""
    if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise _failed()


def drop_bounding_capabilities() -> None:
    """Drop every capability that a program executed by this process could get from its file. Raises OSError."""
    capability = 0
    while _libc().prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    if ctypes.get_errno() != errno.EINVAL:
        raise _failed()


def drop_capabilities() -> None:
    """Give up every capability: effective, permitted, inheritable, and with them the ambient ones. Raises OSError."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    if _libc().capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise _failed()


def new_session_keyring() -> None:
    """Leave the inherited session keyring: its possessor can read its keys, whoever owns them.

    Raises OSError. If the kernel has no keyrings, or a seccomp filter refuses the call to us and so to all that we start, there
    is nothing to leave.
    """
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of keyctl(2) on {os.uname().machine} is not known")
    if _libc().syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        error = _failed()
        if error.errno not in {errno.ENOSYS, errno.EPERM}:
            raise error


def set_io_class(text: str) -> None:
    """Give this process a class of ioprio_set(2), ``idle`` or ``best-effort:LEVEL``. Raises OSError."""
    number = _SYS_IOPRIO_SET.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of ioprio_set(2) on {os.uname().machine} is not known")
    name, _, level = text.partition(":")
    if (
        _libc().syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_CLASSES[name] << _IOPRIO_CLASS_SHIFT | int(level or 0))
        < 0
    ):
        raise _failed()


def syncfs(fd: int) -> None:
    """Write out all that the filesystem of an open file has in memory (syncfs(2)). Raises OSError."""
    if _libc().syncfs(fd) != 0:
        raise _failed()


def adopt_orphans(*, adopt: bool) -> bool:
    """Choose whether orphaned descendants become our children instead of the first process's; return whether that is new."""
    before = ctypes.c_int()
    if _libc().prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0) != 0:
        raise _failed()
    if _libc().prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0) != 0:
        raise _failed()
    return bool(before.value) is not adopt


def open_beneath(directory: int, path: str, flags: int) -> int:
    """Open a path below a directory, following no link and never leaving it (openat2(2)). Raises OSError.

    It may cross mounts. The directory itself is ``.``.
    """
    how = _OpenHow(flags=flags | os.O_CLOEXEC, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
    result = _libc().syscall(
        _SYS_OPENAT2, directory, os.fsencode(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
    )
    if result < 0:
        error = _failed(path)
        if error.errno in {errno.ENOSYS, errno.EPERM}:
            # With our flags, the call itself has no reason for either error.
            raise FilteredError(error.errno, f"the system call openat2 is refused ({error.strerror})", path)
        raise error
    return int(result)


def make_beneath(directory: int, path: str, *, mode: int = 0o755, file: bool = False) -> int:
    """Open a directory (or file) below another as :func:`open_beneath` does, with O_PATH, making what is missing.

    Raises OSError.
    """
    kind = os.O_PATH | os.O_NOFOLLOW | (0 if file else os.O_DIRECTORY)
    try:
        return open_beneath(directory, path, kind)
    except FileNotFoundError:
        if path == ".":
            raise
    *above, name = path.split("/")
    parent = open_beneath(directory, ".", os.O_PATH | os.O_DIRECTORY)
    try:
        for part in above:
            inside = _directory_in(parent, part, mode)
            os.close(parent)
            parent = inside
        if not file:
            return _directory_in(parent, name, mode)
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=parent))
        return open_beneath(parent, name, kind)
    finally:
        os.close(parent)


def _directory_in(parent: int, name: str, mode: int) -> int:
    """Open a directory in another, making it if missing. Raises OSError."""
    kind = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY
    try:
        return open_beneath(parent, name, kind)
    except FileNotFoundError:
        os.mkdir(name, mode, dir_fd=parent)
        return open_beneath(parent, name, kind)


def open_without_links(path: str, flags: int) -> int:
    """Open an absolute path that no link may lead through (openat2(2)). Raises OSError; ELOOP if one does.

    With O_PATH and O_NOFOLLOW the last component may be a link: then the link itself is opened.
    """
    looking.at(path)
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_beneath(root, path.lstrip("/") or ".", flags)
    finally:
        os.close(root)


def device_of(fd: int) -> int:
    """Return an open file's device number (``st_dev``) from the kernel, without asking the filesystem (statx(2)).

    Raises OSError.
    """
    found = (ctypes.c_uint32 * 64)()
    if _libc().statx(fd, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, 0, found) != 0:
        raise _failed()
    return os.makedev(found[34], found[35])


def clone_mount(fd: int, *, recursive: bool) -> int:
    """Return a mount of an open file or directory that is attached nowhere, open with O_PATH (open_tree(2)). Raises OSError."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    tree = _libc().syscall(_SYS_OPEN_TREE, fd, b"", flags)
    if tree < 0:
        raise _failed()
    return int(tree)


def attach_mount(tree: int, fd: int) -> None:
    """Attach such a mount to an open file or directory, never looked for by its path (move_mount(2)). Raises OSError."""
    if _libc().syscall(_SYS_MOVE_MOUNT, tree, b"", fd, b"", _MOVE_MOUNT_EMPTY_PATHS) < 0:
        raise _failed()


def bind_onto_itself(fd: int, *, recursive: bool) -> int:
    """Bind an open directory onto itself; return the new mount, open with O_PATH. Raises OSError.

    The mount is never looked for by its path, where another may have been put over it meanwhile.
    """
    tree = clone_mount(fd, recursive=recursive)
    try:
        attach_mount(tree, fd)
    except OSError:
        os.close(tree)
        raise
    return tree


def restrict_mounts(top: str, flags: int) -> None:
    """Set MS_RDONLY, MS_NOSUID, MS_NODEV or MS_NOEXEC of a mount, and of all below it (mount_setattr(2), Linux 5.12).

    Raises OSError.
    """
    # These flags have the same numbers as attributes (MOUNT_ATTR_RDONLY and so on).
    wanted = (ctypes.c_uint64 * 4)(flags)
    if (
        _libc().syscall(
            _SYS_MOUNT_SETATTR,
            _AT_FDCWD,
            os.fsencode(top),
            _AT_RECURSIVE,
            ctypes.byref(wanted),
            ctypes.c_size_t(ctypes.sizeof(wanted)),
        )
        != 0
    ):
        raise _failed(top)


def detached_mount(fstype: str, source: str, options: dict[str, str], *, read_only: bool = False) -> int:
    """Mount a filesystem without attaching it anywhere: only the returned descriptor leads to it.

    It is unmounted at the descriptor's last close. Raises OSError.
    """
    libc = _libc()
    context = libc.syscall(_SYS_FSOPEN, fstype.encode(), _CLOEXEC)
    if context < 0:
        raise _failed(source)
    try:
        for key, value in {"source": source, **options}.items():
            if libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, key.encode(), os.fsencode(value), 0) < 0:
                raise _failed(source)
        if read_only and libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_SET_FLAG, b"ro", None, 0) < 0:
            raise _failed(source)
        if libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0) < 0:
            raise _failed(source)
        attributes = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | _MOUNT_ATTR_NOEXEC
        descriptor = libc.syscall(_SYS_FSMOUNT, context, _CLOEXEC, attributes)
        if descriptor < 0:
            raise _failed(source)
        return int(descriptor)
    finally:
        os.close(context)
