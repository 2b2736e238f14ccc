"""What a dead run left goes with the next run or with ``recover``; what is not proven ours stays."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.state import ownership
from kopiatomic.system.btrfs import filesystem_uuid
from tests.btrfs.conftest import Gate, kill_all_of, wait_for
from tests.support.filesystems import Btrfs, patiently
from tests.support.programs import Completed, Kopiatomic, command
from tests.support.state_faults import read_only

pytestmark = pytest.mark.in_part(9)

Leftovers = Callable[..., list[str]]
Run = Callable[..., Completed]
LOCKS = Path("/run/kopiatomic")


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    (btrfs.subvolume("data") / "file").write_text("x")
    btrfs.subvolume("other")
    return btrfs.mountpoint / "data"


@pytest.fixture
def killed(data: Path, root: Path, make_gate: Callable[..., Gate], kopiatomic: Kopiatomic) -> Callable[[], str]:
    """A run whose processes were all killed at one moment, while its engine ran; its id."""

    def kill() -> str:
        gate = make_gate()
        with kopiatomic.started("--mount-root", root, "-c", gate.command, data, data.parent / "other") as process:
            kill_all_of(process, gate)
        (run_id,) = (name for name in map(run_in, (data.parent / ".kopiatomic").iterdir()) if name)
        return run_id

    return kill


def run_in(path: Path) -> str:
    return path.name.removeprefix("kopiatomic_")


@pytest.fixture
def recover(kopiatomic: Kopiatomic) -> Callable[..., Any]:
    """``recover --json``: exit code and document."""

    def recover(*args: str, **more: Any) -> tuple[int, Any]:
        ended = kopiatomic("recover", "--json", *args, **more)
        assert "Traceback" not in ended.stderr
        document = json.loads(ended.stdout)
        theirs = [o for o in document["leftovers"] if "another lock directory" in str(o["problem"])]
        # Tests that run beside these with a /run of their own leave things that are no affair of these.
        alone = document["left"] == len(theirs) > 0
        return 0 if alone else ended.returncode, document

    return recover


@contextmanager
def recovery_held_up(run_id: str, btrfs: Btrfs, kopiatomic: Kopiatomic) -> Iterator[subprocess.Popen[str]]:
    """A ``recover`` that has begun to clear a dead run, and waits: its filesystem is frozen until the end of the block."""
    # Not frozen by the program: it would be thawed with it.
    command("fsfreeze", "-f", btrfs.mountpoint)
    try:
        with kopiatomic.started("recover") as recovery:
            clearing = LOCKS / f"run-{run_id}"
            wait_for(lambda: clearing.exists() and clearing.read_text().startswith("clearing"), "the claim")
            yield recovery
    finally:
        command("fsfreeze", "-u", btrfs.mountpoint, check=False)


def snapshots_of(document: Any, btrfs: Btrfs) -> list[dict[str, Any]]:
    """What a document says of this test's filesystem alone: others' tests leave things behind on purpose as well."""
    fd = os.open(btrfs.mountpoint, os.O_RDONLY)
    try:
        uuid = filesystem_uuid(fd)
    finally:
        os.close(fd)
    return [leftover for leftover in document["leftovers"] if leftover["place"] == uuid]


def result(kopiatomic: Kopiatomic, run_id: str) -> tuple[str, int | None]:
    (run,) = json.loads(kopiatomic("history", run_id, "--json").stdout)["runs"]
    return run["result"], run["exit_code"]


def test_recover_says_first_and_then_removes(
    killed: Callable[[], str], recover: Any, btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path, leftovers: Leftovers
) -> None:
    run_id = killed()
    assert result(kopiatomic, run_id) == ("interrupted", None)
    before = sorted(btrfs.snapshots())
    code, said = recover("--dry-run")
    assert code == 4
    assert sorted(btrfs.snapshots()) == before != []
    listed = snapshots_of(said, btrfs)
    assert [leftover["name"] for leftover in listed] == [
        f".kopiatomic/kopiatomic_{run_id}/{n}/snapshot" for n in (0, 1)
    ]
    assert all("UUID" in leftover["proof"] and not leftover["done"] for leftover in listed)
    code, done = recover()
    assert code == 0, done
    assert all(leftover["done"] for leftover in snapshots_of(done, btrfs))
    assert (root.parent / "state" / "state.db").exists()
    assert result(kopiatomic, run_id) == ("interrupted", None)
    assert leftovers(root) == []
    assert recover()[1]["leftovers"] == []


def test_the_next_run_of_any_selection_clears_it(
    killed: Callable[[], str], run: Run, make_btrfs: Callable[[], Btrfs], root: Path, leftovers: Leftovers
) -> None:
    killed()
    elsewhere = make_btrfs().subvolume("elsewhere")
    ended = run("-c", "true", elsewhere)
    assert ended.returncode == 0, str(ended)
    assert "removed what run" in ended.stderr
    assert leftovers(root) == []


def without_its_folder(killed: Callable[[], str], ours: Path) -> None:
    """As a run leaves it that is killed between the making of the two directories, or between their removal."""
    folder = ours / f"kopiatomic_{killed()}"
    for place in list(folder.iterdir()):
        command("btrfs", "subvolume", "delete", place / "snapshot")
        place.rmdir()
    folder.rmdir()


def test_the_directory_that_runs_share_goes_as_well(
    killed: Callable[[], str], recover: Callable[..., Any], run: Run, btrfs: Btrfs, make_btrfs: Callable[[], Btrfs]
) -> None:
    ours = btrfs.mountpoint / ".kopiatomic"
    without_its_folder(killed, ours)
    _, document = recover("--dry-run")
    assert [o["name"] for o in snapshots_of(document, btrfs)] == [".kopiatomic"]
    _, document = recover()
    assert [o["done"] for o in snapshots_of(document, btrfs)] == [True]
    assert not ours.exists()
    without_its_folder(killed, ours)
    assert run("-c", "true", make_btrfs().subvolume("elsewhere")).returncode == 0
    assert not ours.exists()


def test_an_empty_directory_of_that_name_that_is_not_roots_alone_stays(
    killed: Callable[[], str], recover: Callable[..., Any], btrfs: Btrfs
) -> None:
    ours = btrfs.mountpoint / ".kopiatomic"
    without_its_folder(killed, ours)
    ours.chmod(0o755)
    _, document = recover()
    assert snapshots_of(document, btrfs) == []
    assert ours.exists()


def test_a_dry_run_clears_nothing(killed: Callable[[], str], run: Run, btrfs: Btrfs) -> None:
    killed()
    before = sorted(btrfs.snapshots())
    assert run("-n", "-c", "true", btrfs.mountpoint / "data").returncode == 0
    assert sorted(btrfs.snapshots()) == before


def test_without_its_record_a_run_only_tells_and_recover_removes(
    killed: Callable[[], str], run: Run, recover: Any, btrfs: Btrfs, root: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    run_id = killed()
    shutil.rmtree(tmp_path / "state")
    ended = run("-c", "true", btrfs.mountpoint / "data")
    assert ended.returncode == 0, str(ended)
    assert f"were left by run {run_id}, of which there is no record here" in ended.stderr
    assert "'kopiatomic recover' removes them" in ended.stderr
    assert len(btrfs.snapshots()) == 2
    code, document = recover()
    assert code == 0, document
    assert all("marked" in leftover["proof"] for leftover in snapshots_of(document, btrfs))
    assert leftovers(root) == []


def test_a_folder_with_another_hosts_mark_is_never_touched(
    killed: Callable[[], str], recover: Any, btrfs: Btrfs, tmp_path: Path
) -> None:
    run_id = killed()
    folder = btrfs.mountpoint / ".kopiatomic" / f"kopiatomic_{run_id}"
    os.setxattr(folder, ownership.ATTRIBUTE, f"{run_id}@0123456789abcdef".encode())
    shutil.rmtree(tmp_path / "state")
    assert snapshots_of(recover()[1], btrfs) == []
    assert len(btrfs.snapshots()) == 2


def test_a_snapshot_that_somebody_put_in_the_place_of_ours_stays(
    killed: Callable[[], str], recover: Any, btrfs: Btrfs, run: Run
) -> None:
    run_id = killed()
    place = btrfs.mountpoint / ".kopiatomic" / f"kopiatomic_{run_id}" / "0" / "snapshot"
    command("btrfs", "subvolume", "delete", place)
    command("btrfs", "subvolume", "create", place)
    (place / "precious").touch()
    code, document = recover()
    assert code == 4
    (problem,) = (o["problem"] for o in snapshots_of(document, btrfs) if not o["done"])
    assert "not the snapshot that the run made" in problem
    assert (place / "precious").exists()
    assert not (place.parent.parent / "1").exists()
    assert run("-c", "true", btrfs.mountpoint / "data").returncode == 0
    assert (place / "precious").exists()


def test_a_living_run_is_left_alone_also_by_one_with_other_records(
    data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic, recover: Any, btrfs: Btrfs, tmp_path: Path
) -> None:
    with kopiatomic.started("--mount-root", root, "-c", gate.command, data) as process:
        gate.wait()
        _, same = recover()
        _, other = recover("--state-dir", str(tmp_path / "other"))
        assert snapshots_of(same, btrfs) == snapshots_of(other, btrfs) == []
        assert len(same["alive"]) == 1
        assert len(btrfs.snapshots()) == 1
        gate.let_go()
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_a_filesystem_that_is_not_mounted_any_more_is_said_and_stays_on_record(
    killed: Callable[[], str], recover: Any, btrfs: Btrfs
) -> None:
    run_id = killed()
    patiently("umount", str(btrfs.mountpoint))
    try:
        code, document = recover()
        assert code == 4
        assert any("is not mounted" in problem and run_id in problem for problem in document["problems"])
    finally:
        command("mount", "-o", "loop,noatime", btrfs.image, btrfs.mountpoint)
    assert recover()[0] == 0
    assert btrfs.snapshots() == []


def test_directories_that_a_killed_run_made_go_and_what_others_put_there_stays(
    killed: Callable[[], str], recover: Any, root: Path, btrfs: Btrfs
) -> None:
    killed()
    assert root.is_dir()
    (root / "somebody's").touch()
    code, document = recover()
    assert code == 4
    (problem,) = (o["problem"] for o in document["leftovers"] if o["name"] == str(root))
    assert "not empty" in problem
    assert (root / "somebody's").exists()


def test_recover_without_anything_to_do(kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic("recover")
    assert ended.returncode == 0
    assert ended.stdout.endswith("Nothing is left.\n")


def test_recover_says_each_thing_with_its_proof(killed: Callable[[], str], kopiatomic: Kopiatomic, root: Path) -> None:
    run_id = killed()
    ended = kopiatomic("recover")
    assert ended.returncode == 0
    assert f"btrfs snapshot .kopiatomic/kopiatomic_{run_id}/0/snapshot\n  ours:   recorded, in the run's own" in (
        ended.stdout
    )
    assert f"directory {root}\n" in ended.stdout
    assert f"run {run_id} was interrupted" in ended.stdout


def test_recover_needs_a_record_that_it_can_understand(kopiatomic: Kopiatomic, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    with sqlite3.connect(tmp_path / "state" / "state.db") as database:
        database.execute("PRAGMA user_version = 99")
    ended = kopiatomic("recover")
    assert ended.returncode == 1
    assert "a newer kopiatomic wrote" in ended.stderr


def test_recover_looks_by_itself_where_the_records_cannot_be_used(
    killed: Callable[[], str], kopiatomic: Kopiatomic, btrfs: Btrfs, tmp_path: Path
) -> None:
    """It then cannot say that nothing is left, since what is recorded is not known."""
    killed()
    (tmp_path / "state").chmod(0o777)
    ended = kopiatomic("recover")
    assert ended.returncode == 4, ended
    assert "not one that only root can write to" in ended.stderr
    assert btrfs.snapshots() == []


def test_a_second_recovery_says_that_a_first_one_is_at_work(
    killed: Callable[[], str], recover: Any, btrfs: Btrfs, kopiatomic: Kopiatomic
) -> None:
    """What the first one is to remove is still there."""
    run_id = killed()
    with recovery_held_up(run_id, btrfs, kopiatomic) as first:
        for flags in ((), ("--dry-run",)):
            code, document = recover(*flags)
            assert code == 4
            assert any(f"what run {run_id} left is being removed by process" in p for p in document["problems"])
            assert run_id not in document["alive"]
        command("fsfreeze", "-u", btrfs.mountpoint)
        first.communicate(timeout=60)
    assert first.returncode == 0
    assert btrfs.snapshots() == []


def test_ctrl_c_ends_a_recovery_that_waits_and_the_removal_goes_on(
    killed: Callable[[], str], recover: Any, btrfs: Btrfs, kopiatomic: Kopiatomic
) -> None:
    with recovery_held_up(killed(), btrfs, kopiatomic) as first:
        first.send_signal(signal.SIGINT)
        output, _ = first.communicate(timeout=10)
    assert first.returncode == 130
    assert "Nothing is left" not in output
    wait_for(lambda: not btrfs.snapshots(), "the removal")
    wait_for(lambda: recover()[0] == 0, "the end of the removal")


def test_a_run_that_began_on_the_same_root_meanwhile_keeps_its_view(
    killed: Callable[[], str],
    btrfs: Btrfs,
    make_btrfs: Callable[[], Btrfs],
    kopiatomic: Kopiatomic,
    root: Path,
    make_gate: Callable[..., Gate],
) -> None:
    """The root of a dead run is another one's by the time that its snapshots are gone."""
    other = make_btrfs().subvolume("other")
    gate = make_gate()
    words = ("--mount-root", root, "-c", gate.command, other)
    with recovery_held_up(killed(), btrfs, kopiatomic) as recovery, kopiatomic.started(*words) as run:
        gate.wait()
        command("fsfreeze", "-u", btrfs.mountpoint)
        recovery.communicate(timeout=60)
        assert root.is_dir()
        gate.let_go()
        _, errors = run.communicate(timeout=60)
    assert (recovery.returncode, run.returncode) == (0, 0), errors
    assert not root.exists()


