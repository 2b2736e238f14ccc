"""A kind of filesystem that nothing in the package knows; started as a program this module is kopiatomic with it.

Its datasets are tmpfs mounts with a name of their own, its snapshots are copies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kopiatomic.cli import entry
from kopiatomic.filesystems import KINDS
from kopiatomic.filesystems.backends import Backend
from kopiatomic.filesystems.kind import Kind, Mounting
from kopiatomic.filesystems.selection import Ask, Selection
from kopiatomic.model.leftovers import Intent, Leftover
from kopiatomic.model.mounts import Mount
from kopiatomic.model.plan import Dataset, Judged, PlannedPath, Refusal, Taken, Verdict
from kopiatomic.model.snapshots import Instant, Sets, Snapshot, SnapshotSet
from kopiatomic.paths import below

STORE = "TOY_STORE"
"""The variable that names the directory of the copies: ``rw``, and read-only the same as ``ro``."""

POOL = "box"


def store(side: str) -> Path:
    return Path(os.environ[STORE], side)


class ToySelection:
    """Takes what is named by a path, and everything for -a."""

    def __init__(self, shared: Selection) -> None:
        self._shared = shared
        self._mounts = {m.source: m for m in shared.mounted.values() if TOY.is_mounted(m)}
        self._asked: dict[str, Ask] = {}

    def ask_by_name(self, _name: str) -> bool:
        return False

    def ask_by_path(self, _name: str, path: str, mount: Mount) -> None:
        self._asked.setdefault(mount.source, Ask()).add(below(path, mount.point), "it was named", named=True)

    def ask_by_pattern(self, _pattern: str) -> int:
        return 0

    def ask_for_everything(self) -> None:
        for source in self._mounts:
            self._asked.setdefault(source, Ask()).add("", "-a", named=False)

    def ask_by_property(self) -> None:
        """Nothing has one."""

    def judge(self) -> Iterator[Judged]:
        for source, mount in self._mounts.items():
            ask = self._asked.get(source)
            if ask is None:
                yield Judged(source, TOY.name, Verdict.NOT_ASKED_FOR, "it was not named", mount.point)
                continue
            dataset = Dataset(TOY.name, source, POOL, PlannedPath(mount.point))
            taken = Taken(dataset, mount.point, ask.named, ask.parts)
            self._shared.taken.append(taken)
            yield Judged(source, TOY.name, Verdict.TAKEN, ask.why, mount.point, taken.places)


class ToyMaker:
    """Copies each dataset into a directory of the run."""

    def __init__(self, run_id: str, pool: str, taken: Sequence[Taken], _bookmark: str) -> None:
        self._run_id = run_id
        self._pool = pool
        self._copies = {f"{run_id}/{number}": one.dataset for number, one in enumerate(taken)}
        self.refused: list[Refusal] = []
        self.once = False

    def check(self) -> None:
        assert store("rw").is_dir()

    def intents(self) -> list[Intent]:
        return [Intent(TOY.name, self._pool, copy) for copy in self._copies]

    def prepare(self) -> None:
        (store("rw") / self._run_id).mkdir()

    def write_out(self) -> None:
        """A copy reads what is in memory."""

    def make(self) -> Instant:
        wall, monotonic = time.time_ns(), time.monotonic_ns()
        for copy, dataset in self._copies.items():
            # Mount points of other datasets become empty directories.
            subprocess.run(["cp", "-ax", dataset.mountpoint.text, store("rw") / copy], check=True)
        return Instant(wall, time.time_ns(), monotonic, time.monotonic_ns())

    def tie(self, cleanup_fd: int | None) -> None:
        """Nothing ties a directory."""

    def untie(self) -> None:
        """Nothing ties a directory."""

    def read_back(self, instant: Instant) -> SnapshotSet:
        snapshots = [Snapshot(dataset.name, str(store("ro") / copy), 7) for copy, dataset in self._copies.items()]
        return SnapshotSet(TOY.name, self._pool, tuple(snapshots), instant)

    def recall(self, sets: Sets) -> None:
        """The names are all that there is."""

    def remove(self) -> list[str]:
        shutil.rmtree(store("rw") / self._run_id, ignore_errors=True)
        return []

    def needs_descriptor(self) -> bool:
        return False


class ToyLeftovers:
    """What is recorded; nothing is looked for that is not."""

    KIND = "toy-snapshot"

    def recorded(self, run_id: str, intents: Sequence[Intent], /) -> list[Leftover]:
        return [
            Leftover(run_id, self.KIND, i.place, i.name, "recorded", f"rm -r {i.name}")
            for i in intents
            if (store("rw") / i.name).exists()
        ]

    def unrecorded(
        self, _names: Iterable[str] | None, _life: Callable[..., Any], _problems: list[str], /
    ) -> list[Leftover]:
        return []

    def remove(self, leftovers: Sequence[Leftover], /) -> list[Leftover]:
        for leftover in leftovers:
            shutil.rmtree(store("rw") / leftover.name)
        return []


TOY = Kind(
    name="toy",
    set_word="box",
    transaction_word="copy",
    module=__name__,
    selection=ToySelection,
    is_mounted=lambda mount: mount.fstype == "tmpfs" and mount.source.startswith("toy:"),
    name_of=lambda mount: mount.point,
    mounting=lambda source, _device: Mounting(source, None),
    caution="toys are copied while somebody plays with them",
)
BACKEND = Backend(maker=ToyMaker, leftovers=ToyLeftovers())

if __name__ == "__main__":
    KINDS[TOY.name] = TOY
    entry.main()
