"""Whether a run is alive is told by its lock only to those that see the same lock directory; others leave it alone."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kopiatomic.state import ownership
from kopiatomic.system import linux
from tests.btrfs.conftest import Gate, kill_all_of
from tests.support.filesystems import Btrfs, patiently
from tests.support.other_run import recover_elsewhere
from tests.support.programs import Kopiatomic, command

pytestmark = pytest.mark.in_part(4)

OTHER_BOOT = "0f0f0f0f-0000-4000-8000-000000000000"


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    (btrfs.subvolume("data") / "file").write_text("x")
    return btrfs.mountpoint / "data"


@pytest.fixture
def alive(data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic) -> Iterator[str]:
    """A living run, whose engine runs; its id. It ends well with the test."""
    with kopiatomic.started("--mount-root", root, "-c", gate.command, data) as process:
        gate.wait()
        yield run_of(data)
        gate.let_go()
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors


@pytest.fixture
def dead(data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic) -> str:
    """A run whose processes were all killed while its engine ran; its id."""
    with kopiatomic.started("--mount-root", root, "-c", gate.command, data) as process:
        kill_all_of(process, gate)
    return run_of(data)


def run_of(data: Path) -> str:
    (folder,) = (data.parent / ".kopiatomic").iterdir()
    return folder.name.removeprefix("kopiatomic_")


def folder_of(btrfs: Btrfs, run_id: str) -> Path:
    return btrfs.mountpoint / ".kopiatomic" / f"kopiatomic_{run_id}"


def mark_of(btrfs: Btrfs, run_id: str) -> list[str]:
    # Earlier and later versions must find it: its name is for ever.
    return os.getxattr(folder_of(btrfs, run_id), "trusted.kopiatomic.run").decode().split("@")


def remark(btrfs: Btrfs, tmp_path: Path, run_id: str, mark: str, *, recorded: str | None = None) -> None:
    """Give a run another mark, on its folder and in its record."""
    os.setxattr(folder_of(btrfs, run_id), ownership.ATTRIBUTE, mark.encode())
    with sqlite3.connect(tmp_path / "state" / "state.db") as database:
        database.execute("UPDATE run SET mark = ? WHERE id = ?", (mark if recorded is None else recorded, run_id))


def test_a_mark_names_run_host_boot_and_lock_directory(alive: str, btrfs: Btrfs, tmp_path: Path) -> None:
    named = Path("/run/kopiatomic/id").read_text()
    assert mark_of(btrfs, alive) == [alive, ownership.host_id(), linux.boot_id(), named]
    with sqlite3.connect(tmp_path / "state" / "state.db") as database:
        assert database.execute("SELECT mark FROM run").fetchall() == [("@".join(mark_of(btrfs, alive)),)]


def test_a_living_run_elsewhere_with_other_records_is_known_by_the_lock_on_its_folder(
    alive: str, kopiatomic: Kopiatomic, btrfs: Btrfs, tmp_path: Path
) -> None:
    """As a host sees the run of a container that has its own /run and /var: it is nothing that is left."""
    for more in ([], ["--dry-run"], ["--unrecorded", "--received"]):
        code, document = recover_elsewhere(kopiatomic, "--state-dir", tmp_path / "other", *more)
        assert (code, document["leftovers"]) == (0, []), (more, document)
    code, document = recover_elsewhere(kopiatomic, "--state-dir", tmp_path / "other", "--assume-dead", alive)
    assert code == 4, document
    assert "a process has locked" in str(document)
    assert len(btrfs.snapshots()) == 1


def test_a_living_run_elsewhere_on_the_same_records_is_left_and_named_whatever_is_assumed(
    alive: str, kopiatomic: Kopiatomic, btrfs: Btrfs
) -> None:
    """With the same host, boot, filesystems and records, but a /run of its own, as in a container."""
    for more in ([], ["--dry-run"], ["--unrecorded", "--received"], ["--assume-dead", alive]):
        code, document = recover_elsewhere(kopiatomic, *more)
        assert code == 4, (more, document)
        assert alive in str(document)
        assert not any(leftover["done"] for leftover in document["leftovers"])
        assert len(btrfs.snapshots()) == 1
    assert "a process has locked" in str(document)


def test_a_run_that_cannot_be_judged_stays_on_record_for_those_who_can(
    alive: str, kopiatomic: Kopiatomic, btrfs: Btrfs
) -> None:
    _, document = recover_elsewhere(kopiatomic)
    assert (document["unjudged"], document["interrupted"]) == ([alive], [])
    assert '"result": "running"' in kopiatomic("history", "--json").stdout
    assert "running" in kopiatomic("history").stdout


def test_a_dead_run_elsewhere_goes_when_it_is_said_to_be_dead(dead: str, kopiatomic: Kopiatomic, btrfs: Btrfs) -> None:
    code, document = recover_elsewhere(kopiatomic)
    assert (code, document["unjudged"]) == (4, [dead])
    assert len(btrfs.snapshots()) == 1
    code, document = recover_elsewhere(kopiatomic, "--assume-dead", dead)
    assert code == 0, document
    assert btrfs.snapshots() == []


def test_no_run_outlives_its_boot(dead: str, kopiatomic: Kopiatomic, btrfs: Btrfs, tmp_path: Path) -> None:
    run_id, host, _, directory = mark_of(btrfs, dead)
    remark(btrfs, tmp_path, dead, f"{run_id}@{host}@{OTHER_BOOT}@{directory}")
    code, document = recover_elsewhere(kopiatomic)
    assert code == 0, document
    assert btrfs.snapshots() == []


def test_a_container_of_another_name_is_no_other_host(
    dead: str, kopiatomic: Kopiatomic, btrfs: Btrfs, tmp_path: Path
) -> None:
    """Its host id is another one, since its name is, and its boot id says that it is this machine."""
    run_id, _, boot, directory = mark_of(btrfs, dead)
    remark(btrfs, tmp_path, dead, f"{run_id}@{'0' * 16}@{boot}@{directory}")
    code, document = recover_elsewhere(kopiatomic, "--state-dir", tmp_path / "other", "--received")
    assert (code, document["received"]) == (4, 0)
    assert len(btrfs.snapshots()) == 1


def test_a_lock_directory_that_was_removed_meanwhile_is_another_one(
    alive: str, kopiatomic: Kopiatomic, btrfs: Btrfs
) -> None:
    aside = Path("/run/kopiatomic.aside")
    with moved("/run/kopiatomic", aside):
        code, document = kopiatomic("recover", "--json").returncode, kopiatomic("recover", "--json").stdout
        assert code == 4, document
        assert alive in document
        assert len(btrfs.snapshots()) == 1


@contextmanager
def moved(directory: str, aside: Path) -> Iterator[None]:
    """A mount of this test's at the directory, as where it was removed and made anew."""
    command("mount", "-t", "tmpfs", "-o", "mode=700", "none", directory)
    try:
        yield
    finally:
        command("umount", directory)
        assert not aside.exists()


