"""Passwords and keys, and how they are kept out of what is recorded and shown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kopiatomic.text import printable

MASK = "***"

_NAME = re.compile(r"PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|ACCESS[_-]?KEY", re.IGNORECASE)
_WORD = r"(?:'[^']*'|\"(?:\\.|[^\"\\])*\"|\\.|[^\s'\"\\])+"
"""A word as a shell reads it: quoted as a whole, in part, or not."""

_FLAG = re.compile(
    r"(?P<head>--?[\w-]*(?:password|passwd|passphrase|secret|token|access-key)(?![\w-]*(?:file|command))[\w-]*(?:=|\s+))"
    rf"(?P<value>{_WORD})",
    re.IGNORECASE,
)
_ASSIGNMENT = re.compile(
    r"(?P<head>\b\w*(?:PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|ACCESS_KEY)(?!\w*(?:FILE|COMMAND))\w*=)"
    rf"(?P<value>{_WORD})",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"(?P<head>\b[a-z][a-z0-9+.-]*://[^\s/:@'\"]*:)(?P<value>[^\s/@'\"]+)(?=@)", re.IGNORECASE)
"""The password in a URL (``https://user:password@host/``)."""
_PATTERNS = (_FLAG, _ASSIGNMENT, _CREDENTIALS)
_SUSPECT = re.compile(r"passw(?:or)?d|passphrase|secret|token|access[-_]key|://", re.IGNORECASE)
"""What is in every text that one of the patterns finds something in: a record has tens of thousands that have nothing."""

_QUOTES = re.compile(r"['\"\\]")
_SHORTEST = 4
"""A shorter secret would hide half of every text that it is looked for in, and its place has been masked anyway."""

_NO_SECRETS = frozenset({"true", "false", "none"})
"""Values of switches whose names look like those of secrets."""


def is_secret(variable: str) -> bool:
    """Whether an environment variable's name says that it holds a secret."""
    return _NAME.search(variable) is not None


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment less the variables whose names say that they hold a password, passphrase, secret or key."""
    return {name: value for name, value in environment.items() if not is_secret(name)}


def credentials(text: str) -> list[str]:
    """The passwords in the URLs of a text."""
    return [found["value"] for found in _CREDENTIALS.finditer(text)]


def masked(url: str) -> str:
    """A text with the passwords in its URLs masked."""
    return _CREDENTIALS.sub(rf"\g<head>{MASK}", url)


class Secrets:
    """The secrets that a run knows of. ``values`` are those that were found elsewhere, such as in ``-o``."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], values: Iterable[str] = ()) -> None:
        found = set(values) | {value for name, value in environment.items() if is_secret(name)}
        for word in words:
            for pattern in _PATTERNS:
                found |= {value for match in pattern.finditer(word) for value in _spellings(match["value"])}
        # The longest first: one may be a part of another.
        self._hidden: dict[str, str] = {}
        self.values = sorted((v for v in found if len(v) >= _SHORTEST and v not in _NO_SECRETS), key=len, reverse=True)

    def hide(self, text: str) -> str:
        """A text with every secret masked."""
        # Whole words first, while their quotes are in pairs.
        if _SUSPECT.search(text):
            for pattern in _PATTERNS:
                text = pattern.sub(rf"\g<head>{MASK}", text)
        if self.values and _QUOTES.search(text):
            text = re.sub(_WORD, self._hide_quoted, text)
        for value in self.values:
            text = text.replace(value, MASK)
        return text

    def _hide_quoted(self, word: re.Match[str]) -> str:
        """A shell's word without a secret that quotes in the middle of it would let through."""
        plain = _unquoted(word[0])
        hidden = plain
        for value in self.values:
            hidden = hidden.replace(value, MASK)
        return word[0] if hidden == plain else hidden

    def hide_in(self, document: Any) -> Any:
        """A JSON value with every secret in its texts masked."""
        if isinstance(document, str):
            # A run has its record written twice, and of a thousand datasets most texts are those of the others.
            if document not in self._hidden:
                self._hidden[document] = self.hide(document)
            return self._hidden[document]
        if isinstance(document, list):
            return [self.hide_in(item) for item in document]
        if isinstance(document, dict):
            return {key: self.hide_in(value) for key, value in document.items()}
        return document

    def command_line(self, words: Sequence[str]) -> str:
        """A command line to show: each word without its secrets, quoted as a shell wants it."""
        return printable(shlex.join([self.hide(word) for word in words]))


def _spellings(word: str) -> set[str]:
    """What a shell's word means, and what it would be if its quotes belonged to a text around it."""
    return {_unquoted(word), re.split(r"['\"]", word.strip("'\""))[0]}


def _unquoted(word: str) -> str:
    if not _QUOTES.search(word):
        return word
    try:
        return "".join(shlex.split(word))
    except ValueError:
        return word
