"""Tests with very many cases: the whole suite makes some of them, chosen by the seed; all are made when their file is named.

``@pytest.mark.in_part(N)``, on a test or on a module: so many of its cases.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest

IN_PART = os.environ.get("KOPIATOMIC_TEST_IN_PART") == "yes"
"""Set by ./test where it runs everything."""


def share(whole: int, part: int) -> int:
    """How often a test does something, or with how much: ``part`` where the whole suite runs."""
    return part if IN_PART else whole


def drawn(cases: Sequence[pytest.Item], name: str, count: int) -> list[pytest.Item]:
    """Return so many of the cases, where the whole suite runs: the same for the same seed, whatever else is collected."""
    if not IN_PART or count >= len(cases):
        return list(cases)
    _left[name] = count, len(cases)
    kept = set(random.Random(f"{os.environ['KOPIATOMIC_TEST_SEED']}/{name}").sample(cases, count))
    return [case for case in cases if case in kept]


_left: dict[str, tuple[int, int]] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not IN_PART:
        return
    groups: defaultdict[tuple[str, int], list[pytest.Item]] = defaultdict(list)
    for item in items:
        for node, marker in item.iter_markers_with_node("in_part"):
            # One on a test is its function's: every case has a node of its own.
            name = node.nodeid.partition("[")[0]
            groups[name, marker.args[0]].append(item)
            break
    dropped: set[pytest.Item] = set()
    for (name, count), cases in groups.items():
        dropped |= set(cases) - set(drawn(cases, name, count))
    config.hook.pytest_deselected(items=[item for item in items if item in dropped])
    items[:] = [item for item in items if item not in dropped]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for name, (kept, all_of_them) in sorted(_left.items()):
        terminalreporter.write_line(f"in part, by the seed: {kept} of {all_of_them} cases of {name}")
