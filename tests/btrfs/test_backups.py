"""Backed up with kopia, frozen and restored are the same: names, modes, owners, times, links, and what is empty."""

from __future__ import annotations

import json
import mmap
import os
import re
import stat
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.btrfs.conftest import Listing
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopia, Kopiatomic, command

pytestmark = pytest.mark.in_part(3)

Leftovers = Callable[..., list[str]]
Run = Callable[..., Completed]
Saved = Callable[..., Any]

NAMES = [
    "with space",
    " leading and trailing ",
    "new\nline",
    "tab\tstop",
    "-leading-dash",
    "--json",
    "back\\slash",
    "\\040",
    "quote'\"`$(id)*?[a]",
    "müsli-日本-🙂",
    "e\u0301 decomposed",
    "x" * 255,
    "ü" * 127,
    "#hash%",
]


def populate(folder: Path) -> None:
    """A tree with all that kopia keeps."""
    for number, name in enumerate(NAMES):
        (folder / name).write_text(str(number))
    (folder / "dir").mkdir()
    (folder / "dir" / "empty").mkdir()
    (folder / "empty-file").touch()
    (folder / "setuid").write_text("x")
    (folder / "link").symlink_to("-leading-dash")
    (folder / "dangling").symlink_to("/no/such/place")
    (folder / "sticky").mkdir()
    for name, uid, gid, mode in (("setuid", 1234, 2345, 0o4755), ("sticky", 0, 1234, 0o3777), ("dir", 65534, 0, 0o750)):
        os.chown(folder / name, uid, gid)
        (folder / name).chmod(mode)
    (folder / "none").touch(mode=0)
    (folder / "none").chmod(0)
    for path in sorted(folder.rglob("*"), reverse=True):
        os.utime(path, ns=(10**18, 10**18 + 123456789 + path.lstat().st_ino), follow_symlinks=False)
    os.utime(folder, ns=(10**18, 10**18 + 42))


def described(folder: Path) -> dict[str, tuple[object, ...]]:
    """What each entry of a tree is; without the times that kopia does not restore (links, full directories)."""
    found: dict[str, tuple[object, ...]] = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        content: object = None
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        full = stat.S_ISDIR(status.st_mode) and any(path.iterdir())
        timed = not stat.S_ISLNK(status.st_mode) and not full
        time_ns = status.st_mtime_ns if timed else None
        found[str(path.relative_to(folder))] = (oct(status.st_mode), status.st_uid, status.st_gid, time_ns, content)
    return found


def test_what_is_restored_is_what_was_frozen(
    btrfs: Btrfs, kopia: Kopia, saved: Saved, tmp_path: Path, root: Path, leftovers: Leftovers
) -> None:
    one, nested = btrfs.subvolume("one"), btrfs.subvolume("one/nested in it")
    for folder in (nested, one):
        populate(folder)
    # Only this directory's name is in the view: what it looks like is copied from it.
    scaffold = btrfs.mountpoint
    os.chown(scaffold, 1234, 2345)
    scaffold.chmod(0o3751)
    os.utime(scaffold, ns=(10**18, 10**18 + 123456789))
    document = saved("-r", one, env=kopia.environment)
    assert document["engine"]["problem_count"] == 0
    out = tmp_path / "out"
    kopia("snapshot", "restore", document["engine"]["snapshot_id"], out)
    restored = Path(f"{out}{one}")
    assert described(restored) == described(one)
    above = kopia("show", f"{document['engine']['root_object']}{scaffold.parent}").stdout
    entries = json.loads(above)["entries"]
    (entry,) = [e for e in entries if e["name"] == scaffold.name]
    assert (entry["uid"], entry["gid"], entry["mtime"]) == (1234, 2345, "2001-09-09T01:46:40.123456789Z")
    assert Path(f"{out}{scaffold}").stat().st_mode & 0o7777 == 0o3751
    assert leftovers(root) == []


