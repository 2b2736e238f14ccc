"""What a plan is compared with: the last run's selection, as the records have it."""

from __future__ import annotations

import json

from kopiatomic.model.changes import Changes, Moved, between, selection
from kopiatomic.model.plan import Plan
from tests.unit.support.plans import facts, plan, zfs

LAST = "20261122T101112Z-01234567"


def taking(**points: str) -> Plan:
    """A plan of datasets of these names, mounted there."""
    return plan(facts(*((p, "zfs", name) for name, p in points.items()), datasets=map(zfs, points)), *points)


def test_the_same_again_is_no_change() -> None:
    same = taking(a="/a", b="/b")
    found = between((LAST, selection(same)), same)
    assert found == Changes(LAST, [], [], [])
    assert found.of_datasets == ""
    assert found.lines("/kopia") == [f"The same datasets at the same places as in the last run under /kopia ({LAST})."]


def test_what_is_new_gone_or_elsewhere_is_named() -> None:
    found = between((LAST, selection(taking(a="/a", b="/b"))), taking(b="/other", c="/c"))
    assert found == Changes(LAST, ["c"], ["a"], [Moved("b", ("/b",), ("/other",))])
    assert found.of_datasets == "without a and with c"
    assert found.lines("/kopia") == [
        f"Against the last run under /kopia ({LAST}):",
        "  new: c",
        "  not any more: a",
        "  b: at /other and no longer at /b",
    ]


def test_another_part_of_a_dataset_is_another_place() -> None:
    known = facts(("/a", "zfs", "a"), datasets=[zfs("a")], directories=["/a/x", "/a/y"])
    found = between((LAST, selection(plan(known, "/a/x"))), plan(known, "/a/x", "/a/y"))
    assert found.moved == [Moved("a", ("/a/x",), ("/a/x", "/a/y"))]


def test_nothing_is_compared_with_no_run() -> None:
    found = between(None, taking(a="/a"))
    assert found == Changes()
    assert found.lines("/kopia") == ["No run under /kopia is recorded."]


def test_the_record_of_an_older_version_has_no_places() -> None:
    found = between((LAST, json.dumps({"taken": ["a", "b"]})), taking(a="/a"))
    assert found == Changes(LAST, [], ["b"], [])
