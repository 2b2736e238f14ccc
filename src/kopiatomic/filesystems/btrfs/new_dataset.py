"""A subvolume that a backup is restored into: made for it, with the properties that must be there before the data."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems.btrfs.folder import OPEN_DIRECTORY
from kopiatomic.filesystems.btrfs.properties import ATTRIBUTE, COMPRESSION, READ_ONLY, compression_of
from kopiatomic.model.record import RecordedDataset
from kopiatomic.system import btrfs, safety
from kopiatomic.system.descriptors import closing
from kopiatomic.text import printable


class NewSubvolume:
    """Satisfies :class:`kopiatomic.filesystems.backends.NewDataset`."""

    def __init__(self, recorded: RecordedDataset, path: str, fd: int, *, made: bool) -> None:
        self.path = path
        self.fd = fd
        # Nothing can be overwritten in an empty one, such as a restore leaves that is killed right after making it.
        self.is_ours = made or not os.listdir(fd)
        self.notes: tuple[str, ...] = ()
        read_only = recorded.properties.get(READ_ONLY)
        words = ["btrfs", "property", "set", "-ts", path, READ_ONLY, "true"]
        self.commands = [shlex.join(words)] if read_only is not None and read_only.value == "true" else []
        compression = recorded.properties.get(COMPRESSION)
        self._compression = None if compression is None else compression.value
        self.inherited = () if compression is None else (ATTRIBUTE,)
        self.discarded = False

    def discard(self) -> None:
        """Note that nothing has been restored into it."""
        self.discarded = True

    def prepare(self) -> None:
        """Set what holds for what is written from now on. Raises OSError."""
        found = compression_of(self.fd)
        if not self.is_ours or found == self._compression:
            return
        if self._compression is None:
            # It has the property of the directory above it.
            os.removexattr(self.fd, ATTRIBUTE)
        else:
            os.setxattr(self.fd, ATTRIBUTE, os.fsencode(self._compression))

    def settle(self) -> list[str]:
        """Return what is not as it is recorded, in words. Raises OSError."""
        found = compression_of(self.fd)
        if found == self._compression:
            return []
        return [f"{printable(self.path)}: the compression is {found} and was {self._compression}"]


@contextmanager
def new_dataset(recorded: RecordedDataset, name: str, _restore: str) -> Iterator[NewSubvolume]:
    """Make a subvolume at a path, or open the one that is there. Raises KopiatomicError, OSError."""
    path = os.path.abspath(name)
    safety.require_safe_target(path)
    above, last = os.path.split(path)
    with _parent(above) as parent:
        made = _make(parent, last)
        with closing(_opened(parent, last, path)) as fd:
            new = NewSubvolume(recorded, path, fd, made=made)
            try:
                try:
                    new.prepare()
                except OSError:
                    new.discard()
                    raise
                yield new
            except BaseException:
                if made and new.discarded:
                    # Only root can have put another in its place since it was made.
                    btrfs.delete(parent, last)
                raise


@contextmanager
def _parent(path: str) -> Iterator[int]:
    """Open the directory that the subvolume is to be in. Raises KopiatomicError."""
    try:
        fd = os.open(path, OPEN_DIRECTORY)
    except OSError as error:
        raise KopiatomicError(
            f"no subvolume can be made in {printable(path)}: {error.strerror}",
            kind="new-dataset",
            hint="The directory must exist, in a Btrfs filesystem that is mounted.",
        ) from None
    with closing(fd):
        try:
            btrfs.subvolume(fd)
        except OSError as error:
            if error.errno != errno.ENOTTY:
                raise
            raise KopiatomicError(
                f"no subvolume can be made in {printable(path)}: it is not in a Btrfs filesystem",
                kind="new-dataset",
                hint="Restore the files alone, to any directory: --to DIR, with the path of the subvolume.",
            ) from None
        yield fd


def _make(parent: int, name: str) -> bool:
    """Make a subvolume that only root can enter; return False if something is there. Raises OSError."""
    before = os.umask(0o077)
    try:
        btrfs.create(parent, name)
    except FileExistsError:
        return False
    finally:
        os.umask(before)
    return True


def _opened(parent: int, name: str, path: str) -> int:
    """Open a subvolume in an open directory. Raises KopiatomicError if it is something else, and OSError."""
    fd = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
    if btrfs.is_top(fd):
        return fd
    os.close(fd)
    raise KopiatomicError(
        f"{printable(path)} exists and is not a subvolume, and nothing may be overwritten",
        kind="target-not-empty",
        hint="Name one that does not exist yet.",
    )
