"""Who may enter a directory: its owner, mode and access control list, taken from a real one and given to one of ours."""

from __future__ import annotations

import errno
import os
import stat

from kopiatomic.immutable import immutable
from kopiatomic.system import linux_acl


@immutable
class Attributes:
    """The status of a directory, and its access control list as the kernel has it; None if it has none.

    Where a list exists, the group's bits of the mode are its mask (acl(5)): without the list they would grant too much.
    """

    status: os.stat_result
    acl: bytes | None = None


def attributes_of(directory: int) -> Attributes:
    """Return the attributes of an open directory; a descriptor for a path alone (O_PATH) is enough. Raises OSError."""
    return Attributes(os.fstat(directory), linux_acl.read(directory))


def give(ours: int, attributes: Attributes) -> None:
    """Give one of our directories owner, mode and list of the one that it stands for. Raises OSError.

    Root alone may enter it where the list cannot be set.
    """
    status = attributes.status
    os.fchown(ours, status.st_uid, status.st_gid)
    if attributes.acl is not None:
        os.fchmod(ours, 0o700)
        try:
            os.setxattr(ours, linux_acl.POSIX, attributes.acl)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            os.fchown(ours, 0, 0)
            return
    os.fchmod(ours, stat.S_IMODE(status.st_mode))
