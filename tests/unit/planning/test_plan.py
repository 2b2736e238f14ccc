"""What a run takes, where it appears, and what it refuses or leaves out."""

from __future__ import annotations

import os
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.model.facts import Facts, ZfsDataset, ZfsPool, dump, load
from kopiatomic.model.mounts import visible
from kopiatomic.model.plan import Layout, Plan, PlannedPath, Verdict
from kopiatomic.paths import parents
from kopiatomic.planning import plan as planning
from kopiatomic.planning import shielding
from kopiatomic.text import printable
from tests.support.programs import SOURCE, command
from tests.unit.support.plans import facts, many, mounts, places, plan, subvolume, zfs

TANK = facts(
    ("/tank", "zfs", "tank"),
    ("/usr/home", "zfs", "tank/usr/home"),
    ("/usr/src", "zfs", "tank/usr/src"),
    ("/usr/home/a", "zfs", "tank/usr/home/a"),
    datasets=[
        zfs("tank"),
        zfs("tank/usr", canmount="off", mountpoint="/usr"),
        zfs("tank/usr/home"),
        zfs("tank/usr/home/a"),
        zfs("tank/usr/src"),
    ],
)

BTRFS = facts(
    ("/data", "btrfs", "/dev/sdb"),
    subvolumes=[
        subvolume("/data", 5),
        subvolume("/data/a", 256, above="/data"),
        subvolume("/data/a/inner", 257, above="/data/a"),
        subvolume("/data/b", 258, above="/data"),
    ],
)


def refused(known: Facts, *names: str, everything: bool = False, recursive: bool = False) -> KopiatomicError:
    with pytest.raises(KopiatomicError) as caught:
        plan(known, *names, everything=everything, recursive=recursive)
    return caught.value


# What is taken


def test_a_named_dataset_appears_where_it_is_mounted() -> None:
    chosen = plan(TANK, "tank/usr/home")
    assert places(chosen) == [("tank/usr/home", "/usr/home")]
    assert chosen.taken[0].named
    assert chosen.taken[0].dataset.pool == "tank"


def test_a_dataset_named_by_its_mount_point_is_the_same() -> None:
    assert plan(TANK, "/usr/home").taken == plan(TANK, "tank/usr/home").taken


def test_a_dataset_named_twice_is_taken_once() -> None:
    assert places(plan(TANK, "tank/usr/home", "/usr/home", "tank/usr/home")) == [("tank/usr/home", "/usr/home")]


def test_a_dataset_that_is_named_and_implied_counts_as_named() -> None:
    for names in (("tank", "tank/usr/src"), ("tank/usr/src", "tank")):
        chosen = plan(TANK, *names, recursive=True)
        assert {t.dataset.name: t.named for t in chosen.taken} == {
            "tank": True,
            "tank/usr/home": False,
            "tank/usr/home/a": False,
            "tank/usr/src": True,
        }


def test_without_recursion_children_are_not_taken() -> None:
    assert places(plan(TANK, "tank")) == [("tank", "/tank")]


def test_recursion_of_a_container_takes_what_lies_below_and_says_so() -> None:
    chosen = plan(TANK, "tank/usr", recursive=True)
    assert [name for name, _ in places(chosen)] == ["tank/usr/home", "tank/usr/home/a", "tank/usr/src"]
    (container,) = (o for o in chosen.left_out if o.name == "tank/usr")
    assert not container.incomplete
    assert "what lies below it is taken" in container.reason


def test_recursion_of_a_container_with_nothing_below_is_refused() -> None:
    empty = facts(datasets=[zfs("tank", canmount="off")])
    assert refused(empty, "tank", recursive=True).kind == "cannot-take"


def test_recursion_of_a_dataset_that_should_be_mounted_and_is_not_is_refused() -> None:
    known = facts(
        ("/tank/a", "zfs", "tank/a"), datasets=[zfs("tank", mountpoint="/tank"), zfs("tank/a", mountpoint="/tank/a")]
    )
    error = refused(known, "tank", recursive=True)
    assert "should be mounted and is not" in error.message


def test_recursion_does_not_reach_names_that_only_begin_alike() -> None:
    known = facts(
        ("/a", "zfs", "tank/a"), ("/ab", "zfs", "tank/ab"), datasets=[zfs("tank/a"), zfs("tank/ab"), zfs("tank/a/b")]
    )
    assert places(plan(known, "tank/a", recursive=True)) == [("tank/a", "/a")]


def test_parents_come_before_children_also_where_names_sort_otherwise() -> None:
    known = facts(
        ("/z", "zfs", "tank/a"),
        ("/z/y", "zfs", "other"),
        ("/z y", "zfs", "tank/b"),
        datasets=[zfs("other"), zfs("tank/a"), zfs("tank/b")],
    )
    assert [place for _, place in places(plan(known, "other", "tank/b", "tank/a"))] == ["/z", "/z/y", "/z y"]


def test_a_dataset_mounted_at_the_root_comes_first() -> None:
    known = facts(
        ("/", "zfs", "rpool/root"), ("/home", "zfs", "rpool/home"), datasets=[zfs("rpool/home"), zfs("rpool/root")]
    )
    assert [place for _, place in places(plan(known, "rpool/home", "rpool/root"))] == ["/", "/home"]


def test_everything_takes_all_mounted_datasets_once() -> None:
    twice = facts(
        ("/data", "btrfs", "/dev/sdb"),
        ("/tank", "zfs", "tank"),
        ("/mnt", "zfs", "tank"),
        ("/again", "btrfs", "/dev/sdb"),
        datasets=[zfs("tank")],
        subvolumes=[subvolume("/data", 5), subvolume("/again", 5)],
    )
    chosen = plan(twice, everything=True)
    assert places(chosen) == [("/again", "/again"), ("tank", "/tank")]
    assert not any(t.named for t in chosen.taken)


def test_everything_is_content_with_one_of_the_two_filesystems() -> None:
    assert places(plan(TANK, everything=True))[0] == ("tank", "/tank")
    assert places(plan(BTRFS, everything=True))[0] == ("/data", "/data")


def test_everything_of_nothing_is_an_error() -> None:
    assert refused(facts(), everything=True).kind == "nothing-found"


