"""What a dead run left in a pool goes with the next run or with ``recover``; what is not proven ours stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.filesystems import Pool
from tests.support.programs import command
from tests.zfs.killed import ENGINE, killed_run, ours, recovered
from tests.zfs.runs import Runner

pytestmark = [pytest.mark.core, pytest.mark.in_part(7)]


@pytest.fixture(scope="module")
def pool(tank: Pool) -> Pool:
    for name in ("home", "src"):
        tank.dataset(name)
    return tank


@pytest.fixture
def killed(pool: Pool, run: Runner, tmp_path: Path) -> Callable[[], str]:
    """A run whose processes were all killed while the snapshots were mounted; its id."""
    return lambda: killed_run(pool, run, tmp_path, [f"{pool.name}/home", f"{pool.name}/src"])


def test_the_next_run_clears_what_the_kernel_could_not_release(
    killed: Callable[[], str], pool: Pool, run: Runner
) -> None:
    run_id = killed()
    ended = run("-c", "true", f"{pool.name}/src")
    assert ended.returncode == 0, ended
    assert f"run {run_id} was interrupted" in ended.stderr
    assert f"removed what run {run_id} left: zfs snapshot {pool.name}/home@kopiatomic_{run_id}" in ended.stderr
    assert run.left(pool) == []
    history = json.loads(run("history", "--json").stdout)["runs"]
    assert [(r["result"], r["exit_code"]) for r in history] == [("saved", 0), ("interrupted", None)]


def test_recover_says_first_and_then_removes(killed: Callable[[], str], pool: Pool, run: Runner) -> None:
    run_id = killed()
    code, said = recovered(run, "--dry-run")
    assert code == 4
    assert len(ours(pool)) == 2
    proofs = [o["proof"] for o in said["leftovers"] if o["kind"] == "zfs-snapshot"]
    assert len(proofs) == 2
    assert all("recorded, guid" in proof and "createtxg" in proof for proof in proofs)
    assert all(o["name"].endswith(run_id) for o in said["leftovers"] if o["kind"] == "zfs-snapshot")
    code, done = recovered(run)
    assert code == 0, done
    assert run.left(pool) == []


def test_without_a_record_they_are_listed_and_go_only_when_asked(
    killed: Callable[[], str], pool: Pool, run: Runner, tmp_path: Path
) -> None:
    """Name and property are whoever's to whom that is delegated: they prove nothing."""
    run_id = killed()
    shutil.rmtree(tmp_path / "state")
    ended = run("-c", "true", f"{pool.name}/home")
    assert ended.returncode == 0, ended
    assert f"{pool.name}/src@kopiatomic_{run_id} were left by run {run_id}, of which there is no record" in ended.stderr
    assert "recover --unrecorded" in ended.stderr
    code, document = recovered(run)
    assert code == 4
    listed = {o["name"]: o for o in document["leftovers"] if o["kind"] == "zfs-snapshot"}
    assert sorted(listed) == ours(pool)
    assert len(listed) == 2
    for name, leftover in listed.items():
        assert (leftover["done"], leftover["action"]) == (False, f"zfs release kopiatomic {name}; zfs destroy {name}")
        assert "names this host" in leftover["proof"]
        assert "no record" in leftover["problem"]
    code, document = recovered(run, "--unrecorded")
    assert code == 0, document
    assert run.left(pool) == []


def test_somebody_elses_hold_is_not_released_and_ours_is(killed: Callable[[], str], pool: Pool, run: Runner) -> None:
    run_id = killed()
    held = f"{pool.name}/home@kopiatomic_{run_id}"
    command("zfs", "hold", "theirs", held)
    try:
        code, document = recovered(run)
        assert code == 4
        (left,) = (o for o in document["leftovers"] if not o["done"])
        assert left["name"] == held
        assert "somebody else holds it (theirs;" in left["problem"]
        tags = command("zfs", "holds", "-H", held).stdout.split("\t")[1::2]
        assert tags == ["theirs"]
    finally:
        command("zfs", "release", "theirs", held)
    # Its destruction was asked for before: the kernel did it at the last release.
    assert ours(pool) == []
    assert recovered(run)[0] == 0


