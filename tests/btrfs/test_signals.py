"""Signals that ask a run to end, at each of its moments: to the main process, twice, and as a terminal sends them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.btrfs.faults import BtrfsGround
from tests.support.common_faults import signal_codes
from tests.support.faults import LIMIT_S, Running
from tests.support.filesystems import Btrfs
from tests.support.moments import ENDING, MOMENTS, at, children, deliver, launcher_of, signalled, state_of
from tests.support.programs import Kopiatomic
from tests.support.terminal import Terminal


@pytest.fixture
def ground(btrfs: Btrfs, kopiatomic: Kopiatomic, tmp_path: Path) -> BtrfsGround:
    made = BtrfsGround(btrfs, kopiatomic, tmp_path)
    made.reset()
    return made


def to_the_group(run: Running, signum: int) -> None:
    """As a terminal does it: the engine and all helpers that stayed in the group get it too."""
    os.killpg(run.pid, signum)


@pytest.mark.in_part(16)
@pytest.mark.parametrize("signum", ENDING, ids=lambda signum: signum.name)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    ("times", "send"),
    [
        pytest.param(1, deliver, id="once"),
        pytest.param(2, deliver, id="twice"),
        pytest.param(1, to_the_group, id="group"),
    ],
)
def test_a_signal_ends_a_run_at_any_moment(
    times: int, send: Callable[[Running, int], None], moment: str, signum: signal.Signals, ground: BtrfsGround
) -> None:
    ended = signalled(ground, moment, signum, times=times, send=send)
    assert ended.returncode in signal_codes(moment, signum), str(ended)
    if ended.returncode == 0:
        assert ground.proven() == ground.expected()
    else:
        assert f"stopped by {signum.name}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ground.left_after(2) == []


@pytest.mark.in_part(5)
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    ("key", "signum"), [(b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT)], ids=["Ctrl-C", "Ctrl-\\"]
)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_key_of_the_terminal_ends_a_run_at_any_moment(
    moment: str, key: bytes, signum: signal.Signals, times: int, ground: BtrfsGround
) -> None:
    terminal = Terminal()
    with at(ground, moment, "--stop-timeout", "20", before=terminal.become) as run:
        terminal.begun()
        for _ in range(times):
            terminal.seen()
            terminal.press(key)
    while state_of(run.pid)[0] not in "ZX":
        terminal.seen()
    ended = run.wait(LIMIT_S)
    ground.let_go()
    shown = terminal.seen()
    terminal.close()
    assert ended.returncode in signal_codes(moment, signum), shown
    assert "Traceback" not in shown
    if ended.returncode != 0:
        assert f"stopped by {signum.name}" in shown
    assert ground.left_after(2) == []


def test_ctrl_z_is_refused_with_a_line_and_stops_nothing(ground: BtrfsGround) -> None:
    """A run that stood still would keep its snapshots for as long."""
    terminal = Terminal()
    with at(ground, "engine", before=terminal.become) as run:
        terminal.begun()
        terminal.press(b"\x1a")
        run.until(lambda: "Ctrl-Z" in terminal.seen(), LIMIT_S)
        assert state_of(run.pid)[0] != "T"
        launcher = launcher_of(run)
        assert launcher is not None
        assert [state_of(child)[0] for child in children(launcher)] != ["T"]
    ground.let_go()
    ended = run.wait(LIMIT_S)
    assert ended.returncode == 0, terminal.seen()
    assert ground.proven() == ground.expected()
    terminal.close()
    assert ground.left_after(2) == []
