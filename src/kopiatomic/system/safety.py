"""Who besides root can change a file or directory, or put something else in a path's place: the one judge of that.

A directory is *safe* if it belongs to root and nobody else can write to it; or if it is root's and sticky, and the next
component of the path is root's, which nobody else can move then (``/tmp``, ``/var/tmp``). Groups count as others, 0 too: wheel
has members.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator

from kopiatomic import presence
from kopiatomic.paths import parents
from kopiatomic.system import accounts, host
from kopiatomic.text import printable

LINKS = 40
"""How many symbolic links the kernel follows in one path (path_resolution(7))."""


def writers(at: int | str) -> str:
    """Who besides root can write to a file or directory, in words; empty if nobody can.

    ``at`` is an open descriptor, or a path whose last component is not followed. The owner counts, who can always allow
    it, and so do access control lists wherever the kernel shows any. Raises OSError.
    """
    status = os.fstat(at) if isinstance(at, int) else os.lstat(at)
    found = [f"user {accounts.user(status.st_uid)}"] if status.st_uid != 0 else []
    if not stat.S_ISLNK(status.st_mode):
        # Where there is a POSIX list, the group's bits are its mask, and the group itself is one of its entries.
        listed = host.here().listed_writers(at, status.st_gid)
        if listed is not None:
            found += listed
        elif status.st_mode & stat.S_IWGRP:
            found.append(f"group {accounts.group(status.st_gid)}")
        if status.st_mode & stat.S_IWOTH:
            found.append("everybody")
    return " and ".join(dict.fromkeys(found))


def movers(directory: int, name: str) -> str:
    """Who besides root can put something else in the place of an entry of an open directory, in words; empty if nobody.

    An entry that is not there yet counts as root's. Raises OSError.
    """
    found = writers(directory)
    if not found or not is_sticky(os.fstat(directory)):
        return found
    try:
        owner = os.stat(name, dir_fd=directory, follow_symlinks=False).st_uid
    except FileNotFoundError:
        return ""
    return f"user {accounts.user(owner)}" if owner != 0 else ""


def is_sticky(status: os.stat_result) -> bool:
    """Whether what is in a directory of root's can be moved by its owners and root alone."""
    return bool(status.st_mode & stat.S_ISVTX) and status.st_uid == 0


def steps(path: str, *, links: bool = False) -> Iterator[str]:
    """Everything that is passed on the way along an absolute path, ``/`` and the end included, links followed.

    Nobody can write to the links themselves, which are left out without ``links``. What is not there is passed as it is.
    Raises OSError.
    """
    left = path.split("/")[::-1]
    here, followed = "/", 0
    yield here
    while left:
        name = left.pop()
        if name == "..":
            here = os.path.dirname(here)
        if name in {"", ".", ".."}:
            continue
        step = os.path.join(here, name)
        if not presence.is_link(step):
            here = step
            yield here
            continue
        if links:
            yield step
        followed += 1
        if followed > LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(step)
        here = "/" if target.startswith("/") else here
        left += target.split("/")[::-1]


def unsafe(path: str, until: Collection[str] = ()) -> str:
    """Why somebody else than root can put something else in an absolute path's place, in words; empty if nobody can.

    What is not there yet counts as root's; nothing can be moved from a directory of ``until`` on upwards. Raises OSError.
    """
    entry = path
    for directory in parents(path):
        if directory in until:
            break
        if presence.exists(directory, follow_links=False):
            fd = host.here().open_directory(directory, to_list=False)
            try:
                who = movers(fd, os.path.basename(entry))
                if who and is_sticky(os.fstat(fd)):
                    return f"{who} owns {printable(entry)} and can move it"
                if who:
                    return f"{who} can change {printable(directory)}, which is {accounts.user(os.fstat(fd).st_uid)}'s"
            finally:
                os.close(fd)
        entry = directory
    return ""


def look(paths: Iterable[str], silent: Callable[[str], str]) -> dict[str, str]:
    """Who besides root can put something else in the place of some absolute paths, or of what lies above them.

    By path, in words; empty if nobody can. Below the first path for which somebody can nothing is looked at. ``silent``
    says of a directory why it must not be looked into, which then counts as somebody; empty if it may.
    """
    found: dict[str, str] = {}
    known: dict[str, str | None] = {}
    for path in paths:
        for entry in reversed([path, *parents(path)][:-1]):
            if entry not in found:
                found[entry] = _mover(entry, silent, known)
            if found[entry]:
                break
    return found


def _mover(entry: str, silent: Callable[[str], str], known: dict[str, str | None]) -> str:
    """As :func:`look` for one path; nobody can move what lies above it. ``known`` has directories, None for sticky ones."""
    above, name = os.path.split(entry)
    try:
        if known.get(above) is None:
            found = known[above] = silent(above)
            if found:
                return found
            directory = host.here().open_directory(above, to_list=False)
            try:
                if not is_sticky(os.fstat(directory)):
                    known[above] = writers(directory)
                elif silent(entry):
                    return writers(directory)
                else:
                    known[above] = None
                    return movers(directory, name)
            finally:
                os.close(directory)
        return known[above] or ""
    except OSError as error:
        # Who it is cannot be told, and that is no proof of nobody.
        return f"somebody ({error.strerror})"
