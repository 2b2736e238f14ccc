"""Who besides root can change a file or directory, or put something else in a path's place. Only this module judges that.

A directory is *safe* if it belongs to root and only root can write to it; or if it is root's and sticky, and the next component
of the path is root's, which then only root can move (``/tmp``, ``/var/tmp``). Groups count as others, even 0: wheel has members.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Callable, Collection, Iterable, Iterator

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.paths import parents
from kopiatomic.system import accounts, host, looking
from kopiatomic.text import printable

LINKS = 40
"""How many symbolic links the kernel follows in one path (path_resolution(7))."""


def writers(at: int | str) -> str:
    """Return who besides root can write to a file or directory, in words; empty if only root can.

    ``at`` is an open descriptor, or a path whose last component is not followed. The owner counts, since an owner can always
    grant it, and so do access control lists if the kernel shows any. Raises OSError.
    """
    status = os.fstat(at) if isinstance(at, int) else os.lstat(at)
    found = [f"user {accounts.user(status.st_uid)}"] if status.st_uid != 0 else []
    if not stat.S_ISLNK(status.st_mode):
        # With a POSIX list, the group's bits are its mask, and the group itself is one of its entries.
        listed = host.here().listed_writers(at, status.st_gid)
        if listed is not None:
            found += listed
        elif status.st_mode & stat.S_IWGRP:
            found.append(f"group {accounts.group(status.st_gid)}")
        if status.st_mode & stat.S_IWOTH:
            found.append("everybody")
    return " and ".join(dict.fromkeys(found))


def movers(directory: int, name: str) -> str:
    """Return who besides root can replace an entry of an open directory, in words; empty if only root can.

    An entry that does not exist yet counts as root's. Raises OSError.
    """
    found = writers(directory)
    if not found or not is_sticky(os.fstat(directory)):
        return found
    try:
        owner = os.stat(name, dir_fd=directory, follow_symlinks=False).st_uid
    except FileNotFoundError:
        return ""
    return f"user {accounts.user(owner)}" if owner != 0 else ""


def is_own(status: os.stat_result, *, shut: bool) -> bool:
    """Whether it is a directory of this process's user, which is root, to which others cannot write; ``shut``: nor enter it."""
    closed = 0o077 if shut else 0o022
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & closed


def require_own(
    status: os.stat_result,
    noun: str,
    *,
    shut: bool,
    kind: str,
    hint: str,
    error: type[KopiatomicError] = KopiatomicError,
) -> None:
    """Refuse what is not one of our directories (:func:`is_own`). ``noun`` says what is not one. Raises ``error``."""
    if not is_own(status, shut=shut):
        raise error(f"{noun} that only root can {'enter' if shut else 'write to'}", kind=kind, hint=hint)


def is_sticky(status: os.stat_result) -> bool:
    """Whether only root and the owners of the entries can move what is in one of root's directories."""
    return bool(status.st_mode & stat.S_ISVTX) and status.st_uid == 0


