"""Subvolumes by the thousand, and deeper than a path reaches: made by the ioctl, as any user may."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_SUBVOL_CREATE = 0x5000940E
_SNAP_DESTROY = 0x5000940F
_LIBC = ctypes.CDLL(None, use_errno=True)


class _Arguments(ctypes.Structure):
    """``struct btrfs_ioctl_vol_args`` of linux/btrfs.h."""

    _fields_ = (("fd", ctypes.c_int64), ("name", ctypes.c_char * 4088))


def create(directory: int, name: str) -> None:
    """Create a subvolume in an open directory. Raises OSError."""
    _ioctl(directory, _SUBVOL_CREATE, name)


def destroy(directory: int, name: str) -> None:
    """Delete a subvolume in an open directory. Raises OSError."""
    _ioctl(directory, _SNAP_DESTROY, name)


def _ioctl(directory: int, request: int, name: str) -> None:
    arguments = _Arguments(name=os.fsencode(name))
    if _LIBC.ioctl(directory, ctypes.c_ulong(request), ctypes.byref(arguments)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def nested(top: Path, names: Sequence[str], *, subvolumes: bool) -> None:
    """One directory, or subvolume, in the other below ``top``. Each must be shorter than a path may be; all together need not."""
    fd = os.open(top, os.O_RDONLY)
    for name in names:
        if subvolumes:
            create(fd, name)
        else:
            os.mkdir(name, dir_fd=fd)
        inside = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inside
    os.close(fd)


@contextmanager
def opened(top: Path, names: Sequence[str]) -> Iterator[int]:
    """The directory at the end of such a path, open."""
    fd = os.open(top, os.O_RDONLY)
    for name in names:
        inside = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inside
    try:
        yield fd
    finally:
        os.close(fd)
