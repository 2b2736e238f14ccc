"""Which entries a tree has, in little memory: what is in it, and not in a list of it, is found without holding either.

Each entry is a number of 64 bits, made of its path and of what is known of it, with a key that nobody else knows. Two of a
million entries are the same number once in forty million runs; then one that is missing would not be found.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

_MASK = (1 << 64) - 1
_MIX = 0x9E3779B97F4A7C15
"""An odd number without a pattern, so that neighbouring values become numbers that are far apart."""


def number(key: bytes, path: str) -> int:
    """Return the number of a path, by a key of at most 64 bytes."""
    return int.from_bytes(blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8, key=key).digest(), "big")


class Census:
    """The entries of a tree. What identifies one besides its path: its kind, its size, and its time in some unit."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._known: set[int] = set()
        self.count = 0
        """How many have been added."""

    def __len__(self) -> int:
        """Return how many have not been met."""
        return len(self._known)

    def add(self, path: str, kind: str, size: int, time: int) -> None:
        """Add an entry of the tree."""
        self.count += 1
        self._known.add(self._number(path, kind, size, time))

    def meet(self, path: str, kind: str, size: int, times: Iterable[int]) -> bool:
        """Take an entry of a list, with the times that it may have; return whether it is in the tree, and not met before."""
        for time in times:
            one = self._number(path, kind, size, time)
            if one in self._known:
                self._known.remove(one)
                return True
        return False

    def lacks(self, path: str, kind: str, size: int, time: int) -> bool:
        """Whether an entry of the tree has not been met."""
        return self._number(path, kind, size, time) in self._known

    def _number(self, path: str, kind: str, size: int, time: int) -> int:
        more = (size * 64 + len(kind)) * _MIX ^ (time * _MIX << 1)
        return number(self._key, f"{kind}{path}") ^ (more & _MASK)
