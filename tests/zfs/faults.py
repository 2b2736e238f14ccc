"""Faults on ZFS, and the ground for them: two datasets among decoys, and runs in a control group of their own."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support import cgroups
from tests.support.common_faults import GONE
from tests.support.faults import LIMIT_S, Fault, Ground
from tests.support.filesystems import Pool
from tests.support.leftovers import mounts
from tests.support.moments import children, found, keeper_of, launcher_of
from tests.support.programs import Completed, command
from tests.zfs.runs import Run, Runner

TEXTS = {"file": "kept\n", "folder/other": "kept as well\n"}
DECOY = "kopiatomic_20200101T000000Z-0badcafe"
REAL_ZFS = "/usr/sbin/zfs"


class ZfsGround(Ground):
    """`home` and `src` of a pool that the tests of a module share; the decoys are made with the first of these."""

    def __init__(self, pool: Pool, runner: Runner, folder: Path) -> None:
        super().__init__(folder)
        self.pool = pool
        self.runner = runner
        self.heal()
        if f"{self.names[0]}@{DECOY}" not in self._listed():
            self._make_decoys()

    def _make_decoys(self) -> None:
        """A name like ours without a property; others' holds, tags and clones; a property that is inherited."""
        pool, home = self.pool.name, self.names[0]
        for name in (DECOY, f"{DECOY}-by-hand", "monday"):
            command("zfs", "snapshot", f"{home}@{name}")
        command("zfs", "hold", "theirs", f"{home}@{DECOY}")
        command("zfs", "hold", "kopiatomic", f"{home}@monday")
        command("zfs", "clone", f"{home}@{DECOY}-by-hand", f"{pool}/clone")
        self.pool.dataset("heir", **{"kopiatomic:run": "20200101T000000Z-0badcafe@somewhere"})
        command("zfs", "snapshot", f"{pool}/heir@{DECOY}")

    @property
    def names(self) -> Sequence[str]:
        return [f"{self.pool.name}/home", f"{self.pool.name}/src"]

    @property
    def live(self) -> Sequence[Path]:
        return [self.pool.path("home"), self.pool.path("src")]

    def heal(self) -> None:
        for name, place in zip(self.names, self.live, strict=True):
            if not os.path.ismount(place):
                self.pool.dataset(name.partition("/")[2])
            for file, text in TEXTS.items():
                (place / file).parent.mkdir(exist_ok=True)
                (place / file).write_text(text)

    def _listed(self) -> dict[str, str]:
        """All snapshots of the pool, and what is known of each."""
        words = ("zfs", "get", "-Hp", "-r", "-t", "snapshot", "-o", "name,property,value,source")
        found: dict[str, str] = {}
        for line in command(*words, "guid,userrefs,clones,kopiatomic:run", self.pool.name).stdout.splitlines():
            name, _, told = line.partition("\t")
            found[name] = f"{found.get(name, '')}{told}\n"
        return found

    def decoys(self) -> Mapping[str, str]:
        decoys = {name: told for name, told in self._listed().items() if DECOY in name or "@monday" in name}
        return {**decoys, "beside": self.beside.read_text()}

    def snapshots(self) -> Sequence[str]:
        return [name for name in self._listed() if "@kopiatomic_" in name and DECOY not in name]

    def processes(self) -> Sequence[str]:
        return self.runner.group.processes()

    def mounts(self) -> Sequence[str]:
        return mounts(self.root)

    def start(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> Run:
        return self.runner.start(*args, env={**self.environment, **(env or {})}, before=before)

    def start_selecting(self, *args: str | Path, before: Callable[[], None] | None = None) -> Run:
        """While `zfs list` runs."""
        self.waiting(self._shim(), f'exec {REAL_ZFS} "$@"')
        return self.start(*args, *self.words("gate"), env=self._shimmed(), before=before)

    def _shim(self) -> Path:
        (self.folder / "shims").mkdir(exist_ok=True)
        return self.folder / "shims" / "zfs"

    def _shimmed(self) -> dict[str, str]:
        return {"PATH": f"{self.folder}/shims:{os.environ['PATH']}"}

    def at_call(self, pattern: str, *, before: str = "", after: str = "") -> dict[str, str]:
        """An environment in which shell lines run before or after the first call of `zfs` that matches and is not about decoys.

        All calls are real.
        """
        done = self.folder / "done"
        done.unlink(missing_ok=True)
        once = f'case "$*" in *{DECOY}*) ;; {pattern}) [ -e {done} ] || {{{{ touch {done}; ({{}}) >/dev/null 2>&1; }}}} ;; esac'
        self._shim().write_text(
            f'#!/bin/sh\n{once.format(before) if before else ""}\n{REAL_ZFS} "$@"\nstatus=$?\n'
            f"{once.format(after) if after else ''}\nexit $status\n"
        )
        self._shim().chmod(0o755)
        return self._shimmed()

    def kill_all(self) -> None:
        self.runner.group.kill()

    @contextmanager
    def limited(self, **limits: str) -> Iterator[Callable[[], None]]:
        """The group of the runs itself has the limits meanwhile."""
        files = [(limit.replace("_", ".", 1), value) for limit, value in limits.items()]
        try:
            for name, value in files:
                cgroups.enable(name.partition(".")[0])
                (self.runner.group.folder / name).write_text(value)
            yield lambda: None
        finally:
            for name, _ in files:
                (self.runner.group.folder / name).write_text("0" if name.endswith(".group") else "max")

    def made(self, number: int) -> str:
        """The snapshot of the run that is under way, by its dataset's number."""
        (name,) = (name for name in self.snapshots() if name.startswith(f"{self.names[number]}@"))
        return name


def _ground(ground: Ground) -> ZfsGround:
    assert isinstance(ground, ZfsGround)
    return ground


# Somebody else's hands


def snapshot_destroyed(ground: Ground, drawn: random.Random) -> Completed:
    """They release our hold and destroy by force: the mount in the view still keeps the snapshot."""
    mine = _ground(ground)
    with mine.at_engine() as run:
        name = mine.made(drawn.randrange(2))
        command("zfs", "release", "kopiatomic", name, check=False)
        command("zfs", "destroy", *drawn.choice([["-f"], ["-Rf"], ["-d"]]), name, check=False)
    return run.wait(LIMIT_S)


def snapshot_destroyed_before_mount(ground: Ground, drawn: random.Random) -> Completed:
    """When it is tied and not mounted yet, which is when it is read back."""
    mine = _ground(ground)
    line = f"{REAL_ZFS} release kopiatomic {drawn.choice(list(mine.names))}@kopiatomic_$run"
    find = (
        f"run=$({REAL_ZFS} list -Ho name -t snapshot {mine.names[0]} | sed -n 's/.*@kopiatomic_//p' | grep -v 0badcafe)"
    )
    return mine.run(env=mine.at_call("*createtxg*@kopiatomic_*", before=f"{find}; {line}"))


def snapshot_renamed(ground: Ground, drawn: random.Random) -> Completed:
    mine = _ground(ground)
    with mine.at_engine() as run:
        name = mine.made(drawn.randrange(2))
        command("zfs", "rename", name, f"{name.partition('@')[0]}@renamed", check=False)
    ended = run.wait(LIMIT_S)
    assert not [name for name in mine.pool.snapshots() if name.endswith("@renamed")], "a renamed snapshot is left"
    return ended


def snapshot_held(ground: Ground, drawn: random.Random) -> Completed:
    """By somebody else: it stays until they let go, and goes by itself then."""
    mine = _ground(ground)
    with mine.at_engine() as run:
        name = mine.made(drawn.randrange(2))
        command("zfs", "hold", "theirs", name)
    ended = run.wait(LIMIT_S * 2)
    command("zfs", "release", "theirs", name)
    return ended


def snapshot_cloned(ground: Ground, drawn: random.Random) -> Completed:
    mine = _ground(ground)
    with mine.at_engine() as run:
        command("zfs", "clone", mine.made(drawn.randrange(2)), f"{mine.pool.name}/theirs")
    ended = run.wait(LIMIT_S * 2)
    command("zfs", "destroy", f"{mine.pool.name}/theirs")
    return ended


def dataset_destroyed(ground: Ground, drawn: random.Random) -> Completed:
    """`zfs destroy -R`, by force, of what is backed up: refused while our hold is there, so the backup is whole."""
    mine = _ground(ground)
    with mine.at_engine() as run:
        command("zfs", "destroy", "-Rf", mine.names[1], check=False)
    return run.wait(LIMIT_S)


def dataset_renamed(ground: Ground, drawn: random.Random) -> Completed:
    mine = _ground(ground)
    old, new = mine.names[1], f"{mine.pool.name}/moved"
    with mine.at_engine() as run:
        command("zfs", "rename", *drawn.choice([[], ["-f"], ["-u"]]), old, new, check=False)
    try:
        return run.wait(LIMIT_S)
    finally:
        left = [name for name in mine.pool.snapshots() if name.startswith(f"{new}@kopiatomic_")]
        command("zfs", "rename", new, old, check=False)
        command("zfs", "mount", old, check=False)
        assert not left


def dataset_unmounted(ground: Ground, drawn: random.Random) -> Completed:
    """The live one: the view does not need it."""
    mine = _ground(ground)
    number = drawn.randrange(2)
    with mine.at_engine() as run:
        command("zfs", "unmount", "-f", mine.names[number])
    try:
        return run.wait(LIMIT_S)
    finally:
        command("zfs", "mount", mine.names[number])


def rolled_back(ground: Ground, _: random.Random) -> Completed:
    """`zfs rollback -R` destroys what is newer, also by force: refused for a held snapshot."""
    mine = _ground(ground)
    with mine.at_engine() as run:
        command("zfs", "rollback", "-Rf", f"{mine.names[0]}@monday", check=False)
    return run.wait(LIMIT_S)


def exported(ground: Ground, drawn: random.Random) -> Completed:
    mine = _ground(ground)
    with mine.at_engine() as run:
        told = command("zpool", "export", *drawn.choice([[], ["-f"]]), mine.pool.name, check=False)
        assert told.returncode != 0
        assert "busy" in told.stderr
    try:
        return run.wait(LIMIT_S)
    finally:
        # What an export that is refused has unmounted by then stays unmounted.
        command("zfs", "mount", "-a")


def after_listing(line: str, undo: str = "") -> Callable[[Ground, random.Random], Completed]:
    """Between listing and snapshot; {name} is one of the datasets. By a hook, or the moment `zfs list` has ended."""

    def provoke(ground: Ground, drawn: random.Random) -> Completed:
        mine = _ground(ground)
        # The first one has decoys, which nobody is to take away.
        words = {"name": mine.names[1], "pool": mine.pool.name, "image": mine.pool.image.parent}
        text = line.format(**words)
        by_hook = drawn.random() < 0.5
        ended = mine.run("-p", text) if by_hook else mine.run(env=mine.at_call("list*keystatus*", after=text))
        if undo:
            command("sh", "-c", undo.format(**words))
        return ended

    return provoke


def at_its_quota(ground: Ground, drawn: random.Random) -> Completed:
    """A quota that is reached does not keep ZFS from a snapshot; a snapshot limit does, where it is enforced."""
    mine = _ground(ground)
    name, place = mine.names[0], mine.live[0]
    hog = place / "hog"
    command("zfs", "set", "quota=3M", name)
    try:
        with hog.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(os.urandom(1 << 20))
                    os.fsync(file.fileno())
            except OSError:
                pass
        hog.unlink()
        return mine.run()
    finally:
        command("zfs", "set", "quota=none", name)
        hog.unlink(missing_ok=True)


# Memory


def _adjusted(pid: int, value: int) -> None:
    Path(f"/proc/{pid}/oom_score_adj").write_text(str(value))


def memory(*victims: str) -> Callable[[Ground, random.Random], Completed]:
    """The memory limit of the group is reached: by the engine's hunger, with the victim chosen by its score."""

    def provoke(ground: Ground, drawn: random.Random) -> Completed:
        return _memory(_ground(ground), drawn.choice(victims))

    return provoke


def _memory(mine: ZfsGround, victim: str) -> Completed:
    limits = {"memory_oom.group": "1"} if victim == "all" else {}
    with mine.limited(memory_max=str(400 << 20), **limits):
        run = mine.start(*mine.words("gate", "eat"))
        run.until(mine.started, LIMIT_S)
        keeper, launcher = found(run, keeper_of), found(run, launcher_of)
        processes = {"main": run.pid, "keeper": keeper, "launcher": launcher, "engine": children(launcher)[0]}
        if victim != "all":
            for name, pid in processes.items():
                _adjusted(pid, 1000 if name == victim else -1000)
        mine.let_go()
        return run.wait(LIMIT_S)


# The clock


def clock_jumps(ground: Ground, drawn: random.Random) -> Completed:
    """By a day at least, either way, while the engine runs."""
    by = drawn.choice([-1, 1]) * drawn.randint(86_400, 400 * 86_400)
    with ground.at_engine() as run:
        time.clock_settime(time.CLOCK_REALTIME, time.time() + by)
    try:
        return run.wait(LIMIT_S)
    finally:
        time.clock_settime(time.CLOCK_REALTIME, time.time() - by)


def all_killed(ground: Ground, _: random.Random) -> Completed:
    with ground.at_engine() as run:
        ground.kill_all()
    return run.wait(LIMIT_S)


VANISHED = "(vanished|deleted) between listing and snapshot"
HELD = "left behind: snapshot"


def killed_all(ended: Completed) -> bool:
    return ended.returncode == -signal.SIGKILL


FAULTS: Sequence[Fault] = (
    Fault("somebody releases and destroys a snapshot", snapshot_destroyed, {0: ""}),
    Fault(
        "somebody destroys a snapshot before it is mounted",
        snapshot_destroyed_before_mount,
        {1: "its snapshot disappeared right after it was made"},
    ),
    Fault("somebody renames a snapshot", snapshot_renamed, {0: "", 1: GONE}),
    Fault("somebody holds a snapshot", snapshot_held, {4: HELD}, slow=True),
    Fault("somebody clones a snapshot", snapshot_cloned, {4: HELD}, slow=True),
    Fault("a dataset is to be destroyed while it is backed up", dataset_destroyed, {0: ""}),
    Fault("a dataset is renamed while it is backed up", dataset_renamed, {0: ""}),
    Fault("a dataset is unmounted while it is backed up", dataset_unmounted, {0: ""}),
    Fault("a dataset is rolled back while it is backed up", rolled_back, {0: ""}),
    Fault("the pool is to be exported while it is backed up", exported, {0: ""}),
    Fault(
        "a dataset is destroyed before the snapshot",
        after_listing("zfs destroy {name}"),
        {1: VANISHED},
    ),
    Fault(
        "a dataset is renamed before the snapshot",
        after_listing("zfs rename {name} {pool}/moved", "zfs rename {pool}/moved {name}"),
        {1: VANISHED},
    ),
    Fault(
        "the pool is exported before the snapshot",
        after_listing("zpool export {pool}", "zpool import -d {image} -o cachefile=none {pool}"),
        {1: "vanished|no such pool|no snapshot was made"},
    ),
    Fault("a dataset has reached its quota", at_its_quota, {0: "", 1: "quota"}),
    Fault("the memory limit kills the engine", memory("engine"), {1: "killed by SIGKILL"}),
    Fault("the memory limit kills the launcher", memory("launcher"), {1: "the launcher of this run was killed"}),
    Fault("the memory limit kills the keeper", memory("keeper"), {1: "the (keeper|launcher) of this run was killed"}),
    Fault("the memory limit kills the main process", memory("main"), {-9: ""}),
    Fault("the memory limit kills all", memory("all"), {-9: ""}, killed_all),
    Fault("the clock jumps", clock_jumps, {0: ""}),
    Fault("all processes are killed", all_killed, {-9: ""}, killed_all),
)
