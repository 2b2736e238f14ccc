"""Patterns of names: ``*`` matches within one component, ``**`` any number of components. Pure."""

from __future__ import annotations

import re
from functools import cache


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*)", pattern)
    expressions = {"**": ".*", "*": "[^/]*"}
    return re.compile("".join(expressions.get(part) or re.escape(part) for part in parts), re.DOTALL)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches a whole name. A pattern without a star matches only that name.

    >>> matches("tank/*", "tank/a"), matches("tank/*", "tank/a/b"), matches("tank/**", "tank/a/b")
    (True, False, True)
    """
    return _compiled(pattern).fullmatch(name) is not None
