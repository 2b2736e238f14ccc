"""The mount table is read as the kernel writes it, and says which mounts can be seen."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kopiatomic.model.fstypes import may_hang
from kopiatomic.model.mounts import Mount, borders, holder, visible
from kopiatomic.paths import parents
from kopiatomic.system import mountinfo
from kopiatomic.system.mountinfo import parse


def line(id_: int, parent: int, point: str, *, root: str = "/", rest: str = "- btrfs /dev/sda rw") -> str:
    return f"{id_} {parent} 0:{id_} {root} {point} rw,noatime shared:1 {rest}"


def table(*lines: str) -> list[Mount]:
    return parse("\n".join(lines).encode() + b"\n")


def seen(*lines: str) -> dict[str, int]:
    return {point: mount.id for point, mount in visible(table(*lines)).items()}


def escaped(name: bytes) -> bytes:
    """As the kernel's mangle() does."""
    return b"".join(b"\\%03o" % c if c in b" \t\n\\#" else bytes([c]) for c in name)


def test_all_fields_of_a_line_are_read() -> None:
    (mount,) = table("36 35 98:0 /mnt1 /mnt2 rw,noatime shared:1 master:2 - ext3 /dev/root ro,errors=continue")
    assert mount == Mount(
        id=36,
        parent=35,
        device="98:0",
        root="/mnt1",
        point="/mnt2",
        fstype="ext3",
        source="/dev/root",
        options=("rw", "noatime"),
        super_options=("ro", "errors=continue"),
        propagation=("shared:1", "master:2"),
    )


def test_a_line_without_propagation_fields_is_read() -> None:
    (mount,) = table("36 35 98:0 / /mnt rw - tmpfs none rw")
    assert (mount.propagation, mount.fstype) == ((), "tmpfs")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"/a\040b", "/a b"),
        (r"/a\011b", "/a\tb"),
        (r"/a\012b", "/a\nb"),
        (r"/a\134b", "/a\\b"),
        (r"/a\043b", "/a#b"),
        (r"/a\134040", "/a\\040"),
        ("/a-b - c".replace(" ", r"\040"), "/a-b - c"),
    ],
)
def test_octal_escapes_are_undone_once(written: str, meant: str) -> None:
    (mount,) = table(line(1, 0, written, root=written))
    assert (mount.point, mount.root) == (meant, meant)


def test_names_that_are_not_utf8_keep_their_bytes() -> None:
    (mount,) = parse(b"1 0 0:1 / /caf\xe9 rw - btrfs /dev/sda rw\n")
    assert os.fsencode(mount.point) == b"/caf\xe9"


@given(st.binary(max_size=40).filter(lambda name: b"\0" not in name))
def test_any_name_survives_the_kernels_escaping(name: bytes) -> None:
    point = b"/" + name
    (mount,) = parse(b"1 0 0:1 / " + escaped(point) + b" rw - btrfs /dev/sda rw\n")
    assert os.fsencode(mount.point) == point


@pytest.mark.parametrize("text", [b"1 0 0:1 / /mnt rw\n", b"not a mount table\n", b"x 0 0:1 / /mnt rw - btrfs d rw\n"])
def test_a_line_of_another_format_is_an_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse(text)


def test_a_mount_is_read_only_by_itself_or_with_its_filesystem() -> None:
    here, whole, neither = table(
        "1 0 0:1 / /a ro - btrfs d rw", "2 0 0:1 / /b rw - btrfs d ro", "3 0 0:1 / /c rw - btrfs d rw"
    )
    assert (here.read_only, whole.read_only, neither.read_only) == (True, True, False)


def test_of_stacked_mounts_the_last_in_the_chain_is_seen() -> None:
    assert seen(line(1, 0, "/"), line(2, 1, "/mnt"), line(3, 2, "/mnt"), line(4, 3, "/mnt")) == {"/": 1, "/mnt": 4}


def test_what_lies_below_a_covered_mount_is_out_of_sight() -> None:
    lines = [line(1, 0, "/"), line(2, 1, "/mnt"), line(3, 2, "/mnt/below"), line(4, 2, "/mnt")]
    assert seen(*lines) == {"/": 1, "/mnt": 4}


def test_a_mount_on_a_directory_above_hides_earlier_mounts_below_it() -> None:
    assert seen(line(1, 0, "/"), line(2, 1, "/a/b"), line(3, 1, "/a")) == {"/": 1, "/a": 3}


def test_a_mount_made_later_below_a_sibling_is_seen() -> None:
    assert seen(line(1, 0, "/"), line(3, 1, "/a"), line(2, 3, "/a/b")) == {"/": 1, "/a": 3, "/a/b": 2}


def test_tree_order_is_by_parents_and_not_by_lines() -> None:
    lines = [line(4, 3, "/mnt"), line(3, 2, "/mnt"), line(2, 1, "/mnt"), line(1, 0, "/")]
    assert seen(*lines) == {"/": 1, "/mnt": 4}