def test_a_second_run_reads_no_file_again(
    btrfs: Btrfs, kopia: Kopia, saved: Saved, root: Path, leftovers: Leftovers
) -> None:
    data, other = btrfs.subvolume("data"), btrfs.subvolume("other")
    for folder in (data, other):
        for number in range(20):
            (folder / str(number)).write_text(f"{folder} {number}")
    # Four of them are the metadata record: its list, and what lies above and in each subvolume.
    first = saved(data, other, env=kopia.environment)["engine"]["statistics"]
    second = saved(data, other, env=kopia.environment)["engine"]["statistics"]
    assert (first["files_total"], first["files_cached"], first["files_hashed"]) == (44, 0, 44)
    # The directories above are as the host has them: where their times have changed, so has the record.
    assert second["files_total"] == 44
    assert second["files_hashed"] <= 2
    assert leftovers(root) == []


def test_files_that_kopia_cannot_read_make_the_backup_incomplete(
    btrfs: Btrfs, kopia: Kopia, kopiatomic: Kopiatomic, run: Run, root: Path, leftovers: Leftovers
) -> None:
    """A file whose data the device has spoilt: root may read all others."""
    data = btrfs.subvolume("data")
    (data / "good").write_text("x")
    bad = data / "bad"
    bad.write_text("y" * 100_000)
    corrupt(btrfs, bad)
    ended = run("--json", data, env=kopia.environment)
    document = json.loads(ended.stdout)
    assert (ended.returncode, document["result"]) == (3, "incomplete"), str(ended)
    assert document["engine"]["problem_count"] == 1
    assert document["engine"]["problems"][0]["path"].endswith("/data/bad")
    assert re.search(r"not complete: 1 entry could not be saved: \S*/data/bad$", ended.stderr, re.MULTILINE)
    assert re.search(
        r"not complete: 1 entry could not be saved: \S*/data/bad$",
        run("--quiet", data, env=kopia.environment).stderr,
        re.MULTILINE,
    )
    told = kopiatomic("history", document["run_id"]).stdout
    assert re.search(r"^Not complete: 1 entry could not be saved: \S*/data/bad$", told, re.MULTILINE)
    assert leftovers(root) == []