def test_marks_and_records_of_earlier_versions_go_by_the_lock_alone(
    dead: str, kopiatomic: Kopiatomic, btrfs: Btrfs, tmp_path: Path
) -> None:
    remark(btrfs, tmp_path, dead, f"{dead}@{ownership.host_id()}", recorded="")
    code, document = recover_elsewhere(kopiatomic)
    assert code == 0, document
    assert btrfs.snapshots() == []


def test_an_earlier_versions_folder_off_the_record_goes_by_its_mark(
    dead: str, kopiatomic: Kopiatomic, btrfs: Btrfs, tmp_path: Path
) -> None:
    remark(btrfs, tmp_path, dead, f"{dead}@{ownership.host_id()}", recorded="")
    code, document = recover_elsewhere(kopiatomic, "--state-dir", tmp_path / "other")
    assert code == 0, document
    assert btrfs.snapshots() == []


def test_what_another_hosts_run_left_is_counted_and_goes_when_asked(
    dead: str, kopiatomic: Kopiatomic, btrfs: Btrfs, tmp_path: Path
) -> None:
    run_id, _, _, directory = mark_of(btrfs, dead)
    remark(btrfs, tmp_path, dead, f"{run_id}@{'0' * 16}@{OTHER_BOOT}@{directory}")
    (tmp_path / "state" / "state.db").unlink()
    ended = kopiatomic("recover")
    assert (ended.returncode, len(btrfs.snapshots())) == (0, 1)
    assert "Nothing of this host is left; 1 snapshot of other hosts' runs" in ended.stdout
    listed = kopiatomic("recover", "--received", "--dry-run")
    assert (listed.returncode, len(btrfs.snapshots())) == (4, 1)
    assert f"kopiatomic_{run_id}/0/snapshot" in listed.stdout
    assert kopiatomic("recover", "--received").returncode == 0
    assert btrfs.snapshots() == []


def test_the_lock_on_a_folder_keeps_no_mount_of_the_hosts_busy(
    make_btrfs: Callable[[], Btrfs], root: Path, gate: Gate, kopiatomic: Kopiatomic, tmp_path: Path
) -> None:
    """A second mount of the filesystem, which the run does not take, can be unmounted while the run lives."""
    filesystem = make_btrfs()
    filesystem.subvolume("data")
    again = tmp_path / "again"
    again.mkdir()
    command("mount", "-o", "subvol=data", filesystem.device, again)
    with kopiatomic.started("--mount-root", root, "-c", gate.command, filesystem.mountpoint / "data") as process:
        gate.wait()
        patiently("umount", str(again))
        patiently("umount", str(filesystem.mountpoint))
        gate.let_go()
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
    command("mount", "-o", "loop,noatime", filesystem.image, filesystem.mountpoint)
    assert filesystem.snapshots() == []


def test_only_the_whole_id_of_a_run_is_assumed_to_be_dead(kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic("recover", "--assume-dead", "2026")
    assert ended.returncode == 2
    assert "the whole id of a run" in ended.stderr


def test_a_run_that_cannot_be_judged_is_not_forgotten(
    dead: str, kopiatomic: Kopiatomic, tmp_path: Path, btrfs: Btrfs
) -> None:
    run_id, host, boot, _ = mark_of(btrfs, dead)
    remark(btrfs, tmp_path, dead, f"{run_id}@{host}@{boot}@{'0' * 16}")
    Path(f"/run/kopiatomic/run-{dead}").unlink()
    ended = kopiatomic("recover", "--forget", dead)
    assert ended.returncode == 1, ended
    assert f"--assume-dead {dead}" in ended.stderr
    assert "unknown" in kopiatomic("history").stdout
    assert kopiatomic("recover", "--forget", dead, "--assume-dead", dead).returncode == 0
    assert btrfs.snapshots() == []
