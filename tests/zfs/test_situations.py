"""Pools, users and hosts in odd states: the backup is whole, or the run says what it lacks; and nothing is left."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import pytest

from tests.support.filesystems import Pool, imported_pool, patiently
from tests.support.programs import Completed, command
from tests.support.without_root import as_anybody
from tests.zfs.runs import Runner

pytestmark = pytest.mark.in_part(7)


def read(path: Path, out: Path, then: str = "") -> str:
    """An engine that copies a frozen file out of a merged view."""
    script = out.with_suffix(".sh")
    script.write_text(f'cat "$1{path}" > {out}\n{then}\n')
    return f"sh -e {script}"


def as_user(*words: str) -> Completed:
    """kopiatomic as a user, who may do nothing but what was delegated."""
    argv = [sys.executable, "-m", "kopiatomic", *words]
    return command(*as_anybody(*argv), env={**os.environ, "HOME": "/nonexistent"}, check=False)


def test_a_pool_without_any_feature(run: Runner, tmp_path: Path) -> None:
    with imported_pool(tmp_path / "old", features=False) as pool:
        pool.dataset("home")
        (pool.path("home") / "file").write_text("then")
        ended, document = run.json("-c", read(pool.path("home") / "file", tmp_path / "copy"), "-r", pool.name)
        assert ended.returncode == 0, ended
        assert document["atomic"] is True
        assert (tmp_path / "copy").read_text() == "then"
        assert run.left(pool) == []


def test_names_with_spaces(run: Runner, tmp_path: Path) -> None:
    name, image = f"a pool {secrets.token_hex(3)}", tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(128 << 20)
    point = tmp_path / "a mount point"
    command("zpool", "create", "-o", "cachefile=none", "-O", f"mountpoint={point}", name, image)
    try:
        command("zfs", "create", f"{name}/my home")
        (point / "my home/file").write_text("then")
        engine = tmp_path / "engine.sh"
        engine.write_text(f'find "$1" -name file > {tmp_path}/found\n')
        for words in ([f"{name}/my home"], [str(point / "my home")], ["-r", name]):
            ended = run("-c", f"sh {engine}", *words)
            assert ended.returncode == 0, ended
            assert (tmp_path / "found").read_text() == f"/kopia{point}/my home/file\n"
        listed = command("zfs", "list", "-H", "-t", "snapshot", "-o", "name", "-r", name).stdout
        assert listed == ""
    finally:
        patiently("zpool", "destroy", "-f", name)


def test_a_user_with_delegated_rights_is_told_that_mounting_needs_root(pool: Pool) -> None:
    command("zfs", "allow", "nobody", "snapshot,destroy,hold,release,mount,userprop", pool.name)
    refused = as_user("-c", "true", pool.name)
    assert refused.returncode == 1
    assert "making and mounting snapshots needs root" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert pool.snapshots() == []


def test_a_proc_that_hides_other_users_processes(pool: Pool, run: Runner, tmp_path: Path) -> None:
    pool.dataset("home")
    (pool.path("home") / "file").write_text("then")
    command("mount", "-o", "remount,hidepid=2", "/proc")
    try:
        ended = run("-c", read(pool.path("home") / "file", tmp_path / "copy"), f"{pool.name}/home")
        assert ended.returncode == 0, ended
        assert (tmp_path / "copy").read_text() == "then"
    finally:
        command("mount", "-o", "remount,hidepid=0", "/proc")
    assert run.left(pool) == []


@pytest.mark.parametrize(
    "what",
    [
        "zfs unmount {pool}/home",
        "zfs set mountpoint=none {pool}/home",
        "zfs promote {pool}/clone",
        "zpool scrub {pool}",
        "zfs snapshot -r {pool}@another",
        "zfs destroy -r {pool}@before",
        "zfs send {pool}/home@before | zfs receive {pool}/received",
    ],
)
def test_what_an_administrator_does_meanwhile_bends_no_backup(
    what: str, pool: Pool, run: Runner, tmp_path: Path
) -> None:
    home = pool.dataset("home")
    (pool.path("home") / "file").write_text("then")
    command("zfs", "snapshot", "-r", f"{pool.name}@before")
    if "clone" in what:
        command("zfs", "clone", f"{home}@before", f"{pool.name}/clone")
    # The copy is made after it.
    file, copy = pool.path("home") / "file", tmp_path / "copy"
    engine = tmp_path / "engine.sh"
    engine.write_text(f'( {what.format(pool=pool.name)} ) > {tmp_path}/said 2>&1 || true\ncat "$1{file}" > {copy}\n')
    ended = run("-c", f"sh -e {engine}", home)
    assert ended.returncode == 0, (ended, (tmp_path / "said").read_text())
    assert copy.read_text() == "then"
    assert [name for name in pool.snapshots() if "kopiatomic_" in name] == []
