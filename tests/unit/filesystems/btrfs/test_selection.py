"""Which subvolumes are data, which are copies of what is taken anyway, and what is missed of those that are nested."""

from __future__ import annotations

from typing import Any

import pytest

from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.model.facts import BtrfsSubvolume, Facts
from kopiatomic.model.plan import Plan
from tests.unit.support.plans import facts, plan, subvolume

OTHER = "99999999-8888-7777-6666-555555555555"
"""Another Btrfs filesystem."""


def uuid(id_: int) -> str:
    return f"{id_:032x}"


def snapshot(path: str, id_: int, of: int, above: str = "/data", **more: Any) -> BtrfsSubvolume:
    """A read-only snapshot of the subvolume with an id."""
    return subvolume(path, id_, above=above, **{"parent": uuid(of), "read_only": True, **more})


def known(*subvolumes: BtrfsSubvolume, mounted: tuple[str, ...] = ("/data",)) -> Facts:
    return facts(*((point, "btrfs", "/dev/sdb") for point in mounted), subvolumes=subvolumes)


def taken(chosen: Plan) -> list[str]:
    return [t.dataset.name for t in chosen.taken]


def verdicts(chosen: Plan) -> dict[str, str]:
    return {o.name: str(o.verdict) for o in chosen.left_out}


def lines(chosen: Plan) -> list[str]:
    """What makes it incomplete."""
    return list(dict.fromkeys(o.line or f"{o.name}: {o.reason}" for o in chosen.left_out if o.incomplete))


DATA = subvolume("/data", 256)
"""A subvolume; what follows is nested in it."""


# What is nested in what was named without -r

WIDE = known(
    DATA,
    *(subvolume(f"/data/full{number}", 300 + number, above="/data", holds=True) for number in range(4)),
    subvolume("/data/empty", 310, above="/data", holds=False),
    subvolume("/data/unknown", 311, above="/data/full0", holds=None),
    snapshot("/data/snapshot", 312, of=256, holds=True),
)


def test_what_is_nested_and_holds_something_is_missed_in_one_line() -> None:
    chosen = plan(WIDE, "/data")
    assert taken(chosen) == ["/data"]
    assert lines(chosen) == [
        "/data holds 5 nested subvolume(s) with something in them that are not taken: /data/full0, /data/full1, "
        "/data/full2 and 2 more (-r takes them; --exclude or --no-nested says that they are not wanted)"
    ]
    assert {o.name for o in chosen.left_out if not o.incomplete} == {"/data/empty", "/data/snapshot"}


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"no_nested": True}, id="no-nested"),
        pytest.param({"exclude": ("/data/full*", "/data/unknown")}, id="exclude"),
    ],
)
def test_that_it_is_not_wanted_can_be_said(more: dict[str, Any]) -> None:
    chosen = plan(WIDE, "/data", **more)
    assert taken(chosen) == ["/data"]
    assert lines(chosen) == []


def test_a_pattern_is_no_better_than_a_name() -> None:
    assert len(lines(plan(WIDE, "/dat*"))) == 1
    chosen = plan(WIDE, "/dat*", recursive=True)
    assert lines(chosen) == []
    assert len(taken(chosen)) == 7


def test_only_what_lies_in_the_part_that_was_named_is_missed() -> None:
    some = known(
        DATA,
        subvolume("/data/in/a", 300, above="/data", holds=True),
        subvolume("/data/out", 301, above="/data", holds=True),
    )
    some = facts(
        ("/data", "btrfs", "/dev/sdb"),
        subvolumes=some.subvolumes,
        resolved={"/data/in": "/data/in"},
        directories=["/data/in"],
    )
    (line,) = lines(plan(some, "/data/in"))
    assert line.startswith(
        "/data/in holds 1 nested subvolume(s) with something in them that are not taken: /data/in/a ("
    )


def test_what_is_taken_at_another_place_is_not_missed() -> None:
    both = known(
        DATA,
        subvolume("/data/home", 300, above="/data", holds=True),
        subvolume("/home", 300),
        mounted=("/data", "/home"),
    )
    assert lines(plan(both, "/data", "/home")) == []
    assert len(lines(plan(both, "/data"))) == 1


def test_a_subvolume_that_nothing_nested_is_missed_in_has_no_line() -> None:
    assert lines(plan(known(DATA, subvolume("/data/empty", 300, above="/data", holds=False)), "/data")) == []


def test_r_and_no_nested_contradict_each_other() -> None:
    with pytest.raises(UsageError):
        plan(WIDE, "/data", recursive=True, no_nested=True)


# -a


def test_everything_takes_what_is_nested() -> None:
    chosen = plan(WIDE, everything=True)
    assert len(taken(chosen)) == 7
    assert verdicts(chosen) == {"/data/snapshot": "read-only snapshot"}
    assert lines(chosen) == []


def test_everything_without_what_is_nested() -> None:
    chosen = plan(WIDE, everything=True, no_nested=True)
    assert taken(chosen) == ["/data"]
    assert lines(chosen) == []


# Read-only snapshots

