"""Engine output that is not of the expected type: a number of another kind means nothing, least of all 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kopiatomic.errors import KopiatomicError, place_in_code
from kopiatomic.text import printable

_LARGEST = (1 << 63) - 1
"""Engines count in signed 64-bit numbers."""


class OddNumberError(ValueError):
    """Something other than a count is in the place of a count."""


def number(document: Mapping[str, Any], key: str) -> int:
    """Return a count in an engine's result; 0 if it is omitted, as engines do with zeros. Raises OddNumberError."""
    value = document.get(key)
    if value is None:
        return 0
    if not _is_count(value):
        raise OddNumberError(f"its number {printable(key)} is {printable(repr(value)[:80])}")
    return int(value)


def about(document: Mapping[str, Any], key: str) -> int | None:
    """Return a count in an engine's progress, on which nothing depends; None for anything that is not a count."""
    value = document.get(key)
    return value if _is_count(value) else None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


@contextmanager
def understood(engine: str) -> Iterator[None]:
    """Turn anything that does not fit the shape of an engine's output into a KopiatomicError of kind output-not-understood."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        why = str(error)
        if not isinstance(error, OddNumberError):
            why = f"{type(error).__name__}: {printable(why)}{place_in_code(error)}"
        raise KopiatomicError(
            f"{engine}'s output is not understood: {why}",
            kind="output-not-understood",
            hint=f"It does not tell whether all is saved. Is this a version of {engine} that is supported?",
        ) from None
