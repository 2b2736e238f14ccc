"""In place, what lies above a place can be moved by nobody: a user's directories are frozen as a whole, or hidden."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.btrfs.test_in_place import InPlace, Script, in_place, mounted, script
from tests.support.filesystems import Btrfs
from tests.support.programs import Kopia, command
from tests.support.swapper import USER, exchange

pytestmark = pytest.mark.in_part(2)

__all__ = ["in_place", "script"]


@pytest.fixture
def home(btrfs: Btrfs) -> Path:
    """A subvolume of root's with a user's directory in it, which holds ``docs``."""
    home = btrfs.subvolume("home")
    for path in (home / "ann", home / "ann" / "docs", home / "bob"):
        path.mkdir()
        os.chown(path, USER, USER)
    (home / "ann" / "docs" / "file").write_text("frozen\n")
    return home


@pytest.fixture
def guest(btrfs: Btrfs) -> Path:
    """A subvolume that is mounted in the user's directory."""
    guest = btrfs.subvolume("guest")
    (guest / "file").write_text("frozen\n")
    return guest


def shielded(document: Any) -> list[tuple[str, str, str]]:
    return [(one["path"], one["how"], one["for"]) for one in document["shielded"]]


def test_a_part_that_its_user_could_move_has_its_whole_dataset_frozen(
    home: Path, in_place: InPlace, script: Script
) -> None:
    lines = f"cat {home}/ann/docs/file; for at in ann bob; do touch {home}/$at/x 2> /dev/null || echo no; done"
    ended, document = in_place("-c", script(f"{lines}; echo $KOPIATOMIC_SOURCES"), home / "ann" / "docs")
    assert ended.returncode == 0, str(ended)
    assert script.said == ["frozen", "no", "no", f"{home}/ann/docs"]
    assert document["sources"] == [f"{home}/ann/docs"]
    assert [d["path"] for d in document["datasets"]] == [f"{home}/ann/docs"]
    assert shielded(document) == [(str(home), "read-only", f"{home}/ann/docs")]
    assert "user nobody" in document["shielded"][0]["who"]


def test_a_part_in_directories_of_roots_leaves_the_rest_live(home: Path, in_place: InPlace, script: Script) -> None:
    ended, document = in_place("-c", script(f"touch {home}/bob/live; touch {home}/ann/x || echo no"), home / "ann")
    assert ended.returncode == 0, str(ended)
    assert script.said == ["no"]
    assert (home / "bob" / "live").exists()
    assert shielded(document) == []


def test_what_is_mounted_in_the_rest_is_seen_again(
    home: Path, guest: Path, btrfs: Btrfs, in_place: InPlace, script: Script
) -> None:
    memory = home / "bob" / "memory"
    memory.mkdir()
    with mounted("-t", "tmpfs", "none", memory):
        (memory / "file").write_text("live\n")
        for flags in ([], ["--only-frozen"]):
            ended, document = in_place(
                *flags, "-c", script(f"cat {memory}/file; touch {memory}/new"), home / "ann" / "docs"
            )
            assert ended.returncode == 0, str(ended)
            assert script.said == ["live"]
            assert document["uncovered"] == []
            (memory / "new").unlink()


def test_what_has_to_be_written_in_the_rest_is_live(home: Path, in_place: InPlace, script: Script) -> None:
    wanted = home / "ann" / "state"
    wanted.mkdir()
    lines = f"echo written > {wanted}/file; touch {home}/ann/x || echo no"
    ended, _ = in_place("--writable", wanted, "-c", script(lines), home / "ann" / "docs")
    assert ended.returncode == 0, str(ended)
    assert (wanted / "file").read_text() == "written\n"
    assert script.said == ["no"]


def test_a_dataset_below_a_users_directory_has_that_hidden(
    home: Path, guest: Path, btrfs: Btrfs, in_place: InPlace, script: Script
) -> None:
    """The user's own files are hidden; what is mounted there is seen, and so is the rest of the system."""
    vm, memory = home / "ann" / "vm", home / "ann" / "deep" / "memory"
    for path in (vm, memory):
        path.mkdir(parents=True)
    (home / "ann").chmod(0o750)
    device = command("findmnt", "-no", "SOURCE", btrfs.mountpoint).stdout.split("[")[0].strip()
    with mounted("-o", "subvol=guest", device, vm), mounted("-t", "tmpfs", "none", memory):
        (memory / "file").write_text("live\n")
        lines = [
            f"cat {vm}/file {memory}/file; ls {home}/ann; ls -A {home}/ann/deep; stat -c '%u %a' {home}/ann",
            f"touch {vm}/x || echo no; touch {memory}/new {home}/bob/new",
        ]
        ended, document = in_place("-c", script("\n".join(lines)), vm)
        assert ended.returncode == 0, str(ended)
        assert script.said == ["frozen", "live", "deep", "vm", "memory", f"{USER} 750", "no"]
        assert (home / "bob" / "new").exists()
        assert document["sources"] == [str(vm)]
        assert shielded(document) == [(f"{home}/ann", "hidden", str(vm))]