def steps(path: str, *, links: bool = False) -> Iterator[str]:
    """Yield every step along an absolute path, including ``/`` and the end, with links followed.

    The links themselves, to which nothing can be written, are left out without ``links``. What does not exist is yielded as it
    is. Raises OSError.
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


def is_plainly_safe(path: str) -> bool:
    """Whether each directory on an absolute path, its end included, is one that only root can change. What is missing is root's.

    No user can hold this up: a step is looked at only if root alone can change the one above. False says nothing: there may be a
    link, or a sticky directory. Raises OSError.
    """
    here = "/"
    for name in ("", *path.strip("/").split("/")):
        here = os.path.join(here, name)
        status = presence.status(here, follow_links=False)
        if status is None:
            return True
        if name == ".." or not stat.S_ISDIR(status.st_mode) or writers(here):
            return False
    return True


def follow(path: str) -> tuple[str, str]:
    """Return an absolute path with the links above its last component followed, and why others than root can exchange one of
    these links, in words; empty if only root can. Raises OSError.
    """
    above, why = "/", ""
    for above in steps(os.path.dirname(path), links=True):
        if presence.is_link(above) and (why := unsafe(above)):
            break
    return os.path.join(above, os.path.basename(path)), why


def unsafe_way(path: str) -> str:
    """Return why others than root can change what an absolute path leads to, in words; empty if only root can.

    Looks in a child where a user could hold that up. Raises OSError, and what :func:`looking.call` raises.
    """
    return "" if is_plainly_safe(path) else looking.call(lambda: _unsafe_way(path), path)


def _unsafe_way(path: str) -> str:
    followed, why = follow(path)
    return why or unsafe(followed)


def require_safe_target(path: str) -> None:
    """Refuse, as root, a target whose way others can change: what root writes could be led elsewhere. Raises KopiatomicError."""
    why = unsafe_way(path) if os.geteuid() == 0 else ""
    if why:
        raise KopiatomicError(
            f"nothing is restored to {printable(path)} as root, since others can replace what leads to it: {why}",
            kind="unsafe-target",
            hint="Restore to a directory whose parents only root can change, such as /srv/restored, and move it from there.",
        )


COPY = "copy it to where root alone can write, after reading it"
"""What to do about a file that others than root may have put there, or may exchange before a command on it has run."""


def mend(path: str, *words: str) -> str:
    """Return a command that changes a file, quoted for a shell; or :data:`COPY` unless that can do no harm.

    The file must belong to this process's user, which is root or somebody who asks about files of their own, have no other name,
    and be no link, which a command would follow. Of root's, nobody else may be able to exchange it. Raises OSError, and what
    :func:`looking.call` raises.
    """
    if os.geteuid() == 0 and unsafe_way(path):
        return COPY
    status = os.lstat(path)
    plain = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1
    return printable(shlex.join([*words, path])) if plain else COPY


def shut(path: str) -> str:
    """Return how to make a file readable for its owner alone, as :func:`mend` does."""
    return mend(path, "chmod", "600")


def changeable(path: str) -> str:
    """Return who besides root can change a file's content, or what an absolute path leads to, in words; empty if only root can.

    Looks in a child, since a user could hold that up. Raises OSError, and what :func:`looking.call` raises.
    """
    return looking.call(lambda: _changeable(path), path)


def _changeable(path: str) -> str:
    for step in steps(path, links=True):
        if presence.is_link(step) and (why := unsafe(step)):
            return why
    real = os.path.realpath(path)
    who = writers(real)
    return unsafe(real) or (f"{who} can write to {printable(real)}" if who else "")


def diverted(path: str) -> str:
    """Return how others than root have led an absolute path to a file that may not be theirs, in words; empty if they have not.

    They do so by a link on the way, or by a second name of the file (link(2)). Looks in a child where a user could hold that up.
    Raises OSError, and what :func:`looking.call` raises.
    """
    if is_plainly_safe(os.path.dirname(path)) and not presence.is_link(path):
        return ""
    return looking.call(lambda: _diverted(path), path)


def _diverted(path: str) -> str:
    for step in steps(path, links=True):
        if presence.is_link(step) and (why := unsafe(step)):
            return f"{printable(step)} is a link, and {why}"
    status, folder = presence.status(path), presence.status(os.path.dirname(path))
    if status is None or folder is None or status.st_mode & stat.S_IROTH or status.st_uid == folder.st_uid:
        return ""
    why = unsafe(os.path.realpath(path))
    return f"it belongs to {accounts.user(status.st_uid)}, who alone may know its content, and {why}" if why else ""


def unsafe(path: str, until: Collection[str] = ()) -> str:
    """Return why others than root can replace what is at an absolute path, in words; empty if only root can.

    What does not exist yet counts as root's; nothing can be moved from a directory of ``until`` on upwards. Raises OSError.
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
    """Return who besides root can replace what is at some absolute paths, or above them.

    By path, in words; empty if only root can. Below the first path that others can replace, nothing is examined. ``silent`` names
    who could keep a directory from answering: it is not opened, and that name is the result; empty if it may be opened.
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
    """Return the same for one path; only root can move what lies above it. ``known`` has directories, None for sticky ones."""
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
        # An unknown answer is no proof that only root can.
        return f"somebody ({error.strerror})"
