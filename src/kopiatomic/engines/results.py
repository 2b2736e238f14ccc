"""The outcomes of several sources, combined into one result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from kopiatomic.model.engine import EngineResult, FileProblem, Saved
from kopiatomic.text import printable

_NAMED = 3
PROBLEMS = 20
"""How many of the files that could not be saved are named; the rest are counted."""


def not_saved(count: int, problems: Sequence[FileProblem]) -> str:
    """Return how many files and directories are not in what was saved, in words, and the first three of them."""
    what = f"{count} {'entry' if count == 1 else 'entries'} could not be saved"
    named = [problem.path for problem in problems][:_NAMED]
    more = f" and {count - len(named)} more" if count > len(named) else ""
    return f"{what}: {', '.join(named)}{more}" if named else what


def combined(found: Sequence[tuple[str, EngineResult]]) -> EngineResult:
    """Combine the results of several sources: saved if any is, complete only if all are."""
    sources = tuple(Saved(path, r.snapshot_id, r.saved, r.complete, r.message, r.unchanged) for path, r in found)
    if len(found) == 1:
        return replace(found[0][1], sources=sources)
    statistics: Counter[str] = Counter()
    for _, result in found:
        statistics.update(result.statistics)
    return EngineResult(
        saved=any(one.saved for one in sources),
        complete=all(one.saved and one.complete for one in sources),
        message="; ".join(f"{printable(one.source)}: {one.message}" for one in sources if one.message),
        snapshot_id=next((one.snapshot_id for one in sources if one.snapshot_id), None),
        statistics=dict(statistics),
        problems=tuple(problem for _, result in found for problem in result.problems)[:PROBLEMS],
        problem_count=sum(result.problem_count for _, result in found),
        sources=sources,
        recorded=any(result.recorded for _, result in found),
    )
