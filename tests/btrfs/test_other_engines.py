"""restic and Borg on frozen trees: true paths, nothing read again, restored as it was, one instant."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.btrfs.conftest import Family, wait_for
from tests.btrfs.test_backups import populate
from tests.btrfs.test_in_place import InPlace, in_place, mounted
from tests.btrfs.test_instant import is_torn, writer
from tests.support.filesystems import Btrfs
from tests.support.parts import share
from tests.support.programs import Completed, Kopiatomic, command
from tests.support.repositories import Borg, Restic
from tests.support.schema import valid

pytestmark = pytest.mark.in_part(3)

__all__ = ["in_place"]

Leftovers = Callable[..., list[str]]
ZONE = "America/New_York"
RUNS = int(os.environ.get("KOPIATOMIC_TEST_TORN_RUNS", str(share(3, 1))))
"""A run with Borg takes some seconds."""


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    """A subvolume with all that files have, one nested in it, and in that a file younger than all others."""
    data = btrfs.subvolume("data")
    nested = btrfs.subvolume("data/nested")
    for folder in (data, nested):
        populate(folder)
        os.setxattr(folder / "dir", "user.kopiatomic", b"\x00of a folder")
        os.setxattr(folder / "setuid", "user.kopiatomic", b"of a file")
    time.sleep(0.05)
    (nested / "late").touch()
    return data


@pytest.fixture
def other(btrfs: Btrfs) -> Path:
    other = btrfs.subvolume("other")
    (other / "file").write_text("other")
    return other


def exactly(folder: Path) -> dict[str, tuple[object, ...]]:
    """All that a restore must bring back, of each entry."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
        place = str(path.relative_to(folder))
        owner = (status.st_uid, status.st_gid)
        found[place] = (stat.filemode(status.st_mode), owner, status.st_mtime_ns, content, attributes)
    return found


def files_below(*folders: Path) -> int:
    return sum(1 for folder in folders for p in folder.rglob("*") if stat.S_ISREG(p.lstat().st_mode))


