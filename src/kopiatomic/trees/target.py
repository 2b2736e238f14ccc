"""The directory that a backup is restored into: ours alone until everything is in it.

While a restore goes on, or after one was interrupted, it has a folder with what the engine has restored so far, and a note of
what that is; so the same restore can be run again, and no other one goes on in it. From the time when all of it is in its place
until the report an attribute stands for the folder: with that, only the last part is done again, and the comparison.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Self

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.system import inodes, safety
from kopiatomic.system.descriptors import closing
from kopiatomic.text import printable
from kopiatomic.trees import attributes, removal
from kopiatomic.trees.owners import Owners
from kopiatomic.trees.walk import opened, walk

FOLDER = ".kopiatomic-restoring"
_DATA = "data"
_NOTE = "what.json"
_LONGEST_NOTE = 1 << 26
"""Bytes; it has all paths of a command."""
_PROBE = "probe"
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
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@immutable
class Done:
    """What a restore has done that has put everything into its place."""

    applied: int
    """To how many entries it has given what the engine had lost."""
    failures: int
    """How much it could not give back."""


@immutable
class _Like:
    """The owner, mode and times of the directory that the target stands for."""

    uid: int
    gid: int
    mode: int
    atime_ns: int
    mtime_ns: int


class Target:
    """The target, open. ``path`` is absolute; ``name`` is what the user calls it."""

    def __init__(self, path: str, fd: int, name: str) -> None:
        self.path = path
        self.fd = fd
        self.name = name
        self.done: Done | None = None
        """What is known of the same restore, if it has put everything into its place already."""

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
        self._lock()
        names = os.listdir(self.fd)
        is_ours = self._is_ours(names)
        mark = _mark(self.fd)
        if mark is not None:
            # Root alone can set it.
            if mark.get("of") != what:
                raise _of_another(self.name, mark.get("of"))
            self._like = _Like(*mark["like"]) if mark["like"] else None
            self.done = Done(mark["applied"], mark["failures"])
            _loosened(self.fd)
            return
        if names == [FOLDER] and is_ours and self._note() is None:
            # One was killed before it had said of what it is.
            removal.remove(self.fd, FOLDER)
            names = []
        if FOLDER in names:
            # Ours is closed to all others until its end: nobody else can have put the note there.
            note = self._note() if is_ours else None
            if note != what:
                raise _of_another(self.name, note)
            # All of it is what that restore has made: until its end nobody else could enter.
            for name in names:
                removal.remove(self.fd, f"{FOLDER}/{_DATA}" if name == FOLDER else name)
        elif names:
            raise _not_empty(self.name)
        else:
            self._close()
            _forget_attributes(self.fd)
            self._begin(what)

    def _lock(self) -> None:
        """Keep other restores out as long as it is open: the same command would take this one for interrupted.

        Raises KopiatomicError, OSError.
        """
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KopiatomicError(
                f"{printable(self.name)} is locked: another restore into it is going on",
                kind="target-locked",
                hint="Wait for its end, or restore into another directory.",
            ) from None
        except OSError as error:
            # Some network filesystems lock no directory, or nothing.
            if error.errno not in {errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}:
                raise

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

    def _is_ours(self, names: Collection[str]) -> bool:
        """Whether nobody else can have put anything into the target, or into our folder if it is there. Raises OSError."""
        found = [os.fstat(self.fd)]
        if FOLDER in names:
            found.append(os.stat(FOLDER, dir_fd=self.fd, follow_symlinks=False))
        return all(safety.is_own(status, shut=True) for status in found)

    def _note(self) -> object:
        """Return what our folder says that it is of; None if it says nothing. Raises OSError."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            with opened(self.fd, FOLDER) as folder, closing(os.open(_NOTE, flags, dir_fd=folder)) as file:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode) or status.st_size > _LONGEST_NOTE:
                    return None
                return json.loads(os.read(file, status.st_size))
        except (FileNotFoundError, ValueError, RecursionError):
            return None

    @property
    def data(self) -> str:
        """The path of the directory that the engine restores into, which it makes."""
        return f"{self.path}/{FOLDER}/{_DATA}"

    inside_data = f"{FOLDER}/{_DATA}"
    """The same, relative to the target."""

    def lacks(self) -> list[str]:
        """Return what cannot be set there, in words: some engines leave that out in silence. Raises OSError."""
        found = []
        why = self._refuses_owners() if os.geteuid() == 0 else None
        if why is not None:
            found.append(f"{printable(self.name)}: owners cannot be set there ({why}): all that is restored is root's")
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

    def _refuses_owners(self) -> str | None:
        """Return why owners cannot be set there; None if they can. Raises OSError."""
        inside = f"{FOLDER}/{_PROBE}"
        with suppress(FileExistsError):
            os.mkdir(inside, 0o700, dir_fd=self.fd)
        try:
            os.chown(inside, 1, 1, dir_fd=self.fd, follow_symlinks=False)
            status = os.stat(inside, dir_fd=self.fd, follow_symlinks=False)
            return None if (status.st_uid, status.st_gid) == (1, 1) else "they are not kept"
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EINVAL, *attributes.NONE}:
                raise
            return error.strerror
        finally:
            os.rmdir(inside, dir_fd=self.fd)

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
                    status = os.fstat(whole)
                    times = status.st_atime_ns, status.st_mtime_ns
                    self._like = _Like(status.st_uid, status.st_gid, status.st_mode & 0o7777, *times)
                    self._take_entries(whole)
        except FileNotFoundError:
            return False
        return True

    def _take_entries(self, whole: int) -> None:
        for one in os.listdir(whole):
            _move(one, whole, one, self.fd)

    def _move(self, source: int, name: str, place: str) -> None:
        above, _, last = place.strip("/").rpartition("/")
        self.make_way(above)
        with opened(self.fd, above) as parent:
            _move(name, source, last, parent)

    def make_way(self, above: str) -> None:
        """Make a directory below the target, and those above it. Raises OSError."""
        names = above.split("/") if above else []
        for depth, name in enumerate(names):
            with opened(self.fd, "/".join(names[:depth])) as parent, suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=parent)

    _like: _Like | None = None

    def finish(self, owners: Owners, done: Done) -> None:
        """Remove our folder, and give the target the owner, mode and times of the directory that it stands for.

        The target stays marked as what the same restore has made, where it can be, until :meth:`release`. Raises OSError.
        """
        if self.done is None:
            self._set_mark(done)
        removal.remove(self.fd, FOLDER)
        if self._like is not None:
            os.utime(self.fd, ns=(self._like.atime_ns, self._like.mtime_ns))
            # Last: from then on others may enter.
            if os.geteuid() == 0:
                os.fchown(self.fd, *owners.of(self._like.uid, self._like.gid))
            os.fchmod(self.fd, self._like.mode)

    def release(self) -> None:
        """Remove the mark, when it has been reported what came of the restore. Raises OSError."""
        if _mark(self.fd) is None:
            return
        flags = _loosened(self.fd)
        os.removexattr(self.fd, attributes.RESTORING)
        if flags & inodes.HELD:
            inodes.set_flags(self.fd, flags)

    def _set_mark(self, done: Done) -> None:
        """Mark the target as what the folder's note says: the last times can be set only without the folder."""
        like = None
        if self._like is not None:
            like = [self._like.uid, self._like.gid, self._like.mode, self._like.atime_ns, self._like.mtime_ns]
        mark = {"of": self._note(), "like": like, "applied": done.applied, "failures": done.failures}
        try:
            os.setxattr(self.fd, attributes.RESTORING, json.dumps(mark).encode())
        except OSError as error:
            # A long list of paths may be too large for an attribute.
            if error.errno not in {errno.EPERM, errno.ENOSPC, errno.E2BIG, errno.ERANGE, *attributes.NONE}:
                raise