def test_what_only_looks_like_ours_stays(killed: Callable[[], str], pool: Pool, run: Runner, tmp_path: Path) -> None:
    """Another host's, another run's, an inherited property, a received copy, similar names, lines in a property."""
    run_id = killed()
    mark = command("zfs", "get", "-H", "-o", "value", "kopiatomic:run", ours(pool)[0]).stdout.strip()
    host = mark.partition("@")[2]
    dataset = pool.dataset("decoys")
    other = run_id[:-8] + "00000000"
    decoys = {
        f"{dataset}@kopiatomic_{other}": f"{other}@0123456789abcdef",
        f"{dataset}@kopiatomic_{run_id}": f"{other}@{host}",
        f"{dataset}@kopiatomic_": f"{run_id}@{host}",
        f"{dataset}@kopiatomic_x": f"{run_id}@{host}",
        f"{dataset}@my_kopiatomic_{run_id}": f"{run_id}@{host}",
    }
    # What looks like a line of zfs get that makes another one ours.
    victim, forger = f"{dataset}@kopiatomic_{run_id}", f"{dataset}@kopiatomic_{run_id[:-8]}11111111"
    forged = f"{victim}\tkopiatomic:run\t{run_id}@{host}\tlocal\t{victim}"
    decoys[forger] = f"x\tlocal\t{forger}\n{forged}\n{forger}\tguid\t1"
    decoys[f"{dataset}@kopiatomic_{run_id[:-8]}22222222"] = "two\nlines"
    for name, value in decoys.items():
        command("zfs", "snapshot", "-o", f"kopiatomic:run={value}", name)
    inherits = pool.dataset("inherits", **{"kopiatomic:run": mark})
    command("zfs", "snapshot", f"{inherits}@kopiatomic_{run_id}")
    stream = tmp_path / "stream"
    command("sh", "-c", f"zfs send -p {pool.name}/home@kopiatomic_{run_id} > {stream}")
    command("sh", "-c", f"zfs receive -u {pool.name}/received < {stream}")
    expected = {*decoys, f"{inherits}@kopiatomic_{run_id}", f"{pool.name}/received@kopiatomic_{run_id}"}
    try:
        for more in ((), ("--unrecorded",)):
            code, document = recovered(run, *more)
            assert (code, document["received"]) == (0, 6)
            assert set(pool.snapshots()) == expected
        shutil.rmtree(tmp_path / "state")
        assert recovered(run, "--unrecorded")[0] == 0
        assert set(pool.snapshots()) == expected
        assert "Nothing of this host is left; 6 snapshots of other hosts' runs, or received with a stream" in (
            run("recover").stdout
        )
        assert set(pool.snapshots()) == expected
    finally:
        for name in ("decoys", "inherits", "received"):
            command("zfs", "destroy", "-r", f"{pool.name}/{name}")


def test_a_living_run_with_other_records_is_left_alone(pool: Pool, run: Runner, tmp_path: Path) -> None:
    engine, ready = tmp_path / "engine.py", tmp_path / "ready"
    engine.write_text(ENGINE.replace("1000", "8"))
    with run.started("-c", f"python3 -SI {engine} {ready}", f"{pool.name}/home") as started:
        started.until(ready.exists)
        code, document = recovered(run, "--state-dir", str(tmp_path / "other"))
        assert (code, document["leftovers"]) == (0, [])
        assert len(ours(pool)) == 1
        assert started.wait().returncode == 0
    assert run.left(pool) == []


def test_a_pool_that_is_not_imported_is_said_and_its_snapshots_go_when_it_is(
    killed: Callable[[], str], pool: Pool, run: Runner
) -> None:
    run_id = killed()
    command("zpool", "export", pool.name)
    try:
        code, document = recovered(run)
        assert code == 4
        assert any(f"the pool {pool.name} is not imported" in p and run_id in p for p in document["problems"])
    finally:
        command("zpool", "import", "-d", pool.image.parent, "-o", "cachefile=none", pool.name)
    assert recovered(run)[0] == 0
    assert run.left(pool) == []


def test_the_gap_in_which_nothing_ties_the_set_is_told(pool: Pool, run: Runner) -> None:
    _, document = run.json("-c", "true", pool.name)
    (made,) = document["sets"]
    assert 0 < made["untied_seconds"] < 60


def test_without_a_usable_record_a_backup_of_zfs_goes_on_and_says_so(pool: Pool, run: Runner, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = run("--state-dir", tmp_path / "file" / "state", "-c", "true", f"{pool.name}/home")
    assert ended.returncode == 0, ended
    assert "this run has no record" in ended.stderr
    assert "only 'kopiatomic recover' finds what they left" in ended.stderr
    assert run.left(pool) == []
