"""What the tests of FreeBSD's view stand on: directories that stand for snapshots, a mount root, the records of a run."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from kopiatomic.filesystems import KINDS
from kopiatomic.model.leftovers import Intent
from kopiatomic.platforms.freebsd.merged import MergedView
from kopiatomic.platforms.steps import SnapshotStep, Step
from kopiatomic.state import roots
from kopiatomic.state.records import Records, RunRecord
from tests.support.freebsd_shim import Shim

RUN = "20261122T101112Z-01234567"
PARENTS = 0o755


class Ground:
    """One run's. ``trees`` has a directory for each dataset, which its snapshot shows."""

    def __init__(self, folder: Path, run_id: str = RUN, root: str = "kopia") -> None:
        self.run_id = run_id
        self.folder = folder
        self.root = folder / root
        self.base = Path(roots.of_run(run_id))
        self.trees = folder / "trees"
        self.trees.mkdir(exist_ok=True)
        self.records = Records(str(folder / "state"))
        self.shim = self.new_shim()

    def new_shim(self) -> Shim:
        """One that knows what the others have mounted, as the kernel does."""
        return Shim(state=self.folder / "shim")

    def begin(self) -> None:
        """What a run does before its view is made."""
        record = RunRecord(self.run_id, "0", "kopiatomic", str(self.root), time.time(), None, None, None, None)
        self.records.begin(record, keep=1e9)
        directories = dict.fromkeys([*roots.intents(str(self.root)), *roots.intents(str(self.base))])
        self.records.intend(self.run_id, [*directories], "s")
        roots.make(str(self.root))
        roots.make(str(self.base))

    def tree(self, dataset: str, *directories: str) -> Path:
        """The directory that a dataset's snapshot shows, with a file that has its name."""
        tree = self.trees / dataset.replace("/", "-")
        tree.mkdir(exist_ok=True)
        (tree / "file").write_text(dataset)
        for directory in directories:
            (tree / directory).mkdir(parents=True)
        self.shim.snapshots = {**(self.shim.snapshots or {}), self.snapshot(dataset): tree}
        return tree

    def snapshot(self, dataset: str) -> str:
        return f"{dataset}@kopiatomic_{self.run_id}"

    def step(self, dataset: str, place: str, *, part: str = "", named: bool = False) -> SnapshotStep:
        """A step whose snapshot there is."""
        if self.snapshot(dataset) not in (self.shim.snapshots or {}):
            self.tree(dataset)
        return SnapshotStep(dataset, place, KINDS["zfs"], self.snapshot(dataset), part=part, named=named)

    def view(self, *steps: Step, shim: Shim | None = None) -> MergedView:
        def record(intents: Sequence[Intent]) -> None:
            self.records.intend_also(self.run_id, intents)

        return MergedView(str(self.root), str(self.base), steps, (shim or self.shim).kernel, record)

    def shown(self, place: str) -> str:
        """What is in the file at the top of a place of the view."""
        return (Path(f"{self.root}{place}") / "file").read_text()

    def recorded(self) -> set[tuple[str, str, str]]:
        """The recorded mounts: type, point, origin."""
        intents = self.records.intents(self.run_id)
        return {(i.place, i.name, i.origin) for i in intents if i.kind == "mount"}

    def left(self) -> list[str]:
        """What there still is of the run."""
        mounts = [f"{fstype} at {point}" for fstype, _, point in self.shim.ours()]
        return mounts + [str(path) for path in (self.root, self.base) if os.path.lexists(path)]
