"""Faults on Btrfs, and the ground for them: two subvolumes among decoys, and kopiatomic as a user runs it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.cgroups import pids_limited
from tests.support.common_faults import GONE, always
from tests.support.fault_engine import contents
from tests.support.faults import LIMIT_S, Fault, Ground
from tests.support.filesystems import Btrfs
from tests.support.leftovers import mounts, processes
from tests.support.moments import after_reading
from tests.support.programs import Completed, Kopia, Kopiatomic, command
from tests.zfs.runs import Run

TEXTS = {"file": "kept\n", "folder/other": "kept as well\n"}
DECOY = "kopiatomic_20200101T000000Z-0badcafe"


class BtrfsGround(Ground):
    """`home` and `src` of a filesystem of its own."""

    def __init__(self, btrfs: Btrfs, kopiatomic: Kopiatomic, folder: Path, kopia: Kopia | None = None) -> None:
        super().__init__(folder)
        self.kopia = kopia
        self.btrfs = btrfs
        self._kopiatomic = kopiatomic
        self._count = 0
        top = btrfs.mountpoint
        self._decoys = {
            # Named as ours are, but not where ours are; where ours are, but of another run; and nothing of the kind.
            f"{DECOY}-by-hand": top / f"{DECOY}-by-hand",
            DECOY: top / ".kopiatomic" / DECOY / "0" / "snapshot",
            "monday": top / "monday",
        }
        self.heal()
        (top / ".kopiatomic").mkdir(mode=0o700)
        for place in self._decoys.values():
            place.parent.mkdir(parents=True, exist_ok=True)
            command("btrfs", "subvolume", "snapshot", "-r", self.live[0], place)

    @property
    def names(self) -> Sequence[str]:
        return [str(place) for place in self.live]

    @property
    def live(self) -> Sequence[Path]:
        return [self.btrfs.mountpoint / "home", self.btrfs.mountpoint / "src"]

    def heal(self) -> None:
        for place in self.live:
            if not place.exists():
                command("btrfs", "subvolume", "create", place)
            for name, text in TEXTS.items():
                (place / name).parent.mkdir(exist_ok=True)
                (place / name).write_text(text)

    def decoys(self) -> Mapping[str, str]:
        found = {}
        for name, place in self._decoys.items():
            found[name] = command("btrfs", "subvolume", "show", place).stdout if place.exists() else "gone"
            found[f"in {name}"] = repr(contents(str(place))) if place.exists() else "gone"
        found["beside"] = self.beside.read_text()
        return found

    def snapshots(self) -> Sequence[str]:
        top = self.btrfs.mountpoint
        found = [path for path in self.btrfs.snapshots() if top / path not in self._decoys.values()]
        ours = top / ".kopiatomic"
        return found + [f".kopiatomic/{name}" for name in os.listdir(ours) if name != DECOY]

    def processes(self) -> Sequence[str]:
        return processes(self._kopiatomic.environment["KOPIATOMIC_TEST_MARK"])

    def mounts(self) -> Sequence[str]:
        return mounts(self.root)

    def start(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> Run:
        self._count += 1
        output = {fd: self.folder / f"run{self._count}.{name}" for fd, name in ((1, "stdout"), (2, "stderr"))}
        argv = self._kopiatomic.argv(*args)
        environment = {**self._kopiatomic.environment, **self.environment, **(env or {})}
        for path in output.values():
            path.touch()
        pid = os.fork()
        if pid:
            return Run(tuple(argv), pid, output)
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for fd, path in output.items():
                os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), fd)
            for signum in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(signum, signal.SIG_DFL)
            if before is not None:
                before()
            os.closerange(3, 1024)
            os.execve(argv[0], argv, environment)  # noqa: S606 - no shell is wanted
        finally:
            os._exit(99)

    def start_selecting(self, *args: str | Path, before: Callable[[], None] | None = None) -> Run:
        """In the checks that come before anything is made: of Btrfs itself no program is asked that could wait."""
        program = self.folder / "waiting-kopia"
        self.waiting(program, "exit 1")
        environment = {"KOPIATOMIC_KOPIA": str(program)}
        return self.start(*args, "--mount-root", self.root, *self.names, env=environment, before=before)

    def kill_all(self) -> None:
        deadline = time.monotonic() + 10
        while (found := self.processes()) and time.monotonic() < deadline:
            for line in found:
                try:
                    os.kill(int(line.split()[0]), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.02)

    @contextmanager
    def limited(self, **limits: str) -> Iterator[Callable[[], None]]:
        with pids_limited(int(limits["pids_max"])) as join:
            yield join

    def made(self, number: int) -> Path:
        """The snapshot of a run that is under way, by its position."""
        ours = self.btrfs.mountpoint / ".kopiatomic"
        (run,) = (name for name in os.listdir(ours) if name != DECOY)
        return ours / run / str(number) / "snapshot"


def _ground(ground: Ground) -> BtrfsGround:
    assert isinstance(ground, BtrfsGround)
    return ground


# Somebody else's hands


def snapshot_deleted(ground: Ground, drawn: random.Random) -> Completed:
    """The kernel lets anybody delete a snapshot that is mounted: its tree goes empty."""
    mine, number = _ground(ground), drawn.randrange(2)
    if drawn.random() < 0.5:
        with mine.at_engine() as run:
            command("btrfs", "subvolume", "delete", mine.made(number))
    else:
        with after_reading(mine) as run:
            command("btrfs", "subvolume", "delete", mine.made(number))
    return run.wait(LIMIT_S)


def snapshot_renamed(ground: Ground, drawn: random.Random) -> Completed:
    """With the directory that it lies in; what was saved is right all the same, but it is not to be found any more."""
    mine = _ground(ground)
    elsewhere = mine.btrfs.mountpoint / "taken-away"
    with mine.at_engine() as run:
        mine.made(drawn.randrange(2)).parent.rename(elsewhere)
    ended = run.wait(LIMIT_S)
    if (elsewhere / "snapshot").exists():
        command("btrfs", "subvolume", "delete", elsewhere / "snapshot")
    elsewhere.rmdir()
    return ended


def snapshot_replaced(ground: Ground, drawn: random.Random) -> Completed:
    """By another of the same dataset, at a later instant, under the same name."""
    mine, number = _ground(ground), drawn.randrange(2)
    with mine.at_engine() as run:
        place = mine.made(number)
        command("btrfs", "subvolume", "delete", place)
        command("btrfs", "subvolume", "snapshot", "-r", mine.live[number], place)
    ended = run.wait(LIMIT_S)
    if place.exists():
        command("btrfs", "subvolume", "delete", place)
    return ended


def dataset_deleted(ground: Ground, drawn: random.Random) -> Completed:
    """The live one: what is frozen does not need it."""
    with ground.at_engine() as run:
        command("btrfs", "subvolume", "delete", drawn.choice(list(ground.live)))
    return run.wait(LIMIT_S)


def dataset_renamed(ground: Ground, drawn: random.Random) -> Completed:
    place = drawn.choice(list(ground.live))
    with ground.at_engine() as run:
        place.rename(place.with_name("moved"))
    try:
        return run.wait(LIMIT_S)
    finally:
        place.with_name("moved").rename(place)


def before_the_snapshot(line: str, undo: str = "") -> Callable[[Ground, random.Random], Completed]:
    """Between listing and snapshot, where ``-p`` runs; {place} is one of the datasets."""

    def provoke(ground: Ground, drawn: random.Random) -> Completed:
        words = {"place": drawn.choice(list(ground.live)), "top": _ground(ground).btrfs.mountpoint}
        ended = ground.run("-p", line.format(**words))
        if undo:
            command("sh", "-c", undo.format(**words))
        return ended

    return provoke


def frozen_filesystem(ground: Ground, drawn: random.Random) -> Completed:
    """Whoever freezes the filesystem makes everything wait that would change it, the snapshot too."""
    top = _ground(ground).btrfs.mountpoint
    run = ground.start("-p", f"fsfreeze --freeze {top}", *ground.words())
    try:
        run.until(lambda: "taking 2 snapshot" in run.stderr, LIMIT_S)
        if drawn.random() < 0.5:
            os.kill(run.pid, signal.SIGTERM)
        time.sleep(drawn.uniform(0, 0.5))
    finally:
        command("fsfreeze", "--unfreeze", top, check=False)
    return run.wait(LIMIT_S)


def all_killed(ground: Ground, _: random.Random) -> Completed:
    with ground.at_engine() as run:
        ground.kill_all()
    return run.wait(LIMIT_S)


VANISHED = "(vanished|deleted) between listing and snapshot"

FAULTS: Sequence[Fault] = (
    Fault("somebody deletes a snapshot", snapshot_deleted, {1: GONE}),
    Fault("somebody renames a snapshot", snapshot_renamed, {1: GONE, 4: "left behind: .*snapshot"}, always),
    Fault("somebody replaces a snapshot", snapshot_replaced, {1: GONE}, always),
    Fault("a dataset is deleted while it is backed up", dataset_deleted, {0: ""}),
    Fault("a dataset is renamed while it is backed up", dataset_renamed, {0: ""}),
    Fault(
        "a dataset is deleted before the snapshot",
        before_the_snapshot("btrfs -q subvolume delete {place}"),
        {1: VANISHED},
    ),
    Fault(
        "a dataset is renamed before the snapshot",
        before_the_snapshot("mv {place} {place}.moved", "mv {place}.moved {place}"),
        {1: VANISHED},
    ),
    Fault(
        "a dataset is replaced before the snapshot",
        before_the_snapshot(
            "mv {place} {place}.moved && btrfs -q subvolume create {place}",
            "btrfs -q subvolume delete {place} && mv {place}.moved {place}",
        ),
        {1: VANISHED},
    ),
    Fault(
        "the filesystem is made read-only before the snapshot",
        before_the_snapshot("mount -o remount,ro {top}", "mount -o remount,rw {top}"),
        {1: "the filesystem is read-only"},
    ),
    Fault(
        "the folder of snapshots is not root's alone",
        before_the_snapshot("chmod 0777 {top}/.kopiatomic", "chmod 0700 {top}/.kopiatomic"),
        {1: "not a directory that only root can enter"},
    ),
    Fault("the filesystem is frozen", frozen_filesystem, {0: "", 143: "stopped by SIGTERM"}),
    Fault("all processes are killed", all_killed, {-9: ""}, always),
)
