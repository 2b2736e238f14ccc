"""What is mounted at boot, as fstab(5) has it on Linux and FreeBSD."""

from __future__ import annotations

import os
import re

from kopiatomic import presence
from kopiatomic.system.mountinfo import unescaped

PATH = "/etc/fstab"

_LATER = frozenset({"noauto", "x-systemd.automount", "comment=systemd.automount"})
"""Options of what is mounted by hand, or when somebody looks into it (mount(8), systemd.mount(5))."""


def at_boot(fstype: str) -> dict[str, str]:
    """The mount points of the filesystems of a type that are mounted at boot, by what is mounted there.

    Without the file none is. Raises OSError where it cannot be read.
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
        # Only these two divide fields: a name may hold what else Python takes for a space.
        fields = re.findall(r"[^ \t]+", line)
        if len(fields) < 3 or fields[0].startswith("#") or fields[2] != fstype:
            continue
        options = fields[3].split(",") if len(fields) > 3 else []
        if not _LATER.intersection(options):
            found[unescaped(fields[0])] = unescaped(fields[1])
    return found
