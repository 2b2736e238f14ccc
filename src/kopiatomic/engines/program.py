"""Finding a program as execvp(3) does, with an error that says what is wrong where it cannot be started."""

from __future__ import annotations

import os
from collections.abc import Mapping

from kopiatomic.errors import KopiatomicError
from kopiatomic.text import printable


def find(name: str, environment: Mapping[str, str], *, kind: str, hint: str) -> str:
    """The path of a program: searched on PATH, or taken as it is (made absolute) where it has a slash.

    Raises KopiatomicError of kind ``{kind}-missing`` (with ``hint``) or ``{kind}-not-executable``.
    """
    if "/" in name:
        candidates = [os.path.abspath(name)]
        where = ""
    else:
        path = environment.get("PATH") or os.defpath
        candidates = [os.path.abspath(os.path.join(directory, name)) for directory in path.split(os.pathsep)]
        where = f" on PATH ({printable(path)})"
    obstacle = None
    for candidate in candidates:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
        if os.path.exists(candidate) and obstacle is None:
            reason = "is a directory" if os.path.isdir(candidate) else "may not be executed"
            obstacle = f"{printable(candidate)} {reason}"
    if obstacle is not None:
        raise KopiatomicError(
            f"cannot start {printable(name)}: {obstacle}",
            kind=f"{kind}-not-executable",
            hint="Check its permissions (chmod +x) and that its filesystem is not mounted noexec.",
        )
    raise KopiatomicError(f"no program {printable(name)!r}{where}", kind=f"{kind}-missing", hint=hint)
