"""Very many subvolumes and mounts, and very deep trees: what any user can make costs time, and nobody else's backup.

Plain ./test makes a tenth of each; KOPIATOMIC_TEST_LOAD=whole makes all of it, and prints time and memory.
"""

from __future__ import annotations

import os
import re
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopiatomic, command
from tests.support.schema import valid
from tests.support.subvolumes import create, nested, opened

WHOLE = os.environ.get("KOPIATOMIC_TEST_LOAD") == "whole"
SUBVOLUMES = 100_000 if WHOLE else 10_000
MOUNTS = 10_000 if WHOLE else 1_000
DEPTH = 2_000 if WHOLE else 200

NOBODY, ANN = 65534, 65533

Leftovers = Callable[..., list[str]]


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print how long it takes (seconds), and the most memory that one process of it had."""
    began = time.monotonic()
    yield
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    print(f"{what}: {time.monotonic() - began:.1f} s; the largest process so far had {peak} MiB")


def by_user(user: int, directory: Path, count: int) -> None:
    """Have a user make subvolumes in a directory of their own."""
    directory.mkdir()
    os.chown(directory, user, user)
    # Open by now: the directories above are closed to all but root.
    with opened(directory, []) as fd:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setgid(user)
                os.setuid(user)
                for number in range(count):
                    create(fd, f"{number:06}")
                status = 0
            finally:
                os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture
def big(btrfs: Btrfs) -> Btrfs:
    """With room for 100,000 subvolumes and as many snapshots; it is sparse."""
    os.truncate(btrfs.image, 40 << 30)
    command("losetup", "--set-capacity", btrfs.device)
    command("btrfs", "filesystem", "resize", "max", btrfs.mountpoint)
    return btrfs


def run(kopiatomic: Kopiatomic, root: Path, *args: str | Path, before: str = "") -> Completed:
    """kopiatomic in a mount namespace of its own, in which shell lines are run before."""
    argv = Kopiatomic.argv("--mount-root", root, *args)
    shell = ("unshare", "--mount", "--propagation", "slave", "sh", "-ec", f'{before}\nexec "$@"', "sh")
    return command(*shell, *argv, env=kopiatomic.environment, check=False, timeout=1800)


def document(ended: Completed) -> dict[str, Any]:
    return valid(ended.stdout)  # type: ignore[no-any-return]


def test_subvolumes_of_one_user(
    big: Btrfs, kopiatomic: Kopiatomic, root: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    home = big.subvolume("home")
    by_user(ANN, home / "ann", 3)
    by_user(NOBODY, home / "eve", SUBVOLUMES)

    with measured(f"{SUBVOLUMES} subvolumes, without -r"):
        ended = run(kopiatomic, root, "--json", "-c", "ls", home)
    assert ended.returncode == 0, str(ended)[:2000]
    found = document(ended)
    assert [one["dataset"] for one in found["datasets"]] == [str(home)]
    counts = sorted((one["verdict"], one["count"]) for one in found["left_out"])
    assert counts == [*[("not asked for", 1)] * 3, ("not asked for", SUBVOLUMES)]
    assert len(ended.stdout) + len(ended.stderr) < 20_000

    # A low limit stands in for more subvolumes than the real one has room for; of 100,000 that has not.
    limit = tmp_path / "mount-max"
    limit.write_text("2000\n")
    low = "" if WHOLE else f"mount --bind {limit} /proc/sys/fs/mount-max"
    with measured(f"{SUBVOLUMES} subvolumes, with -r"):
        ended = run(kopiatomic, root, "--quiet", "-c", "ls", "-r", home, before=low)
    assert ended.returncode == 3, str(ended)[:2000]
    (line,) = [line for line in ended.stderr.splitlines() if "not complete" in line]
    told = re.search(r"(\d+) of the (\d+) that are those of the user with the id (\d+) have no room", line)
    assert told is not None, line
    assert told.groups()[1:] == (str(SUBVOLUMES), str(NOBODY))
    assert f"{home}/eve: " in line
    assert len(ended.stdout) + len(ended.stderr) < 20_000
    history = kopiatomic("history", "--json", timeout=600).stdout
    assert len(history) < 40 << 20
    assert leftovers(root) == []


def test_those_with_few_are_served_before_those_with_many(
    btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path, tmp_path: Path
) -> None:
    home = btrfs.subvolume("home")
    by_user(NOBODY, home / "eve", 300)
    by_user(ANN, home / "ann", 3)
    limit = tmp_path / "mount-max"
    limit.write_text(f"{len(Path('/proc/self/mountinfo').read_text().splitlines()) + 150}\n")
    low = f"mount --bind {limit} /proc/sys/fs/mount-max"
    ended = run(kopiatomic, root, "--json", "-c", "true", "-r", home, before=low)
    assert ended.returncode == 3, str(ended)[:2000]
    found = document(ended)
    taken = [one["dataset"] for one in found["datasets"]]
    assert {str(home), *(f"{home}/ann/{number:06}" for number in range(3))} <= set(taken)
    eves = [name for name in taken if name.startswith(f"{home}/eve/")]
    assert 0 < len(eves) < 150
    assert eves == [f"{home}/eve/{number:06}" for number in range(len(eves))]
    (rest,) = found["left_out"]
    assert (rest["verdict"], rest["count"], rest["incomplete"]) == ("no room", 300 - len(eves), True)


@pytest.mark.parametrize("layout", ["merged", "in-place"])
def test_mounts(
    btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path, tmp_path: Path, layout: str, leftovers: Leftovers
) -> None:
    """In the tree of what is taken, and beside it."""
    data = btrfs.subvolume("data")
    (data / "file").write_text("x")
    for top in (data, tmp_path / "beside"):
        for number in range(MOUNTS // 2):
            (top / str(number)).mkdir(parents=True)
    mounts = f"for n in $(seq 0 {MOUNTS // 2 - 1}); do echo none $d/$n tmpfs size=4k; done"
    before = (
        f"for d in {data} {tmp_path}/beside; do {mounts}; done > {tmp_path}/fstab; mount --all --fstab {tmp_path}/fstab"
    )
    with measured(f"{MOUNTS} mounts, {layout}"):
        ended = run(kopiatomic, root, "--json", "--layout", layout, "-c", "true", data, before=before)
    assert ended.returncode == 0, str(ended)[:2000]
    assert len(ended.stderr) < 20_000
    found = document(ended)
    assert [one["dataset"] for one in found["datasets"]] == [str(data)]
    assert len(found["uncovered"]) + found["not_listed"].get("uncovered", 0) == MOUNTS // 2
    assert leftovers(root) == []


@pytest.fixture
def near(btrfs: Btrfs) -> Iterator[Path]:
    """The same filesystem at a short path: a program opens none of more than 4,095 bytes."""
    point = Path(tempfile.mkdtemp(dir="/tmp"))
    command("mount", "--bind", btrfs.mountpoint, point)
    try:
        yield point
    finally:
        command("umount", "--lazy", point)
        point.rmdir()


def test_nested_subvolumes(near: Path, kopiatomic: Kopiatomic, root: Path, leftovers: Leftovers) -> None:
    deep = near / "deep"
    command("btrfs", "subvolume", "create", deep)
    nested(deep, ["n"] * DEPTH, subvolumes=True)
    for layout in ("merged", "in-place"):
        with measured(f"{DEPTH} nested subvolumes, {layout}"):
            ended = run(kopiatomic, root, "--json", "--layout", layout, "-c", "true", "-r", deep)
        assert ended.returncode == 0, str(ended)[:2000]
        assert len(document(ended)["datasets"]) == DEPTH + 1
    assert leftovers(root) == []


@pytest.mark.parametrize("layout", ["merged", "in-place"])
def test_a_part_of_a_deep_tree(
    near: Path, kopiatomic: Kopiatomic, root: Path, tmp_path: Path, layout: str, leftovers: Leftovers
) -> None:
    data = near / "data"
    command("btrfs", "subvolume", "create", data)
    names = ["d"] * (DEPTH - 10)
    nested(data, names, subvolumes=False)
    with opened(data, names) as bottom:
        os.close(os.open("file", os.O_CREAT, dir_fd=bottom))
    part = data / "/".join(names)
    with measured(f"a part at depth {DEPTH}, {layout}"):
        ended = run(kopiatomic, root, "--json", "--layout", layout, "-c", "true", part)
    assert ended.returncode == 0, str(ended)[:2000]
    (taken,) = document(ended)["datasets"]
    assert taken["mountpoint"] == str(data)
    assert leftovers(root) == []
