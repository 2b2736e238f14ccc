"""The tracer of the kill sweep kills exactly who it is told to, exactly where it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.tracer import AtPoint, AtTime, Point, trace


def family(folder: Path) -> Callable[[], NoReturn]:
    """Three processes, each of which makes a directory; the last starts a program. Each waits for its child and says so."""

    def main() -> NoReturn:
        os.mkdir(folder / "main1")
        keeper = os.fork()
        if keeper == 0:
            os.mkdir(folder / "keeper1")
            launcher = os.fork()
            if launcher == 0:
                os.mkdir(folder / "launcher1")
                subprocess.run(["true"], check=True)
                os.mkdir(folder / "launcher2")
                os._exit(0)
            os.waitpid(launcher, 0)
            os.mkdir(folder / "keeper2")
            os._exit(0)
        subprocess.run(["true"], check=True)
        os.waitpid(keeper, 0)
        os.mkdir(folder / "main2")
        os._exit(3)

    return main


ALL = {"main1", "main2", "keeper1", "keeper2", "launcher1", "launcher2"}


def made(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_lists_the_calls_of_each_process(tmp_path: Path) -> None:
    traced = trace(family(tmp_path))
    assert (traced.status, traced.killed, traced.hung) == (3, [], [])
    assert made(tmp_path) == ALL
    points = {role: [point for point in traced.points if point.role == role] for role in ("main", "keeper", "launcher")}
    assert [p.text for p in points["main"]][:2] == [f"mkdir {tmp_path}/main1", "clone"]
    assert points["main"][-1] == Point("main", len(points["main"]), f"mkdir {tmp_path}/main2")
    assert [p.text for p in points["keeper"]] == [f"mkdir {tmp_path}/keeper1", "clone", f"mkdir {tmp_path}/keeper2"]
    assert points["launcher"][0].text == f"mkdir {tmp_path}/launcher1"
    started = [(p.role, p.text.partition(" ")[0]) for p in traced.points if p.role not in points]
    # One try for each folder of PATH.
    assert set(started) == {("engine", "execve"), ("program", "execve")}


@pytest.mark.parametrize(
    ("kill", "missing"),
    [
        (AtPoint("main", 1, after=False, everyone=False), ALL),
        (AtPoint("main", 1, after=True, everyone=False), ALL - {"main1"}),
        (AtPoint("keeper", 1, after=False, everyone=False), ALL - {"main1", "main2"}),
        (AtPoint("keeper", 1, after=True, everyone=False), ALL - {"main1", "main2", "keeper1"}),
        (AtPoint("keeper", 3, after=False, everyone=False), {"keeper2"}),
        (AtPoint("launcher", 1, after=False, everyone=False), {"launcher1", "launcher2"}),
        (AtPoint("launcher", 1, after=False, everyone=True), {"launcher1", "launcher2", "keeper2", "main2"}),
        (AtPoint("keeper", 1, after=True, everyone=True), ALL - {"main1", "keeper1"}),
    ],
    # A set's own text has another order in each process, and a test is known by its name in several.
    ids=lambda value: str(value) if isinstance(value, AtPoint) else "+".join(sorted(value)),
)
def test_it_kills_before_and_after_a_call(kill: AtPoint, missing: set[str], tmp_path: Path) -> None:
    """And one process alone, or all: what the others make tells who lived."""
    traced = trace(family(tmp_path), kill)
    assert ALL - made(tmp_path) == missing
    assert traced.killed_main == ("main2" in missing)
    assert traced.status == (-signal.SIGKILL if traced.killed_main else 3)
    assert len(traced.killed) > 1 if kill.everyone else traced.killed == [kill.role]


def test_a_child_that_is_being_forked_is_one_of_all(tmp_path: Path) -> None:
    """Wherever in the fork the kill comes: nobody is left, stopped or alive."""
    for role in ("main", "keeper"):
        for after in (False, True):
            traced = trace(family(tmp_path), AtPoint(role, 2, after, everyone=True), limit=20)
            assert traced.killed_main
            assert traced.hung == []
            for name in made(tmp_path):
                (tmp_path / name).rmdir()


def sleeper() -> NoReturn:
    if os.fork() == 0:
        time.sleep(1000)
        os._exit(0)
    os.wait()
    os._exit(5)


def test_it_kills_at_an_instant() -> None:
    alone = trace(sleeper, AtTime(0.5, "keeper"))
    assert (alone.status, alone.killed, alone.hung) == (5, ["keeper"], [])
    everyone = trace(sleeper, AtTime(0.5, None))
    assert (everyone.status, sorted(everyone.killed)) == (-signal.SIGKILL, ["keeper", "main"])
    assert everyone.ended - everyone.killed_at < 5


def test_what_does_not_end_is_named_and_ended() -> None:
    traced = trace(sleeper, limit=0.3)
    assert len(traced.hung) == 2
    assert traced.status == -signal.SIGKILL
