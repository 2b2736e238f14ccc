"""--skip-unchanged on OpenZFS: what has changed in any way is read, by bookmarks that ``recover --forget`` removes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.state import locks, ownership
from tests.support.filesystems import Pool, imported_pool
from tests.support.programs import Kopia, command
from tests.zfs.runs import Runner

pytestmark = pytest.mark.in_part(1)

Skipping = Callable[..., dict[str, bool]]


@pytest.fixture
def over(pool: Pool, run: Runner, kopia: Kopia) -> Skipping:
    """A run over the datasets named and their children; which of the sources were skipped."""

    def run_once(*names: str) -> dict[str, bool]:
        asked = ["--no-maintenance", "--layout", "in-place", "--skip-unchanged", "-r"]
        ended, document = run.json(*asked, *(f"{pool.name}/{name}" for name in names), env=kopia.environment)
        assert ended.returncode == 0, ended
        assert run.left(pool, root=Path(f"{locks.DIRECTORY}/view-{document['run_id']}")) == []
        return {Path(one["source"]).name: one["unchanged"] for one in document["engine"]["sources"]}

    return run_once


@pytest.fixture
def skipping(pool: Pool, over: Skipping) -> Skipping:
    """A run over two datasets, one with a child."""
    for name in ("data", "data/nested", "home"):
        filled(pool, name)
    return lambda: over("data", "home")


def filled(pool: Pool, name: str) -> None:
    pool.dataset(name)
    for file in ("file", "to rename", "to delete"):
        (pool.path(name) / file).write_text(name)
    (pool.path(name) / "folder").mkdir()


NEITHER = {"data": False, "home": False}
BOTH = {"data": True, "home": True}
HOME = {"data": False, "home": True}


def bookmarks(pool: Pool) -> list[str]:
    return command("zfs", "list", "-H", "-t", "bookmark", "-o", "name", "-r", pool.name).stdout.splitlines()


def rollback(pool: Pool, name: str) -> None:
    command("zfs", "rollback", "-r", f"{pool.name}/{name}@early")


def received(pool: Pool, name: str) -> None:
    """Over it, with a file changed."""
    stream = pool.mountpoint / "stream"
    (pool.path(name) / "file").write_text("received")
    command("zfs", "snapshot", f"{pool.name}/{name}@later")
    command("sh", "-c", f"zfs send -i @early {pool.name}/{name}@later > {stream}")
    rollback(pool, name)
    command("sh", "-c", f"zfs receive -F {pool.name}/{name} < {stream}")
    stream.unlink()


def clone_in_its_place(pool: Pool, name: str) -> None:
    """It takes its snapshots over, and then its place."""
    command("zfs", "clone", f"{pool.name}/{name}@early", f"{pool.name}/clone")
    command("zfs", "promote", f"{pool.name}/clone")
    command("zfs", "rename", f"{pool.name}/{name}/nested", f"{pool.name}/nested")
    command("zfs", "destroy", "-r", f"{pool.name}/{name}")
    command("zfs", "rename", f"{pool.name}/clone", f"{pool.name}/{name}")
    command("zfs", "rename", f"{pool.name}/nested", f"{pool.name}/{name}/nested")
    command("zfs", "mount", f"{pool.name}/{name}", check=False)


def replaced(pool: Pool, name: str) -> None:
    """By another dataset of the same name with the same content."""
    command("zfs", "destroy", "-r", f"{pool.name}/{name}/nested")
    filled(pool, f"{name}/nested")


CHANGES: dict[str, Callable[[Pool, str], Any]] = {
    "content": lambda pool, name: (pool.path(name) / "file").write_text("DATA"),
    "mtime-only": lambda pool, name: os.utime(pool.path(name) / "file", (1, 1)),
    "chmod": lambda pool, name: (pool.path(name) / "file").chmod(0o600),
    "xattr": lambda pool, name: os.setxattr(pool.path(name) / "file", "user.new", b"x"),
    "rename": lambda pool, name: (pool.path(name) / "to rename").rename(pool.path(name) / "renamed"),
    "delete": lambda pool, name: (pool.path(name) / "to delete").unlink(),
    "hard-link": lambda pool, name: os.link(pool.path(name) / "file", pool.path(name) / "linked"),
    "in-the-child": lambda pool, name: (pool.path(f"{name}/nested") / "file").write_text("changed"),
    "rollback": rollback,
    "receive": received,
    "promoted-clone-in-its-place": clone_in_its_place,
    "child-replaced": replaced,
}
"""By the name of the dataset that is changed."""


def test_every_change_is_read(pool: Pool, over: Skipping) -> None:
    """In one run, each in a dataset of its own with a child: a run takes 15 s in the emulated machine."""
    names = [*CHANGES, "unchanged"]
    for name in names:
        filled(pool, name)
        filled(pool, f"{name}/nested")
    command("zfs", "snapshot", "-r", f"{pool.name}@early")
    for name in names:
        (pool.path(name) / "file").touch()
    assert over(*names) == dict.fromkeys(names, False)
    for name, change in CHANGES.items():
        change(pool, name)
    assert over(*names) == {**dict.fromkeys(names, False), "unchanged": True}
    assert over(*names) == dict.fromkeys(names, True)


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
    assert (
        f"DATASET#{ownership.bookmark()}: 'zfs rollback' to an older snapshot is refused"
        in planned.stdout + planned.stderr
    )
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


def test_a_rollback_that_our_bookmark_refuses_is_named_by_recover(pool: Pool, skipping: Skipping, run: Runner) -> None:
    command("zfs", "snapshot", f"{pool.name}/data@older")
    assert skipping() == NEITHER
    refused = command("zfs", "rollback", f"{pool.name}/data@older", check=False)
    assert refused.returncode != 0
    assert ownership.bookmark() in refused.stderr
    ended = run("recover")
    assert ended.returncode == 0
    assert (
        "3 bookmark(s) of --skip-unchanged stay: 'zfs rollback' to an older snapshot is refused without -r"
        in ended.stdout
    )
    assert json.loads(run("recover", "--json").stdout)["bookmarks"] == 3
    command("zfs", "rollback", "-r", f"{pool.name}/data@older")
    assert len(bookmarks(pool)) == 2


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
