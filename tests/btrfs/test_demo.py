"""./demo: it shows what it says, and removes everything however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.programs import command

pytestmark = pytest.mark.in_part(3)

TREE = Path(__file__).resolve().parents[2]


@pytest.fixture
def demo(tmp_path: Path) -> Callable[[], subprocess.Popen[str]]:
    """Start ./demo in a folder of this test."""

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [TREE / "demo"],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def left_behind(folder: Path) -> list[str]:
    """What a demonstration in a folder has not removed."""
    found = [str(path) for path in folder.iterdir()]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]
    found += [line for line in command("losetup", "--list", "--noheadings").stdout.splitlines() if str(folder) in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "environ").read_bytes():
                found.append(f"process {process.name} {(process / 'comm').read_text()}")
        except OSError:  # it has just ended, or is the system's own
            continue
    return found


def test_plain_kopia_is_torn_and_kopiatomic_whole(demo: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    with demo() as process:
        output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert re.search(r"verdict +torn +whole", output), output
    assert "\x1b" not in output
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("step", "signum"), [("1.", signal.SIGTERM), ("2.", signal.SIGHUP), ("3.", signal.SIGINT), ("4.", signal.SIGTERM)]
)
def test_a_stopped_demo_leaves_nothing(
    step: str, signum: signal.Signals, demo: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    with demo() as process:
        assert process.stdout is not None
        seen = ""
        for line in process.stdout:
            seen += line
            if line.startswith(step):
                process.send_signal(signum)
        process.wait(timeout=60)
    assert process.returncode == 128 + signum, seen
    assert f"Stopped by {signum.name}. Everything is removed again." in seen
    assert left_behind(tmp_path) == []