def test_everything_says_that_a_part_of_a_subvolume_is_not_taken() -> None:
    known = facts(("/data", "btrfs", "/dev/sdb"), ("/part", "btrfs", "/dev/sdb:/d"), subvolumes=[subvolume("/data", 5)])
    assert any("/part shows only a part" in note for note in plan(known, everything=True).notes)


def test_recursion_takes_nested_subvolumes_at_every_depth() -> None:
    chosen = plan(BTRFS, "/data", recursive=True)
    assert places(chosen) == [(path, path) for path in ("/data", "/data/a", "/data/a/inner", "/data/b")]
    assert [t.named for t in chosen.taken] == [True, False, False, False]


def test_the_same_subvolume_named_at_two_mount_points_is_taken_once() -> None:
    known = facts(
        ("/one", "btrfs", "/dev/sdb"),
        ("/two", "btrfs", "/dev/sdb"),
        subvolumes=[subvolume("/one", 256), subvolume("/two", 256)],
    )
    chosen = plan(known, "/two", "/one")
    assert places(chosen) == [("/one", "/one")]
    assert [(o.name, o.verdict) for o in chosen.left_out] == [("/two", Verdict.DUPLICATE)]


def test_a_link_to_a_mount_point_names_what_is_mounted_there() -> None:
    known = facts(("/data", "btrfs", "/dev/sdb"), subvolumes=[subvolume("/data", 5)], resolved={"./link": "/data"})
    assert places(plan(known, "./link")) == [("/data", "/data")]


# What is refused

REFUSED = [
    pytest.param(facts(), (), "no-arguments", "no dataset was named", "-a", id="no arguments"),
    pytest.param(
        facts(datasets=[zfs("tank/vol", kind="volume")]),
        ("tank/vol",),
        "cannot-take",
        "it is a volume, not a filesystem",
        "--volumes takes volumes",
        id="a volume",
    ),
    pytest.param(
        facts(datasets=[zfs("tank/x", mountpoint="/x")]),
        ("tank/x",),
        "cannot-take",
        "it should be mounted and is not",
        "zfs mount tank/x",
        id="not mounted though it should be",
    ),
    pytest.param(
        facts(datasets=[zfs("tank/x", canmount="noauto")]),
        ("tank/x",),
        "cannot-take",
        "it is not mounted",
        "zfs mount tank/x",
        id="not mounted by its properties",
    ),
    pytest.param(
        facts(datasets=[zfs("tank/x", keystatus="unavailable", mountpoint="/x")]),
        ("tank/x",),
        "cannot-take",
        "its encryption key is not loaded",
        "zfs load-key tank/x",
        id="key not loaded",
    ),
    pytest.param(
        facts(("/x", "zfs", "tank/x"), ("/x", "tmpfs", "none"), datasets=[zfs("tank/x")]),
        ("tank/x",),
        "cannot-take",
        "its mount at /x is covered by none (tmpfs)",
        "Unmount what covers it",
        id="covered by another mount",
    ),
    pytest.param(
        facts(("/t/x", "zfs", "tank/x"), ("/t", "tmpfs", "none"), datasets=[zfs("tank/x")]),
        ("tank/x",),
        "cannot-take",
        "covered by none (tmpfs)",
        "Unmount what covers it",
        id="covered by a mount above",
    ),
    pytest.param(
        facts(("/x", "zfs", "t/" + 217 * "x"), datasets=[zfs("t/" + 217 * "x")]),
        ("t/" + 217 * "x",),
        "cannot-take",
        "its name is too long for a snapshot's (219 + 37 > 255)",
        "Rename the dataset",
        id="name too long",
    ),
    pytest.param(
        facts(
            ("/x", "zfs", "tank/x"),
            datasets=[zfs("tank/x")],
            pools=[ZfsPool("tank", "SUSPENDED", read_only=False)],
        ),
        ("tank/x",),
        "pool-suspended",
        "the pool tank is suspended",
        "zpool clear tank",
        id="pool suspended",
    ),
    pytest.param(
        facts(("/x", "zfs", "tank/x"), datasets=[zfs("tank/x")], pools=[ZfsPool("tank", "ONLINE", read_only=True)]),
        ("tank/x",),
        "pool-read-only",
        "the pool tank is imported read-only",
        "Import it writable",
        id="pool read-only",
    ),
    pytest.param(
        facts(("/mnt", "xfs", "/dev/sdc")),
        ("/mnt",),
        "unsupported-filesystem",
        "/mnt is on xfs (/dev/sdc), which is neither ZFS nor Btrfs",
        "kopia directly",
        id="another filesystem",
    ),
    pytest.param(
        facts(("/snap", "zfs", "tank/x@daily")),
        ("/snap",),
        "not-a-filesystem",
        "/snap is in a mounted snapshot (tank/x@daily)",
        "Name the dataset itself: tank/x",
        id="a mounted snapshot",
    ),
    pytest.param(
        facts(("/x", "zfs", "tank/x"), datasets=[zfs("tank/x")], resolved={"/x/y": "/x/y"}),
        ("/x/y",),
        "not-a-directory",
        "/x/y is neither a mount point nor a directory: it lies in the dataset tank/x mounted at /x",
        "tank/x to take it whole",
        id="a file of a dataset",
    ),
    pytest.param(
        facts(("/data", "btrfs", "/dev/sdb"), subvolumes=[], resolved={"/data/y": "/data/y"}),
        ("/data/y",),
        "not-a-directory",
        "/data/y is neither a mount point nor a directory: it lies in the Btrfs subvolume mounted at /data",
        "/data to take it whole",
        id="a file of a subvolume",
    ),
    pytest.param(
        facts(
            ("/data", "btrfs", "/dev/sdb"),
            subvolumes=[
                subvolume("/data", 5),
                subvolume("/data/in", 256, "/data"),
                subvolume("/data/in/x", 257, "/data/in"),
            ],
            resolved={"/data/in/y": "/data/in/y"},
        ),
        ("/data/in/y",),
        "not-a-directory",
        "/data/in/y is neither a mount point nor a directory: it lies in the Btrfs subvolume /data/in",
        "/data/in to take it whole",
        id="a file of a nested subvolume",
    ),
    pytest.param(
        facts(resolved={"./link": "/etc"}),
        ("./link",),
        "unsupported-filesystem",
        "./link (which is /etc) is on ext4",
        "kopia directly",
        id="a link to another filesystem",
    ),
]


