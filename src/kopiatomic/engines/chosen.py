"""Some files of a snapshot, for a receiver that learns of each that cannot be read.

kopia and restic serve their snapshots as a filesystem, of which only those files are read (``system/served.py``). Where they
cannot, everything is read, and what is not chosen is dropped.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from kopiatomic.engines import reader
from kopiatomic.engines.program import Program
from kopiatomic.engines.reader import ChosenReceiver, Reader, StoredSnapshot
from kopiatomic.errors import KopiatomicError
from kopiatomic.system import host, process, served
from kopiatomic.system.served import Sign
from kopiatomic.text import ended, printable

_NO_FUSE = re.compile(r"fusermount|/dev/fuse|\bfuse\b", re.IGNORECASE)
"""What kopia and restic say where they cannot mount: fusermount(1) is not installed, or the kernel has no FUSE for us."""


class Chosen:
    """A receiver of an archive, which passes on only the files that were chosen, under the paths that were asked for.

    ``listed`` makes of such a path the one that comes.
    """

    def __init__(self, receiver: ChosenReceiver, paths: Iterable[str], listed: Callable[[str], str]) -> None:
        self._receiver = receiver
        self._left: dict[str, list[str]] = {}
        """What has not come: the paths that were asked for, by the path that comes. Names that are not text may share one."""
        for path in dict.fromkeys(paths):
            self._left.setdefault(listed(path), []).append(path)
        self._current = ("", "")
        self._come: dict[str, str] = {}

    def begin(self, path: str, size: int) -> bool:
        """Take the beginning of a file."""
        if path not in self._left:
            return False
        self._current = path, self._left[path][0]
        return self._receiver.begin(self._current[1], size)

    def piece(self, data: bytes) -> None:
        """Pass on a piece."""
        self._receiver.piece(data)

    def end(self) -> None:
        """Take the end of a file."""
        self._take_off(*self._current)
        self._receiver.end()

    def same(self, path: str, other: str) -> None:
        """Take another name of a file, which must have come as well."""
        if path not in self._left:
            return
        asked = self._left[path][0]
        self._take_off(path, asked)
        if other in self._come:
            self._receiver.same(asked, self._come[other])
        else:
            self._receiver.failed(asked, f"it is another name of {printable(other)}, which has not come")

    def _take_off(self, path: str, asked: str) -> None:
        self._come[path] = asked
        self._left[path].remove(asked)
        if not self._left[path]:
            del self._left[path]

    def fail(self, why: str) -> None:
        """Report all that has not come."""
        for paths in self._left.values():
            for path in paths:
                self._receiver.failed(path, why)


def read(engine: str, chosen: Chosen, run: Callable[[], object]) -> None:
    """Run an engine that hands files on to the receiver; what it fails at is reported with its words for all that has not come.

    Raises KopiatomicError if the repository cannot be used at all, as its kinds tell.
    """
    try:
        run()
    except KopiatomicError as error:
        if error.kind not in {f"{engine}-failed", f"{engine}-cut-short"}:
            raise
        chosen.fail(error.message)


def read_all(engine: Reader, snapshot: StoredSnapshot, paths: Sequence[str], receiver: ChosenReceiver) -> None:
    """Read a whole snapshot for some files of it. Raises KopiatomicError."""
    chosen = Chosen(receiver, paths, engine.form.restored)
    read(engine.name, chosen, lambda: engine.read(snapshot, chosen))


class Served:
    """How the reading of a program's filesystem has ended.

    ``finished`` says how the program has ended if it has not served anything. ``top`` says why the folder cannot be read, and
    ``is_absent`` whether it does not exist.
    """

    def __init__(self, paths: Sequence[str], receiver: ChosenReceiver) -> None:
        self._paths = paths
        self._receiver = receiver
        self._is_wanted = False
        self._died: tuple[int, int] | None = None
        self._status: int | None = None
        self._signs: set[Sign] = set()
        self.finished: process.Finished | None = None
        self.top = ""
        self.is_absent = False

    def take(self, sign: Sign, number: int, data: bytes) -> None:
        """Take a message of the attendant's. Raises what the receiver raises."""
        self._signs.add(sign)
        if sign is Sign.BEGIN:
            self._is_wanted = self._receiver.begin(self._paths[number], int(data))
        elif sign is Sign.PIECE and self._is_wanted:
            self._receiver.piece(data)
        elif sign is Sign.END and self._is_wanted:
            self._receiver.end()
        elif sign is Sign.FAILED:
            self._receiver.failed(self._paths[number], data.decode())
        elif sign is Sign.DIED:
            self._died = number, int(data)
        elif sign is Sign.NOT_SERVED:
            self._status = int(data)
        elif sign is Sign.NO_TOP:
            self.is_absent, self.top = bool(number), data.decode()

    def finish(self, engine: Program, finished: process.Finished) -> None:
        """Take the end of the output. Raises KopiatomicError if it ends too early."""
        if self._status is not None:
            self.finished = replace(finished, status=self._status)
        elif self._died is not None:
            number, status = self._died
            said = finished.errors.rpartition("\n")[2]
            self.fail(f"{engine.name} ended ({ended(status)})" + (f": {said}" if said else ""), first=number)
        elif Sign.LATE in self._signs:
            raise KopiatomicError(
                f"{engine.name} mount did not serve anything within {served.TIME_LIMIT:g} s",
                kind=f"{engine.name}-unreachable",
                hint="Is its repository reachable?",
            )
        elif not self.top and Sign.DONE not in self._signs:
            raise reader.cut_short(engine.name, "the process that reads its mount was killed")

    def fail(self, why: str, *, first: int = 0) -> None:
        """Report all files, from one on."""
        for path in self._paths[first:]:
            self._receiver.failed(path, why)


def read_served(
    engine: Program,
    words: Sequence[str],
    names: Mapping[str, str],
    receiver: ChosenReceiver,
    *,
    place: str,
    top: str = "",
    covers: Mapping[str, bytes] | None = None,
) -> Served | None:
    """Have a program mount, and hand on files of that; ``names`` has their names below ``top`` by their paths.

    ``words`` are those of the program, which mounts at ``served.mount_point(place)``. Return None if it cannot mount here, and
    nothing has been read. Raises KopiatomicError.
    """
    if not host.here().secludes:
        return None
    found = Served(list(names), receiver)
    messages = served.Messages(found.take)
    wanted = served.Wanted(place, top, list(names.values()), covers or {})
    try:
        first = served.attended(wanted)
        finished = engine.run(*words, timeout=reader.TIME_LIMIT, take=messages.feed, first=first)
    except subprocess.SubprocessError:
        # It may not have mounts of its own.
        return None
    found.finish(engine, finished)
    return None if found.finished is not None and _NO_FUSE.search(finished.errors) else found
