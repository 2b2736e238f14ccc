"""The directory that a backup is restored into: ours alone until everything is in it.

While a restore goes on, or after one was interrupted, it has a folder with what the engine has restored so far, and a note of
what that is; so the same restore can be run again, and no other one goes on in it.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.system import safety
from kopiatomic.system.descriptors import closing
from kopiatomic.text import printable
from kopiatomic.trees import attributes, removal
from kopiatomic.trees.owners import Owners
from kopiatomic.trees.walk import opened, walk

FOLDER = ".kopiatomic-restoring"
_DATA = "data"
_NOTE = "what.json"
_PROBES = (
    ("extended attributes", "user.kopiatomic", b""),
    # The permission bits alone: version 2, and user, group and others with no id.
    (
        "access control lists",
        "system.posix_acl_access",
        struct.pack("<IHHIHHIHHI", 2, 1, 7, 2**32 - 1, 4, 0, 2**32 - 1, 32, 0, 2**32 - 1),
    ),
)
"""What engines set, and may ignore if it cannot be set."""
_MARK = "trusted.kopiatomic.restoring"
"""Root's own; others restore without it."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Target:
    """The target, open. ``path`` is absolute; ``name`` is what the user calls it."""

    def __init__(self, path: str, fd: int, name: str) -> None:
        self.path = path
        self.fd = fd
        self.name = name

    @classmethod
    @contextmanager
    def prepared(cls, path: str, what: Mapping[str, str]) -> Iterator[Self]:
        """Make the directory, or take one that is empty or that the same restore has left. Raises KopiatomicError."""
        absolute = os.path.abspath(path)
        with understood(absolute):
            safety.require_safe_target(absolute)
            with closing(_opened(absolute)) as fd:
                yield cls.taken(absolute, fd, absolute, what)

    @classmethod
    def taken(cls, path: str, fd: int, name: str, what: Mapping[str, str]) -> Self:
        """Take an open directory that is empty or that the same restore has left. Raises KopiatomicError, OSError."""
        target = cls(path, fd, name)
        target._take(what)
        return target

    def _take(self, what: Mapping[str, str]) -> None:
        names = os.listdir(self.fd)
        is_ours = safety.is_own(os.fstat(self.fd), shut=True)
        if names == [FOLDER] and is_ours and self._note() is None:
            # One was killed before it had said of what it is.
            removal.remove(self.fd, FOLDER)
            names = []
        note = self._note() if FOLDER in names else self._mark()
        if FOLDER in names or (names and note is not None and is_ours):
            # Ours is closed to all others until its end: nobody else can have put the note there.
            if not is_ours or note != what:
                raise KopiatomicError(
                    f"{printable(self.name)} has what another restore, which was interrupted, has left",
                    kind="target-not-empty",
                    hint="Run that one again, or name a directory that does not exist yet.",
                )
            # All of it is what that restore has made: until its end nobody else could enter.
            if FOLDER not in names:
                self._begin(what)
            for name in names:
                removal.remove(self.fd, f"{FOLDER}/{_DATA}" if name == FOLDER else name)
        elif names:
            raise _not_empty(self.name)
        else:
            self._close()
            _forget_attributes(self.fd)
            self._begin(what)

    def _begin(self, what: Mapping[str, str]) -> None:
        """Make our folder, with its note. Raises OSError."""
        os.mkdir(FOLDER, 0o700, dir_fd=self.fd)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with closing(os.open(f"{FOLDER}/{_NOTE}", flags, 0o600, dir_fd=self.fd)) as file:
            os.write(file, json.dumps(what).encode())

    def _close(self) -> None:
        """Close an empty directory to all others. Raises KopiatomicError if its owner puts something in or moves it meanwhile."""
        before = os.fstat(self.fd)
        os.fchown(self.fd, os.geteuid(), os.getegid())
        os.fchmod(self.fd, 0o700)
        # From now on nobody else can do either.
        there = presence.status(self.path, follow_links=False)
        if there is not None and os.path.samestat(there, before) and not os.listdir(self.fd):
            return
        os.fchmod(self.fd, stat.S_IMODE(before.st_mode))
        os.fchown(self.fd, before.st_uid, before.st_gid)
        raise _not_empty(self.name)

    def _note(self) -> object:
        """Return what the folder says that it is of; None if it says nothing."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            with open(os.open(f"{FOLDER}/{_NOTE}", flags, dir_fd=self.fd), encoding="utf-8") as file:
                return json.load(file)
        except (FileNotFoundError, ValueError):
            return None

    def _mark(self) -> object:
        """Return what the attribute says that replaces the folder in the last moments; None where there is none."""
        try:
            return json.loads(os.getxattr(self.fd, _MARK))
        except ValueError:
            return None
        except OSError as error:
            if error.errno in {errno.ENODATA, *attributes.NONE}:
                return None
            raise

    @property
    def data(self) -> str:
        """The path of the directory that the engine restores into, which it makes."""
        return f"{self.path}/{FOLDER}/{_DATA}"

    inside_data = f"{FOLDER}/{_DATA}"
    """The same, relative to the target."""

    def lacks(self) -> list[str]:
        """Return what its filesystem has not, in words: some engines leave that out in silence. Raises OSError."""
        found = []
        for words, name, value in _PROBES:
            try:
                os.setxattr(f"/proc/self/fd/{self.fd}/{FOLDER}", name, value)
            except OSError as error:
                if error.errno not in attributes.NONE:
                    raise
                found.append(
                    f"{printable(self.name)}: its filesystem has no {words}: what was saved with some comes back without"
                )
        return found

    @property
    def folds_case(self) -> bool:
        """Whether names that differ in case alone are the same there. Raises OSError."""
        return presence.status(FOLDER.upper(), follow_links=False, directory=self.fd) is not None

    @property
    def is_whole(self) -> bool:
        """Whether the target stands for a directory that was restored."""
        return self._like is not None

    def take_over(self, stored: str, place: str) -> bool:
        """Move what the engine has restored at an absolute path to its place below the target; return whether it was there.

        A directory for the empty place gives its entries to the target, and its owner and mode at the end (:meth:`finish`).
        Raises OSError.
        """
        if not stored.strip("/"):
            with opened(self.fd, self.inside_data) as whole:
                self._take_entries(whole)
            return True
        above, _, name = stored.strip("/").rpartition("/")
        try:
            with opened(self.fd, "/".join(filter(None, (FOLDER, _DATA, above)))) as source:
                if place or not _is_directory(source, name):
                    self._move(source, name, place or name)
                    return True
                with closing(os.open(name, _DIRECTORY, dir_fd=source)) as whole:
                    self._like = os.fstat(whole)
                    self._take_entries(whole)
        except FileNotFoundError:
            return False
        return True

    def _take_entries(self, whole: int) -> None:
        for one in os.listdir(whole):
            os.rename(one, one, src_dir_fd=whole, dst_dir_fd=self.fd)

    def _move(self, source: int, name: str, place: str) -> None:
        *above, last = place.strip("/").split("/")
        parent = os.dup(self.fd)
        try:
            for one in above:
                try:
                    os.mkdir(one, 0o755, dir_fd=parent)
                except FileExistsError:
                    pass
                inside = os.open(one, _DIRECTORY, dir_fd=parent)
                os.close(parent)
                parent = inside
            os.rename(name, last, src_dir_fd=source, dst_dir_fd=parent)
        finally:
            os.close(parent)

    _like: os.stat_result | None = None

    def finish(self, owners: Owners) -> None:
        """Remove our folder, and give the target the owner, mode and times of the directory that it stands for.

        Raises OSError.
        """
        marked = self._set_mark()
        removal.remove(self.fd, FOLDER)
        if self._like is not None:
            os.utime(self.fd, ns=(self._like.st_atime_ns, self._like.st_mtime_ns))
            # Last: from then on others may enter.
            if os.geteuid() == 0:
                os.fchown(self.fd, *owners.of(self._like.st_uid, self._like.st_gid))
            os.fchmod(self.fd, self._like.st_mode & 0o7777)
        if marked:
            os.removexattr(self.fd, _MARK)

    def _set_mark(self) -> bool:
        """Mark the target as what the folder's note says: the last times can be set only without the folder."""
        try:
            os.setxattr(self.fd, _MARK, json.dumps(self._note()).encode())
        except OSError as error:
            # A long list of paths may be too large for an attribute.
            if error.errno in {errno.EPERM, errno.ENOSPC, errno.E2BIG, errno.ERANGE, *attributes.NONE}:
                return False
            raise
        return True


