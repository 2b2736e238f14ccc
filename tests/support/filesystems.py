"""Real filesystems for tests: Btrfs on a loop device, a ZFS pool in a file; both gone at the end, whatever happened."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.programs import command

IMAGE_BYTES = 512 << 20
POOL_BYTES = 128 << 20


class Filesystem(Protocol):
    """What `leftovers` needs to know of a test's filesystem."""

    def snapshots(self) -> list[str]: ...


@dataclass(frozen=True)
class Btrfs:
    """A mounted Btrfs filesystem of this test alone."""

    mountpoint: Path
    image: Path

    @property
    def device(self) -> str:
        """The loop device it is mounted from."""
        return command("findmnt", "-n", "-o", "SOURCE", "--mountpoint", self.mountpoint).stdout.split("[")[0].strip()

    def subvolume(self, name: str) -> Path:
        """Create a subvolume, given by its path below the mount point."""
        path = self.mountpoint / name
        command("btrfs", "subvolume", "create", path)
        return path

    def snapshots(self) -> list[str]:
        listed = command("btrfs", "subvolume", "list", "-s", self.mountpoint).stdout
        return [line.partition(" path ")[2] for line in listed.splitlines()]


@dataclass(frozen=True)
class Pool:
    """An imported ZFS pool of this test alone; its root dataset is mounted on `mountpoint`."""

    name: str
    mountpoint: Path
    image: Path

    def dataset(self, name: str, **properties: str) -> str:
        """Create a dataset, given by its name below the pool's; returns the full name."""
        full = f"{self.name}/{name}"
        options = [word for key, value in properties.items() for word in ("-o", f"{key}={value}")]
        command("zfs", "create", *options, full)
        return full

    def path(self, name: str = "") -> Path:
        """Where a dataset with an inherited mount point is mounted, given by its name below the pool's."""
        return self.mountpoint / name

    def snapshots(self) -> list[str]:
        return command("zfs", "list", "-H", "-t", "snapshot", "-o", "name", "-r", self.name).stdout.splitlines()


@contextmanager
def mounted_btrfs(folder: Path) -> Iterator[Btrfs]:
    if not Path("/dev/loop-control").exists():
        pytest.fail(
            "Btrfs tests need loop devices, and /dev/loop-control is not there: load the kernel's loop module,"
            " or give the container or chroot the host's /dev",
            pytrace=False,
        )
    folder.mkdir()
    filesystem = Btrfs(folder / "mnt", folder / "image")
    filesystem.mountpoint.mkdir()
    with filesystem.image.open("wb") as image:
        image.truncate(IMAGE_BYTES)
    command("mkfs.btrfs", "--quiet", filesystem.image)
    command("mount", "-t", "btrfs", "-o", "loop,noatime", filesystem.image, filesystem.mountpoint)
    try:
        yield filesystem
    finally:
        # The kernel lets go of the loop device with the last mount.
        patiently("umount", "--recursive", str(filesystem.mountpoint))
        filesystem.image.unlink()


@contextmanager
def imported_pool(
    folder: Path, mountpoint: Path | None = None, size: int = POOL_BYTES, *, features: bool = True
) -> Iterator[Pool]:
    folder.mkdir()
    pool = Pool(f"pool{secrets.token_hex(3)}", mountpoint or folder / "mnt", folder / "vdev")
    with pool.image.open("wb") as image:
        image.truncate(size)
    options = ["-o", "cachefile=none", "-O", f"mountpoint={pool.mountpoint}", "-O", "compression=off"]
    if not features:
        options.append("-d")
    command("zpool", "create", *options, pool.name, pool.image)
    try:
        yield pool
    finally:
        patiently("zpool", "destroy", "-f", pool.name)
        pool.image.unlink()


def patiently(*argv: str) -> None:
    """Run a clean-up command, again for 10 s while something that is just ending holds the filesystem busy."""
    deadline = time.monotonic() + 10
    while (ended := command(*argv, check=False)).returncode != 0:
        if time.monotonic() > deadline:
            pytest.fail(f"a test's filesystem cannot be removed: {ended}", pytrace=False)
        time.sleep(0.2)


@pytest.fixture
def filesystems() -> list[Filesystem]:
    """All that this test has made, for `leftovers`."""
    return []


@pytest.fixture
def make_btrfs(tmp_path: Path, filesystems: list[Filesystem]) -> Iterator[Callable[[], Btrfs]]:
    """Make as many Btrfs filesystems as the test wants."""
    with ExitStack() as stack:

        def make() -> Btrfs:
            made = stack.enter_context(mounted_btrfs(tmp_path / f"btrfs{len(filesystems)}"))
            filesystems.append(made)
            return made

        yield make


@pytest.fixture
def btrfs(make_btrfs: Callable[[], Btrfs]) -> Btrfs:
    """An empty Btrfs filesystem."""
    return make_btrfs()


@pytest.fixture
def make_pool(tmp_path: Path, filesystems: list[Filesystem]) -> Iterator[Callable[..., Pool]]:
    """Make as many pools as the test wants; `make_pool(mountpoint=Path(...))` chooses where."""
    with ExitStack() as stack:

        def make(mountpoint: Path | None = None) -> Pool:
            made = stack.enter_context(imported_pool(tmp_path / f"zfs{len(filesystems)}", mountpoint))
            filesystems.append(made)
            return made

        yield make


@pytest.fixture
def pool(make_pool: Callable[..., Pool]) -> Pool:
    """An empty ZFS pool."""
    return make_pool()
