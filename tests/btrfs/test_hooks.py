"""Hooks of a run: when they run, what they are told, and that nothing of theirs outlives them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopia
from tests.support.schema import valid
from tests.support.subvolumes import create, opened

Leftovers = Callable[..., list[str]]
Run = Callable[..., Completed]


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    return btrfs.subvolume("data")


@pytest.fixture
def told(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """The environment that a hook wrote down with ``env -0``."""

    def read(name: str) -> dict[str, str]:
        pairs = (tmp_path / name).read_text().split("\0")
        return {key: value for key, _, value in (pair.partition("=") for pair in pairs) if key.startswith("KOPIA")}

    return read


def test_hooks_are_told_what_they_need_to_know(
    btrfs: Btrfs, data: Path, run: Run, tmp_path: Path, root: Path, told: Callable[[str], dict[str, str]], kopia: Kopia
) -> None:
    other = btrfs.subvolume("other one")
    hooks = ("-p", f"env -0 > {tmp_path}/before", "-q", f"env -0 > {tmp_path}/after")
    ended = run("--json", *hooks, data, other, env=kopia.environment)
    document = valid(ended.stdout)
    common = {
        "KOPIATOMIC_RUN_ID": document["run_id"],
        "KOPIATOMIC_ROOT": str(root),
        "KOPIATOMIC_DATASETS": f"{data}\n{other}",
    }
    before = told("before")
    assert {key: before.get(key) for key in common} == common
    assert not {key for key in before if "RESULT" in key or "EXIT" in key}
    after = told("after")
    assert {key: after.get(key) for key in common} == common
    assert after["KOPIATOMIC_RESULT"] == document["result"] == "saved"
    assert after["KOPIATOMIC_EXIT_CODE"] == "0"
    assert after["KOPIATOMIC_KOPIA_SNAPSHOT_ID"] == document["engine"]["snapshot_id"]
    assert "KOPIA_PASSWORD" not in before | after
    assert "KOPIA_CONFIG_PATH" in before


@pytest.mark.parametrize("layout", ["merged", "in-place"])
def test_hooks_and_engine_read_the_same_lists_from_files(
    btrfs: Btrfs, data: Path, run: Run, tmp_path: Path, root: Path, layout: str
) -> None:
    odd = btrfs.subvolume("odd\nname")
    script = (
        'for of in DATASETS SOURCES; do eval "cat \\$KOPIATOMIC_${of}_FILE"; echo "[$KOPIATOMIC_DATASETS]"; done > "$1"'
    )
    copy = shlex.join(["sh", "-c", script, "-"])
    hooks = ("-p", f"{copy} {tmp_path}/before", "-q", f"{copy} {tmp_path}/after")
    ended = run("--layout", layout, *hooks, "-c", f"{copy} {tmp_path}/engine", data, odd)
    assert ended.returncode == 0, str(ended)
    sources = f"{root}\0" if layout == "merged" else f"{data}\0{odd}\0"
    variable = f"[{data}]\n"
    for name in ("before", "engine", "after"):
        assert (tmp_path / name).read_text() == f"{data}\0{odd}\0{variable}{sources}{variable}", name


def test_names_that_no_environment_has_room_for_are_in_the_files(btrfs: Btrfs, run: Run, tmp_path: Path) -> None:
    """More than 128 KiB, which the kernel takes no variable of."""
    long = btrfs.subvolume("long")
    folder = long / "/".join(["d" * 250] * 4)
    folder.mkdir(parents=True)
    with opened(folder, []) as directory:
        for number in range(150):
            create(directory, str(number))
    script = f"env > {tmp_path}/env; tr '\\0' '\\n' < $KOPIATOMIC_DATASETS_FILE > {tmp_path}/datasets"
    for hook in ("-p", "-q"):
        ended = run("-r", hook, script, "-c", "true", long)
        assert ended.returncode == 0, str(ended)
        assert "KOPIATOMIC_DATASETS=" not in (tmp_path / "env").read_text()
        assert len((tmp_path / "datasets").read_text().splitlines()) == 151


def test_the_engine_is_told_as_well(data: Path, run: Run, root: Path, tmp_path: Path) -> None:
    ended = run("--json", "-c", f"sh -c 'echo $KOPIATOMIC_RUN_ID $KOPIATOMIC_ROOT > {tmp_path}/engine'", data)
    assert (tmp_path / "engine").read_text().split() == [valid(ended.stdout)["run_id"], str(root)]


def test_the_first_hook_runs_before_the_snapshot_and_the_last_when_all_is_removed(
    btrfs: Btrfs, data: Path, run: Run, root: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    before = f"echo prepared > {data}/file; test ! -e {root}"
    after = f"ls -A {btrfs.mountpoint} > {tmp_path}/left; test ! -e {root} || echo root >> {tmp_path}/left"
    ended = run("-p", before, "-q", after, "-c", f"sh -c 'cat $0{data}/file'", data)
    assert ended.returncode == 0, str(ended)
    assert "prepared" in ended.stderr + ended.stdout
    assert (tmp_path / "left").read_text() == "data\n"
    assert leftovers(root) == []


@pytest.mark.parametrize(
    ("args", "runs", "result"),
    [
        pytest.param(("-c", "true"), 1, "saved 0", id="success"),
        pytest.param(("-c", "false"), 1, "failed 1", id="engine failure"),
        pytest.param(("-p", "false", "-c", "true"), 1, "failed 1", id="-p failure"),
        pytest.param(("-n",), 0, "", id="dry run"),
        pytest.param(("--name", "..", "-c", "true"), 0, "", id="usage error"),
        pytest.param(("-c", "no-such-program"), 0, "", id="failed check"),
        pytest.param(("-c", "no-such-program", "-p", "true"), 0, "", id="failed check with -p"),
    ],
)
def test_the_last_hook_runs_once_in_every_run_that_got_as_far_as_the_first(
    args: tuple[str, ...],
    runs: int,
    result: str,
    data: Path,
    run: Run,
    tmp_path: Path,
    root: Path,
    leftovers: Leftovers,
) -> None:
    run(*args, "-q", f"echo $KOPIATOMIC_RESULT $KOPIATOMIC_EXIT_CODE >> {tmp_path}/count", data)
    counted = tmp_path / "count"
    assert (counted.read_text().splitlines() if counted.exists() else []) == [result] * runs
    assert leftovers(root) == []


def test_a_first_hook_that_fails_stops_the_run_before_anything_is_made(
    data: Path, run: Run, tmp_path: Path, root: Path, leftovers: Leftovers
) -> None:
    ended = run("-p", "exit 3", "-c", f"touch {tmp_path}/engine", data)
    assert ended.returncode == 1
    assert "taking" not in ended.stderr
    assert not (tmp_path / "engine").exists()
    assert leftovers(root) == []


def test_what_hooks_leave_running_ends_with_them(data: Path, run: Run, root: Path, leftovers: Leftovers) -> None:
    daemon = "(setsid sleep 300 </dev/null >/dev/null 2>&1 &) ; sleep 0.1"
    assert run("-p", daemon, "-q", daemon, "-c", "true", data).returncode == 0
    assert leftovers(root) == []
