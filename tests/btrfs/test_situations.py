"""Filesystems and callers in odd states: the backup is whole, or the run says what it lacks; and nothing is left."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.btrfs.conftest import Family, Gate
from tests.support.filesystems import Btrfs, patiently
from tests.support.killing import kill_together
from tests.support.programs import Completed, Kopiatomic, command
from tests.support.without_root import as_anybody

Run = Callable[..., Completed]
Saved = Callable[..., Any]
Leftovers = Callable[..., list[str]]

DEVICE_BYTES = 256 << 20


@contextmanager
def loop_device(image: Path) -> Iterator[str]:
    with image.open("wb") as file:
        file.truncate(DEVICE_BYTES)
    device = command("losetup", "--find", "--show", image).stdout.strip()
    try:
        yield device
    finally:
        command("losetup", "--detach", device, check=False)


@contextmanager
def mounted(device: str, point: Path, options: str = "noatime") -> Iterator[Btrfs]:
    point.mkdir(exist_ok=True)
    command("mount", "-t", "btrfs", "-o", options, device, point)
    try:
        yield Btrfs(point, Path(device))
    finally:
        patiently("umount", str(point))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Two devices, and a filesystem with a copy of all data on each; nothing is mounted."""
    with ExitStack() as stack:
        one, other = (stack.enter_context(loop_device(tmp_path / f"device{number}")) for number in (1, 2))
        command("mkfs.btrfs", "--quiet", "-d", "raid1", "-m", "raid1", one, other)
        yield one, other


def copied(root: Path, source: Path, then: str = "") -> str:
    """An engine that copies the frozen file out of a merged view."""
    script = f'cat "$1{source}/file" > {shlex.quote(str(root))}.copy\n{then}\n'
    return shlex.join(["sh", "-ec", script, "engine"])


def copy_of(root: Path) -> str:
    return root.with_suffix(".copy").read_text()


# Devices


