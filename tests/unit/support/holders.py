"""What the tests of holders need: control groups with processes in them, a process that holds, a writer that counts."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pytest

from kopiatomic.hooks.holder import Around, Finding, Holder, Place
from kopiatomic.system import cgroups

IN_ORDER = """
import mmap, os, sys
files = []
for name in sys.argv[2:]:
    file = os.open(name, os.O_RDWR | os.O_CREAT)
    os.write(file, bytes(4096))
    files.append((file, mmap.mmap(file, 4096)))
number = 0
while True:
    number += 1
    text = number.to_bytes(8, "little")
    for file, page in files:
        if sys.argv[1] == "mapped":
            page[:8] = text
        else:
            os.pwrite(file, text, 0)
"""
"""Writes the same growing number to each file, one after the other, without fsync."""

_TURNS = """
import os, sys
files = [os.open(name, os.O_RDWR | os.O_CREAT) for name in sys.argv[1:]]
for file in files:
    os.write(file, bytes(4096))
turns = [os.pipe() for _ in files]
mine = next((place for place in range(1, len(files)) if os.fork() == 0), 0)
text = bytes(8)
while True:
    if mine == 0:
        text = (int.from_bytes(text, "little") + 1).to_bytes(8, "little")
    else:
        text = os.read(turns[mine][0], 8)
    os.pwrite(files[mine], text, 0)
    os.write(turns[(mine + 1) % len(files)][1], text)
    if mine == 0:
        os.read(turns[0][0], 8)
"""
"""The same by a process for each file: each writes what the one before it has just written, and only then."""

OUTSIDE = r"(is on \w+: NOT in this backup|lies in /\S*, which is NOT in this backup: name it as well)"
"""What is said of a path that is not in the backup, wherever the tests run."""

WITHIN = 2.0
"""Seconds after a kill within which nothing may be held any more."""


@dataclass
class Grouped:
    """A control group of a test's own."""

    path: str
    directory: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *argv: str | Path) -> subprocess.Popen[bytes]:
        """Start a program in it."""
        words = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', self.directory, *argv]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
        self.processes.append(process)
        deadline = time.monotonic() + 10
        while str(process.pid) not in (self.directory / "cgroup.procs").read_text().split():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process

    def join(self) -> None:
        """Put the calling process into it."""
        (self.directory / "cgroup.procs").write_text("0")

    def is_frozen(self) -> bool:
        return "frozen 1" in (self.directory / "cgroup.events").read_text()

    def is_asked(self) -> bool:
        return (self.directory / "cgroup.freeze").read_text().strip() == "1"

    def freeze(self, *, frozen: bool) -> None:
        (self.directory / "cgroup.freeze").write_text(f"{frozen:d}")
        assert eventually(lambda: self.is_frozen() == frozen)

    def remove(self) -> None:
        """Thaw it, kill all that is in it and below it, and remove it."""
        for directory in (self.directory, *self.directory.rglob("*")):
            if directory.is_dir():
                (directory / "cgroup.freeze").write_text("0")
        (self.directory / "cgroup.kill").write_text("1")
        for process in self.processes:
            process.wait()
        assert eventually(lambda: "populated 0" in (self.directory / "cgroup.events").read_text())
        below = [path for path in self.directory.rglob("*") if path.is_dir()]
        for directory in [*sorted(below, reverse=True), self.directory]:
            directory.rmdir()


@contextmanager
def grouped(above: Grouped | None = None, name: str = "") -> Iterator[Grouped]:
    """A control group of version 2; at the end its processes are killed."""
    top = Path(cgroups.hierarchy().point) if above is None else above.directory
    name = name or f"kopiatomic-test-{secrets.token_hex(4)}"
    group = Grouped(f"{'' if above is None else above.path}/{name}", top / name)
    group.directory.mkdir()
    try:
        yield group
    finally:
        group.remove()


@pytest.fixture
def group() -> Iterator[Grouped]:
    with grouped() as one:
        yield one


def eventually(happens: Callable[[], bool], within: float = 5.0) -> bool:
    """Whether something happens within so many seconds."""
    deadline = time.monotonic() + within
    while not happens():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def counter(file: Path) -> list[str | Path]:
    """A program that writes a growing number to a file, all the time."""
    return ["sh", "-c", 'i=0; while :; do i=$((i + 1)); echo $i > "$0.new"; mv "$0.new" "$0"; done', file]


