"""A view that its starter leaves behind (tests/support/in_a_view.py), held for a process."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.runs import holding
from kopiatomic.state.records import Records
from tests.btrfs.conftest import only_child, wait_for
from tests.support import in_a_view
from tests.support.filesystems import Btrfs
from tests.support.killing import kill_together
from tests.support.programs import SLOWNESS, Completed, Kopiatomic, command

pytestmark = pytest.mark.in_part(4)

Leftovers = Callable[..., list[str]]

INSTANTS = 12


@dataclass(frozen=True)
class Held:
    """A held view: its run, its main process, and where it is seen from outside."""

    run: str
    main: int
    path: str

    def ended(self) -> bool:
        return not Path(f"/proc/{self.main}").exists()


@pytest.fixture
def reader() -> Iterator[subprocess.Popen[bytes]]:
    """The process that the view is held for."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    data = btrfs.subvolume("data")
    (data / "file").write_text("frozen\n")
    return data


@pytest.fixture
def environment(kopiatomic: Kopiatomic) -> dict[str, str]:
    path = os.pathsep.join([kopiatomic.environment["PYTHONPATH"], str(Path(__file__).parents[2])])
    return {**kopiatomic.environment, "PYTHONPATH": path}


@pytest.fixture
def argv(root: Path, data: Path) -> Callable[..., list[str]]:
    def argv(process: int, seconds: float = 60, layout: str = "merged") -> list[str]:
        words = ("hold", layout, root, data, process, seconds)
        return [sys.executable, in_a_view.__file__, *map(str, words)]

    return argv


@pytest.fixture
def start(argv: Callable[..., list[str]], environment: dict[str, str]) -> Callable[..., Completed]:
    """Run the starter to its end, and to that of its pipes."""

    def start(*words: Any, **more: Any) -> Completed:
        return command(*argv(*words, **more), env=environment, check=False, timeout=20 * SLOWNESS)

    return start


@pytest.fixture
def held(start: Callable[..., Completed], reader: subprocess.Popen[bytes]) -> Held:
    ended = start(reader.pid)
    assert ended.returncode == 0, str(ended)
    return Held(**json.loads(ended.stdout))


def result(kopiatomic: Kopiatomic) -> tuple[str | None, int | None]:
    (run,) = Records(kopiatomic.environment["KOPIATOMIC_STATE_DIR"]).history(5)
    return run.result, run.exit_code


def test_it_is_there_without_its_starter_until_its_process_ends(
    held: Held, data: Path, root: Path, kopiatomic: Kopiatomic, reader: subprocess.Popen[bytes], leftovers: Leftovers
) -> None:
    file = Path(f"{held.path}{data}/file")
    (data / "file").write_text("live\n")
    recovered = kopiatomic("recover")
    assert recovered.returncode == 0, str(recovered)
    assert file.read_text() == "frozen\n"
    assert os.getsid(held.main) == held.main
    reader.kill()
    wait_for(held.ended, "the end of the holder")
    assert leftovers(root) == []
    assert result(kopiatomic) == ("ran", 0)
    assert "ran" in kopiatomic("history").stdout


def told(kopiatomic: Kopiatomic, run: str) -> tuple[str, str]:
    """What history says of a run's result, and of what it was held for."""
    lines = kopiatomic("history", run).stdout.splitlines()
    result, about = (next(line for line in lines if line.startswith(f"{label}:")) for label in ("Result", "Held"))
    return result.split(maxsplit=1)[1], about.split(maxsplit=1)[1]


def test_history_says_what_it_is_held_for_and_how_it_ended(
    held: Held, kopiatomic: Kopiatomic, reader: subprocess.Popen[bytes]
) -> None:
    result, about = told(kopiatomic, held.run)
    assert (result, about) == ("running", about.partition(" UTC")[0] + " UTC")
    assert about.startswith(f"for process {reader.pid} (sleep), at the latest until 20")
    reader.kill()
    wait_for(held.ended, "the end of the holder")
    assert told(kopiatomic, held.run) == ("ran, exit code 0", f"{about}; the process ended")