@contextmanager
def understood(name: str) -> Iterator[None]:
    """Say of which target it is that the system refuses something. Raises KopiatomicError."""
    try:
        yield
    except OSError as error:
        raise unusable(name, error) from None


def is_restoring(fd: int) -> bool:
    """Whether an open directory has what a restore leaves until its end. Raises OSError."""
    return FOLDER in os.listdir(fd) or _mark(fd) is not None


def _loosened(fd: int) -> int:
    """Clear the flags with which nothing can be changed in an open directory; return all that it had. Raises OSError."""
    flags = inodes.flags(fd) or 0
    if flags & inodes.HELD:
        inodes.set_flags(fd, flags & ~inodes.HELD)
    return flags


def _mark(fd: int) -> Mapping[str, Any] | None:
    """Return what the attribute says that stands for the folder at last; None where there is none. Raises OSError."""
    try:
        mark = json.loads(os.getxattr(fd, attributes.RESTORING))
    except OSError as error:
        if error.errno in {errno.ENODATA, *attributes.NONE}:
            return None
        raise
    except (ValueError, RecursionError):
        # An engine gives back what a repository has.
        return None
    return mark if isinstance(mark, dict) else None


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


def _of_another(name: str, note: object) -> KopiatomicError:
    """Return the error for what another restore has left, whose note, if it is to be believed, says of what it is."""
    of = ""
    if isinstance(note, dict):
        what = str(note.get("dataset") or note.get("paths") or "everything").replace("\n", ", ")
        of = f": of {note.get('engine')}'s snapshot {note.get('snapshot')}, {what}"
    return KopiatomicError(
        f"{printable(name)} has what another restore, which was interrupted, has left{printable(of)}",
        kind="target-not-empty",
        hint=f"Run that one again, or remove {printable(name)} with what is in it, or name one that does not exist yet.",
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


def _move(name: str, source: int, new: str, parent: int) -> None:
    """Move an entry from one open directory to another. Raises OSError."""
    try:
        os.rename(name, new, src_dir_fd=source, dst_dir_fd=parent)
    except PermissionError:
        if os.geteuid() == 0 or not _is_directory(source, name):
            raise
        # Only root can move a directory that is not to be written to.
        mode = stat.S_IMODE(os.stat(name, dir_fd=source, follow_symlinks=False).st_mode)
        os.chmod(name, 0o700, dir_fd=source)
        os.rename(name, new, src_dir_fd=source, dst_dir_fd=parent)
        os.chmod(new, mode, dir_fd=parent)


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
