"""What is said of an instant is true: a program that writes all the time is caught at one moment, or it is said that not.

The writer syncs what it writes, as a database does. What a program has written and not synced Btrfs writes back file by
file: that can be of different moments (by some milliseconds) even in the snapshot of a single subvolume, seen in 6 of 30.
"""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.filesystems.btrfs.snapshots import BtrfsMaker
from kopiatomic.model.plan import Dataset, PlannedPath, Taken
from kopiatomic.output.document import instant_text
from kopiatomic.system import btrfs as ioctls
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, command
from tests.support.schema import valid

pytestmark = pytest.mark.in_part(4)

Leftovers = Callable[..., list[str]]
Run = Callable[..., Completed]

WRITER = """
import os, sys
files = [os.open(name, os.O_RDWR | os.O_CREAT | os.O_DSYNC) for name in sys.argv[1:]]
number = 0
while True:
    number += 1
    for fd in files:
        os.pwrite(fd, b"%020d" % number, 0)
"""


@contextmanager
def writer(files: list[Path]) -> Iterator[None]:
    """A program that writes the same counter to all files, in their order, again and again.

    At any one instant the first file is equal to the last or one ahead.
    """
    with subprocess.Popen([sys.executable, "-c", WRITER, *map(str, files)]) as process:
        try:
            while not (files[-1].exists() and files[-1].stat().st_size):
                time.sleep(0.01)
            yield
        finally:
            process.kill()


def is_torn(numbers: list[int]) -> bool:
    """Whether counters, in the order of writing, cannot have been there together."""
    return any(b > a for a, b in itertools.pairwise(numbers)) or numbers[0] - numbers[-1] > 1


def copier(files: list[Path], out: Path, delay: float) -> str:
    """An engine that copies the counters out, one after the other, in the reverse of their order: as a slow backup would."""
    code = (
        "import sys, time\nroot = sys.argv[-1]\nnumbers = []\n"
        f"for name in reversed({[str(f) for f in files]!r}):\n"
        f"    numbers.insert(0, open(root + name).read())\n    time.sleep({delay})\n"
        f"open({str(out)!r}, 'w').write(' '.join(numbers))"
    )
    return shlex.join([sys.executable, "-c", code])


def numbers_in(out: Path) -> list[int]:
    return [int(number) for number in out.read_text().split()]