@pytest.mark.parametrize(("known", "names", "kind", "message", "hint"), REFUSED)
def test_what_cannot_be_taken_is_refused(
    known: Facts, names: tuple[str, ...], kind: str, message: str, hint: str
) -> None:
    error = refused(known, *names)
    assert error.kind == kind
    assert message in error.message
    assert hint in (error.hint or "")


def test_no_names_is_a_usage_error() -> None:
    assert isinstance(refused(facts()), UsageError)


def test_the_longest_name_there_is_room_for_is_taken() -> None:
    name = "t/" + 216 * "x"
    assert len(plan(facts(("/x", "zfs", name), datasets=[zfs(name)]), name).taken) == 1


# What is left out

LEFT_OUT = [
    pytest.param(
        zfs("tank/x", mountpoint="/x"), True, "should be mounted and is not", id="not mounted though it should"
    ),
    pytest.param(zfs("tank/x", canmount="noauto", mountpoint="/x"), False, "not mounted", id="canmount=noauto"),
    pytest.param(zfs("tank/x", canmount="off", mountpoint="/x"), False, "not mounted", id="canmount=off"),
    pytest.param(zfs("tank/x", mountpoint="legacy"), False, "not mounted", id="legacy"),
    pytest.param(zfs("tank/x", mountpoint="none"), False, "not mounted", id="mountpoint=none"),
    pytest.param(zfs("tank/x", keystatus="unavailable", mountpoint="/x"), True, "key is not loaded", id="locked"),
]


@pytest.mark.parametrize(
    ("at_boot", "problem", "incomplete", "reason"),
    [
        ({"tank/x": "/srv/x"}, "", True, "it should be mounted and is not: /etc/fstab has it at /srv/x"),
        ({"tank/y": "/srv/x"}, "", False, "it is not mounted (mountpoint=legacy)"),
        (
            {},
            "Input/output error",
            True,
            "perhaps it should be mounted: /etc/fstab cannot be read (Input/output error)",
        ),
    ],
)
def test_a_legacy_dataset_that_the_boot_mounts_is_missed(
    at_boot: dict[str, str], problem: str, incomplete: bool, reason: str
) -> None:
    known = facts(("/tank", "zfs", "tank"), datasets=[zfs("tank"), zfs("tank/x", mountpoint="legacy")])
    known = replace(known, at_boot=at_boot, fstab_problem=problem)
    (left,) = plan(known, "tank", recursive=True).left_out
    assert (left.incomplete, left.reason) == (incomplete, reason)
    with pytest.raises(KopiatomicError, match="cannot be backed up: "):
        plan(known, "tank/x")
    assert load(dump(known)) == known


@pytest.mark.parametrize(("dataset", "incomplete", "reason"), LEFT_OUT)
@pytest.mark.parametrize("everything", [False, True], ids=["-r", "-a"])
def test_an_implied_dataset_that_cannot_be_taken_is_left_out(
    dataset: ZfsDataset, incomplete: bool, reason: str, everything: bool
) -> None:
    known = facts(("/tank", "zfs", "tank"), datasets=[zfs("tank"), dataset])
    chosen = plan(known, *([] if everything else ["tank"]), everything=everything, recursive=not everything)
    (left_out,) = chosen.left_out
    assert (left_out.name, left_out.incomplete) == ("tank/x", incomplete)
    assert reason in left_out.reason


def test_volumes_are_left_out_and_nobody_misses_them() -> None:
    known = facts(("/tank", "zfs", "tank"), datasets=[zfs("tank"), zfs("tank/vol", kind="volume", canmount="-")])
    (volume,) = plan(known, everything=True).left_out
    assert (volume.verdict, volume.incomplete) == (Verdict.VOLUME, False)


def test_a_covered_dataset_makes_all_incomplete() -> None:
    known = facts(
        ("/tank", "zfs", "tank"),
        ("/x", "zfs", "tank/x"),
        ("/x", "tmpfs", "none"),
        datasets=[zfs("tank"), zfs("tank/x")],
    )
    (left_out,) = plan(known, everything=True).left_out
    assert left_out.incomplete
    assert "covered by none (tmpfs)" in left_out.reason


def test_a_covered_nested_subvolume_makes_all_incomplete() -> None:
    known = facts(
        ("/data", "btrfs", "/dev/sdb"),
        ("/data/a", "tmpfs", "none"),
        subvolumes=[subvolume("/data", 5), subvolume("/data/a", 256, above="/data", covered=True)],
    )
    chosen = plan(known, "/data", recursive=True)
    assert [(o.name, o.incomplete) for o in chosen.left_out] == [("/data/a", True)]


# Parts of datasets


def test_a_directory_of_a_dataset_is_a_part_of_it() -> None:
    known = facts(("/home", "zfs", "tank/home"), datasets=[zfs("tank/home")], directories=["/home/ann/docs"])
    (taken,) = plan(known, "/home/ann/docs").taken
    assert (taken.dataset.name, taken.place, taken.parts) == ("tank/home", "/home", ("ann/docs",))
    assert taken.places == ("/home/ann/docs",)


def test_several_parts_of_one_dataset_are_one_snapshot() -> None:
    known = facts(("/home", "zfs", "tank/home"), datasets=[zfs("tank/home")], directories=["/home/ann", "/home/bob"])
    (taken,) = plan(known, "/home/bob", "/home/ann").taken
    assert taken.places == ("/home/ann", "/home/bob")


def test_the_rest_of_a_dataset_whose_part_is_taken_inside_another_is_named() -> None:
    known = facts(
        ("/t", "zfs", "t"), ("/t/a", "zfs", "t/a"), datasets=[zfs("t"), zfs("t/a")], directories=["/t/a/docs"]
    )
    for layout, live in ((Layout.MERGED, False), (Layout.IN_PLACE, True)):
        (rest,) = plan(known, "/t", "/t/a/docs", layout=layout).uncovered
        assert (rest.point, rest.note, rest.live) == ("/t/a", "but for /t/a/docs", live)


