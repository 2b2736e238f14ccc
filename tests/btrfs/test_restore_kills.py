"""A restore is killed at a point: run again it is equal, and nothing but its target was touched. Users around it change nothing.

Plain ./test makes a few cases that the seed chooses; KOPIATOMIC_TEST_RESTORES=whole makes all: SIGKILL of one process or of all
right before each call that changes something, and at instants. KOPIATOMIC_TEST_CASES=N makes N of them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest

from kopiatomic.trees.target import FOLDER
from tests.support import forked
from tests.support.exact_tree import differences, furnish
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopia, Kopiatomic, command
from tests.support.swapper import USER, at_work, unsettle
from tests.support.sweep_cases import INSTANT, Case
from tests.support.tracer import AtPoint, AtTime, Trace, trace

WHOLE = os.environ.get("KOPIATOMIC_TEST_RESTORES") == "whole"
ONLY = os.environ.get("KOPIATOMIC_TEST_RESTORE_KILL")
"""A case as a failure names it."""
SEED = os.environ.get("KOPIATOMIC_TEST_SEED", "0")
COUNT = int(os.environ.get("KOPIATOMIC_TEST_CASES", "0")) or (None if WHOLE else 3)
INSTANTS = 100
SHARES = 10 if COUNT is None else 1
RESTORES = 30 if WHOLE else 3
LIMIT_S = 120
LAST = 4
"""Calls at the end: the target's owner and mode, what is recorded of it, and the removal of the mark."""