def test_one_filesystem_that_is_gone_does_not_stand_in_the_way_of_another(
    make_btrfs: Callable[[], Btrfs], kopiatomic: Kopiatomic, root: Path, gate: Gate, recover: Any
) -> None:
    one, other = make_btrfs(), make_btrfs()
    with kopiatomic.started("--mount-root", root, "-c", gate.command, one.mountpoint, other.mountpoint) as process:
        kill_all_of(process, gate)
    (run_id,) = (run_in(path) for path in (one.mountpoint / ".kopiatomic").iterdir())
    # Its processes may just be ending.
    patiently("umount", str(one.mountpoint))
    try:
        code, document = recover()
        assert code == 4
        assert any("is not mounted" in p and f"recover --forget {run_id}" in p for p in document["problems"])
        assert other.snapshots() == []
        assert recover("--forget", run_id)[0] == 0
    finally:
        command("mount", "-o", "loop,noatime", one.image, one.mountpoint)
    # What is not recorded any more is found by its mark.
    assert recover()[0] == 0
    assert one.snapshots() == []


def test_a_database_that_cannot_be_read_is_not_taken_for_an_empty_one(kopiatomic: Kopiatomic, tmp_path: Path) -> None:
    """A loop of links stands for every other refusal: "Nothing is left" would be a guess."""
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "state.db").symlink_to("state.db")
    recovered = kopiatomic("recover")
    assert (recovered.returncode, "Nothing is left" in recovered.stdout) == (4, False), recovered
    assert recovered.stdout.endswith("left cannot be told.\n")
    history = kopiatomic("history")
    assert (history.returncode, history.stdout) == (1, "")
    for ended in (recovered, history):
        assert "Too many levels of symbolic links" in ended.stderr