def test_a_path_in_the_second_mount_of_a_dataset_appears_there() -> None:
    known = facts(
        ("/one", "zfs", "t"),
        ("/two", "zfs", "t"),
        ("/two/docs/old", "zfs", "t/old"),
        datasets=[zfs("t"), zfs("t/old")],
        directories=["/two/docs"],
    )
    chosen = plan(known, "/two/docs", recursive=True)
    assert [t.places for t in chosen.taken] == [("/two/docs",), ("/two/docs/old",)]
    assert places(plan(known, "/two")) == [("t", "/two")]


def test_what_should_be_mounted_in_the_named_part_and_is_not_is_missed() -> None:
    known = facts(
        ("/t", "zfs", "t"),
        ("/t/docs/a", "zfs", "t/a"),
        ("/t/docs/a", "tmpfs", "none"),
        datasets=[
            zfs("t"),
            zfs("t/a", mountpoint="/t/docs/a"),
            zfs("t/b", mountpoint="/t/docs/b"),
            zfs("t/c", mountpoint="/t/c"),
        ],
        directories=["/t/docs"],
    )
    verdicts = {o.name: (o.verdict, o.incomplete) for o in plan(known, "/t/docs", recursive=True).left_out}
    assert verdicts == {
        "t/a": (Verdict.COVERED, True),
        "t/b": (Verdict.NOT_MOUNTED, True),
        "t/c": (Verdict.OUTSIDE, False),
    }


def test_a_part_in_another_and_a_part_beside_the_whole_are_asked_for_twice() -> None:
    known = facts(("/home", "zfs", "tank/home"), datasets=[zfs("tank/home")], directories=["/home/ann", "/home/ann/x"])
    assert plan(known, "/home/ann/x", "/home/ann").taken[0].places == ("/home/ann",)
    assert plan(known, "/home/ann/x", "tank/home").taken[0].places == ("/home",)


def test_recursion_from_a_path_takes_what_is_mounted_below_it() -> None:
    known = facts(
        ("/home", "zfs", "tank/home"),
        ("/home/ann/music", "zfs", "tank/home/music"),
        ("/home/bob", "zfs", "tank/home/bob"),
        datasets=[zfs("tank/home"), zfs("tank/home/music"), zfs("tank/home/bob")],
        directories=["/home/ann"],
    )
    chosen = plan(known, "/home/ann", recursive=True)
    assert [taken.places for taken in chosen.taken] == [("/home/ann",), ("/home/ann/music",)]
    assert [(o.name, o.verdict) for o in chosen.left_out] == [("tank/home/bob", Verdict.OUTSIDE)]


def test_a_directory_of_a_subvolume_is_a_part_of_it() -> None:
    known = facts(
        ("/data", "btrfs", "/dev/sdb"),
        subvolumes=[subvolume("/data", 5), subvolume("/data/a", 256, above="/data")],
        directories=["/data/a/x/y", "/data/z"],
    )
    (inner,) = plan(known, "/data/a/x/y").taken
    assert (inner.dataset.name, inner.parts, inner.places) == ("/data/a", ("x/y",), ("/data/a/x/y",))
    assert plan(known, "/data/z").taken[0].dataset.subvolume == 5


# Patterns


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("tank/usr/*", ["tank/usr/home", "tank/usr/src"]),
        ("tank/usr/**", ["tank/usr/home", "tank/usr/home/a", "tank/usr/src"]),
        ("tank/**/a", ["tank/usr/home/a"]),
        ("*/usr/h*", ["tank/usr/home"]),
        ("/usr/*", ["tank/usr/home", "tank/usr/src"]),
    ],
)
def test_a_pattern_takes_what_it_fits(pattern: str, expected: list[str]) -> None:
    assert [name for name, _ in places(plan(TANK, pattern))] == expected


def test_a_pattern_that_fits_nothing_is_an_error() -> None:
    assert refused(TANK, "pool/*").kind == "no-match"


def test_what_a_pattern_excludes_is_said_to_be_excluded_by_it() -> None:
    chosen = plan(TANK, "tank", recursive=True, exclude=("tank/usr/home",))
    assert [name for name, _ in places(chosen)] == ["tank", "tank/usr/home/a", "tank/usr/src"]
    (excluded,) = (o for o in chosen.left_out if o.name == "tank/usr/home")
    assert (excluded.verdict, excluded.reason, excluded.incomplete) == (
        Verdict.EXCLUDED,
        "--exclude tank/usr/home",
        False,
    )
    below = plan(TANK, "tank", recursive=True, exclude=("tank/usr/home/**",))
    assert [name for name, _ in places(below)] == ["tank", "tank/usr/home", "tank/usr/src"]


def test_exclusion_beats_a_name_and_an_exclusion_of_nothing_is_said() -> None:
    chosen = plan(TANK, "tank", "tank/usr/src", exclude=("/usr/src", "tank/typo"))
    assert [name for name, _ in places(chosen)] == ["tank"]
    assert chosen.notes == ("--exclude tank/typo matches nothing",)
    with pytest.raises(KopiatomicError) as caught:
        plan(TANK, "tank", exclude=("tank",))
    assert caught.value.kind == "nothing-left"


# The property

BY_PROPERTY = facts(
    ("/t", "zfs", "t"),
    ("/t/a", "zfs", "t/a"),
    ("/t/a/b", "zfs", "t/a/b"),
    ("/t/c", "zfs", "t/c"),
    ("/t/r", "zfs", "t/r"),
    ("/t/r/s", "zfs", "t/r/s"),
    datasets=[zfs("t"), zfs("t/a"), zfs("t/a/b"), zfs("t/c"), zfs("t/r"), zfs("t/r/s")],
    properties={
        "t": ("children", "local"),
        "t/a": ("children", "inherited from t"),
        "t/a/b": ("off", "local"),
        "t/c": ("on", "local"),
        "t/r": ("on", "received"),
        "t/r/s": ("on", "inherited from t/r"),
    },
)


def test_the_property_selects() -> None:
    chosen = plan(BY_PROPERTY, by_property=True)
    assert [name for name, _ in places(chosen)] == ["t/a", "t/c"]
    assert any("t/r was received" in note for note in chosen.notes)
    reasons = {o.name: o.reason for o in chosen.left_out}
    assert reasons["t"] == "kopiatomic:backup=children, set on it"
    assert reasons["t/a/b"] == "kopiatomic:backup=off, set on it"
    assert reasons["t/r/s"] == "kopiatomic:backup is not set for it"


