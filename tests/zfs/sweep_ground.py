"""What the kill sweep's runs on ZFS read, and the decoys around it: two pools, so that there are two sets to tie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kopiatomic.state.ownership import host_id
from tests.support import forked
from tests.support.filesystems import Pool
from tests.support.programs import command
from tests.support.sweep_ground import Ground

PAST = [f"20250101T010101Z-0000000{digit}" for digit in "0123456789"]
"""Ids of runs of another time: none of them is alive."""

OTHER_HOST = "0123456789abcdef"
_COLUMNS = "guid,createtxg,userrefs,defer_destroy,clones,origin,kopiatomic:run"


@dataclass
class ZfsGround(Ground):
    """See `Ground`."""

    tied = True

    pool: Pool
    lake: Pool
    _held: list[str] = field(default_factory=list, init=False)

    def words(self) -> list[str]:
        return [f"{self.pool.name}/home", f"{self.pool.name}/src", self.lake.name]

    def next_words(self) -> list[str]:
        return [f"{self.pool.name}/other"]

    def sources(self) -> list[Path]:
        return [self.pool.path("home"), self.pool.path("src"), self.lake.path()]

    def make(self) -> None:
        """Make it all, decoys included."""
        for name in ("home", "src", "other"):
            self.pool.dataset(name)
        for path in self.sources():
            (path / "file").write_text(f"{path}\n")
        self._make_decoys()
        self.make_neighbours()

    def _make_decoys(self) -> None:
        pool, home, src = self.pool.name, f"{self.pool.name}/home", f"{self.pool.name}/src"
        here, elsewhere = host_id(), OTHER_HOST
        # Names like ours: no id, an id and no property, another run's id, another host's, our tag alone.
        for name in (
            "kopiatomic_",
            "kopiatomic_x",
            f"kopiatomic_{PAST[0]}",
            f"kopiatomic_{PAST[0]}x",
            f"x{PAST[0]}",
            "base",
        ):
            command("zfs", "snapshot", f"{home}@{name}")
        self._snapshot(home, PAST[1], f"{PAST[2]}@{here}")
        self._snapshot(home, PAST[3], f"{PAST[3]}@{elsewhere}")
        self._snapshot(home, PAST[4], PAST[4])
        self._snapshot(self.lake.name, PAST[3], f"{PAST[3]}@{elsewhere}")
        # Others' holds, and a clone.
        for name in ("theirs", "tagged"):
            command("zfs", "snapshot", f"{src}@{name}")
        command("zfs", "hold", "keep", f"{src}@theirs", f"{home}@kopiatomic_{PAST[0]}")
        command("zfs", "hold", "kopiatomic", f"{src}@tagged", f"{home}@kopiatomic_x")
        command("zfs", "clone", f"{src}@theirs", f"{pool}/clone")
        command("zfs", "clone", f"{home}@kopiatomic_{PAST[3]}", f"{pool}/clone2")
        # The property, inherited from the dataset.
        inherits = self.pool.dataset("inherits", **{"kopiatomic:run": f"{PAST[5]}@{here}"})
        command("zfs", "snapshot", f"{inherits}@kopiatomic_{PAST[5]}")
        # The property, received with a stream.
        sent = self.pool.dataset("sent")
        self._snapshot(sent, PAST[6], f"{PAST[6]}@{here}")
        command("sh", "-c", f"zfs send -p {sent}@kopiatomic_{PAST[6]} | zfs receive -u {pool}/received")
        command("zfs", "destroy", "-r", sent)

    @staticmethod
    def _snapshot(dataset: str, run_id: str, mark: str) -> None:
        command("zfs", "snapshot", "-o", f"kopiatomic:run={mark}", f"{dataset}@kopiatomic_{run_id}")

    @contextmanager
    def living_run(self) -> Iterator[None]:
        """Another run over the same datasets, recorded elsewhere, that goes on while the block is run."""
        root, home = self.beside / "living", self.folder / "living"
        home.mkdir()
        words = ["--mount-root", str(root), f"{self.pool.name}/home", self.lake.name]
        with forked.living(words, home, f"{root}{self.pool.path('home')}/file"):
            self._held = [name for name in self._properties() if "@" in name]
            self.remember()
            yield

    def look(self) -> dict[str, str]:
        return {**self._properties(), **self._files()}

    def details(self) -> dict[str, str]:
        """Whose the holds are. How many there are is a property."""
        listed = command("zfs", "holds", "-H", *self._held, check=False).stdout
        holds = [line.split("\t")[:2] for line in listed.splitlines()]
        return {f"hold {tag} on {name}": "" for name, tag in holds}

    def _properties(self) -> dict[str, str]:
        found: dict[str, str] = {}
        argv = ["zfs", "get", "-Hp", "-r", "-t", "all", "-o", "name,property,value,source", _COLUMNS]
        for line in command(*argv, self.pool.name, self.lake.name).stdout.splitlines():
            name, _, rest = line.partition("\t")
            # A clone's or a dataset's `createtxg` and `guid` stay; of a snapshot everything has to.
            found[name] = found.get(name, "") + rest.replace("\t", " ") + "; "
        return found

    def _files(self) -> dict[str, str]:
        paths = [path for path in self.beside.rglob("*") if path not in {self.root, self.next_root}]
        return {str(path): path.read_text() if path.is_file() else "folder" for path in paths}

    def tidy(self) -> None:
        for name in self._properties():
            if name not in self._baseline and "@kopiatomic_" in name:
                command("zfs", "release", "kopiatomic", name, check=False)
                command("zfs", "destroy", name, check=False)
