"""Passwords and keys, and how they are kept out of what is recorded and shown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kopiatomic.text import printable

MASK = "***"

_NAME = re.compile(r"PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|ACCESS[_-]?KEY", re.IGNORECASE)
_FLAG = re.compile(
    r"(?P<head>--?[\w-]*(?:password|passwd|passphrase|secret|token|access-key)(?![\w-]*(?:file|command))[\w-]*(?:=|\s+))"
    r"(?P<value>'[^']*'|\"[^\"]*\"|[^\s'\"]+)",
    re.IGNORECASE,
)
_ASSIGNMENT = re.compile(
    r"(?P<head>\b\w*(?:PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|ACCESS_KEY)(?!\w*(?:FILE|COMMAND))\w*=)"
    r"(?P<value>'[^']*'|\"[^\"]*\"|[^\s'\"]+)",
    re.IGNORECASE,
)
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


class Secrets:
    """The secrets that a run knows of. ``values`` are those that were found elsewhere, such as in ``-o``."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], values: Iterable[str] = ()) -> None:
        found = set(values) | {value for name, value in environment.items() if is_secret(name)}
        for word in words:
            for pattern in (_FLAG, _ASSIGNMENT):
                found |= {match["value"].strip("'\"") for match in pattern.finditer(word)}
        # The longest first: one may be a part of another.
        self.values = sorted((v for v in found if len(v) >= _SHORTEST and v not in _NO_SECRETS), key=len, reverse=True)

    def hide(self, text: str) -> str:
        """A text with every secret masked."""
        for value in self.values:
            text = text.replace(value, MASK)
        for pattern in (_FLAG, _ASSIGNMENT):
            text = pattern.sub(rf"\g<head>{MASK}", text)
        return text

    def hide_in(self, document: Any) -> Any:
        """A JSON value with every secret in its texts masked."""
        if isinstance(document, str):
            return self.hide(document)
        if isinstance(document, list):
            return [self.hide_in(item) for item in document]
        if isinstance(document, dict):
            return {key: self.hide_in(value) for key, value in document.items()}
        return document

    def command_line(self, words: Sequence[str]) -> str:
        """A command line to show: each word without its secrets, quoted as a shell wants it."""
        return printable(shlex.join([self.hide(word) for word in words]))
