"""A subvolume of a backup becomes a new one with its properties, and nothing else is touched; owners come back by name."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kopiatomic.model.record import INDEX
from tests.btrfs.test_restore import RECORD, Ground, ground
from tests.support.exact_tree import differences
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopia, Kopiatomic, command

pytestmark = pytest.mark.in_part(4)

__all__ = ["ground"]


@pytest.fixture
def one(btrfs: Btrfs, root: Path, kopiatomic: Kopiatomic, kopia: Kopia) -> Ground:
    """With kopia alone."""
    return Ground(btrfs, root, kopiatomic, [], kopia.environment)


def restored(ground: Ground, target: Path, *words: str | Path) -> Completed:
    return ground.restore("latest", "--dataset", ground.source, "--as", target, *words)


def properties(subvolume: Path) -> list[str]:
    return (
        command("btrfs", "property", "get", "-ts", subvolume).stdout.splitlines()
        + command("btrfs", "property", "get", "-ti", subvolume).stdout.splitlines()
    )


def is_subvolume(path: Path) -> bool:
    return path.is_dir() and path.stat().st_ino == 256


def own(ground: Ground) -> Path:
    """What the source has without the subvolume that is nested in it: a snapshot of it."""
    snapshot = ground.target("own")
    command("btrfs", "subvolume", "snapshot", ground.source, snapshot)
    return snapshot


@pytest.mark.in_part(1)
def test_a_subvolume_comes_back_as_one(ground: Ground) -> None:
    command("btrfs", "property", "set", "-ti", ground.source, "compression", "zstd")
    (ground.source / "squeezed").write_bytes(bytes(1 << 20))
    os.utime(ground.source, ns=(0, 1_234_567_890_123_456_789))
    ground.run()
    target = ground.target("back")
    ended = restored(ground, target)
    assert ended.returncode == 0, str(ended)
    assert is_subvolume(target)
    assert properties(target) == properties(ground.source)
    assert "compression=zstd" in properties(target)
    assert f"each of which is restored by itself: {ground.nested}" in ended.stderr
    nested = (target / "nested").stat()
    assert (os.listdir(target / "nested"), nested.st_ino == 256) == ([], False)
    assert (nested.st_uid, nested.st_gid, nested.st_mode & 0o7777) == (0, 0, 0o755)
    assert target.stat().st_mtime_ns == ground.source.stat().st_mtime_ns
    snapshot = own(ground)
    for path in (snapshot, target):
        (path / "nested").rmdir()
        os.utime(path, ns=(0, 0))
    if ground.words:
        # These keep attributes, and none of them is the absence of what is inherited.
        for path in target.rglob("*"):
            was = snapshot / path.relative_to(target)
            there, before = (set(os.listxattr(one, follow_symlinks=False)) for one in (path, was))
            if "btrfs.compression" in there - before:
                os.removexattr(path, "btrfs.compression")
    assert differences(snapshot, target) == []
    # That one is restored by itself.
    ended = ground.restore("latest", "--dataset", ground.nested, "--as", target / "nested")
    assert ended.returncode == 0, str(ended)
    assert is_subvolume(target / "nested")
    assert differences(ground.nested, target / "nested") == []


def test_a_machine_that_has_no_record_of_the_run_restores(one: Ground, tmp_path: Path) -> None:
    one.run()
    elsewhere = {**one.environment, "KOPIATOMIC_STATE_DIR": str(tmp_path / "fresh")}
    words: list[str | Path] = ["restore", "latest", "--dataset", one.source, "--as", one.target("back")]
    ended = one.kopiatomic(*words, "--json", env=elsewhere)
    assert ended.returncode == 0, str(ended)
    document = json.loads(ended.stdout)
    assert (document["dataset"], document["others"]) == (str(one.source), [str(one.nested)])
    assert (document["target"], document["commands"]) == (str(one.target("back")), [])
    assert (document["differences"], document["failures"]) == ([], [])


def test_what_is_read_only_is_said_as_a_command(one: Ground) -> None:
    frozen = one.target("frozen")
    command("btrfs", "subvolume", "snapshot", "-r", one.nested, frozen)
    ended = one.kopiatomic("--mount-root", one.root, frozen, env=one.environment)
    assert ended.returncode == 0, str(ended)
    target = one.target("it's back")
    # A shell completes the path of a directory with a slash.
    ended = one.restore("latest", "--dataset", f"{frozen}/", "--as", target)
    assert ended.returncode == 0, str(ended)
    assert "ro=false" in properties(target)
    (printed,) = [line for line in ended.stdout.splitlines() if line.startswith("btrfs ")]
    command("sh", "-c", printed)
    assert "ro=true" in properties(target)


def test_words_that_do_not_go_together_are_refused(one: Ground) -> None:
    target = one.target("back")
    for words, why in (
        (("--to", target, "--dataset", one.source, "--as", target), "--to is for a directory"),
        (("--to", target, "--as", target), "--to is for a directory"),
        (("--dataset", one.source), "--dataset and --as go together"),
        (("--as", target), "--dataset and --as go together"),
        ((), "it is not said where to"),
        (("/etc", "--dataset", one.source, "--as", target), "without paths"),
        (("--dataset", one.source, "--as", target, "--no-metadata"), "--dataset needs the metadata record"),
        (("--to", target, "--names", "--no-metadata"), "--names needs the metadata record"),
    ):
        ended = one.restore("latest", *words)
        assert (ended.returncode, why in ended.stderr) == (2, True), str(ended)
    assert not target.exists()


def test_a_dataset_that_is_not_there_is_named_with_those_that_are(one: Ground) -> None:
    target = one.target("back")
    one.run("--no-metadata")
    ended = restored(one, target)
    assert (ended.returncode, "has no metadata record" in ended.stderr) == (1, True), str(ended)
    assert "--to DIR" in ended.stderr
    one.run()
    ended = one.restore("latest", "--dataset", "tank/home", "--as", target)
    assert ended.returncode == 1, str(ended)
    assert f"no dataset tank/home was saved; these were: {one.source}, {one.nested}" in ended.stderr
    ended = one.kopiatomic("--mount-root", one.root, one.source / "d", env=one.environment)
    assert ended.returncode == 0, str(ended)
    ended = restored(one, target)
    assert (ended.returncode, "only parts of" in ended.stderr) == (1, True), str(ended)
    assert not target.exists()


def test_what_exists_is_left_alone(one: Ground, tmp_path: Path) -> None:
    one.run()
    mine = one.btrfs.subvolume("mine")
    (mine / "file").write_text("mine")
    directory = one.target("directory")
    directory.mkdir()
    user = one.target("of-a-user")
    user.mkdir()
    shutil.chown(user, "nobody")
    link = one.target("link")
    link.symlink_to(mine)
    for target, why in (
        (mine, "exists, and nothing may be overwritten"),
        (directory, "exists and is not a subvolume"),
        (link, "cannot be restored into"),
        (user / "back", "others can replace what leads to it"),
        (one.target("none") / "back", "no subvolume can be made in"),
        (tmp_path / "back", "it is not in a Btrfs filesystem"),
    ):
        ended = restored(one, target)
        assert (ended.returncode, why in ended.stderr) == (1, True), str(ended)
    assert (mine / "file").read_text() == "mine"
    assert (os.listdir(directory), os.listdir(user)) == ([], [])


def test_what_has_received_nothing_is_removed_again(one: Ground, tmp_path: Path) -> None:
    one.run()
    target = one.target("back")
    failing = tmp_path / "failing"
    failing.write_text(f'#!/bin/sh\ncase "$*" in *--mode=local*) exit 1;; esac\nexec {shutil.which("kopia")} "$@"\n')
    failing.chmod(0o755)
    one.environment["KOPIATOMIC_KOPIA"] = str(failing)
    ended = restored(one, target)
    assert ended.returncode == 1, str(ended)
    assert not target.exists()
    # Nor is one that was there.
    empty = one.btrfs.subvolume("empty")
    ended = restored(one, empty)
    assert ended.returncode == 1, str(ended)
    assert is_subvolume(empty)
    del one.environment["KOPIATOMIC_KOPIA"]
    ended = restored(one, empty)
    assert ended.returncode == 0, str(ended)


@pytest.mark.parametrize("after", [0.3, 0.9])
def test_a_killed_one_can_be_run_again(one: Ground, after: float) -> None:
    one.run()
    target = one.target("back")
    words: list[str | Path] = ["restore", "latest", "--dataset", one.source, "--as", target]
    with one.kopiatomic.started(*words, env=one.environment) as process:
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    ended = one.restore("latest", "--dataset", one.nested, "--as", target)
    if (target / ".kopiatomic-restoring").exists():
        assert "another restore" in ended.stderr, str(ended)
        assert ended.returncode == 1
    elif ended.returncode == 0:
        command("btrfs", "subvolume", "delete", target)
    ended = restored(one, target)
    assert ended.returncode == 0 or "nothing may be overwritten" in ended.stderr, str(ended)
    snapshot = own(one)
    for path in (snapshot, target):
        (path / "nested").rmdir()
        os.utime(path, ns=(0, 0))
    assert differences(snapshot, target) == []


def accounts(kopiatomic: Kopiatomic, folder: Path, users: dict[str, int], groups: dict[str, int]) -> Kopiatomic:
    """kopiatomic where these accounts are, and root."""
    folder.mkdir()
    (folder / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (folder / "group").write_text("root:x:0:\n")
    with (folder / "passwd").open("a") as passwd, (folder / "group").open("a") as group:
        passwd.writelines(f"{name}:x:{uid}:0::/root:/bin/sh\n" for name, uid in users.items())
        group.writelines(f"{name}:x:{gid}:\n" for name, gid in groups.items())
    mounts = 'mount --bind "$0/passwd" /etc/passwd && mount --bind "$0/group" /etc/group && exec "$@"'

    class WithAccounts(Kopiatomic):
        @staticmethod
        def argv(*args: str | Path) -> list[str]:
            return ["unshare", "-m", "sh", "-c", mounts, str(folder), *Kopiatomic.argv(*args)]

    return WithAccounts(kopiatomic.environment)


@pytest.mark.in_part(1)
def test_owners_come_back_by_name(ground: Ground, tmp_path: Path) -> None:
    """Also where the number of one is that of another: both are changed once."""
    there, here = {"ann": 1234, "bob": 1000, "eve": 12, "fay": 4001}, {"ann": 1000, "bob": 1234, "fay": 4101}
    groups, groups_here = {"users": 5678, "crew": 1001, "club": 4002}, {"users": 5679, "crew": 1002, "club": 4102}
    (ground.source / "two").write_text("names")
    os.link(ground.source / "two", ground.source / "names")
    os.chown(ground.source / "two", 1234, 5678)
    os.chown(ground.nested, 1000, 1001)
    # Some stand in lists alone, of entries that an engine keeps.
    (ground.source / "shared").mkdir()
    (ground.source / "shared/file").touch()
    command("setfacl", "-m", "u:4001:r", ground.source / "shared/file")
    command("setfacl", "-d", "-m", "g:4002:rx", ground.source / "shared")
    usual = ground.kopiatomic
    ground.kopiatomic = accounts(usual, tmp_path / "there", there, groups)
    # What the second takes from the cache has the names as well.
    for _ in range(2):
        ground.run()
    ground.kopiatomic = accounts(usual, tmp_path / "here", here, groups_here)
    raw = ground.target("raw")
    ended = ground.restore("latest", "/.kopiatomic", "--to", raw, "--no-metadata")
    assert ended.returncode == 0, str(ended)
    document = json.loads((raw / INDEX).read_text())
    RECORD.validate(document)
    assert {"1234": "ann", "12": "eve"}.items() <= document["users"].items()
    assert document["groups"]["5678"] == "users"

    by_number, by_name = ground.target("numbers"), ground.target("names")
    ended = ground.restore("latest", ground.source, "--to", by_number)
    assert ended.returncode == 0, str(ended)
    assert differences(ground.source, by_number) == []
    ended = ground.restore("latest", ground.source, "--to", by_name, "--names")
    assert ended.returncode == 0, str(ended)
    assert "nobody has these names here, and the numbers stay: user eve" in ended.stderr
    shared = command("getfacl", "-R", "-n", "-p", by_name / "shared").stdout
    assert ("user:4101:r--" in shared, "default:group:4102:r-x" in shared) == (True, True), shared
    ended = ground.restore("latest", ground.source / "shared", "--to", ground.target("part"), "--names")
    assert ended.returncode == 0, str(ended)
    assert "nobody has these names" not in ended.stderr
    # The same again by other means.
    change_owners(by_number, {1234: 1000, 1000: 1234}, {5678: 5679, 1001: 1002})
    listed = command("getfacl", "-n", "-p", by_name / "setuid").stdout
    assert ("user:1234:r--" in listed, "group:1002:rw-" in listed) == (True, True), listed
    for at in (by_number, by_name):
        subprocess.run(["chattr", "-R", "-f", "-i", "-a", at], check=False)
        command("setfacl", "-R", "-P", "-b", "-k", at)
    assert differences(by_number, by_name) == []


def change_owners(top: Path, users: dict[int, int], groups: dict[int, int]) -> None:
    """Change each entry once, and keep what a change of owner takes away."""
    found = {path.lstat().st_ino: path for path in [top, *top.rglob("*")]}
    for path in found.values():
        status = path.lstat()
        owner = users.get(status.st_uid, status.st_uid), groups.get(status.st_gid, status.st_gid)
        if owner != (status.st_uid, status.st_gid):
            kept = os.getxattr(path, "security.capability") if path.name == "setuid" else b""
            os.chown(path, *owner, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(status.st_mode & 0o7777)
            if kept:
                os.setxattr(path, "security.capability", kept)
