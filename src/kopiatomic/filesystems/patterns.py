"""Patterns of names: ``*`` matches within one component, ``**`` any number of components. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from kopiatomic.immutable import immutable


@immutable
class _Compiled:
    """A pattern as a machine whose states are the bits of an integer: bit N is set if its first N elements match.

    An element is one character, or a star. Each character of a name costs the same few operations, so users who choose the names
    cannot make a match take long, as they can with the backtracking of ``re``.
    """

    begin: str
    """The text before the first star."""
    elements: int
    characters: Mapping[str, int]
    """The places of each character."""
    within: int
    """The places of the stars that match anything but a slash: of all."""
    across: int
    """The places of the stars that match a slash, too."""


@cache
def _compiled(pattern: str) -> _Compiled:
    characters: dict[str, int] = {}
    within = across = count = 0
    for part in re.split(r"(\*+)", pattern):
        if part.startswith("*"):
            # Of stars in a row, one matches what all of them do.
            within |= 1 << count
            across |= (len(part) > 1) << count
            count += 1
            continue
        for character in part:
            characters[character] = characters.get(character, 0) | 1 << count
            count += 1
    return _Compiled(pattern.partition("*")[0], count, characters, within, across)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches a whole name. A pattern without a star matches only that name.

    >>> matches("tank/*", "tank/a"), matches("tank/*", "tank/a/b"), matches("tank/**", "tank/a/b")
    (True, False, True)
    """
    found = _compiled(pattern)
    if not found.within or not name.startswith(found.begin):
        return name == pattern
    states = 1 << len(found.begin)
    for character in name[len(found.begin) :]:
        # A star may also match nothing.
        states |= (states & found.within) << 1
        states = (states & found.characters.get(character, 0)) << 1 | (
            states & (found.across if character == "/" else found.within)
        )
        if not states:
            return False
    states |= (states & found.within) << 1
    return bool(states >> found.elements & 1)
