"""Names that a case-insensitive target takes for the same: engines write one over the other, and some of them in silence."""

from __future__ import annotations

from collections.abc import Iterable

from kopiatomic.engines.reader import Entry, Reader, StoredSnapshot
from kopiatomic.errors import KopiatomicError
from kopiatomic.text import few, printable

_SHOWN = 5


def require_distinct(reader: Reader, places: Iterable[tuple[StoredSnapshot, str]], target: str) -> None:
    """Refuse what has names that differ in case alone; paths as the engine has them. Raises KopiatomicError."""
    seen: set[int] = set()
    alike: list[str] = []

    def take(entry: Entry) -> None:
        # A number for each: there are millions of them.
        folded = hash(entry.path.casefold())
        if folded in seen:
            alike.append(entry.path)
        seen.add(folded)

    for snapshot, path in places:
        reader.entries(snapshot, take, below=path)
    if alike:
        raise KopiatomicError(
            f"{printable(target)} takes names that differ in case alone for the same, and {len(alike)} would be lost: "
            f"{', '.join(few(list(map(printable, alike)), _SHOWN))}",
            kind="target-folds-case",
            hint="Restore to a filesystem that distinguishes them.",
        )
