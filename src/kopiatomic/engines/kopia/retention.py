"""How long kopia keeps the snapshots of a metadata record in place: as long as any of those that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from kopiatomic.engines.engine import RecordTerms
from kopiatomic.engines.kopia import checks, location
from kopiatomic.engines.kopia.found import Found, mapping
from kopiatomic.engines.kopia.policy import Source
from kopiatomic.engines.numbers import number
from kopiatomic.errors import KopiatomicError
from kopiatomic.text import printable

_KEPT = MappingProxyType(
    {
        "keepLatest": "latest",
        "keepHourly": "hourly",
        "keepDaily": "daily",
        "keepWeekly": "weekly",
        "keepMonthly": "monthly",
        "keepAnnual": "annual",
    }
)
"""What kopia counts (snapshot/policy/retention_policy.go), and the ending of the option that sets it."""

_IDENTICAL = "ignoreIdenticalSnapshots"


def terms(found: Found, record: str) -> RecordTerms:
    """Return what is done so that the record is kept as long as what it belongs to. Raises KopiatomicError.

    What kopia applies to a source it says itself (``policy show``), once for all to which the same policies apply.
    """
    if checks.is_unstorable(record):
        raise KopiatomicError(
            f"kopia cannot store names that are not UTF-8, and the metadata record would be at {printable(record)}",
            kind="name-not-storable",
            hint="Choose another state directory: --state-dir.",
        )
    own = next(iter(found.policies.values())).of(found.source(record))
    checks.check_actions(own, found.status, found.options)
    alike = {policies.in_force(): policies.source for policies in found.policies.values()}
    *others, now = _retentions(found, [*alike.values(), own.source])
    wanted = most_generous([*others, now])
    flags = [f"--keep-{word}={wanted[key]}" for key, word in _KEPT.items() if wanted[key] != number(now, key)]
    if now.get(_IDENTICAL):
        # Each run's own is looked for by the run.
        flags.append("--ignore-identical-snapshots=false")
    kept = ", ".join(f"{word} {wanted[key]}" for key, word in _KEPT.items()) if any(wanted.values()) else "all of them"
    text = f"kopia keeps snapshots of {printable(record)} as well, one of each run, as long as those of any source ({kept})"
    command = (found.client.path, "policy", "set", str(own.source), *flags) if flags else ()
    repository = str(found.status.get("uniqueIDHex") or location.storage(found.status))
    return RecordTerms(repository, text, command)


def accept(found: Found, agreed: RecordTerms) -> None:
    """Set the policy. Raises KopiatomicError."""
    if not agreed.command:
        return
    finished = found.client.run(*agreed.command[1:], "--no-auto-maintenance", *found.client.shared)
    if finished.status != 0:
        raise found.client.failure(finished)


def _retentions(found: Found, sources: Sequence[Source]) -> list[Mapping[str, Any]]:
    questions = [("policy", "show", "--json", str(source)) for source in sources]
    return [mapping(mapping(shown).get("retention")) for shown in found.client.ask_together(*questions)]


def most_generous(found: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return counts that keep all that any of these keeps. Where all are 0, kopia keeps everything."""
    counts = [{key: number(one, key) for key in _KEPT} for one in found]
    if any(not any(one.values()) for one in counts):
        return dict.fromkeys(_KEPT, 0)
    return {key: max(one[key] for one in counts) for key in _KEPT}
