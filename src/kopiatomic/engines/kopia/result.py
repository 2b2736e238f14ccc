"""What a snapshot's manifest says about a backup, in numbers and names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kopiatomic.engines import results
from kopiatomic.engines.kopia.found import mapping
from kopiatomic.engines.kopia.output import Manifest
from kopiatomic.engines.numbers import number
from kopiatomic.model.engine import EngineResult, FileProblem
from kopiatomic.text import printable


def saved(manifest: Manifest, root: str) -> EngineResult:
    """Return the result that a manifest is. Paths of failed files are below the view's root, safe to print."""
    summary, statistics = manifest.summary, manifest.statistics
    numbers = {
        "files_total": number(summary, "files"),
        "symlinks_total": number(summary, "symlinks"),
        "directories_total": number(summary, "dirs"),
        "bytes_total": number(summary, "size"),
        "errors": number(summary, "numFailed"),
        "ignored_errors": number(summary, "numIgnoredErrors"),
    }
    if "cachedFiles" in statistics:
        numbers["files_cached"] = number(statistics, "cachedFiles")
        numbers["files_hashed"] = number(statistics, "nonCachedFiles")
    failed = [mapping(f) for f in _list(summary.get("errors"))][: results.PROBLEMS]
    return EngineResult(
        saved=True,
        complete=True,
        message="",
        snapshot_id=manifest.id,
        root_object=manifest.root_object,
        statistics=numbers,
        problems=tuple(
            FileProblem(printable(f"{root}/{f.get('path', '?')}"), printable(str(f.get("error", "")))) for f in failed
        ),
        problem_count=max(len(failed), numbers["errors"] + numbers["ignored_errors"]),
    )


def standing(manifest: Manifest, source: str) -> EngineResult:
    """Return the result for a source that was not read; its counts are those of the snapshot."""
    result = saved(manifest, source)
    counts = {k: v for k, v in result.statistics.items() if k not in {"files_cached", "files_hashed"}}
    return replace(result, unchanged=True, statistics=counts)


def not_saved(message: str, manifest: Manifest | None = None) -> EngineResult:
    """Return the result of a backup that failed; a manifest of it may be only a part."""
    return EngineResult(
        saved=False,
        complete=False,
        message=message,
        snapshot_id=None if manifest is None else manifest.id,
        root_object=None if manifest is None else manifest.root_object,
    )


def failures(manifest: Manifest, problems: Sequence[FileProblem]) -> list[str]:
    """Return the files that are not in the snapshot, by kopia's counts."""
    failed, ignored = number(manifest.summary, "numFailed"), number(manifest.summary, "numIgnoredErrors")
    reasons = []
    if failed:
        reasons.append(results.not_saved(failed, problems))
    if ignored:
        reasons.append(f"{results.not_saved(ignored, () if failed else problems)}, which kopia's policy ignores")
    return reasons


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