def damage(path: Path, how: str) -> None:
    if how == "truncated":
        os.truncate(path, path.stat().st_size - 5000)
    elif how == "overwritten":
        with path.open("r+b") as file:
            # All but its first page.
            file.seek(4096)
            file.write(os.urandom(path.stat().st_size - 4096))
    elif how == "a document":
        with sqlite3.connect(path) as database:
            database.execute("UPDATE run SET document = x'00'")
    else:
        path.unlink()
        path.mkdir() if how == "a directory" else os.mkfifo(path)


@pytest.mark.parametrize("how", ["truncated", "overwritten", "a document", "a directory", "a pipe"])
def test_what_is_said_of_a_damaged_database_to_do_works(
    how: str, data: Path, root: Path, run: Run, kopiatomic: Kopiatomic, tmp_path: Path
) -> None:
    path = tmp_path / "state" / "state.db"
    for _ in range(3):
        assert run("-c", "true", data).returncode == 0
    damage(path, how)
    refused = kopiatomic("history")
    assert refused.returncode == 1, refused
    assert str(path) in refused.stderr
    assert "kopiatomic recover" in refused.stderr
    # It may still read what it needs, and in no case changes anything.
    assert kopiatomic("plan", "--diff-last", "--mount-root", root, "-c", "true", data).returncode == 0
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    if "The next run" in refused.stderr:
        assert kopiatomic("recover").returncode == 0
    again = kopiatomic("history")
    assert (again.returncode == 0) == (how in {"truncated", "overwritten"}), again
    if again.returncode:
        typed = (
            again.stderr.partition(": mv ")[2]
            .strip()
            .replace("kopiatomic recover", shlex.join(kopiatomic.argv("recover")))
        )
        assert command("sh", "-c", f"mv {typed}", env=kopiatomic.environment).returncode == 0
        again = kopiatomic("history")
    assert (again.returncode, again.stdout) == (0, "No run is recorded.\n")
    assert run("-c", "true", data).returncode == 0
    # What was there is kept.
    assert len(list(path.parent.iterdir())) == 2


