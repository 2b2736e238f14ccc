"""How the program was called, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from kopiatomic.immutable import immutable


@immutable
class Invocation:
    """The program, its words and its environment. If these are empty, it was not called by a person."""

    program: str = "kopiatomic"
    words: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