def write_in_order(group: Grouped, files: Sequence[Path], *, mapped: bool) -> None:
    """Start a process that writes the same growing number to each file, one after the other: by mmap(2), or by pwrite(2)."""
    group.start(sys.executable, "-c", IN_ORDER, "mapped" if mapped else "written", *files)
    assert eventually(lambda: all(file.exists() and number(file) > 0 for file in files), within=20)


def write_in_turns(group: Grouped, files: Sequence[Path]) -> None:
    """The same by a process for each file, which wait for one another."""
    group.start(sys.executable, "-c", _TURNS, *files)
    assert eventually(lambda: all(file.exists() and number(file) > 0 for file in files), within=20)
    assert len((group.directory / "cgroup.procs").read_text().split()) == len(files)


WRITERS: Mapping[str, Callable[[Grouped, Sequence[Path]], None]] = MappingProxyType(
    {
        "written": partial(write_in_order, mapped=False),
        "mapped": partial(write_in_order, mapped=True),
        "four processes": write_in_turns,
    }
)
"""Ways to write the same growing number to several files, one after the other."""


def is_torn(numbers: Sequence[int]) -> bool:
    """Whether numbers that such a writer has written are not of one instant: each is written right after the one before it."""
    return list(numbers) != sorted(numbers, reverse=True) or numbers[0] - numbers[-1] > 1


def count_torn(is_torn_one: Callable[[], bool], sets: int) -> int:
    """Return how many of so many sets are torn. Where none is, more are made, a hundred at most: a busy machine tears few."""
    made = torn = 0
    while made < sets or (not torn and made < 100):
        torn += is_torn_one()
        made += 1
    print(f"{torn} of {made} sets are torn")
    return torn


def number(file: Path) -> int:
    """The number in such a file."""
    return int.from_bytes(file.read_bytes()[:8], "little")


def counts(file: Path, seconds: float = 0.2) -> bool:
    """Whether the number in a file grows."""
    before = file.read_text()
    time.sleep(seconds)
    return file.read_text() != before


def thawers() -> list[str]:
    """The control groups of thawers that are left, beside ours and beside those of the tests; not of others' living runs."""
    beside = {os.path.dirname(cgroups.group_at(cgroups.path_of(os.getpid())).directory), cgroups.hierarchy().point}
    found = [name for place in beside for name in os.listdir(place) if name.startswith("kopiatomic-thaw-")]
    return [name for name in found if not _is_others(int(name.split("-")[2]))]


def _is_others(pid: int) -> bool:
    """Whether a process lives that this one has not started, directly or not: other tests run at the same time."""
    while pid > 1:
        if pid == os.getpid():
            return False
        try:
            # proc_pid_stat(5): the parent is the second field behind the name, which may hold anything.
            pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except FileNotFoundError:
            return False
    return True


def around(places: Mapping[str, Place] | None = None) -> Around:
    """A backup with these directories in it."""

    def place_of(path: str) -> Place | None:
        above = [top for top in places or {} if path == top or path.startswith(f"{top}/")]
        return (places or {})[max(above, key=len)] if above else None

    return Around(place_of, {"PATH": os.environ["PATH"]})


def holder_of(findings: list[Finding]) -> Holder:
    """The only holder of what was found."""
    (finding,) = findings
    assert finding.holder is not None, finding
    return finding.holder


@contextmanager
def used(holder: Holder) -> Iterator[Holder]:
    """A holder, prepared; closed at the end."""
    try:
        holder.prepare(time.monotonic() + holder.wanted.timeout)
        yield holder
    finally:
        holder.close()


@contextmanager
def held(holder: Holder) -> Iterator[Holder]:
    """A holder that holds."""
    with used(holder):
        holder.hold(time.monotonic() + holder.wanted.timeout)
        holder.settle()
        yield holder


@contextmanager
def held_elsewhere(holder: Holder, inside: Grouped | None = None) -> Iterator[int]:
    """Another process, in a control group, that holds what a holder holds; its number."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            if inside is not None:
                inside.join()
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            deadline = time.monotonic() + holder.wanted.timeout
            holder.prepare(deadline)
            holder.hold(deadline)
            os.write(write, b"held")
            time.sleep(60)
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(1)
    os.close(write)
    try:
        assert os.read(read, 4096) == b"held"
        yield pid
    finally:
        os.close(read)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
