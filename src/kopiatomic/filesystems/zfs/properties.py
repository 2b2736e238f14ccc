"""The properties that are set on datasets: what a backup of files does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kopiatomic.model.plan import Dataset
from kopiatomic.system import process, zfs_program

_COLUMNS = 4


def read(datasets: Sequence[Dataset]) -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    """Return all local and received properties, each with ``value`` and ``source``, by dataset. Keys are none of them.

    One that was destroyed meanwhile has none. Raises KopiatomicError, Interrupted.
    """
    found: dict[str, dict[str, dict[str, str]]] = {dataset.name: {} for dataset in datasets}
    words = ["zfs", "get", "-Hp", "-s", "local,received", "-o", "name,property,source,value", "all"]
    for part in process.parts(found):
        answer = zfs_program.run([*words, *part], may_fail=True)
        last: dict[str, str] | None = None
        for line in answer.stdout.decode("utf-8", "backslashreplace").splitlines():
            name, *rest = line.split("\t", _COLUMNS - 1)
            if name in found and len(rest) == _COLUMNS - 1:
                last = found[name][rest[0]] = {"value": rest[2], "source": rest[1]}
            elif last is not None:
                # The value of a user property may have several lines.
                last["value"] += f"\n{line}"
    return found
