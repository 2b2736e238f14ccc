"""What a killed test session left mounted goes with the next one, and nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kopiatomic.system import mountinfo
from tests.support.dead_sessions import clear
from tests.support.programs import command

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="it mounts")


def gone() -> int:
    """The id of a process that is no more."""
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def mount(point: Path) -> Path:
    point.mkdir(parents=True)
    command("mount", "-t", "tmpfs", "none", point)
    return point


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Path]:
    """A folder of sessions; what is mounted in it at the end is unmounted."""
    top = tmp_path / "pytest-of root"
    top.mkdir()
    yield top
    for point in reversed(below(top)):
        command("umount", point)


def below(top: Path) -> list[str]:
    return [m.point for m in mountinfo.read() if m.point.startswith(f"{top}/")]


def test_only_what_is_below_the_folder_of_a_dead_session_is_unmounted(sessions: Path) -> None:
    dead = [mount(sessions / name / "test_x0/mnt a") for name in ("pytest-1", "pytest-2")]
    dead.append(mount(dead[0] / "inner"))
    (sessions / "pytest-1" / ".lock").write_text(str(gone()))
    (dead[0] / "file").touch()
    alive = mount(sessions / "pytest-3/test_x0/mnt")
    (sessions / "pytest-3" / ".lock").write_text(str(os.getpid()))
    unsure = mount(sessions / "pytest-4/mnt")
    (sessions / "pytest-4" / ".lock").write_text("")
    strangers = [mount(sessions / name) for name in ("mine/mnt", "pytest-5x/mnt", "pytest-6")]
    said = clear(sessions)
    assert len(said) == 3, said
    assert sorted(below(sessions)) == sorted(map(str, (alive, unsure, *strangers)))
    assert clear(sessions) == []


def test_what_is_in_use_is_named(sessions: Path) -> None:
    point = mount(sessions / "pytest-1/mnt")
    (point / "file").touch()
    with (point / "file").open():
        (said,) = clear(sessions)
    assert said.startswith(f"LEFT of a test session that was killed: umount --no-canonicalize {point}: ")
    assert below(sessions) == [str(point)]


@pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="there are no loop devices here")
def test_its_loop_devices_are_detached(sessions: Path) -> None:
    devices = []
    for name, pid in (("pytest-1", gone()), ("pytest-2", os.getpid())):
        folder = sessions / name
        folder.mkdir()
        (folder / ".lock").write_text(str(pid))
        (folder / "image").write_bytes(b"\0" * 65536)
        devices.append(command("losetup", "--find", "--show", folder / "image").stdout.strip())
    try:
        assert clear(sessions) == [f"of a test session that was killed: losetup --detach {devices[0]}"]
    finally:
        command("losetup", "--detach", devices[1])