def test_names_limit_the_property_to_their_subtrees() -> None:
    assert [name for name, _ in places(plan(BY_PROPERTY, "t/a", by_property=True))] == ["t/a"]
    assert [name for name, _ in places(plan(BY_PROPERTY, "/t/c", by_property=True))] == ["t/c"]


def test_off_also_counts_for_recursion_and_not_for_what_was_named() -> None:
    chosen = plan(BY_PROPERTY, "t/a", recursive=True)
    assert [name for name, _ in places(chosen)] == ["t/a"]
    assert [name for name, _ in places(plan(BY_PROPERTY, "t/a/b"))] == ["t/a/b"]
    assert "t/a/b" not in [name for name, _ in places(plan(BY_PROPERTY, everything=True))]


def test_a_value_that_means_nothing_is_the_affair_of_its_dataset_alone() -> None:
    """Whoever may set the property of one dataset must not end the backup of others."""
    datasets = [zfs("t"), zfs("t/eve")]
    for value in ("yes", "on\toff", "on\nt\tlocal"):
        known = facts(
            ("/t", "zfs", "t"),
            ("/t/eve", "zfs", "t/eve"),
            datasets=datasets,
            properties={"t": ("on", "local"), "t/eve": (value, "local")},
        )
        for chosen in (plan(known, by_property=True), plan(known, "t", recursive=True), plan(known, everything=True)):
            assert [name for name, _ in places(chosen)] == ["t"]
            (left_out,) = chosen.left_out
            assert (left_out.name, left_out.verdict, left_out.incomplete) == ("t/eve", Verdict.BAD_PROPERTY, True)
            assert printable(value) in left_out.reason
        assert [name for name, _ in places(plan(known, "t/eve"))] == ["t/eve"]
        assert not any(left_out.incomplete for left_out in plan(known, "t").left_out)
    with pytest.raises(KopiatomicError, match="nothing is left to take: t: the property kopiatomic:backup is 'yes'"):
        plan(facts(("/t", "zfs", "t"), datasets=[zfs("t")], properties={"t": ("yes", "local")}), by_property=True)


@pytest.mark.parametrize("name", ["/", "//"])
def test_the_root_leads_nowhere_else(name: str) -> None:
    known = facts(("/", "zfs", "t"), datasets=[zfs("t")], resolved={name: "/"}, directories=["/"])
    assert plan(known, name).notes == ()


# Very many, and very deep