def test_a_filesystem_that_lacks_a_device_is_backed_up(
    pair: tuple[str, str], saved: Saved, root: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    one, other = pair
    with mounted(one, tmp_path / "mnt") as filesystem:
        (filesystem.subvolume("data") / "file").write_text("then")
    command("wipefs", "--all", "--force", other)
    command("btrfs", "device", "scan", "--forget")
    with mounted(one, tmp_path / "mnt", "degraded") as filesystem:
        data = filesystem.mountpoint / "data"
        saved("-c", copied(root, data), data)
        assert copy_of(root) == "then"
        assert filesystem.snapshots() == []
    assert leftovers(root) == []


def test_a_device_may_be_replaced_meanwhile(
    pair: tuple[str, str], saved: Saved, root: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    with loop_device(tmp_path / "device3") as third, mounted(pair[0], tmp_path / "mnt") as filesystem:
        data = filesystem.subvolume("data")
        (data / "file").write_text("then")
        # The device that the filesystem was mounted from is the one that goes.
        saved("-c", copied(root, data, f"btrfs replace start -B -f {pair[0]} {third} {filesystem.mountpoint}"), data)
        assert copy_of(root) == "then"
        assert filesystem.snapshots() == []
    assert leftovers(root) == []


def test_a_filesystem_on_a_seed_is_backed_up(saved: Saved, root: Path, tmp_path: Path, leftovers: Leftovers) -> None:
    with loop_device(tmp_path / "seed") as seed, loop_device(tmp_path / "sprout") as sprout:
        command("mkfs.btrfs", "--quiet", seed)
        with mounted(seed, tmp_path / "mnt") as filesystem:
            (filesystem.subvolume("data") / "file").write_text("then")
        command("btrfstune", "-S", "1", seed)
        with mounted(seed, tmp_path / "mnt") as filesystem:
            command("btrfs", "device", "add", sprout, filesystem.mountpoint)
            command("mount", "-o", "remount,rw", filesystem.mountpoint)
            data = filesystem.mountpoint / "data"
            saved("-c", copied(root, data), data)
            assert copy_of(root) == "then"
            assert filesystem.snapshots() == []
    assert leftovers(root) == []


# Space


def fill(folder: Path) -> None:
    """Write until nothing fits any more."""
    block = os.urandom(1 << 20)
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(block)
        except OSError:
            pass
    command("sync", "-f", folder, check=False)


def test_a_full_filesystem_is_backed_up_or_the_run_says_that_it_is_full(
    btrfs: Btrfs, run: Run, root: Path, leftovers: Leftovers
) -> None:
    data = btrfs.subvolume("data")
    (data / "file").write_text("then")
    fill(data)
    ended = run("-c", copied(root, data), data)
    if ended.returncode == 0:
        assert copy_of(root) == "then"
    else:
        assert ended.returncode == 1
        assert os.strerror(28) in ended.stderr
    assert leftovers(root) == []


def test_a_filesystem_may_fill_up_meanwhile(btrfs: Btrfs, saved: Saved, root: Path, leftovers: Leftovers) -> None:
    data = btrfs.subvolume("data")
    (data / "file").write_text("then")
    filler = f"dd if=/dev/urandom of={data}/ballast bs=1M 2>/dev/null || true; sync -f {data} || true"
    saved("-c", copied(root, data, filler), data)
    assert copy_of(root) == "then"
    assert leftovers(root) == []


def test_a_subvolume_at_its_limit_is_backed_up(btrfs: Btrfs, saved: Saved, root: Path, leftovers: Leftovers) -> None:
    data = btrfs.subvolume("data")
    command("btrfs", "quota", "enable", btrfs.mountpoint)
    (data / "file").write_text("then")
    command("btrfs", "qgroup", "limit", "4M", data)
    fill(data)
    saved("-c", copied(root, data), data)
    assert copy_of(root) == "then"
    assert leftovers(root) == []


# Mounts


def test_what_a_filesystem_that_became_read_only_keeps_is_said_and_goes_later(
    btrfs: Btrfs, run: Run, kopiatomic: Kopiatomic, root: Path, leftovers: Leftovers
) -> None:
    data = btrfs.subvolume("data")
    (data / "file").write_text("then")
    try:
        # On the host: the engine has mounts of its own.
        remount = f"mount -o remount,ro {btrfs.mountpoint}; touch {root}.remounted"
        with subprocess.Popen(["sh", "-c", f"while [ ! -e {root}.copy ]; do sleep 0.02; done; {remount}"]):
            ended = run("-c", copied(root, data, f"while [ ! -e {root}.remounted ]; do sleep 0.02; done"), data)
        assert ended.returncode == 4
        assert "read-only" in ended.stderr
        assert copy_of(root) == "then"
        assert len(btrfs.snapshots()) == 1
    finally:
        command("mount", "-o", "remount,rw", btrfs.mountpoint)
    recovered = kopiatomic("recover")
    assert recovered.returncode == 0, recovered
    assert leftovers(root) == []


def test_a_filesystem_that_is_unmounted_lazily_meanwhile_keeps_nothing(
    saved: Saved, root: Path, tmp_path: Path, leftovers: Leftovers
) -> None:
    with loop_device(tmp_path / "device") as device:
        command("mkfs.btrfs", "--quiet", device)
        point = tmp_path / "mnt"
        with mounted(device, point) as filesystem:
            data = filesystem.subvolume("data")
            (data / "file").write_text("then")
            # On the host: the engine has mounts of its own.
            script = f"while [ ! -e {root}.copy ]; do sleep 0.02; done; umount -l {point}; touch {root}.unmounted"
            with subprocess.Popen(["sh", "-c", script]):
                saved("-c", copied(root, data, f"while [ ! -e {root}.unmounted ]; do sleep 0.02; done"), data)
            assert copy_of(root) == "then"
            command("mount", "-t", "btrfs", device, point)
            assert filesystem.snapshots() == []
    assert leftovers(root) == []


# Callers


def test_two_thousand_inherited_descriptors_do_no_harm(
    btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path, leftovers: Leftovers
) -> None:
    data = btrfs.subvolume("data")
    count = root.with_suffix(".count")
    program = (
        "import os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\n"
        "for _ in range(2000): os.set_inheritable(os.open('/dev/null', os.O_RDONLY), True)\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    engine = shlex.join(["sh", "-c", f"ls /proc/$$/fd | wc -l > {count}"])
    words = Kopiatomic.argv("--mount-root", root, "-c", engine, data)
    ended = command(sys.executable, "-c", program, *words, env=kopiatomic.environment, check=False)
    assert ended.returncode == 0, ended
    assert int(count.read_text()) <= 4
    assert leftovers(root) == []


@pytest.mark.parametrize("limit", ["-f 0", "-f 16", "-v 60000", "-v 120000"])
def test_a_limit_of_the_caller_ends_in_a_backup_or_in_a_message(
    limit: str, btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path, leftovers: Leftovers
) -> None:
    data = btrfs.subvolume("data")
    (data / "file").write_text("then")
    words = Kopiatomic.argv("--mount-root", root, "-c", copied(root, data), data)
    ended = command("bash", "-c", f'ulimit {limit}; exec "$@"', "bash", *words, env=kopiatomic.environment, check=False)
    assert "Traceback" not in ended.stderr
    if ended.returncode == 0:
        assert copy_of(root) == "then"
    else:
        assert ended.stderr != ""
        kopiatomic("recover")
    assert leftovers(root) == []


def test_it_needs_nothing_of_its_environment(btrfs: Btrfs, root: Path, tmp_path: Path, leftovers: Leftovers) -> None:
    data = btrfs.subvolume("data")
    name = "ä\udcff"
    (data / name).write_text("then")
    listing = root.with_suffix(".listing")
    words = Kopiatomic.argv(
        "--state-dir", tmp_path / "state", "--mount-root", root, "-c", f"sh -c 'ls $0{data} > {listing}'", data
    )
    ended = command(
        *words,
        env={"PYTHONPATH": os.environ["PYTHONPATH"], "PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        check=False,
    )
    assert ended.returncode == 0, ended
    assert listing.read_bytes() == os.fsencode(name) + b"\n"
    assert leftovers(root) == []


def test_what_was_left_is_ours_whatever_the_host_is_called_now(
    btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path, gate: Gate, leftovers: Leftovers
) -> None:
    data = btrfs.subvolume("data")
    with kopiatomic.started("--mount-root", root, "-c", gate.command, data) as running:
        gate.wait()
        family = Family.of(running.pid)
        kill_together([family.main, family.keeper, family.launcher, family.engine])
    assert len(btrfs.snapshots()) == 1
    words = Kopiatomic.argv("recover")
    ended = command(
        "unshare", "--uts", "sh", "-c", 'hostname another && exec "$@"', "sh", *words, env=kopiatomic.environment
    )
    assert ended.returncode == 0
    assert leftovers(root) == []


# Other users


def test_other_users_see_nothing_of_it(
    btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path, gate: Gate, leftovers: Leftovers
) -> None:
    data = btrfs.subvolume("data")
    (data / "file").write_text("then")
    data.chmod(0o755)
    with kopiatomic.started("--mount-root", root, "-c", gate.command, data) as running:
        gate.wait()
        family = Family.of(running.pid)
        for pid in (family.main, family.keeper, family.launcher, family.engine):
            for words in (
                ("cat", f"/proc/{pid}/environ"),
                ("ls", f"/proc/{pid}/root/"),
                ("ls", f"/proc/{pid}/cwd/"),
                ("ls", f"/proc/{pid}/fd"),
                ("nsenter", f"--mount=/proc/{pid}/ns/mnt", "true"),
                ("unshare", "-Urm", "nsenter", f"--mount=/proc/{pid}/ns/mnt", "true"),
            ):
                refused = command(*as_anybody(*words), check=False)
                assert refused.returncode != 0, refused
                assert "ermission denied" in refused.stderr or "not permitted" in refused.stderr, refused
        assert command(*as_anybody("ls", str(root)), check=False).returncode != 0
        gate.let_go()
        assert running.wait(30) == 0
    assert leftovers(root) == []


def test_a_copy_that_is_mounted_beside_its_original_is_never_taken_for_it(
    btrfs: Btrfs, kopiatomic: Kopiatomic, tmp_path: Path
) -> None:
    """An LVM snapshot, or a copied image: the kernel lets both be mounted since 6.7, and then mixes their UUIDs up."""
    (btrfs.subvolume("data") / "file").write_text("original")
    command("sync", "-f", btrfs.mountpoint)
    image, point = tmp_path / "copy", tmp_path / "copied"
    command("cp", btrfs.image, image)
    point.mkdir()
    mounted = command("mount", "-o", "loop", image, point, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"this kernel mounts no copy beside its original: {mounted.stderr}")
    try:
        (point / "data" / "file").write_text("copy")
        device = command("findmnt", "-no", "SOURCE", point).stdout.strip()
        again = tmp_path / "again"
        again.mkdir()
        for _ in range(2):
            ended = kopiatomic("exec", point / "data", "--", "true")
            assert (ended.returncode, "is a copy of another mounted filesystem" in ended.stderr) == (1, True), ended
            # A second mount of the copy is what confuses the kernel for good.
            command("mount", "-o", "subvol=data", device, again)
            command("umount", again)
        original = kopiatomic("exec", btrfs.mountpoint / "data", "--", "cat", btrfs.mountpoint / "data" / "file")
        assert (original.returncode, original.stdout) == (0, "original"), original
        both = kopiatomic("plan", btrfs.mountpoint / "data", point / "data")
        assert both.returncode == 1
    finally:
        command("umount", point)
