"""--skip-unchanged on Btrfs: what has changed in any way is read, and nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.btrfs.conftest import Gate
from tests.btrfs.test_in_place import InPlace, in_place, mounted
from tests.support.filesystems import Btrfs
from tests.support.programs import Kopia, Kopiatomic, command, kopia_in

pytestmark = pytest.mark.in_part(2)

__all__ = ["in_place"]

Skipping = Callable[..., dict[str, bool]]


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    """A subvolume with one nested in it."""
    data = btrfs.subvolume("data")
    (data / "file").write_text("content")
    (data / "other").write_text("other")
    (data / "folder").mkdir()
    (btrfs.subvolume("data/nested") / "file").write_text("nested")
    return data


@pytest.fixture
def home(btrfs: Btrfs) -> Path:
    home = btrfs.subvolume("home")
    (home / "file").write_text("of home")
    return home


@pytest.fixture
def over(in_place: InPlace, kopia: Kopia) -> Skipping:
    """A run over the sources named and what is nested in them; which of them were skipped."""

    def run(*words: str | Path, environment: dict[str, str] = kopia.environment, code: int = 0) -> dict[str, bool]:
        ended, document = in_place("--no-maintenance", "--skip-unchanged", "-r", *words, env=environment)
        assert ended.returncode == code, ended
        return {Path(one["source"]).name: one["unchanged"] for one in document["engine"]["sources"]}

    return run


@pytest.fixture
def skipping(over: Skipping, data: Path, home: Path) -> Skipping:
    """A run over both. Each has a complete snapshot of what is there now."""
    return lambda *words, **more: over(*words, data, home, **more)


NEITHER = {"data": False, "home": False}
BOTH = {"data": True, "home": True}
HOME = {"data": False, "home": True}


@pytest.fixture
def settled(skipping: Skipping) -> Skipping:
    """Everything is saved, and the next run skips everything."""
    assert skipping() == NEITHER
    assert skipping() == BOTH
    return skipping


def test_what_is_unchanged_is_not_read_again(
    settled: Skipping, data: Path, home: Path, kopia: Kopia, in_place: InPlace, tmp_path: Path
) -> None:
    before = kopia.json("snapshot", "list", "--all")
    words = ["--no-maintenance", "--skip-unchanged", "-r", data, home]
    _, document = in_place(*words, env=kopia.environment)
    assert kopia.json("snapshot", "list", "--all") == before
    assert (document["result"], document["engine"]["argv"], document["engine"]["status"]) == ("saved", [], None)
    ids = {one["source"]["path"]: one["id"] for one in before}
    assert {one["source"]: one["snapshot_id"] for one in document["engine"]["sources"]} == ids
    (home / "file").write_text("changed")
    _, document = in_place(*words, env=kopia.environment)
    told = {one["source"]: one for one in document["engine"]["sources"]}
    assert [told[str(p)]["unchanged"] for p in (data, home)] == [True, False]
    assert (told[str(data)]["snapshot_id"], told[str(data)]["complete"]) == (ids[str(data)], True)
    assert str(data) not in document["engine"]["argv"]
    kopia("snapshot", "restore", told[str(home)]["snapshot_id"], tmp_path / "restored")
    assert (tmp_path / "restored" / "file").read_text() == "changed"


def test_the_summary_names_what_stands(
    settled: Skipping, data: Path, home: Path, kopiatomic: Kopiatomic, kopia: Kopia
) -> None:
    words = ["--layout", "in-place", "--no-maintenance", "--skip-unchanged", "-r"]
    ended = kopiatomic(*words, data, home, env=kopia.environment)
    for snapshot in kopia.json("snapshot", "list", "--all"):
        assert (
            f"{snapshot['source']['path']}: unchanged, not read: this stands for it: snapshot {snapshot['id']}"
            in ended.stdout
        )
    history = kopiatomic("history", "--json", "--limit", "1").stdout
    assert '"unchanged": true' in history


def attribute(data: Path) -> None:
    os.setxattr(data / "file", "user.new", b"x")


def reflink(data: Path) -> None:
    command("cp", "--reflink=always", "--no-preserve=all", data / "other", data / "file")


def at_once_behind_a_run(data: Path) -> None:
    """Written and not synced: the snapshot has it all the same."""
    with open(data / "file", "r+") as file:
        file.write("C")


def in_place_without_copy_on_write(data: Path) -> None:
    status = os.stat(data / "nocow")
    with open(data / "nocow", "r+b", buffering=0) as file:
        file.write(b"y")
        os.fsync(file.fileno())
    os.utime(data / "nocow", ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(data: Path) -> None:
    """By another subvolume of the same name with the same content."""
    command("btrfs", "subvolume", "snapshot", data / "nested", data.parent / "copy")
    command("btrfs", "subvolume", "delete", data / "nested")
    os.rename(data.parent / "copy", data / "nested")


CHANGES: dict[str, Callable[[Path], Any]] = {
    "content": lambda data: (data / "file").write_text("changed"),
    "content of the same size and times": at_once_behind_a_run,
    "content of a file without copy on write": in_place_without_copy_on_write,
    "mtime only": lambda data: os.utime(data / "file", (1, 1)),
    "chmod": lambda data: (data / "file").chmod(0o600),
    "chown": lambda data: os.chown(data / "file", 1, 1),
    "xattr": attribute,
    "rename": lambda data: (data / "to rename").rename(data / "renamed"),
    "delete": lambda data: (data / "to delete").unlink(),
    "mkdir": lambda data: (data / "empty").mkdir(),
    "rmdir": lambda data: (data / "to remove").rmdir(),
    "hard link": lambda data: os.link(data / "file", data / "linked"),
    "reflink": reflink,
    "a new nested subvolume": lambda data: command("btrfs", "subvolume", "create", data / "folder" / "new"),
    "in the nested subvolume": lambda data: (data / "nested" / "file").write_text("changed"),
    "the nested subvolume replaced": replaced,
    "somebody's snapshot of it": lambda data: command("btrfs", "subvolume", "snapshot", "-r", data, data.parent / "s"),
}


def test_every_change_is_read(btrfs: Btrfs, over: Skipping) -> None:
    """In one run, each in a subvolume of its own with one nested in it."""
    subvolumes = {change: btrfs.subvolume(change) for change in [*CHANGES, "nothing"]}
    for subvolume in subvolumes.values():
        for name in ("file", "other", "to rename", "to delete"):
            (subvolume / name).write_text(name)
        for name in ("folder", "to remove"):
            (subvolume / name).mkdir()
        (btrfs.subvolume(str(subvolume.relative_to(btrfs.mountpoint) / "nested")) / "file").write_text("nested")
        (subvolume / "nocow").touch()
        command("chattr", "+C", subvolume / "nocow")
        (subvolume / "nocow").write_bytes(b"x" * 8192)

    assert over(*subvolumes.values()) == dict.fromkeys(subvolumes, False)
    assert over(*subvolumes.values()) == dict.fromkeys(subvolumes, True)
    for change, make in CHANGES.items():
        make(subvolumes[change])
    assert over(*subvolumes.values()) == {**dict.fromkeys(subvolumes, False), "nothing": True}
    assert over(*subvolumes.values()) == dict.fromkeys(subvolumes, True)


def test_a_snapshot_that_is_gone_does_not_stand(settled: Skipping, data: Path, kopia: Kopia) -> None:
    (snapshot,) = kopia.json("snapshot", "list", data)
    kopia("snapshot", "delete", snapshot["id"], "--delete")
    assert settled() == HOME


def test_another_repository_has_nothing_that_stands(settled: Skipping, tmp_path: Path) -> None:
    other = kopia_in(tmp_path / "other")
    other.repository.mkdir(parents=True)
    other("repository", "create", "filesystem", "--path", other.repository, "--no-persist-credentials")
    assert settled(environment=other.environment) == NEITHER
    assert settled(environment=other.environment) == BOTH


@pytest.mark.parametrize("words", [["--add-ignore=*.tmp"], ["--compression=zstd"]])
def test_another_policy_has_it_read(words: list[str], settled: Skipping, data: Path, kopia: Kopia) -> None:
    kopia("policy", "set", data, *words)
    assert settled() == HOME
    kopia("policy", "set", "--global", *words)
    assert settled() == NEITHER
    kopia("policy", "set", data / "folder", *words)
    assert settled() == HOME
    assert settled() == BOTH


def test_other_options_have_it_read(settled: Skipping) -> None:
    assert settled("-o", "--parallel=2") == NEITHER
    assert settled("-o", "--parallel=2") == BOTH


def test_an_incomplete_snapshot_does_not_stand(settled: Skipping, data: Path, kopia: Kopia) -> None:
    """kopia cannot read a folder where it is told to be nobody's error; root reads everything else."""
    (data / "file").write_text("changed")
    kopia("policy", "set", data, "--add-ignore=/nested")
    assert settled(code=3) == HOME
    assert settled(code=3) == HOME
    kopia("policy", "set", data, "--remove-ignore=/nested")
    assert settled() == HOME
    assert settled() == BOTH


