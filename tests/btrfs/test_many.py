"""Subvolumes that any user can make, too many of them or in odd places: nobody's backup ends for that."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kopiatomic.system import btrfs as ioctls
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopiatomic, command
from tests.support.schema import valid
from tests.support.subvolumes import create, destroy, nested, opened

Leftovers = Callable[..., list[str]]
Run = Callable[..., Completed]


def make_deep(top: Path, names: list[str], subvolume: str) -> None:
    """A subvolume below directories whose path is longer than the kernel takes at once."""
    nested(top, names, subvolumes=False)
    with opened(top, names) as directory:
        create(directory, subvolume)


@pytest.fixture
def home(btrfs: Btrfs) -> Path:
    """A subvolume with the mail of one user, and a subvolume of another's that no program can open."""
    home = btrfs.subvolume("home")
    for name in ("mail", "eve"):
        (home / name).mkdir()
    (home / "mail" / "letter").write_text("x")
    make_deep(home / "eve", ["d" * 100] * 45, "nest")
    return home


def test_a_path_that_the_kernel_has_no_room_for_is_told_name_by_name(home: Path) -> None:
    fd = os.open(home, os.O_RDONLY)
    try:
        (found,) = ioctls.children(fd)
        assert found.path == "/".join(["eve", *["d" * 100] * 45, "nest"])
        assert found.too_long
        assert ioctls.child(fd, found.id) == found
        assert ioctls.child(fd, found.id + 1) is None
    finally:
        os.close(fd)


@pytest.mark.parametrize("what", ["", "mail"])
def test_a_subvolume_at_too_long_a_path_is_nothing_to_a_run_without_r(home: Path, run: Run, what: str) -> None:
    ended = run("--quiet", "-c", "true", home / what)
    assert ended.returncode == 0, str(ended)


def test_with_r_it_is_named_and_the_rest_is_saved(home: Path, run: Run) -> None:
    # One whose path within its subvolume is short enough to be told at once, and too long from the root on.
    make_deep(home / "eve", [*["e" * 100] * 37, "f" * 70], "n" * 250)
    ended = run("--json", "-c", "true", "-r", home)
    assert ended.returncode == 3, str(ended)
    left_out = {one["verdict"]: one for one in valid(ended.stdout)["left_out"]}
    assert set(left_out) == {"name too long"}
    for last in ("nest", "n" * 250):
        assert f"/{last} (subvolume " in ended.stderr
    assert str(home / "eve") in ended.stderr


def test_with_r_a_part_that_it_does_not_lie_in_is_complete(home: Path, run: Run) -> None:
    ended = run("--quiet", "-c", "true", "-r", home / "mail")
    assert ended.returncode == 0, str(ended)


def test_more_subvolumes_than_descriptors(
    btrfs: Btrfs, kopiatomic: Kopiatomic, leftovers: Leftovers, root: Path
) -> None:
    """Each is opened when its turn has come. Both limits are low, so that raising the soft one is no help."""
    wide = btrfs.subvolume("wide")
    with opened(wide, []) as top:
        for number in range(150):
            create(top, str(number))
    argv = Kopiatomic.argv("--mount-root", root, "--quiet", "-c", "true", "-r", wide)
    ended = command("prlimit", "--nofile=100:100", *argv, env=kopiatomic.environment, check=False)
    assert ended.returncode == 0, str(ended)
    assert leftovers(root) == []


def test_subvolumes_nested_deeper_than_python_calls(btrfs: Btrfs, run: Run, leftovers: Leftovers, root: Path) -> None:
    deep = btrfs.subvolume("deep")
    nested(deep, ["n"] * 1100, subvolumes=True)
    ended = run("--quiet", "-c", "true", "-r", deep, timeout=120)
    assert ended.returncode == 0, str(ended)
    assert leftovers(root) == []


def test_subvolumes_that_come_and_go_end_nobodys_backup(
    btrfs: Btrfs, run: Run, leftovers: Leftovers, root: Path
) -> None:
    home = btrfs.subvolume("home")
    (home / "eve").mkdir()
    pid = os.fork()
    if pid == 0:
        try:
            with opened(home / "eve", []) as eve:
                # An end of its own, so that they cannot fill the disk for ever.
                for turn in range(100_000):
                    create(eve, str(turn))
                    if turn >= 4:
                        destroy(eve, str(turn - 4))
        finally:
            os._exit(0)
    try:
        ended = [run("--quiet", "-c", "ls", "-r", home) for _ in range(3)]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert [one.returncode for one in ended] == [0, 0, 0], "\n".join(map(str, ended))[:4000]
    assert leftovers(root) == []
