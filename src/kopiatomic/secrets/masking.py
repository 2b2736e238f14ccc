"""Passwords and keys, and how they are kept out of what is recorded, shown and passed on.

``secrets/names.py`` knows the names of secrets, ``secrets/places.py`` where secrets stand.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kopiatomic.secrets import places
from kopiatomic.secrets.names import is_file_of, is_setting, names_secret, tells_secret
from kopiatomic.secrets.places import MASK, WORD, unquoted
from kopiatomic.text import printable

__all__ = ["MASK", "Secrets", "credentials", "is_secret", "masked"]

_OURS = "kopiatomic"
_QUOTES = re.compile(r"['\"\\]")
_WORD = re.compile(WORD, re.DOTALL)
_SHORTEST = 4
"""A shorter secret would hide half of every text that is searched for it; it is masked only in its place."""

_TELLING = 8
"""With so many characters, a secret is not part of a variable's value by chance."""


_SAYS = re.compile(r"\s*(?:\S*/)?(?:echo|printf)\s")
"""How a command begins that prints what is in itself."""


def is_secret(variable: str, value: str) -> bool:
    """Whether an environment variable holds a secret: by its name, or by its value."""
    if names_secret(variable):
        return not is_setting(value) and not is_file_of(variable, value)
    return bool(credentials(value)) or (tells_secret(variable) and _SAYS.match(value) is not None)


def credentials(text: str) -> list[str]:
    """Return the secrets in a text: the password in a URL, for example."""
    found: list[str] = []
    places.in_text(text, lambda secret: _noted(found, secret))
    return found


def found_in(words: Sequence[str], program: str) -> list[str]:
    """Return the secrets in words that a program receives."""
    found: list[str] = []
    places.in_words(words, lambda secret: _noted(found, secret), program)
    return found


def masked(text: str, program: str = "") -> str:
    """Return a text with its secrets masked. ``program`` receives its words, if it is not a shell's line."""
    return places.in_text(text, _mask, program)


def _noted(found: list[str], secret: str) -> str:
    found.append(secret)
    return MASK


def _mask(_secret: str) -> str:
    return MASK


_OUR_WORDS = frozenset(["filesystem", "format", "kind", "layout", "result", "run_id", "verdict"])
"""The keys of JSON values whose texts are our own words: programs compare them, and a password may be equal to one."""


class Secrets:
    """The secrets that a run knows of: those in the words of our own command line, those in an environment, and ``values``."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], values: Iterable[str] = ()) -> None:
        found: list[str] = [
            value for name, value in environment.items() if is_secret(name, value) and names_secret(name)
        ]
        for value in environment.values():
            found += credentials(value)
        places.in_words(words, lambda secret: _noted(found, secret), _OURS)
        self.found = bool(found)
        """Whether words or environment had one, even if it is too short to search for."""
        self.values: list[str] = []
        self._hidden: dict[str, str] = {}
        self.add([*found, *values])

    def add(self, values: Iterable[str]) -> None:
        """Look for these as well from now on."""
        known = {
            spelling for value in [*self.values, *values] if not is_setting(value) for spelling in _spellings(value)
        }
        # The longest first: one may be part of another.
        self.values = sorted((value for value in known if len(value) >= _SHORTEST), key=len, reverse=True)
        self._hidden.clear()

    def hide(self, text: str, program: str = "") -> str:
        """Return a text with every secret masked: those recognised by their place, and those known.

        ``program`` receives its words, if it is not a shell's line.
        """
        return self._without_known(masked(text, program))

    def hide_words(self, words: Sequence[str], program: str = "") -> list[str]:
        """Return the words of a command line, likewise masked."""
        return [self._without_known(word) for word in places.in_words(words, _mask, program)]

    def _without_known(self, text: str) -> str:
        # Whole words first, while their quotes are in pairs.
        if self.values and _QUOTES.search(text):
            text = _WORD.sub(self._hide_quoted, text)
        for value in self.values:
            text = text.replace(value, MASK)
        return text

    def _hide_quoted(self, word: re.Match[str]) -> str:
        """Mask a secret in a shell's word even if quotes in the middle of it hide it."""
        plain = unquoted(word[0])
        hidden = plain
        for value in self.values:
            hidden = hidden.replace(value, MASK)
        return word[0] if hidden == plain else hidden

    def hide_in(self, document: Any) -> Any:
        """Return a JSON value with every secret in its texts masked."""
        if isinstance(document, str):
            # A run writes its record twice, and most texts of a thousand datasets are equal.
            if document not in self._hidden:
                self._hidden[document] = self.hide(document)
            return self._hidden[document]
        if isinstance(document, list):
            return [self.hide_in(item) for item in document]
        if isinstance(document, dict):
            return {key: value if key in _OUR_WORDS else self.hide_in(value) for key, value in document.items()}
        return document

    def command_line(self, words: Sequence[str]) -> str:
        """Return a command line to show: each word without its secrets, quoted for a shell."""
        return printable(shlex.join(self.hide_words(words)))

    def withheld_from(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return an environment for programs that must not know a secret: without the variables that hold one."""
        return {
            name: value
            for name, value in environment.items()
            if not is_secret(name, value) and not any(_holds(value, known) for known in self.values)
        }


def _holds(value: str, known: str) -> bool:
    """Whether a value contains a known secret, not just by chance, as "/root" contains a password "root"."""
    return value == known or (len(known) >= _TELLING and known in value)


def _spellings(value: str) -> Iterable[str]:
    """Yield a secret, and its form without the escapes of a URL."""
    yield value
    if "%" in value:
        from urllib.parse import unquote  # noqa: PLC0415 - few need it

        yield unquote(value)
