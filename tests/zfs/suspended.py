"""A pool that can be made to fail, and to work again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kopiatomic.system import linux
from tests.support.filesystems import POOL_BYTES, Pool
from tests.support.programs import command

STATES = Path("/proc/spl/kstat/zfs")

WASTE = """
import os, sys
with open(sys.argv[1], "wb", buffering=0) as file:
    for _ in range(60):
        file.write(os.urandom(1 << 20))
    os.fsync(file.fileno())
"""

DIRT = """
import os, sys
with open(sys.argv[1], "wb", buffering=0) as file:
    for _ in range(8):
        file.write(os.urandom(1 << 20))
"""


@dataclass
class Suspendable:
    """Its file lies on a tmpfs that can be made too small, and large again."""

    pool: Pool
    _writers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def _hog(self) -> Path:
        return self.pool.image.with_name("hog")

    def suspend(self) -> None:
        self._fill()
        self._write(WASTE)
        deadline = time.monotonic() + 60
        while not self.suspended():
            assert time.monotonic() < deadline, "the pool does not suspend"

    def suspend_next(self) -> None:
        """What is next to be written to the device suspends the pool; within seconds that would be ZFS itself."""
        self._write(DIRT)
        self._writers[-1].wait(60)
        self._fill()

    def _fill(self) -> None:
        with self._hog.open("wb", buffering=0) as hog:
            while True:
                try:
                    hog.write(bytes(1 << 16))
                except OSError:
                    break

    def _write(self, program: str) -> None:
        """In a process of its own: it waits, unkillable, until the pool works again."""
        words = [sys.executable, "-SIc", program, str(self.pool.mountpoint / "waste")]
        self._writers.append(subprocess.Popen(words, cwd="/"))

    def suspended(self) -> bool:
        # Not by `zpool list`, which may have to wait as well.
        return (STATES / self.pool.name / "state").read_text() == "SUSPENDED\n"

    def resume(self) -> None:
        self._hog.unlink(missing_ok=True)
        command("zpool", "clear", self.pool.name)
        for writer in self._writers:
            writer.kill()
            writer.wait(60)
        self._writers.clear()


@contextmanager
def suspendable(folder: Path) -> Iterator[Suspendable]:
    folder.mkdir()
    linux.mount("tmpfs", str(folder), "tmpfs", 0, f"size={POOL_BYTES + (12 << 20)}")
    pool = Pool(f"pool{os.urandom(3).hex()}", folder.with_name(f"{folder.name}-mounted"), folder / "vdev")
    with pool.image.open("wb") as file:
        file.truncate(POOL_BYTES)
    options = ["-o", "cachefile=none", "-O", f"mountpoint={pool.mountpoint}", "-O", "compression=off"]
    command("zpool", "create", *options, pool.name, pool.image)
    made = Suspendable(pool)
    try:
        yield made
    finally:
        made.resume()
        command("zpool", "destroy", "-f", pool.name)
        linux.detach(str(folder))
