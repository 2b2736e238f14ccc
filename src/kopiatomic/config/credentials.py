"""Passwords and keys that a service manager passes as files (systemd.exec(5), ``LoadCredential=``), for the engine alone.

A credential that is named like an environment variable goes into the engine's environment only: not into our own, which hooks
and every program that we run would inherit, nor into the unit's, which every user may read.
"""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping

from kopiatomic.errors import KopiatomicError
from kopiatomic.text import printable

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*|https?_proxy")


def is_variable(name: str) -> bool:
    """Whether a credential of this name is meant for the engine's environment."""
    return _VARIABLE.fullmatch(name) is not None


def take(environment: MutableMapping[str, str]) -> dict[str, str]:
    """Return the credentials that an environment points to, by variable, each without its trailing newline.

    The environment no longer points to them afterwards. Raises KopiatomicError of kind ``credential``.
    """
    folder = environment.pop("CREDENTIALS_DIRECTORY", "")
    if not folder:
        return {}
    try:
        return {name: _value(os.path.join(folder, name)) for name in sorted(os.listdir(folder)) if is_variable(name)}
    except OSError as error:
        raise _unusable(error.filename or folder, error.strerror or str(error)) from None


def _value(path: str) -> str:
    """Return the content of a file. Raises OSError, KopiatomicError."""
    with open(path, "rb") as file:
        content = file.read()
    if b"\0" in content:
        raise _unusable(path, "it holds a NUL byte, which no environment variable can")
    return os.fsdecode(content.removesuffix(b"\n"))


def _unusable(path: str, reason: str) -> KopiatomicError:
    return KopiatomicError(
        f"the credential {printable(path)} cannot be used: {reason}",
        kind="credential",
        hint="Look at LoadCredential= in the unit, and at the file that it names.",
    )
