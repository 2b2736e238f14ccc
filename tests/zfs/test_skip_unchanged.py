"""--skip-unchanged on OpenZFS: what has changed in any way is read, by bookmarks that ``recover --forget`` removes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kopiatomic import locks, ownership
from tests.support.filesystems import Pool, imported_pool
from tests.support.programs import Kopia, command
from tests.zfs.runs import Runner

Skipping = Callable[..., dict[str, bool]]


@pytest.fixture
def skipping(pool: Pool, run: Runner, kopia: Kopia) -> Skipping:
    """A run over two datasets, one with a child; which of the sources were skipped."""
    for name in ("data", "data/nested", "home"):
        pool.dataset(name)
        for file in ("file", "to rename", "to delete"):
            (pool.path(name) / file).write_text(name)
        (pool.path(name) / "folder").mkdir()

    def run_once(*words: str) -> dict[str, bool]:
        asked = ["--no-maintenance", "--layout", "in-place", "--skip-unchanged", *words, "-r"]
        names = [f"{pool.name}/data", f"{pool.name}/home"]
        ended, document = run.json(*asked, *names, env=kopia.environment)
        assert ended.returncode == 0, ended
        assert run.left(pool, root=Path(f"{locks.DIRECTORY}/view-{document['run_id']}")) == []
        return {Path(one["source"]).name: one["unchanged"] for one in document["engine"]["sources"]}

    return run_once


NEITHER = {"data": False, "home": False}
BOTH = {"data": True, "home": True}
HOME = {"data": False, "home": True}


def bookmarks(pool: Pool) -> list[str]:
    return command("zfs", "list", "-H", "-t", "bookmark", "-o", "name", "-r", pool.name).stdout.splitlines()


def rollback(pool: Pool) -> None:
    command("zfs", "rollback", "-r", f"{pool.name}/data@early")


def received(pool: Pool) -> None:
    """Over it, with a file changed."""
    stream = pool.mountpoint / "stream"
    (pool.path("data") / "file").write_text("received")
    command("zfs", "snapshot", f"{pool.name}/data@later")
    command("sh", "-c", f"zfs send -i @early {pool.name}/data@later > {stream}")
    rollback(pool)
    command("sh", "-c", f"zfs receive -F {pool.name}/data < {stream}")
    stream.unlink()


def promoted(pool: Pool) -> None:
    """A clone takes its snapshots over, and then its place."""
    command("zfs", "clone", f"{pool.name}/data@early", f"{pool.name}/clone")
    command("zfs", "promote", f"{pool.name}/clone")


def clone_in_its_place(pool: Pool) -> None:
    promoted(pool)
    command("zfs", "rename", f"{pool.name}/data/nested", f"{pool.name}/nested")
    command("zfs", "destroy", "-r", f"{pool.name}/data")
    command("zfs", "rename", f"{pool.name}/clone", f"{pool.name}/data")
    command("zfs", "rename", f"{pool.name}/nested", f"{pool.name}/data/nested")
    command("zfs", "mount", f"{pool.name}/data", check=False)


def replaced(pool: Pool) -> None:
    """By another dataset of the same name with the same content."""
    command("zfs", "destroy", f"{pool.name}/data/nested")
    pool.dataset("data/nested")
    (pool.path("data/nested") / "file").write_text("data/nested")
    (pool.path("data/nested") / "folder").mkdir()


def attribute(pool: Pool) -> None:
    os.setxattr(pool.path("data") / "file", "user.new", b"x")


CHANGES: dict[str, Callable[[Pool], Any]] = {
    "content": lambda pool: (pool.path("data") / "file").write_text("DATA"),
    "mtime only": lambda pool: os.utime(pool.path("data") / "file", (1, 1)),
    "chmod": lambda pool: (pool.path("data") / "file").chmod(0o600),
    "xattr": attribute,
    "rename": lambda pool: (pool.path("data") / "to rename").rename(pool.path("data") / "renamed"),
    "delete": lambda pool: (pool.path("data") / "to delete").unlink(),
    "hard link": lambda pool: os.link(pool.path("data") / "file", pool.path("data") / "linked"),
    "in the child": lambda pool: (pool.path("data/nested") / "file").write_text("changed"),
    "rollback": rollback,
    "receive -F": received,
    "promote, and the clone in its place": clone_in_its_place,
    "the child replaced": replaced,
}


def test_every_change_is_read(pool: Pool, skipping: Skipping) -> None:
    """One after the other in one pool: a run takes 15 s in the emulated machine."""
    command("zfs", "snapshot", f"{pool.name}/data@early")
    (pool.path("data") / "file").touch()
    assert skipping() == NEITHER
    assert skipping() == BOTH
    for change, make in CHANGES.items():
        make(pool)
        assert skipping() == HOME, change
    assert skipping() == BOTH


def test_what_is_no_change_is_not_read(pool: Pool, skipping: Skipping) -> None:
    assert skipping() == NEITHER
    command("zfs", "snapshot", "-r", f"{pool.name}@somebody")
    command("zfs", "unmount", f"{pool.name}/data/nested")
    command("zfs", "mount", f"{pool.name}/data/nested")
    (pool.path("") / "outside").write_text("x")
    assert skipping() == BOTH


def test_the_bookmarks_are_listed_and_forgotten(pool: Pool, skipping: Skipping, run: Runner) -> None:
    somebodys = f"{pool.name}/data#kopiatomic_0123456789abcdef"
    planned = run("plan", "--layout", "in-place", "--skip-unchanged", "-r", f"{pool.name}/home")
    assert f"DATASET#{ownership.bookmark()}" in planned.stdout + planned.stderr
    assert bookmarks(pool) == []
    assert skipping() == NEITHER
    command("zfs", "snapshot", f"{pool.name}/data@by-hand")
    command("zfs", "bookmark", f"{pool.name}/data@by-hand", somebodys)
    ours = [f"{pool.name}/{name}#{ownership.bookmark()}" for name in ("data", "data/nested", "home")]
    assert sorted(bookmarks(pool)) == sorted([*ours, somebodys])
    dry = json.loads(run("recover", "--dry-run", "--json", "--forget").stdout)
    assert sorted(one["name"] for one in dry["leftovers"] if one["place"] == pool.name) == sorted(ours)
    assert len(bookmarks(pool)) == 4
    assert run("recover", "--forget").returncode == 0
    assert bookmarks(pool) == [somebodys]
    assert skipping() == NEITHER
    assert skipping() == BOTH
    assert run("recover").returncode == 0
    assert len(bookmarks(pool)) == 4


def test_a_bookmark_that_somebody_destroyed_proves_nothing(pool: Pool, skipping: Skipping) -> None:
    assert skipping() == NEITHER
    command("zfs", "destroy", f"{pool.name}/data#{ownership.bookmark()}")
    assert skipping() == HOME
    # One of the same name, of a state that was not saved.
    command("zfs", "destroy", f"{pool.name}/data#{ownership.bookmark()}")
    (pool.path("data") / "file").write_text("not saved")
    command("zfs", "snapshot", f"{pool.name}/data@by-hand")
    command("zfs", "bookmark", f"{pool.name}/data@by-hand", f"{pool.name}/data#{ownership.bookmark()}")
    assert skipping() == HOME
    assert skipping() == BOTH


def test_a_pool_without_bookmarks_is_read(
    pool: Pool, run: Runner, kopia: Kopia, skipping: Skipping, tmp_path: Path
) -> None:
    with imported_pool(tmp_path / "old", tmp_path / "mnt", 128 << 20, features=False) as old:
        (old.mountpoint / "file").write_text("x")
        for _ in range(2):
            ended, document = run.json(
                "--layout", "in-place", "--no-maintenance", "--skip-unchanged", old.name, env=kopia.environment
            )
            assert ended.returncode == 0, ended
            assert [one["unchanged"] for one in document["engine"]["sources"]] == [False]
