"""Names that denote secrets: of variables, flags and parameters, by one set of rules."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
"""The words of ``B2_ACCOUNT_KEY``, ``--sftp-password`` or ``AccountKey``."""

_SECRET = (
    "PASSWORD",
    "PASSWORDS",
    "PASSWD",
    "PASSPHRASE",
    "SECRET",
    "SECRETS",
    "TOKEN",
    "APIKEY",
    "SECRETKEY",
    "ACCESSKEY",
)
"""Endings of words that denote secrets."""

_SECRET_WHOLE = frozenset({"PASSCODE", "SAS"})
_SHORT = ("PASS", "PW")
"""Endings likewise (``DBPASS``, ``BINDPW``), with which ordinary words end as well."""

_ORDINARY = frozenset({"BYPASS", "COMPASS", "OVERPASS", "TRESPASS", "UNDERPASS"})
_ELSEWHERE = ("FILE", "FILES", "COMMAND", "CMD")
"""Endings of the last word of names that say where a secret is, and not what it is."""

_COMMAND = re.compile(r"(?:COMMAND|CMD)$", re.IGNORECASE)

_ABOUT = frozenset(
    {"PATH", "DIR", "DIRECTORY", "FD", "HINT", "URL", "URI", "NAME", "TYPE", "CACHE", "POLICY", "SOCK", "SOCKET"}
    | {"LENGTH", "TIMEOUT", "TTL", "EXPIRY", "ALGORITHM", "FORMAT", "PROMPT", "KEYRING"}
)
"""Last words of names that describe something about a secret."""

_SWITCH = frozenset({"NO", "ASK", "ASKPASS", "USE", "PERSIST", "EMBED"})
"""Words of names that say what to do with a secret."""

_CONTENT = frozenset({"DATA", "PEM", "STRING", "VALUE"})
_NO_KEY = frozenset({"PUBLIC", "SORT", "PRIMARY", "FOREIGN", "HOST", "GROUP", "CACHE", "PARTITION"})
"""Words before KEY with which it is not a secret."""

_SETTINGS = frozenset({"", "0", "1", "true", "false", "yes", "no", "on", "off", "none", "null"})
"""Values of switches."""

_PATH = re.compile(r"(?:~|/(?:etc|home|mnt|opt|root|run|srv|tmp|usr|var))/")
"""How the path of a file that may hold a key or credentials begins. Base64, used for keys, has slashes too."""


@lru_cache(maxsize=1024)
def names_secret(name: str) -> bool:
    """Whether a name denotes a secret. ``*_FILE`` and ``*_COMMAND`` denote where it is."""
    words = [word.upper() for word in _WORDS.findall(name)]
    while len(words) > 1 and words[-1] in _CONTENT:
        words.pop()
    if not words or not _SWITCH.isdisjoint(words):
        return False
    if "SAS" in words[1:]:
        return True
    if words[-1] in _ABOUT or words[-1].endswith(_ELSEWHERE):
        return False
    return any(map(_is_secret, words)) or _may_be_in_a_file(words)


def tells_secret(name: str) -> bool:
    """Whether a name denotes a command that prints a secret (``BORG_PASSCOMMAND``)."""
    found = _COMMAND.search(name)
    return found is not None and names_secret(name[: found.start()])


def _is_secret(word: str) -> bool:
    return word.endswith(_SECRET) or word in _SECRET_WHOLE or (word.endswith(_SHORT) and word not in _ORDINARY)


def _may_be_in_a_file(words: list[str]) -> bool:
    """Whether it is a key, or credentials: tools accept them directly, or the path of a file."""
    pairs = list(pairwise(words))
    last = words[-1]
    return (
        ("ACCESS", "KEY") in pairs
        or (last == "KEY" and len(words) > 1 and words[-2] not in _NO_KEY)
        or (last in {"PWD", "PAT", "AUTH"} and len(words) > 1)
        or last in {"CREDENTIALS", "CREDS"}
    )


def is_setting(value: str) -> bool:
    """Whether a value is that of a switch, and so not a secret whatever its name."""
    return value.lower() in _SETTINGS


def is_file_of(name: str, value: str) -> bool:
    """Whether a key or credentials are given as the path of a file."""
    return _PATH.match(value) is not None and re.search(r"KEY$|CREDENTIALS$", name, re.IGNORECASE) is not None
