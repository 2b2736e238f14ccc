"""What an administrator can ask afterwards."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.btrfs.conftest import Gate, kill_all_of
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopiatomic
from tests.support.schema import valid

pytestmark = pytest.mark.in_part(7)

Run = Callable[..., Completed]


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    return btrfs.subvolume("data")


@pytest.fixture
def runs(kopiatomic: Kopiatomic) -> Callable[..., Any]:
    def runs(*args: str) -> Any:
        ended = kopiatomic("history", "--json", *args)
        assert ended.returncode == 0, str(ended)
        document = json.loads(ended.stdout)
        assert document["format"] == "kopiatomic-history-1"
        return document["runs"]

    return runs


def test_every_run_is_on_record_with_how_it_ended(data: Path, run: Run, runs: Any, root: Path) -> None:
    assert runs() == []
    assert run("-c", "true", data).returncode == 0
    assert run("-c", "sh -c 'exit 7'", data).returncode == 1
    assert run("-q", "false", "-c", "true", data).returncode == 4
    assert run("-c", "true", "/proc").returncode == 1
    last = runs()
    assert [(r["result"], r["exit_code"]) for r in last] == [("failed", 1), ("unclean", 4), ("failed", 1), ("saved", 0)]
    assert all(r["root"] == str(root) and r["ended"] >= r["started"] for r in last)
    assert last[0]["document"]["error"]["kind"] == "unsupported-filesystem"
    saved = last[-1]["document"]
    assert saved["datasets"][0]["dataset"] == str(data)
    assert saved["sets"][0]["snapshots"][0]["identity"]
    assert "engine" in saved["durations"]
    assert len(runs("--limit", "2")) == 2


def test_a_run_that_goes_on_is_running_and_one_that_was_refused_is_on_record(
    data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic, run: Run, runs: Any
) -> None:
    with kopiatomic.started("--mount-root", root, "-c", gate.command, data) as process:
        gate.wait()
        (running,) = runs()
        assert (running["result"], running["exit_code"]) == ("running", None)
        assert running["document"]["sets"]
        refused = run("-c", "true", data)
        assert refused.returncode == 75
        assert running["run_id"] in refused.stderr
        assert "command kopiatomic --mount-root" in refused.stderr
        gate.let_go()
        process.communicate(timeout=20)
    assert [(r["result"], r["exit_code"]) for r in runs()] == [("failed", 75), ("saved", 0)]


def test_an_interrupted_run_says_by_what(data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic, runs: Any) -> None:
    with kopiatomic.started("--mount-root", root, "-c", gate.command, data) as process:
        gate.wait()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    (run,) = runs()
    assert (run["result"], run["exit_code"]) == ("interrupted", 143)
    assert run["document"]["error"]["message"] == "stopped by SIGTERM"


def test_a_run_is_shown_whole_by_the_beginning_of_its_id(
    data: Path, run: Run, runs: Any, kopiatomic: Kopiatomic
) -> None:
    run("-c", "true", data)
    run_id = runs()[0]["run_id"]
    ended = kopiatomic("history", run_id[:-3])
    assert ended.returncode == 0
    assert f"Run:      {run_id}" in ended.stdout
    assert "Result:   saved, exit code 0" in ended.stdout
    assert f"Dataset:  {data} at {data}" in ended.stdout
    assert "Times:" in ended.stdout


def test_the_list_fits_a_line_a_run(data: Path, run: Run, kopiatomic: Kopiatomic, root: Path) -> None:
    run("-c", "true", data)
    head, line = kopiatomic("history").stdout.splitlines()
    assert head.split() == ["RUN", "STARTED", "(UTC)", "TOOK", "RESULT", "DATASETS", "ROOT"]
    assert line.endswith(str(root))
    assert "saved (0)" in line


def test_an_unknown_run_is_said(kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic("history", "2020")
    assert ended.returncode == 1
    assert "no recorded run begins with 2020" in ended.stderr


def test_another_selection_under_the_same_root_is_warned_about(data: Path, btrfs: Btrfs, run: Run) -> None:
    other = btrfs.subvolume("other")
    assert "took something else" not in run("-c", "true", data).stderr
    assert "took something else" not in run("-c", "true", data).stderr
    assert f"this one is without {data} and with {other}" in run("-c", "true", other).stderr
    assert "took something else" not in run("--name", "x", "-c", "true", data).stderr


def test_a_plan_beside_the_last_run(
    data: Path, btrfs: Btrfs, run: Run, runs: Any, kopiatomic: Kopiatomic, root: Path
) -> None:
    other = btrfs.subvolume("other")
    words = ("plan", "--diff-last", "--mount-root", root, "-c", "true")
    assert f"\nNo run under {root} is recorded.\n" in kopiatomic(*words, data).stdout
    run("-c", "true", data)
    changed = kopiatomic(*words, other).stdout
    assert f"\n  new: {other}\n  not any more: {data}\n" in changed
    document = valid(kopiatomic(*words, "--json", data, other).stdout)
    (last,) = runs()
    assert last["document"]["changes"]["last_run"] is None
    assert document["changes"] == {"last_run": last["run_id"], "added": [str(other)], "removed": [], "moved": []}
    assert valid(kopiatomic("plan", "--json", "-c", "true", data).stdout)["changes"] is None


def test_old_runs_go_when_the_time_to_keep_them_is_over(data: Path, run: Run, runs: Any) -> None:
    for _ in range(12):
        assert run("--keep-history", "0s", "-c", "true", data).returncode == 0
    assert len(runs("--limit", "100")) == 10


def test_a_killed_run_is_told_as_such_also_after_a_run_with_another_state_directory(
    data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic, run: Run, runs: Any, tmp_path: Path
) -> None:
    with kopiatomic.started("--mount-root", root, "-c", gate.command, data) as process:
        kill_all_of(process, gate)
    (killed,) = runs()
    assert killed["result"] == "interrupted"
    elsewhere = ("--state-dir", str(tmp_path / "elsewhere"))
    assert run(*elsewhere, "--name", "other", "-c", "true", data).returncode == 0
    assert runs()[0]["result"] == "interrupted"
    # It removes what that run left, which the folder proves ours.
    assert kopiatomic("recover", *elsewhere).returncode == 0
    assert runs()[0]["result"] == "interrupted"
    assert f"run {killed['run_id']} was interrupted" in kopiatomic("recover").stdout
