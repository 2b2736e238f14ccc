"""The one JSON document of ``--json``, as kopiatomic/output/run.schema.json describes it."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from kopiatomic import __version__
from kopiatomic.errors import EndError
from kopiatomic.model.changes import Changes
from kopiatomic.model.plan import Plan
from kopiatomic.model.report import EngineReport, HoldReport, Report
from kopiatomic.model.snapshots import Sets, SnapshotSet
from kopiatomic.model.verified import Verified

FORMAT = "kopiatomic-run-1"

LISTED = 10_000
"""How many items each list has at most: the document of every run is kept."""


def document(report: Report) -> dict[str, Any]:
    """Return a report as JSON types. Times in seconds, instants in UTC."""
    whole = _document(report)
    lists = {name: whole[name] for name in ("datasets", "left_out", "uncovered", "shielded")}
    sets = {f"snapshots of {made['pool']}": made["snapshots"] for made in whole["sets"]}
    changes = {f"changes {name}": known for name, known in (whole["changes"] or {}).items() if name != "last_run"}
    for name, listed in {**lists, **sets, **changes}.items():
        if len(listed) > LISTED:
            whole["not_listed"][name] = len(listed) - LISTED
            del listed[LISTED:]
    return whole


def _document(report: Report) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": __version__,
        "kind": report.kind,
        "run_id": report.run_id,
        "root": report.plan.top if report.plan else report.root,
        "layout": str(report.plan.layout) if report.plan else None,
        "sources": list(report.plan.sources) if report.plan else [],
        "dry_run": report.dry_run,
        "result": report.result,
        "exit_code": report.exit_code,
        "error": _error(report.error),
        "hook_error": _error(report.hook_error),
        "hooks": [
            {"hook": one.moment, "place": one.place, "seconds": one.seconds, "error": _error(one.error)}
            for one in report.hooks
        ],
        "writers": writers(report),
        "metadata": _metadata(report),
        "verified": _verified(report.verified),
        "skipped": report.skipped or None,
        "atomic": report.sets.atomic if report.sets else None,
        "instant": instant_text(report.sets.started_ns) if report.sets else None,
        "skew_seconds": report.sets.skew_ns / 1e9 if report.sets else None,
        "frozen_seconds": report.frozen_seconds,
        "datasets": _datasets(report.plan) if report.plan else [],
        "left_out": _left_out(report.plan) if report.plan else [],
        "uncovered": _uncovered(report.plan) if report.plan else [],
        "shielded": _shielded(report.plan) if report.plan else [],
        "changes": _changes(report.changes),
        "sets": [_set(s, _places(report.plan)) for s in report.sets.sets] if report.sets else [],
        "engine": _engine(report.engine) if report.engine else None,
        "hold": _hold(report) if isinstance(report, HoldReport) else None,
        "not_listed": {},
        "durations": report.durations,
        "warnings": report.warnings,
        "incomplete": report.incomplete,
        "left_behind": report.left_behind,
    }


def _metadata(report: Report) -> dict[str, Any] | None:
    made = report.metadata
    if made is None:
        return None
    result = report.engine.result if report.engine else None
    return {
        "entries": made.entries,
        "bytes": made.size,
        "unreadable": made.unreadable,
        "cached": made.known,
        "saved": result.recorded if result else None,
    }


def _verified(found: Verified | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "equal": found.equal,
        "entries": found.entries,
        "files": found.files,
        "bytes": found.size,
        "all_files": found.all_files,
        "rounds": found.rounds,
        "left_out": dict(found.left_out),
        "differences": [{"path": one.path, "what": one.what} for one in found.differences],
        "difference_count": found.difference_count,
    }


def writers(report: Report) -> list[dict[str, Any]]:
    """Return the writers that were to be held still, as in the document."""
    return [
        {
            "writer": one.label,
            "plan": one.text,
            "note": one.note or None,
            "needed": one.needed,
            "one_instant": report.one_instant_for(one),
            "stall_seconds": None if one.stall is None else one.stall / 1e9,
            "why": one.why or None,
        }
        for one in report.writers
    ]


def instant_text(nanoseconds: int) -> str:
    """Return a wall-clock time in RFC 3339, UTC, to the microsecond."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 1000:06d}Z"