def test_the_way_to_a_place_is_looked_up_once_however_deep_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place each directory on the way to each place counts: with a look at all above it for each, it was the third power."""
    deep = 200
    paths = ["/" + "/".join(["n"] * (depth + 1)) for depth in range(deep)]
    nested = [subvolume(path, 256 + n, above=paths[n - 1] if n else None) for n, path in enumerate(paths)]
    known = facts((paths[0], "btrfs", "/dev/sdb"), subvolumes=nested)
    looks = []
    real = parents

    def counted(path: str) -> list[str]:
        looks.append(path)
        return real(path)

    for module in (planning, shielding):
        monkeypatch.setattr(module, "parents", counted)
    assert len(plan(known, paths[0], recursive=True, layout=Layout.IN_PLACE).taken) == deep
    assert len(looks) < 12 * deep


# Jails


def in_a_jail(*own: str) -> Facts:
    """A jail sees its own datasets, and what those lie in (zfs-jail(8))."""
    datasets = [zfs(name, zoned=name in own, mountpoint=f"/{name}") for name in ("tank", "tank/j", "tank/j/home")]
    known = facts(("/tank/j/home", "zfs", "tank/j/home"), datasets=datasets)
    return replace(known, jailed=True)


def test_what_is_the_hosts_is_not_missed_in_a_jail() -> None:
    known = in_a_jail("tank/j/home")
    for chosen in (plan(known, everything=True), plan(known, "tank", recursive=True)):
        assert [name for name, _ in places(chosen)] == ["tank/j/home"]
        assert {(one.name, one.verdict, one.incomplete) for one in chosen.left_out} == {
            ("tank", Verdict.NOT_THE_JAILS, False),
            ("tank/j", Verdict.NOT_THE_JAILS, False),
        }
    # On the host it is a fault that they are not mounted.
    assert any(one.incomplete for one in plan(replace(known, jailed=False), everything=True).left_out)


def test_what_a_jail_has_and_is_not_mounted_is_missed() -> None:
    (missed,) = [one for one in plan(in_a_jail("tank/j", "tank/j/home"), everything=True).left_out if one.incomplete]
    assert missed.name == "tank/j"


def test_a_jail_is_told_how_to_get_a_dataset() -> None:
    with pytest.raises(KopiatomicError, match="tank cannot be backed up: it is the host's") as named:
        plan(in_a_jail("tank/j/home"), "tank")
    with pytest.raises(KopiatomicError, match="nothing is left to take") as none:
        plan(in_a_jail(), everything=True)
    with pytest.raises(KopiatomicError, match="no mounted ZFS dataset") as nothing:
        plan(replace(facts(), jailed=True), everything=True)
    for caught in (named, none, nothing):
        assert "zfs jail JAIL" in (caught.value.hint or "")
        assert "allow.mount" in (caught.value.hint or "")


# What is not mounted

UNMOUNTED = facts(
    ("/t", "zfs", "t"),
    datasets=[
        zfs("t"),
        zfs("t/legacy", mountpoint="legacy"),
        zfs("t/here", mountpoint="/t/here"),
        zfs("t/there", mountpoint="/t/there"),
        zfs("t/container", canmount="off", mountpoint="/t/container"),
        zfs("t/secret", keystatus="unavailable", mountpoint="/t/secret"),
    ],
    directories=["/t/here", "/t/container"],
)


def test_unmounted_datasets_appear_at_their_place_or_in_a_folder_of_their_own() -> None:
    chosen = plan(UNMOUNTED, "t", recursive=True, include_unmounted=True)
    assert dict(places(chosen)) == {
        "t": "/t",
        "t/here": "/t/here",
        "t/legacy": "/.unmounted/t/legacy",
        "t/there": "/.unmounted/t/there",
        "t/container": "/.unmounted/t/container",
    }
    assert [(o.name, o.verdict) for o in chosen.left_out] == [("t/secret", Verdict.KEY_NOT_LOADED)]
    assert all(t.dataset.mountpoint == PlannedPath("") for t in chosen.taken if t.dataset.name != "t")


def test_unmounted_datasets_of_one_place_are_all_in_the_folder_of_their_own() -> None:
    known = facts(
        ("/t", "zfs", "t"),
        datasets=[zfs("t"), *(zfs(f"t/{n}", canmount="noauto", mountpoint="/t/x") for n in "ab")],
        directories=["/t/x"],
    )
    chosen = plan(known, everything=True, include_unmounted=True)
    assert places(chosen) == [("t/a", "/.unmounted/t/a"), ("t/b", "/.unmounted/t/b"), ("t", "/t")]


def test_unmounted_datasets_in_one_another_need_no_directory_in_one_another() -> None:
    """What is not mounted cannot be looked into: neither at its place nor in /.unmounted has it to have a directory."""
    known = facts(
        ("/t", "zfs", "t"),
        datasets=[
            zfs("t"),
            *(zfs(name, mountpoint=f"/{name}") for name in ("t/a", "t/a/b", "t/a/b/c")),
            *(zfs(name, mountpoint="legacy") for name in ("t/x", "t/x/y/z", "t/x-y")),
            zfs("t/x/y", mountpoint="none", canmount="off"),
        ],
        directories=["/t/a", "/t/a/b", "/t/a/b/c"],
    )
    everything = places(plan(known, everything=True, include_unmounted=True))
    assert dict(everything) == {
        "t": "/t",
        "t/a": "/t/a",
        "t/a/b": "/.unmounted/t/a/b",
        "t/a/b/c": "/.unmounted/t/a/b@/c",
        "t/x": "/.unmounted/t/x",
        "t/x-y": "/.unmounted/t/x-y",
        "t/x/y": "/.unmounted/t/x@/y",
        "t/x/y/z": "/.unmounted/t/x@/y@/z",
    }
    assert places(plan(known, "t/a/b", include_unmounted=True)) == [("t/a/b", "/t/a/b")]


def test_an_unmounted_dataset_gives_way_to_what_is_mounted_below_its_place() -> None:
    known = facts(
        ("/t", "zfs", "t"),
        ("/t/a/b", "zfs", "t/a/b"),
        datasets=[zfs("t"), zfs("t/a", mountpoint="/t/a"), zfs("t/a/b")],
        directories=["/t/a"],
    )
    chosen = plan(known, everything=True, include_unmounted=True)
    assert dict(places(chosen)) == {"t": "/t", "t/a": "/.unmounted/t/a", "t/a/b": "/t/a/b"}
    assert dict(places(plan(known, "t", "t/a", include_unmounted=True))) == {"t": "/t", "t/a": "/t/a"}


def test_unmounted_datasets_appear_beside_a_frozen_root() -> None:
    known = facts(("/", "zfs", "r/root"), datasets=[zfs("r/root"), zfs("r/legacy", mountpoint="legacy")])
    chosen = plan(known, everything=True, include_unmounted=True)
    assert places(chosen) == [("r/root", "/"), ("r/legacy", "/.unmounted/r/legacy")]


VOLUMES = facts(
    ("/t", "zfs", "t"),
    datasets=[zfs("t"), zfs("t/v", "volume"), zfs("t/secret", "volume", keystatus="unavailable")],
)


def test_volumes_are_taken_only_where_asked_for() -> None:
    chosen = plan(VOLUMES, "t", recursive=True, volumes=True)
    assert places(chosen) == [("t/v", "/.volumes/t/v"), ("t", "/t")]
    assert [t.dataset.volume for t in chosen.taken] == [True, False]
    assert [(o.name, o.verdict, o.incomplete) for o in chosen.left_out] == [("t/secret", Verdict.KEY_NOT_LOADED, True)]
    chosen = plan(VOLUMES, "t", recursive=True)
    assert [(o.name, o.verdict, o.incomplete) for o in chosen.left_out] == [
        ("t/secret", Verdict.VOLUME, False),
        ("t/v", Verdict.VOLUME, False),
    ]


def test_a_locked_volume_that_is_named_is_refused_with_what_to_do() -> None:
    with pytest.raises(KopiatomicError, match="its encryption key is not loaded") as caught:
        plan(VOLUMES, "t/secret", volumes=True)
    assert caught.value.hint == "zfs load-key t/secret"


def test_patterns_take_volumes_only_where_asked_for() -> None:
    assert places(plan(VOLUMES, "t/*v", volumes=True)) == [("t/v", "/.volumes/t/v")]
    with pytest.raises(KopiatomicError) as caught:
        plan(VOLUMES, "t/*v")
    assert caught.value.kind == "no-match"


def test_a_dataset_that_is_mounted_where_volumes_appear_is_refused() -> None:
    known = facts(("/.volumes/t", "zfs", "t"), datasets=[zfs("t"), zfs("t/v", "volume")])
    assert places(plan(known, "t")) == [("t", "/.volumes/t")]
    with pytest.raises(KopiatomicError, match=r"t would appear at /\.volumes/t, where .*--volumes put") as caught:
        plan(known, "t", "t/v", volumes=True)
    assert caught.value.kind == "same-place"


@pytest.mark.parametrize(
    ("dataset", "verdict", "incomplete"),
    [
        (zfs("t/x", mountpoint="/t/x"), Verdict.NOT_MOUNTED, True),
        (zfs("t/x", canmount="noauto", mountpoint="/t/x"), Verdict.NOT_MOUNTED, False),
        (zfs("t/x", canmount="off", mountpoint="/t/x"), Verdict.NOT_MOUNTED, False),
        (zfs("t/x", mountpoint="legacy"), Verdict.NOT_MOUNTED, False),
        (zfs("t/x", mountpoint="none"), Verdict.NO_MOUNT_POINT, False),
        (zfs("t/x", mountpoint="/", canmount="noauto"), Verdict.BOOT_ENVIRONMENT, False),
        (zfs("t/x", mountpoint="/alt", canmount="noauto"), Verdict.BOOT_ENVIRONMENT, False),
        (zfs("t/x", mountpoint="/alt"), Verdict.NOT_MOUNTED, True),
        (zfs("t/y/x", mountpoint="/alt", canmount="noauto"), Verdict.NOT_MOUNTED, False),
        (zfs("t/x", mountpoint="/snapshot", canmount="noauto"), Verdict.NOT_MOUNTED, False),
        (zfs("t/x", mountpoint="/t/x", keystatus="unavailable"), Verdict.KEY_NOT_LOADED, True),
        (zfs("t/" + "x" * 230), Verdict.NAME_TOO_LONG, True),
    ],
)
def test_each_reason_has_its_verdict(dataset: ZfsDataset, verdict: Verdict, incomplete: bool) -> None:
    mounted = [
        ("/", "zfs", "t/root"),
        ("/t", "zfs", "t"),
        ("/alt", "zfs", "t/other"),
        ("/snapshot", "zfs", "t/other@x"),
    ]
    known = facts(*mounted, datasets=[zfs("t"), zfs("t/root"), zfs("t/other"), dataset])
    (left_out,) = (o for o in plan(known, everything=True).left_out if o.name == dataset.name)
    assert (left_out.verdict, left_out.incomplete) == (verdict, incomplete)


def test_a_bind_mount_of_a_part_does_not_count_as_the_dataset() -> None:
    known = facts(
        ("/t", "zfs", "t"), ("/part", "zfs", "t/x:/inner"), datasets=[zfs("t"), zfs("t/x", mountpoint="/t/x")]
    )
    (left_out,) = plan(known, "t", recursive=True).left_out
    assert left_out.verdict == Verdict.MOUNTED_ELSEWHERE
    assert "bind mount at /part" in left_out.reason


def test_mounts_without_a_known_device_are_never_taken_for_each_other() -> None:
    """As in a jail, where the kernel says nothing of file systems' ids: in place nothing is the same thing seen again."""
    known = facts(
        ("/t", "zfs", "t"), ("/t/x", "zfs", "t/x"), ("/y", "zfs", "y"), datasets=[zfs("t"), zfs("t/x"), zfs("y")]
    )
    known = replace(known, mounts=tuple(replace(mount, device="") for mount in known.mounts))
    chosen = plan(known, "t", recursive=True, layout=Layout.IN_PLACE)
    assert [(taken.place, taken.again) for taken in chosen.taken] == [("/t", ()), ("/t/x", ())]


