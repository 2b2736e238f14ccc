"""Which runs the kill sweep makes.

KOPIATOMIC_TEST_SWEEP says what: nothing, then a few cases that KOPIATOMIC_TEST_SEED chooses; `whole`; or a case as a failure
names it, such as `keeper/12/after/alone/20`.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

from tests.support.programs import EMULATOR
from tests.support.tracer import ROLES, AtPoint, AtTime, Point

WHAT = os.environ.get("KOPIATOMIC_TEST_SWEEP", "")
SEED = os.environ.get("KOPIATOMIC_TEST_SEED", "0")
HOLDING = "holding"
KINDS = ("merged", "in-place", "exec", HOLDING)
"""The kinds of runs: a backup in either layout, a command, and a view that is held. The first is what a run is by default."""

RANDOM = 100
"""At how many instants one process is killed, and at how many all are."""

HELPERS = 20
SAMPLE = int(os.environ.get("KOPIATOMIC_TEST_CASES", {"": "5", "qemu": "3"}.get(EMULATOR, "9")))
"""How many cases of each kind plain `./test` makes: qemu is slow, and Btrfs shares its processor with everything else."""

INSTANT = "instant"
_SHARES = 3


@dataclass(frozen=True, slots=True)
class Case:
    """Which process is killed, where, and beside which engine."""

    role: str
    nth: int
    """Which of its calls; or, where it is killed at an instant, how many thousandths of a run's duration after the start."""
    when: str
    """before, after, instant"""
    everyone: bool
    helpers: int

    def __str__(self) -> str:
        return f"{self.role}/{self.nth}/{self.when}/{'everyone' if self.everyone else 'alone'}/{self.helpers}"

    def kill(self, duration: float) -> AtPoint | AtTime:
        """What to tell the tracer; a run takes `duration` seconds."""
        if self.when == INSTANT:
            return AtTime(self.nth / 1000 * duration, None if self.everyone else self.role)
        return AtPoint(self.role, self.nth, self.when == "after", self.everyone)

    @classmethod
    def parse(cls, text: str) -> Case:
        role, nth, when, victims, helpers = text.split("/")
        return cls(role, int(nth), when, victims == "everyone", int(helpers))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Cases that one test runs: a share of some, so that no test of the emulated machine is silent for long."""

    role: str
    when: str
    everyone: bool
    helpers: int
    share: int

    def __str__(self) -> str:
        return f"{self.role}-{self.when}-{'everyone' if self.everyone else 'alone'}-{self.helpers}-{self.share}"


def swept() -> list[tuple[str, Chunk | None]]:
    """What a module's test is called with: kinds of runs, each with parts of its whole sweep, or None for what is chosen."""
    found: list[tuple[str, Chunk | None]] = []
    for kind in KINDS:
        found += [(kind, chunk) for chunk in all_chunks(kind)] if WHAT == "whole" else [(kind, None)]
    return found


def all_chunks(kind: str) -> list[Chunk]:
    """The whole sweep of a kind of run.

    Right after one call a process is where it is right before its next: only the default kind is killed after some as well, a
    third of them by the seed, and at all instants; the other kinds at a third of these, as the processes are the same (see
    :func:`left_out` as well).
    """
    default = kind == KINDS[0]
    return [
        Chunk(role, when, everyone, helpers, share)
        for everyone in (False, True)
        # A view that is held has no engine.
        for helpers in ((0,) if kind == HOLDING else (0, HELPERS))
        for when in ("before", *(["after"] if default else []), INSTANT)
        for role in (ROLES if when != INSTANT else ("any",))
        # All of its points lie before the start of the engine.
        if not (helpers and role == "launcher")
        for share in range(_SHARES if default or when != INSTANT else 1)
    ]


def left_out(points: Sequence[Point], default: Sequence[Point]) -> set[Point]:
    """Two thirds of those points of a kind of run that the default kind has as well, by the seed: there both do the same."""
    there = Counter((point.role, point.text) for point in default)
    shared = []
    for point in points:
        if there[point.role, point.text]:
            there[point.role, point.text] -= 1
            shared.append(point)
    return set(random.Random(SEED).sample(shared, len(shared) * 2 // 3))


def chosen(kind: str, chunk: Chunk | None, points: Sequence[Point], without: Set[Point]) -> list[Case]:
    """The cases of a chunk, for a run of a kind with these points; for None, those that are asked for by environment."""
    if chunk is not None:
        return _cases_of(chunk, points, without)
    if WHAT:
        return [Case.parse(WHAT)]
    every = [case for chunk in all_chunks(kind) for case in _cases_of(chunk, points, without)]
    return random.Random(SEED).sample(every, SAMPLE)


def _cases_of(chunk: Chunk, points: Sequence[Point], without: Set[Point]) -> list[Case]:
    cases = _at_instants(chunk) if chunk.when == INSTANT else _at_points(chunk, points, without)
    return cases[chunk.share :: _SHARES]


def _at_instants(chunk: Chunk) -> list[Case]:
    chance = random.Random(f"{SEED}/{chunk.helpers}")
    instants = [chance.randrange(1000) for _ in range(RANDOM // 2)]
    roles = ["any"] if chunk.everyone else ROLES[:4]
    return [Case(chance.choice(roles), nth, INSTANT, chunk.everyone, chunk.helpers) for nth in instants]


def _at_points(chunk: Chunk, points: Sequence[Point], without: Set[Point]) -> list[Case]:
    if chunk.helpers:
        # Up to the engine's start it makes no difference what that will do.
        points = points[[point.role for point in points].index("engine") :]
    if chunk.when == "after":
        without = without | set(random.Random(SEED).sample(points, len(points) * 2 // 3))
    return [
        Case(point.role, point.nth, chunk.when, chunk.everyone, chunk.helpers)
        for point in points
        if point.role == chunk.role and point not in without
    ]
