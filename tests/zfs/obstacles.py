"""Ways to take from a run what it needs, as containers, hardened units and broken installations do."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

from kopiatomic.system import linux

CAP_SYS_ADMIN = 21
SYS_MOUNT, SYS_UNSHARE = 165, 272
"""System calls' numbers on x86_64, which the test VM is."""

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_MS_PRIVATE, _MS_REMOUNT = 1 << 18, 32


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def together(*steps: Callable[[], None]) -> Callable[[], None]:
    def all_of_them() -> None:
        for step in steps:
            step()

    return all_of_them


def nobody() -> None:
    """Not root."""
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def without_capability(number: int) -> Callable[[], None]:
    """Root without one of its capabilities, as in a container (capset(2), version 3)."""

    def drop() -> None:
        header = struct.pack("II", 0x20080522, 0)
        words = (ctypes.c_uint32 * 6)()
        _check(_libc().capget(header, words))
        for base in range(3):
            words[base + 3 * (number // 32)] &= ~(1 << number % 32)
        _check(_libc().capset(header, words))

    return drop


def without_call(number: int) -> Callable[[], None]:
    """A seccomp filter that refuses one system call with EPERM, as a container's or a systemd unit's does."""

    def install() -> None:
        program = b"".join(
            struct.pack("HBBI", *instruction)
            for instruction in (
                (0x20, 0, 0, 0),  # load the call's number
                (0x15, 0, 1, number),  # is it this one?
                (0x06, 0, 0, 0x00050001),  # EPERM
                (0x06, 0, 0, 0x7FFF0000),  # allowed
            )
        )
        code = ctypes.create_string_buffer(program)
        descriptor = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
        _check(_libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, descriptor, 0, 0))

    return install


def own_mounts() -> None:
    """Mounts that follow are seen by this run and what it starts only."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | _MS_PRIVATE)


def without_dev_zfs() -> None:
    """A /dev as containers have it, without the device of ZFS."""
    own_mounts()
    linux.mount("dev", "/dev", "tmpfs", 0, "mode=755")
    _fill_dev()


def with_forbidden_dev_zfs() -> None:
    """A /dev whose devices may not be opened, but for those that every program needs."""
    status = os.stat("/dev/zfs")
    without_dev_zfs()
    os.mkdir("/dev/no")
    linux.mount("dev", "/dev/no", "tmpfs", linux.MS_NODEV, "mode=755")
    os.mknod("/dev/no/zfs", 0o020666, status.st_rdev)
    Path("/dev/zfs").touch()
    linux.mount("/dev/no/zfs", "/dev/zfs", None, linux.MS_BIND)


def _fill_dev() -> None:
    for name, minor in (("null", 3), ("zero", 5), ("urandom", 9)):
        os.mknod(f"/dev/{name}", 0o020666, os.makedev(1, minor))


def replaced(path: Path, by: Path) -> Callable[[], None]:
    """Another file in the place of one, for this run alone."""

    def bind() -> None:
        own_mounts()
        linux.mount(str(by), str(path.resolve()), None, linux.MS_BIND)

    return bind


def hung_fuse(point: Path) -> None:
    """A FUSE filesystem whose daemon never answers: whoever looks into it waits for ever."""
    # Where udev runs, the device is there from the start and opening it loads the module.
    subprocess.run(["modprobe", "fuse"], check=True)
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    linux.mount("hung", str(point), "fuse", 0, f"fd={descriptor},rootmode=40000,user_id=0,group_id=0")


def read_only(folder: Path) -> Callable[[], None]:
    """A folder on a read-only filesystem, for this run alone."""

    def remount() -> None:
        own_mounts()
        linux.mount(str(folder), str(folder), None, linux.MS_BIND)
        linux.mount("none", str(folder), None, linux.MS_BIND | _MS_REMOUNT | linux.MS_RDONLY)

    return remount
