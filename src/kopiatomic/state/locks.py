"""Kernel locks (flock) in one folder: one for each run, one for each view root, and a short one for changes to the folder.

A lock lives as long as a process of its run: keeper and launcher inherit it. So a run's lock, never a process id or an age, tells
whether it is alive. A run's files are removed with its last process. That of a run that was killed stays until its end is
recorded: with the lock it shows that the run was killed, to whoever has its record, and names the directory of that.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError, LockedError
from kopiatomic.state.ownership import is_run_id
from kopiatomic.system import channel, host, safety, signals
from kopiatomic.text import printable

DIRECTORY = f"{host.run_directory()}/kopiatomic"
"""Accessible to root only; not configurable, so that two runs with different settings still see each other.

Without symbolic links: views are mounted in it, and the mount table has paths without links.
"""

LISTS = ("datasets", "sources")
"""What a run lists in files: see ``state/lists.py``."""

TEMPORARY = "tmp"
"""The name of the directory beside them on which a program's own directory for temporary files is mounted."""

_MOMENT = 60.0
"""Seconds to wait for the short-lived lock."""

_PAUSE = 0.01
_CLAIMS = 5
"""How often to try to claim a dead run: a process that only checks whether it lives blocks the lock for a moment."""

_CLEARING = "clearing"
"""The word in a dead run's file while its leftovers are removed."""

_END = b"end"
"""The word in a run's file when it has been asked to end."""

_WORD = 32
"""Bytes at the beginning of a run's file for such a word and a mark; what follows is the directory of the run's record."""

_MARK = _WORD - 1
"""Where the mark is, which no word reaches."""

_STARTED = b"s"
"""The mark in the file of a run that has started what it owes, where its records could not be written."""

_IDENTITY = "id"
"""The file with the directory's id."""

_POLL = 0.5
"""Seconds between two tries to take a lock: a blocking flock(2) would not notice signals."""


def prepare() -> None:
    """Make the directory, and its id. Raises KopiatomicError if that fails or others than root can enter it."""
    try:
        os.makedirs(DIRECTORY, 0o700, exist_ok=True)
        status = os.lstat(DIRECTORY)
    except OSError as error:
        raise _no_lock(error) from None
    safety.require_own(
        status,
        f"{DIRECTORY} is not a directory",
        shut=True,
        kind="lock-directory",
        hint=f"Look at it, then: chown root: {DIRECTORY}; chmod 700 {DIRECTORY}",
    )
    _make_identity(DIRECTORY)


@cache
def _make_identity(directory: str) -> str:
    """Return the directory's id as this process first saw it; make one if missing. Children inherit it with the locks."""
    fd = _open(f"{directory}/{_IDENTITY}", wait=True)
    assert fd is not None
    try:
        found = _read_identity(fd)
        if not found:
            found = os.urandom(8).hex()
            os.ftruncate(fd, 0)
            os.pwrite(fd, found.encode(), 0)
        return found
    except OSError as error:
        raise _no_lock(error) from None
    finally:
        os.close(fd)


def _read_identity(fd: int) -> str:
    found = os.pread(fd, 64, 0).decode("ascii", "replace")
    return found if re.fullmatch("[0-9a-f]{16}", found) else ""


def identity() -> str:
    """Return the random id of the directory with this process's locks. Raises KopiatomicError.

    A process that sees another id sees other locks: it is in a container or a mount namespace with its own /run, or the directory
    was removed meanwhile.
    """
    prepare()
    return _make_identity(DIRECTORY)


