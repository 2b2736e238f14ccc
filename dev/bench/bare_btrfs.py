"""The floor on Btrfs: the kernel calls of a run and nothing else. bare_btrfs.py DEVICE FILE-OF-PATHS FOLDER ID"""

import ctypes
import os
import struct
import sys
import threading

CLONE_NEWNS, MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REC, MS_SLAVE, MS_BIND = 0x20000, 1, 2, 4, 0x4000, 0x80000, 4096
SNAP_CREATE_V2, SNAP_DESTROY, READ_ONLY = 0x50009417, 0x5000940F, 2
THREADS = 16

libc = ctypes.CDLL(None, use_errno=True)


def called(number: int, what: str) -> None:
    if number != 0:
        raise OSError(ctypes.get_errno(), what)


def mount(source: str, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, fstype)]
    called(libc.mount(*words, ctypes.c_ulong(flags), None if data is None else data.encode()), target)


def private(folder: str) -> None:
    called(libc.unshare(CLONE_NEWNS), "unshare")
    mount("none", "/", None, MS_REC | MS_SLAVE)
    mount("none", folder, "tmpfs", 0)


def view(device: str, paths: list[str], folder: str) -> None:
    top = f"{folder}/top"
    os.mkdir(top)
    mount(device, top, "btrfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "subvolid=5")
    for number, path in enumerate(paths):
        os.mkdir(point := f"{folder}/{number}")
        mount(f"{top}/{path}", point, None, MS_BIND)
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


def snapshot_all(sources: list[int], places: list[int]) -> None:
    def share(first: int) -> None:
        for number in range(first, len(sources), THREADS):
            argument = struct.pack("qQQ32x4040s", sources[number], 0, READ_ONLY, b"snapshot")
            called(libc.ioctl(places[number], ctypes.c_ulong(SNAP_CREATE_V2), argument), "snapshot")

    threads = [threading.Thread(target=share, args=(first,)) for first in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    device, file, folder, suffix = sys.argv[1:]
    with open(file) as opened:
        paths = opened.read().split("\n")
    private(folder)
    writable = f"{folder}/writable"
    os.mkdir(writable)
    mount(device, writable, "btrfs", MS_NOSUID | MS_NODEV, "subvolid=5")
    run = f".bare_{suffix}"
    os.mkdir(f"{writable}/{run}", 0o700)
    sources, places = [], []
    for number, path in enumerate(paths):
        os.mkdir(folder_of_it := f"{writable}/{run}/{number}", 0o700)
        places.append(os.open(folder_of_it, os.O_RDONLY | os.O_DIRECTORY))
        sources.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
    snapshot_all(sources, places)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            private(folder)
            view(device, [f"{run}/{number}/snapshot" for number in range(len(paths))], folder)
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit("the view failed")
    for number, place in enumerate(places):
        called(libc.ioctl(place, ctypes.c_ulong(SNAP_DESTROY), struct.pack("q4088s", 0, b"snapshot")), "delete")
        os.close(place)
        os.rmdir(f"{writable}/{run}/{number}")
    os.rmdir(f"{writable}/{run}")


main()