@contextmanager
def understood(name: str) -> Iterator[None]:
    """Say of which target it is that the system refuses something. Raises KopiatomicError."""
    try:
        yield
    except OSError as error:
        raise unusable(name, error) from None


def is_restoring(fd: int) -> bool:
    """Whether an open directory has what a restore leaves until its end. Raises OSError."""
    return FOLDER in os.listdir(fd)


def has_data(fd: int) -> bool:
    """Whether anything but directories has been restored into an open directory. Raises OSError."""
    for directory in walk(fd, _raise):
        inside = [entry for entry in directory.entries if not entry.is_dir(follow_symlinks=False)]
        if inside and directory.path != FOLDER:
            return True
    return False


def _raise(_path: str, error: OSError) -> None:
    raise error


def _opened(path: str) -> int:
    """Open a directory, making it if it is not there; those above it must be. Raises OSError."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    return os.open(path, _DIRECTORY)


def _not_empty(name: str) -> KopiatomicError:
    return KopiatomicError(
        f"{printable(name)} is not an empty directory, and nothing may be overwritten",
        kind="target-not-empty",
        hint="Name a directory that does not exist yet.",
    )


def _forget_attributes(fd: int) -> None:
    """Remove what a new directory has inherited: access control lists and the like, which what is made in it would inherit."""
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return
        raise
    for name in names:
        if name.startswith("system."):
            os.removexattr(fd, name)


def _is_directory(parent: int, name: str) -> bool:
    status = presence.status(name, follow_links=False, directory=parent)
    return status is not None and stat.S_ISDIR(status.st_mode)


_NO_ROOM = "Make room there. The same command goes on later."
_FORBIDDEN = "Name a directory in one to which you may write, or run it as root."
_HINTS = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EROFS: "Its filesystem is read-only: mount it writable, or name a directory elsewhere.",
    errno.ENOENT: "The directory above it must exist: make that first.",
    errno.ENOTDIR: "Name a directory that does not exist yet; what is there, or leads there, is none.",
    errno.ELOOP: "Name the directory itself, not a link.",
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.ENAMETOOLONG: "Name a directory with a shorter path.",
}
_HINT = "Is its filesystem in order? The same command goes on later."
"""For what is none of these."""


def unusable(name: str, error: OSError) -> KopiatomicError:
    """Return the error for a target that cannot be written to."""
    return KopiatomicError(
        f"{printable(name)} cannot be restored into: {error.strerror}",
        kind="target",
        hint=_HINTS.get(error.errno or 0, _HINT),
    )
