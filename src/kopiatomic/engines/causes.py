"""Why engines fail that have no word of their own for it: no space, a storage that is read-only, a server that has gone.

They say so in many lines, each a chain of what they were doing when. A user needs the cause, once.
"""

from __future__ import annotations

import re

from kopiatomic.errors import KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.text import printable

_LONGEST = 160
"""How much of an engine's own words (characters) stands beside the cause."""


@immutable
class Cause:
    """What was in the way; ``kind`` is for programs, ``what`` and ``said``, the engine's own words, for people."""

    kind: str
    what: str
    said: str
    hint: str

    def __str__(self) -> str:
        """In one line."""
        return f"{self.what} ({self.said})"

    def error(self, engine: str, name: str) -> KopiatomicError:
        """As the failure of a question. ``engine`` begins its kind, ``name`` its message."""
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
    """The cause in what an engine said, if it is one of these."""
    for pattern, kind, what, hint in _CAUSES:
        # What stands right before it tells where: "write /backup/x: no space left on device".
        found = re.search(rf"(?:[^:;\n\"]{{1,{_LONGEST}}}: )?(?:\[Errno \d+\] )?(?:{pattern})", text, re.IGNORECASE)
        if found is not None:
            return Cause(kind, what, printable(found[0].strip())[-_LONGEST:], hint)
    return None
