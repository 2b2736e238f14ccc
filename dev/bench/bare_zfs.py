"""The floor on ZFS: the kernel calls of a run and nothing else. bare_zfs.py FILE-OF-NAMES FOLDER ID

Prints how long the snapshot call took (seconds).
"""

import ctypes
import os
import sys
import time

CLONE_NEWNS, MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REC, MS_SLAVE = 0x20000, 1, 2, 4, 0x4000, 0x80000

pair = ctypes.CDLL("libnvpair.so.3")
core = ctypes.CDLL("libzfs_core.so.3")
libc = ctypes.CDLL(None, use_errno=True)


def check(number: int) -> None:
    if number != 0:
        raise OSError(number, os.strerror(number))


def listed(entries: list[tuple[bytes, object]]) -> ctypes.c_void_p:
    found = ctypes.c_void_p()
    check(pair.nvlist_alloc(ctypes.byref(found), 1, 0))
    for name, value in entries:
        if value is None:
            check(pair.nvlist_add_boolean(found, name))
        elif isinstance(value, bytes):
            check(pair.nvlist_add_string(found, name, value))
        else:
            check(pair.nvlist_add_nvlist(found, name, value))
    return found


def mount(source: bytes, target: bytes, fstype: bytes | None, flags: int) -> None:
    if libc.mount(source, target, fstype, ctypes.c_ulong(flags), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def view(snapshots: list[bytes], folder: bytes) -> None:
    if libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    mount(b"none", b"/", None, MS_REC | MS_SLAVE)
    mount(b"none", folder, b"tmpfs", 0)
    for number, snapshot in enumerate(snapshots):
        point = b"%s/%d" % (folder, number)
        os.mkdir(point)
        mount(snapshot, point, b"zfs", MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


def main() -> None:
    with open(sys.argv[1], "rb") as file:
        names = file.read().split(b"\n")
    suffix = sys.argv[3].encode()
    snapshots = [b"%s@kopiatomic_%s" % (name, suffix) for name in names]
    check(core.libzfs_core_init())
    cleanup = os.open("/dev/zfs", os.O_RDWR | os.O_EXCL)
    errors = ctypes.c_void_p()
    plain = listed([(name, None) for name in snapshots])
    mark = b"%s %s" % (suffix, b"0" * 32)
    properties = listed([(b"kopiatomic:run", mark)])
    began = time.perf_counter()
    check(core.lzc_snapshot(plain, properties, ctypes.byref(errors)))
    print(time.perf_counter() - began)
    holds = listed([(name, b"kopiatomic") for name in snapshots])
    check(core.lzc_hold(holds, cleanup, ctypes.byref(errors)))
    check(core.lzc_destroy_snaps(plain, 1, ctypes.byref(errors)))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            view(snapshots, os.fsencode(sys.argv[2]))
            status = 0
        finally:
            os._exit(status)
    check(os.waitpid(child, 0)[1])
    tag = listed([(b"kopiatomic", None)])
    check(core.lzc_release(listed([(name, tag) for name in snapshots]), ctypes.byref(errors)))
    os.close(cleanup)
    for name in snapshots:
        while core.lzc_exists(name):
            time.sleep(0.001)


main()
