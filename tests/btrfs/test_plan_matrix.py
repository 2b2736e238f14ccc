"""Every way in which a subvolume can be there: what the plan says of it, and what a run then does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.btrfs.conftest import alone
from tests.btrfs.layout_rows import LAYOUTS
from tests.btrfs.matrix_rows import ROWS, Case, Ground
from tests.support.filesystems import Btrfs
from tests.support.matrix import Markers, expected_markers, wrong
from tests.support.programs import Completed, Kopiatomic
from tests.support.schema import valid

pytestmark = pytest.mark.in_part(15)

Leftovers = Callable[..., list[str]]

SAME = ("datasets", "left_out", "incomplete")
"""What a plan says of a run and the run must say again, word for word."""


@pytest.fixture
def ground(make_btrfs: Callable[[], Btrfs], tmp_path: Path) -> Iterator[Ground]:
    folder = tmp_path / "aside"
    folder.mkdir()
    with ExitStack() as stack:
        yield Ground(make_btrfs, folder, stack)


def said(case: Case, kopiatomic: Kopiatomic, *words: str | Path) -> tuple[Completed, Any]:
    """How it ended, and its document."""
    argv = (*words, *case.words)
    ended = alone(case.alone, kopiatomic, *argv) if case.alone else kopiatomic(*argv)
    return ended, valid(ended.stdout)


def fits(patterns: list[str], texts: list[str]) -> bool:
    return len(patterns) == len(texts) and all(map(re.search, patterns, texts))


@pytest.mark.parametrize("build", [pytest.param(row, id=row.__name__.replace("_", "-")) for row in (*ROWS, *LAYOUTS)])
def test_a_run_does_what_the_plan_says(
    build: Callable[[Ground], Case],
    ground: Ground,
    kopiatomic: Kopiatomic,
    tmp_path: Path,
    root: Path,
    leftovers: Leftovers,
) -> None:
    case, markers = build(ground), Markers(tmp_path)
    planned, plan = said(case, kopiatomic, case.ask, "--json", "--mount-root", root, "-c", markers.command)
    ended, run = said(case, kopiatomic, "--json", "--mount-root", root, "-c", markers.command)
    assert leftovers(root) == []
    assert wrong(case.rows, plan) == {}
    assert (planned.returncode, ended.returncode) == (case.code, case.code), f"{planned}\n{ended}"
    if case.error:
        assert re.search(case.error, plan["error"]["message"])
        assert run["error"] == plan["error"]
        return
    assert {u["path"]: u["type"] for u in plan["uncovered"]} == case.uncovered
    assert fits(list(case.said), plan["warnings"]), plan["warnings"]
    rows = [name for name, row in case.rows.items() if row.incomplete]
    of_several = [line for line in plan["incomplete"] if not any(line.startswith(f"{name}: ") for name in rows)]
    assert fits(list(case.missed), of_several), plan["incomplete"]
    assert {key: run[key] for key in SAME} == {key: plan[key] for key in SAME}
    assert {u["path"]: u["type"] for u in run["uncovered"]} == case.uncovered
    assert set(plan["warnings"]) <= set(run["warnings"])
    assert markers.shown() == {**expected_markers(case.rows), **case.more}
