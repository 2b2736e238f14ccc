"""Removes a tree of ours: by descriptors, without following a link, and never into another filesystem."""

from __future__ import annotations

import errno
import os
import stat

from kopiatomic import presence
from kopiatomic.system import inodes
from kopiatomic.trees import attributes
from kopiatomic.trees.walk import opened


def remove(parent: int, name: str) -> None:
    """Remove an entry of an open directory, with all that is in it; nothing happens if it is not there.

    Raises OSError; EXDEV, before anything is removed in it, where something is mounted.
    """
    device = os.fstat(parent).st_dev
    status = presence.status(name, follow_links=False, directory=parent)
    if status is None:
        return
    if not stat.S_ISDIR(status.st_mode):
        _unlink(parent, name, status)
        return
    waiting = [name]
    while waiting:
        path = waiting[-1]
        above, _, last = path.rpartition("/")
        try:
            with opened(parent, path) as fd:
                if os.fstat(fd).st_dev != device:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
                _release(fd)
                inside = _emptied(fd)
        except FileNotFoundError:
            waiting.pop()
            continue
        if inside:
            waiting += [f"{path}/{one}" for one in inside]
            continue
        with opened(parent, above) as fd:
            os.rmdir(last, dir_fd=fd)
        waiting.pop()


def hollow(parent: int, path: str) -> None:
    """Put an empty directory of root's in the place of a directory below an open one, if that is there. Raises OSError."""
    above, _, name = path.rpartition("/")
    try:
        with opened(parent, above) as fd:
            before = os.fstat(fd)
            status = presence.status(name, follow_links=False, directory=fd)
            if status is None or not stat.S_ISDIR(status.st_mode):
                return
            remove(fd, name)
            os.mkdir(name, 0o755, dir_fd=fd)
            with opened(fd, name) as made:
                os.fchmod(made, 0o755)
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
    except FileNotFoundError:
        return


def remove_empty(parent: int, path: str) -> None:
    """Remove a directory below an open one, and those above it, up to the first that has something in it. Raises OSError."""
    while path:
        above, _, name = path.rpartition("/")
        try:
            with opened(parent, path) as fd:
                if os.listdir(fd):
                    return
            with opened(parent, above) as fd:
                os.rmdir(name, dir_fd=fd)
        except OSError as error:
            if not presence.absent(error):
                raise
        path = above


def _emptied(fd: int) -> list[str]:
    """Remove all but directories from an open one; return those."""
    with os.scandir(fd) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    for name, status in found:
        if not stat.S_ISDIR(status.st_mode):
            _unlink(fd, name, status)
    return [name for name, status in found if stat.S_ISDIR(status.st_mode)]


def _unlink(fd: int, name: str, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        with attributes.opened(fd, name) as file:
            _release(file)
    os.unlink(name, dir_fd=fd)


def _release(fd: int) -> None:
    """Clear the flags that keep an open file or directory from being changed."""
    if inodes.flags(fd):
        inodes.set_flags(fd, 0)
