"""Runs of kopiatomic in a fork of this process (tests/support/forked.py).

Tests of the quick start use the installed command. A control group tells exactly which processes of a run are alive.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kopiatomic.cli.entry
from tests.support import forked
from tests.support.filesystems import Pool
from tests.support.leftovers import STANDING, mounts
from tests.support.programs import Completed, command

LOCKS = Path("/run/kopiatomic")


@dataclass(frozen=True)
class Cgroup:
    """A control group: what is in it are the living processes of one test's runs."""

    folder: Path

    def pids(self) -> list[int]:
        return [int(pid) for pid in (self.folder / "cgroup.procs").read_text().split()]

    def processes(self) -> list[str]:
        found = []
        for pid in self.pids():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                words = "(just ended)"
            found.append(f"{pid} {words[:80]}")
        return found

    def populated(self) -> bool:
        """Whether a process of it has not ended yet. One that is about to is in no list of processes, and has its files still."""
        return "populated 1" in (self.folder / "cgroup.events").read_text()

    def kill(self) -> None:
        deadline = time.monotonic() + 30
        while self.populated() and time.monotonic() < deadline:
            (self.folder / "cgroup.kill").write_text("1")
            time.sleep(0.02)


@dataclass
class Run:
    """A run that has been started."""

    argv: tuple[str, ...]
    pid: int
    output: dict[int, Path]
    _status: int | None = field(default=None)

    @property
    def stdout(self) -> str:
        return self.output[1].read_text(errors="surrogateescape")

    @property
    def stderr(self) -> str:
        return self.output[2].read_text(errors="surrogateescape")

    def wait(self, timeout: float = 120) -> Completed:
        """Wait for its end (seconds); what outlives the time limit is a failure of the test."""
        if self._status is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                if not select.select([pidfd], [], [], timeout)[0]:
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                    raise TimeoutError(f"{self.argv} still ran after {timeout:g} s\n{self.stdout}\n{self.stderr}")
            finally:
                os.close(pidfd)
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return Completed(self.argv, self._status, self.stdout, self.stderr)

    def until(self, condition: Callable[[], object], timeout: float = 60) -> None:
        """Wait until something holds (seconds); fails the test if the run ends first or it never does."""
        deadline = time.monotonic() + timeout
        while not condition():
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                raise AssertionError(f"it ended too early: {self.wait()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited in vain\n{self.stdout}\n{self.stderr}")
            time.sleep(0.01)


def children(pid: int) -> list[int]:
    """The children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Runner:
    """`run("-c", "true", dataset)` runs kopiatomic to its end; `run.start(...)` and `run.started(...)` leave it running."""

    def __init__(self, group: Cgroup, folder: Path) -> None:
        self.group = group
        self.folder = folder
        self.main: Callable[[], object] = kopiatomic.cli.entry.main
        """What stands in for the command."""
        self._count = 0

    def __call__(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
        timeout: float = 120,
    ) -> Completed:
        return self.start(*args, env=env, before=before).wait(timeout)

    def json(self, *args: str | Path, **more: Any) -> tuple[Completed, dict[str, Any]]:
        """Run with --json; how it ended, and the document."""
        ended = self("--json", *args, **more)
        document: dict[str, Any] = json.loads(ended.stdout)
        assert document["exit_code"] == ended.returncode
        return ended, document

    @contextmanager
    def started(self, *args: str | Path, **more: Any) -> Iterator[Run]:
        run = self.start(*args, **more)
        try:
            yield run
        except BaseException:
            self.group.kill()
            raise
        finally:
            run.wait()

    def left(self, *pools: Pool, root: Path = Path("/kopia")) -> list[str]:
        """List what runs have left behind at this moment: `assert run.left(pool) == []`."""
        found = [f"process {line}" for line in self.group.processes()]
        found += [f"mount {line}" for line in mounts(root)]
        # The directory's own id stays with it, and the empty directory that restores mount datasets over.
        found += [f"lock {path}" for path in LOCKS.glob("*") if path.name not in STANDING]
        if os.path.lexists(root):
            found.append(f"mount root {root}")
        if pools:
            names = [pool.name for pool in pools]
            listed = command("zfs", "list", "-H", "-t", "snapshot", "-o", "name", "-r", *names).stdout
            found += [f"snapshot {name}" for name in listed.splitlines() if "@kopiatomic_" in name]
        return found

    def start(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> Run:
        """Fork and run; `before` is called in the fork first (to take permissions away, to change namespaces)."""
        self._count += 1
        words = tuple(map(str, args))
        output = {fd: self.folder / f"run{self._count}.{name}" for fd, name in ((1, "stdout"), (2, "stderr"))}
        for path in output.values():
            path.touch()
        pid = os.fork()
        if pid:
            return Run(words, pid, output)
        try:
            (self.group.folder / "cgroup.procs").write_text("0")
            forked.become(words, output, {**forked.environment(self.folder), **(env or {})}, before, self.main)
        except BaseException as error:
            os.write(2, f"the test's fork failed: {error!r}\n".encode())
        finally:
            os._exit(99)
