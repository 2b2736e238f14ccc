"""The mount root on the host: one empty directory, root's alone, there only while a run needs it.

That we made a directory is noted in the lock directory before it is made, so that a later run may remove what an earlier
one left, and nothing else. Never a recursive delete: ``rmdir`` of an empty directory is all that happens here.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from kopiatomic import locks, presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.model import Intent
from kopiatomic.system import host
from kopiatomic.system.mountinfo import parents
from kopiatomic.text import printable


def of_run(run_id: str) -> str:
    """Where on the host a view in place is mounted: a directory of its run's own, that nothing else looks for."""
    return f"{locks.DIRECTORY}/view-{run_id}"


def resolve(root: str) -> str:
    """The root as the kernel will see it: absolute, links above it followed. Raises KopiatomicError if itself a link."""
    path = os.path.normpath(root if os.path.isabs(root) else os.path.join(os.getcwd(), root))
    if path == "/":
        raise _refused(path, "it is the root of the whole system", "Name a directory of its own, such as /kopia.")
    path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    with _looking_at(path):
        if presence.is_link(path):
            raise _refused(
                path, "it is a symbolic link", "Name the directory itself, or choose another with --mount-root."
            )
    return path


@contextmanager
def _looking_at(root: str) -> Iterator[None]:
    """Refuse a root that cannot be looked at."""
    try:
        yield
    except OSError as error:
        raise _refused(root, error.strerror or str(error), "Choose another with --mount-root.") from None


def check(root: str) -> None:
    """Refuse a root that is no directory, or that holds anything not ours. Raises KopiatomicError."""
    with _looking_at(root):
        status = presence.status(root, follow_links=False)
        if status is None:
            above = next(directory for directory in parents(root) if presence.exists(directory))
            if os.statvfs(above).f_flag & os.ST_RDONLY:
                reason = f"{printable(root)} cannot be made: {os.strerror(errno.EROFS)}"
                raise _refused(root, reason, "Choose another with --mount-root.")
            if not presence.is_directory(above):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            return
        if not stat.S_ISDIR(status.st_mode):
            raise _refused(root, "it is not a directory", "Choose another with --mount-root.")
        foreign = [name for name in os.listdir(root) if not is_noted(os.path.join(root, name))]
    if foreign:
        raise _refused(
            root,
            f"it is not empty ({printable(foreign[0])})",
            "The view would hide what is in it. Choose an empty or new directory with --mount-root.",
        )


def intents(root: str) -> list[Intent]:
    """The directories that :func:`make` would make now."""
    missing = [directory for directory in (root, *parents(root)) if not presence.exists(directory, follow_links=False)]
    return [Intent("directory", "", directory, origin=host.here().boot_id()) for directory in missing]


def make(root: str) -> None:
    """Make the root and what is missing above it. Raises KopiatomicError."""
    with locks.clean_up():
        check(root)
        made: list[str] = []
        for directory in (*reversed(parents(root)), root):
            try:
                if presence.is_directory(directory):
                    continue
                _make(directory)
            except OSError as error:
                for above in reversed(made):
                    os.rmdir(above)
                    os.unlink(note_of(above))
                raise _refused(
                    root,
                    f"{printable(directory)} cannot be made: {error.strerror}",
                    "Choose another with --mount-root.",
                ) from None
            made.append(directory)


def _make(directory: str) -> None:
    """Make one directory, noted before it is there. Raises OSError; then there is neither."""
    note(directory)
    try:
        os.mkdir(directory, 0o700)
    except OSError:
        os.unlink(note_of(directory))
        raise


def note(directory: str) -> None:
    """Say in the lock directory that a run makes, or made, this directory."""
    with open(note_of(directory), "wb") as mark:
        mark.write(os.fsencode(directory))


def remove(root: str, *, own: bool = True) -> list[str]:
    """Remove the root and what was made above it, unless another run needs it. Returns what is left, in words.

    ``own`` says that the caller has the lock of this root itself.
    """
    try:
        return _remove(root, own=own)
    except KopiatomicError as error:
        reason = error.message
    except OSError as error:
        reason = error.strerror or str(error)
    return [f"directory {printable(root)}: {reason} (remove it with: rmdir)"]


def _remove(root: str, *, own: bool) -> list[str]:
    left = []
    with locks.clean_up():
        for directory in (root, *parents(root)):
            mine = own and directory == root
            if not is_noted(directory) or not (mine or locks.is_free(directory)):
                break
            try:
                os.rmdir(directory)
            except OSError as error:
                if presence.absent(error):
                    _forget(directory)
                    continue
                if error.errno != errno.ENOTEMPTY or (directory == root and not only_ours(directory)):
                    left.append(f"directory {printable(directory)}: {_why(error)}")
                break
            _forget(directory)
    return left


def _forget(directory: str) -> None:
    """Take away the note of a directory that is not there any more."""
    _sync(os.path.dirname(directory))
    os.unlink(note_of(directory))


def _why(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return "something is mounted on it (unmount that, then: rmdir)"
    return f"{error.strerror} (remove it with: rmdir)"


def _sync(directory: str) -> None:
    """Have what was removed from a directory stay removed after a power cut: its record is deleted next."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if presence.absent(error):
            # Whoever removed it removed what was in it.
            return
        raise
    try:
        os.fsync(fd)
    except OSError:
        # Not every filesystem can; what may come back is an empty directory.
        pass
    finally:
        os.close(fd)


def only_ours(directory: str) -> bool:
    """Whether a directory holds only other runs' roots: the last of them removes it."""
    return all(is_noted(os.path.join(directory, name)) for name in os.listdir(directory))


def is_noted(directory: str) -> bool:
    """Whether a run made a directory, or says that it makes it. Raises OSError where that cannot be told."""
    return presence.exists(note_of(directory), follow_links=False)


def note_of(directory: str) -> str:
    """The file that says that a run made a directory."""
    return locks.path_of("made", directory)


def _refused(root: str, reason: str, hint: str) -> KopiatomicError:
    return KopiatomicError(f"the mount root {printable(root)} cannot be used: {reason}", kind="mount-root", hint=hint)
