"""What restic and Borg have in common: a repository that is named by a text, and how to speak of one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence

from kopiatomic.engines import location
from kopiatomic.engines.flags import Given
from kopiatomic.engines.own import Own, source_of
from kopiatomic.errors import KopiatomicError
from kopiatomic.masking import credentials
from kopiatomic.model import Layout, Plan
from kopiatomic.text import printable


def secrets_of(repository: str | None) -> Sequence[str]:
    """The passwords that a repository's name carries (``rest:https://user:password@host/``)."""
    return credentials(repository or "")


def folder(repository: str | None) -> str | None:
    """The folder that a repository is, or None: absolute, without the scheme that says that it is one."""
    if not repository:
        return None
    path = re.sub(r"^(local:|file://)", "", repository)
    # Both take a path with a colon for something remote, unless a slash comes first.
    if re.match(r"^[^/]*:", path):
        return None
    return os.path.abspath(os.path.expanduser(path))


def check_mounts(engine: str, given: Iterable[Given], plan: Plan) -> None:
    """Refuse what would drop the mounts inside a source. Raises KopiatomicError of kind one-file-system."""
    flag = "--one-file-system"
    places = [plan.path(place) for taken in plan.taken for place, _ in taken.shown]
    inside = [path for path in places if path not in plan.sources]
    if inside and any(one.flag == flag for one in given):
        raise KopiatomicError(
            f"-o {flag}: {engine} would silently leave out {printable(inside[0])} and every other mount in its sources",
            kind="one-file-system",
            hint=f"Leave {flag} out; to keep other filesystems out of it, use --only-frozen.",
        )


def excluded(given: Iterable[Given]) -> set[str]:
    """The paths that the user's own options leave out, whole or in content."""
    values = (re.sub(r"^(fm|sh|pp|pf):", "", one.value) for one in given if one.flag == "--exclude")
    return {value.removesuffix("/*").rstrip("/") for value in values if value.startswith("/")}


def own(
    engine: str, repository: str | None, caches: Mapping[str, str], given: Iterable[Given], plan: Plan
) -> list[Own]:
    """Caches are left out of every backup in place; a repository only where the user says so."""
    found = [Own(f"{engine}'s {what}", path, skipped=True) for what, path in caches.items()]
    path = folder(repository)
    source = source_of(os.path.realpath(path), plan) if path is not None else None
    if path is not None and source is not None:
        real = os.path.realpath(path)
        why = f"Have {engine} leave it out (-o '--exclude={printable(real)}'), or move it out of what is backed up."
        found.append(Own(f"{engine}'s repository", path, bool({path, real} & excluded(given)), why))
    return found


def warnings(engine: str, repository: str | None, caches: Mapping[str, str], plan: Plan) -> list[str]:
    """What the merged layout needs to be said. Raises KopiatomicError of kind repository-in-selection."""
    if plan.layout is Layout.IN_PLACE:
        return []
    found = location.check_repository(engine, folder(repository), plan)
    left_out = f"to leave it out, give {engine} an exclusion (-o '--exclude=PATTERN')"
    return found + location.notes(engine, caches.items(), plan, left_out=left_out)
