"""What ``zfs`` answers is used only as far as it is an answer: whole, and of the dataset that was asked about."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems.zfs import listing as zfs_listing
from kopiatomic.model.facts import ZfsDataset
from kopiatomic.system import process
from tests.support.filesystems import Pool
from tests.support.programs import command
from tests.zfs.runs import Runner
from tests.zfs.suspended import suspendable

pytestmark = pytest.mark.core

PROPERTY = "kopiatomic:backup"


@pytest.fixture(scope="module")
def pool(tank: Pool) -> Pool:
    for name in ("a", "b", "c"):
        tank.dataset(name)
    return tank


def asked(pool: Pool, *names: str) -> list[ZfsDataset]:
    return [ZfsDataset(f"{pool.name}/{name}", "filesystem", "on", "-", zoned=False) for name in names]


@pytest.fixture
def hostile(pool: Pool) -> Iterator[Callable[[str], None]]:
    """Give the dataset ``a`` a mount point that holds more than one line."""

    def give(value: str) -> None:
        command("zfs", "set", f"mountpoint={value}", f"{pool.name}/a")

    command("zfs", "set", "canmount=noauto", f"{pool.name}/a")
    yield give
    command("zfs", "inherit", "mountpoint", f"{pool.name}/a")
    command("zfs", "set", "canmount=on", f"{pool.name}/a")


@pytest.mark.parametrize(
    "value",
    ["/x\n/etc", "/x\t{pool}/a\n{pool}/gone\t/etc", "/x\t{pool}/a\n{pool}/gone\t/etc\t{pool}/gone\n{pool}/a\t/y"],
)
def test_a_mount_point_of_several_lines_is_nobody_elses(value: str, pool: Pool, hostile: Callable[[str], None]) -> None:
    """The dataset that it would pass for is destroyed between two questions, so that the number of lines is right."""
    value = value.format(pool=pool.name)
    hostile(value)
    found = zfs_listing.with_mountpoints(asked(pool, "a", "gone", "c"))
    assert {name.partition("/")[2]: d.mountpoint for name, d in found.items()} == {"a": value, "c": str(pool.path("c"))}


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A ``zfs`` that gives the first line of its answer and then fails, where its words match a pattern of the shell.

    It stands for one that meets an I/O error in its listing, which no healthy pool gives on request.
    """

    def fail(pattern: str) -> None:
        real = shutil.which("zfs")
        assert real is not None
        fake = tmp_path / "bin" / "zfs"
        fake.parent.mkdir()
        fake.write_text(
            f'#!/bin/sh\ncase "$*" in {pattern}) {shlex.quote(real)} "$@" | head -n 1\n'
            f'echo "cannot iterate filesystems: I/O error" >&2; exit 1;; esac\nexec {shlex.quote(real)} "$@"\n'
        )
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")

    return fail


def test_a_listing_that_fails_half_way_is_no_listing(pool: Pool, failing: Callable[[str], None]) -> None:
    failing("*list*")
    asks: tuple[Callable[[], object], ...] = (
        lambda: zfs_listing.datasets([], PROPERTY, everything=True, depth=None),
        lambda: zfs_listing.datasets([f"{pool.name}/a", f"{pool.name}/b"], PROPERTY, everything=False, depth=1),
        lambda: zfs_listing.with_mountpoints(asked(pool, "a", "b", "c")),
    )
    for ask in asks:
        with pytest.raises(KopiatomicError, match="I/O error"):
            ask()


def test_a_property_that_could_not_be_read_is_not_unset(pool: Pool, failing: Callable[[str], None]) -> None:
    failing("*get*")
    with pytest.raises(KopiatomicError, match="I/O error"):
        zfs_listing.settings({f"{pool.name}/a": "on", f"{pool.name}/b": "on"}, PROPERTY)


def test_a_run_of_everything_fails_where_the_listing_does(
    pool: Pool, run: Runner, failing: Callable[[str], None]
) -> None:
    failing('"list -Hp"*')
    ended = run("-a", "-c", "true")
    assert (ended.returncode, "I/O error" in ended.stderr) == (1, True), ended


def test_a_dataset_that_is_not_there_is_told_from_a_pool_that_does_not_answer(
    pool: Pool, failing: Callable[[str], None]
) -> None:
    failing('"list -H -t filesystem -o name"')
    result = process.run(["zfs", "list", f"{pool.name}/none"], timeout=60)
    with pytest.raises(KopiatomicError, match="I/O error"):
        zfs_listing.require([f"{pool.name}/none"], [], result)


def test_recover_does_not_say_that_nothing_is_left_in_a_suspended_pool(run: Runner, tmp_path: Path) -> None:
    """``zfs list`` leaves it out without a word, and succeeds."""
    with suspendable(tmp_path / "device") as device:
        device.suspend()
        ended = run("recover", "--dry-run")
        assert ended.returncode == 4, ended
        assert f"the pool {device.pool.name} is suspended" in ended.stderr
        assert "Nothing is left" not in ended.stdout


@pytest.mark.usefixtures("tank")
def test_a_name_that_no_file_can_have_is_no_dataset_all_the_same(run: Runner) -> None:
    """The hint that names a directory looks for one, and no filesystem takes that name."""
    ended = run("-c", "true", "n" * 300)
    assert ended.returncode == 1
    assert "no such dataset: nnn" in ended.stderr or "is not a valid dataset name" in ended.stderr, ended
