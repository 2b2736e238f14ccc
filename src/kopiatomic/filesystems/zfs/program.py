"""Asking ``zfs get`` about what is named exactly: listing all of a pool is slow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from kopiatomic.system import process

_TIMEOUT = 120.0


def run(words: Sequence[str]) -> process.Finished:
    """``zfs`` with these words, in no language."""
    return process.run(["zfs", *words], timeout=_TIMEOUT, environment={**os.environ, "LC_ALL": "C"}, keep=1 << 30)


def gone(result: process.Finished) -> set[str]:
    """The names that ``zfs`` was given and that do not exist, by its own words; of any other it may just not know."""
    return {found[1] for found in _GONE.finditer(result.stderr.decode("utf-8", "surrogateescape"))}


_GONE = re.compile(r"^cannot open '(.*)': dataset does not exist$", re.MULTILINE)


def number(names: Iterable[str], kind: str, column: str) -> dict[str, str]:
    """A property whose values are numbers or a dash, of those of the names of which it could be read.

    Of the others it is not known, and no caller may take them for absent: their existence was not asked for.
    """
    found = {}
    for part in process.parts(names):
        result = run(["get", "-Hp", "-t", kind, "-o", "name,value", column, *part])
        for line in result.stdout.decode("utf-8", "surrogateescape").splitlines():
            name, _, value = line.partition("\t")
            found[name] = value
    return found
