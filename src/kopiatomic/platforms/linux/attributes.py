"""Who may enter a directory: its owner, mode and access control list, taken from a real one and given to one of ours."""

from __future__ import annotations

import errno
import os
import stat

from kopiatomic.immutable import immutable

_LIST = "system.posix_acl_access"
"""acl(5). Where a list exists, the group's bits of the mode are its mask: without the list they would grant too much."""


@immutable
class Attributes:
    """The status of a directory, and its access control list as the kernel has it; None if it has none."""

    status: os.stat_result
    acl: bytes | None = None


def attributes_of(directory: int) -> Attributes:
    """Return the attributes of an open directory; a descriptor for a path alone (O_PATH) is enough. Raises OSError."""
    status = os.fstat(directory)
    try:
        return Attributes(status, os.getxattr(f"/proc/self/fd/{directory}", _LIST))
    except OSError as error:
        if error.errno not in {errno.ENODATA, errno.EOPNOTSUPP}:
            raise
        return Attributes(status)


def give(ours: int, attributes: Attributes) -> None:
    """Give one of our directories owner, mode and list of the one that it stands for. Raises OSError.

    Root alone may enter it where the list cannot be set.
    """
    os.fchown(ours, attributes.status.st_uid, attributes.status.st_gid)
    if attributes.acl is None:
        os.fchmod(ours, stat.S_IMODE(attributes.status.st_mode))
        return
    os.fchmod(ours, 0o700)
    try:
        os.setxattr(ours, _LIST, attributes.acl)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        os.fchown(ours, 0, 0)
        return
    special = stat.S_IMODE(attributes.status.st_mode) & ~0o777
    os.fchmod(ours, stat.S_IMODE(os.fstat(ours).st_mode) | special)
