"""All that is in a directory tree, by path. Also a program: the engine of runs on random trees, which lists the view.

It imports nothing of ours, so that it starts quickly.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from typing import NamedTuple


class Entry(NamedTuple):
    """What is at a path: ``kind`` is d, f, l (or ?); ``data`` the bytes of a file, the target of a link."""

    kind: str
    data: str
    device: int
    inode: int

    @property
    def shown(self) -> tuple[str, str]:
        """What is the same in a frozen copy."""
        return self.kind, self.data


def listing(root: str) -> dict[str, Entry]:
    """Every path below a directory, mounts crossed and links not followed; the directory itself is the empty path."""
    found = {"": _entry(os.fsencode(root))}
    for folder, folders, files in os.walk(os.fsencode(root), onerror=_fail):
        for name in folders + files:
            path = os.path.join(folder, name)
            found[os.fsdecode(path)[len(root) :]] = _entry(path)
    return found


def _fail(error: OSError) -> None:
    raise error


def _entry(path: bytes) -> Entry:
    status = os.lstat(path)
    kind, data = "?", b""
    if stat.S_ISDIR(status.st_mode):
        kind = "d"
    elif stat.S_ISREG(status.st_mode):
        kind = "f"
        with open(path, "rb") as file:
            data = file.read()
    elif stat.S_ISLNK(status.st_mode):
        kind, data = "l", os.readlink(path)
    return Entry(kind, data.decode("latin-1"), status.st_dev, status.st_ino)


if __name__ == "__main__":
    with open(sys.argv[1], "w") as file:
        json.dump(listing(sys.argv[2]), file)
