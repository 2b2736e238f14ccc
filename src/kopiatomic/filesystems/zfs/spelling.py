"""Which spellings a dataset takes for the same name (``casesensitivity``, ``normalization``); see planning/spelling.py."""

from __future__ import annotations

from functools import cache

from kopiatomic.filesystems.zfs import listing
from kopiatomic.immutable import immutable
from kopiatomic.model.mounts import Mount


@immutable
class _NameRules:
    """Which spellings of a name a dataset takes for the same."""

    ignores_case: bool
    normalizes: bool

    def changes(self, name: str) -> bool:
        """Whether a name may have other spellings."""
        return (self.ignores_case and name.upper() != name.lower()) or (self.normalizes and not name.isascii())


def respells(mount: Mount, name: str) -> bool:
    """Whether a name in a mounted dataset may have other spellings. Raises KopiatomicError."""
    if name.isascii() and ("casesensitive" in mount.super_options or name.upper() == name.lower()):
        return False
    return _rules_of(mount.source.partition("@")[0]).changes(name)


@cache
def _rules_of(dataset: str) -> _NameRules:
    """Return those of a dataset, which it was made with; one that does not say them is taken for one that does both.

    Raises KopiatomicError.
    """
    argv = ["zfs", "get", "-H", "-o", "value", "casesensitivity,normalization", dataset]
    result = listing.run(argv, may_fail=True)
    values = result.stdout.decode("utf-8", "replace").split()
    known = result.status == 0 and len(values) == 2
    return _NameRules(ignores_case=not known or values[0] == "insensitive", normalizes=not known or values[1] != "none")
