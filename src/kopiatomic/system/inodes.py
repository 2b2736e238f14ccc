"""What an inode of Linux has beside its status: the flags of chattr(1), and the project id, through ioctl(2).

Numbers: include/uapi/linux/fs.h. The kernel reads and writes 32 bits of flags, whatever the size in the call's number says.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from types import MappingProxyType

_POWER = os.uname().machine.startswith("ppc")
"""There the two bits for the direction stand for other values (arch/powerpc/include/uapi/asm/ioctl.h)."""
_READ = (2 << 29) if _POWER else (2 << 30)
_WRITE = (4 << 29) if _POWER else (1 << 30)
_LONG = struct.calcsize("l") << 16
_GETFLAGS = _READ | _LONG | ord("f") << 8 | 1
_SETFLAGS = _WRITE | _LONG | ord("f") << 8 | 2
_FLAGS = struct.Struct("=I")
_FSXATTR = struct.Struct("=IIIII8x")
"""``struct fsxattr``: flags, extent size, extents, project id, extent size for copies."""
_FSGETXATTR = _READ | _FSXATTR.size << 16 | ord("X") << 8 | 31
_FSSETXATTR = _WRITE | _FSXATTR.size << 16 | ord("X") << 8 | 32

_PROJECT = 3

LETTERS = MappingProxyType(
    {
        "s": 0x1,  # secure deletion
        "u": 0x2,  # undeletable
        "S": 0x8,  # synchronous
        "D": 0x10000,  # synchronous directory
        "d": 0x40,  # no dump
        "A": 0x80,  # no access times
        "c": 0x4,  # compressed
        "m": 0x400,  # not compressed
        "j": 0x4000,  # data journalled
        "t": 0x8000,  # no tail merging
        "T": 0x20000,  # top of a directory tree
        "C": 0x800000,  # no copy on write
        "P": 0x20000000,  # children inherit the project
        "a": 0x20,  # append only
        "i": 0x10,  # immutable: no other can be changed after it
    }
)
"""The flags that somebody may have set, by the letters of chattr(1). The others say how the filesystem stores the file."""
SETTABLE = sum(LETTERS.values())


def named(flags: int) -> list[str]:
    """Return the letters of some flags; of one that has none here, its number."""
    letters = [letter for letter, flag in LETTERS.items() if flags & flag]
    others = flags & ~SETTABLE
    return letters + ([f"{others:#x}"] if others else [])


HELD = 0x10 | 0x20
"""Those with which nothing can be changed: immutable, append only."""

_NONE = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
"""What a filesystem answers that has no such thing."""


def flags(fd: int) -> int | None:
    """Return the flags of an open file or directory that can be set; None if its filesystem has none. Raises OSError."""
    buffer = bytearray(8)
    try:
        fcntl.ioctl(fd, _GETFLAGS, buffer)
    except OSError as error:
        if error.errno in _NONE:
            return None
        raise
    return int(_FLAGS.unpack_from(buffer)[0]) & SETTABLE


def set_flags(fd: int, value: int) -> None:
    """Set those flags, and leave the others as they are. Raises OSError."""
    buffer = bytearray(8)
    fcntl.ioctl(fd, _GETFLAGS, buffer)
    (before,) = _FLAGS.unpack_from(buffer)
    _FLAGS.pack_into(buffer, 0, before & ~SETTABLE | value)
    fcntl.ioctl(fd, _SETFLAGS, buffer)


def project(fd: int) -> int | None:
    """Return the project id of an open file or directory; None if its filesystem has none. Raises OSError."""
    buffer = bytearray(_FSXATTR.size)
    try:
        fcntl.ioctl(fd, _FSGETXATTR, buffer)
    except OSError as error:
        if error.errno in _NONE:
            return None
        raise
    return int(_FSXATTR.unpack(buffer)[_PROJECT])


def set_project(fd: int, value: int) -> None:
    """Set the project id. Raises OSError."""
    buffer = bytearray(_FSXATTR.size)
    fcntl.ioctl(fd, _FSGETXATTR, buffer)
    fields = list(_FSXATTR.unpack(buffer))
    fields[_PROJECT] = value
    fcntl.ioctl(fd, _FSSETXATTR, _FSXATTR.pack(*fields))
