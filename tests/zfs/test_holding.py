"""A view of real ZFS that is held for a process, in both layouts, also through a shim of FreeBSD's kernel.

There the end of the process is an event of kqueue(2), which the shim makes of Linux's pidfd; nothing of the view ends with a
namespace, and what is mounted must be taken away.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kopiatomic.runs import holding
from kopiatomic.state import locks
from kopiatomic.state.records import Records
from tests.support import in_a_view
from tests.support.filesystems import Pool
from tests.support.killing import kill_together
from tests.support.programs import SLOWNESS, Completed
from tests.zfs.freebsd_runs import FreeBSDRunner, running
from tests.zfs.runs import Run, Runner, children

pytestmark = pytest.mark.in_part(4)

INSTANTS = 6
LIMIT_S = 20 * SLOWNESS


@dataclass(frozen=True)
class Held:
    """A held view: its run, its main process, and where it is seen from outside."""

    run: str
    main: int
    path: str


class Holding:
    """Holds views of a dataset for a process."""

    def __init__(self, runner: Runner, layout: str, pool: Pool) -> None:
        self.runner = runner
        self.layout = layout
        self.pool = pool
        self.file = pool.path("data") / "file"
        self.file.write_text("frozen\n")
        runner.main = in_a_view.main

    def start(self, reader: int, seconds: float = 60) -> Run:
        return self.runner.start("hold", self.layout, "/kopia", f"{self.pool.name}/data", str(reader), str(seconds))

    def hold(self, reader: int, seconds: float = 60) -> Held:
        ended = self.start(reader, seconds).wait()
        assert ended.returncode == 0, ended
        return self.found(ended)

    @staticmethod
    def found(ended: Completed) -> Held:
        return Held(**json.loads(ended.stdout))

    def seen(self, held: Held) -> Path:
        return Path(f"{held.path}{self.file}")

    def left(self) -> list[str]:
        # In place a view has a directory of its own.
        return [*self.runner.left(self.pool), *map(str, Path(locks.DIRECTORY).glob("view-*"))]

    def ends(self) -> None:
        """Wait until no process of any run lives, and nothing is left of it."""
        deadline = time.monotonic() + LIMIT_S
        while self.runner.group.populated():
            assert time.monotonic() < deadline, self.runner.group.processes()
            time.sleep(0.01)
        assert self.left() == []

    def recover(self) -> None:
        runner = FreeBSDRunner if isinstance(self.runner, FreeBSDRunner) else Runner
        recovered = runner(self.runner.group, self.runner.folder)("recover")
        assert recovered.returncode == 0, recovered

    def result(self) -> tuple[str | None, int | None, str | None]:
        """Result, exit code, and what ended it."""
        (run,) = Records(str(self.runner.folder / "state")).history(5)
        hold = (run.document or {}).get("hold") or {}
        return run.result, run.exit_code, hold.get("ended_by")


@pytest.fixture(params=["linux", "freebsd"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["merged", "in-place"])
def views(request: pytest.FixtureRequest, kind: str, pool: Pool, tmp_path: Path) -> Iterator[Holding]:
    with running(kind, tmp_path) as runner:
        yield Holding(runner, request.param, pool)


@pytest.fixture(scope="module")
def pool(tank: Pool) -> Pool:
    tank.dataset("data")
    return tank


@pytest.fixture
def reader() -> Iterator[subprocess.Popen[bytes]]:
    """The process that the view is held for."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_it_is_there_without_its_starter_until_its_process_ends(
    views: Holding, reader: subprocess.Popen[bytes]
) -> None:
    held = views.hold(reader.pid)
    views.file.write_text("live\n")
    assert views.seen(held).read_text() == "frozen\n"
    views.recover()
    assert views.seen(held).read_text() == "frozen\n"
    # Not reaped before: it has ended all the same.
    os.kill(reader.pid, signal.SIGKILL)
    views.ends()
    assert views.result() == ("ran", 0, "process")


def test_it_ends_at_the_deadline(views: Holding, reader: subprocess.Popen[bytes]) -> None:
    views.hold(reader.pid, 4 * SLOWNESS)
    views.ends()
    assert views.result() == ("failed", 1, "deadline")


def test_it_ends_on_request(views: Holding, reader: subprocess.Popen[bytes]) -> None:
    held = views.hold(reader.pid)
    assert holding.end(held.run, LIMIT_S)
    views.ends()
    assert views.result() == ("ran", 0, "request")
    assert not holding.end(held.run, LIMIT_S)


def test_it_ends_at_a_signal(views: Holding, reader: subprocess.Popen[bytes]) -> None:
    os.kill(views.hold(reader.pid).main, signal.SIGTERM)
    views.ends()
    assert views.result() == ("interrupted", 143, None)


def test_a_process_that_has_ended_is_refused(views: Holding) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    ended = views.start(gone.pid).wait()
    assert (ended.returncode, "cannot be watched" in ended.stderr) == (1, True), ended
    views.ends()


@pytest.mark.parametrize("victim", ["main", "keeper", "launcher", "everyone"])
def test_a_death_leaves_nothing(victim: str, views: Holding, reader: subprocess.Popen[bytes]) -> None:
    held = views.hold(reader.pid)
    (keeper,) = children(held.main)
    (launcher,) = children(keeper)
    family = {"main": held.main, "keeper": keeper, "launcher": launcher}
    kill_together(family.values() if victim == "everyone" else [family[victim]])
    if victim == "everyone":
        deadline = time.monotonic() + LIMIT_S
        while views.runner.group.populated():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        views.recover()
    views.ends()
    assert views.result()[0] == ("failed" if victim in {"keeper", "launcher"} else "interrupted")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM], ids=lambda signum: signum.name)
def test_a_starter_that_ends_at_any_moment_leaves_a_view_or_nothing(
    signum: signal.Signals, views: Holding, reader: subprocess.Popen[bytes]
) -> None:
    """At instants spread over its life, the last of which is after its answer."""
    began = time.monotonic()
    whole = views.hold(reader.pid)
    took = time.monotonic() - began
    assert holding.end(whole.run, LIMIT_S)
    kept = 0
    for instant in range(1, INSTANTS + 1):
        starter = views.start(reader.pid)
        if instant < INSTANTS:
            time.sleep(instant * took / INSTANTS)
        else:
            starter.until(lambda: starter.stdout)  # noqa: B023
        os.kill(starter.pid, signum)
        ended = starter.wait()
        if ended.stdout:
            kept += holding.end(views.found(ended).run, LIMIT_S)
        views.ends()
    print(f"{kept} of {INSTANTS} were held")


# FreeBSD alone


@pytest.mark.parametrize("kind", ["freebsd"])
def test_a_process_that_is_in_the_view_at_its_end_is_said_and_cleared_later(
    views: Holding, reader: subprocess.Popen[bytes]
) -> None:
    """No namespace ends there: a mount that is used stays until that process has gone."""
    held = views.hold(reader.pid)
    with subprocess.Popen(["sleep", "1000"], cwd=views.seen(held).parent) as inside:
        assert holding.end(held.run, LIMIT_S)
        assert views.result() == ("unclean", 4, "request")
        assert any(line.startswith("mount ") for line in views.left())
        inside.kill()
    views.recover()
    views.ends()