def present_identity() -> str:
    """Return the id of the directory that exists now; empty without one. Makes nothing. Raises KopiatomicError."""
    try:
        fd = os.open(f"{DIRECTORY}/{_IDENTITY}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if presence.absent(error):
            return ""
        raise _no_lock(error) from None
    try:
        return _read_identity(fd)
    finally:
        os.close(fd)


def _no_lock(error: OSError) -> KopiatomicError:
    limit = error.errno in {errno.EMFILE, errno.ENFILE}
    return KopiatomicError(
        f"no lock can be taken in {DIRECTORY}: {error.strerror}",
        kind="lock-impossible",
        hint="Look at the limit of open files (ulimit -n, systemd's LimitNOFILE=)."
        if limit
        else f"kopiatomic needs a writable {os.path.dirname(DIRECTORY)}; without a lock two runs could take each other's view "
        "away.",
    )


def path_of(kind: str, root: str) -> str:
    """Return the file in our directory that stands for something at a view root."""
    return f"{DIRECTORY}/{kind}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:32]}"


def _run_path(run_id: str) -> str:
    return f"{DIRECTORY}/run-{run_id}"


def _open(path: str, *, wait: bool) -> int | None:
    """Lock a file, making it if missing. Return None if another process has it. The caller closes the descriptor."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _no_lock(error) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(fd)
            return None
        # The previous holder removes the file as it ends: then this is a lock on a file that no other process will find.
        try:
            if os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False)):
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)


class RunLocks:
    """The locks of one run, and its lists, which are removed with them."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._files: dict[str, int] = {}
        self._kept = False
        self.died = False
        """For a claimed run: whether its file existed, which a run that ended in order removes."""
        self._settled = True

    def add(self, path: str, fd: int) -> None:
        """Take over a locked file."""
        self._files[path] = fd

    def claimed(self, *, died: bool) -> None:
        """Take them as another run's, whose file stays, if it ``died``, until :meth:`settle` is called."""
        self.died = died
        self._settled = not died

    def settle(self) -> None:
        """Have the file of a claimed run removed: how it ended is recorded, or recorded nowhere."""
        self._settled = True

    def keep(self) -> None:
        """Leave the files to a process of this run that continues alone and removes them."""
        self._kept = True

    def asked_to_end(self) -> bool:
        """Whether another process has asked this run to end (:func:`ask_to_end`). Raises OSError."""
        return os.pread(self._files[_run_path(self._run_id)], len(_END), 0) == _END

    def let_go(self) -> None:
        """Remove the files while they are still locked, so that a new process makes new ones; then unlock them."""
        if self._files and not self._kept:
            _remove_lists(self._run_id)
        for path, fd in reversed(self._files.items()):
            if not self._kept and self._settled:
                _remove(path, fd)
            elif not self._kept:
                _say(fd, "")
            channel.close_quietly(fd)
        self._files.clear()


def list_of(run_id: str, which: str) -> str:
    """Return the path of one of a run's :data:`LISTS`. It lies apart from the locks, which only root may reach."""
    return f"{DIRECTORY}-lists/{run_id}.{which}"


def _remove_lists(run_id: str) -> None:
    """Remove a run's lists and what is beside them, and their directory with the last of them."""
    for which in LISTS:
        for path in (list_of(run_id, which), f"{list_of(run_id, which)}.new"):
            with suppress(OSError):
                os.unlink(path)
    for directory in (list_of(run_id, TEMPORARY), os.path.dirname(list_of(run_id, ""))):
        with suppress(OSError):
            os.rmdir(directory)


def _remove(path: str, fd: int) -> None:
    """Remove the file of a lock that we hold, unless another one has taken its place."""
    try:
        if os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False)):
            os.unlink(path)
    except OSError:
        # It is gone, or /run became read-only: the lock itself ends with the descriptor.
        return


def _say(fd: int, word: str) -> None:
    """Put a word into a run's file that we have locked. Raises KopiatomicError."""
    _write(fd, word.ljust(_MARK).encode())


def _write(fd: int, content: bytes) -> None:
    try:
        os.pwrite(fd, content, 0)
    except OSError as error:
        raise _no_lock(error) from None


@contextmanager
def run(run_id: str, records: str) -> Iterator[RunLocks]:
    """Hold this run's lock, which marks it alive to other processes; ``records`` is the directory of its record.

    Raises KopiatomicError.
    """
    prepare()
    held = RunLocks(run_id)
    fd = _open(_run_path(run_id), wait=True)
    assert fd is not None
    held.add(_run_path(run_id), fd)
    try:
        # In one piece, and before there is a record: a file without it belongs to no record.
        _write(fd, b" " * _WORD + os.fsencode(records))
        yield held
    finally:
        held.let_go()


def take_root(held: RunLocks, root: str, holder: Mapping[str, object], wait: float | None) -> None:
    """Become the only run on a view root; wait for it at most ``wait`` seconds (None: not at all).

    Raises LockedError, which names the holder, KopiatomicError, and Interrupted.
    """
    path = path_of("root", root)
    deadline = time.monotonic() + (wait or 0.0)
    while True:
        # Under the short-lived lock, so that a process that only checks whether the root is free does not interfere.
        with clean_up():
            fd = _open(path, wait=False)
            if fd is not None:
                # Also under it, so that a refused process can name the holder.
                held.add(path, fd)
                os.ftruncate(fd, 0)
                os.pwrite(fd, json.dumps(dict(holder)).encode(), 0)
                return
        left = deadline - time.monotonic()
        if left <= 0:
            raise _locked(root, path, waited=wait)
        signals.sleep(min(_POLL, left))


def is_free(root: str) -> bool:
    """Whether no living run has this view root. Only under :func:`clean_up`. Raises KopiatomicError."""
    path = path_of("root", root)
    if not _is_there(path):
        return True
    fd = _open(path, wait=False)
    if fd is None:
        return False
    os.close(fd)
    return True


@contextmanager
def clean_up() -> Iterator[None]:
    """Be the only process that takes, makes or removes view roots; held for moments only.

    Raises KopiatomicError if another process does not release it, and Interrupted.
    """
    prepare()
    path = f"{DIRECTORY}/clean-up"
    deadline = time.monotonic() + _MOMENT
    # Not a blocking call: that would not notice signals.
    while (fd := _open(path, wait=False)) is None:
        if time.monotonic() >= deadline:
            raise KopiatomicError(
                f"another process has had the lock {path} for {_MOMENT:g} s, which is held for moments only",
                kind="lock-busy",
                hint=f"Which one? 'fuser {path}'. Is it stopped (kill -CONT), or does it wait for a dead filesystem?",
            )
        signals.sleep(_PAUSE)
    try:
        yield
    finally:
        # The file is removed while others wait for it; they notice that themselves.
        _remove(path, fd)
        os.close(fd)


