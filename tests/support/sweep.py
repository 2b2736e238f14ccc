"""The kill sweep: a run is killed at one point, and then everything is looked at.

A *case* is one such run: who is killed (one process, or everyone at once), at which call or after which time, and whether the
engine has 20 children that closed every descriptor (tests/support/sweep_cases.py). What it reads and what lies around it is a
*ground* (tests/support/sweep_ground.py).
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self

import pytest

from kopiatomic.errors import KopiatomicError
from kopiatomic.state import locks
from tests.support import forked, in_a_view
from tests.support.programs import SLOWNESS, Completed
from tests.support.sweep_cases import HELPERS, HOLDING, INSTANT, KINDS, Case, left_out
from tests.support.sweep_ground import Ground, Seen
from tests.support.tracer import ROLES, AtPoint, AtTime, Point, Trace, trace

_LOOK_KILLED = "the process that looks at paths was killed"
WITHIN_S = 2 * SLOWNESS
"""How long after the death of one process something of the run may be left: 2 s on a real machine."""


@dataclass
class Count:
    """A line of the table at the end."""

    kills: int = 0
    missed: int = 0
    left_after: int = 0
    left_at_the_end: int = 0
    harmed: int = 0
    lies: int = 0
    slowest: float = 0.0

    def add(self, other: Count) -> None:
        for name in ("kills", "missed", "left_after", "left_at_the_end", "harmed", "lies"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.slowest = max(self.slowest, other.slowest)


@dataclass
class Totals:
    """What a module's tests have counted."""

    lines: dict[tuple[str, str], Count] = field(default_factory=dict)

    def line(self, case: Case) -> Count:
        return self.lines.setdefault((case.role, "everyone" if case.everyone else "alone"), Count())

    def table(self, points: Sequence[Point], without: int) -> str:
        """What is printed at the end; at ``without`` of the points no run was killed."""
        titles = ("killed", "kills", "not reached", "left after", "left at the end", "decoys", "lies", "slowest s")
        whole = Count()
        for count in self.lines.values():
            whole.add(count)
        rows = [(f"{role}, {victims}", count) for (role, victims), count in sorted(self.lines.items())]
        table = [
            (
                name,
                *map(str, (c.kills, c.missed, c.left_after, c.left_at_the_end, c.harmed, c.lies)),
                f"{c.slowest:.1f}",
            )
            for name, c in [*rows, ("all", whole)]
        ]
        counted = ", ".join(f"{role} {sum(point.role == role for point in points)}" for role in ROLES)
        lines = ["".join(f"{cell:>18}" for cell in row) for row in [titles, *table]]
        return "\n".join([f"{len(points)} points: {counted}; {without} left out", *lines])


@dataclass(frozen=True)
class _Ended:
    """A run of a case, to be compared with its record when all of a test's cases are over."""

    case: Case
    traced: Trace
    said: str
    saved: bool
    """Whether the engine read every file to its end, and could say so."""


