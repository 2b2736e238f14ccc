"""Whether what an engine saved shows every mount of the view, judged by the engine's own listing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kopiatomic.engines.engine import Job
from kopiatomic.model.fstypes import SYSTEM
from kopiatomic.model.plan import Layout, Plan
from kopiatomic.model.record import INDEX
from kopiatomic.paths import below, is_at_or_below
from kopiatomic.state import locks
from kopiatomic.text import spelled


@dataclass(slots=True)
class Found:
    """What an engine's listing shows at a place."""

    kind: str = ""
    """"d" for a directory, "f" for a file, empty if it is not itself in the listing."""
    size: int | None = None
    """The size of a file in bytes, if the listing has it."""
    filled: bool = False
    """Whether anything in it is listed."""


class Inside:
    """Takes what an engine lists, entry by entry, and finds the directories in which it lists something."""

    def __init__(self, directories: Iterable[str], stand_in: str) -> None:
        self._by_name = {spelled(path, stand_in).strip("/"): path for path in directories}
        self.found: set[str] = set()

    def take(self, path: str) -> None:
        """Take an entry of the listing."""
        path = path.strip("/")
        self.found |= {directory for name, directory in self._by_name.items() if below(path, name)}


class Listing:
    """Takes what an engine lists, entry by entry, and keeps what matters: the places of mounts.

    ``stand_in`` is what the engine writes for each byte of a name that is not text.
    """

    def __init__(self, engine: str, job: Job, stand_in: str) -> None:
        self._engine = engine
        self._job = job
        self._stand_in = stand_in
        paths = {place: self.spelled(job.plan.path(place)).strip("/") for place in job.mounted}
        self._found = {path: Found() for path in paths.values()}
        self._paths = paths
        self._volumes = job.volumes
        self._left_out = left_out(job.plan)
        self._within = tuple(f"{self.spelled(source).strip('/')}/".lstrip("/") for source in job.plan.given)
        self._record = self.spelled(record_in(job.plan)).strip("/")
        self.recorded = False
        """Whether the metadata record is among the entries."""
        self.outside = ""
        """The first entry that lies in no source, as the engine writes it; empty if there is none."""

    def spelled(self, path: str) -> str:
        """Return a path as the engine writes it."""
        return spelled(path, self._stand_in)

    def take(self, path: str, kind: str, size: int | None = None) -> None:
        """Take an entry of the listing, with its kind."""
        path = path.strip("/")
        if not self.outside and not f"{path}/".startswith(self._within):
            self.outside = path
        if path and path == self._record:
            self.recorded = True
        parent = self._found.get(path.rpartition("/")[0])
        if parent is not None and path:
            parent.filled = True
        found = self._found.get(path)
        if found is not None:
            found.kind, found.size = kind, size

    def lacking(self) -> list[str]:
        """Return the mounts that are not shown, or shown empty although they are not, in words."""
        return [text for place, path in self._paths.items() if (text := self._lacks(place, self._found[path]))]

    def _lacks(self, place: str, found: Found) -> str | None:
        size = self._volumes.get(place)
        if place == "/" and self._job.plan.path(place) == "/":
            # The overall root has no entry of its own.
            found.kind = "d"
        if found.kind != ("d" if size is None else "f"):
            return f"{self._job.named(place)} is not in what {self._engine} saved: do its exclusions leave it out?"
        if size is not None and found.size not in {None, size}:
            return f"{self._job.named(place)} has {found.size} bytes in what {self._engine} saved, and the volume has {size}"
        emptied = any(is_at_or_below(place, top) for top in self._left_out)
        if size is None and place in self._job.filled and not found.filled and not emptied:
            return (
                f"{self._job.named(place)} is empty in what {self._engine} saved, and the dataset is not: do its exclusions or a "
                "CACHEDIR.TAG leave its content out?"
            )
        return None


def record_in(plan: Plan) -> str:
    """Return the path at which an engine finds the list of the metadata record; empty if there is none."""
    return f"{plan.path(plan.record)}/{INDEX}" if plan.record else ""


def left_out(plan: Plan) -> list[str]:
    """Return the directories whose content an engine must not read: what it writes, and with ``/`` the system's own."""
    if plan.layout is not Layout.IN_PLACE:
        return []
    system = SYSTEM if "/" in plan.sources else ()
    return sorted({*plan.writable, *system, *views_in(plan.sources)})


def views_in(sources: Sequence[str]) -> list[str]:
    """Return the directory of the runs' views, if it is in a source and not in a system directory (FreeBSD).

    An engine has a place for temporary files in it.
    """
    seen = any(is_at_or_below(locks.DIRECTORY, source) for source in sources)
    return [locks.DIRECTORY] if seen and not any(is_at_or_below(locks.DIRECTORY, top) for top in SYSTEM) else []


def pattern(directory: str) -> str:
    """Return a shell pattern that excludes everything in a directory and is literal up to its last slash."""
    return re.sub(r"[*?\[]", r"[\g<0>]", directory.rstrip("/")) + "/*"
