"""Where the value of a variable is: what a profile says in place of a secret."""

from __future__ import annotations

from kopiatomic.immutable import immutable


@immutable
class Source:
    """A variable of a profile: its value, or where that is (``form`` is ``text``, ``file``, ``credential`` or ``command``)."""

    name: str
    form: str
    value: str | tuple[str, ...]
    place: str
    """The file and line of the profile, for messages."""