def test_a_cover_of_the_root_itself_is_seen() -> None:
    assert seen(line(1, 0, "/"), line(2, 1, "/"), line(3, 2, "/mnt")) == {"/": 2, "/mnt": 3}


def test_names_that_only_begin_alike_are_not_above_each_other() -> None:
    assert seen(line(1, 0, "/"), line(2, 1, "/mnt2"), line(3, 1, "/mnt")) == {"/": 1, "/mnt2": 2, "/mnt": 3}


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map("/".join), unique=True))
def test_a_sibling_is_seen_unless_a_later_one_stands_above_it(points: list[str]) -> None:
    siblings = [f"/{point}" for point in points]
    lines = [line(1, 0, "/"), *(line(number, 1, point) for number, point in enumerate(siblings, start=2))]
    hidden = {
        point
        for number, point in enumerate(siblings)
        if any(point.startswith(f"{later}/") for later in siblings[number + 1 :])
    }
    assert seen(*lines).keys() == {"/", *siblings} - hidden


def test_the_holder_of_a_path_is_the_nearest_mount_above_it() -> None:
    mounts = visible(table(line(1, 0, "/"), line(2, 1, "/mnt"), line(3, 2, "/mnt/a")))
    paths = ("/", "/etc", "/mnt", "/mnt/b/c", "/mnt/a", "/mnt/a/x", "/mnt/ab")
    assert [holder(path, mounts).id for path in paths] == [1, 1, 2, 2, 3, 3, 2]


def test_a_table_without_a_root_holds_nothing() -> None:
    with pytest.raises(KeyError):
        holder("/etc", {})


def test_the_directories_above_a_path_are_named_nearest_first() -> None:
    assert parents("/a/b/c") == ["/a/b", "/a", "/"]
    assert parents("/") == []


def test_this_machines_own_table_is_read() -> None:
    assert "/" in visible(mountinfo.read())


@pytest.mark.parametrize(
    ("device", "root", "is_border"),
    [
        ("0:30", "/@/a/docker", False),
        ("0:30", "/@/a", True),
        ("0:30", "/@/a/docker/inner", True),
        ("0:30", "/@/a/docker//deleted", True),
        ("0:30", "/a/docker", True),
        ("0:31", "/@/a/docker", True),
        ("", "/@/a/docker", True),
    ],
)
def test_only_a_mount_of_the_same_place_of_the_same_filesystem_is_no_border(
    device: str, root: str, is_border: bool
) -> None:
    around = line(2, 1, "/mnt", root="/@").replace("0:2 ", "0:30 ")
    bind = line(3, 2, "/mnt/a/docker", root=root).replace("0:3 ", f"{device} ")
    assert ("/mnt/a/docker" in borders(visible(table(line(1, 0, "/"), around, bind)))) is is_border


def test_devices_that_are_not_known_are_never_equal() -> None:
    """In a jail the kernel gives none."""
    mounts = [Mount(1, 0, "", "/", "/", "zfs", "z", (), (), ()), Mount(2, 1, "", "/a", "/a", "zfs", "y", (), (), ())]
    assert set(borders(visible(mounts))) == {"/", "/a"}


def test_a_directory_bound_onto_itself_inside_another_is_judged_by_what_holds_it() -> None:
    lines = [
        line(1, 0, "/"),
        line(2, 1, "/d", root="/d").replace("0:2 ", "0:1 "),
        line(3, 2, "/d/e", root="/d/e").replace("0:3 ", "0:1 "),
        line(4, 2, "/d/f", root="/d/e").replace("0:4 ", "0:1 "),
        line(5, 4, "/d/f/g", root="/d/e/g").replace("0:5 ", "0:1 "),
    ]
    assert set(borders(visible(table(*lines)))) == {"/", "/d/f"}


@pytest.mark.parametrize(
    "fstype",
    [
        "fuse",
        "fuse.sshfs",
        "fuseblk",
        "nfs",
        "cifs",
        "9p",
        "virtiofs",
        "beegfs",
        "gpfs",
        "vboxsf",
        "autofs",
        "gfs2",
        "hostfs",
        "new-fs",
    ],
)
def test_what_is_not_known_to_be_local_may_hang(fstype: str) -> None:
    assert may_hang(fstype)


@pytest.mark.parametrize(
    "fstype",
    [
        "zfs",
        "btrfs",
        "overlay",
        "nullfs",
        "unionfs",
        "ext4",
        "xfs",
        "bcachefs",
        "tmpfs",
        "ufs",
        "vfat",
        "proc",
        "devfs",
        "cgroup2",
    ],
)
def test_what_is_local_or_the_kernel_s_own_does_not(fstype: str) -> None:
    assert not may_hang(fstype)


def test_what_this_kernel_mounts_from_a_device_is_local() -> None:
    """But for FUSE's, and for those that several machines share."""
    lines = [line.split("\t") for line in Path("/proc/filesystems").read_text().splitlines()]
    assert lines
    local = [name for kind, name in lines if kind != "nodev" and name not in {"fuseblk", "gfs2", "ocfs2"}]
    assert [name for name in local if may_hang(name)] == []
