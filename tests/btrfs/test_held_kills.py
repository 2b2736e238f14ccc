"""Kills between before_freeze and after_freeze, a writer held still: nothing stays held, nothing stays owed."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from tests.btrfs.conftest import wait_for
from tests.btrfs.held import WITHIN, Ground, Leftovers, family, ground_of, thawed_after
from tests.support import forked
from tests.support.filesystems import Btrfs
from tests.support.killing import kill_together
from tests.support.parts import IN_PART, share
from tests.support.programs import Kopiatomic
from tests.support.tracer import AtPoint, Point, Trace, trace
from tests.unit.support.holders import Grouped, eventually, thawers

CASES = share(300, 6)
FOREIGN = share(12, 2)
POINTS = share(10_000, 3)
"""How many of the points of each kind."""

ROUND = 6
"""How many kills one test makes."""

SPAN = 0.5
"""Seconds after the start of before_freeze within which a kill comes: a run of this kind has ended by then."""

HELD_FOR = 0.02
"""Seconds after the freeze within which it comes where it is to hit what is held."""

ENDS_WITHIN = 5.0
"""Seconds after the kill of one process within which all others have ended: the two hooks take 0.1 s of it."""


@dataclass
class Totals:
    """What the tests have counted, shown by ``-s``."""

    cases: int = 0
    lived: int = 0
    held: int = 0
    slowest: float = 0.0
    once: int = 0
    twice: int = 0

    def count(self, ground: Ground) -> None:
        self.cases += 1
        self.once += len(ground.starts) == 1
        self.twice += len(ground.starts) == 2

    def __str__(self) -> str:
        return (
            f"{self.cases} cases; the run lived in {self.lived}, something was held in {self.held}; slowest thaw "
            f"{self.slowest:.3f} s; after_freeze was started once in {self.once}, twice in {self.twice}"
        )


@pytest.fixture(scope="module")
def totals() -> Iterator[dict[str, Totals]]:
    counted: dict[str, Totals] = {}
    yield counted
    for name, one in counted.items():
        print(f"\n{name}: {one}")


@pytest.fixture
def ground(btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path, group: Grouped) -> Iterator[Ground]:
    with ground_of([btrfs.subvolume("data")], kopiatomic, root) as ground:
        ground.hold_group(group)
        yield ground


def kill(ground: Ground, group: Grouped, chance: random.Random, counted: Totals) -> tuple[str, float]:
    """Start a run and kill one of its processes, or all, at an instant; the case in words, and when nothing was frozen."""
    at_hold, everyone = chance.random() < 0.4, chance.random() < 0.5
    after = chance.random() * (HELD_FOR if at_hold else SPAN)
    with ground.started() as process:
        wait_for(lambda: ground.noted("before_freeze"), "the start of before_freeze")
        if at_hold:
            while not group.is_asked() and process.poll() is None:
                time.sleep(0.0002)
        time.sleep(after)
        below = family(process.pid)
        if below and process.poll() is None:
            counted.held += group.is_asked()
            counted.lived += 1
            kill_together(below if everyone else [chance.choice(below)])
        thawed = thawed_after(group, WITHIN)
        process.wait(60)
    return f"{'all' if everyone else 'one'} {after:.4f} s after {'the freeze' if at_hold else 'the start'}", thawed


def require_nothing(ground: Ground, case: str, leftovers: Leftovers) -> None:
    """Nothing is left or owed, and after_freeze came to its end: again only where its end was not seen, and then it says so."""
    ground.cleared(case)
    # It may have been killed before it noted its start.
    assert ground.starts in (["after_freeze"], ["after_freeze 1"], ["after_freeze", "after_freeze 1"]), case
    assert len(ground.ends) in {1, len(ground.starts)}, (case, ground.ends)
    assert leftovers(ground.root) == [], case


@pytest.mark.parametrize("first", range(0, CASES, ROUND))
def test_nothing_stays_held_or_owed(
    first: int, ground: Ground, group: Grouped, leftovers: Leftovers, totals: dict[str, Totals]
) -> None:
    counted = totals.setdefault("at instants", Totals())
    lived = counted.lived
    for number in range(first, first + ROUND):
        chance = random.Random(f"{os.environ['KOPIATOMIC_TEST_SEED']}/held/{number}")
        words, thawed = kill(ground, group, chance, counted)
        case = f"case {number}: {words}"
        assert thawed < WITHIN, case
        counted.slowest = max(counted.slowest, thawed)
        require_nothing(ground, case, leftovers)
        assert not group.is_asked(), case
        assert eventually(lambda: thawers() == []), case
        counted.count(ground)
    assert counted.lived > lived


def test_what_somebody_else_has_frozen_stays_frozen(
    ground: Ground, group: Grouped, leftovers: Leftovers, totals: dict[str, Totals]
) -> None:
    group.freeze(frozen=True)
    counted = totals.setdefault("frozen by somebody else", Totals())
    for number in range(FOREIGN):
        chance = random.Random(f"{os.environ['KOPIATOMIC_TEST_SEED']}/foreign/{number}")
        words, thawed = kill(ground, group, chance, counted)
        case = f"case {number}: {words}"
        assert thawed == float("inf"), case
        require_nothing(ground, case, leftovers)
        assert group.is_frozen(), case
        counted.count(ground)
    # Of few cases each may be hit.
    assert counted.lived or IN_PART


class Traced:
    """Runs that a tracer stops at each system call that changes something."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._output = {fd: ground.folder / f"traced.{fd}" for fd in (1, 2)}
        # The first creates the state database.
        self()
        self.points = self._between(self())

    def __call__(self, kill: AtPoint | None = None) -> Trace:
        self._ground.write()
        for path in self._output.values():
            path.write_bytes(b"")
        return trace(self._run, kill, closing=(), limit=60)

    def _run(self) -> NoReturn:
        forked.become(["run", "home"], self._output, self._ground.environment)

    def _between(self, undisturbed: Trace) -> list[Point]:
        """The points from the start of before_freeze on, until the view is made."""
        assert undisturbed.status == 0, self.said
        points = undisturbed.points
        hooks = [number for number, point in enumerate(points) if _is_a_hook(point)]
        view = next(number for number, point in enumerate(points) if number > hooks[-1] and "unshare" in point.text)
        return points[hooks[-2] : view]

    @property
    def said(self) -> str:
        return "".join(path.read_text() for path in self._output.values())


