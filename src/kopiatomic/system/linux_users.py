"""Which processes keep a filesystem busy that is not visibly mounted: in their own namespace, or by open files.

Nothing is asked that may wait for a filesystem: a descriptor's mount is read in /proc, and its device is requested only if that
mount is in no namespace any more, without synchronizing (statx(2)).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager

from kopiatomic.model.mounts import User
from kopiatomic.system import linux, mountinfo
from kopiatomic.system.descriptors import closing

_UNREADABLE = (FileNotFoundError, NotADirectoryError, ProcessLookupError, PermissionError)
"""It has ended, is a kernel thread, or not even root may inspect it."""


def find(sources: Sequence[str], fstype: str) -> dict[str, list[User]]:
    """Return those that have these filesystems mounted, or open, or mapped. Best effort: a process may end, or hide its use."""
    devices = {device: source for source in sources if (device := _device(source, fstype)) is not None}
    found: dict[str, list[User]] = {}
    namespaces: dict[str, tuple[set[int], set[str]]] = {}
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        if pid == os.getpid():
            continue
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in namespaces:
                namespaces[namespace] = _mounts(pid, sources)
            known, mounted = namespaces[namespace]
            for source in sorted(mounted | {devices[device] for device in _open_devices(pid, devices, known)}):
                found.setdefault(source, []).append(_user(pid))
        except _UNREADABLE:
            continue
    return found


def _device(source: str, fstype: str) -> int | None:
    """Return the device number of the filesystem as it is now mounted; None if that cannot be found out."""
    try:
        mounted = linux.detached_mount(fstype, source, {}, read_only=True)
    except OSError:
        return None
    try:
        return os.fstat(mounted).st_dev
    finally:
        os.close(mounted)


def _mounts(pid: int, sources: Sequence[str]) -> tuple[set[int], set[str]]:
    """Return the ids of all mounts in a process's namespace, and which of the sources are among them."""
    mounts = mountinfo.read(f"/proc/{pid}/mountinfo")
    return {mount.id for mount in mounts}, {mount.source for mount in mounts}.intersection(sources)


def _open_devices(pid: int, devices: Collection[int], known: Collection[int]) -> set[int]:
    """Return the devices of which a process has something mapped, or open through a mount that is in no namespace any more."""
    wanted = {f"{os.major(device):02x}:{os.minor(device):02x}": device for device in devices}
    with open(f"/proc/{pid}/maps", encoding="ascii", errors="replace") as maps:
        mapped = {wanted[device] for line in maps if (device := line.split(None, 4)[3]) in wanted}
    return mapped | {linux.device_of(fd) for fd in _detached(pid, known)}.intersection(devices)


def _detached(pid: int, known: Collection[int]) -> Iterator[int]:
    """Yield a process's open files on mounts that its namespace does not have, opened here without reaching any filesystem."""
    names = [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
    for name in (*names, f"/proc/{pid}/cwd", f"/proc/{pid}/root"):
        try:
            with _opened(name) as fd:
                if mountinfo.id_of(fd) not in known:
                    yield fd
        except _UNREADABLE:
            # It was closed meanwhile.
            continue


def _opened(name: str) -> AbstractContextManager[int]:
    return closing(os.open(name, os.O_PATH | os.O_CLOEXEC))


def _user(pid: int) -> User:
    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        name = file.read().rstrip("\n")
    return User(pid, name, os.stat(f"/proc/{pid}").st_uid)
