"""A pool that is suspended at some moment of a run: whatever calls into it waits, unkillable, until it works again.

The main process does not wait: it says what waits for which pool, and ends. When the pool works again, everything goes by
itself.
"""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable, Sequence

from tests.support.faults import LIMIT_S, Fault, Ground, Running
from tests.support.moments import after_reading, at, deliver
from tests.support.programs import SLOWNESS, Completed
from tests.zfs.faults import ZfsGround
from tests.zfs.suspended import Suspendable

STOP_TIMEOUT_S = 5
BOUND_S = (STOP_TIMEOUT_S + 10) + 5 * SLOWNESS
"""Stop-timeout plus 10 s; and some for a machine that is slow where the program counts real seconds."""


class SuspendableGround(ZfsGround):
    """A ground whose pool can be suspended."""

    device: Suspendable


def _ended_in_time(mine: SuspendableGround, run: Running) -> Completed:
    """The main process ends while the pool is suspended, and says why; then the pool works again and all goes by itself."""
    began = time.monotonic()
    try:
        ended = run.wait(BOUND_S)
        assert mine.device.suspended(), "the pool works again, and nobody was to make it"
    finally:
        mine.device.resume()
        mine.let_go()
    print(f"ended {time.monotonic() - began:.1f} s after the pool was suspended")
    assert re.search(rf"{mine.pool.name}\b.*suspended", ended.stderr), str(ended)
    assert f"zpool clear {mine.pool.name}" in ended.stderr, str(ended)
    found = mine.left_after(30)
    assert found == [], f"left when the pool worked again: {found}\n{ended}"
    (mine.pool.mountpoint / "waste").unlink(missing_ok=True)
    return ended


def _mine(ground: Ground) -> SuspendableGround:
    assert isinstance(ground, SuspendableGround)
    return ground


def hooked(suspend: Callable[[Suspendable], None]) -> Callable[[Ground, random.Random], Completed]:
    """Between listing and snapshot, where ``-p`` runs."""

    def provoke(ground: Ground, _: random.Random) -> Completed:
        mine = _mine(ground)
        line = f"touch {mine.folder}/hooked; while [ ! -e {mine.folder}/go ]; do sleep 0.05; done"
        hooked = mine.folder / "hooked"
        hooked.unlink(missing_ok=True)
        run = mine.start("--stop-timeout", str(STOP_TIMEOUT_S), "-p", line, *mine.words())
        run.until(hooked.exists, LIMIT_S)
        suspend(mine.device)
        mine.let_go()
        return _ended_in_time(mine, run)

    return provoke


def while_the_engine_runs(ground: Ground, _: random.Random) -> Completed:
    """Somebody asks the run to end; the engine does, and the release waits."""
    mine = _mine(ground)
    with at(mine, "engine", "--stop-timeout", str(STOP_TIMEOUT_S)) as run:
        mine.device.suspend()
        deliver(run, signal.SIGTERM)
    return _ended_in_time(mine, run)


def at_the_release(ground: Ground, _: random.Random) -> Completed:
    """The engine has read everything and ends; the release waits."""
    mine = _mine(ground)
    with after_reading(mine, "--stop-timeout", str(STOP_TIMEOUT_S)) as run:
        mine.device.suspend()
    return _ended_in_time(mine, run)


FAULTS: Sequence[Fault] = (
    Fault("the pool is suspended before the snapshot", hooked(Suspendable.suspend), {1: "suspended"}, slow=True),
    Fault("the pool is suspended by the snapshot", hooked(Suspendable.suspend_next), {1: "suspended"}, slow=True),
    Fault("the pool is suspended while the engine runs", while_the_engine_runs, {143: "suspended"}, slow=True),
    Fault("the pool is suspended at the release", at_the_release, {4: "left behind.*suspended"}, slow=True),
)
