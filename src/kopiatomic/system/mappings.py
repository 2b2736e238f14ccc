"""What processes have mapped into their memory for writing, and how that is written out (/proc/PID/maps, proc(5))."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator

from kopiatomic.system import linux, mountinfo
from kopiatomic.system.descriptors import closing

_SHARED = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) [r-]w[x-]s [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) ", re.MULTILINE)
"""A line of a shared mapping that can be written to: its range of addresses, and the device of its filesystem."""

_ENDED = (FileNotFoundError, ProcessLookupError)


def devices(pids: Iterable[int], fstypes: Collection[str]) -> set[str]:
    """Return the devices (``MAJOR:MINOR``) of the filesystems of these types that the processes have mounted. Raises OSError."""
    found: set[str] = set()
    seen: set[str] = set()
    for pid in pids:
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in seen:
                mounts = mountinfo.read(f"/proc/{pid}/mountinfo")
                found |= {mount.device for mount in mounts if mount.fstype in fstypes}
                seen.add(namespace)
        except _ENDED:
            continue
    return found


def write_out(pids: Iterable[int], of: Collection[str]) -> int:
    """Write out each filesystem with one of these devices of which a process has a file mapped for writing.

    Return how many that were. The processes must be frozen: otherwise they map others meanwhile. Raises OSError.
    """
    done: set[str] = set()
    for pid in pids:
        for device, name in _mapped(pid):
            if device in of and device not in done:
                # The link leads to the mapped file itself, and no path is followed.
                try:
                    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
                except _ENDED:
                    continue
                with closing(file):
                    linux.syncfs(file)
                done.add(device)
    return len(done)


def _mapped(pid: int) -> Iterator[tuple[str, str]]:
    """Yield the device of each shared mapping that can be written to, and the link to its file."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            text = file.read()
    except _ENDED:
        return
    for start, end, major, minor in _SHARED.findall(text):
        device = f"{int(major, 16)}:{int(minor, 16)}"
        yield device, f"/proc/{pid}/map_files/{int(start, 16):x}-{int(end, 16):x}"
