"""The machine's own clock is set: a day back, twelve years ahead, to 1970; what runs record then hides no missing backup."""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kopiatomic.commands import schedule as scheduling
from kopiatomic.output.console import Console
from kopiatomic.schedules import on
from kopiatomic.system import clock
from tests.support.filesystems import Pool
from tests.unit.support.schedules import HOUR, schedule, write_all
from tests.zfs.runs import Runner

DAY = 24 * HOUR
YEAR = 366 * DAY

_ADJ_MAXERROR, _ADJ_STATUS = 0x4, 0x10
_STA_UNSYNC = 0x40


def say_synchronised(*, synchronised: bool) -> None:
    """What a program that keeps the clock tells the kernel (adjtimex(2)); setting the clock takes it back."""
    timex = bytearray(512)
    struct.pack_into("=I4xqqqqi", timex, 0, _ADJ_MAXERROR | _ADJ_STATUS, 0, 0, 0, 0, 0 if synchronised else _STA_UNSYNC)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.adjtimex((ctypes.c_char * len(timex)).from_buffer(timex)) >= 0, ctypes.get_errno()


@pytest.fixture
def set_clock() -> Iterator[Callable[[float], None]]:
    """Set it to so many seconds from what it would be; it is right again after the test.

    Linux lets it go back to 1970 only as far as the machine has been up.
    """
    start = time.clock_gettime(time.CLOCK_REALTIME) - time.monotonic()

    def set_to(offset: float) -> None:
        time.clock_settime(time.CLOCK_REALTIME, time.monotonic() + max(60.0, start + offset))
        say_synchronised(synchronised=True)

    yield set_to
    set_to(0.0)
    say_synchronised(synchronised=False)


def test_whether_the_clock_is_synchronised_is_the_kernels_word(set_clock: Callable[[float], None]) -> None:
    set_clock(0.0)
    assert clock.synchronised()
    say_synchronised(synchronised=False)
    assert not clock.synchronised()


def test_a_clock_that_was_wrong_hides_no_missing_backup(
    tank: Pool, run: Runner, tmp_path: Path, set_clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    state, machine = tmp_path / "state", tmp_path / "machine"
    machine.mkdir()
    here = on("linux", str(machine))
    write_all(here, schedule(state_dir=str(state)), machine)

    def backup(command: str = "true") -> None:
        ended = run("--schedule", "home", "--state-dir", state, "-c", command, tank.name)
        assert ended.returncode == (0 if command == "true" else 1), ended

    def overdue() -> str:
        code = scheduling.overdue(here, Console(), name="home")
        said = capsys.readouterr().err
        assert (code, said == "") in {(0, True), (1, False)}
        return said

    set_clock(-5 * DAY)
    backup()
    set_clock(12 * YEAR)
    assert "no complete success since" in overdue()
    backup()
    assert overdue() == ""
    for offset in (0.0, -DAY, -1e12):
        # Right again, a day back, and 1970.
        set_clock(offset)
        assert "the clock was set back, or that record is wrong" in overdue()
        say_synchronised(synchronised=False)
        assert ("no complete success since" in overdue()) == (offset > -YEAR)
    set_clock(0.0)
    backup("false")
    assert "no complete success since" in overdue()
    backup()
    assert overdue() == ""


def test_a_duration_is_that_of_the_monotonic_clock(
    tank: Pool, run: Runner, tmp_path: Path, set_clock: Callable[[float], None]
) -> None:
    """The engine sets the clock a day back and, in another run, a day ahead."""
    for offset in (-DAY, DAY):
        engine = f"import time; time.clock_settime(time.CLOCK_REALTIME, time.time() + {offset})"
        ended = run("--state-dir", tmp_path / "state", "-c", f'python3 -c "{engine}"', tank.name)
        assert ended.returncode == 0, ended
        set_clock(0.0)
    history = run("history", "--state-dir", tmp_path / "state")
    took = [line.split()[3:5] for line in history.stdout.splitlines()[1:]]
    assert [unit for _, unit in took] == ["s", "s"], history
    assert all(0 < float(seconds) < 60 for seconds, _ in took), history