def test_a_run_that_is_stopped_leaves_nothing_that_stands(
    settled: Skipping, data: Path, home: Path, kopia: Kopia, kopiatomic: Kopiatomic
) -> None:
    for folder in (data, home):
        (folder / "big").write_bytes(os.urandom(1 << 20))
    words = ["--layout", "in-place", "--no-maintenance", "--skip-unchanged", "-o", "--upload-limit-mb=1", "-r"]
    with kopiatomic.started(*words, data, home, env=kopia.environment) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert settled() == NEITHER


def test_what_is_not_frozen_is_read(settled: Skipping, data: Path) -> None:
    with mounted("-t", "tmpfs", "none", data / "folder"):
        assert settled() == HOME
        assert settled() == HOME
        assert settled("--only-frozen") == {"data": False, "home": False}
        assert settled("--only-frozen") == BOTH


def test_another_set_of_datasets_is_read(settled: Skipping, data: Path, btrfs: Btrfs) -> None:
    (btrfs.subvolume("data/more") / "file").write_text("more")
    assert settled() == HOME
    command("btrfs", "subvolume", "delete", data / "more")
    assert settled() == HOME


def test_a_database_that_cannot_be_used_has_all_read(settled: Skipping, tmp_path: Path) -> None:
    assert settled("--state-dir", str(tmp_path / "new")) == NEITHER


