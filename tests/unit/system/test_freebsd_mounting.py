"""Mounting on FreeBSD, through the shim: exactly what was asked for comes, and exactly that goes."""

import ctypes
import errno
import os
from pathlib import Path

import pytest

from kopiatomic.model.mounts import Mount
from kopiatomic.system import freebsd_mounting, freebsd_mounts
from kopiatomic.system.freebsd_mounting import Iovec, mount_snapshot, mount_tmpfs, unmount
from tests.support.freebsd_shim import IOVEC, Shim, isolated, mount_nullfs

SNAPSHOT = "tank/a b@kopiatomic_20261122T101112Z-01234567"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a snapshot shows."""
    directory = tmp_path / "frozen"
    directory.mkdir()
    (directory / "file").write_text("frozen")
    return directory


def mount_at(shim: Shim, point: Path) -> Mount:
    return next(m for m in reversed(freebsd_mounts.read(shim.kernel)) if m.point == str(point))


def test_the_vector_is_that_of_the_header() -> None:
    assert (Iovec.iov_base.offset, Iovec.iov_base.size) == (0, ctypes.sizeof(ctypes.c_void_p))
    assert (Iovec.iov_len.offset, Iovec.iov_len.size) == (IOVEC.size // 2, ctypes.sizeof(ctypes.c_size_t))


@isolated
def test_a_snapshot_and_a_nullfs_over_it_show_its_files_read_only(tmp_path: Path, tree: Path) -> None:
    shim = Shim({SNAPSHOT: tree})
    (tmp_path / "s0").mkdir()
    (tmp_path / "näme with spaces").mkdir()
    mount_snapshot(shim.kernel, SNAPSHOT, str(tmp_path / "s0"))
    mount_nullfs(shim.kernel, str(tmp_path / "s0"), str(tmp_path / "näme with spaces"))
    assert (tmp_path / "näme with spaces" / "file").read_text() == "frozen"
    with pytest.raises(OSError, match="Read-only"):
        (tmp_path / "näme with spaces" / "file").write_text("changed")
    assert [(m.fstype, m.source) for m in freebsd_mounts.read(shim.kernel)][-2:] == [
        ("zfs", SNAPSHOT),
        ("nullfs", str(tmp_path / "s0")),
    ]


@isolated
def test_names_that_are_not_utf8_are_passed_as_they_are(tmp_path: Path, tree: Path) -> None:
    shim = Shim()
    point = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n"))
    point.mkdir()
    mount_nullfs(shim.kernel, str(tree), str(point))
    assert mount_at(shim, point).source == str(tree)


@isolated
def test_a_tmpfs_is_for_root_alone(tmp_path: Path) -> None:
    shim = Shim()
    mount_tmpfs(shim.kernel, str(tmp_path))
    assert tmp_path.stat().st_mode & 0o7777 == 0o700
    (tmp_path / "directory").mkdir()


@isolated
def test_what_the_kernel_says_is_in_the_error(tmp_path: Path) -> None:
    shim = Shim()
    shim.fail_at = {0: errno.EPERM}
    with pytest.raises(PermissionError, match="the shim was told to fail") as caught:
        mount_tmpfs(shim.kernel, str(tmp_path))
    assert caught.value.filename == str(tmp_path)


@isolated
def test_a_snapshot_that_does_not_exist_is_named_by_its_mount_point(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        mount_snapshot(Shim().kernel, "tank/none@s", str(tmp_path))
    assert caught.value.filename == str(tmp_path)


@isolated
def test_of_two_mounts_on_one_point_the_one_that_is_meant_goes(tmp_path: Path, tree: Path) -> None:
    shim = Shim({SNAPSHOT: tree})
    mount_snapshot(shim.kernel, SNAPSHOT, str(tmp_path))
    below = mount_at(shim, tmp_path)
    mount_tmpfs(shim.kernel, str(tmp_path))
    with pytest.raises(OSError, match="busy"):
        unmount(shim.kernel, below)
    assert [fstype for fstype, _, _ in shim.ours()] == ["zfs", "tmpfs"]
    unmount(shim.kernel, mount_at(shim, tmp_path))
    assert [fstype for fstype, _, _ in shim.ours()] == ["zfs"]


@isolated
def test_one_that_is_gone_takes_no_other_with_it(tmp_path: Path, tree: Path) -> None:
    """umount(8) would take the nullfs: its source is the path that is given."""
    shim = Shim({SNAPSHOT: tree})
    (tmp_path / "s0").mkdir()
    (tmp_path / "view").mkdir()
    mount_snapshot(shim.kernel, SNAPSHOT, str(tmp_path / "s0"))
    lower = mount_at(shim, tmp_path / "s0")
    unmount(shim.kernel, lower)
    mount_nullfs(shim.kernel, str(tmp_path / "s0"), str(tmp_path / "view"))
    with pytest.raises(FileNotFoundError):
        unmount(shim.kernel, lower)
    assert [fstype for fstype, _, _ in shim.ours()] == ["nullfs"]


@isolated
def test_a_mount_below_a_nullfs_and_one_in_use_are_busy(tmp_path: Path, tree: Path) -> None:
    shim = Shim({SNAPSHOT: tree})
    (tmp_path / "s0").mkdir()
    (tmp_path / "view").mkdir()
    mount_snapshot(shim.kernel, SNAPSHOT, str(tmp_path / "s0"))
    mount_nullfs(shim.kernel, str(tmp_path / "s0"), str(tmp_path / "view"))
    with pytest.raises(OSError, match="busy"):
        unmount(shim.kernel, mount_at(shim, tmp_path / "s0"))
    with open(tmp_path / "view" / "file"), pytest.raises(OSError, match="busy"):
        unmount(shim.kernel, mount_at(shim, tmp_path / "view"))
    unmount(shim.kernel, mount_at(shim, tmp_path / "view"))
    unmount(shim.kernel, mount_at(shim, tmp_path / "s0"))
    assert shim.ours() == []


@isolated
def test_by_its_id_a_mount_goes_and_in_a_jail_by_its_path(tmp_path: Path) -> None:
    shim = Shim()
    for jailed in (False, True):
        shim.jailed = jailed
        mount_tmpfs(shim.kernel, str(tmp_path))
        unmount(shim.kernel, mount_at(shim, tmp_path))
        assert shim.ours() == []
    by_id, by_path = [words for call, *words in shim.calls if call == "unmount"]
    assert by_id[0].startswith("FSID:")
    assert by_path == [str(tmp_path)]


@isolated
def test_negative_halves_of_an_id_are_written_as_the_kernel_reads_them() -> None:
    shim = Shim()
    mount = Mount((0xFFFFFFFE << 32) | 0x80000000, 1, "", "/", "/x", "zfs", "a", (), (), ())
    with pytest.raises(FileNotFoundError):
        freebsd_mounting.unmount(shim.kernel, mount)
    assert shim.calls == [("unmount", "FSID:-2:-2147483648")]
