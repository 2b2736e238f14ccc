"""Owners by name: each entry is changed once, and keeps what a change of owner takes away."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kopiatomic.model.record import OwnerNames
from kopiatomic.system.descriptors import closing
from kopiatomic.trees.outcome import Failure
from kopiatomic.trees.owners import Occurring, Owners, give, here

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners are set by root")

SWAPPED = Owners({1000: 1001, 1001: 1000}, {50: 51})
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def given(top: Path) -> list[Failure]:
    with closing(os.open(top, os.O_RDONLY)) as fd:
        return give(fd, SWAPPED, Occurring())


def test_each_file_is_changed_once_whatever_its_names(tmp_path: Path) -> None:
    for name, uid in (("a", 1000), ("b", 1001)):
        (tmp_path / name).touch()
        os.chown(tmp_path / name, uid, 50)
        os.link(tmp_path / name, tmp_path / f"{name}-too")
    (tmp_path / "link").symlink_to("a")
    os.chown(tmp_path / "link", 1000, 7, follow_symlinks=False)
    assert given(tmp_path) == []
    found = {path.name: (path.lstat().st_uid, path.lstat().st_gid) for path in tmp_path.iterdir()}
    assert found == {"a": (1001, 51), "a-too": (1001, 51), "b": (1000, 51), "b-too": (1000, 51), "link": (1001, 7)}


def test_modes_capabilities_and_flags_stay(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    file = tmp_path / "d/file"
    file.touch()
    os.chown(file, 1000, 50)
    file.chmod(0o6755)
    os.setxattr(file, "security.capability", CAPABILITY)
    os.chown(tmp_path / "d", 1001, 50)
    (tmp_path / "d").chmod(0o3775)
    before = [path.stat().st_mtime_ns for path in (file, tmp_path / "d")]
    held = subprocess.run(["chattr", "+i", file], check=False).returncode == 0
    try:
        assert given(tmp_path) == []
        assert (
            not held
            or "i" in subprocess.run(["lsattr", file], capture_output=True, text=True, check=True).stdout.split()[0]
        )
    finally:
        subprocess.run(["chattr", "-f", "-i", file], check=False)
    assert (file.stat().st_uid, file.stat().st_gid, file.stat().st_mode & 0o7777) == (1001, 51, 0o6755)
    assert os.getxattr(file, "security.capability") == CAPABILITY
    assert (tmp_path / "d").stat().st_mode & 0o7777 == 0o3775
    assert [path.stat().st_mtime_ns for path in (file, tmp_path / "d")] == before


def test_access_control_lists_name_the_same_people(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    subprocess.run(["setfacl", "-m", "u:1000:r,u:1001:rw,g:50:x", tmp_path / "d"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1000:rwx", tmp_path / "d"], check=True)
    occurring = Occurring()
    occurring.add_lists({name: os.getxattr(tmp_path / "d", name) for name in os.listxattr(tmp_path / "d")})
    assert (occurring.users, occurring.groups) == ({1000, 1001}, {50})
    assert given(tmp_path) == []
    listed = subprocess.run(
        ["getfacl", "-n", "-c", "-p", tmp_path / "d"], check=True, capture_output=True, text=True
    ).stdout
    assert {"user:1000:rw-", "user:1001:r--", "group:51:--x", "default:user:1001:rwx"} <= set(listed.split())


def test_names_are_looked_up_here() -> None:
    owners = here(OwnerNames({0: "root", 77: "root", 78: "nobody-has-this", 79: "nor-this"}, {78: "nor-that"}))
    assert (dict(owners.users), dict(owners.groups)) == ({77: 0}, {})
    occurring = Occurring([0, 77, 78], [78])
    assert occurring.among(owners.strange) == ["user nobody-has-this", "group nor-that"]
    assert Occurring([0, 77], [79]).among(owners.strange) == []
    assert Occurring([0, 4_000_000_000], [0]).names() == OwnerNames({0: "root"}, {0: "root"})
