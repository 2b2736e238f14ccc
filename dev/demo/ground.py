"""The throwaway filesystem that the demonstration stands on, in memory, and its removal.

What is to be removed is found by looking, not by remembering: so it does not matter how far the making came.
"""

from __future__ import annotations

import secrets
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from demo.programs import DemoError, run
from kopiatomic.system import mountinfo

MEMORY = "1g"
DISK_BYTES = 512 << 20
BUSY_S = 10.0


@dataclass(frozen=True)
class Ground:
    """Where the files live, and how kopiatomic is told of it."""

    filesystem: str
    top: Path
    """The live files: what plain kopia is given."""
    folders: tuple[Path, ...]
    """One in each dataset, in the order of writing."""
    datasets: tuple[str, ...]
    """What kopiatomic is given."""
    synced: bool
    """Whether the files must be written through to disk for one instant to be one: see `btrfs`."""


def zfs_is_here() -> bool:
    return Path("/sys/module/zfs").exists() and shutil.which("zpool") is not None


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory, root's alone."""
    folder = Path(tempfile.gettempdir(), f"kopiatomic-demo.{secrets.token_hex(2)}")
    with ExitStack() as stack:
        stack.callback(_remove_folder, folder)
        folder.mkdir(mode=0o700)
        try:
            run(["mount", "-t", "tmpfs", "-o", f"size={MEMORY},mode=0700", "kopiatomic-demo", str(folder)])
        except DemoError as error:
            raise DemoError(
                f"nothing can be mounted here: {error.hint}",
                "A container must be privileged for that. './demo zfs' needs no mounts: it boots a VM.",
            ) from None
        yield folder


@contextmanager
def zfs(folder: Path) -> Iterator[Ground]:
    """Two datasets of a pool in a file: as the pool is frozen at once, so are they."""
    pool = f"demo{secrets.token_hex(2)}"
    disk = _disk(folder)
    with ExitStack() as stack:
        stack.callback(_remove_pool, pool)
        altroot = folder / "live"
        run(["zpool", "create", "-o", "cachefile=none", "-R", str(altroot), "-O", "mountpoint=none", pool, str(disk)])
        run(["zfs", "create", "-o", "mountpoint=/home", f"{pool}/home"])
        run(["zfs", "create", "-o", "mountpoint=/src", f"{pool}/src"])
        folders = (altroot / "home", altroot / "src")
        yield Ground("zfs", altroot, folders, (f"{pool}/home", f"{pool}/src"), synced=False)


@contextmanager
def btrfs(folder: Path) -> Iterator[Ground]:
    """One Btrfs subvolume on a loop device.

    Its files are written through to disk, as a database writes: a Btrfs snapshot holds what is on disk at its instant, but
    may lack writes that are only in memory while it has later ones.
    """
    disk = _disk(folder)
    live = folder / "live"
    with ExitStack() as stack:
        stack.callback(_unmount_below, live)
        live.mkdir()
        run(["mkfs.btrfs", "--quiet", str(disk)])
        try:
            run(["mount", "-t", "btrfs", "-o", "loop,noatime", str(disk), str(live)])
        except DemoError as error:
            raise DemoError(
                f"no Btrfs filesystem can be mounted from a file here: {error.hint}",
                "Give this container or chroot the host's loop devices (/dev) and a kernel with Btrfs, or type"
                " './demo zfs', which boots a VM.",
            ) from None
        home = live / "home"
        run(["btrfs", "subvolume", "create", str(home)])
        yield Ground("btrfs", home, (home,), (str(home),), synced=True)


def _disk(folder: Path) -> Path:
    disk = folder / "disk"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    return disk


def _remove_pool(pool: str) -> None:
    def gone() -> bool:
        return not _succeeds("zpool", "list", pool)

    argv = ["zpool", "destroy", "-f", pool]
    if not _patiently(gone, argv):
        raise DemoError(
            f"'{shlex.join(argv)}' still fails after {BUSY_S:.0f} s", "Find out what uses it, then type it again."
        )


def _unmount_below(folder: Path) -> None:
    """Unmount all at and below a folder, the last first. The kernel frees a loop device at its last unmount.

    Where another mount namespace has copies of the mounts (a container that was started meanwhile), they keep the loop
    device busy until that ends: the mounts are taken out of sight here, and freed then.
    """

    def mounted() -> list[str]:
        return [mount.point for mount in mountinfo.read() if Path(mount.point).is_relative_to(folder)]

    for point in reversed(mounted()):
        if not _patiently(lambda point=point: point not in mounted(), ["umount", point]):  # type: ignore[misc]
            _succeeds("umount", "--lazy", point)


def _remove_folder(folder: Path) -> None:
    _unmount_below(folder)
    if folder.exists():
        folder.rmdir()


def _patiently(gone: Callable[[], bool], argv: Sequence[str]) -> bool:
    """Run a clean-up command until its work is done: what is just ending may hold a filesystem busy for a moment."""
    deadline = time.monotonic() + BUSY_S
    while not gone():
        if not _succeeds(*argv):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
    return True


def _succeeds(*argv: str) -> bool:
    """Whether a command succeeds. It has a session of its own, so that a second Ctrl-C does not end the clean-up."""
    ended = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, start_new_session=True, check=False)
    return ended.returncode == 0
