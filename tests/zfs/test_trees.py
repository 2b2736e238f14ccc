"""Random trees of 200 datasets: plan and run do what an oracle of its own says, and no file is left out in silence.

Plain `./test` makes one tree of the seed's and asks for a part of what there is to ask; `./test trees` makes all ten.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.support.schema import valid
from tests.zfs import tree_listing, tree_requests, trees
from tests.zfs.planting import Planted, planted
from tests.zfs.runs import Runner
from tests.zfs.tree_listing import Entry, listing
from tests.zfs.tree_oracle import Asking, Expected, Live, expect, unaccounted, uncovered, view

SEED = os.environ.get("KOPIATOMIC_TEST_SEED", "0")
WHOLE = os.environ.get("KOPIATOMIC_TEST_TREES") == "whole"
ONLY = os.environ.get("KOPIATOMIC_TEST_TREE")
TREES = range(10) if WHOLE else range(1)
KINDS = tree_requests.KINDS if WHOLE else ("pools", Random(SEED).choice(tree_requests.KINDS[1:]))

counted: Counter[str] = Counter()


@dataclass(frozen=True)
class Ground:
    """A tree that is there, and the one thing that is known of it: what can be seen."""

    index: int
    there: Planted
    live: Live


@pytest.fixture(scope="module", params=[int(ONLY)] if ONLY else TREES)
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    index: int = request.param
    began = time.monotonic()
    tree = trees.draw(Random(f"{SEED}/{index}"))
    with planted(tree, tmp_path_factory.mktemp("tree")) as there:
        live = Live(there)
        counted.update(trees=1, datasets=len(tree.nodes), live=len(live.paths))
        print(f"tree {index}: {len(live.paths)} paths, {len(live.seen)} mounts seen, {time.monotonic() - began:.0f} s")
        yield Ground(index, there, live)


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_in_the_view_or_named(kind: str, ground: Ground, run: Runner, tmp_path: Path) -> None:
    asking = tree_requests.draw(kind, ground.live, Random(f"{SEED}/{ground.index}/{kind}"))
    expected = expect(ground.live, asking)
    try:
        _examine(asking, expected, ground, run, tmp_path)
    except BaseException:
        print(f"asked: {asking.words}")
        print(f"again: KOPIATOMIC_TEST_SEED={SEED} KOPIATOMIC_TEST_TREE={ground.index} ./test trees -k {kind}")
        raise


def _examine(asking: Asking, expected: Expected, ground: Ground, run: Runner, folder: Path) -> None:
    out = folder / "shown.json"
    command = f"python3 -SI {tree_listing.__file__} {out}"
    planned = run("plan", "--json", "-c", command, *asking.words, timeout=300)
    ended = run("--json", "-c", command, *asking.words, timeout=300)
    plan, document = valid(planned.stdout), valid(ended.stdout)
    # What a directory of ours hides in a frozen tree is known when that is there.
    hidden = [line for line in document["incomplete"] if "gives way to the mount points of" in line]
    assert [line for line in document["incomplete"] if line not in hidden] == plan["incomplete"], ended.stderr
    code = 3 if hidden and planned.returncode == 0 else planned.returncode
    assert (code, _kind(plan)) == (ended.returncode, _kind(document)), ended.stderr
    assert run.left() == []
    if expected.refusals:
        counted["refused"] += 1
        assert (ended.returncode, _kind(plan) in expected.refusals) == (1, True), (expected.refusals, ended.stderr)
        return
    check_plan(plan, expected, ground.live)
    for part in ("datasets", "left_out", "uncovered"):
        assert document[part] == plan[part]
    shown = {path: Entry(*entry) for path, entry in json.loads(out.read_text()).items()}
    places = {
        place: (d["dataset"], _part(ground.live, d["dataset"], place)) for d in plan["datasets"] for place in d["paths"]
    }
    assert differences(view(ground.live, places), {path: entry.shown for path, entry in shown.items()}) == []
    assert unaccounted(ground.live, asking, expected, plan, shown) == []
    assert listing(ground.there.base) == {p[len(ground.there.base) :]: e for p, e in ground.live.paths.items()}
    counted.update(compared=1, taken=len(plan["datasets"]), files=sum(e.kind == "f" for e in shown.values()))


def check_plan(plan: Any, expected: Expected, live: Live) -> None:
    """What the plan says of datasets and mounts is what the oracle says."""
    taken = {d["dataset"]: set(d["paths"]) for d in plan["datasets"]}
    wrong = {
        name: (taken.get(name), expected.places.get(name))
        for name in (taken.keys() | expected.places.keys()) - expected.maybe
        if taken.get(name) not in expected.places.get(name, [None])
    }
    assert wrong == {}
    missed = {o["dataset"] for o in plan["left_out"] if o["incomplete"]}
    assert missed - expected.maybe == expected.missed - expected.maybe
    assert plan["exit_code"] == (3 if missed else 0)
    named = [u["path"] for u in plan["uncovered"]]
    assert sorted(named) == sorted(uncovered(live, (place for places in taken.values() for place in places)))


def _kind(document: Any) -> str | None:
    return str(document["error"]["kind"]) if document["error"] else None


def _part(live: Live, name: str, place: str) -> str:
    """Which part of a dataset a place shows."""
    points = live.reached(name)
    if place in points or not points:
        return ""
    return next(place[len(point) :] for point in points if place.startswith(f"{point}/"))


def differences(wanted: dict[str, tuple[str, str]], found: dict[str, tuple[str, str]]) -> list[str]:
    """What is missing in the view, what is too much, and what is other than it must be."""
    return [
        f"{path!r}: {found.get(path)} is not {wanted.get(path)}"
        for path in sorted(wanted.keys() | found.keys())
        if wanted.get(path) != found.get(path)
    ][:20]


def test_what_was_counted() -> None:
    """Shown by `./test trees`: no assertion, the tests above have made them all."""
    print(f"{dict(counted)}")
