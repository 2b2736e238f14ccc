"""The properties that are set on datasets: what a backup of files does not have.

A value may have tabs and newlines, which ``zfs get`` prints raw, and with them what looks like another property or dataset. So
the names are asked for without the values, and the values are taken only where every line is the one that these names say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kopiatomic.model.facts import PropertySetting
from kopiatomic.model.plan import Dataset
from kopiatomic.system import process, zfs_program

AT_BIRTH = ("casesensitivity", "normalization", "utf8only")
"""What can be set when a dataset is made, and never again: they have no source, and each dataset has its own."""

COUNTED = frozenset({"filesystem_count", "snapshot_count"})
"""What ZFS counts as soon as there is a limit, and calls local."""

_NO_SOURCE = "-"

_Key = tuple[str, str, str]
"""Dataset, property, source."""


def read(datasets: Sequence[Dataset]) -> Mapping[str, Mapping[str, PropertySetting]]:
    """Return all local and received properties by dataset, and those that it was made with. Keys are none of them.

    A dataset that was destroyed meanwhile has none. Raises KopiatomicError, Interrupted.
    """
    names = [dataset.name for dataset in datasets]
    found: dict[str, dict[str, PropertySetting]] = {name: {} for name in names}
    waiting = list(process.parts(names))
    while waiting:
        part = waiting.pop()
        keys = [_key(line) for line in _get(part, "name,property,source", "all", "-s", "local,received")]
        values = _values(part, keys)
        if values is None and len(part) > 1:
            waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
            continue
        for name, key, source in keys:
            if key not in COUNTED:
                value = _alone(name, key) if values is None else values[name, key, source]
                found[name][key] = PropertySetting(value, source)
        # A volume has a dash for each of these.
        for line in _get(part, "name,property,value", ",".join(AT_BIRTH)):
            name, key, value = _key(line)
            if value != _NO_SOURCE:
                found[name][key] = PropertySetting(value, _NO_SOURCE)
    return found


def _get(names: Iterable[str], columns: str, properties: str, *words: str) -> list[str]:
    answer = zfs_program.run(["zfs", "get", "-Hp", *words, "-o", columns, properties, *names], may_fail=True)
    text = answer.stdout.decode("utf-8", "surrogateescape").removesuffix("\n")
    return text.split("\n") if text else []


def _key(line: str) -> _Key:
    one, two, three = line.split("\t")
    return one, two, three


def _values(names: Sequence[str], keys: Sequence[_Key]) -> dict[_Key, str] | None:
    """Return the values of properties; None if one of them may look like another."""
    lines = _get(names, "name,property,source,value", "all", "-s", "local,received")
    if len(lines) != len(keys):
        return None
    found: dict[_Key, str] = {}
    for key, line in zip(keys, lines, strict=True):
        head = "\t".join(key) + "\t"
        if not line.startswith(head):
            return None
        found[key] = line.removeprefix(head)
    return found


def _alone(name: str, key: str) -> str:
    answer = zfs_program.run(["zfs", "get", "-Hp", "-o", "value", key, name])
    return answer.stdout.decode("utf-8", "surrogateescape").removesuffix("\n")
