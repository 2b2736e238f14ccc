"""Frozen dataclasses that are quick to make, for all of the program's facts."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def immutable(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass with slots.

    All of them share one ``__repr__``: a dataclass compiles its own, which takes half of the time needed to make such a class,
    and together they took a quarter of a start.
    """
    made = dataclass(frozen=True, slots=True, repr=False)(cls)
    made.__repr__ = _shown  # type: ignore[method-assign]
    return made


def _shown(self: Any) -> str:
    shown = (f"{one.name}={getattr(self, one.name)!r}" for one in fields(self) if one.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"