def _is_a_hook(point: Point) -> bool:
    return point.text == "execve /bin/sh"


@pytest.mark.in_part(1)
@pytest.mark.parametrize("everyone", [False, True], ids=["one", "all"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_nothing_stays_held_or_owed_after_a_kill_at_a_call(
    after: bool, everyone: bool, ground: Ground, group: Grouped, leftovers: Leftovers, totals: dict[str, Totals]
) -> None:
    counted = totals.setdefault(f"{'all' if everyone else 'one'} {'after' if after else 'before'} a call", Totals())
    traced = Traced(ground)
    # The kill of a hook's own process is not one of ours: that is how the hook ends.
    points = [point for point in traced.points if everyone or not _is_a_hook(point)]
    random.Random(os.environ["KOPIATOMIC_TEST_SEED"]).shuffle(points)
    for point in points[:POINTS]:
        ended = traced(AtPoint(point.role, point.nth, after, everyone))
        case = f"{'all' if everyone else point.role} {point.nth} {'after' if after else 'before'} {point.text}"
        assert ended.hung == [], (case, traced.said)
        assert "Traceback" not in traced.said, (case, traced.said)
        if ended.killed:
            counted.lived += 1
            counted.held += everyone and group.is_asked()
            took = ended.ended - ended.killed_at
            # All at once: the thawer is one of them.
            assert everyone or took < ENDS_WITHIN, case
            counted.slowest = max(counted.slowest, 0.0 if everyone else took)
        assert everyone or not group.is_asked(), case
        require_nothing(ground, case, leftovers)
        assert not group.is_asked(), case
        counted.count(ground)
    assert counted.lived
    # The group of a thawer that was killed goes with the next.
    assert traced().status == 0
    assert eventually(lambda: thawers() == [])