def instant_words(nanoseconds: int) -> str:
    """Return a wall-clock time for a person."""
    return instant_text(nanoseconds).replace("T", " ").replace("Z", " UTC")


def _hold(report: HoldReport) -> dict[str, Any] | None:
    if report.hold is None:
        return None
    return {
        "process": report.hold.process,
        "program": report.hold.program or None,
        "deadline": instant_text(int(report.hold.deadline * 1e9)),
        "ended_by": None if report.ended_by is None else str(report.ended_by),
    }


def _error(error: EndError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"kind": error.kind, "message": error.message, "hint": error.hint}


def _datasets(plan: Plan) -> list[dict[str, Any]]:
    reasons = {(judged.kind, judged.name): judged.reason for judged in plan.judged}
    return [
        {
            "dataset": t.dataset.name,
            "filesystem": t.dataset.kind,
            "pool": t.dataset.pool,
            "volume": t.dataset.volume,
            "mountpoint": t.dataset.mountpoint.text or None,
            "path": t.places[0],
            "paths": list(t.places),
            "named": t.named,
            "reason": reasons.get((t.dataset.kind, t.dataset.name), ""),
        }
        for t in plan.taken
    ]


def _left_out(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "dataset": o.name,
            "filesystem": o.kind,
            "verdict": str(o.verdict),
            "reason": o.reason,
            "mountpoint": o.mountpoint or None,
            "incomplete": o.incomplete,
            "count": o.count,
        }
        for o in plan.left_out
    ]


def _uncovered(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "path": u.point,
            "type": u.fstype,
            "source": u.source,
            "inside": u.inside,
            "bytes": u.size,
            "note": u.note or None,
            "live": u.live,
        }
        for u in plan.uncovered
    ]


def _shielded(plan: Plan) -> list[dict[str, Any]]:
    whole = [{"path": t.place, "how": "read-only", "who": t.whole, "for": t.places[0]} for t in plan.taken if t.whole]
    return whole + [{"path": h.directory, "how": "hidden", "who": h.who, "for": h.place} for h in plan.hidden]


def _changes(changes: Changes | None) -> dict[str, Any] | None:
    if changes is None:
        return None
    return {
        "last_run": changes.last,
        "added": list(changes.added),
        "removed": list(changes.removed),
        "moved": [{"dataset": m.name, "before": list(m.before), "now": list(m.now)} for m in changes.moved],
    }


def _places(plan: Plan | None) -> dict[tuple[str, str], str]:
    return {(t.dataset.kind, t.dataset.name): t.place for t in plan.taken} if plan else {}


def _set(made: SnapshotSet, places: dict[tuple[str, str], str]) -> dict[str, Any]:
    sets = Sets((made,))
    return {
        "filesystem": made.kind,
        "pool": made.pool,
        "one_instant": made.one_instant,
        "transaction": made.snapshots[0].transaction if made.one_instant else None,
        "skew_seconds": sets.skew_ns / 1e9,
        "untied_seconds": None if made.untied_ns is None else made.untied_ns / 1e9,
        "wall_before": instant_text(made.instant.wall_before),
        "wall_after": instant_text(made.instant.wall_after),
        "monotonic_before": made.instant.monotonic_before / 1e9,
        "monotonic_after": made.instant.monotonic_after / 1e9,
        "snapshots": [
            {
                "dataset": s.dataset,
                "snapshot": s.source,
                "transaction": s.transaction,
                "identity": s.identity,
                "bytes": s.size,
                "path": places.get((made.kind, s.dataset)),
            }
            for s in made.snapshots
        ],
    }


def _engine(engine: EngineReport) -> dict[str, Any]:
    result = engine.result
    return {
        "name": engine.name,
        "version": engine.version,
        "argv": list(engine.argv),
        "status": engine.end.status if engine.end else None,
        "stopped": engine.end.stopped if engine.end else None,
        "saved": result.saved if result else None,
        "complete": result.complete if result else None,
        "message": result.message if result else None,
        "snapshot_id": result.snapshot_id if result else None,
        "root_object": result.root_object if result else None,
        "sources": [asdict(source) for source in result.sources] if result else [],
        "statistics": dict(result.statistics) if result else {},
        "problems": [{"path": p.path, "message": p.message} for p in result.problems] if result else [],
        "problem_count": result.problem_count if result else 0,
    }
