"""Patterns of names: the same matches as the regular expressions that say what they mean, in a time that no name can stretch."""

import itertools
import random
import re
import time

import pytest

from kopiatomic.filesystems.patterns import matches


def by_expression(pattern: str, name: str) -> bool:
    """Say what a pattern means by a regular expression, which takes exponentially long for some names."""
    expressions = {"**": ".*", "*": "[^/]*"}
    parts = re.split(r"(\*\*|\*)", pattern)
    expression = "".join(expressions.get(part) or re.escape(part) for part in parts)
    return re.fullmatch(expression, name, re.DOTALL) is not None


def test_all_short_patterns_and_names_match_as_their_regular_expressions() -> None:
    """Every pattern of up to 5 characters, against every name of up to 4."""
    names = ["".join(found) for length in range(5) for found in itertools.product("ab/", repeat=length)]
    wrong = []
    for length in range(6):
        for found in itertools.product("a/*", repeat=length):
            pattern = "".join(found)
            expected = {name for name in names if by_expression(pattern, name)}
            wrong += [(pattern, name) for name in names if matches(pattern, name) != (name in expected)]
    assert wrong == []


def test_longer_patterns_and_names_match_as_their_regular_expressions() -> None:
    """With characters that a regular expression treats specially, line ends and bytes that are no text."""
    chance = random.Random(20)
    hits = 0
    for _ in range(20_000):
        pattern = "".join(chance.choices("ab/*.\n\udcff[", weights=(4, 2, 3, 6, 1, 1, 1, 1), k=chance.randint(0, 9)))
        name = "".join(chance.choices("ab/.\n\udcff[", weights=(4, 2, 3, 1, 1, 1, 1), k=chance.randint(0, 8)))
        expected = by_expression(pattern, name)
        hits += expected
        assert matches(pattern, name) == expected, (pattern, name)
    assert hits > 500


@pytest.mark.parametrize(
    "pattern", ["*a" * 40 + "x", "**a" * 40 + "x", "home/*" + "*a**a" * 20 + "/x", "*" + "/**" * 30 + "x"]
)
def test_no_name_makes_a_match_take_long(pattern: str) -> None:
    """A user who may create subvolumes chooses their names: with backtracking, each of these would take years."""
    began = time.monotonic()
    assert not matches(pattern, "home/" + "a" * 255 + "/a" * 1500)
    assert time.monotonic() - began < 2
