"""Who besides root can change a directory, or move what is in it."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kopiatomic.system import linux_acl, safety

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away is root's")

SOMEBODY = 12345


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("owner", "group", "mode", "who"),
    [
        (0, 0, 0o755, ""),
        (0, SOMEBODY, 0o755, ""),
        (0, SOMEBODY, 0o2750, ""),
        (0, SOMEBODY, 0o775, f"group {SOMEBODY}"),
        (0, 0, 0o775, "group root"),
        (0, 0, 0o757, "everybody"),
        (0, SOMEBODY, 0o777, f"group {SOMEBODY} and everybody"),
        (SOMEBODY, 0, 0o555, f"user {SOMEBODY}"),
        (SOMEBODY, 0, 0o1777, f"user {SOMEBODY} and group root and everybody"),
    ],
)
def test_writers_by_owner_and_mode(owner: int, group: int, mode: int, who: str, tmp_path: Path) -> None:
    os.chown(tmp_path, owner, group)
    tmp_path.chmod(mode)
    assert safety.writers(str(tmp_path)) == who
    with opened(tmp_path) as fd:
        assert safety.writers(fd) == who
    for path in (tmp_path / "file", tmp_path / "link"):
        path.symlink_to("/") if path.name == "link" else path.touch()
        assert safety.writers(str(path)) == ""


NOBODY = 0xFFFFFFFF
"""The number of entries that have none."""
OWNER, USER, OWN_GROUP, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32


def posix(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX list as setxattr(2) takes it: tag, permissions, number (linux/posix_acl_xattr.h)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in sorted(entries))


@pytest.mark.parametrize(
    ("entry", "mask", "group", "who"),
    [
        ((USER, 7, SOMEBODY), 7, 5, f"user {SOMEBODY}"),
        ((GROUP, 3, SOMEBODY), 7, 5, f"group {SOMEBODY}"),
        ((USER, 5, SOMEBODY), 7, 5, ""),
        ((USER, 7, SOMEBODY), 5, 7, ""),
        ((USER, 7, 0), 7, 5, ""),
        ((USER, 5, SOMEBODY), 7, 7, "group root"),
    ],
)
def test_writers_by_a_posix_access_control_list(
    entry: tuple[int, int, int], mask: int, group: int, who: str, tmp_path: Path
) -> None:
    common = [(OWNER, 7, NOBODY), (OWN_GROUP, group, NOBODY), (MASK, mask, NOBODY), (OTHER, 5, NOBODY)]
    os.setxattr(tmp_path, "system.posix_acl_access", posix(*common, entry))
    assert safety.writers(str(tmp_path)) == who
    path = os.open(tmp_path, os.O_PATH)
    with opened(tmp_path) as fd:
        assert safety.writers(fd) == safety.writers(path) == who
    os.close(path)


ADD_FILE = 0x2


def on_the_wire(*entries: tuple[int, int, int, str]) -> bytes:
    """An NFSv4 list as an NFS client shows it."""
    data = struct.pack(">I", len(entries))
    for kind, flags, mask, who in entries:
        text = who.encode()
        data += struct.pack(">4I", kind, flags, mask, len(text)) + text + bytes(-len(text) % 4)
    return data


def in_numbers(*entries: tuple[int, int, int, int, int]) -> bytes:
    return struct.pack(">2I", 0, len(entries)) + b"".join(struct.pack(">5I", *entry) for entry in entries)


@pytest.mark.parametrize(
    ("name", "data", "who"),
    [
        ("system.nfs4_acl", on_the_wire((0, 0, 0x1F01FF, "OWNER@"), (0, 0, 0x1200A9, "EVERYONE@")), []),
        ("system.nfs4_acl", on_the_wire((0, 0, ADD_FILE, "ann@here")), ["ann@here (NFSv4 access control list)"]),
        ("system.nfs4_acl", on_the_wire((1, 0, ADD_FILE, "ann@here"), (0, 0x8, ADD_FILE, "bob@here")), []),
        ("system.nfs4_acl", b"\0\0\0\1", ["whoever an access control list names that cannot be read"]),
        ("system.nfs4_acl_xdr", in_numbers((0, 0, 1, 0x1F01FF, 1), (0, 0, 0, 0x1200A9, 7)), []),
        ("system.nfs4_acl_xdr", in_numbers((0, 0, 1, ADD_FILE, 3)), ["EVERYONE@ (NFSv4 access control list)"]),
        ("system.nfs4_acl_xdr", in_numbers((0, 0, 0, 0x80000, 7)), ["7 (NFSv4 access control list)"]),
    ],
)
def test_writers_by_an_nfs_version_4_access_control_list(
    name: str, data: bytes, who: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No filesystem at hand shows one: the system call's answer is put in."""

    def getxattr(_path: str, asked: str, *, follow_symlinks: bool = True) -> bytes:
        if asked == name:
            return data
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "getxattr", getxattr)
    assert linux_acl.writers(str(tmp_path), 0) == who


def test_what_cannot_be_asked_is_not_taken_for_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def getxattr(*_: object, follow_symlinks: bool = True) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "getxattr", getxattr)
    with pytest.raises(OSError, match="Input/output error"):
        safety.writers(str(tmp_path))
    assert safety.look([str(tmp_path)], lambda _: "") == {f"/{tmp_path.parts[1]}": "somebody (Input/output error)"}


def test_who_can_move_an_entry_of_a_sticky_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    for name, owner in (("roots", 0), ("theirs", SOMEBODY)):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, owner, owner)
    with opened(tmp_path) as fd:
        assert safety.movers(fd, "roots") == ""
        assert safety.movers(fd, "theirs") == f"user {SOMEBODY}"
        assert safety.movers(fd, "not there yet") == ""
    os.chown(tmp_path, SOMEBODY, 0)
    with opened(tmp_path) as fd:
        assert f"user {SOMEBODY}" in safety.movers(fd, "roots"), "the owner of a sticky directory may move all in it"


def test_nothing_is_looked_at_below_what_can_be_moved_or_must_not_be_looked_into(tmp_path: Path) -> None:
    theirs, served = tmp_path / "theirs", tmp_path / "served"
    for path in (theirs / "inner" / "place", served / "place"):
        path.mkdir(parents=True)
    os.chown(theirs, SOMEBODY, 0)
    found = safety.look(
        [str(theirs / "inner" / "place"), str(served / "place")],
        lambda directory: "the server" if directory == str(served) else "",
    )
    assert found[str(theirs)] == ""
    assert found[str(theirs / "inner")] == f"user {SOMEBODY}"
    assert str(theirs / "inner" / "place") not in found
    assert found[str(served / "place")] == "the server"


def test_a_way_is_plainly_safe_where_root_alone_can_change_every_step() -> None:
    with tempfile.TemporaryDirectory(dir="/run") as folder:
        top = Path(folder)
        way = top / "a" / "b"
        way.mkdir(parents=True, mode=0o755)
        for safe in (way, way / "missing" / "more", top):
            assert safety.is_plainly_safe(str(safe))
        (top / "link").symlink_to("a")
        (way / "file").touch()
        for other in (top / "link" / "b", way / "file", top / "a" / ".." / "a", Path("/tmp"), Path("/tmp/missing")):
            assert not safety.is_plainly_safe(str(other))
        way.parent.chmod(0o777)
        assert not safety.is_plainly_safe(str(way))
        way.parent.chmod(0o755)
        os.chown(way.parent, SOMEBODY, 0)
        assert not safety.is_plainly_safe(str(way))
