"""What is mounted at boot, according to fstab(5) on Linux and FreeBSD."""

from __future__ import annotations

import os
import re

from kopiatomic import presence
from kopiatomic.system.mountinfo import unescaped

PATH = "/etc/fstab"

_LATER = frozenset({"noauto", "x-systemd.automount", "comment=systemd.automount"})
"""Options of what is mounted by hand, or on first access (mount(8), systemd.mount(5))."""


def at_boot(fstype: str) -> dict[str, str]:
    """Return the mount points of the filesystems of a type that are mounted at boot, by their source.

    Empty without the file. Raises OSError if it cannot be read.
    """
    try:
        with open(PATH, "rb") as file:
            text = os.fsdecode(file.read())
    except OSError as error:
        if presence.absent(error):
            return {}
        raise
    found = {}
    for line in text.split("\n"):
        # Only these two separate fields: a name may hold other characters that Python counts as space.
        fields = re.findall(r"[^ \t]+", line)
        if len(fields) < 3 or fields[0].startswith("#") or fields[2] != fstype:
            continue
        options = fields[3].split(",") if len(fields) > 3 else []
        if not _LATER.intersection(options):
            found[unescaped(fields[0])] = unescaped(fields[1])
    return found
