"""What came of a restore: what could not be set, and what is not as it is recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from kopiatomic.immutable import immutable
from kopiatomic.text import printable


@immutable
class Difference:
    """What is not as it is recorded: the path, what of it (``owner``, ``mode``), and both in words."""

    path: str
    what: str
    recorded: str
    found: str

    def __str__(self) -> str:
        return f"{printable(self.path)}: the {self.what} is {self.found} and was {self.recorded}"


@immutable
class Failure:
    """Something that could not be done: the path, what in words, and why; ``what`` is that of the difference which it makes."""

    path: str
    words: str
    why: str
    what: str = ""

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.words}: {self.why}"


@dataclass
class Outcome:
    """What came of it, of all parts of a restore together. Paths are those of the record."""

    applied: int = 0
    absent: list[str] = field(default_factory=list)
    """What is recorded and is not in the restored tree: the engine left it out."""
    differences: list[Difference] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    """Why something could not be set; what differs because of it is among the differences as well."""
    said: list[str] = field(default_factory=list)
    """What engine and filesystem say that they could not give back."""

    @property
    def reasons(self) -> list[str]:
        """All that could not be done, in words."""
        return [*self.said, *map(str, self.failures)]

    def kinds(self) -> list[str]:
        """Return what is not as it was, in words: each kind of thing once, with the first entry and the number of all."""
        failed: dict[tuple[str, str], list[Failure]] = {}
        for failure in self.failures:
            failed.setdefault((failure.words, failure.why), []).append(failure)
        explained = {(one.path, one.what) for one in self.failures}
        different: dict[str, list[Difference]] = {}
        for difference in self.differences:
            if (difference.path, difference.what) not in explained:
                different.setdefault(difference.what, []).append(difference)
        return [
            *(text if count == 1 else f"{text} ({count:,} times)" for text, count in Counter(self.said).items()),
            *(_together(failures) for failures in failed.values()),
            *(_together(differences) for differences in different.values()),
        ]


def _together(same: Sequence[Failure | Difference]) -> str:
    return f"{same[0]}" if len(same) == 1 else f"{same[0]} (the first of {len(same):,} entries)"
