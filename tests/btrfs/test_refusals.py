"""What was named and cannot be taken fails the run; what was implied gets a verdict; what was not asked for does nothing."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.btrfs.conftest import alone
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopia, Kopiatomic, command
from tests.support.schema import valid

pytestmark = pytest.mark.in_part(4)

Run = Callable[..., Completed]
Saved = Callable[..., Any]
Leftovers = Callable[..., list[str]]

SWAPS = "no snapshot was made of it: a file in it is in use as swap space"


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    path = btrfs.subvolume("data")
    btrfs.subvolume("data/other")
    return path


@pytest.fixture
def swap(data: Path, btrfs: Btrfs) -> Iterator[Path]:
    """A nested subvolume with an active swap file."""
    nested = btrfs.subvolume("data/swap")
    file = nested / "then" / "file"
    file.parent.mkdir()
    command("btrfs", "filesystem", "mkswapfile", "--size", "2m", file)
    command("swapon", file)
    # Its path is another by the time of the run: only the kernel knows where it is.
    file = file.parent.rename(nested / "now") / "file"
    try:
        yield nested
    finally:
        command("swapoff", file)


def taken(document: Any) -> list[str]:
    return [d["path"] for d in document["datasets"]]


def verdicts(document: Any) -> dict[str, tuple[str, bool]]:
    return {d["dataset"]: (d["verdict"], d["incomplete"]) for d in document["left_out"]}


def test_one_that_the_kernel_refuses_and_that_was_implied_is_named_and_the_rest_taken(
    data: Path, swap: Path, run: Run, root: Path, leftovers: Leftovers
) -> None:
    ended = run("--json", "-c", "true", "-r", data)
    assert ended.returncode == 3, str(ended)
    document = valid(ended.stdout)
    assert taken(document) == [str(data), str(data / "other")]
    assert verdicts(document) == {str(swap): ("refused", True)}
    assert document["incomplete"] == [f"{swap}: {SWAPS}"]
    assert leftovers(root) == []


def test_one_that_the_kernel_refuses_and_that_was_named_fails_the_run(
    data: Path, swap: Path, run: Run, root: Path, leftovers: Leftovers
) -> None:
    ended = run("-c", "true", data, swap)
    assert ended.returncode == 1
    assert f"{swap} cannot be backed up: {SWAPS}" in ended.stderr
    assert "swapoff" in ended.stderr
    assert leftovers(root) == []


def test_with_require_atomic_nothing_may_be_missing(
    data: Path, swap: Path, run: Run, root: Path, leftovers: Leftovers
) -> None:
    ended = run("-c", "true", "-r", "--require-atomic", data)
    assert ended.returncode == 1
    assert f"--require-atomic: not everything can be taken: {swap}: {SWAPS}" in ended.stderr
    assert leftovers(root) == []


def test_where_nothing_is_left_to_take_the_run_fails(
    data: Path, swap: Path, run: Run, root: Path, leftovers: Leftovers
) -> None:
    ended = run("-c", "true", f"{data}/sw*")
    assert ended.returncode == 1, str(ended)
    assert f"nothing is left to take: {swap}: {SWAPS}" in ended.stderr
    assert leftovers(root) == []


def test_one_that_was_not_asked_for_has_no_part_in_it(data: Path, swap: Path, saved: Saved) -> None:
    assert taken(saved("-c", "true", data / "other")) == [str(data / "other")]


@pytest.mark.parametrize("again", [False, True], ids=["once", "with others in its place"])
def test_one_that_is_deleted_meanwhile_is_reported_and_the_run_succeeds(
    again: bool, data: Path, saved: Saved, root: Path, leftovers: Leftovers
) -> None:
    delete = f"btrfs -q subvolume delete {data}/other"
    hook = f"{delete} && btrfs -q subvolume create {data}/other" if again else delete
    document = saved("-c", "true", "-r", "-p", hook, data)
    assert taken(document) == [str(data)]
    assert verdicts(document) == {f"{data}/other": ("deleted meanwhile", False)}
    assert f"{data}/other: it was deleted between listing and snapshot" in document["warnings"]
    assert leftovers(root) == []


def test_one_that_is_moved_out_of_what_was_named_is_missing(
    btrfs: Btrfs, data: Path, run: Run, root: Path, leftovers: Leftovers
) -> None:
    ended = run("--json", "-c", "true", "-r", "-p", f"mv {data}/other {btrfs.mountpoint}/elsewhere", data)
    assert ended.returncode == 3, str(ended)
    document = valid(ended.stdout)
    assert taken(document) == [str(data)]
    (missing,) = document["incomplete"]
    assert missing.startswith(f"{data}/other: it vanished between listing and snapshot: moved or replaced")
    assert leftovers(root) == []


def test_subvolumes_that_come_and_go_all_the_time_do_not_end_a_run(
    data: Path, run: Run, root: Path, leftovers: Leftovers
) -> None:
    busy = data / "busy"
    busy.mkdir()
    names = " ".join(str(number) for number in range(8))
    script = f"while [ -d . ]; do btrfs -q subvolume create {names}; btrfs -q subvolume delete {names}; done"
    loop = subprocess.Popen(["sh", "-c", script], cwd=busy, stderr=subprocess.DEVNULL)
    try:
        ended = [run("-c", "true", "-r", data) for _ in range(5)]
    finally:
        loop.kill()
        loop.wait()
    assert {e.returncode for e in ended} == {0}, "\n".join(map(str, ended))
    assert leftovers(root) == []


def test_what_kopia_cannot_store_and_was_implied_is_named_and_the_rest_saved(
    btrfs: Btrfs, data: Path, run: Run, kopia: Kopia, root: Path, leftovers: Leftovers
) -> None:
    odd = [btrfs.subvolume(f"data/{name}") for name in ("x\udcff", "other/y.kopia-entry")]
    ended = run("--json", "-r", data, env=kopia.environment)
    assert ended.returncode == 3, str(ended)
    document = valid(ended.stdout)
    assert taken(document) == [str(data), str(data / "other")]
    assert verdicts(document) == {str(path): ("refused", True) for path in odd}
    # The empty folder that stands for it in the snapshot around it would end kopia's backup as well.
    assert run("--quiet", "--no-nested", data / "other", env=kopia.environment).returncode == 0
    planned = run("-n", "--json", "-r", data, env=kopia.environment)
    assert planned.returncode == 3
    assert valid(planned.stdout)["incomplete"] == document["incomplete"]
    named = run(odd[0], env=kopia.environment)
    assert named.returncode == 1
    assert "cannot be backed up: kopia cannot store names that are not UTF-8" in named.stderr
    assert leftovers(root) == []


def test_a_folder_that_ends_kopias_backup_is_named_with_what_to_do(
    data: Path, run: Run, kopia: Kopia, root: Path, leftovers: Leftovers
) -> None:
    (data / "mail" / "y.kopia-entry").mkdir(parents=True)
    ended = run("--no-nested", data, env=kopia.environment)
    assert ended.returncode == 1
    assert f"it fails at {root}{data}/mail/y.kopia-entry" in ended.stderr
    assert f"have kopia ignore {root}{data}/mail (" in ended.stderr
    (data / ".kopiaignore").write_text("/mail/\n")
    assert run("--no-nested", data, env=kopia.environment).returncode == 0
    assert leftovers(root) == []


@pytest.fixture
def without_a_node(tmp_path: Path) -> Iterator[Path]:
    """A mounted filesystem whose device node is removed."""
    image, node, point = tmp_path / "image", tmp_path / "node", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(128 << 20)
    command("mkfs.btrfs", "--quiet", image)
    device = command("losetup", "--find", "--show", image).stdout.strip()
    try:
        os.mknod(node, stat.S_IFBLK | 0o600, os.stat(device).st_rdev)
        point.mkdir()
        command("mount", "-t", "btrfs", node, point)
        node.unlink()
        yield point
        command("umount", point)
    finally:
        command("losetup", "--detach", device)


def test_a_filesystem_whose_device_has_no_node_any_more_is_missing_and_the_others_are_saved(
    btrfs: Btrfs, without_a_node: Path, kopiatomic: Kopiatomic, root: Path, leftovers: Leftovers
) -> None:
    def run(*words: str | Path) -> Completed:
        points = [btrfs.mountpoint, without_a_node]
        return alone(points, kopiatomic, "--mount-root", root, "--json", "-c", "true", *words)

    ended = run("-a")
    assert ended.returncode == 3, str(ended)
    document = valid(ended.stdout)
    assert taken(document) == [str(btrfs.mountpoint)]
    assert verdicts(document) == {str(without_a_node): ("refused", True)}
    named = run(btrfs.mountpoint, without_a_node)
    assert named.returncode == 1
    assert f"{without_a_node} cannot be backed up: the device that it is mounted from" in named.stderr
    assert run(btrfs.mountpoint).returncode == 0
    assert leftovers(root) == []
