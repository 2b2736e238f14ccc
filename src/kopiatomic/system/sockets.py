"""The sockets that processes of this network namespace listen on, from /proc/net/unix (unix(7), proc(5))."""

from __future__ import annotations

import os
import re

_LISTENS = 0x10000
"""``__SO_ACCEPTCON`` of the kernel's include/uapi/linux/net.h, in the column of flags."""

_LINE = re.compile(rb"^\S+ \S+ \S+ (\S+) \S+ \S+ +\d+ (/.*)$", re.MULTILINE)
"""Flags and path of a socket that has a path."""


def listening() -> list[str]:
    """Return the paths of the Unix sockets that are listened on, in order. Raises OSError."""
    with open("/proc/net/unix", "rb") as table:
        found = {os.fsdecode(path) for flags, path in _LINE.findall(table.read()) if int(flags, 16) & _LISTENS}
    return sorted(found)