def test_a_subvolume_is_never_torn_and_a_plain_copy_of_it_is(
    btrfs: Btrfs, run: Run, root: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    data = btrfs.subvolume("data")
    files = [data / str(number) for number in range(8)]
    out = tmp_path / "out"
    engine = copier(files, out, delay=0.02)
    torn = torn_plain = 0
    with writer(files):
        for _ in range(20):
            ended = run("--require-atomic", "-c", engine, data)
            assert ended.returncode == 0, str(ended)
            torn += is_torn(numbers_in(out))
        for _ in range(5):
            command(*shlex.split(engine), "")
            torn_plain += is_torn(numbers_in(out))
    assert torn == 0
    assert torn_plain > 0, "the control found nothing: the test shows nothing"
    assert leftovers(root) == []


def test_equal_transactions_of_two_subvolumes_are_one_instant(btrfs: Btrfs) -> None:
    """The claim itself, against a writer to both, by many sets made as a run makes them."""
    subvolumes = [btrfs.subvolume("one"), btrfs.subvolume("other")]
    files = [subvolume / "counter" for subvolume in subvolumes]
    claimed = torn_claimed = 0
    with writer(files):
        deadline = time.monotonic() + 5
        tried = 0
        while time.monotonic() < deadline:
            tried += 1
            atomic, numbers = one_set(subvolumes, tried)
            claimed += atomic
            torn_claimed += atomic and is_torn(numbers)
    assert claimed >= 5, f"only {claimed} of {tried} sets shared a transaction"
    assert torn_claimed == 0


def one_set(subvolumes: list[Path], number: int) -> tuple[bool, list[int]]:
    """Make a set, read the counters in it, remove it."""
    device = command("findmnt", "-n", "-o", "SOURCE", "-T", subvolumes[0]).stdout.split("[")[0].strip()
    taken = []
    for path in subvolumes:
        fd = os.open(path, os.O_RDONLY)
        taken.append(
            Taken(
                Dataset(
                    "btrfs",
                    str(path),
                    ioctls.filesystem_uuid(fd),
                    PlannedPath(str(path)),
                    ioctls.subvolume(fd).id,
                    device,
                ),
                str(path),
                named=True,
            )
        )
        os.close(fd)
    maker = BtrfsMaker(f"kopiatomic_test{number}", "", taken)
    maker.prepare()
    try:
        instant = maker.make()
        assert instant is not None
        made = maker.read_back(instant)
        top = subvolumes[0].parent
        numbers = [int((top / snapshot.source / "counter").read_text()) for snapshot in made.snapshots]
        return made.one_instant, numbers
    finally:
        assert maker.remove() == []


@pytest.fixture
def many(btrfs: Btrfs) -> list[Path]:
    return [btrfs.subvolume(f"s{number}") for number in range(6)]


def test_what_is_not_one_instant_is_said_to_be_none(
    many: list[Path], run: Run, root: Path, leftovers: Leftovers
) -> None:
    ended = run("-c", "true", *many)
    assert ended.returncode == 0
    assert "Saved 6 datasets NOT at one instant" in ended.stdout
    assert "6 snapshots in " in ended.stdout
    assert "upper bound" in ended.stdout
    document: Any = valid(run("--json", "-c", "true", *many).stdout)
    assert document["atomic"] is False
    (made,) = document["sets"]
    assert len({s["transaction"] for s in made["snapshots"]}) > 1
    assert (made["one_instant"], made["transaction"]) == (False, None)
    span = made["monotonic_after"] - made["monotonic_before"]
    assert document["skew_seconds"] == pytest.approx(span)
    assert span > 0
    assert leftovers(root) == []


def test_two_filesystems_share_no_instant(
    make_btrfs: Callable[[], Btrfs], run: Run, root: Path, leftovers: Leftovers
) -> None:
    one, other = make_btrfs().mountpoint, make_btrfs().mountpoint
    document = valid(run("--json", "-c", "true", one, other).stdout)
    assert document["atomic"] is False
    assert [s["one_instant"] for s in document["sets"]] == [True, True]
    first = min(s["monotonic_before"] for s in document["sets"])
    assert document["skew_seconds"] == pytest.approx(max(s["monotonic_after"] for s in document["sets"]) - first)
    refused = run("--require-atomic", "-c", "true", one, other)
    assert refused.returncode == 1
    assert "2 pools or filesystems" in refused.stderr
    assert leftovers(root) == []


def test_what_must_be_one_instant_and_is_not_is_refused_before_the_engine(
    many: list[Path], run: Run, root: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    hook = f"echo $KOPIATOMIC_RESULT >> {tmp_path}/hook"
    ended = run("--require-atomic", "-q", hook, "-c", f"touch {tmp_path}/engine", *many)
    assert ended.returncode == 1
    assert "--require-atomic: " in ended.stderr
    assert not (tmp_path / "engine").exists()
    assert (tmp_path / "hook").read_text() == "failed\n"
    assert leftovers(root) == []


def test_the_instant_lies_between_the_two_clocks(btrfs: Btrfs, run: Run) -> None:
    data = btrfs.subvolume("data")
    began = instant_text(time.time_ns())
    document = valid(run("--json", "-p", "sleep 0.1", "-c", "true", data).stdout)
    (made,) = document["sets"]
    assert began < made["wall_before"] <= made["wall_after"] <= instant_text(time.time_ns())
    assert document["instant"] == made["wall_before"]