def test_true_paths_and_nothing_is_read_again(
    repository: Restic | Borg, data: Path, other: Path, in_place: InPlace, tmp_path: Path
) -> None:
    before = {path: exactly(path) for path in (data, other)}
    documents = []
    for _ in range(2):
        ended, document = in_place(*repository.words, "-r", data, other, env={**repository.environment, "TZ": ZONE})
        assert ended.returncode == 0, str(ended)
        documents.append(document)
    first, second = (document["engine"] for document in documents)
    assert (first["name"], first["saved"], first["complete"]) == (repository.engine, True, True)
    assert [s["source"] for s in first["sources"]] == [str(data), str(other)]

    kept = repository.kept(ZONE)
    assert [k.id for k in kept] == [first["snapshot_id"], second["snapshot_id"]]
    for one, document in zip(kept, documents, strict=True):
        assert set(one.paths) == {str(data), str(other)}
        instant = datetime.strptime(document["instant"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        assert one.time == instant.astimezone(ZoneInfo(ZONE)).strftime("%Y-%m-%dT%H:%M:%S")

    count = files_below(data, other)
    assert first["statistics"]["files_total"] == count
    # Borg never keeps in mind the files with the newest ctime.
    newest = 0 if repository.engine == "restic" else 1
    assert second["statistics"]["files_cached"] == count - newest
    assert second["statistics"]["files_hashed"] == newest
    print(f"{repository.engine}: {second['statistics'].get('bytes_added')} bytes of metadata in the second run")

    target = tmp_path / "restored"
    repository.restore(second["snapshot_id"], target)
    for path, wanted in before.items():
        assert exactly(target / str(path).lstrip("/")) == wanted


def test_merged_as_well(
    repository: Restic | Borg, data: Path, run: Callable[..., Completed], root: Path, leftovers: Leftovers
) -> None:
    ended = run("--json", *repository.words, "-r", data, env=repository.environment)
    assert ended.returncode == 0, str(ended)
    document = valid(ended.stdout)
    (kept,) = repository.kept()
    assert kept.paths == (str(root),)
    # restic and Borg lose nothing of these: the metadata record has its list alone.
    assert document["engine"]["statistics"]["files_total"] == files_below(data) + 1
    assert leftovers(root) == []


def test_what_is_hidden_and_was_in_the_last_one_is_named(
    repository: Restic | Borg, data: Path, other: Path, in_place: InPlace
) -> None:
    def hidden(*words: str | Path) -> list[str]:
        ended, document = in_place(*repository.words, *words, data, other, env=repository.environment)
        assert ended.returncode == 0, str(ended)
        return [warning for warning in document["warnings"] if "hidden from this backup" in warning]

    full, empty = data / "full [1]", data / "empty"
    for folder in (full, empty):
        folder.mkdir()
    with mounted("-t", "tmpfs", "none", full), mounted("-t", "tmpfs", "none", empty):
        (full / "file").write_text("live")
        assert hidden("--only-frozen") == []
        assert hidden() == []
        (warning,) = hidden("--only-frozen")
        was_in = f"was in {repository.engine}'s last one of {data}"
        assert f"{full} (tmpfs) is hidden from this backup, and {was_in}" in warning
        assert hidden("--only-frozen") == []


def test_the_summary_names_what_was_kept(repository: Restic | Borg, data: Path, kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic("--layout", "in-place", *repository.words, "-r", data, env=repository.environment)
    assert ended.returncode == 0, str(ended)
    word = {"restic": "snapshot", "borg": "archive"}[repository.engine]
    # One more than there are: the metadata record, which has its list alone.
    assert f"{word} {repository.kept()[0].id}, {files_below(data) + 1} files" in ended.stdout


def test_its_own_folders_in_what_is_backed_up(
    repository: Restic | Borg, btrfs: Btrfs, in_place: InPlace, tmp_path: Path
) -> None:
    """Cache and all: as a user has it, whose home directory is backed up."""
    home = btrfs.subvolume("home")
    (home / "file").write_text("x")
    environment = {k: v for k, v in repository.environment.items() if k not in {"RESTIC_CACHE_DIR", "BORG_BASE_DIR"}}
    environment["HOME"] = str(home)
    (home / "state").mkdir()
    (home / "state" / "file").write_text("live")
    for _ in range(2):
        ended, document = in_place(*repository.words, "--writable", home / "state", home, env=environment)
        assert ended.returncode == 0, str(ended)
    cache = home / ".cache" / repository.engine
    assert any(cache.iterdir())
    repository.restore(document["engine"]["snapshot_id"], tmp_path / "restored")
    restored = tmp_path / "restored" / str(home).lstrip("/")
    assert (restored / "file").read_text() == "x"
    assert list((restored / "state").iterdir()) == []
    # Of their own accord both leave the folder of their cache out as well.
    assert list((restored / ".cache").rglob("*")) == []
    if repository.engine == "borg":
        assert list((restored / ".config" / "borg" / "security").iterdir()) == []


def test_a_repository_in_a_source_is_refused_unless_it_is_left_out(
    repository: Restic | Borg, btrfs: Btrfs, in_place: InPlace, tmp_path: Path
) -> None:
    home = btrfs.subvolume("home")
    (home / "file").write_text("x")
    inside = home / "repository"
    repository.path.rename(tmp_path / "moved")
    command("cp", "-a", tmp_path / "moved", inside)
    more = {"RESTIC_REPOSITORY": str(inside), "BORG_REPO": str(inside), "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"}
    environment = {**repository.environment, **more}
    ended, document = in_place(*repository.words, home, env=environment)
    assert ended.returncode == 1
    assert document["error"]["kind"] == "own-in-source"
    assert f"--exclude={inside}" in document["error"]["hint"]
    assert document["sets"] == []
    ended, document = in_place(*repository.words, f"--options=--exclude={inside}", home, env=environment)
    assert ended.returncode == 0, str(ended)


def test_an_engine_that_is_killed_has_saved_nothing(
    repository: Restic | Borg, btrfs: Btrfs, kopiatomic: Kopiatomic, leftovers: Leftovers, root: Path
) -> None:
    data = btrfs.subvolume("data")
    with (data / "noise").open("wb") as file:
        for _ in range(120):
            file.write(os.urandom(1 << 20))
    words = ["--json", "--layout", "in-place", *repository.words, str(data)]
    with kopiatomic.started(*words, env=repository.environment) as process:
        stored = repository.path / "data"
        before = sum(1 for p in stored.rglob("*") if p.is_file())
        wait_for(lambda: sum(1 for p in stored.rglob("*") if p.is_file()) > before, "storing")
        os.kill(Family.of(process.pid).engine, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=60)
    document: Any = valid(stdout)
    assert process.returncode == 1, stderr
    assert document["error"]["kind"] == "engine-failed"
    assert "SIGKILL" in document["error"]["message"]
    assert document["engine"]["saved"] is False
    if repository.engine == "borg":
        # A later run finds its lock, and does not take it for that of a process here.
        again = kopiatomic(*words, env=repository.environment)
        assert valid(again.stdout)["error"]["kind"] == "borg-locked"
        repository("break-lock")
    assert repository.kept() == []
    assert leftovers(root) == []


def test_ctrl_c_ends_it_in_order(repository: Restic | Borg, btrfs: Btrfs, kopiatomic: Kopiatomic) -> None:
    data = btrfs.subvolume("data")
    with (data / "noise").open("wb") as file:
        for _ in range(120):
            file.write(os.urandom(1 << 20))
    with kopiatomic.started("--layout", "in-place", *repository.words, data, env=repository.environment) as process:
        stored = repository.path / "data"
        before = sum(1 for p in stored.rglob("*") if p.is_file())
        wait_for(lambda: sum(1 for p in stored.rglob("*") if p.is_file()) > before, "storing")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    # It has given its locks back: nothing is in the way of the next one.
    assert repository.kept() == []
    ended = kopiatomic("--layout", "in-place", *repository.words, data, env=repository.environment)
    assert ended.returncode == 0, str(ended)


@pytest.mark.in_part(1)
def test_none_is_torn(repository: Restic | Borg, btrfs: Btrfs, kopiatomic: Kopiatomic, tmp_path: Path) -> None:
    """With the control: the same program on the live files."""
    data = btrfs.subvolume("data")
    files = [data / str(number) for number in range(8)]
    for number, file in enumerate(files):
        # Between them others, so that it takes a while to come from one to the next: in the order of names, in which restic
        # reads, and of inodes, in which Borg does.
        file.touch()
        (data / f"{number}x").write_bytes(os.urandom(4 << 20))
    torn = torn_live = 0
    seen = set()
    with writer(files):
        for _ in range(RUNS):
            ended = kopiatomic(
                "--json",
                "--require-atomic",
                "--layout",
                "in-place",
                *repository.words,
                data,
                env=repository.environment,
            )
            assert ended.returncode == 0, str(ended)
            numbers = numbers_in(repository, valid(ended.stdout)["engine"]["snapshot_id"], files)
            seen.add(numbers[0])
            torn += is_torn(numbers)
        for number in range(5):
            live = {"restic": ["backup", "--force"], "borg": ["create", "--files-cache=disabled", f"::live{number}"]}[
                repository.engine
            ]
            repository(*live, data, check=False)
            torn_live += is_torn(numbers_in(repository, repository.kept()[-1].id, files))
    print(f"{repository.engine}: {RUNS} runs, {torn} torn; {torn_live} of 5 live ones")
    assert torn == 0
    assert len(seen) == RUNS, "the writer did not write"
    assert torn_live > 0, "the control found nothing: the test shows nothing"


def numbers_in(repository: Restic | Borg, snapshot: str, files: list[Path]) -> list[int]:
    """The counters in a snapshot."""
    if repository.engine == "restic":
        return [int(repository("dump", snapshot, file).stdout) for file in files]
    paths = [str(file).lstrip("/") for file in files]
    text = repository("extract", "--stdout", f"::{snapshot}", *paths).stdout
    return [int(text[i : i + 20]) for i in range(0, len(text), 20)]