SNAPSHOTS = known(
    DATA,
    snapshot("/data/first", 300, of=256),
    snapshot("/data/of-first", 301, of=300),
    subvolume("/data/writable", 302, above="/data", parent=uuid(256)),
    snapshot("/data/of-writable", 303, of=302),
    snapshot("/data/of-unknown", 304, of=999),
    subvolume("/data/sealed", 305, above="/data", read_only=True),
    snapshot("/data/of-another-filesystem", 306, of=256, filesystem=OTHER),
)


@pytest.mark.parametrize("how", [{"everything": True}, {"recursive": True}], ids=["a", "r"])
def test_read_only_snapshots_of_what_is_taken_are_left_out_and_nothing_else(how: dict[str, bool]) -> None:
    chosen = plan(SNAPSHOTS, *([] if "everything" in how else ["/data"]), **how)
    assert verdicts(chosen) == dict.fromkeys(
        ["/data/first", "/data/of-first", "/data/of-writable"], "read-only snapshot"
    )
    assert lines(chosen) == []
    first = next(o for o in chosen.left_out if o.name == "/data/of-first")
    assert first.reason == "a read-only snapshot of /data, which is taken; name it to take it"


def test_a_read_only_snapshot_that_was_named_is_taken() -> None:
    chosen = plan(SNAPSHOTS, "/data", "/data/first", recursive=True)
    assert "/data/first" in taken(chosen)


def test_a_read_only_snapshot_of_what_was_not_asked_for_is_data() -> None:
    elsewhere = known(
        subvolume("/home", 256),
        subvolume("/snapshots", 257),
        snapshot("/snapshots/1", 300, of=256, above="/snapshots"),
        mounted=("/home", "/snapshots"),
    )
    assert taken(plan(elsewhere, "/snapshots", recursive=True)) == ["/snapshots", "/snapshots/1"]
    assert taken(plan(elsewhere, everything=True)) == ["/home", "/snapshots"]
    # Who leaves something out wants no copies of it.
    assert taken(plan(elsewhere, everything=True, exclude=("/home",))) == ["/snapshots"]


def test_a_read_only_snapshot_that_is_the_root_of_the_system_is_taken() -> None:
    """openSUSE MicroOS: each root is a read-only snapshot of the one before it."""
    system = known(
        snapshot("/", 303, of=302, above=""),
        subvolume("/.snapshots", 257),
        subvolume("/.snapshots/1/snapshot", 301, above="/.snapshots", read_only=True),
        snapshot("/.snapshots/2/snapshot", 302, of=301, above="/.snapshots"),
        snapshot("/.snapshots/3/snapshot", 303, of=302, above="/.snapshots"),
        mounted=("/", "/.snapshots"),
    )
    chosen = plan(system, everything=True)
    assert taken(chosen) == ["/", "/.snapshots", "/.snapshots/1/snapshot"]
    assert verdicts(chosen) == dict.fromkeys(["/.snapshots/2/snapshot", "/.snapshots/3/snapshot"], "read-only snapshot")


# Received copies

MON, TUE = "a" * 32, "b" * 32
TARGET = known(
    subvolume("/data/target", 300),
    snapshot("/data/target/mon", 301, of=0, parent="", received=MON, above="/data/target"),
    snapshot("/data/target/tue", 302, of=301, received=TUE, above="/data/target"),
    snapshot("/data/target/of-tue", 303, of=302, received=TUE, above="/data/target"),
    subvolume("/data/target/restored", 304, above="/data/target", received=TUE, parent=uuid(302)),
    mounted=("/data/target",),
)


def test_received_copies_are_taken_where_a_directory_above_them_was_named() -> None:
    chosen = plan(TARGET, "/data/target", recursive=True)
    assert taken(chosen) == [f"/data/target{name}" for name in ("", "/mon", "/restored", "/tue")]
    assert verdicts(chosen) == {"/data/target/of-tue": "read-only snapshot"}
    assert lines(chosen) == []


def test_everything_leaves_received_copies_out_and_says_so_in_one_line() -> None:
    chosen = plan(TARGET, everything=True)
    assert taken(chosen) == ["/data/target", "/data/target/restored"]
    assert lines(chosen) == [
        "2 received copies (btrfs receive) that -a alone does not take: /data/target/mon, /data/target/tue (-r with a "
        "directory above takes them; --exclude says that they are not wanted)"
    ]
    assert lines(plan(TARGET, everything=True, exclude=("/data/target/*",))) == []
    both = plan(TARGET, "/data/target", everything=True, recursive=True)
    assert "/data/target/tue" in taken(both)
    assert lines(both) == []


# What cannot be mounted


def test_where_the_device_is_gone_an_implied_subvolume_gets_a_verdict() -> None:
    some = known(DATA, subvolume("/usb", 257, no_device=True), mounted=("/data", "/usb"))
    chosen = plan(some, everything=True)
    assert taken(chosen) == ["/data"]
    assert lines(chosen) == ["/usb: the device that it is mounted from, /dev/sdb, is not there any more"]
    with pytest.raises(KopiatomicError, match="/usb cannot be backed up: the device that it is mounted from"):
        plan(some, "/data", "/usb")
