"""FreeBSD's mount table comes out as the kernel has it, and gives the same values as Linux's."""

import ctypes
import errno
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kopiatomic.errors import KopiatomicError
from kopiatomic.model.mounts import Mount, visible
from kopiatomic.system import freebsd_mounts, linux
from kopiatomic.system.freebsd import Kernel
from kopiatomic.system.freebsd_mounts import Statfs, fsid, is_device_of, read
from tests.support.freebsd_shim import MNT_NOWAIT, STATFS_SIZE, Shim, isolated, record

# sys/sys/mount.h, struct statfs: each field with its size in bytes, by hand. No field is moved by alignment.
HEADER = {
    "f_version": 4,
    "f_type": 4,
    "f_flags": 8,
    "f_bsize": 8,
    "f_iosize": 8,
    "f_blocks": 8,
    "f_bfree": 8,
    "f_bavail": 8,
    "f_files": 8,
    "f_ffree": 8,
    "f_syncwrites": 8,
    "f_asyncwrites": 8,
    "f_syncreads": 8,
    "f_asyncreads": 8,
    "f_spare": 80,
    "f_namemax": 4,
    "f_owner": 4,
    "f_fsid": 8,
    "f_charspare": 80,
    "f_fstypename": 16,
    "f_mntfromname": 1024,
    "f_mntonname": 1024,
}


