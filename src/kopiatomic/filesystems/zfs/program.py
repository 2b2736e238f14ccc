"""Queries to ``zfs get`` by exact name: listing a whole pool is slow."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kopiatomic.system import process, zfs_program


def gone(result: process.Finished) -> set[str]:
    """Return the names passed to ``zfs`` that it reports as nonexistent; about any other it may simply not know."""
    return {found[1] for found in _GONE.finditer(result.stderr.decode("utf-8", "surrogateescape"))}


_GONE = re.compile(r"^cannot open '(.*)': dataset does not exist$", re.MULTILINE)


def number(names: Iterable[str], kind: str, column: str) -> dict[str, str]:
    """Return a property whose values are numbers or a dash, for those names for which it could be read.

    For the others it is unknown, and callers must not take them for absent: their existence was not checked.
    """
    found = {}
    for part in process.parts(names):
        result = zfs_program.run(["zfs", "get", "-Hp", "-t", kind, "-o", "name,value", column, *part], may_fail=True)
        for line in result.stdout.decode("utf-8", "surrogateescape").splitlines():
            name, _, value = line.partition("\t")
            found[name] = value
    return found
