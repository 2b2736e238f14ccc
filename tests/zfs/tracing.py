"""Counts the programs that are started, by the kernel's own tracepoint: nothing is slowed down or stands in between."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kopiatomic.system import linux


class Trace:
    """The kernel's own list of the programs that some processes and their children have started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def watch_me(self) -> None:
        """From here on, count what this process and its children start."""
        self.watch(os.getpid())

    def watch(self, pid: int | None) -> None:
        """Count what this process and its children start; None: nobody any more."""
        (self.folder / "set_event_pid").write_text("" if pid is None else str(pid))

    def started(self) -> list[str]:
        lines = (self.folder / "trace").read_text().splitlines()
        return [line.partition("filename=")[2].split(" ")[0] for line in lines if "sched_process_exec:" in line]


@contextmanager
def tracing(point: Path) -> Iterator[Trace]:
    point.mkdir(parents=True)
    linux.mount("trace", str(point), "tracefs", 0)
    folder = point / "instances" / f"kopiatomic{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "options" / "event-fork").write_text("1")
        (folder / "events/sched/sched_process_exec/enable").write_text("1")
        yield Trace(folder)
    finally:
        folder.rmdir()
        linux.detach(str(point))
