"""The view on FreeBSD, through the shim: what is shown, what is refused, what is noticed, and that all of it goes again."""

import ctypes
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems import KINDS
from kopiatomic.model.leftovers import Intent
from kopiatomic.model.mounts import Mount
from kopiatomic.platforms.freebsd import view as freebsd
from kopiatomic.platforms.freebsd.merged import MergedView
from kopiatomic.platforms.steps import (
    LiveStep,
    Missing,
    ScaffoldStep,
    SnapshotStep,
    Step,
    VolumesStep,
    named_and_missing,
)
from kopiatomic.system import freebsd_mounting, linux
from tests.support.freebsd_shim import JAIL, isolated, mount_nullfs
from tests.unit.support.freebsd_views import Ground

pytestmark = [
    pytest.mark.usefixtures("lock_directory"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the shim mounts for real"),
]

NOT_LONG = 0.1
"""Seconds to wait for a mount that stays busy."""


@pytest.fixture
def ground(tmp_path: Path, lock_directory: Path) -> Ground:
    ground = Ground(tmp_path)
    ground.begin()
    return ground


def refused(view: MergedView) -> KopiatomicError:
    with pytest.raises(KopiatomicError) as caught:
        view.assemble()
    assert caught.value.hint
    return caught.value


def small(ground: Ground) -> MergedView:
    """Two datasets, one in the other."""
    ground.tree("tank/a", "b")
    return ground.view(ground.step("tank/a", "/a"), ground.step("tank/a/b", "/a/b"))


# What it shows


@isolated
def test_each_dataset_is_at_its_place_and_read_only(ground: Ground) -> None:
    ground.tree("tank/a", "b/c", "empty")
    (ground.tree("tank/empty") / "file").unlink()
    view = ground.view(
        ground.step("tank/a", "/a"),
        ground.step("tank/a/b/c", "/a/b/c"),
        ground.step("tank/d", "/x/y/d"),
        ground.step("tank/empty", "/z"),
    )
    made = view.assemble()
    assert made.mounted == ("/a", "/a/b/c", "/x/y/d", "/z")
    assert made.filled == ("/a", "/a/b/c", "/x/y/d")
    assert made.missing == ()
    assert [ground.shown(place) for place in ("/a", "/a/b/c", "/x/y/d")] == ["tank/a", "tank/a/b/c", "tank/d"]
    for place in ("/a/new", "/x/new", "/new", "/x/y/d/new"):
        with pytest.raises(OSError, match="Read-only"):
            os.mkdir(f"{ground.root}{place}")
    assert (view.top(), view.engine_root()) == (str(ground.root), None)


@isolated
def test_the_dataset_at_the_top_holds_the_others(ground: Ground) -> None:
    ground.tree("zroot/ROOT/default", "usr/home")
    made = ground.view(ground.step("zroot/ROOT/default", "/"), ground.step("zroot/home", "/usr/home")).assemble()
    assert made.mounted == ("/", "/usr/home")
    assert ground.shown("") == "zroot/ROOT/default"
    assert ground.shown("/usr/home") == "zroot/home"


@isolated
def test_parts_of_a_dataset_come_from_one_mount_of_its_snapshot(ground: Ground) -> None:
    tree = ground.tree("tank/a", "one/deep", "two", "not asked for")
    (tree / "one/deep/file").write_text("deep")
    (tree / "two/file").write_text("two")
    steps = ground.step("tank/a", "/a/one/deep", part="one/deep"), ground.step("tank/a", "/a/two", part="two")
    made = ground.view(*steps).assemble()
    assert made.mounted == ("/a/one/deep", "/a/two")
    assert ground.shown("/a/one/deep") == "deep"
    assert sorted(os.listdir(f"{ground.root}/a")) == ["one", "two"]
    assert [fstype for fstype, _, _ in ground.shim.ours()] == ["tmpfs", "zfs", "nullfs", "nullfs", "nullfs"]


@isolated
def test_an_empty_directory_of_ours_in_a_frozen_tree_holds_what_lies_below_it(ground: Ground) -> None:
    (ground.tree("tank/a", "b") / "b" / "hidden").write_text("")
    ground.view(ground.step("tank/a", "/a"), ScaffoldStep("", "/a/b"), ground.step("tank/c", "/a/b/c")).assemble()
    assert os.listdir(f"{ground.root}/a/b") == ["c"]
    assert ground.shown("/a/b/c") == "tank/c"


@isolated
def test_directories_that_only_hold_mount_points_look_like_the_real_ones(ground: Ground) -> None:
    real = ground.folder / "real"
    (real / "inner" / "data").mkdir(parents=True)
    os.chown(real / "inner", 12, 34)
    os.chmod(real / "inner", 0o1731)
    os.utime(real / "inner", ns=(10**18 + 1, 10**18 + 2))
    os.utime(real, ns=(10**18 + 3, 10**18 + 4))
    ground.view(ground.step("tank/a", f"{real}/inner/data")).assemble()
    for directory in (Path("/"), ground.folder, real, real / "inner"):
        mine = Path(f"{ground.root}{directory}").stat()
        there = directory.stat()
        assert (mine.st_mode, mine.st_uid, mine.st_gid) == (there.st_mode, there.st_uid, there.st_gid)
    assert Path(f"{ground.root}{real}/inner").stat().st_mtime_ns == 10**18 + 2
    assert Path(f"{ground.root}{real}").stat().st_mtime_ns == 10**18 + 4


@isolated
def test_names_with_any_bytes_are_shown(ground: Ground) -> None:
    name = os.fsdecode(b"caf\xe9 \n#")
    (ground.tree("tank/a", name) / name / "file").write_text("found")
    view = ground.view(ground.step("tank/a", f"/{name}", part=name))
    view.assemble()
    assert ground.shown(f"/{name}") == "found"
    assert view.check() == []
    assert view.remove() == []


# What has no place


@isolated
def test_a_place_that_does_not_exist_in_the_tree_above_is_left_out_and_said(ground: Ground) -> None:
    ground.tree("tank/a", "there")
    steps = [ground.step("tank/a", "/a"), ground.step("tank/b", "/a/there/b"), ground.step("tank/b/c", "/a/there/b/c")]
    made = ground.view(*steps).assemble()
    assert made.mounted == ("/a",)
    assert made.missing == (
        Missing("tank/b", "/a/there/b", "/a/there/b does not exist in the snapshot of tank/a"),
        Missing("tank/b/c", "/a/there/b/c", "/a/there/b does not exist in the snapshot of tank/a"),
    )


@isolated
def test_one_that_was_named_is_not_left_out_but_refused(ground: Ground) -> None:
    error = refused(ground.view(ground.step("tank/a", "/a"), ground.step("tank/b", "/a/b", named=True)))
    assert error.kind == "place-missing"
    assert "tank/b cannot appear at /a/b" in error.message


@isolated
def test_a_link_in_a_frozen_tree_leads_no_mount_elsewhere(ground: Ground) -> None:
    tree = ground.tree("tank/a", "real")
    elsewhere = ground.folder / "elsewhere"
    (elsewhere / "b").mkdir(parents=True)
    (tree / "link").symlink_to(elsewhere)
    (tree / "last").symlink_to(elsewhere / "b")
    (tree / "plain").write_text("")
    places = ("/a/link/b", "/a/last", "/a/plain")
    steps = [ground.step(f"tank/{number}", place) for number, place in enumerate(places)]
    made = ground.view(ground.step("tank/a", "/a"), *steps).assemble()
    where = "in the snapshot of tank/a"
    assert [m.reason for m in made.missing] == [
        f"/a/link is a link {where}",
        f"/a/last is a link {where}",
        f"/a/plain is no directory {where}",
    ]
    assert os.listdir(elsewhere / "b") == []
    assert not [point for _, _, point in ground.shim.ours() if point.startswith(str(elsewhere))]


@isolated
@pytest.mark.parametrize(
    ("part", "reason", "hint"),
    [
        ("gone", "/gone does not exist", "removed or replaced it"),
        ("link", "/link is a link", "led to elsewhere"),
        ("file", "/file is no directory", "removed or replaced it"),
        ("a/../..", "/a does not exist", "removed or replaced it"),
    ],
)
def test_a_part_that_is_no_directory_of_the_snapshot_is_not_shown(
    part: str, reason: str, hint: str, ground: Ground
) -> None:
    ground.tree("tank/a").joinpath("link").symlink_to("/etc")
    made = ground.view(ground.step("tank/a", f"/x/{part}", part=part)).assemble()
    assert [m.reason for m in made.missing] == [f"/x{reason} in its snapshot"]
    assert hint in (named_and_missing(made.missing[0]).hint or "")
    assert made.mounted == ()


@isolated
def test_a_path_longer_than_freebsd_mounts_is_left_out(ground: Ground) -> None:
    deep = "/".join(["d" * 200] * 6)
    ground.tree("tank/a", deep)
    made = ground.view(ground.step("tank/a", "/a"), ground.step("tank/b", f"/a/{deep}")).assemble()
    (missing,) = made.missing
    assert "FreeBSD mounts paths of up to 1023" in missing.reason
    assert "--mount-root" in missing.hint
    assert made.mounted == ("/a",)


# What is refused before anything is made


@isolated
@pytest.mark.parametrize(
    "step",
    [
        SnapshotStep("/data", "/data", KINDS["btrfs"], "x"),
        VolumesStep("", "/.volumes", (), 0),
        LiveStep("tmpfs", "/tmp", "tmpfs"),
        SnapshotStep("tank/a", "/", KINDS["zfs"], "tank/a@x", open_top=True),
        SnapshotStep("tank/a", "/file", KINDS["zfs"], "tank/a@x", part="file", file=True),
    ],
    ids=["btrfs", "volumes", "live", "open top", "file"],
)
def test_what_is_not_built_is_refused_before_anything_is_made(step: Step, ground: Ground) -> None:
    assert refused(ground.view(step)).kind == "not-on-freebsd"
    assert ground.recorded() == set()
    assert ground.shim.calls == []


@isolated
@pytest.mark.parametrize(("owner", "mode"), [(0, 0o775), (0, 0o757), (1000, 0o755)])
def test_a_mount_root_that_others_could_move_is_refused(owner: int, mode: int, ground: Ground) -> None:
    (ground.folder / "open").mkdir()
    os.chmod(ground.folder / "open", mode)
    os.chown(ground.folder / "open", owner, 0)
    ground.root = ground.folder / "open" / "kopia"
    ground.root.mkdir()
    error = refused(small(ground))
    assert error.kind == "mount-root"
    assert str(ground.folder / "open") in error.message
    assert ground.shim.calls == []


@isolated
@pytest.mark.parametrize("place", ["", "inner"])
def test_a_mount_root_that_something_is_mounted_in_is_refused(place: str, ground: Ground) -> None:
    (ground.root / place).mkdir(exist_ok=True)
    linux.mount("none", str(ground.root / place), "tmpfs", 0, "mode=0700")
    error = refused(small(ground))
    assert error.kind == "mount-root"
    assert str(ground.root / place) in error.message
    assert ground.shim.calls == []


@isolated
def test_a_jail_that_may_not_mount_is_told_before_anything_is_made(ground: Ground) -> None:
    for name, value in {**JAIL, "security.jail.mount_nullfs_allowed": 0}.items():
        ground.shim.sysctls[name] = (value, 4)
    error = refused(small(ground))
    assert error.kind == "jail"
    assert "lacks allow.mount.nullfs" in error.message
    assert ground.shim.calls == []


@isolated
def test_in_a_jail_without_file_system_ids_all_goes_as_elsewhere(ground: Ground) -> None:
    for name, value in JAIL.items():
        ground.shim.sysctls[name] = (value, 4)
    ground.shim.jailed = True
    view = small(ground)
    view.assemble()
    assert view.check() == []
    freebsd_mounting.mount_tmpfs(ground.shim.kernel, f"{ground.root}/a/b")
    assert len(view.check()) == 1
    # By its path the other one would go.
    left = view.remove(NOT_LONG)
    assert f"mount {ground.root}/a/b: something is mounted over it" in left[0]
    assert ("tmpfs", "tmpfs", f"{ground.root}/a/b") in ground.shim.ours()
    linux.detach(f"{ground.root}/a/b")
    assert view.remove() == []
    assert ground.shim.ours() == []


# On record before it is made


@isolated
def test_every_mount_is_on_record_before_it_is_made(ground: Ground) -> None:
    asked = []

    def look(options: dict[str, str]) -> None:
        source = options.get("from") or options["target"]
        (origin,) = [
            o for fstype, point, o in ground.recorded() if (fstype, point) == (options["fstype"], options["fspath"])
        ]
        assert source == origin
        asked.append(options["fstype"])

    ground.shim.before_nmount = look  # type: ignore[assignment]
    ground.tree("tank/a", "part")
    ground.view(ground.step("tank/a", "/x/part", part="part"), ground.step("tank/b", "/b")).assemble()
    assert asked == ["tmpfs", "zfs", "zfs", "nullfs", "nullfs", "nullfs"]
    assert len(ground.recorded()) == 6


@isolated
def test_without_a_record_nothing_is_mounted(ground: Ground) -> None:
    def record(_: Sequence[Intent]) -> None:
        raise KopiatomicError("no space", kind="state")

    view = MergedView(str(ground.root), str(ground.base), [ground.step("tank/a", "/a")], ground.shim.kernel, record)
    with pytest.raises(KopiatomicError, match="no space"):
        view.assemble()
    assert ground.shim.calls == []
    assert view.remove() == []


# The check


@isolated
def test_a_view_that_nobody_touched_is_the_one_that_was_made(ground: Ground) -> None:
    view = small(ground)
    view.assemble()
    assert view.check() == []


@isolated
def test_who_destroys_a_snapshot_is_refused_by_the_nullfs_over_it(ground: Ground) -> None:
    view = small(ground)
    view.assemble()
    with pytest.raises(OSError, match=r"\[Errno 16\]"):
        ground.shim.destroy(ground.snapshot("tank/a/b"))
    assert ground.shown("/a/b") == "tank/a/b"
    assert view.check() == []


@isolated
def test_a_snapshot_that_was_pulled_away_is_noticed(ground: Ground) -> None:
    ground.shim.sysctls["vfs.recursive_forced_unmount"] = (1, 1)
    view = small(ground)
    view.assemble()
    ground.shim.destroy(ground.snapshot("tank/a/b"))
    assert view.check() == ["the snapshot of tank/a/b was taken away or replaced while the engine ran"]


@isolated
@pytest.mark.parametrize("what", ["unmounted", "covered", "covered above", "replaced", "aside"])
def test_any_mount_that_is_not_what_it_was_is_noticed(what: str, ground: Ground) -> None:
    view = small(ground)
    view.assemble()
    inner, aside = f"{ground.root}/a/b", str(ground.base / "s1")
    match what:
        case "unmounted":
            linux.detach(inner)
        case "covered":
            linux.mount("none", inner, "tmpfs", 0)
        case "covered above":
            linux.mount("none", str(ground.root), "tmpfs", 0)
        case "replaced":
            # By the very same: nobody can say what the engine saw in between.
            linux.detach(inner)
            mount_nullfs(ground.shim.kernel, aside, inner)
        case "aside":
            linux.mount("none", aside, "tmpfs", 0)
    problems = view.check()
    assert any("the snapshot of tank/a/b was taken away or replaced" in problem for problem in problems)
    assert any("tank/a was" in problem for problem in problems) is (what == "covered above")


@isolated
def test_what_somebody_mounts_in_the_view_is_noticed(ground: Ground) -> None:
    ground.tree("tank/a", "b", "other")
    view = ground.view(ground.step("tank/a", "/a"))
    view.assemble()
    linux.mount("none", f"{ground.root}/a/other", "tmpfs", 0)
    assert view.check() == [f"somebody has mounted something in the view, at {ground.root}/a/other"]


@isolated
def test_a_view_that_cannot_be_looked_at_is_not_taken_for_whole(ground: Ground) -> None:
    view = small(ground)
    view.assemble()

    def refuse(*_: object) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    view._kernel = replace(ground.shim.kernel, getfsstat=refuse)
    (problem,) = view.check()
    assert "cannot be told: the mount table cannot be read: Input/output error" in problem


@isolated
def test_a_mount_that_somebody_tried_in_vain_to_unmount_is_no_alarm(ground: Ground) -> None:
    view = small(ground)
    view.assemble()
    ground.shim.skipped = {f"{ground.root}/a/b": 1}
    assert view.check() == []
    ground.shim.skipped = {f"{ground.root}/a/b": 5}
    assert view.check() != []


def test_a_path_that_leads_into_another_mount_than_the_table_says_is_none_of_ours(tmp_path: Path) -> None:
    """FreeBSD's table keeps the name that a mount point had when it was mounted on; directories above may be renamed."""
    device = tmp_path.stat().st_dev & 0xFFFFFFFF
    for said, same in ((device, True), (device + 1, False)):
        mount = Mount(said << 32 | 5, 1, str(said), "/", str(tmp_path), "nullfs", "/s0", (), (), ())
        assert (freebsd._print(str(tmp_path), {str(tmp_path): mount}) is not None) is same
    assert freebsd._print(str(tmp_path), {}) is None


# And it goes again


@isolated
def test_all_of_it_goes_in_one_pass_the_last_mount_first(ground: Ground) -> None:
    view = small(ground)
    view.assemble()
    assert view.remove(0) == []
    assert ground.shim.ours() == []
    assert os.listdir(ground.root) == os.listdir(ground.base) == []
    assert view.remove() == []


@isolated
@pytest.mark.parametrize("at", range(6))
def test_wherever_mounting_fails_what_was_made_goes(at: int, ground: Ground) -> None:
    ground.shim.fail_at = {at: errno.EIO}
    view = small(ground)
    error = refused(view)
    assert "the shim was told to fail" in error.message
    assert len(ground.shim.ours()) == at
    assert view.remove() == []
    assert ground.shim.ours() == []


@isolated
def test_the_sweep_above_is_as_long_as_the_mounts_of_the_view(ground: Ground) -> None:
    small(ground).assemble()
    assert sum(call[0] == "nmount" for call in ground.shim.calls) == 6


@isolated
def test_what_is_in_use_is_left_and_said_and_goes_when_it_is_not(ground: Ground) -> None:
    view = small(ground)
    view.assemble()
    with open(f"{ground.root}/a/b/file") as used:
        left = view.remove(NOT_LONG)
        assert used.read() == "tank/a/b"
    assert f"mount {ground.root}/a/b: it is in use" in "\n".join(left)
    assert "umount" in left[0]
    assert ground.shown("/a/b") == "tank/a/b"
    assert view.remove() == []
    assert ground.shim.ours() == []


@isolated
def test_another_process_that_made_nothing_can_take_it_away(ground: Ground) -> None:
    small(ground).assemble()
    assert ground.view(ground.step("tank/a", "/a"), ground.step("tank/a/b", "/a/b")).remove() == []
    assert ground.shim.ours() == []


@isolated
def test_who_is_about_to_end_is_waited_for(ground: Ground) -> None:
    view = small(ground)
    view.assemble()
    with subprocess.Popen(["sleep", "0.3"], cwd=f"{ground.root}/a/b"):
        assert view.remove(0) != []
        assert view.remove() == []
    assert ground.shim.ours() == []


@isolated
def test_what_somebody_mounted_in_the_view_stays_theirs(ground: Ground) -> None:
    view = small(ground)
    view.assemble()
    linux.mount("none", f"{ground.root}/a/b", "tmpfs", 0)
    (ground.root / "a" / "b" / "theirs").write_text("kept")
    assert view.remove(NOT_LONG) != []
    assert (ground.root / "a" / "b" / "theirs").read_text() == "kept"
    linux.detach(f"{ground.root}/a/b")
    assert view.remove() == []


@isolated
@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EACCES, "key-not-loaded", "encryption key is not loaded"),
        (errno.EBUSY, "mount", "mounts a snapshot once"),
        (errno.EPERM, "mount", "told to fail"),
        (errno.EIO, "mount", "told to fail"),
    ],
)
def test_a_snapshot_that_cannot_be_mounted_is_named_with_the_reason(
    number: int, kind: str, words: str, ground: Ground
) -> None:
    ground.shim.fail_at = {1: number}
    error = refused(ground.view(ground.step("tank/a", "/a", named=True)))
    assert (error.kind, "tank/a" in error.message, words in error.message) == (kind, True, True)


@isolated
@pytest.mark.parametrize("number", [errno.EACCES, errno.EBUSY])
def test_a_snapshot_that_was_implied_and_cannot_be_mounted_is_missing(number: int, ground: Ground) -> None:
    ground.shim.fail_at = {1: number}
    view = ground.view(ground.step("tank/a", "/a"), ground.step("tank/c", "/c", named=True))
    assembled = view.assemble()
    assert assembled.mounted == ("/c",)
    assert [(m.dataset, "cannot be mounted" in m.reason) for m in assembled.missing] == [("tank/a", True)]
    assert view.check() == []
    assert view.remove() == []


@isolated
def test_the_run_with_its_directory_missing_says_so(ground: Ground) -> None:
    shutil.rmtree(ground.base)
    assert refused(small(ground)).kind == "mount"


@isolated
def test_the_directories_of_the_run_are_for_root_alone(ground: Ground) -> None:
    small(ground).assemble()
    assert stat.S_IMODE(ground.base.stat().st_mode) == 0o700