def test_it_ends_on_request(held: Held, root: Path, kopiatomic: Kopiatomic, leftovers: Leftovers) -> None:
    assert holding.end(held.run, 20)
    assert not holding.end(held.run, 20)
    assert leftovers(root) == []
    assert result(kopiatomic) == ("ran", 0)
    assert told(kopiatomic, held.run)[1].endswith("; it was asked to end")


def test_it_ends_at_the_deadline(
    start: Callable[..., Completed],
    root: Path,
    kopiatomic: Kopiatomic,
    reader: subprocess.Popen[bytes],
    leftovers: Leftovers,
) -> None:
    found = Held(**json.loads(start(reader.pid, 1).stdout))
    wait_for(found.ended, "the end of the holder")
    assert leftovers(root) == []
    assert result(kopiatomic) == ("failed", 1)
    assert told(kopiatomic, found.run)[1].endswith("; that came first")


def test_a_process_that_has_ended_is_refused(start: Callable[..., Completed], root: Path, leftovers: Leftovers) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    ended = start(gone.pid)
    assert (ended.returncode, "cannot be watched" in ended.stderr) == (1, True)
    assert leftovers(root) == []


@pytest.mark.parametrize("victim", ["main", "keeper", "launcher", "everyone"])
def test_a_death_leaves_nothing(
    victim: str, held: Held, root: Path, kopiatomic: Kopiatomic, leftovers: Leftovers
) -> None:
    keeper = only_child(held.main)
    family = {"main": held.main, "keeper": keeper, "launcher": only_child(keeper)}
    kill_together(family.values() if victim == "everyone" else [family[victim]])
    wait_for(held.ended, "the end of the holder")
    if victim == "everyone":
        recovered = kopiatomic("recover")
        assert recovered.returncode == 0, str(recovered)
    assert leftovers(root, within=10) == []
    assert result(kopiatomic)[0] == ("failed" if victim in {"keeper", "launcher"} else "interrupted")


def test_in_place_it_is_seen_from_outside_too(
    start: Callable[..., Completed],
    data: Path,
    root: Path,
    reader: subprocess.Popen[bytes],
    leftovers: Leftovers,
) -> None:
    found = Held(**json.loads(start(reader.pid, layout="in-place").stdout))
    (data / "file").write_text("live\n")
    assert Path(f"{found.path}{data}/file").read_text() == "frozen\n"
    assert os.path.samefile(f"{found.path}/etc", "/etc")
    assert holding.end(found.run, 20)
    assert leftovers(root) == []


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM], ids=lambda signum: signum.name)
def test_a_starter_that_ends_at_any_moment_leaves_a_view_or_nothing(
    signum: signal.Signals,
    argv: Callable[..., list[str]],
    environment: dict[str, str],
    kopiatomic: Kopiatomic,
    root: Path,
    reader: subprocess.Popen[bytes],
    leftovers: Leftovers,
) -> None:
    """At instants spread over its life, the last of which is after its answer."""
    words = argv(reader.pid)
    began = time.monotonic()
    whole = command(*words, env=environment)
    took = time.monotonic() - began
    assert holding.end(json.loads(whole.stdout)["run"], 20)
    kept = 0
    for instant in range(1, INSTANTS + 1):
        with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as starter:
            assert starter.stdout is not None
            if instant < INSTANTS:
                time.sleep(instant * took / INSTANTS)
            else:
                select.select([starter.stdout], [], [], 20 * SLOWNESS)
            starter.send_signal(signum)
            said, _ = starter.communicate(timeout=20 * SLOWNESS)
        found = Held(**json.loads(said)) if said else None
        kept += found is not None and holding.end(found.run, 20 * SLOWNESS)
        assert leftovers(root, within=10) == [], (instant, said)
    print(f"{kept} of {INSTANTS} were held")


def test_a_signal_ends_it(held: Held, root: Path, kopiatomic: Kopiatomic, leftovers: Leftovers) -> None:
    os.kill(held.main, signal.SIGTERM)
    wait_for(held.ended, "the end of the holder")
    assert leftovers(root) == []
    assert result(kopiatomic) == ("interrupted", 143)
