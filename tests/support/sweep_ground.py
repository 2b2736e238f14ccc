"""What the kill sweep is made on: filesystems with something to back up, and much around it that nobody may touch.

They are in tests/zfs/sweep_ground.py and tests/btrfs/sweep_ground.py.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from tests.support.leftovers import mounts


@dataclass(frozen=True, slots=True)
class Seen:
    """What is not as it was before the run."""

    left: list[str]
    harmed: list[str]


@dataclass
class Ground(ABC):
    """What is swept: filesystems, a run over them, and everything around that nobody may touch."""

    folder: Path
    _baseline: dict[str, str] = field(default_factory=dict, init=False)
    _details: dict[str, str] = field(default_factory=dict, init=False)

    tied: ClassVar[bool]
    """Whether nothing but an empty mount root may be left, two seconds after one process was killed."""

    @property
    def beside(self) -> Path:
        """Where the mount roots are, and what lies beside them."""
        return self.folder / "mnt"

    @property
    def root(self) -> Path:
        """The mount root of the run that is killed."""
        return self.beside / "view"

    @property
    def next_root(self) -> Path:
        """That of the run after it."""
        return self.beside / "next"

    def make_neighbours(self) -> None:
        """Make files and directories beside the mount roots."""
        for name in ("view2", "vie", "other/view"):
            (self.beside / name).mkdir(parents=True)
            (self.beside / name / "file").write_text("somebody's\n")
        (self.beside / "empty").mkdir()

    @abstractmethod
    def make(self) -> None:
        """Make it all, decoys included."""

    @abstractmethod
    def living_run(self) -> AbstractContextManager[None]:
        """Another run over some of it, recorded elsewhere, that goes on while the block is run."""

    @abstractmethod
    def words(self) -> list[str]:
        """What the swept run takes."""

    @abstractmethod
    def next_words(self) -> list[str]:
        """What the run after it takes: something else."""

    @abstractmethod
    def sources(self) -> list[Path]:
        """Where the swept run's engine finds a file `file` in each dataset, below the mount root. In it stands this path."""

    @abstractmethod
    def look(self) -> dict[str, str]:
        """Everything that is there, and what there is to say of it. Nothing that goes on by itself may change that."""

    def details(self) -> dict[str, str]:
        """More of the same, which takes long to look at."""
        return {}

    def remember(self) -> None:
        """What is there now is what must be there after every run."""
        self._baseline, self._details = self.look(), self.details()

    def compare(self, *, closely: bool = False) -> Seen:
        """What is there and was not, and what was there and is not as it was; with the details if ``closely``."""
        now, before = self.look(), self._baseline
        if closely:
            now, before = {**now, **self.details()}, {**before, **self._details}
        changed = [f"{name}: {was} -> {now.get(name, 'gone')}" for name, was in before.items() if now.get(name) != was]
        new = {name for name in now if name not in before}
        outermost = sorted(name for name in new if os.path.dirname(name) not in new)
        return Seen([*outermost, *mounts(self.root)], changed)

    @abstractmethod
    def tidy(self) -> None:
        """Take away by force what is left."""