def kernel(*records: bytes) -> Kernel:
    """One with exactly this table."""
    shim = Shim()

    def getfsstat(buffer: int | None, size: int, mode: int) -> int:
        assert mode == MNT_NOWAIT
        fitting = records[: size // STATFS_SIZE]
        if buffer is not None:
            ctypes.memmove(buffer, b"".join(fitting), STATFS_SIZE * len(fitting))
        return len(records) if buffer is None else len(fitting)

    return replace(shim.kernel, getfsstat=getfsstat)


def mounted(*points: str) -> Kernel:
    return kernel(*(record(fstype="zfs", source=f"tank{n}", point=p, fsid=(n + 1, 9)) for n, p in enumerate(points)))


def seen(*points: str) -> dict[str, str]:
    return {point: mount.source for point, mount in visible(read(mounted(*points))).items()}


def test_the_structure_is_the_headers() -> None:
    offset = 0
    for name, size in HEADER.items():
        field = getattr(Statfs, name)
        assert (name, field.offset, field.size) == (name, offset, size)
        offset += size
    assert (offset, ctypes.sizeof(Statfs)) == (2344, 2344)


def test_all_that_freebsd_has_of_a_mount_is_read() -> None:
    root = record(fstype="zfs", source="zroot/ROOT/default", point="/", fsid=(1, 2), flags=0x1000 | 0x10)
    null = record(fstype="nullfs", source="/usr/home", point="/mnt", fsid=(-2, -3), flags=0x1 | 0x8 | 0x800000)
    first, second = read(kernel(root, null))
    assert first == Mount(1 << 32 | 2, 1 << 32 | 2, "1", "/", "/", "zfs", "zroot/ROOT/default", ("local",), (), ())
    assert (second.parent, second.point, second.fstype, second.source) == (first.id, "/mnt", "nullfs", "/usr/home")
    assert second.options == ("ro", "nosuid", "ignore")
    assert second.read_only
    assert not first.read_only


@pytest.mark.parametrize("halves", [(1, 2), (-1, -1), (-2147483648, 2147483647), (0, 5), (7, 0)])
def test_a_file_system_id_comes_back_as_it_was(halves: tuple[int, int]) -> None:
    (mount,) = read(kernel(record(fstype="zfs", source="a", point="/", fsid=halves)))
    assert fsid(mount) == halves


@pytest.mark.parametrize(
    ("device", "same"),
    [
        pytest.param(0xFFFFFFFE, True, id="as it is"),
        pytest.param(0xFFFFFFFFFFFFFFFE, True, id="with its sign"),
        pytest.param(0x00000005FFFFFFFE, True, id="below the second half"),
        pytest.param(5, False, id="the second half"),
        pytest.param(0xFFFFFFFF, False, id="another"),
    ],
)
def test_a_device_number_has_the_first_half_of_the_id_in_its_lower_half(device: int, same: bool) -> None:
    (mount,) = read(kernel(record(fstype="zfs", source="a", point="/", fsid=(-2, 5))))
    assert is_device_of(mount, device) is same


def test_in_a_jail_no_ids_are_shown_and_mounts_are_still_told_apart() -> None:
    records = [
        record(fstype="zfs", source=s, point=p, fsid=(0, 0)) for s, p in (("a", "/"), ("b", "/b"), ("c", "/b/c"))
    ]
    mounts = read(kernel(*records))
    assert len({mount.id for mount in mounts}) == 3
    assert [fsid(mount) for mount in mounts] == [None, None, None]
    assert is_device_of(mounts[0], 12345)
    assert visible(mounts).keys() == {"/", "/b", "/b/c"}


@given(st.binary(min_size=1, max_size=1022).filter(lambda name: b"\0" not in name))
def test_any_name_is_read_byte_for_byte(name: bytes) -> None:
    (mount,) = read(kernel(record(fstype="zfs", source=name, point=b"/" + name, fsid=(1, 1))))
    assert os.fsencode(mount.point) == b"/" + name
    assert os.fsencode(mount.source) == name


def test_the_longest_name_is_read_to_its_end() -> None:
    point = "/" + "x" * 1022
    assert seen("/", point).keys() == {"/", point}


def test_of_stacked_mounts_the_last_one_is_seen() -> None:
    assert seen("/", "/mnt", "/mnt") == {"/": "tank0", "/mnt": "tank2"}


def test_what_a_mount_on_a_directory_above_covers_is_out_of_sight() -> None:
    assert seen("/", "/a/b", "/a/b/c", "/a") == {"/": "tank0", "/a": "tank3"}


def test_a_mount_below_one_that_covers_stands_on_that() -> None:
    assert seen("/", "/a/b", "/a", "/a/b") == {"/": "tank0", "/a": "tank2", "/a/b": "tank3"}
    mounts = read(mounted("/", "/a/b", "/a", "/a/b"))
    assert mounts[3].parent == mounts[2].id


def test_names_that_only_begin_alike_do_not_cover_each_other() -> None:
    assert seen("/", "/mnt2", "/mnt").keys() == {"/", "/mnt", "/mnt2"}


def test_a_table_that_grows_while_it_is_read_is_read_whole() -> None:
    records = [record(fstype="zfs", source=str(n), point=f"/{n}" if n else "/", fsid=(n + 1, 0)) for n in range(60)]
    whole = kernel(*records)
    asked = []

    def getfsstat(buffer: object, size: int, mode: int) -> int:
        asked.append(size)
        # The first answer is of when there were three.
        return 3 if buffer is None else whole.getfsstat(ctypes.addressof(buffer), size, mode)  # type: ignore[arg-type]

    assert len(read(replace(whole, getfsstat=getfsstat))) == 60
    assert len(asked) > 2


def test_a_structure_of_another_version_is_refused_and_not_misread() -> None:
    older = record(fstype="ufs", source="/dev/ada0p2", point="/", fsid=(1, 1), version=0x20030518)
    with pytest.raises(KopiatomicError) as caught:
        read(kernel(older))
    assert caught.value.kind == "statfs-version"
    assert "0x20030518" in caught.value.message


def test_a_call_that_fails_says_why() -> None:
    def getfsstat(*_: object) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    broken = kernel()
    with pytest.raises(KopiatomicError, match="mount table cannot be read: Input/output error"):
        read(replace(broken, getfsstat=getfsstat))


@isolated
def test_through_the_shim_linuxs_own_table_comes_out_the_same() -> None:
    shim = Shim()
    linux.mount("none", "/mnt", "tmpfs", 0, "mode=0700")
    ours = visible(read(shim.kernel))
    assert ours["/mnt"].fstype == "tmpfs"
    assert freebsd_mounts.is_device_of(ours["/mnt"], os.stat("/mnt").st_dev)
    assert not freebsd_mounts.is_device_of(ours["/mnt"], os.stat("/").st_dev)