def _is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class Sweeper:
    """Runs cases on a ground."""

    def __init__(self, ground: Ground, kind: str, default: Sequence[Point] = ()) -> None:
        """``default`` is the points of the default kind, if this is another."""
        self.ground = ground
        self.kind = kind
        """What kind of run: a backup in a layout, or exec."""
        self.totals = Totals()
        self._proof = ground.folder / "proof"
        self._output = {fd: ground.folder / f"swept.{fd}" for fd in (1, 2)}
        self._plain_engine = ground.folder / "engine.sh"
        self._engine_with_helpers = ground.folder / "engine.py"
        self._write_engines()
        self._ended: list[_Ended] = []
        self._next = 0
        # The first creates the state database; the points are those of all later ones.
        first = self._trace(0, None, None)
        self._closing = first.closing
        listed = self._trace(0, None, self._closing)
        self.points = listed.points
        self.left_out = left_out(self.points, default)
        """The points at which no run is killed."""
        self._durations: dict[int, float] = {}
        if listed.status != 0 or not self._saved():
            raise AssertionError(f"an undisturbed run failed\n{self._said()}")

    # The run

    def _write_engines(self) -> None:
        """One that only the shell is needed for, and one with children that nothing but their PID namespace ties."""
        top = self.ground.root if self._is_merged else ""
        files = [f"{top}{source}/file" for source in self.ground.sources()]
        reads = "".join(f"read -r line < '{file}' && all=$all$line, || exit 1\n" for file in files)
        self._plain_engine.write_text(f"all=\n{reads}echo $all > {self._proof}\n")
        self._engine_with_helpers.write_text(
            "import os, time\n"
            f"for _ in range({HELPERS}):\n"
            "    if os.fork() == 0:\n"
            "        os.setsid()\n"
            "        os.closerange(0, 1024)\n"
            "        time.sleep(1000)\n"
            "        os._exit(0)\n"
            "time.sleep(0.1)\n"
            f"data = ','.join([*(open(f).read().strip() for f in {files!r}), ''])\n"
            f"open({str(self._proof)!r}, 'w').write(data + '\\n')\n"
        )

    @property
    def _is_merged(self) -> bool:
        return self.kind in {"merged", HOLDING}

    def _hold(self) -> NoReturn:
        """Be the holder of a view: what reads it, and then asks it to end, is this process itself."""

        def read_and_end(run_id: str, seen: str) -> None:
            paths = [Path(f"{seen}{source}/file") for source in self.ground.sources()]
            try:
                self._proof.write_text("".join(f"{path.read_text().strip()}," for path in paths) + "\n")
            except OSError as error:
                raise KopiatomicError(f"the view cannot be read: {error.strerror}", kind="test") from None
            locks.ask_to_end(run_id)

        raise SystemExit(in_a_view.held_by_itself(str(self.ground.root), self.ground.words(), read_and_end))

    def _run(self, helpers: int) -> NoReturn:
        if self.kind == HOLDING:
            forked.become([], self._output, forked.environment(self.ground.folder), main=self._hold)
        engine = ["python3", "-SI", str(self._engine_with_helpers)] if helpers else ["sh", str(self._plain_engine)]
        if self.kind == "exec":
            words = ["exec", *self.ground.words(), "--", *engine]
        else:
            place = ["--mount-root", str(self.ground.root)] if self.kind == "merged" else ["--layout", self.kind]
            words = [*place, "-c", " ".join(engine), *self.ground.words()]
        forked.become(words, self._output, forked.environment(self.ground.folder))

    @property
    def _success(self) -> str:
        return "ran" if self.kind in {"exec", HOLDING} else "saved"

    @property
    def _command_killed(self) -> set[int]:
        return {128 + signal.SIGKILL} if self.kind == "exec" else set()

    def _trace(self, helpers: int, kill: AtPoint | AtTime | None, closing: set[int] | None) -> Trace:
        self._proof.unlink(missing_ok=True)
        for path in self._output.values():
            path.write_bytes(b"")
        return trace(lambda: self._run(helpers), kill, closing=closing, limit=60 * SLOWNESS)

    def _duration(self, case: Case) -> float:
        """How long an undisturbed run takes, where that matters: the faster of two, so that it still goes on at each instant."""
        if case.when == INSTANT and case.helpers not in self._durations:
            runs = [self._trace(case.helpers, None, self._closing) for _ in range(2)]
            self._durations[case.helpers] = min(run.ended - run.began for run in runs)
        return self._durations.get(case.helpers, 0.0)

    def _saved(self) -> bool:
        """Whether the engine read every file to its end, and could say so."""
        try:
            return self._proof.read_text() == "".join(f"{path}," for path in self.ground.sources()) + "\n"
        except OSError:
            return False

    def _said(self) -> str:
        return "".join(f"{path.read_text(errors='replace')}" for path in self._output.values())

    def _other(self, *words: str) -> Completed:
        """Another run, or another command, that nobody kills."""
        return forked.run(words, self.ground.folder, timeout=120 * SLOWNESS)

    def _history(self) -> dict[str, dict[str, Any]]:
        """Return what is recorded of the last runs, by id."""
        # Beside each run of a case at most three others.
        ended = self._other("history", "--json", "--limit", str(4 * len(self._ended)))
        assert ended.returncode == 0, ended
        return {run["run_id"]: run for run in json.loads(ended.stdout)["runs"]}

    # A case

    def run(self, cases: Sequence[Case]) -> list[str]:
        """Run cases; returns what went wrong, in words that name the case."""
        problems = []
        for case in cases:
            found = self._judge(case)
            problems += [f"{case}: {problem}" for problem in found]
            if found:
                print("\n".join(problems[-len(found) :]), flush=True)
                self.ground.tidy()
                self._other("recover")
        if not cases:
            return problems
        problems += self._lies_of_history()
        harmed = self.ground.compare(closely=True).harmed
        self.totals.line(cases[-1]).harmed += len(harmed)
        return problems + [f"in one of these cases: decoy: {decoy}" for decoy in harmed]

    def _judge(self, case: Case) -> list[str]:
        count = self.totals.line(case)
        traced = self._trace(case.helpers, case.kill(self._duration(case)), self._closing)
        count.kills += bool(traced.killed)
        count.missed += not traced.killed
        problems = list(self._answers(traced))
        count.lies += len(problems)
        seen = self._after(case, traced)
        rest = self._rest(traced)
        count.left_after += bool(seen.left)
        if seen.left and self.ground.tied and not case.everyone:
            problems.append(f"{WITHIN_S} s later: {seen.left}")
        if traced.killed and not case.everyone and case.role != "program":
            took = traced.ended - traced.killed_at
            count.slowest = max(count.slowest, took)
            if took > WITHIN_S:
                problems.append(f"processes of it lived for {took:.1f} s more")
        if not traced.killed_main and (seen.left or rest):
            problems.append(f"the main process lived, and left: {[*seen.left, *rest]}")
        if seen.left or rest or traced.killed_main:
            problems += self._clear(traced)
            seen = self.ground.compare()
            if remains := [*seen.left, *self._rest(traced)]:
                count.left_at_the_end += 1
                problems.append(f"after the next run or recover: {remains}")
        count.harmed += len(seen.harmed)
        problems += [f"decoy: {decoy}" for decoy in seen.harmed]
        ended = _Ended(case, traced, self._said(), self._saved())
        self._ended.append(ended)
        if problems:
            problems.append(_how(ended))
        return problems

    def _answers(self, traced: Trace) -> Iterator[str]:
        """What is wrong with what it said and ended with."""
        said = self._said()
        if traced.hung:
            yield f"it hung: {traced.hung}"
        if "Traceback" in said or "defect" in said:
            yield "a traceback, or a failure that nobody foresaw"
        if traced.killed_main:
            return
        if traced.status not in {0, 1, 3, 4, *self._command_killed}:
            yield f"the exit code {traced.status} means nothing"
        if traced.status in {0, 3, 4} and not self._saved():
            yield f"a false success: exit code {traced.status}, and the engine has not read everything"
        if not traced.killed and traced.status != 0:
            yield f"nobody was killed, and the exit code is {traced.status}"

    def _after(self, case: Case, traced: Trace) -> Seen:
        """What is left, and harmed; where the kernel ties it, when its time is over."""
        deadline = traced.killed_at + WITHIN_S if self.ground.tied and not case.everyone else 0.0
        while (seen := self.ground.compare()).left and time.monotonic() < deadline:
            time.sleep(0.1)
        return seen

    def _rest(self, traced: Trace) -> list[str]:
        """What may stay until the next run: the empty mount root, and files that nobody has locked."""
        own = self.ground.root if self._is_merged else Path(f"{locks.DIRECTORY}/view-{traced.run_id}")
        roots = (own, self.ground.next_root)
        paths = [Path(locks.path_of(kind, str(root))) for root in roots for kind in ("root", "made")]
        paths += [Path(locks.DIRECTORY) / f"run-{traced.run_id}"]
        found = [f"{'locked' if _is_locked(path) else 'file'} {path}" for path in paths if path.exists()]
        return found + [f"directory {root}" for root in roots if os.path.lexists(root)]

    def _clear(self, traced: Trace) -> Iterator[str]:
        """Clear it all: by a run of another selection under another root one time in four, else by `recover`."""
        self._next += 1
        # A run takes three times as long.
        if self._next % 4 == 1:
            ended = self._other("--mount-root", str(self.ground.next_root), "-c", "true", *self.ground.next_words())
            right = ended.returncode == 0
        else:
            ended = self._other("recover", "--json")
            # What other people's runs left on this machine is not this run's.
            right = ended.returncode in {0, 4} and not any(
                leftover["problem"] and leftover["run_id"] == traced.run_id
                for leftover in json.loads(ended.stdout)["leftovers"]
            )
        if not right or "Traceback" in ended.stderr:
            yield f"what came after it failed: {ended}"

    def _lies_of_history(self) -> Iterator[str]:
        """What is wrong with the records of the runs of a test, in words that name the case."""
        recorded = self._history()
        for ended in self._ended:
            for lie in self._history_lies(ended, recorded.get(ended.traced.run_id or "")):
                self.totals.line(ended.case).lies += 1
                yield f"{ended.case}: {lie}; {_how(ended)}"
        self._ended.clear()

    def _history_lies(self, ended: _Ended, recorded: dict[str, Any] | None) -> Iterator[str]:
        """What is wrong with the record of a run; None if there is none."""
        traced = ended.traced
        if recorded is None:
            # The record comes after a look at the way to the state directory. A run whose looking child is killed ends there.
            if not traced.killed_main and _LOOK_KILLED not in ended.said:
                yield "the run is not recorded"
            return
        result, code = recorded["result"], recorded["exit_code"]
        if traced.killed_main:
            # It may have come to its end before: then that was the truth.
            if (result, code) != ("interrupted", None) and not (code == 0 and result == self._success and ended.saved):
                yield f"the main process was killed, and the history says {result}, {code}"
        else:
            expected = {0: self._success, 1: "failed", 3: "incomplete", 4: "unclean"}.get(traced.status)
            if traced.status in self._command_killed:
                # exec says how its command ended; our part of it was right.
                expected = self._success
            if (result, code) != (expected, traced.status):
                yield f"its exit code was {traced.status}, and the history says {result}, {code}"


