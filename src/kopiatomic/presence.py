"""Whether something is there, and what a refusal of the system says of that: decided here and nowhere else.

``os.path.exists`` and its relatives answer "no" to any refusal: to EIO, EACCES and too many open files as well. What cannot
be told is no answer here: it is raised.
"""

from __future__ import annotations

import errno
import os
import stat
from enum import Enum

_LOOKS = 3
"""How often something is looked at that is replaced meanwhile."""


class Meaning(Enum):
    """What a refusal says of the thing that was asked for."""

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
    """What a refusal says of whether the thing is there. EXDEV is openat2(2)'s for a path that leaves its directory."""
    return _MEANINGS.get(error.errno or 0, Meaning.UNKNOWN)


def absent(error: OSError) -> bool:
    """Whether it says that the thing is not there."""
    return meaning(error) is Meaning.ABSENT


def moved(error: OSError) -> bool:
    """Whether it says that the thing is not where it was: absent, or replaced meanwhile."""
    return meaning(error) is not Meaning.UNKNOWN


def status(path: str | bytes, *, follow_links: bool = True, directory: int | None = None) -> os.stat_result | None:
    """stat(2) of a path; None where nothing is there. Raises OSError where that cannot be told.

    ``directory`` is an open one that a relative path begins at.
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
    """Whether something is there. Raises OSError where that cannot be told."""
    return status(path, follow_links=follow_links) is not None


def is_directory(path: str | bytes, *, follow_links: bool = True) -> bool:
    """Whether a directory is there. Raises OSError where that cannot be told."""
    found = status(path, follow_links=follow_links)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_file(path: str | bytes) -> bool:
    """Whether a regular file, or a link to one, is there. Raises OSError where that cannot be told."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_link(path: str | bytes) -> bool:
    """Whether a symbolic link is there. Raises OSError where that cannot be told."""
    found = status(path, follow_links=False)
    return found is not None and stat.S_ISLNK(found.st_mode)


def names(directory: str) -> list[str]:
    """What is in a directory; nothing where it is not there. Raises OSError where that cannot be told."""
    try:
        return os.listdir(directory)
    except OSError as error:
        if absent(error):
            return []
        raise
