"""Paths without links on FreeBSD: opened component by component, each with O_NOFOLLOW. It has no openat2(2).

O_RESOLVE_BENEATH would not do: it keeps a path beneath a directory, but follows the links in it (open(2)).
"""

from __future__ import annotations

import errno
import os
import stat

from kopiatomic.system import looking

_LOOK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_beneath(top: str, path: str) -> int:
    """Open a directory below another one, following no link. Raises OSError, whose filename shows how far it got.

    The path itself gives ELOOP if it is a link, ENOTDIR if it is anything else (open(2) has EMLINK for a link).
    """
    looking.at(os.path.join(top, path))
    fd = os.open(top, _LOOK)
    done = ""
    try:
        for name in path.split("/") if path else ():
            done = f"{done}/{name}".lstrip("/")
            mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
            if not stat.S_ISDIR(mode):
                raise _no_directory(mode)
            try:
                inner = os.open(name, _LOOK, dir_fd=fd)
            except OSError as error:
                # It was exchanged in between.
                raise (_no_directory(stat.S_IFLNK) if error.errno == errno.EMLINK else error) from None
            os.close(fd)
            fd = inner
    except OSError as error:
        os.close(fd)
        error.filename = done
        raise
    return fd


def make_beneath(top: str, path: str, mode: int) -> int:
    """Open a directory below another one as :func:`open_beneath` does, making what is missing. Raises OSError."""
    try:
        return open_beneath(top, path)
    except FileNotFoundError:
        if not path:
            raise
    parent = open_beneath(top, "")
    try:
        for name in path.split("/"):
            inside = _directory_in(parent, name, mode)
            os.close(parent)
            parent = inside
        return os.dup(parent)
    finally:
        os.close(parent)


def _directory_in(parent: int, name: str, mode: int) -> int:
    """Open a directory in another, making it if missing. Raises OSError."""
    try:
        return os.open(name, _LOOK, dir_fd=parent)
    except FileNotFoundError:
        os.mkdir(name, mode, dir_fd=parent)
        return os.open(name, _LOOK, dir_fd=parent)


def _no_directory(mode: int) -> OSError:
    number = errno.ELOOP if stat.S_ISLNK(mode) else errno.ENOTDIR
    return OSError(number, os.strerror(number))


def status(path: str) -> os.stat_result:
    """Return the status of what is at an absolute path to which no link leads; of a link itself. Raises OSError."""
    above, _, name = path.rstrip("/").rpartition("/")
    directory = open_beneath("/", above.strip("/"))
    try:
        return os.stat(name or ".", dir_fd=directory, follow_symlinks=False)
    finally:
        os.close(directory)


def link_target(path: str) -> str | None:
    """Return the target of a link at an absolute path to which no other link leads; None for anything else. Raises OSError."""
    above, _, name = path.rstrip("/").rpartition("/")
    if not name:
        return None
    directory = open_beneath("/", above.strip("/"))
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        # It is not a link (readlink(2)); stat(2) shows whether anything exists.
        if error.errno != errno.EINVAL:
            raise
        return None
    finally:
        os.close(directory)