def test_what_has_to_be_written_below_a_hidden_directory_is_live(
    home: Path, guest: Path, btrfs: Btrfs, kopia: Kopia, in_place: InPlace
) -> None:
    """kopia's configuration, cache and repository are the user's, in the directory that is hidden."""
    ann = home / "ann"
    vm = ann / "vm"
    vm.mkdir()
    environment = {k: v for k, v in kopia.environment.items() if k not in {"KOPIA_CACHE_DIRECTORY", "KOPIA_LOG_DIR"}}
    mine = Kopia(
        kopia.folder, {**environment, "HOME": str(ann), "KOPIA_CONFIG_PATH": str(ann / ".config" / "kopia.config")}
    )
    (ann / "repository").mkdir()
    mine("repository", "create", "filesystem", "--path", ann / "repository")
    device = command("findmnt", "-no", "SOURCE", btrfs.mountpoint).stdout.split("[")[0].strip()
    with mounted("-o", "subvol=guest", device, vm):
        ended, document = in_place(vm, env=mine.environment)
        assert ended.returncode == 0, str(ended)
        again, second = in_place(vm, env=mine.environment)
        assert again.returncode == 0, str(again)
        assert second["engine"]["statistics"]["files_hashed"] == 0
    sources = {snapshot["source"]["path"] for snapshot in mine.json("snapshot", "list", "--all")}
    assert sources == {str(vm)}
    assert document["sources"] == [str(vm)]


@pytest.mark.parametrize("layout", ["merged", "in-place"])
def test_a_users_directories_are_backed_up_under_the_same_path(
    layout: str, home: Path, guest: Path, btrfs: Btrfs, kopia: Kopia, saved: Callable[..., Any], root: Path
) -> None:
    vm = home / "ann" / "vm"
    vm.mkdir()
    device = command("findmnt", "-no", "SOURCE", btrfs.mountpoint).stdout.split("[")[0].strip()
    with mounted("-o", "subvol=guest", device, vm):
        document = saved("--layout", layout, home / "ann" / "docs", vm, env=kopia.environment)
    expected = [f"{home}/ann/docs", str(vm)] if layout == "in-place" else [str(root)]
    assert document["sources"] == expected
    assert {s["source"] for s in document["engine"]["sources"]} == set(expected)
    assert [d["path"] for d in document["datasets"]] == [f"{home}/ann/docs", str(vm)]


def test_a_place_keeps_what_its_mount_forbids(btrfs: Btrfs, in_place: InPlace, script: Script, tmp_path: Path) -> None:
    """noexec and nosymfollow, also of a part."""
    point = tmp_path / "point"
    point.mkdir()
    subvolume = btrfs.subvolume("strict")
    (subvolume / "part").mkdir()
    for folder in (subvolume, subvolume / "part"):
        (folder / "program").write_text("#!/bin/sh\necho ran\n")
        (folder / "program").chmod(0o755)
        (folder / "link").symlink_to("program")
    device = command("findmnt", "-no", "SOURCE", btrfs.mountpoint).stdout.split("[")[0].strip()
    lines = "{0}/program 2> /dev/null || echo no; cat {0}/link 2> /dev/null || echo no; [ -r {0}/program ] && echo read"
    with mounted("-o", "subvol=strict,noexec,nosymfollow", device, point):
        for place in (point, point / "part"):
            ended, _ = in_place("-c", script(lines.format(place)), place)
            assert ended.returncode == 0, str(ended)
            assert script.said == ["no", "no", "read"]


def test_a_plan_says_what_is_not_seen_as_it_is(home: Path, kopiatomic: Callable[..., Any]) -> None:
    ended = kopiatomic("plan", "--layout", "in-place", home / "ann" / "docs")
    assert ended.returncode == 0, str(ended)
    told = " ".join(ended.stdout.split())
    assert f"{home} is read-only all over, for user nobody could move {home}/ann/docs" in told


def test_the_root_of_everything_that_others_can_write_to_is_refused(home: Path, kopiatomic: Callable[..., Any]) -> None:
    """Nothing can stand for it."""
    ended = kopiatomic("plan", "--facts", "--layout", "in-place", home)
    facts = json.loads(ended.stdout)
    facts["movers"] = dict.fromkeys(facts["movers"], "everybody")
    saved = home / "facts.json"
    saved.write_text(json.dumps(facts))
    ended = kopiatomic("plan", "--from-facts", saved, "--layout", "in-place", home)
    assert ended.returncode == 1
    assert "everybody can change the directory /" in ended.stderr


def test_a_directory_that_is_a_link_right_before_the_engine_is_not_followed(
    home: Path, in_place: InPlace, script: Script, tmp_path: Path
) -> None:
    """The user exchanges it while the engine runs, for a link to what root alone may read."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    (home / "ann" / "link").symlink_to(secret)
    ready, go = tmp_path / "ready", tmp_path / "go"
    os.mkfifo(ready)
    os.mkfifo(go)
    pid = os.fork()
    if pid == 0:
        try:
            ready.read_text()
            exchange(home / "ann" / "docs", home / "ann" / "link")
            go.write_text("x")
        finally:
            os._exit(0)
    ended, _ = in_place(
        "-c", script(f"echo x > {ready}; cat {go} > /dev/null; cat {home}/ann/docs/file"), home / "ann/docs"
    )
    os.waitpid(pid, 0)
    exchange(home / "ann" / "docs", home / "ann" / "link")
    assert ended.returncode == 0, str(ended)
    assert script.said == ["frozen"]
