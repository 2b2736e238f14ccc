"""What an entry of an open directory has beside its status.

Extended attributes are read and set without opening it, since a FIFO or a device must not be opened; the flags of chattr(1) and
the project id by opening it, and only files and directories have them.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from kopiatomic import presence
from kopiatomic.system import inodes
from kopiatomic.system.descriptors import closing
from kopiatomic.trees.outcome import Failure
from kopiatomic.trees.walk import walk

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

NONE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
"""What a filesystem answers that has none."""


OURS = "trusted.kopiatomic."
"""What attributes begin with that say something to kopiatomic itself, and belong to no tree. Root alone can set them."""

RESTORING = f"{OURS}restoring"
"""Says that a restore has filled this directory, and has not reported it yet."""


_NO_SURROGATE = re.compile("[^\ud800-\udfff]*").fullmatch


def _path(directory: int, name: str) -> str:
    # The calls take no directory. A link in its last component is not followed.
    return f"/proc/self/fd/{directory}/{name}"


def xattrs(directory: int, name: str, only: Collection[str] | None = None) -> dict[str, bytes]:
    """Return all extended attributes of an entry of an open directory, or only some of them. Raises OSError."""
    path = _path(directory, name)
    return _read(
        lambda: os.listxattr(path, follow_symlinks=False),
        lambda one: os.getxattr(path, one, follow_symlinks=False),
        only,
    )


def _read(
    names: Callable[[], list[str]], value: Callable[[str], bytes], only: Collection[str] | None
) -> dict[str, bytes]:
    try:
        found = names()
    except OSError as error:
        if error.errno in NONE:
            return {}
        raise
    if only is not None:
        found = [one for one in found if one in only]
    elif not all(map(_NO_SURROGATE, found)):
        raise OSError(errno.EILSEQ, "an attribute has a name that is not UTF-8")
    return {one: value(one) for one in found if not one.startswith(OURS)}


def set_xattr(directory: int, name: str, attribute: str, value: bytes) -> None:
    """Set one. Raises OSError."""
    os.setxattr(_path(directory, name), attribute, value, follow_symlinks=False)


def remove_xattr(directory: int, name: str, attribute: str) -> None:
    """Remove one. Raises OSError."""
    os.removexattr(_path(directory, name), attribute, follow_symlinks=False)


def without(top: int, names: Collection[str]) -> list[Failure]:
    """Remove attributes from all files and directories below an open directory; return what could not be done.

    Raises OSError if something is gone.
    """
    failures: list[Failure] = []

    def note(path: str, error: OSError) -> None:
        failures.append(Failure(f"/{path}", "an inherited attribute cannot be removed", error.strerror or str(error)))

    for directory in walk(top, note):
        for entry in directory.entries:
            if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
                continue
            try:
                for attribute in xattrs(directory.fd, entry.name).keys() & names:
                    remove_xattr(directory.fd, entry.name, attribute)
            except OSError as error:
                if presence.moved(error):
                    raise
                note(f"{directory.path}/{entry.name}".lstrip("/"), error)
    return failures


@contextmanager
def opened(directory: int, name: str) -> Iterator[int]:
    """Yield a file or directory, open for reading; no link is followed. Raises OSError."""
    with closing(os.open(name, _READ, dir_fd=directory)) as fd:
        yield fd


def flags(directory: int, name: str) -> tuple[int, int]:
    """Return the flags and the project id of a file or directory. Raises OSError."""
    with opened(directory, name) as fd:
        return inodes.flags(fd) or 0, inodes.project(fd) or 0


def everything(directory: int, name: str, only: Collection[str] | None = None) -> tuple[dict[str, bytes], int, int]:
    """Return extended attributes, or only some of them, flags and project id of a file or directory. Raises OSError.

    It is opened once: by the path that the calls for attributes take otherwise, all of it would take half as long again.
    """
    fd = os.open(name, _READ, dir_fd=directory)
    try:
        found = _read(lambda: os.listxattr(fd), lambda one: os.getxattr(fd, one), only)
        return found, inodes.flags(fd) or 0, inodes.project(fd) or 0
    finally:
        os.close(fd)