@contextmanager
def claim(run_id: str) -> Iterator[RunLocks | None]:
    """Be the only process that clears what a dead run left. Yield None if the run is alive.

    If the run was killed, its file stays unless :meth:`RunLocks.settle` is called.
    """
    prepare()
    path = _run_path(run_id)
    died = has_file(run_id)
    for _ in range(_CLAIMS):
        fd = _open(path, wait=False)
        if fd is not None:
            break
        signals.sleep(_PAUSE)
    else:
        yield None
        return
    held = RunLocks(run_id)
    held.add(path, fd)
    held.claimed(died=died)
    _say(fd, f"{_CLEARING} {os.getpid()}")
    try:
        yield held
    finally:
        held.let_go()


def alive(run_id: str) -> bool:
    """Whether a process of this run lives. Makes nothing."""
    try:
        fd = os.open(_run_path(run_id), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        # Too many open files: without looking, the run is not known to be dead.
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def mark_started(run_id: str) -> None:
    """Note that a run has started what it owes; for when its records cannot be written. Makes no file. Raises OSError."""
    fd = os.open(_run_path(run_id), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.pwrite(fd, _STARTED, _MARK)
    finally:
        os.close(fd)


def has_started(run_id: str) -> bool:
    """Whether that was noted of a run. Raises OSError."""
    try:
        fd = os.open(_run_path(run_id), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return os.pread(fd, len(_STARTED), _MARK) == _STARTED
    finally:
        os.close(fd)


def ask_to_end(run_id: str) -> bool:
    """Ask a run to end, which only one that holds a view obeys. Return whether it is alive. Raises KopiatomicError.

    The request is a word in the file of its lock. So it reaches that run or none: a process id may be another process's, and a
    socket would be one more thing to leave behind. Only root reaches the directory.
    """
    try:
        fd = os.open(_run_path(run_id), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if presence.absent(error):
            return False
        raise _no_lock(error) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        if cleared_by(run_id) is None:
            os.pwrite(fd, _END, 0)
        return True
    finally:
        os.close(fd)
    return False


def has_file(run_id: str) -> bool:
    """Whether a run has a file here: it lives, or was killed in this boot. Raises KopiatomicError if that cannot be known."""
    return _is_there(_run_path(run_id))


def _is_there(path: str) -> bool:
    try:
        return presence.exists(path, follow_links=False)
    except OSError as error:
        raise _no_lock(error) from None


def cleared_by(run_id: str) -> str | None:
    """Return the process that removes what a dead run left, if any; None if the run itself is alive.

    Raises KopiatomicError if that cannot be known.
    """
    try:
        with open(_run_path(run_id), encoding="ascii", errors="replace") as file:
            word, _, pid = file.read(_MARK).strip().partition(" ")
    except OSError as error:
        if presence.absent(error):
            return None
        raise _no_lock(error) from None
    return pid if word == _CLEARING else None


def records_of(run_id: str) -> str:
    """Return the directory with the record of a run that has a file here; empty if it did not come to one.

    Raises KopiatomicError if that cannot be known.
    """
    try:
        with open(_run_path(run_id), "rb") as file:
            return os.fsdecode(file.read()[_WORD:])
    except OSError as error:
        if presence.absent(error):
            return ""
        raise _no_lock(error) from None


def runs() -> list[str]:
    """Return the ids of all runs that have a file here, alive or dead."""
    return sorted(run_id for run_id in _named("run-") if is_run_id(run_id))


def roots() -> list[str]:
    """Return the paths of the files that stand for view roots."""
    return [f"{DIRECTORY}/root-{rest}" for rest in _named("root-")]


def notes() -> list[str]:
    """Return the paths of the files that say which directories a run made."""
    return [f"{DIRECTORY}/made-{rest}" for rest in _named("made-")]


def remove_stale_roots() -> None:
    """Remove the files of view roots whose run was killed."""
    with clean_up():
        for path in roots():
            fd = _open(path, wait=False)
            if fd is not None:
                os.unlink(path)
                os.close(fd)


def _named(prefix: str) -> list[str]:
    try:
        return sorted(name.removeprefix(prefix) for name in os.listdir(DIRECTORY) if name.startswith(prefix))
    except FileNotFoundError:
        return []


def _locked(root: str, path: str, *, waited: float | None) -> LockedError:
    try:
        with open(path, "rb") as file:
            holder = json.loads(file.read() or b"{}")
    except (OSError, ValueError):
        holder = {}
    who = ", ".join(f"{key} {printable(str(value))}" for key, value in holder.items()) or "holder unknown"
    still = f", also after {waited:g} s" if waited else ""
    return LockedError(
        f"another run has the view root {printable(root)}{still} ({who})",
        kind="locked",
        hint="Wait for it (--wait)."
        # Not a directory, but what was asked for.
        if root.startswith("in place:")
        else "Wait for it (--wait), or give this selection a root of its own with --name.",
    )
