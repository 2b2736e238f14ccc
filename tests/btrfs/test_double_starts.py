"""One run on one view root, however many are started; as many side by side as there are roots."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.btrfs.faults import BtrfsGround
from tests.support.faults import LIMIT_S
from tests.support.filesystems import Btrfs
from tests.support.moments import launcher_of
from tests.support.parts import share
from tests.support.programs import Completed, Kopiatomic
from tests.zfs.runs import Run

STARTS = share(50, 12)
ROOTS = share(10, 5)


@pytest.fixture
def ground(btrfs: Btrfs, kopiatomic: Kopiatomic, tmp_path: Path) -> BtrfsGround:
    made = BtrfsGround(btrfs, kopiatomic, tmp_path)
    made.reset()
    return made


def started_together(ground: BtrfsGround, *more: str) -> tuple[list[Run], Sequence[str]]:
    """Two runs on one root at once; their engine writes a line when it begins and one when it ends."""
    log = ground.folder / "log"
    log.unlink(missing_ok=True)
    engine = f"sh -c 'echo begin >> {log}; sleep 0.0{random.randrange(10)}; echo end >> {log}'"
    words: list[str | Path] = ["--mount-root", ground.root, *more, "-c", engine, *ground.names]
    hooks = ("-p", f"echo hook >> {ground.folder}/hooks", "-q", f"echo hook >> {ground.folder}/hooks")
    (ground.folder / "hooks").unlink(missing_ok=True)
    runs = [ground.start(*words, *hooks) for _ in range(2)]
    ended = [run.wait(LIMIT_S) for run in runs]
    return runs, sorted_codes(ended)


def sorted_codes(ended: Sequence[Completed]) -> list[str]:
    return sorted(str(one.returncode) for one in ended)


def test_of_two_runs_on_one_root_one_is_refused(ground: BtrfsGround) -> None:
    """Both may have their turn where the first ends before the second looks; never at the same time."""
    refused = 0
    for _ in range(STARTS):
        runs, codes = started_together(ground)
        log = (ground.folder / "log").read_text().split()
        hooks = (ground.folder / "hooks").read_text().split()
        if codes == ["0", "0"]:
            assert log == ["begin", "end"] * 2
        else:
            assert codes == ["0", "75"], [run.stderr for run in runs]
            assert log == ["begin", "end"]
            assert len(hooks) == 2, "the refused run has run its hooks"
            (said,) = (run.stderr for run in runs if "another run has" in run.stderr)
            assert f"pid {runs[0].pid}" in said or f"pid {runs[1].pid}" in said
            refused += 1
    print(f"{refused} of {STARTS} refused")
    assert refused > STARTS // 2
    assert ground.left_after(2) == []


def test_a_run_that_waits_has_its_turn(ground: BtrfsGround) -> None:
    for _ in range(STARTS // 5):
        runs, codes = started_together(ground, "--wait=60")
        assert codes == ["0", "0"], [run.stderr for run in runs]
        assert (ground.folder / "log").read_text().split() == ["begin", "end"] * 2
    assert ground.left_after(2) == []


def test_runs_on_many_roots_go_side_by_side(ground: BtrfsGround) -> None:
    """Over the same datasets, all of them at the same time."""
    roots = [ground.folder / f"view{number}" for number in range(ROOTS)]
    go = ground.folder / "all-go"
    engine = f"sh -c 'while [ ! -e {go} ]; do sleep 0.05; done; cat $0{ground.live[0]}/changing'"
    runs = [ground.start("--mount-root", root, "-c", engine, *ground.names) for root in roots]
    for run in runs:
        run.until(lambda run=run: launcher_of(run) is not None and "is backing up" in run.stderr, LIMIT_S)  # type: ignore[misc]
    go.touch()
    ended = [run.wait(LIMIT_S) for run in runs]
    assert sorted_codes(ended) == ["0"] * ROOTS, "\n".join(map(str, ended))
    assert all("of this instant" in one.stdout + one.stderr for one in ended)
    assert not [root for root in roots if root.exists()]
    assert ground.left_after(2) == []


def test_the_last_of_two_runs_removes_a_root_that_one_has_in_the_others(ground: BtrfsGround) -> None:
    """The outer one has its view no longer when the inner one ends, but has not ended itself: its post-hook goes on."""
    outer = ground.folder / "outer"
    marks = {name: ground.folder / name for name in ("inner-begun", "inner-go", "hook-begun", "hook-go")}

    def until(begun: str, go: str) -> str:
        return f"touch {marks[begun]}; while [ ! -e {marks[go]} ]; do sleep 0.02; done"

    inner = ground.start(
        "--mount-root", outer / "inner", "-c", f"sh -c '{until('inner-begun', 'inner-go')}'", *ground.names
    )
    inner.until(marks["inner-begun"].exists, LIMIT_S)
    other = ground.start("--mount-root", outer, "-q", until("hook-begun", "hook-go"), "-c", "true", *ground.names)
    other.until(marks["hook-begun"].exists, LIMIT_S)
    marks["inner-go"].touch()
    assert inner.wait(LIMIT_S).returncode == 0
    marks["hook-go"].touch()
    assert other.wait(LIMIT_S).returncode == 0
    assert not outer.exists()
    assert ground.left_after(2) == []
