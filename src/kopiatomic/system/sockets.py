"""The sockets that processes of this network namespace listen on, from /proc/net/unix (unix(7), proc(5))."""

from __future__ import annotations

import os
import re

from kopiatomic.errors import KopiatomicError

_TABLE = "/proc/net/unix"

_LISTENS = 0x10000
"""``__SO_ACCEPTCON`` of the kernel's include/uapi/linux/net.h, in the column of flags."""

_LINE = re.compile(rb"^\S+ \S+ \S+ (\S+) \S+ \S+ +\d+ (/.*)$", re.MULTILINE)
"""Flags and path of a socket that has a path."""


def listening() -> list[str]:
    """Return the paths of the Unix sockets that are listened on, in order. Raises KopiatomicError, OSError."""
    try:
        with open(_TABLE, "rb") as table:
            text = table.read()
    except FileNotFoundError:
        raise KopiatomicError(
            f"the sockets that servers listen on cannot be seen: {_TABLE} is not there",
            kind="hold-no-proc",
            hint="Name where the server listens: host, port.",
        ) from None
    return sorted({os.fsdecode(path) for flags, path in _LINE.findall(text) if int(flags, 16) & _LISTENS})
