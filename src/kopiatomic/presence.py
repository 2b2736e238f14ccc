"""Whether something exists, and what a system error says about that: decided only here.

``os.path.exists`` and its relatives answer "no" to any error, even to EIO, EACCES and too many open files. What cannot be known
is not answered here: it is raised.
"""

from __future__ import annotations

import errno
import os
import stat
from enum import Enum

_LOOKS = 3
"""How often to look for something that is being replaced."""


class Meaning(Enum):
    """What an error says about the object that was asked for."""

    ABSENT = "it is not there"
    REPLACED = "something else was put into its way while it was looked for: it takes a new look to tell"
    UNKNOWN = "nothing: it may be there or not"


_MEANINGS = {
    errno.ENOENT: Meaning.ABSENT,
    errno.ENOTDIR: Meaning.ABSENT,
    errno.ELOOP: Meaning.REPLACED,
    errno.EXDEV: Meaning.REPLACED,
    errno.ESTALE: Meaning.REPLACED,
}


def meaning(error: OSError) -> Meaning:
    """Return what an error says about the object's existence. EXDEV is openat2(2)'s for a path that leaves its directory."""
    return _MEANINGS.get(error.errno or 0, Meaning.UNKNOWN)


def absent(error: OSError) -> bool:
    """Whether the error says that the object does not exist."""
    return meaning(error) is Meaning.ABSENT


def moved(error: OSError) -> bool:
    """Whether the error says that the object is not where it was: absent, or replaced meanwhile."""
    return meaning(error) is not Meaning.UNKNOWN


def status(path: str | bytes, *, follow_links: bool = True, directory: int | None = None) -> os.stat_result | None:
    """Return the stat(2) of a path; None if nothing is there. Raises OSError if that cannot be known.

    ``directory`` is an open one where a relative path begins.
    """
    for look in range(1, _LOOKS + 1):
        try:
            return os.stat(path, dir_fd=directory, follow_symlinks=follow_links)
        except OSError as error:
            if absent(error):
                return None
            if look == _LOOKS or meaning(error) is not Meaning.REPLACED:
                raise
    raise AssertionError


def exists(path: str | bytes, *, follow_links: bool = True) -> bool:
    """Whether something exists. Raises OSError if that cannot be known."""
    return status(path, follow_links=follow_links) is not None


def is_directory(path: str | bytes, *, follow_links: bool = True) -> bool:
    """Whether a directory exists. Raises OSError if that cannot be known."""
    found = status(path, follow_links=follow_links)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_file(path: str | bytes) -> bool:
    """Whether a regular file, or a link to one, exists. Raises OSError if that cannot be known."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_link(path: str | bytes) -> bool:
    """Whether a symbolic link exists. Raises OSError if that cannot be known."""
    found = status(path, follow_links=False)
    return found is not None and stat.S_ISLNK(found.st_mode)


def names(directory: str) -> list[str]:
    """Return what is in a directory; empty if it does not exist. Raises OSError if that cannot be known."""
    try:
        return os.listdir(directory)
    except OSError as error:
        if absent(error):
            return []
        raise
