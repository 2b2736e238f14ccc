"""The view is the engine's alone: the host does not see it, is not held by it, and nobody can change it unnoticed."""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.btrfs.conftest import Family, Gate
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopiatomic, command
from tests.support.schema import valid

NO_ID = 0xFFFFFFFF
"""In entries of an access control list that name no user or group."""

Leftovers = Callable[..., list[str]]
Run = Callable[..., Completed]


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    (btrfs.subvolume("data") / "file").write_text("then")
    return btrfs.mountpoint / "data"


def mounts_of(process: int) -> list[str]:
    return Path(f"/proc/{process}/mountinfo").read_text(errors="surrogateescape").splitlines()


def test_no_other_process_sees_a_mount_of_the_view(
    data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic, leftovers: Leftovers
) -> None:
    before = mounts_of(1)
    with kopiatomic.started("--mount-root", root, "-c", gate.command, data) as process:
        gate.wait()
        family = Family.of(process.pid)
        assert mounts_of(1) == before
        assert mounts_of(process.pid) == mounts_of(os.getpid())
        assert not [line for line in mounts_of(family.keeper) if str(root) in line]
        inside = [line for line in mounts_of(family.engine) if str(root) in line]
        assert len(inside) == 2
        assert list(root.iterdir()) == []
        gate.let_go()
        assert process.wait(20) == 0
    assert leftovers(root) == []


def test_the_view_cannot_be_written_and_runs_no_setuid_program(data: Path, run: Run, root: Path) -> None:
    ended = run("-c", f"sh -c 'touch $0{data}/new; grep {root} /proc/self/mountinfo'", data)
    assert "Read-only file system" in ended.stderr
    (view,) = [line for line in (ended.stdout + ended.stderr).splitlines() if str(data) in line and " - btrfs" in line]
    options = view.split(" ")[5].split(",")
    assert {"ro", "nosuid", "nodev"} <= set(options)


def test_processes_of_the_host_are_out_of_the_engines_reach(data: Path, run: Run) -> None:
    ended = run(
        "--json", "-c", f"sh -c 'ps -e -o comm= 2>/dev/null || ls -d /proc/[0-9]*; kill -0 {os.getpid()}'", data
    )
    assert ended.returncode == 1
    assert str(os.getpid()) not in [line.rpartition("/")[2] for line in ended.stderr.splitlines()]


@pytest.mark.parametrize("propagation", ["shared", "private"])
def test_the_hosts_own_mounts_are_not_held(
    propagation: str,
    make_btrfs: Callable[[], Btrfs],
    root: Path,
    gate: Gate,
    kopiatomic: Kopiatomic,
    leftovers: Leftovers,
) -> None:
    """Another filesystem that the host unmounts while the engine runs is free at once: its device can be formatted."""
    data, other = make_btrfs(), make_btrfs()
    # In the namespace that plays the host its mount must be the only one.
    command("umount", other.mountpoint)
    free = "python3 -c 'import os, sys; os.close(os.open(sys.argv[1], os.O_RDWR | os.O_EXCL))' $device"
    script = f"""
        set -e
        trap 'touch {gate.folder}/go' EXIT
        mount -o loop {other.image} {other.mountpoint}
        device=$(findmnt -n -o SOURCE --mountpoint {other.mountpoint})
        "$@" &
        while [ ! -e {gate.folder}/started ]; do sleep 0.02; done
        umount {other.mountpoint}
        for i in 1 2 3 4 5 6 7 8 9; do {free} 2>/dev/null && break; sleep 0.2; done
        {free}
        touch {gate.folder}/go
        wait $!
    """
    argv = kopiatomic.argv("--mount-root", root, "-c", gate.command, data.mountpoint)
    ended = command(
        *("unshare", "-m", "--propagation", propagation, "bash", "-c", script, "bash", *argv),
        env=kopiatomic.environment,
        check=False,
    )
    command("mount", "-o", "loop", other.image, other.mountpoint)
    assert ended.returncode == 0, str(ended)
    assert leftovers(root) == []