def corrupt(btrfs: Btrfs, file: Path) -> None:
    """Spoil a file's data on the device behind the filesystem's back, so that its checksums no longer fit."""
    command("sync", "-f", btrfs.mountpoint)
    with btrfs.image.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as image:
        found = image.find(b"y" * 4096)
    assert found >= 0
    device = command("findmnt", "-n", "-o", "SOURCE", "--mountpoint", btrfs.mountpoint).stdout.strip()
    with btrfs.image.open("r+b") as writable:
        writable.seek(found)
        writable.write(b"z" * 4096)
        os.fsync(writable.fileno())
    for name in (device, str(file)):
        fd = os.open(name, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    command("mount", "-o", "remount", btrfs.mountpoint)
    Path("/proc/sys/vm/drop_caches").write_text("3")


# Names of the subvolumes themselves

PLACES = [*NAMES, os.fsdecode(b"caf\xe9-\xff")]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_subvolumes_with_any_name_are_shown(
    locale: str, btrfs: Btrfs, saved: Saved, root: Path, listing: Listing, leftovers: Leftovers
) -> None:
    subvolumes = [btrfs.subvolume(name) for name in PLACES]
    for number, subvolume in enumerate(subvolumes):
        (subvolume / f"file{number}").write_text("x")
    document = saved("-c", listing.command, *subvolumes, env={"LC_ALL": locale})
    assert [os.fsencode(d["mountpoint"]) for d in document["datasets"]] == sorted(map(os.fsencode, subvolumes))
    expected = {os.fsencode(s)[1:] + b"/file%d" % number for number, s in enumerate(subvolumes)}
    assert expected <= set(listing.entries())
    # The same by -r.
    again = saved("-c", listing.command, "-r", btrfs.mountpoint, env={"LC_ALL": locale})
    assert len(again["datasets"]) == len(PLACES) + 1
    assert expected <= set(listing.entries())
    assert leftovers(root) == []


def test_mount_points_with_any_name_are_read_from_the_mount_table(
    btrfs: Btrfs, saved: Saved, tmp_path: Path, root: Path, listing: Listing, leftovers: Leftovers
) -> None:
    device = command("findmnt", "-n", "-o", "SOURCE", "--mountpoint", btrfs.mountpoint).stdout.strip()
    (btrfs.mountpoint / "file").write_text("x")
    for name in ("with space", "new\nline\ttab", "back\\slash\\040", "-dash#", "日本", os.fsdecode(b"caf\xe9")):
        point = tmp_path / name
        point.mkdir()
        command("mount", device, point)
        try:
            saved("-c", listing.command, point)
            assert os.fsencode(point / "file")[1:] in listing.entries()
            inside = point / "inside"
            inside.mkdir(exist_ok=True)
        finally:
            command("umount", point)
    assert leftovers(root) == []


def test_kopia_stores_subvolumes_of_any_utf8_name_with_the_frozen_instant(
    btrfs: Btrfs, kopia: Kopia, saved: Saved, root: Path, leftovers: Leftovers
) -> None:
    for name in NAMES:
        (btrfs.subvolume(name) / "file").write_text("x")
    document = saved("-r", btrfs.mountpoint, env={**kopia.environment, "LC_ALL": "C"})
    assert document["engine"]["statistics"]["files_total"] == (
        len(NAMES) + len(("record.json", "what lies above")) + len(document["datasets"])
    )
    (manifest,) = kopia.json("snapshot", "list", "--all")
    assert manifest["id"] == document["engine"]["snapshot_id"]
    assert datetime.fromisoformat(manifest["startTime"]) == datetime.fromisoformat(document["instant"])
    assert manifest["tags"] == {
        "tag:kopiatomic-run": document["run_id"],
        "tag:kopiatomic-atomic": "no",
        "tag:kopiatomic-record": "yes",
    }
    assert leftovers(root) == []


def test_kopia_is_not_given_a_name_that_it_cannot_store(
    btrfs: Btrfs, kopia: Kopia, run: Run, root: Path, leftovers: Leftovers
) -> None:
    subvolume = btrfs.subvolume(os.fsdecode(b"caf\xe9"))
    ended = run(subvolume, env=kopia.environment)
    assert ended.returncode == 1
    assert "kopia cannot store names that are not UTF-8" in ended.stderr
    assert "caf\\xe9" in ended.stderr
    assert leftovers(root) == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_the_terminals_encoding_lacks_does_not_swallow_the_summary(encoding: str, btrfs: Btrfs, run: Run) -> None:
    subvolume = btrfs.subvolume("日本")
    ended = run("-c", "true", subvolume, env={"PYTHONIOENCODING": encoding})
    assert ended.returncode == 0
    assert "Saved 1 dataset at one instant" in ended.stdout
    assert ("日本" if encoding == "utf-8" else "\\u65e5\\u672c") in ended.stdout
    assert "Removed:" in ended.stdout


def test_names_that_are_one_for_kopia_make_the_backup_incomplete(
    btrfs: Btrfs, run: Run, kopia: Kopia, leftovers: Leftovers, root: Path
) -> None:
    """A restore keeps one file of two; what kopia leaves out by a rule of the user's is no concern."""
    data = btrfs.subvolume("data")
    inside = btrfs.subvolume("data/inside")
    for folder in (data / "kept", inside, data / "ignored"):
        folder.mkdir(exist_ok=True)
    for path in (b"kept/a\xff", b"kept/a\xfe", b"kept/b\xff", b"ignored/c\xff", b"ignored/c\xfe", b"inside/d\xff"):
        (data / os.fsdecode(path)).write_text("x")
    (inside / "d\ufffd").write_text("x")
    (data / ".kopiaignore").write_text("/ignored\n")
    for words in ((), ("--layout", "in-place")):
        ended = run(*words, "-r", data, env=kopia.environment)
        assert ended.returncode == 3, str(ended)
        line = next(line for line in ended.stderr.splitlines() if "not complete: " in line)
        assert "4 names are not their own in kopia" in line
        assert all(name in line for name in ("kept/a\\xfe", "kept/a\\xff", "inside/d\ufffd"))
        assert "ignored" not in line
    (data / os.fsdecode(b"kept/a\xfe")).unlink()
    (inside / "d\ufffd").unlink()
    assert run("-r", data, env=kopia.environment).returncode == 0
    assert leftovers(root) == []
