"""Moments of a run, hit by what it shows of itself: its processes, and the files of the engine in tests/support."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kopiatomic.state import locks
from tests.support.faults import LIMIT_S, Ground, Running
from tests.support.programs import Completed

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
MOMENTS = ("selection", "snapshot", "mount", "engine", "clean-up")


def children(pid: int) -> list[int]:
    """The children of a process; none if it has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def state_of(pid: int) -> tuple[str, int]:
    """A process's state (R, S, D, T, Z; X if it is gone) and session."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    return fields[0], int(fields[3])


def ends(pid: int) -> bool:
    """Whether a process that is not our child ends within five seconds; a zombie has ended."""
    deadline = time.monotonic() + 5
    while state_of(pid)[0] not in {"X", "Z"}:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def keeper_of(run: Running) -> int | None:
    """The keeper: the child of the main process that leads a session of its own, runs the same program and has its locks.

    A child that looks at paths leads a session as well, and has closed all but a channel before. So does a program that the
    main process starts. Before its exec it cannot be told from the keeper, but the main process waits for that exec in the
    kernel (vfork, state D).
    """
    for child in children(run.pid):
        alike = state_of(child)[1] == child and state_of(run.pid)[0] != "D" and _command(child) == _command(run.pid)
        if alike and _has_locks(child):
            return child
    return None


def _has_locks(pid: int) -> bool:
    try:
        opened = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(path.startswith(f"{locks.DIRECTORY}/") for path in opened)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def launcher_of(run: Running) -> int | None:
    """The launcher: the keeper's child that is the first process of a PID namespace."""
    keeper = keeper_of(run)
    for child in children(keeper) if keeper is not None else ():
        try:
            if len(re.findall(r"(?m)^NSpid:(.*)", Path(f"/proc/{child}/status").read_text())[0].split()) > 1:
                return child
        except (FileNotFoundError, ProcessLookupError):
            continue
    return None


def found(run: Running, look: Callable[[Running], int | None]) -> int:
    """Wait, without a pause, for a process of a run: moments are short."""
    deadline = time.monotonic() + LIMIT_S
    while (pid := look(run)) is None:
        assert time.monotonic() < deadline, f"no such process\n{run.stderr}"
        assert state_of(run.pid)[0] not in "ZX", f"it ended too early: {run.wait(1)}"
    return pid


@contextmanager
def held(pid: int) -> Iterator[None]:
    """A process does nothing during the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass


def deliver(run: Running, signum: int) -> None:
    """Send a signal to the main process and wait until it has taken it, so that a second one is a second one."""
    os.kill(run.pid, signum)
    deadline = time.monotonic() + LIMIT_S
    while state_of(run.pid)[0] not in "ZX" and _pending(run.pid) & 1 << signum - 1:
        assert time.monotonic() < deadline, "the signal does not arrive"


def _pending(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"(?m)^ShdPnd:\s*(\w+)", status)[0], 16)


def launcher_ended(run: Running, keeper: int) -> None:
    """Wait until nothing runs in the view's namespaces any more, while the keeper is held and cannot reap."""
    run.until(lambda: all(state_of(child)[0] in "ZX" for child in children(keeper)), LIMIT_S)


@contextmanager
def at(ground: Ground, moment: str, *args: str | Path, before: Callable[[], None] | None = None) -> Iterator[Running]:
    """A run that is at a moment and stays there during the block; after it the run goes on.

    The engine waits for ``ground.let_go()`` in all of them.
    """
    if moment == "selection":
        run = ground.start_selecting(*args, before=before)
        run.until((ground.folder / "selecting").exists, LIMIT_S)
        yield run
        return
    run = ground.start(*args, *ground.words("gate"), before=before)
    if moment == "snapshot":
        with held(found(run, keeper_of)):
            yield run
    elif moment == "mount":
        with held(found(run, launcher_of)):
            yield run
    else:
        run.until(ground.started, LIMIT_S)
        keeper = found(run, keeper_of)
        if moment == "engine":
            yield run
        else:
            with held(keeper):
                ground.let_go()
                launcher_ended(run, keeper)
                yield run


def signalled(
    ground: Ground, moment: str, signum: int, *, times: int = 1, send: Callable[[Running, int], None] = deliver
) -> Completed:
    """Send a signal to a run at a moment, so many times; how it ended."""
    with at(ground, moment, "--stop-timeout", "20") as run:
        for _ in range(times):
            send(run, signum)
    try:
        return run.wait(LIMIT_S)
    finally:
        ground.let_go()


@contextmanager
def after_reading(ground: Ground, *args: str | Path) -> Iterator[Running]:
    """A run whose engine has read everything, from the frozen view, and ends only after the block."""
    run = ground.start(*args, *ground.words("gate", "lingers"))
    run.until(ground.started, LIMIT_S)
    ground.change()
    ground.let_go()
    run.until((ground.folder / "proof").exists, LIMIT_S)
    yield run
    (ground.folder / "end").touch()