@pytest.mark.parametrize(
    "words",
    [["--layout", "merged"], ["--layout", "in-place", "-c", "true"], ["--layout", "in-place", "--engine", "restic"]],
)
def test_it_is_refused_elsewhere(words: list[str], data: Path, kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic("--skip-unchanged", *words, data)
    assert ended.returncode == 2
    assert "--skip-unchanged is for kopia and --layout in-place" in ended.stderr


def test_changes_right_at_the_snapshot_are_never_lost(
    data: Path, home: Path, kopia: Kopia, in_place: InPlace, make_gate: Callable[..., Gate]
) -> None:
    """Written while the snapshots are made and backed up: the next run reads it."""
    words = ["--no-maintenance", "--skip-unchanged", "-r", data, home]
    in_place(*words, env=kopia.environment)
    for number in range(3):
        hook = f"sh -c 'for i in $(seq 300); do echo {number}$i > {data}/file; done & sleep 0.1'"
        in_place("-p", hook, *words, env=kopia.environment)
        live = (data / "file").read_text()
        _, document = in_place(*words, env=kopia.environment)
        told = {one["source"]: one for one in document["engine"]["sources"]}
        objects = {one["id"]: one["rootEntry"]["obj"] for one in kopia.json("snapshot", "list", data)}
        shown = kopia("show", f"{objects[told[str(data)]['snapshot_id']]}/file").stdout
        assert shown == live
