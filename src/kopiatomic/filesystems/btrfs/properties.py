"""What is set on a subvolume beside its files."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence

from kopiatomic import presence
from kopiatomic.filesystems.btrfs.folder import OPEN_DIRECTORY
from kopiatomic.model.facts import PropertySetting
from kopiatomic.model.plan import Dataset
from kopiatomic.system import btrfs, linux, looking
from kopiatomic.system.descriptors import closing

COMPRESSION = "compression"
READ_ONLY = "ro"
"""As btrfs-property(8) names them."""

ATTRIBUTE = "btrfs.compression"
"""The extended attribute that is the property. What is made in a directory inherits it."""

_LOCAL = "local"


def read(datasets: Sequence[Dataset]) -> Mapping[str, Mapping[str, PropertySetting]]:
    """Return the properties that are set, by dataset. One that is not at its place any more has none.

    Looks in a child, since users decide what is at a path. Raises KopiatomicError, OSError, Interrupted.
    """
    return {
        dataset.name: looking.call(lambda one=dataset: _properties(one), dataset.mountpoint.text)  # type: ignore[misc]
        for dataset in datasets
    }


def _properties(dataset: Dataset) -> dict[str, PropertySetting]:
    found: dict[str, PropertySetting] = {}
    try:
        with closing(linux.open_without_links(dataset.mountpoint.text, OPEN_DIRECTORY)) as fd:
            subvolume = btrfs.subvolume(fd)
            if subvolume.id != dataset.subvolume or btrfs.filesystem_uuid(fd) != dataset.pool:
                return {}
            if subvolume.read_only:
                found[READ_ONLY] = PropertySetting("true", _LOCAL)
            compression = compression_of(fd)
            if compression is not None:
                found[COMPRESSION] = PropertySetting(compression, _LOCAL)
    except OSError as error:
        if not presence.moved(error) and error.errno != errno.ENOTTY:
            raise
        return {}
    return found


def compression_of(fd: int) -> str | None:
    """Return the property of an open directory; None if it is not set. Raises OSError."""
    if ATTRIBUTE not in os.listxattr(fd):
        return None
    return os.fsdecode(os.getxattr(fd, ATTRIBUTE))