def test_runs_with_names_of_their_own_end_without_touching_each_other(
    data: Path, root: Path, make_gate: Callable[..., Gate], kopiatomic: Kopiatomic, leftovers: Leftovers
) -> None:
    slow, quick = make_gate(f"cat {root}/slow{data}/file"), make_gate()
    words = ("--mount-root", root)
    with (
        kopiatomic.started(*words, "--name", "slow", "-c", slow.command, data) as first,
        kopiatomic.started(*words, "--name", "quick", "-c", quick.command, data) as second,
    ):
        slow.wait()
        quick.wait()
        assert sorted(path.name for path in root.iterdir()) == ["quick", "slow"]
        quick.let_go()
        assert second.wait(20) == 0
        assert sorted(path.name for path in root.iterdir()) == ["slow"]
        slow.let_go()
        _, errors = first.communicate(timeout=20)
        assert first.returncode == 0, errors
        assert "then" in errors
    assert leftovers(root) == []


def test_a_snapshot_that_somebody_deletes_fails_the_run(
    data: Path, btrfs: Btrfs, root: Path, gate: Gate, kopiatomic: Kopiatomic, tmp_path: Path, leftovers: Leftovers
) -> None:
    top = tmp_path / "top"
    top.mkdir()
    command("mount", "-o", "subvolid=5", btrfs.device, top)
    try:
        with kopiatomic.started("--mount-root", root, "--json", "-c", gate.command, data) as process:
            gate.wait()
            (snapshot,) = top.glob(".kopiatomic/*/*/snapshot")
            command("btrfs", "subvolume", "delete", snapshot)
            gate.let_go()
            output, errors = process.communicate(timeout=20)
        document = valid(output)
        assert process.returncode == 1
        assert document["error"]["kind"] == "view-changed"
        assert not document["engine"]["saved"]
        assert str(data) in errors
        assert leftovers(root) == []
    finally:
        command("umount", top)


def test_a_mount_that_the_engine_takes_away_fails_the_run(
    data: Path, run: Run, root: Path, leftovers: Leftovers
) -> None:
    ended = run("-c", f"sh -c 'umount $0{data}'", data)
    assert ended.returncode == 1
    assert "is not the frozen view" in ended.stderr
    assert leftovers(root) == []


def test_a_mount_that_the_engine_puts_over_the_view_fails_the_run(
    data: Path, run: Run, root: Path, leftovers: Leftovers
) -> None:
    ended = run("-c", f"sh -c 'mount -t tmpfs none $0{data}'", data)
    assert ended.returncode == 1
    assert "is not the frozen view" in ended.stderr
    assert leftovers(root) == []


def test_scaffolding_looks_like_the_directories_that_it_stands_for(
    btrfs: Btrfs, tmp_path: Path, run: Run, root: Path
) -> None:
    above = tmp_path / "above"
    point = above / "point"
    point.mkdir(parents=True)
    command("mount", btrfs.device, point)
    try:
        os.chown(above, 1234, 2345)
        above.chmod(0o3751)
        os.utime(above, ns=(10**18, 10**18 + 123456789))
        ended = run("-c", f"sh -c 'stat -c %a:%u:%g:%y $0{above}; stat -c %a:%u:%g:%Y $0'", point)
        shown = (ended.stdout + ended.stderr).splitlines()
        assert "3751:1234:2345:2001-09-09 01:46:40.123456789 +0000" in shown
        top = os.stat("/")
        assert f"{top.st_mode & 0o7777:o}:{top.st_uid}:{top.st_gid}:{int(top.st_mtime)}" in shown
    finally:
        command("umount", point)


LATE_CHANGE = """
import os, sys
from kopiatomic.cli.entry import main
from kopiatomic.platforms.linux import merged
look, directory = merged._scaffolding, sys.argv.pop()
merged._scaffolding = lambda steps: (os.chmod(directory, 0o777), look(steps))[1]
main()
"""
"""The program with an owner in it who changes a directory (the last word) right after the snapshots."""


def test_directories_above_a_part_are_those_of_the_frozen_tree(data: Path, kopiatomic: Kopiatomic, root: Path) -> None:
    part = data / "above" / "part"
    part.mkdir(parents=True)
    for directory, mode in ((data, 0o3751), (data / "above", 0o2700)):
        directory.chmod(mode)
    words: list[str | Path] = ["--mount-root", root, "-c", f"sh -c 'stat -c %n:%a $0{data} $0{data}/above'", part]
    argv = [sys.executable, "-c", LATE_CHANGE, *words, data / "above"]
    ended = command(*argv, env=kopiatomic.environment)
    assert (data / "above").stat().st_mode & 0o7777 == 0o777
    shown = (ended.stdout + ended.stderr).splitlines()
    assert f"{root}{data}:3751" in shown
    assert f"{root}{data}/above:2700" in shown


