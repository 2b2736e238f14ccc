"""The mount root on the host: one empty directory that only root can enter; it exists only while a run needs it.

Its parent directories can be changed by root alone, and it is made and removed in the parent that was opened. The lock directory
gets a note before we make one, and its identity right after, so that a later run may remove what an earlier one left, and nothing
else. Nothing is ever deleted recursively: only ``rmdir`` of an empty directory is used here.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError, advice_of
from kopiatomic.model.leftovers import Intent
from kopiatomic.model.mounts import visible
from kopiatomic.paths import parents
from kopiatomic.state import locks
from kopiatomic.system import accounts, host, looking, safety
from kopiatomic.system.descriptors import closing
from kopiatomic.text import printable

_LOOKS = 5
"""How often to look at a root before something that is missing there is an error."""


def of_run(run_id: str) -> str:
    """Return where on the host a view in place is mounted: a directory of the run's own, which nothing else looks for."""
    return f"{locks.DIRECTORY}/view-{run_id}"


def resolve(root: str) -> str:
    """Return the root as the kernel will see it: absolute, with links above it followed.

    Raises KopiatomicError if it is a link itself, or if others than root could put something else in its place. A child process
    finds that out, because what others have put there may never answer.
    """
    path = os.path.normpath(root if os.path.isabs(root) else os.path.join(os.getcwd(), root))
    if path == "/":
        raise _refused(path, "it is the root of the whole system", "Name a directory of its own, such as /kopia.")
    return looking.call(lambda: _resolve(path), path)


def _resolve(path: str) -> str:
    with _looking_at(path):
        followed, why = safety.follow(path)
        if why:
            raise _unsafe(path, why)
        path = followed
        if presence.is_link(path):
            raise _refused(
                path, "it is a symbolic link", "Name the directory itself, or choose another with --mount-root."
            )
        _settled(lambda: _require_safe(path))
    return path


@contextmanager
def _looking_at(root: str) -> Iterator[None]:
    """Refuse a root that cannot be examined."""
    try:
        yield
    except OSError as error:
        # If the system itself lacks something (/proc), this raises the fitting error.
        host.here().mounts()
        hint = advice_of(error) or "Choose another with --mount-root."
        raise _refused(root, error.strerror or str(error), hint) from None


def _require_safe(root: str) -> None:
    """Refuse a root if others than root could exchange it, or write to it. Raises KopiatomicError, OSError."""
    why = safety.unsafe(root)
    if not why and presence.exists(root, follow_links=False):
        who = safety.writers(root)
        why = f"{who} can change it, and it is {accounts.user(os.lstat(root).st_uid)}'s" if who else ""
    if why:
        raise _unsafe(root, why)


def _unsafe(root: str, why: str) -> KopiatomicError:
    return _refused(
        root, why, "Choose another with --mount-root, in directories that root alone can write to, such as /kopia."
    )


def check(root: str) -> None:
    """Refuse a root that is not a directory, holds anything that is not ours, or is not safe. Raises KopiatomicError."""
    with _looking_at(root):
        _settled(lambda: _check(root))


def _settled(look: Callable[[], None]) -> None:
    """Look again where another run, which shares a directory above, has just removed what it made. Raises OSError."""
    for _ in range(_LOOKS - 1):
        try:
            look()
            return
        except FileNotFoundError:
            continue
    look()


def _check(root: str) -> None:
    _require_safe(root)
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
    with _opened(root) as directory:
        foreign = [name for name in os.listdir(directory) if _is_foreign(os.path.join(root, name))]
    if foreign:
        raise _refused(
            root,
            f"it is not empty ({printable(foreign[0])})",
            "The view would hide what is in it. Choose an empty or new directory with --mount-root.",
        )


def _is_foreign(directory: str) -> bool:
    """Whether what is at a path is of no run of ours. A run that ends meanwhile removes its directory first, then the note."""
    return not is_noted(directory) and presence.exists(directory, follow_links=False) and not is_noted(directory)


def _opened(directory: str) -> AbstractContextManager[int]:
    """Open a directory to which no link leads. Raises OSError."""
    return closing(host.here().open_directory(directory, to_list=True))


def intents(root: str) -> list[Intent]:
    """Return the directories that :func:`make` would make now. Raises OSError."""
    missing = [d for d in (root, *parents(root)) if not presence.exists(d, follow_links=False)]
    return [Intent("directory", "", directory, origin=host.here().boot_id()) for directory in missing]


def make(root: str) -> None:
    """Make the root and its missing parents. Raises KopiatomicError."""
    with locks.clean_up():
        check(root)
        made: list[str] = []
        for directory in (*reversed(parents(root)), root):
            try:
                if presence.is_directory(directory, follow_links=False):
                    continue
                _make(directory)
            except OSError as error:
                for above in reversed(made):
                    _remove_one(above)
                raise _refused(
                    root,
                    f"{printable(directory)} cannot be made: {error.strerror}",
                    "Choose another with --mount-root.",
                ) from None
            made.append(directory)


