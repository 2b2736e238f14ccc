"""What a fault is, how one is drawn from a seed, and what must hold after every one of them.

A fault is made for real. Its moment is hit by what the run itself shows (its lines on stderr, the engine's own file, its
processes), never by sleeping. After each: success is said only if the engine read everything from the frozen view, nothing
is left, nothing of anybody else's is touched, and it did not take for ever.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import shlex
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from kopiatomic.state import locks
from tests.support.fault_engine import contents
from tests.support.programs import SLOWNESS, Completed

ENGINE = Path(__file__).with_name("fault_engine.py")
LIMIT_S = 60 * SLOWNESS
"""No run of these tests may take longer; those that wait for a time limit of their own set it to a few seconds."""

SAYS_SAVED = {0, 3, 4}


class Running(Protocol):
    """A run that has been started."""

    @property
    def pid(self) -> int: ...
    @property
    def stderr(self) -> str: ...
    def wait(self, timeout: float) -> Completed: ...
    def until(self, condition: Callable[[], object], timeout: float) -> None: ...


class Ground(ABC):
    """Where faults happen: datasets with known contents, decoys among them, and a way to run kopiatomic there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "view"
        self.state = folder / "state"
        self.beside = folder / "beside"
        self.beside.write_text("somebody's file beside the mount root\n")
        self.environment = {"KOPIATOMIC_STATE_DIR": str(self.state)}

    # What each filesystem has its own way for

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """The two datasets that a run takes."""

    @property
    @abstractmethod
    def live(self) -> Sequence[Path]:
        """Where they are mounted."""

    @abstractmethod
    def heal(self) -> None:
        """Make the datasets anew where a fault has taken them away."""

    @abstractmethod
    def decoys(self) -> Mapping[str, str]:
        """All that is not kopiatomic's and looks as if it were, as it is now."""

    @abstractmethod
    def snapshots(self) -> Sequence[str]:
        """What runs have made in the filesystem and is there now, directories of theirs included."""

    @abstractmethod
    def processes(self) -> Sequence[str]:
        """The living processes of runs."""

    @abstractmethod
    def mounts(self) -> Sequence[str]:
        """What the host sees of views."""

    @abstractmethod
    def start(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> Running:
        """Start kopiatomic with these words; ``before`` is called in the new process first."""

    @abstractmethod
    def start_selecting(self, *args: str | Path, before: Callable[[], None] | None = None) -> Running:
        """Start a run that stops while it looks at what there is, before anything is made, until ``let_go``."""

    @abstractmethod
    def kill_all(self) -> None:
        """End all processes of runs at once."""

    @abstractmethod
    def limited(self, **limits: str) -> AbstractContextManager[Callable[[], None]]:
        """A control group with limits such as ``pids_max="3"``; what is yielded puts a run into it (``before``)."""

    # What they share

    def engine(self, *habits: str) -> str:
        """The engine, for -c."""
        return shlex.join([sys.executable, "-SI", str(ENGINE), str(self.folder), *habits])

    def words(self, *habits: str) -> list[str | Path]:
        return ["--mount-root", self.root, "-c", self.engine(*habits), *self.names]

    def run(
        self,
        *args: str | Path,
        habits: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
        limit: float = LIMIT_S,
    ) -> Completed:
        """Run it to its end."""
        return self.start(*args, *self.words(*habits), env=env, before=before).wait(limit)

    @contextmanager
    def at_engine(
        self,
        *args: str | Path,
        habits: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> Iterator[Running]:
        """A run whose engine waits before it reads; by then the live files are others than the frozen ones.

        The engine goes on at the end of the block.
        """
        run = self.start(*args, *self.words("gate", *habits), env=env, before=before)
        run.until(self.started, LIMIT_S)
        self.change()
        yield run
        self.let_go()

    def change(self) -> None:
        """Make the live files others than the frozen ones."""
        for place in self.live:
            (place / "changing").write_text("not of this instant\n")

    def started(self) -> bool:
        return (self.folder / "started").exists()

    def let_go(self) -> None:
        (self.folder / "go").touch()

    def waiting(self, program: Path, then: str) -> None:
        """Write a program that says ``selecting``, waits for ``let_go``, and goes on with a shell line."""
        folder = shlex.quote(str(self.folder))
        program.write_text(
            f"#!/bin/sh\ntouch {folder}/selecting\nwhile [ ! -e {folder}/go ]; do sleep 0.02; done\n{then}\n"
        )
        program.chmod(0o755)

    def reset(self) -> None:
        """Before the next fault."""
        self.heal()
        for place in self.live:
            (place / "changing").write_text("of this instant\n")
        for name in ("started", "go", "proof", "proof.new", "deaf", "eating", "selecting", "end"):
            (self.folder / name).unlink(missing_ok=True)

    def expected(self) -> dict[str, str]:
        """What the engine must find below the mount root."""
        return {
            f"{place}/{name}".lstrip("/"): found for place in self.live for name, found in contents(str(place)).items()
        }

    def proven(self) -> dict[str, str] | None:
        """What the engine has read, if it came to its end."""
        try:
            found: dict[str, str] = json.loads((self.folder / "proof").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found

    def recorded(self) -> Mapping[str, object] | None:
        """The last run in the history."""
        told = self.start("history", "--json", "--limit", "1").wait(LIMIT_S)
        assert told.returncode == 0, str(told)
        runs: list[dict[str, object]] = json.loads(told.stdout)["runs"]
        return runs[0] if runs else None

    def recover(self) -> Completed:
        return self.start("recover").wait(LIMIT_S)

    def left(self) -> list[str]:
        """What runs have left behind at this moment."""
        found = [f"process {line}" for line in self.processes()]
        found += [f"mount {line}" for line in self.mounts()]
        found += [f"in the filesystem: {name}" for name in self.snapshots()]
        if os.path.lexists(self.root):
            found.append(f"mount root {self.root}")
        found += [f"lock {kind}" for kind in ("root", "made") if os.path.exists(locks.path_of(kind, str(self.root)))]
        return found

    def left_after(self, seconds: float) -> list[str]:
        """The same; what is just ending has some time for it (seconds of a real machine)."""
        deadline = time.monotonic() + seconds * SLOWNESS
        while (found := self.left()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found


@dataclass(frozen=True)
class Fault:
    """One fault: how it is made, and what is right to come of it."""

    name: str
    provoke: Callable[[Ground, random.Random], Completed]
    """Runs kopiatomic and makes the fault at its moment; parameters (which dataset, which limit) are drawn. What it
    broke it mends, but for what the run itself must remove."""
    ends: Mapping[int, str]
    """Exit codes that are right, each with a regular expression for stderr."""
    may_leave: Callable[[Completed], bool] = field(default=lambda _: False)
    """Whether a run that ended so may leave things to the next one: all of its processes were killed at once, or somebody
    else holds them."""
    recorded: bool = True
    """Whether the state database is not what is at fault."""
    slow: bool = False
    """Whether the program itself waits long here, so that it is drawn less often, and only where all are made."""


_BEFORE_THE_RECORD = (
    "the mount root .* cannot be used|no lock can be taken|the system refused something that kopiatomic needs"
)
RESULTS = {0: "saved", 1: "failed", 3: "incomplete", 4: "unclean"}


def examine(fault: Fault, ground: Ground, drawn: random.Random) -> Completed:
    """Make a fault and judge what came of it. Fails with a text that names the fault."""
    ground.reset()
    decoys, expected = ground.decoys(), ground.expected()
    known = ground.recorded() if fault.recorded else None
    try:
        ended = fault.provoke(ground, drawn)
        _judge(fault, ground, ended, expected)
        if not fault.may_leave(ended):
            assert (found := ground.left_after(2)) == [], f"{fault.name}: left behind: {found}\n{ended}"
        if fault.recorded:
            _check_record(fault, ground, ended, known)
        if fault.may_leave(ended) and drawn.random() < 0.5:
            recovered = ground.recover()
            assert recovered.returncode == 0, f"recovery from {fault.name}: {recovered}"
            assert (found := ground.left_after(2)) == [], f"after the recovery from {fault.name}: {found}\n{recovered}"
        _next_run(fault, ground, ended)
        assert ground.decoys() == decoys, f"{fault.name}: a decoy was touched\n{ended}"
    finally:
        ground.kill_all()
    return ended


def _judge(fault: Fault, ground: Ground, ended: Completed, expected: Mapping[str, str]) -> None:
    assert ended.returncode in fault.ends, f"{fault.name}: exit code not one of {sorted(fault.ends)}: {ended}"
    pattern = fault.ends[ended.returncode]
    assert re.search(pattern, ended.stderr), f"{fault.name}: no {pattern!r} on stderr: {ended}"
    for word in ("Traceback", "internal error"):
        assert word not in ended.stderr, f"{fault.name}: {ended}"
    if ended.returncode in SAYS_SAVED:
        proven = ground.proven()
        assert proven == expected, f"{fault.name}: a success that is none: {ended}\n{proven}\n{expected}"


def _check_record(fault: Fault, ground: Ground, ended: Completed, known: Mapping[str, object] | None) -> None:
    """The history tells the same as the exit code; of a run that was killed it says that. ``known`` is the record before."""
    record = ground.recorded()
    if record == known and re.search(_BEFORE_THE_RECORD, ended.stderr):
        # It comes before the record.
        assert ended.returncode == 1, str(ended)
        return
    if record is None or re.search("this run has no record|this run is not recorded", ended.stderr):
        # Said, and nothing was saved: a limit that is too low for a database.
        assert ended.returncode == 1, f"{fault.name}: no record of {ended}"
        return
    killed = ended.returncode < 0
    # A time limit interrupts, and counts as a failure.
    timed_out = "--timeout) is over" in ended.stderr
    result = "interrupted" if killed or timed_out or ended.returncode > 128 else RESULTS[ended.returncode]
    code = None if killed else ended.returncode
    assert (record["result"], record["exit_code"]) == (result, code), f"{fault.name}: {record}\n{ended}"


def _next_run(fault: Fault, ground: Ground, ended: Completed) -> None:
    """The run after a fault works, and clears what the fault was allowed to leave."""
    ground.reset()
    after = ground.run()
    assert after.returncode == 0, f"the run after {fault.name}: {after}\n--- after\n{ended}"
    assert ground.proven() == ground.expected(), f"the run after {fault.name}: {after}"
    assert (found := ground.left_after(2)) == [], f"after the run after {fault.name}: {found}\n{ended}\n{after}"


# Drawing

WHOLE = os.environ.get("KOPIATOMIC_TEST_FAULTS") == "whole"
SLOW_WEIGHT = 0.3 if WHOLE else 0.0
# What runs in the VM must know the seed as well: settings of this name are passed on.
SEED = os.environ.setdefault("KOPIATOMIC_TEST_SEED", secrets.token_hex(4))


def indexes(part: int) -> Sequence[int]:
    """Which faults of this seed's are made: ``part`` of them, all 150, or the one that KOPIATOMIC_TEST_FAULT names."""
    only = os.environ.get("KOPIATOMIC_TEST_FAULT")
    return range(150 if WHOLE else part) if only is None else (int(only),)


def draw(faults: Sequence[Fault], index: int) -> tuple[Fault, random.Random]:
    """A fault and the source of its parameters, the same for the same seed and index in any order and on any machine."""
    drawn = random.Random(f"{SEED}/{index}")
    (fault,) = drawn.choices(faults, [SLOW_WEIGHT if fault.slow else 1.0 for fault in faults])
    return fault, drawn


def again(index: int) -> str:
    """How to make this one again alone."""
    part = "faults" if WHOLE else "btrfs zfs -k seed"
    return f"again: KOPIATOMIC_TEST_SEED={SEED} KOPIATOMIC_TEST_FAULT={index} ./test {part}"
