"""A schedule, the machines that it may be installed on (each a folder), and what is asked of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.errors import KopiatomicError
from kopiatomic.model.schedule import Schedule
from kopiatomic.schedules import environment, files, on
from kopiatomic.schedules.schedule import Scheduler

HOUR = 3600.0
UNITS = "etc/systemd/system"
NASTY = (
    "-r",
    "plain",
    "",
    " ",
    "a b",
    ";",
    "$HOME",
    "${HOME}",
    "$$",
    "%i %n %%",
    'with "quotes"',
    "with 'quotes'",
    "back\\slash\\",
    "\\n",
    "tab\tnew\nline\x7f",
    "*",
    "~",
    "#no comment",
    "é 日本",
    "--x=y z",
    "@:+!-",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What is below it is the machine."""
    made = tmp_path / "machine"
    made.mkdir(0o755)
    return made


@pytest.fixture
def on_linux(root: Path) -> Scheduler:
    return on("linux", str(root))


@pytest.fixture
def on_freebsd(root: Path) -> Scheduler:
    return on("freebsd14", str(root))


def schedule(name: str = "home", **more: Any) -> Schedule:
    given = Schedule(
        name=name,
        calendar="daily",
        interval=24 * HOUR,
        program=("/usr/bin/python3", "/usr/bin/true"),
        words=("-r", "tank"),
        environment={"HOME": "/root", "PATH": environment.PATH},
        credentials={},
        state_dir="/var/lib/kopiatomic",
        end_timeout=300.0,
    )
    return replace(given, **more)


def write_all(scheduler: Scheduler, one: Schedule, top: Path) -> list[Path]:
    for file in scheduler.files(one):
        files.write(file, top=str(top))
    return [Path(file.path) for file in scheduler.files(one)]


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def error_of(call: Callable[[], object]) -> KopiatomicError:
    """What a call refuses: one message with something to do."""
    with pytest.raises(KopiatomicError) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value
