"""The system calls of a run that change something, and a seccomp filter that stops a traced process at them.

Numbers are those of x86_64. Layouts are those of the kernel's uapi/linux/{seccomp,filter,audit}.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

CALLS = {
    3: "close",
    16: "ioctl",
    56: "clone",
    57: "fork",
    58: "vfork",
    59: "execve",
    74: "fsync",
    75: "fdatasync",
    77: "ftruncate",
    82: "rename",
    83: "mkdir",
    84: "rmdir",
    87: "unlink",
    88: "symlink",
    155: "pivot_root",
    161: "chroot",
    165: "mount",
    166: "umount2",
    188: "setxattr",
    190: "fsetxattr",
    257: "openat",
    258: "mkdirat",
    263: "unlinkat",
    264: "renameat",
    266: "symlinkat",
    272: "unshare",
    308: "setns",
    316: "renameat2",
    322: "execveat",
    428: "open_tree",
    429: "move_mount",
    430: "fsopen",
    431: "fsconfig",
    432: "fsmount",
    435: "clone3",
    442: "mount_setattr",
}
OF_TREES = {
    90: "chmod",
    189: "lsetxattr",
    198: "lremovexattr",
    259: "mknodat",
    260: "fchownat",
    265: "linkat",
    280: "utimensat",
}
"""What a restore changes besides: so many that a run of a backup is not stopped at them."""
CLOSE, IOCTL, EXECVE, OPENAT = 3, 16, 59, 257
FORKS = {"clone", "clone3", "fork", "vfork"}

IOCTLS_OF_TREES = {0x5820: "set project", 0x6602: "set flags"}
IOCTLS = {
    0x5A16: "set properties",
    0x5A17: "create",
    0x5A18: "destroy",
    0x5A19: "roll back",
    0x5A1A: "rename",
    0x5A21: "clear",
    0x5A23: "snapshot",
    0x5A2B: "inherit",
    0x5A30: "hold",
    0x5A31: "release",
    0x5A3B: "destroy snapshots",
    0x5A47: "sync",
    0x5A48: "channel program",
    0x9401: "snapshot",
    0x9408: "sync",
    0x940E: "create subvolume",
    0x940F: "delete subvolume",
    0x9417: "snapshot (v2)",
    0x9418: "create subvolume (v2), or start a sync",
    0x941A: "set flags",
    0x943F: "delete subvolume (v2)",
}
"""Low halves of the requests: ZFS's letter is Z, Btrfs's magic 0x94. Those that only read are left out."""

_LETTERS = {0x5A: "ZFS", 0x94: "Btrfs", 0x58: "inode", 0x66: "inode"}

_PATHS: dict[str, Sequence[int]] = {
    "chmod": (0,),
    "chroot": (0,),
    "execve": (0,),
    "fchownat": (1,),
    "fsopen": (0,),
    "linkat": (1, 3),
    "lremovexattr": (0, 1),
    "lsetxattr": (0, 1),
    "mkdir": (0,),
    "mkdirat": (1,),
    "mknodat": (1,),
    "mount": (0, 1),
    "move_mount": (1, 3),
    "open_tree": (1,),
    "openat": (1,),
    "rename": (0, 1),
    "renameat": (1, 3),
    "renameat2": (1, 3),
    "rmdir": (0,),
    "setxattr": (0,),
    "symlink": (0, 1),
    "symlinkat": (0, 2),
    "umount2": (0,),
    "unlink": (0,),
    "unlinkat": (1,),
    "utimensat": (1,),
}
"""Which arguments are strings that tell one call from another."""

_RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
_HASH = re.compile(r"[0-9a-f]{32}")

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_RET_ALLOW = 0x7FFF0000
_RET_TRACE = 0x7FF00000
_ARCHITECTURE_X86_64 = 0xC000003E
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_LOAD, _AND, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x45, 0x06


def install_filter(closing: Iterable[int] | None, *, trees: bool = False) -> None:
    """Have this process and its descendants stop for their tracer at these calls, and at `close` of these descriptors.

    None: at every `close`. ``trees``: also at what changes entries of a tree. Without a tracer the calls fail with ENOSYS. Raises
    OSError.
    """
    program = _program(None if closing is None else sorted(closing), trees=trees)
    buffer = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0)):
        if libc.prctl(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "prctl")


def _program(closing: Sequence[int] | None, *, trees: bool) -> bytes:
    """Classic BPF: jumps go forward only, and say how many instructions to skip if it holds and if not."""

    def one_of(values: Sequence[int]) -> list[tuple[int, int, int, int]]:
        # What is loaded is one of these: on to the instruction after ALLOW, else ALLOW.
        tests = [(_EQUAL, len(values) - position, 0, value) for position, value in enumerate(values)]
        return [*tests, (_RETURN, 0, 0, _RET_ALLOW), (_RETURN, 0, 0, _RET_TRACE)]

    def argument(position: int) -> tuple[int, int, int, int]:
        return (_LOAD, 0, 0, _ARGUMENTS + 8 * position)

    calls, requests = (CALLS | OF_TREES, IOCTLS | IOCTLS_OF_TREES) if trees else (CALLS, IOCTLS)
    special = {
        IOCTL: [argument(1), (_AND, 0, 0, 0xFFFF), *one_of(list(requests))],
        OPENAT: [
            argument(2),
            (_ANY_BIT, 0, 1, os.O_CREAT | os.O_EXCL),
            (_RETURN, 0, 0, _RET_TRACE),
            (_RETURN, 0, 0, _RET_ALLOW),
        ],
        CLOSE: [(_RETURN, 0, 0, _RET_TRACE)] if closing is None else [argument(0), *one_of(closing)],
    }
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _ARCHITECTURE_X86_64),
        (_RETURN, 0, 0, _RET_ALLOW),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for number, branch in special.items():
        lines += [(_EQUAL, 0, len(branch), number), *branch]
    lines += one_of([number for number in calls if number not in special])
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def describe(pid: int, number: int, arguments: Sequence[int]) -> str | None:
    """A call of a stopped process in words; None if it changes nothing."""
    name = CALLS.get(number) or OF_TREES.get(number)
    if name is None:
        return None
    if number == CLOSE:
        return "close /dev/zfs" if _opened(pid, arguments[0]) == "/dev/zfs" else None
    if number == IOCTL:
        what = IOCTLS.get(arguments[1] & 0xFFFF) or IOCTLS_OF_TREES.get(arguments[1] & 0xFFFF)
        return what and f"ioctl {_LETTERS.get(arguments[1] >> 8 & 0xFF, '')} {what}"
    return " ".join([name, *(_string(pid, arguments[position]) for position in _PATHS.get(name, ()))])


def run_id_in(text: str) -> str | None:
    """The run that a call in words names."""
    found = _RUN_ID.search(text)
    return found and found[0]


def alike(text: str) -> str:
    """A call in words that are the same in each run."""
    return _HASH.sub("HASH", _RUN_ID.sub("RUN", text))


def opens_zfs(pid: int, number: int, arguments: Sequence[int]) -> bool:
    """Whether a call opens /dev/zfs as the program does for its clean-up descriptor."""
    return number == OPENAT and bool(arguments[2] & os.O_EXCL) and _string(pid, arguments[1]) == "/dev/zfs"


def _opened(pid: int, fd: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return ""


def _string(pid: int, address: int) -> str:
    if address == 0:
        return "-"
    data = b""
    try:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            while b"\0" not in data and len(data) < 4096:
                # Up to the end of a page: the next one may not be there.
                piece = memory.read(4096 - (address + len(data)) % 4096)
                if not piece:
                    # It was killed meanwhile, and has no memory any more.
                    break
                data += piece
    except OSError as error:
        if error.errno not in {errno.EIO, errno.ENOENT, errno.ESRCH}:
            raise
    return data.partition(b"\0")[0].decode(errors="replace")
