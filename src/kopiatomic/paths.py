"""Paths and dataset names as texts: which lies in which. Nothing here accesses a filesystem."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator


def below(path: str, top: str) -> str:
    """Return a path relative to one above it; empty if it is the same or lies elsewhere."""
    prefix = top.rstrip("/") + "/"
    return path[len(prefix) :] if path.startswith(prefix) else ""


def is_at_or_below(path: str, top: str) -> bool:
    """Whether a path is another or lies in it."""
    return path == top or bool(below(path, top))


def tree_order(path: str) -> list[str]:
    """Return a sort key that puts everything right after what it lies in."""
    return path.rstrip("/").split("/")


def common(paths: Iterable[str]) -> str:
    """Return the nearest directory, or dataset, that holds all of some, or is one of them; the root if nothing else does."""
    orders = [tree_order(path) for path in paths]
    first, last = min(orders), max(orders)
    alike = [one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]
    return "/".join(alike) or "/"


def topmost(paths: Iterable[str]) -> tuple[str, ...]:
    """Return those that lie in no other of them, sorted."""
    found: list[str] = []
    for path in sorted(set(paths), key=tree_order):
        if not found or not is_at_or_below(path, found[-1]):
            found.append(path)
    return tuple(sorted(found))


def parents(path: str) -> list[str]:
    """Return the directories above an absolute path, nearest first: ``/a/b`` gives ``/a`` and ``/``."""
    return list(_upwards(path))


def _upwards(path: str) -> Iterator[str]:
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        yield path


def local_path(repository: str) -> str | None:
    """Return the path of a repository on this machine, without the scheme that marks it as one; None if it lies elsewhere.

    Both restic and Borg take a path with a colon for something remote, unless it is preceded by a slash.
    """
    path = re.sub(r"^(local:|file://)", "", repository)
    return None if re.match(r"[^/]*:", path) else path