@dataclass
class Ground:
    """A tree, a backup of it, and a place to restore it to, with decoys around."""

    folder: Path
    btrfs: Btrfs
    environment: dict[str, str]
    source: Path = field(init=False)
    beside: Path = field(init=False)
    mounted: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.source = self.btrfs.subvolume("home")
        self.beside = self.btrfs.mountpoint / "beside"
        furnish(self.source, frozenset("iaC"))
        os.chown(self.source, USER, USER)

    @property
    def target(self) -> Path:
        return self.beside / "back"

    @property
    def words(self) -> list[str]:
        return ["restore", "latest", str(self.source), "--to", str(self.target)]

    def make_decoys(self) -> int:
        """Make 50 of them; return how many there are."""
        beside, made = self.beside, 0
        beside.mkdir()
        for name in ("back2", "bac", ".back", "back ", f"back{FOLDER}", "link-to-me", "file", "d", "setuid", "holes"):
            (beside / name).write_text(name)
            os.link(beside / name, beside / f"{name}.again")
            made += 2
        for number, name in enumerate(("other", "back.d", "Back", "BACK", "data")):
            (beside / name / FOLDER).mkdir(parents=True)
            (beside / name / FOLDER / "what.json").write_text("{}")
            (beside / name).chmod(0o1777 if number % 2 else 0o755)
            made += 1
        for number, to in enumerate(("back", "back/d", "file", "/etc", str(self.source), "nowhere", ".", "back2")):
            (beside / f"symbolic{number}").symlink_to(to)
            made += 1
        for number in range(5):
            os.mkfifo(beside / f"fifo{number}")
            path = self.btrfs.subvolume(f"beside/volume{number}")
            (path / "file").write_text("in a subvolume")
            made += 2
        for number in range(7):
            path = beside / f"mount{number}"
            path.mkdir()
            command("mount", "-t", "tmpfs", "-o", "size=64k", "decoy", path)
            (path / "file").write_text("in a mount")
            self.mounted.append(path)
            made += 1
        return made

    def seen(self) -> dict[str, object]:
        """Everything but the target: status, content, and what is mounted."""
        found: dict[str, object] = {}
        for top, folders, files in os.walk(self.btrfs.mountpoint):
            here = Path(top)
            if here == self.target.parent:
                folders[:] = [name for name in folders if here / name != self.target]
            for path in (here / name for name in (*folders, *files)):
                if path == self.target:
                    continue
                status = path.lstat()
                # The target is made in it.
                times = () if path == self.beside else (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
                content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
                found[str(path)] = (status.st_ino, status.st_mode, status.st_uid, status.st_nlink, *times, content)
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found["mounts"] = [line for line in mounts if str(self.folder) in line]
        found["locks"] = sorted(os.listdir("/run/kopiatomic"))
        return found

    def _run(self) -> NoReturn:
        output = {fd: self.folder / f"killed.{fd}" for fd in (1, 2)}
        for path in output.values():
            path.write_bytes(b"")
        forked.become(self.words, output, {**forked.environment(self.folder), **self.environment})

    def traced(self, kill: AtPoint | AtTime | None = None) -> Trace:
        return trace(self._run, kill, closing=(), limit=LIMIT_S, trees=True)

    def again(self) -> Completed:
        output = {fd: self.folder / f"again.{fd}" for fd in (1, 2)}
        environment = {**forked.environment(self.folder), **self.environment}
        return forked.wait(forked.start(self.words, output, environment), self.words, output, LIMIT_S)

    def clear(self) -> None:
        """Remove the target."""
        if os.path.lexists(self.target):
            command("chattr", "-R", "-f", "-i", "-a", self.target, check=False)
            shutil.rmtree(self.target)


@pytest.fixture
def ground(btrfs: Btrfs, root: Path, kopiatomic: Kopiatomic, kopia: Kopia, tmp_path: Path) -> Iterator[Ground]:
    made = Ground(tmp_path, btrfs, kopia.environment)
    try:
        assert made.make_decoys() == 50
        words: list[str | Path] = ["--mount-root", root, "--no-maintenance", made.source]
        ended = kopiatomic(*words, env=kopia.environment)
        assert ended.returncode == 0, str(ended)
        yield made
    finally:
        for path in made.mounted:
            command("umount", path, check=False)
        command("chattr", "-R", "-f", "-i", "-a", btrfs.mountpoint, check=False)


def chosen(undisturbed: Trace, share: int) -> list[Case]:
    """The cases of a share: every point in turn with one process killed or all, and instants."""
    if ONLY:
        return [Case.parse(ONLY)]
    chance = random.Random(SEED)
    points = [(point.role, point.nth, "before") for point in undisturbed.points]
    points += [(chance.choice(["main", "program"]), chance.randrange(1000), INSTANT) for _ in range(INSTANTS)]
    cases = [Case(role, nth, when, bool(number % 2), 0) for number, (role, nth, when) in enumerate(points)]
    return cases[share::SHARES] if COUNT is None else chance.sample(cases, COUNT)


@pytest.mark.parametrize("share", range(SHARES))
def test_a_killed_restore_can_be_run_again(share: int, ground: Ground) -> None:
    before = ground.seen()
    undisturbed = ground.traced()
    assert (undisturbed.status, undisturbed.hung) == (0, [])
    assert differences(ground.source, ground.target) == []
    assert ground.seen() == before
    ground.clear()
    counted: Counter[str] = Counter(points=len(undisturbed.points))
    for case in chosen(undisturbed, share):
        try:
            counted[examine(case, ground, before, undisturbed.ended - undisturbed.began)] += 1
        except AssertionError as error:
            pytest.fail(f"KOPIATOMIC_TEST_SEED={SEED} KOPIATOMIC_TEST_RESTORE_KILL={case}: {error}", pytrace=False)
        finally:
            ground.clear()
    print(dict(counted))


def examine(case: Case, ground: Ground, before: dict[str, object], duration: float) -> str:
    """Make one case, and judge it; return what came of it in a word."""
    traced = ground.traced(case.kill(duration))
    assert traced.hung == []
    assert ground.seen() == before, traced.where
    mode = stat.S_IMODE(ground.target.stat().st_mode) if ground.target.exists() else 0o700
    assert mode == 0o700 or not (ground.target / FOLDER).exists(), f"{mode:o} {traced.where}"
    ended = ground.again()
    assert ground.seen() == before, traced.where
    if ended.returncode == 0:
        assert differences(ground.source, ground.target) == [], traced.where
        return "killed, and run again" if traced.killed else "not reached"
    # It had ended, with its report.
    assert "nothing may be overwritten" in ended.stderr, f"{traced.where}: {ended}"
    assert "Restored" in (ground.folder / "killed.1").read_text(), traced.where
    assert differences(ground.source, ground.target) == [], traced.where
    return "ended before"


def test_a_restore_that_is_killed_in_its_last_moments_is_ended_when_it_is_run_again(ground: Ground) -> None:
    """Its owner may enter the target by then, and it is not reported yet."""
    before = ground.seen()
    undisturbed = ground.traced()
    assert undisturbed.status == 0
    ground.clear()
    last = [point for point in undisturbed.points if point.role == "main"][-LAST:]
    counted: Counter[str] = Counter()
    for point in last:
        counted[examine(Case("main", point.nth, "before", False, 0), ground, before, 0)] += 1
        ground.clear()
    assert counted == {"killed, and run again": LAST}, [point.text for point in last]


def test_a_user_who_exchanges_what_is_there_gets_nothing_written_elsewhere(ground: Ground) -> None:
    sticky, decoy = ground.beside / "sticky", ground.beside / "other"
    sticky.mkdir()
    sticky.chmod(0o1777)
    (sticky / "mine").mkdir()
    os.chown(sticky / "mine", USER, USER)
    before = {path: status for path, status in ground.seen().items() if not path.startswith(str(sticky))}
    note = json.dumps({"engine": "kopia", "snapshot": "", "paths": str(ground.source)})
    words = [*ground.words[:-1], str(sticky / "back")]
    ends: Counter[int] = Counter()
    with at_work(lambda: unsettle(sticky, decoy, FOLDER, note, random.Random(SEED))):
        for _ in range(RESTORES):
            output = {fd: ground.folder / f"attacked.{fd}" for fd in (1, 2)}
            environment = {**forked.environment(ground.folder), **ground.environment}
            ended = forked.wait(forked.start(words, output, environment), words, output, LIMIT_S)
            assert ended.returncode in {0, 1}, str(ended)
            assert "Traceback" not in ended.stderr, str(ended)
            ends[ended.returncode] += 1
            subprocess.run(["chattr", "-R", "-f", "-i", "-a", sticky], check=False)
            subprocess.run(["rm", "-rf", "--one-file-system", sticky / "back"], check=False)
            time.sleep(0.01)
    after = {path: status for path, status in ground.seen().items() if not path.startswith(str(sticky))}
    assert after == before
    # A restore that has ended is its owner's, to be moved as he likes; none that goes on is.
    assert [path for path in (sticky / "mine").rglob(FOLDER) if path.lstat().st_uid != USER] == []
    print(dict(ends))
