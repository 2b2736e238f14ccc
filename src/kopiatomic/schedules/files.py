"""Our files in folders that others write to as well: written atomically, and never over another's file.

A file is ours if it begins with our mark, and its content has the digest in the mark: a file that was changed by hand belongs to
whoever changed it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from enum import Enum

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.schedules import trust
from kopiatomic.schedules.schedule import File
from kopiatomic.text import printable

_MARK = """\
# Written by 'kopiatomic schedule', which neither changes nor removes it once you have changed it: put settings of your own
# into another file.
# sha256 of what follows: """


class State(Enum):
    """What is in the place of one of our files."""

    NEW = "new"
    SAME = "unchanged"
    CHANGED = "changed"


def marked(content: str) -> str:
    """Return a content with our mark."""
    return f"{_MARK}{_digest(content)}\n{content}"


def is_ours(text: str) -> bool:
    """Whether a text has our mark, and is as we wrote it."""
    digest, newline, content = text.removeprefix(_MARK).partition("\n")
    return text.startswith(_MARK) and bool(newline) and digest == _digest(content)


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()


def read(path: str) -> str | None:
    """Return the text of one of our files; None if there is nothing. Raises KopiatomicError if it is not ours."""
    found = text(path)
    if found is not None and not is_ours(found):
        raise _foreign(path, "it was changed by hand" if found.startswith(_MARK) else "kopiatomic did not write it")
    return found


def text(path: str) -> str | None:
    """Return the text of any file; None if there is nothing. Raises KopiatomicError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if presence.is_link(path):
            raise _foreign(path, "it is a symbolic link") from None
        raise _refused(path, "read", error) from None
    try:
        with os.fdopen(fd, "rb") as file:
            return file.read().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise _refused(path, "read", error) from None


def state(file: File) -> State:
    """Return what is in its place. Raises KopiatomicError if that is not ours."""
    found = read(file.path)
    if found is None:
        return State.NEW
    return State.SAME if found == file.content else State.CHANGED


def write(file: File, *, top: str = "/") -> None:
    """Put a file into its place atomically, and onto the disk, unless it is already there. Raises KopiatomicError.

    Only root may be able to write to its folder, from ``top`` on.
    """
    folder = os.path.dirname(file.path)
    try:
        if not presence.is_directory(folder):
            os.makedirs(folder)
            os.chmod(folder, 0o755)
        trust.check(folder, "the folder", top=top)
        if state(file) is State.SAME:
            return
        fd, temporary = tempfile.mkstemp(prefix=".", suffix=".new", dir=folder)
        try:
            with os.fdopen(fd, "wb") as stream:
                stream.write(file.content.encode("utf-8", "surrogateescape"))
                stream.flush()
                os.fchmod(stream.fileno(), 0o644)
                os.fsync(stream.fileno())
            os.rename(temporary, file.path)
        except BaseException:
            os.unlink(temporary)
            raise
        _sync(folder)
    except OSError as error:
        raise _refused(file.path, "written", error) from None


def remove(path: str) -> None:
    """Remove a file if it exists and is ours, and its folder if that has our name and is empty. Raises KopiatomicError."""
    if read(path) is None:
        return
    above = os.path.dirname(path)
    try:
        os.unlink(path)
        if os.path.basename(above).startswith("kopiatomic@") and not os.listdir(above):
            os.rmdir(above)
            above = os.path.dirname(above)
        _sync(above)
    except OSError as error:
        raise _refused(path, "removed", error) from None


def _sync(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _foreign(path: str, why: str) -> KopiatomicError:
    return KopiatomicError(
        f"{printable(path)} is not kopiatomic's: {why}",
        kind="foreign-file",
        hint="It is left alone. Move it away if it is not needed, or choose another name for the schedule.",
    )


def _refused(path: str, what: str, error: OSError) -> KopiatomicError:
    return KopiatomicError(
        f"{printable(path)} cannot be {what}: {error.strerror}",
        kind="file",
        hint="Look at its folder (space, permissions, read-only?).",
    )