def test_a_dataset_mounted_twice_is_shown_once_and_both_places_are_said() -> None:
    known = facts(("/one", "zfs", "t"), ("/two", "zfs", "t"), datasets=[zfs("t")])
    chosen = plan(known, "t")
    assert places(chosen) == [("t", "/one")]
    assert "mounted at /two as well" in chosen.judged[0].reason


def test_where_else_a_part_of_a_dataset_is_mounted_is_said() -> None:
    """What is covered at its own place may be seen there alone."""
    known = facts(("/t", "zfs", "t"), ("/docs", "zfs", "t:/docs"), datasets=[zfs("t")])
    assert "parts of it are mounted at /docs as well" in plan(known, "t").judged[0].reason


# What lies in the trees and is not covered


def test_other_filesystems_in_the_trees_are_named() -> None:
    known = facts(
        ("/t", "zfs", "t"),
        ("/t/usb", "ext4", "/dev/sdc1"),
        ("/t/usb/deep", "tmpfs", "none"),
        ("/t/nfs", "nfs4", "server:/x"),
        ("/t/child", "zfs", "t/child"),
        ("/t/proc", "proc", "proc"),
        ("/elsewhere", "ext4", "/dev/sdd1"),
        datasets=[zfs("t"), zfs("t/child")],
    )
    known = replace(known, sizes={"/t/usb": 42})
    found = plan(known, "t").uncovered
    assert [(u.point, u.fstype, u.size, u.inside) for u in found] == [
        ("/t/child", "zfs", None, "t"),
        ("/t/nfs", "nfs4", None, "t"),
        ("/t/usb", "ext4", 42, "t"),
        ("/t/usb/deep", "tmpfs", None, "t"),
    ]


def test_a_mounted_file_that_is_itself_in_the_backup_is_said_to_be() -> None:
    known = facts(("/t", "zfs", "t"), ("/t/iso", "iso9660", "/dev/loop3"), datasets=[zfs("t")])
    known = replace(known, loop_files={"/dev/loop3": "/t/images/x.iso"})
    (found,) = plan(known, "t").uncovered
    assert "/t/images/x.iso is in the backup" in found.note


def test_a_mount_between_two_taken_datasets_gets_a_directory_of_ours() -> None:
    known = facts(
        ("/t", "zfs", "t"),
        ("/t/a", "zfs", "t/a"),
        ("/t/a/b", "ext4", "/dev/sdc"),
        ("/t/a/b/c", "zfs", "t/c"),
        ("/u", "ext4", "/dev/sdd"),
        ("/u/v", "zfs", "t/v"),
        datasets=[zfs("t"), zfs("t/a"), zfs("t/c"), zfs("t/v")],
    )
    assert plan(known, "t", "t/c", "t/v").scaffolds == ("/t/a",)
    assert plan(known, "t", "t/a", "t/c").scaffolds == ("/t/a/b",)
    assert plan(known, "t/c", "t/v").scaffolds == ()


# Saved facts


def test_facts_that_were_saved_give_the_same_plan() -> None:
    odd = facts(
        ("/t", "zfs", "t"),
        ("/caf\udce9\nx", "zfs", "t/a b "),
        datasets=[zfs("t"), zfs("t/a b ", mountpoint="/caf\udce9\nx")],
        pools=[ZfsPool("t", "ONLINE", read_only=False)],
        directories=["/t/d"],
        properties={"t": ("on", "local")},
    )
    for known in (odd, BTRFS, UNMOUNTED, BY_PROPERTY):
        again = load(dump(known))
        assert again == known
        assert outcome(again, (), recursive=True, everything=True) == outcome(
            known, (), recursive=True, everything=True
        )


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"format": "kopiatomic-facts-9"}', '{"format": "kopiatomic-facts-1"}']
)
def test_what_are_no_facts_is_refused(text: str) -> None:
    with pytest.raises(KopiatomicError) as caught:
        load(text)
    assert caught.value.kind == "bad-facts"