def test_a_run_that_could_not_record_its_end_is_not_called_killed(
    data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic, tmp_path: Path
) -> None:
    with kopiatomic.started("--mount-root", root, "-c", gate.command, data) as process:
        gate.wait()
        with read_only(tmp_path / "state", random.Random()):
            gate.let_go()
            assert process.wait(60) == 0
    (run,) = json.loads(kopiatomic("history", "--json").stdout)["runs"]
    assert (run["result"], run["exit_code"], run["seconds"]) == ("end not recorded", None, None)
    ended = kopiatomic("recover")
    assert ended.returncode == 0, ended
    assert f"the end of run {run['run_id']} was not recorded" in ended.stdout
    assert "interrupted" not in ended.stdout
    assert result(kopiatomic, run["run_id"]) == ("end not recorded", None)


@pytest.mark.parametrize("identity", [True, False], ids=["recorded", "killed in the gap"])
@pytest.mark.parametrize("deed", ["renamed", "opened to all"])
def test_what_the_owner_of_the_top_level_moved_away_is_found_and_not_forgotten(
    deed: str, killed: Callable[[], str], recover: Any, btrfs: Btrfs, tmp_path: Path, *, identity: bool
) -> None:
    """A user owns the top of a disk, and so may rename our directory in it, root's or not."""
    run_id = killed()
    if not identity:
        with sqlite3.connect(tmp_path / "state" / "state.db") as database:
            database.execute("UPDATE intent SET identity = NULL, txn = NULL")
    ours, hidden = btrfs.mountpoint / ".kopiatomic", btrfs.mountpoint / ".hidden"
    before = sorted(btrfs.snapshots())
    if deed == "renamed":
        ours.rename(hidden)
    else:
        ours.chmod(0o755)
    for _ in range(2):
        # Also the second time: it stays recorded until it is gone.
        code, document = recover()
        assert code == 4
        left = [o for o in snapshots_of(document, btrfs) if o["problem"]]
        assert len(left) == 2, document
        for number, leftover in enumerate(left):
            at = f"{hidden.name if deed == 'renamed' else ours.name}/kopiatomic_{run_id}/{number}/snapshot"
            assert leftover["name"] == f".kopiatomic/kopiatomic_{run_id}/{number}/snapshot"
            assert leftover["action"].endswith(f"btrfs subvolume delete MOUNT/{at}")
            assert (f"moved to {at}" if deed == "renamed" else "only root can enter") in leftover["problem"]
        assert len(btrfs.snapshots()) == len(before) == 2
    if deed == "renamed":
        hidden.rename(ours)
    else:
        ours.chmod(0o700)
    assert recover()[0] == 0
    assert btrfs.snapshots() == []


def test_a_run_whose_folder_is_moved_away_under_it_says_so(
    data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic, recover: Any, btrfs: Btrfs
) -> None:
    with kopiatomic.started("--mount-root", root, "-c", gate.command, data, "--json") as process:
        gate.wait()
        (btrfs.mountpoint / ".kopiatomic").rename(btrfs.mountpoint / ".hidden")
        gate.let_go()
        out, _ = process.communicate(timeout=60)
    document = json.loads(out)
    # A view whose snapshot was taken away proves nothing, wherever it is now.
    assert (process.returncode, document["error"]["kind"]) == (1, "view-changed")
    # The run holds its folder open, and finds its snapshots there.
    assert document["left_behind"] == []
    assert btrfs.snapshots() == []
    assert recover()[0] == 0
