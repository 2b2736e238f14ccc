"""Whole runs that believe to be on FreeBSD: in the fork of a test, the system is a shim of that kernel's calls, with real ZFS."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kopiatomic.system import host, linux
from kopiatomic.system.freebsd_host import FreeBSDHost
from tests.support.freebsd_shim import Shim, rename_zoned
from tests.support.programs import SLOWNESS, Completed
from tests.zfs.conftest import cgroup
from tests.zfs.runs import Cgroup, Run, Runner


class FreeBSDRunner(Runner):
    """As :class:`Runner`; ``system`` are settings (sysctl(3)), ``jailed`` that no file system ids are shown.

    All processes of a run are killed before the mount of the number ``killed_at_mount`` (from 0), or before the unmount of
    that number; with ``alone`` only the process that makes it.
    """

    def __init__(self, group: Cgroup, folder: Path) -> None:
        super().__init__(group, folder)
        self.system: dict[str, int] = {}
        self.jailed = False

    def shim(self) -> Shim:
        """The kernel, as any process sees it."""
        shim = Shim(None, self.system, self.folder / "shim")
        shim.jailed = self.jailed
        return shim

    def __call__(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
        timeout: float = 120,
        **kill: Any,
    ) -> Completed:
        return self.start(*args, env=env, before=before, **kill).wait(timeout)

    def start(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
        killed_at_mount: int | None = None,
        killed_at_unmount: int | None = None,
        alone: bool = False,
    ) -> Run:
        def become() -> None:
            shim = self.shim()
            main = os.getpid()

            def kill() -> None:
                if not alone:
                    (self.group.folder / "cgroup.kill").write_text("1")
                os.kill(os.getpid(), 9)

            def at_mount(_options: object) -> None:
                if sum(call[0] == "nmount" for call in shim.calls) == killed_at_mount:
                    kill()

            def at_unmount(_name: object) -> None:
                # The main process makes none where nothing has gone wrong, and a second one must not be killed again.
                if sum(call[0] == "unmount" for call in shim.calls) == killed_at_unmount and os.getpid() != main:
                    once = self.folder / "killed"
                    if not once.exists():
                        once.touch()
                        kill()

            shim.before_nmount, shim.before_unmount = at_mount, at_unmount
            rename_zoned()
            system = FreeBSDHost(shim.kernel)
            host.here = lambda: system  # type: ignore[assignment]
            if before is not None:
                before()

        return super().start(*args, env=env, before=become)

    def left(self, *pools: Any, root: Path = Path("/kopia")) -> list[str]:
        """The shim's mounts too, wherever they are."""
        found = super().left(*pools, root=root)
        return [*found, *(f"mount {mount}" for mount in self.shim().ours())]


@contextmanager
def running(kind: str, folder: Path) -> Iterator[Runner]:
    """What runs kopiatomic on a system of a kind, "linux" or "freebsd"; what a test that failed has left goes."""
    with cgroup() as group:
        runner = (FreeBSDRunner if kind == "freebsd" else Runner)(group, folder)
        yield runner
        group.kill()
    if isinstance(runner, FreeBSDRunner):
        # It would be in the next one's way.
        for _, _, point in reversed(runner.shim().ours()):
            linux.detach(point)
            with suppress(OSError):
                os.rmdir(point)


def until_nobody_lives(run: Runner) -> None:
    """Wait for the end of all processes of all runs, and with it for their locks."""
    deadline = time.monotonic() + 10 * SLOWNESS
    while run.group.populated():
        assert time.monotonic() < deadline
        time.sleep(0.05)