def test_a_plan_of_ten_thousand_datasets_does_not_grow_with_their_square() -> None:
    def seconds(count: int) -> float:
        known = many(count)
        return min(_timed(known) for _ in range(3))

    def _timed(known: Facts) -> float:
        began = time.process_time()
        assert len(plan(known, everything=True).taken) == len(known.datasets)
        return time.process_time() - began

    # Were it quadratic, it would be a hundred.
    assert seconds(10_000) / seconds(1_000) < 50


def test_a_plan_of_ten_thousand_datasets_needs_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "facts"
    file.write_text(dump(many(10_000)))
    words = ("plan", "-a", "--from-facts", str(file))
    # A process between: the peak of a child's memory begins with that of what started it, and the tests' is large.
    program = (
        "import os, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True);"
        "import resource; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    argv = (sys.executable, "-c", program, sys.executable, "-m", "kopiatomic", *words, "-c", "true")
    assert int(command(*argv, env={**os.environ, "PYTHONPATH": str(SOURCE)}).stdout) * 1024 < 150e6


# Whatever there is


@st.composite
def systems(draw: st.DrawFn) -> tuple[Facts, tuple[str, ...]]:
    """A system of ZFS datasets and Btrfs subvolumes mounted at few places, so that they often nest and collide."""
    points = st.sampled_from(["/", "/a", "/a/b", "/a/b/c", "/ab", "/b", "/b/a"])
    made: list[tuple[str, str, str]] = []
    datasets, subvolumes = [], []
    for number, point in enumerate(draw(st.lists(points, max_size=6))):
        kind = draw(st.sampled_from(["zfs", "zfs", "btrfs", "tmpfs"]))
        if kind == "zfs":
            name = draw(st.sampled_from(["tank", "tank/a", "tank/a/b", "tank/c"]))
            made.append((point, "zfs", name))
        elif kind == "btrfs":
            made.append((point, "btrfs", "/dev/sdb"))
            subvolumes.append((point, 256 + number))
        else:
            made.append((point, "tmpfs", "none"))
    names = {source for _, fstype, source in made if fstype == "zfs"} | {"tank"}
    datasets = [zfs(name, mountpoint="/x", canmount=draw(st.sampled_from(["on", "off"]))) for name in sorted(names)]
    datasets += [zfs(name, "volume") for name in draw(st.lists(st.sampled_from(["tank/v", "tank/a/v"]), unique=True))]
    names |= {dataset.name for dataset in datasets}
    # As facts.gather finds them: only where Btrfs is what is seen.
    seen = visible(mounts(*made))
    found = {p: subvolume(p, id_) for p, id_ in subvolumes if p in seen and seen[p].fstype == "btrfs"}
    known = facts(*made, datasets=datasets, subvolumes=list(found.values()))
    nameable = sorted(names) + sorted(known.resolved)
    return known, tuple(draw(st.lists(st.sampled_from(nameable), max_size=4)))


def outcome(known: Facts, names: tuple[str, ...], **flags: bool) -> Plan | str:
    try:
        return plan(known, *names, **flags)
    except KopiatomicError as error:
        return error.kind


def shuffled(known: Facts, seed: int) -> Facts:
    chance = random.Random(seed)
    datasets, subvolumes = list(known.datasets.items()), list(known.subvolumes)
    chance.shuffle(datasets)
    chance.shuffle(subvolumes)
    return replace(known, datasets=dict(datasets), subvolumes=tuple(subvolumes))


FLAGS = st.fixed_dictionaries(
    {name: st.booleans() for name in ("recursive", "everything", "include_unmounted", "volumes")}
)


@given(systems(), FLAGS, st.integers(0, 99))
def test_the_order_of_facts_does_not_matter(
    system: tuple[Facts, tuple[str, ...]], flags: dict[str, bool], seed: int
) -> None:
    known, names = system
    assert outcome(shuffled(known, seed), names, **flags) == outcome(known, names, **flags)


@given(systems(), FLAGS)
def test_every_plan_can_be_mounted(system: tuple[Facts, tuple[str, ...]], flags: dict[str, bool]) -> None:
    known, names = system
    chosen = outcome(known, names, **flags)
    if isinstance(chosen, str):
        return
    order = [taken.place for taken in chosen.taken]
    assert len(set(order)) == len(order), "two datasets at one place"
    for position, place in enumerate(order):
        above = [other for other in order if place.startswith(other.rstrip("/") + "/") and other != place]
        assert all(order.index(other) < position for other in above), "a child before its parent"
    taken = {t.dataset.name for t in chosen.taken}
    assert not taken & {o.name for o in chosen.left_out}, "taken and left out"
    judged = [(j.kind, j.name) for j in chosen.judged]
    known_ones = [("zfs", name) for name in known.datasets] + [("btrfs", s.path) for s in known.subvolumes]
    assert sorted(judged) == sorted(known_ones), "each dataset has exactly one verdict"
    assert {n for n in names if not n.startswith("/")} <= taken | {o.name for o in chosen.left_out}


# What is mounted beside


def test_in_place_what_is_mounted_outside_of_the_taken_trees_is_known() -> None:
    known = facts(
        ("/dev", "devfs", "devfs"),
        ("/usr/home", "zfs", "tank/home"),
        ("/usr/home/ann", "zfs", "tank/home/ann"),
        ("/usr/home/ann/mnt", "tmpfs", "none"),
        ("/usr/home/bob", "tmpfs", "none"),
        datasets=[zfs("tank/home"), zfs("tank/home/ann")],
        directories=["/usr/home/ann/docs"],
    )
    for names, beside in (
        (("/usr/home",), ["/dev"]),
        (("/usr/home/ann",), ["/dev", "/usr/home", "/usr/home/bob"]),
        (("/usr/home/ann/docs",), ["/dev", "/usr/home", "/usr/home/ann", "/usr/home/ann/mnt", "/usr/home/bob"]),
    ):
        chosen = plan(known, *names, layout=Layout.IN_PLACE)
        assert [mount.point for mount in chosen.beside] == beside
        assert all(mount.live for mount in chosen.beside)
    assert plan(known, "/usr/home").beside == ()