@pytest.fixture
def open_to_all(data: Path, btrfs: Btrfs, tmp_path: Path) -> Iterator[Path]:
    """The filesystem once more, where every user may go; what is above a test's own folder is root's alone."""
    point = Path("/mnt") / f"kopiatomic-{tmp_path.name}"
    point.mkdir()
    command("mount", btrfs.device, point)
    try:
        yield point / data.name
    finally:
        command("umount", point)
        point.rmdir()


def test_a_list_keeps_a_user_out_of_directories_of_ours_as_well(open_to_all: Path, kopiatomic: Kopiatomic) -> None:
    """An access control list above a part: mode and mask alone would let the user in."""
    part = open_to_all / "closed" / "part"
    part.mkdir(parents=True)
    (part / "file").write_text("secret")
    view = Path(f"{open_to_all.parent}-view")

    def read(user: str) -> Completed:
        words = ("--layout", "merged", "--mount-root", view, "--user", user, part)
        return kopiatomic("exec", *words, "--", "cat", f"{view}{part}/file")

    assert read("nobody").stdout == "secret"
    # u::rwx, u:65534:---, g::r-x, m::rwx, o::r-x (include/uapi/linux/posix_acl_xattr.h).
    entries = [(1, 7, NO_ID), (2, 0, 65534), (4, 5, NO_ID), (16, 7, NO_ID), (32, 5, NO_ID)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(part.parent, "system.posix_acl_access", acl)
    ended = read("nobody")
    assert (ended.returncode, ended.stdout) == (1, ""), ended
    assert "Permission denied" in ended.stderr
    assert read("root").stdout == "secret"


MAPPED = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *words):
    result = libc.syscall(number, *words)
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result
source, target = (os.fsencode(word) for word in sys.argv[1:])
with subprocess.Popen(["unshare", "--user", "sleep", "60"]) as process:
    while os.readlink(f"/proc/{process.pid}/ns/user") == os.readlink("/proc/self/ns/user"):
        pass
    for kind in ("uid", "gid"):
        with open(f"/proc/{process.pid}/{kind}_map", "w") as file:
            file.write("65534 0 1")
    users = os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY)
    tree = call(428, -100, source, 1 | os.O_CLOEXEC)
    attributes = (ctypes.c_uint64 * 4)(0x100000, 0, 0, users)
    call(442, tree, b"", 0x1000, ctypes.byref(attributes), 32)
    call(429, tree, b"", -100, target, 4)
    process.kill()
"""
"""Mounts a directory once more, so that its files of user 65534 look like root's there: open_tree(2), mount_setattr(2)."""


def test_a_mount_that_maps_user_ids_is_told_and_refused_for_other_users(
    data: Path, kopiatomic: Kopiatomic, tmp_path: Path
) -> None:
    mapped = tmp_path / "mapped"
    mapped.mkdir()
    command(sys.executable, "-c", MAPPED, data, mapped)
    try:
        ended = kopiatomic("exec", "--user", "nobody", mapped, "--", "true")
        assert ended.returncode == 1
        assert f"{mapped}: the mount maps user ids, so --user would read by other rights" in ended.stderr
        ended = kopiatomic("exec", "--layout", "merged", "--mount-root", tmp_path / "view", mapped, "--", "true")
        assert ended.returncode == 0, ended
        assert f"{mapped}: the mount maps user ids" in ended.stderr
    finally:
        command("umount", mapped)


def test_the_engine_does_not_turn_round_while_nothing_happens(
    data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic
) -> None:
    """Waiting costs no processor time, also while mounts come and go on the host."""
    with kopiatomic.started("--mount-root", root, "-c", gate.command, data) as process:
        gate.wait()
        family = Family.of(process.pid)
        for _ in range(5):
            command("mount", "--bind", data, data)
            command("umount", data)
        before = [ticks(pid) for pid in (family.main, family.keeper, family.launcher)]
        time.sleep(1)
        after = [ticks(pid) for pid in (family.main, family.keeper, family.launcher)]
        gate.let_go()
        process.wait(20)
    assert max(b - a for a, b in zip(before, after, strict=True)) <= 5


def ticks(pid: int) -> int:
    """Processor time used so far, in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