def _how(ended: _Ended) -> str:
    traced = ended.traced
    how = f"killed {', '.join(traced.killed)} {traced.where}; exit code {traced.status}"
    return f"{how}; it said:\n{ended.said}"


class Sweepers:
    """The sweeper of the kind that is asked for, kept until another kind is: to make one takes as long as twenty cases.

    A fixture with parameters would be made anew for each test: pytest tells parameters apart by their position. `grounds`
    makes filesystems in a new folder, and a ground of them.
    """

    def __init__(
        self,
        name: str,
        grounds: Callable[[Path], AbstractContextManager[Ground]],
        folders: pytest.TempPathFactory,
    ) -> None:
        self._name = name
        self._grounds = grounds
        self._folders = folders
        self._stack = ExitStack()
        self._current: Sweeper | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, kind: str) -> Sweeper:
        if self._current is None or self._current.kind != kind:
            self._end()
            self._current = self._stack.enter_context(self._made(kind))
        return self._current

    def _end(self) -> None:
        self._current = None
        self._stack.close()

    @contextmanager
    def _made(self, kind: str) -> Iterator[Sweeper]:
        with self._grounds(self._folders.mktemp("sweep")) as ground:
            ground.make()
            with ground.living_run():
                default = [] if kind == KINDS[0] else Sweeper(ground, KINDS[0]).points
                sweeper = Sweeper(ground, kind, default)
                yield sweeper
                # Shown by `./test sweep`.
                print(f"{self._name}, {kind}: {sweeper.totals.table(sweeper.points, len(sweeper.left_out))}")
