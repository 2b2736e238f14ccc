"""A run takes the subvolumes that were asked for, shows them where they are, and leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.btrfs.conftest import Listing, alone
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopiatomic, command
from tests.support.schema import valid

pytestmark = pytest.mark.in_part(5)

Run = Callable[..., Completed]
Saved = Callable[..., Any]
Leftovers = Callable[..., list[str]]


def paths(document: Any) -> list[str]:
    return [d["path"] for d in document["datasets"]]


def test_one_subvolume_is_shown_frozen_at_its_own_path(
    btrfs: Btrfs, saved: Saved, root: Path, leftovers: Leftovers
) -> None:
    data = btrfs.subvolume("data")
    (data / "file").write_text("then")
    engine = f"sh -c 'echo now > {data}/file; cat $0{data}/file > {root}.copy'"
    document = saved("-c", engine, data)
    assert root.with_suffix(".copy").read_text() == "then"
    assert (data / "file").read_text() == "now\n"
    assert (document["atomic"], document["skew_seconds"]) == (True, 0)
    assert leftovers(root) == []


def test_two_subvolumes_are_shown_together(
    btrfs: Btrfs, saved: Saved, root: Path, listing: Listing, leftovers: Leftovers
) -> None:
    one, other = btrfs.subvolume("one"), btrfs.subvolume("other")
    (one / "a").write_text("a")
    (other / "b").write_text("b")
    document = saved("-c", listing.command, one, other)
    assert paths(document) == [str(one), str(other)]
    assert {os.fsencode(one / "a")[1:], os.fsencode(other / "b")[1:]} < set(listing.entries())
    assert leftovers(root) == []


def test_nested_subvolumes_come_with_recursion_alone(
    btrfs: Btrfs, saved: Saved, root: Path, listing: Listing, leftovers: Leftovers
) -> None:
    data = btrfs.subvolume("data")
    for name in ("data/nested", "data/nested/deep"):
        (btrfs.subvolume(name) / "file").write_text(name)
    alone = saved("-c", listing.command, "--no-nested", data)
    assert paths(alone) == [str(data)]
    assert os.fsencode(data / "nested/file")[1:] not in listing.entries()
    recursive = saved("-c", listing.command, "-r", data)
    assert paths(recursive) == [str(data), str(data / "nested"), str(data / "nested/deep")]
    (changed,) = recursive["warnings"]
    assert "took something else" in changed
    assert os.fsencode(data / "nested/deep/file")[1:] in listing.entries()
    assert leftovers(root) == []


def test_a_nested_subvolume_alone_can_be_named(btrfs: Btrfs, saved: Saved, root: Path, leftovers: Leftovers) -> None:
    btrfs.subvolume("data")
    nested = btrfs.subvolume("data/nested")
    assert paths(saved("-c", "true", nested)) == [str(nested)]
    assert leftovers(root) == []


def test_a_nested_subvolume_covered_by_another_mount_is_missing(
    btrfs: Btrfs, run: Run, root: Path, leftovers: Leftovers
) -> None:
    data, nested = btrfs.subvolume("data"), btrfs.subvolume("data/nested")
    command("mount", "-t", "tmpfs", "none", nested)
    ended = run("-c", "true", "-r", data)
    assert ended.returncode == 3
    assert f"not complete: {nested}: another filesystem is mounted over it" in ended.stderr
    assert leftovers(root) == []


def test_other_programs_snapshots_are_no_part_of_recursion(btrfs: Btrfs, saved: Saved) -> None:
    data = btrfs.subvolume("data")
    command("btrfs", "subvolume", "snapshot", "-r", data, data / "daily")
    command("btrfs", "subvolume", "snapshot", data, data / "writable-clone")
    document = saved("-c", "true", "-r", data)
    assert paths(document) == [str(data), str(data / "writable-clone")]
    assert [o["dataset"] for o in document["left_out"]] == [str(data / "daily")]
    assert paths(saved("-c", "true", data / "daily")) == [str(data / "daily")]


def test_a_named_subvolume_whose_place_is_not_in_the_view_is_an_error(
    make_btrfs: Callable[[], Btrfs], run: Run, root: Path, leftovers: Leftovers
) -> None:
    outer, place, move = moved_mount(make_btrfs)
    ended = run("-p", move, "-c", "true", outer, place)
    assert ended.returncode == 1
    assert f"{place} cannot appear at {place}: {place} is a link in the snapshot of {outer}" in ended.stderr
    assert "name the directory that is meant by a path without it" in ended.stderr
    assert leftovers(root) == []


def test_a_subvolume_that_is_moved_meanwhile_is_taken_where_it_is(
    make_btrfs: Callable[[], Btrfs], run: Run, root: Path, listing: Listing, leftovers: Leftovers
) -> None:
    """Through a link that stands at its old place it is not found."""
    data = make_btrfs().subvolume("data")
    (data / "dir" / "nested").parent.mkdir()
    command("btrfs", "subvolume", "create", data / "dir" / "nested")
    ended = run("-r", "-p", f"mv {data}/dir {data}/moved; ln -s moved {data}/dir", "-c", listing.command, data)
    assert ended.returncode == 0, str(ended)
    assert f"{data}/dir/nested vanished; the datasets are listed again" in ended.stderr
    assert f"{data}/moved/nested  in" in ended.stdout
    assert leftovers(root) == []


def test_an_implied_subvolume_whose_place_is_not_in_the_view_is_missing(
    make_btrfs: Callable[[], Btrfs], kopiatomic: Kopiatomic, root: Path, leftovers: Leftovers
) -> None:
    outer, place, move = moved_mount(make_btrfs)
    ended = alone([outer, place], kopiatomic, "--mount-root", root, "-p", move, "-a", "-c", "true")
    assert ended.returncode == 3, str(ended)
    assert f"not complete: {place} cannot appear at {place}" in ended.stderr
    assert leftovers(root) == []


def test_a_filesystem_mounted_in_a_subvolume_that_is_not_taken_is_shown_at_its_place(
    make_btrfs: Callable[[], Btrfs], saved: Saved, listing: Listing, root: Path, leftovers: Leftovers
) -> None:
    outer, inner = make_btrfs(), make_btrfs()
    place = outer.subvolume("nested") / "place"
    place.mkdir()
    (inner.mountpoint / "file").touch()
    command("mount", inner.device, place)
    saved("-c", listing.command, "--no-nested", outer.mountpoint, place)
    assert os.fsencode(place / "file")[1:] in listing.entries()
    assert leftovers(root) == []


def moved_mount(make_btrfs: Callable[[], Btrfs]) -> tuple[Path, Path, str]:
    """A subvolume, the place of a filesystem that is mounted in it, and what makes a link of that place.

    The link is only in the subvolume itself: a filesystem in memory is between it and the path.
    """
    outer, inner = make_btrfs(), make_btrfs()
    place = outer.mountpoint / "folder" / "place"
    place.mkdir(parents=True)
    command("mount", inner.device, place)
    link = f"umount {place}; rmdir {place}; ln -s / {place}"
    memory = f"mount -t tmpfs none {place.parent}; mkdir {place}"
    return outer.mountpoint, place, f"{link}; {memory}; mount {inner.device} {place}"


def test_a_subvolume_mounted_by_itself_is_named_by_its_mount_point(
    btrfs: Btrfs, saved: Saved, root: Path, listing: Listing, leftovers: Leftovers
) -> None:
    (btrfs.subvolume("@home") / "file").write_text("x")
    home = root.with_name("home2")
    home.mkdir()
    command("mount", "-o", "subvol=@home", btrfs.device, home)
    try:
        document = saved("-c", listing.command, home)
        assert paths(document) == [str(home)]
        assert os.fsencode(home / "file")[1:] in listing.entries()
        # The same subvolume by both its paths is taken once.
        assert len(saved("-c", "true", home, btrfs.mountpoint / "@home")["datasets"]) == 1
        assert leftovers(root) == []
    finally:
        command("umount", home)


def test_a_directory_in_a_subvolume_is_shown_alone(
    btrfs: Btrfs, saved: Saved, listing: Listing, root: Path, leftovers: Leftovers
) -> None:
    data = btrfs.subvolume("data")
    for name in ("one/inside", "other"):
        (data / name).mkdir(parents=True)
        (data / name / "file").touch()
    document = saved("-c", listing.command, data / "one/inside")
    assert document["datasets"][0]["paths"] == [str(data / "one/inside")]
    below = {entry for entry in listing.entries() if entry.startswith(os.fsencode(data)[1:])}
    assert below == {os.fsencode(data / name)[1:] for name in ("", "one", "one/inside", "one/inside/file")}
    assert leftovers(root) == []


def test_what_lies_below_an_excluded_subvolume_is_shown_at_its_place(
    btrfs: Btrfs, saved: Saved, listing: Listing, root: Path, leftovers: Leftovers
) -> None:
    top = btrfs.mountpoint
    middle, lower = btrfs.subvolume("middle"), btrfs.subvolume("middle/lower")
    (middle / "secret").touch()
    (lower / "file").touch()
    middle.chmod(0o751)
    os.utime(middle, ns=(10**18, 10**18))
    saved("-r", "-c", listing.command, top, "--exclude", middle)
    found = listing.entries()
    assert os.fsencode(lower / "file")[1:] in found
    assert os.fsencode(middle / "secret")[1:] not in found
    assert b"|751|" in found[os.fsencode(middle)[1:]] + b"|"
    assert leftovers(root) == []


def test_a_part_that_is_a_link_or_gone_in_the_frozen_tree_is_named(
    btrfs: Btrfs, run: Run, root: Path, leftovers: Leftovers
) -> None:
    part = btrfs.subvolume("data") / "part"
    for how, where, reason in (
        ("ln -s /etc", part, "is a link"),
        ("touch", part, "is no directory"),
        ("true", part, "does not exist"),
        ("btrfs subvolume create", part, "is a subvolume of its own"),
        ("ln -s /etc", part / "deep", "is a link"),
        ("touch", part / "deep", "is no directory"),
    ):
        (part / "deep").mkdir(parents=True)
        named = part if where == part else part / "deep" / "inside"
        named.mkdir(exist_ok=True)
        ended = run("-p", f"rm -r {where}; {how} {where}", "-c", "true", named)
        assert ended.returncode == 1, str(ended)
        assert f"{named} cannot appear at" not in ended.stderr
        assert f" cannot appear at {named}: {where} {reason} in its snapshot" in ended.stderr
        assert leftovers(root) == []
        command("rm", "-rf", part)


def test_what_is_moved_into_a_part_after_the_listing_is_missed(
    btrfs: Btrfs, run: Run, root: Path, leftovers: Leftovers
) -> None:
    data = btrfs.subvolume("data")
    (data / "part").mkdir()
    (data / "other").mkdir()
    nested = btrfs.subvolume("data/other/nested")
    assert run("-r", "-c", "true", data / "part").returncode == 0
    ended = run("-r", "-p", f"mv {nested} {data}/part/", "-c", "true", data / "part")
    assert ended.returncode == 3, str(ended)
    assert (
        f"{nested} was moved or deleted between the listing and the instant, and may have been in {data}/part"
        in ended.stderr
    )
    assert run("-r", "-c", "true", data / "part").returncode == 0
    assert leftovers(root) == []


def test_everything_takes_every_mounted_subvolume_once(
    make_btrfs: Callable[[], Btrfs], kopiatomic: Kopiatomic, tmp_path: Path, root: Path, leftovers: Leftovers
) -> None:
    one, other = make_btrfs(), make_btrfs()
    other.subvolume("nested")
    again = tmp_path / "again"
    again.mkdir()
    command("mount", one.device, again)
    try:
        points = [one.mountpoint, other.mountpoint, again]
        ended = alone(points, kopiatomic, "--mount-root", root, "-a", "-c", "true", "--json")
        assert ended.returncode == 0, str(ended)
        document = valid(ended.stdout)
        assert paths(document) == [str(again), str(other.mountpoint), str(other.mountpoint / "nested")]
        assert not document["atomic"]
        assert leftovers(root) == []
    finally:
        command("umount", again)


# The top-level subvolume, in which our own directory lies for the length of a run


def stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_nlink, status.st_size


def test_our_directory_shows_neither_in_the_top_level_subvolumes_backup_nor_in_its_times(
    btrfs: Btrfs, saved: Saved, root: Path, listing: Listing, leftovers: Leftovers
) -> None:
    top = btrfs.mountpoint
    (top / "file").write_text("x")
    os.utime(top, ns=(10**18, 10**18))
    before = stamp(top)
    saved("-c", listing.command, top)
    shown, prefix = listing.entries(), os.fsencode(top)[1:]
    assert {path for path in shown if path.startswith(prefix + b"/")} == {prefix + b"/file"}
    assert b"|1000000000.0000000000|" in shown[prefix]
    assert stamp(top) == before
    assert leftovers(root) == []


def test_the_top_level_subvolume_together_with_others_keeps_its_times(
    btrfs: Btrfs, saved: Saved, root: Path, listing: Listing, leftovers: Leftovers
) -> None:
    top = btrfs.mountpoint
    for name in ("a", "b", "a/nested"):
        btrfs.subvolume(name)
    os.utime(top, ns=(10**18, 10**18))
    before = stamp(top)
    for _ in range(3):
        saved("-c", listing.command, "-r", top)
        assert stamp(top) == before
    names = [p for p in listing.entries() if b".kopiatomic" in p]
    assert names == []
    assert b"|1000000000.0000000000|" in listing.entries()[os.fsencode(top)[1:]]
    assert leftovers(root) == []


def test_runs_at_once_do_not_see_each_other(
    btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path, leftovers: Leftovers, tmp_path: Path
) -> None:
    """Neither each other's snapshots, with -r, nor changed times of the top-level subvolume that holds them."""
    top = btrfs.mountpoint
    btrfs.subvolume("nested")
    os.utime(top, ns=(10**18, 10**18))
    before = stamp(top)
    engine = f"sh -c 'ls $0 > /dev/null; stat -c %Y $0{top}; ls -A $0{top}'"
    script = 'for i in $(seq 8); do "$@" --name run$i > $OUT$i 2>&1 & done; wait'
    argv = Kopiatomic.argv("--mount-root", root, "-r", "-c", engine, top)
    command("bash", "-c", script, "bash", *argv, env={**kopiatomic.environment, "OUT": str(tmp_path / "out")})
    for number in range(1, 9):
        output = (tmp_path / f"out{number}").read_text()
        assert "\n1000000000\nnested\nkopiatomic: removing the snapshots ...\nSaved 2 datasets" in output, output
        assert "kopiatomic_" not in output
    assert stamp(top) == before
    assert leftovers(root) == []


def test_a_run_does_not_depend_on_a_directory_that_was_removed(
    btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path, tmp_path: Path
) -> None:
    """What is named by an absolute path is found from anywhere."""
    data, gone = btrfs.subvolume("data"), tmp_path / "gone"
    gone.mkdir()
    argv = ["sh", "-c", f'cd {gone}; rmdir {gone}; exec "$@"', "sh"]
    ended = command(*argv, *kopiatomic.argv("--mount-root", root, "-c", "ls", data), env=kopiatomic.environment)
    assert ended.returncode == 0
