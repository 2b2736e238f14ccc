"""Kernel locks (flock) in /run/kopiatomic: one run on one view root. A lock lives as long as a process of its run."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from kopiatomic.errors import KopiatomicError, LockedError
from kopiatomic.text import printable

DIRECTORY = "/run/kopiatomic"
"""Root's alone; not movable, so that two runs with different settings still see each other."""


def prepare() -> None:
    """Make the directory. Raises KopiatomicError where it cannot be or is not root's alone."""
    try:
        os.makedirs(DIRECTORY, 0o700, exist_ok=True)
        status = os.lstat(DIRECTORY)
    except OSError as error:
        raise _no_lock(error) from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise KopiatomicError(
            f"{DIRECTORY} is not a directory that only root can enter",
            kind="lock-directory",
            hint=f"Look at it, then: rm -r {DIRECTORY}",
        )


def _no_lock(error: OSError) -> KopiatomicError:
    return KopiatomicError(
        f"no lock can be taken in {DIRECTORY}: {error.strerror}",
        kind="lock-impossible",
        hint="kopiatomic needs a writable /run; without a lock two runs could take each other's view away.",
    )


def path_of(kind: str, root: str) -> str:
    """The file in our directory that stands for something at a view root."""
    return f"{DIRECTORY}/{kind}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:32]}"


def _open(path: str, *, wait: bool) -> int | None:
    """Lock a file, making it where missing; None where another process has it. The caller closes the descriptor."""
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
        # The holder before us removes the file as it goes: then this is a lock on a file that nobody else will find.
        try:
            if os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False)):
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)


def _let_go(fd: int, path: str) -> None:
    """Remove the file while it is still locked, so that who comes now makes a new one; then unlock it."""
    try:
        os.unlink(path)
    finally:
        os.close(fd)


@contextmanager
def view_root(root: str, holder: Mapping[str, object]) -> Iterator[None]:
    """Be the only run on a view root. Raises LockedError, which names the holder, and KopiatomicError."""
    prepare()
    path = path_of("root", root)
    fd = _open(path, wait=False)
    if fd is None:
        raise _locked(root, path)
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(dict(holder)).encode(), 0)
        yield
    finally:
        _let_go(fd, path)


def is_free(root: str) -> bool:
    """Whether no living run has this view root."""
    path = path_of("root", root)
    if not os.path.exists(path):
        return True
    fd = _open(path, wait=False)
    if fd is None:
        return False
    os.close(fd)
    return True


@contextmanager
def clean_up() -> Iterator[None]:
    """Be the only process that makes or removes view roots; held for moments."""
    prepare()
    path = f"{DIRECTORY}/clean-up"
    fd = _open(path, wait=True)
    assert fd is not None
    try:
        yield
    finally:
        _let_go(fd, path)


def _locked(root: str, path: str) -> LockedError:
    try:
        with open(path, "rb") as file:
            holder = json.loads(file.read() or b"{}")
    except (OSError, ValueError):
        holder = {}
    who = ", ".join(f"{key} {printable(str(value))}" for key, value in holder.items()) or "holder unknown"
    return LockedError(
        f"another run has the view root {printable(root)} ({who})",
        kind="locked",
        hint="Wait for it, or give this selection a root of its own with --name.",
    )