def _make(directory: str) -> None:
    """Make one directory, noting it beforehand. Raises OSError; then neither exists."""
    note(directory)
    above, name = os.path.split(directory)
    try:
        with _opened(above) as parent:
            os.mkdir(name, 0o700, dir_fd=parent)
            note(directory, _identity(parent, os.stat(name, dir_fd=parent, follow_symlinks=False)))
    except OSError:
        os.unlink(note_of(directory))
        raise


def _identity(parent: int, directory: os.stat_result) -> tuple[int, ...]:
    """Return what distinguishes a directory and its parent from all others of this boot."""
    above = os.fstat(parent)
    return above.st_dev, above.st_ino, directory.st_dev, directory.st_ino


def note(directory: str, identity: tuple[int, ...] = ()) -> None:
    """Note in the lock directory that a run makes this directory; with an ``identity``, that it has made that one."""
    with open(note_of(directory), "wb") as mark:
        mark.write(b"\0".join([os.fsencode(directory), *(b"%d" % number for number in identity)]))


def noted(mark: str) -> tuple[str, tuple[int, ...]]:
    """Return the directory of a note, and its identity if it is known to have been made. Raises OSError."""
    with open(mark, "rb") as file:
        directory, *identity = os.fsdecode(file.read()).split("\0")
    return directory, tuple(int(number) for number in identity if number.isdecimal())


def remove(root: str, *, own: bool = True) -> list[str]:
    """Remove the root and what was made above it, unless another run needs it. Return what is left, in words.

    ``own`` says that the caller has the lock of this root itself.
    """
    try:
        return _remove(root, own=own)
    except KopiatomicError as error:
        reason = error.message
    except OSError as error:
        reason = error.strerror or str(error)
    return [f"directory {printable(root)}: {reason} (remove it with: rmdir)"]


def remove_unneeded(directories: Sequence[str]) -> None:
    """Remove the directories of a run once more, now that it has unlocked them: another run may have been in them before.

    That run left them to this one, whose lock it saw, and this one had left them to that run. What is wrong was said before.
    """
    for directory in directories:
        remove(directory, own=False)


def _remove(root: str, *, own: bool) -> list[str]:
    left = []
    with locks.clean_up():
        for directory in (root, *parents(root)):
            mine = own and directory == root
            if not is_noted(directory) or not (mine or locks.is_free(directory)):
                break
            try:
                _remove_one(directory)
            except _ReplacedError as error:
                left.append(f"directory {printable(directory)}: {error}")
                break
            except OSError as error:
                if error.errno != errno.ENOTEMPTY or (directory == root and not only_ours(directory)):
                    left.append(f"directory {printable(directory)}: {_why(error)}")
                break
    return left


class _ReplacedError(Exception):
    """What is at the path of a directory that a run made is not, or may not be, that directory."""


def _remove_one(directory: str) -> None:
    """Remove a noted directory, and the note; only the note if the directory is missing or another one is there.

    Raises OSError, _ReplacedError.

    What is removed is in the directory that was opened, and is what was made.
    """
    mark = note_of(directory)
    above, name = os.path.split(directory)
    _, identity = noted(mark)
    try:
        with _opened(above) as parent:
            if identity and identity[:2] != _identity(parent, os.fstat(parent))[:2]:
                raise _ReplacedError("another directory is above it by now (is something mounted there?)")
            if identity and identity != _identity(parent, os.stat(name, dir_fd=parent, follow_symlinks=False)):
                if directory in visible(host.here().mounts()):
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                # Ours is gone from there, and the note would refer to another's directory for the rest of the boot.
                os.unlink(mark)
                raise _ReplacedError("another one is at its path by now, which is left to whoever put it there")
            who = safety.movers(parent, name)
            if who:
                raise _ReplacedError(f"{who} can change {printable(above)} by now (remove it with: rmdir)")
            os.rmdir(name, dir_fd=parent)
            with suppress(OSError):
                # What was removed must stay removed after a power cut: its record is deleted next. Not every filesystem can do
                # that; then an empty directory may come back.
                os.fsync(parent)
    except OSError as error:
        if not presence.absent(error):
            raise
    os.unlink(mark)


def _why(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return "something is mounted on it (unmount that, then: rmdir)"
    return f"{error.strerror} (remove it with: rmdir)"


def only_ours(directory: str) -> bool:
    """Whether a directory holds only other runs' roots: the last of those runs removes it. Raises OSError."""
    return all(is_noted(os.path.join(directory, name)) for name in os.listdir(directory))


def is_noted(directory: str) -> bool:
    """Whether a run made a directory, or noted that it makes it. Raises OSError if that cannot be known."""
    return presence.exists(note_of(directory), follow_links=False)


def note_of(directory: str) -> str:
    """Return the file that says that a run made a directory."""
    return locks.path_of("made", directory)


def _refused(root: str, reason: str, hint: str) -> KopiatomicError:
    return KopiatomicError(f"the mount root {printable(root)} cannot be used: {reason}", kind="mount-root", hint=hint)
