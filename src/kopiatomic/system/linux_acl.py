"""Access control lists on Linux, as getxattr(2) shows them: who besides owner and group may write.

POSIX lists are the kernel's (include/uapi/linux/posix_acl_xattr.h); NFSv4 lists are shown by a client (fs/nfs/nfs4proc.c) or by a
kernel with OpenZFS's own lists.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

from kopiatomic.system import accounts

_NONE = frozenset([errno.ENODATA, errno.EOPNOTSUPP])
"""Errors of getxattr(2) if a file has no such list, or its filesystem does not know them."""

POSIX = "system.posix_acl_access"
_VERSION = 2
_USER, _GROUP_OBJECT, _GROUP, _MASK = 0x02, 0x04, 0x08, 0x10
_WRITE = 2

_NFS4 = "system.nfs4_acl"
_NFS4_NUMBERS = "system.nfs4_acl_xdr"
_ALLOW = 0
_CHANGES = 0x2 | 0x4 | 0x40 | 0x40000 | 0x80000
"""Adding and removing entries, and changing list or owner (RFC 7530, 6.2.1.3.1)."""
_SPECIAL = 1
_SPECIALS = {1: "OWNER@", 2: "GROUP@", 3: "EVERYONE@"}
_OWNER = "OWNER@"


def writers(at: int | str, gid: int) -> list[str] | None:
    """Return who may write because of a list, in words; None if there is no list. ``gid`` is the file's group. Raises OSError.

    In a POSIX list these are named users and groups, and the file's own group, whose bits in the mode are the list's mask.
    """
    for name, parse in ((POSIX, _posix), (_NFS4, _nfs4), (_NFS4_NUMBERS, _nfs4_numbers)):
        data = read(at, name)
        if data is None:
            continue
        try:
            return list(parse(data, gid))
        except (struct.error, ValueError):
            return ["whoever an access control list names that cannot be read"]
    return None


def read(at: int | str, name: str = POSIX) -> bytes | None:
    """Return a list as the kernel has it; None if there is none. ``at`` as in :func:`writers`. Raises OSError."""
    # A descriptor opened with O_PATH gives no access to attributes.
    path, follow = (f"/proc/self/fd/{at}", True) if isinstance(at, int) else (at, False)
    try:
        return os.getxattr(path, name, follow_symlinks=follow)
    except OSError as error:
        if error.errno not in _NONE:
            raise
        return None


def _posix(data: bytes, gid: int) -> Iterator[str]:
    (version,) = struct.unpack_from("<I", data)
    if version != _VERSION:
        raise ValueError(version)
    entries = list(struct.iter_unpack("<HHI", data[4:]))
    mask = next((permissions for tag, permissions, _ in entries if tag == _MASK), _WRITE)
    for tag, permissions, number in entries:
        if not permissions & mask & _WRITE:
            continue
        if tag == _USER and number != 0:
            yield f"user {accounts.user(number)}"
        elif tag == _GROUP:
            yield f"group {accounts.group(number)}"
        elif tag == _GROUP_OBJECT:
            yield f"group {accounts.group(gid)}"


def _nfs4(data: bytes, _gid: int) -> Iterator[str]:
    """Read the list as NFS has it on the wire: principals are texts."""
    (count,) = struct.unpack_from(">I", data)
    position = 4
    for _ in range(count):
        kind, flags, mask, length = struct.unpack_from(">4I", data, position)
        position += 16
        who = data[position : position + length].decode()
        position += (length + 3) // 4 * 4
        yield from _allowed(kind, flags, mask, who)


def _nfs4_numbers(data: bytes, _gid: int) -> Iterator[str]:
    """Read the list as a kernel with OpenZFS's own shows it: principals are numbers."""
    _, count = struct.unpack_from(">2I", data)
    for position in range(8, 8 + 20 * count, 20):
        kind, flags, special, mask, who = struct.unpack_from(">5I", data, position)
        yield from _allowed(kind, flags, mask, _SPECIALS.get(who, "?") if special & _SPECIAL else str(who))


_INHERIT_ONLY = 0x8


def _allowed(kind: int, flags: int, mask: int, who: str) -> Iterator[str]:
    if kind == _ALLOW and mask & _CHANGES and not flags & _INHERIT_ONLY and who not in {_OWNER, "0"}:
        yield f"{who} (NFSv4 access control list)"
