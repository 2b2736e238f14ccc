"""The mount table, as the kernel gives it in /proc/self/mountinfo: the truth about what is mounted where."""

from __future__ import annotations

import os
import re
from functools import lru_cache

from kopiatomic.model.mounts import Mount

SELF = "/proc/self/mountinfo"

_ESCAPE = re.compile(r"\\([0-7]{3})")


def read(path: str = SELF) -> list[Mount]:
    """Return the mounts of a process in the kernel's order (which is not tree order). Raises OSError."""
    with open(path, "rb") as table:
        return parse(table.read())


def id_of(fd: int) -> int:
    """Return the id of the mount that an open file is in, from proc_pid_fdinfo(5). Raises OSError."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        return next(int(line.partition(":")[2]) for line in info if line.startswith("mnt_id:"))


def parse(data: bytes) -> list[Mount]:
    """Parse the text of a mountinfo file. Raises ValueError for a line that does not fit the format."""
    return [_parse_line(line) for line in os.fsdecode(data).split("\n") if line]


def _parse_line(line: str) -> Mount:
    fields = line.split(" ")
    end = fields.index("-", 6)
    return Mount(
        id=int(fields[0]),
        parent=int(fields[1]),
        device=fields[2],
        root=unescaped(fields[3]),
        point=unescaped(fields[4]),
        options=_options(fields[5]),
        propagation=tuple(fields[6:end]),
        fstype=unescaped(fields[end + 1]),
        source=unescaped(fields[end + 2]),
        super_options=_options(fields[end + 3]),
    )


# Most of thousands of mounts have the same options.
@lru_cache(maxsize=128)
def _options(field: str) -> tuple[str, ...]:
    return tuple(map(unescaped, field.split(",")))


def unescaped(field: str) -> str:
    """Return a field without its octal escapes (space, tab, newline, backslash, ``#``)."""
    if "\\" in field:
        return _ESCAPE.sub(lambda escape: os.fsdecode(bytes([int(escape[1], 8)])), field)
    return field
