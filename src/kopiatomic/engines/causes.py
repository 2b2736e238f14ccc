"""Why engines fail for reasons that they have no specific message for: no space, read-only storage, a lost server.

They report these in many lines, each a chain of what they were doing. A user needs the cause, once.
"""

from __future__ import annotations

import re

from kopiatomic.errors import KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.text import printable

_LONGEST = 160
"""How many characters of an engine's own message are shown with the cause."""


@immutable
class Cause:
    """What was in the way; ``kind`` is for programs, ``what`` and the engine's own message ``said`` are for people."""

    kind: str
    what: str
    said: str
    hint: str

    def __str__(self) -> str:
        """Return the cause in one line."""
        return f"{self.what} ({self.said})"

    def error(self, engine: str, name: str) -> KopiatomicError:
        """Return the error of a failed query. ``engine`` begins its kind, ``name`` its message."""
        return KopiatomicError(f"{name} cannot work: {self}", kind=f"{engine}-{self.kind}", hint=self.hint)


_CAUSES = (
    (
        r"no space left on device|disk quota exceeded|insufficient storage|quota exceeded",
        "full",
        "no space is left",
        "Make room there, or move the repository. What was broken off is no backup.",
    ),
    (
        r"read-only file ?system|storage is read-only",
        "read-only",
        "what it writes to is read-only",
        "Is the repository's filesystem mounted read-only, or was it connected so?",
    ),
    (
        r"connection (?:refused|reset by peer|closed by remote host)|broken pipe|transport is closing|i/o timeout|"
        r"no route to host|network is unreachable|error reading from server: EOF|unexpected EOF",
        "unreachable",
        "its repository does not answer",
        "Is its storage there (mounted, switched on, server running)?",
    ),
)


def cause(text: str) -> Cause | None:
    """Return the cause in an engine's message, if it is one of these."""
    for pattern, kind, what, hint in _CAUSES:
        # What comes right before it tells where: "write /backup/x: no space left on device".
        found = re.search(rf"(?:[^:;\n\"]{{1,{_LONGEST}}}: )?(?:\[Errno \d+\] )?(?:{pattern})", text, re.IGNORECASE)
        if found is not None:
            return Cause(kind, what, printable(found[0].strip())[-_LONGEST:], hint)
    return None
