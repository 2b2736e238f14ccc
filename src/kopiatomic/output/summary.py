"""A run's result in lines for a person. Pure: the console prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kopiatomic.filesystems import KINDS
from kopiatomic.model.plan import MIGHT_HANG, Plan, Uncovered
from kopiatomic.model.report import ONE_INSTANT, EngineReport, Report, WriterReport
from kopiatomic.model.snapshots import Sets
from kopiatomic.model.verified import Verified
from kopiatomic.output.document import instant_words, writers
from kopiatomic.state import liveness
from kopiatomic.text import few, first_few, printable

if TYPE_CHECKING:
    from kopiatomic.model.leftovers import Cleared

_LISTED = 20
"""How many datasets the summary lists; the rest are counted (--verbose lists all)."""

_FEW = 5
"""How many shielded directories it names (plan names all)."""

_OTHERS = 5
"""How many other filesystems in the trees of what was taken are named; the rest are counted (--verbose names all)."""

_KEPT = {"borg": "archive"}
"""An engine's word for what it keeps, if not snapshot."""

Style = str
"""A colour for the first word of a bold line, or "bold", or empty."""

Line = tuple[Style, str]


def has_summary(report: Report) -> bool:
    """Whether something was saved: a backup, or a part that must be reported."""
    result = report.engine.result if report.engine else None
    return bool(report.sets and result and (result.saved or result.snapshot_id))


def summary(report: Report, *, verbose: bool) -> list[Line]:
    """Return the end of a run that saved something, in lines."""
    assert report.plan is not None
    assert report.sets is not None
    assert report.engine is not None
    lines = [_headline(report)]
    lines += [("", line) for line in _table(report.plan, all_of_it=verbose)]
    lines += [("", line) for line in proof(report.sets)]
    lines += [("", line) for line in held(writers(report))]
    lines += [("", line) for line in _engine_lines(report.engine)]
    lines += [("", line) for line in _metadata(report)]
    lines += [("", line) for line in _verified(report.verified)]
    lines += [("", line) for line in _others(report.plan)]
    lines += [("", line) for line in _not_in_it(report.plan, all_of_it=verbose)]
    lines += [("", f"Shielded: {line}") for line in shielded(report.plan)[:_FEW]]
    if not report.left_behind:
        lines.append(("", f"Removed:  all snapshots and mounts; they existed for {duration(report.frozen_seconds)}"))
    if verbose:
        lines += [("", line) for line in _untied(report.sets)]
        lines.append(("", "Times:    " + ", ".join(f"{k} {v:.2f} s" for k, v in report.durations.items())))
    return lines


def _headline(report: Report) -> Line:
    assert report.plan is not None
    assert report.sets is not None
    count = len(report.plan.taken)
    when = instant_words(report.sets.started_ns)
    if not report.saved:
        return "red", f"NOT a backup: interrupted or changed while {count} dataset(s) of {when} were read"
    what = "Saved" if not report.incomplete else "Saved, but not complete:"
    instant = "at one instant" if report.sets.atomic else "NOT at one instant"
    style = "green" if report.exit_code == 0 and report.sets.atomic else "yellow"
    return style, f"{what} {count} dataset{'s' if count != 1 else ''} {instant}, {when}"


def _table(plan: Plan, *, all_of_it: bool) -> list[str]:
    taken = plan.taken if all_of_it or len(plan.taken) <= _LISTED else plan.taken[: _LISTED - 1]
    rows = [(printable(t.dataset.name), printable(plan.path(place))) for t in taken for place in t.places]
    width = min(40, max((len(name) for name, _ in rows), default=0))
    lines = [f"  {name:<{width}}  in {place}" for name, place in rows]
    if len(taken) < len(plan.taken):
        lines.append(f"  and {len(plan.taken) - len(taken)} more (--verbose lists them)")
    return lines


def proof(sets: Sets) -> list[str]:
    """Return what shows, or fails to show, that the snapshots share one instant."""
    lines = []
    for made in sets.sets:
        count = len(made.snapshots)
        kind = KINDS[made.kind]
        transaction = kind.transaction_word
        where = f"{kind.set_word} {printable(made.pool)}"
        if count == 1:
            lines.append(f"{where}: one snapshot, {transaction} {made.snapshots[0].transaction}")
        elif made.one_instant:
            lines.append(f"{where}: {count} snapshots, all in {transaction} {made.snapshots[0].transaction}")
        else:
            numbers = [s.transaction for s in made.snapshots]
            lines.append(
                f"{where}: {count} snapshots in {len(set(numbers))} transactions ({min(numbers)} to {max(numbers)})"
            )
    known = {made.kind for made in sets.sets}
    lines += [kind.caution for kind in KINDS.values() if kind.name in known and kind.caution]
    if not sets.atomic:
        lines.append(f"the sets are up to {sets.skew_ns / 1e9:.3f} s apart (an upper bound)")
    return [("Proof:    " if not i else "          ") + line for i, line in enumerate(lines)]


def held(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return how the writers in a run's document were held still, and how long each had to wait."""
    said = []
    for one in entries:
        if one["stall_seconds"] is not None:
            how = f"{one['stall_seconds'] * 1e3:.1f} ms"
        elif one["needed"]:
            how = "NOT held" + (f": {printable(one['why'])}" if one["why"] else "")
        else:
            how = "not needed"
        said.append(f"{printable(one['writer'])} {how}")
    lines = [f"Held:     {', '.join(said)}"] if said else []
    whole = [one["writer"] for one in entries if one.get("one_instant")]
    return [*lines, f"          {ONE_INSTANT} ({first_few(whole)}), not proven for others"] if whole else lines


def planned_writers(found: Sequence[WriterReport]) -> list[str]:
    """Return what the plan says of the writers that are to be held still."""
    width = max((len(one.label) for one in found), default=0)
    lines = []
    for one in found:
        whole = [f"{ONE_INSTANT}, not proven for others"] if one.spanning else []
        notes = "; ".join([*whole, *([printable(one.note)] if one.note else [])])
        lines.append(f"  {printable(one.label):<{width}}  {printable(one.text)}" + (f" ({notes})" if notes else ""))
    return lines


def _untied(sets: Sets) -> list[str]:
    """Return how long only the record protected the snapshots."""
    spans = [f"{printable(s.pool)} {s.untied_ns / 1e6:.0f} ms" for s in sets.sets if s.untied_ns is not None]
    return [f"Tied:     to this run's processes after {', '.join(spans)}"] if spans else []


def _engine_lines(engine: EngineReport) -> list[str]:
    result = engine.result
    assert result is not None
    words = [engine.name + (f" {engine.version}" if engine.version else "")]
    several = len({source.snapshot_id for source in result.sources}) > 1
    if result.snapshot_id and not several:
        words.append(f"{_KEPT.get(engine.name, 'snapshot')} {result.snapshot_id}")
    statistics = result.statistics
    if "files_total" in statistics:
        words.append(f"{statistics['files_total']:,} files, {size(statistics.get('bytes_total', 0))}")
    if "files_cached" in statistics:
        words.append(f"{statistics['files_cached']:,} unchanged")
    lines = ["Engine:   " + ", ".join(words)]
    for one in result.sources if several or any(one.unchanged for one in result.sources) else ():
        stands = "unchanged, not read: this stands for it: " if one.unchanged else ""
        lines.append(
            f"  {printable(one.source)}: {f'{stands}snapshot {one.snapshot_id}' if one.saved else 'NOT saved'}"
        )
    for problem in result.problems:
        lines.append(f"  not saved: {printable(problem.path)}: {printable(problem.message)}")
    if result.problem_count > len(result.problems):
        lines.append(f"  and {result.problem_count - len(result.problems)} more")
    return lines


def _metadata(report: Report) -> list[str]:
    """Return what is recorded of what the engine does not keep."""
    made, engine = report.metadata, report.engine
    assert engine is not None
    if report.without_metadata:
        return [f"Metadata: without metadata: {report.without_metadata}"]
    if made is None or engine.result is None:
        return []
    if not engine.result.recorded:
        return [f"Metadata: without metadata: its record is not in what {engine.name} saved"]
    return [f"Metadata: {made.entries:,} entries of which {engine.name} would lose something ({size(made.size)})"]


def _verified(found: Verified | None) -> list[str]:
    """Return what came of comparing the backup with the frozen view."""
    if found is None:
        return []
    read = f"{found.files:,} of {found.all_files:,} files ({size(found.size)}) read back and equal"
    covered = f"; {found.rounds} runs cover all" if found.rounds > 1 else ""
    lines = [f"Verified: {read}{covered}; all {found.entries:,} names compared"]
    count = sum(found.left_out.values())
    if count:
        where = first_few([f"{folder} ({number:,})" for folder, number in found.left_out.items()])
        lines.append(f"          left out by rules, or missing: {count:,} in {where}")
    lines += [f"  DIFFERS: {printable(one.path)}: {printable(one.what)}" for one in found.differences[:_LISTED]]
    if found.difference_count > _LISTED:
        lines.append(f"  and {found.difference_count - _LISTED} more")
    return lines


def planned_metadata(report: Report) -> list[str]:
    """Return where a run in place would have its metadata record; in a merged view it has one place."""
    plan = report.plan
    assert plan is not None
    if report.without_metadata:
        return [f"Metadata: {report.without_metadata}"]
    if not plan.record:
        return []
    how = "one path more for the engine" if plan.record_source else "a part of what is backed up"
    return [f"Metadata: its record would be {printable(plan.record)}, {how}"]


def _others(plan: Plan) -> list[str]:
    """Return what was in the backup live, of no one instant, and what was hidden because it might not answer."""
    live = [f"{printable(u.point)} ({u.fstype})" for u in plan.uncovered if u.live]
    lines = [f"Live:     {first_few(live)}: in the backup as it was then, not frozen"] if live else []
    return lines + ([f"Hidden:   {first_few(plan.might_hang)}: it might not answer"] if plan.might_hang else [])


def shielded(plan: Plan) -> list[str]:
    """In place: return what is not seen live because somebody could move what is backed up in it."""
    whole = [(t.place, f"{t.whole} could move {printable(t.places[0])}") for t in plan.taken if t.whole]
    lines = [f"{printable(place)} is read-only all over, for {why}" for place, why in whole]
    for hidden in plan.hidden:
        why = f"{hidden.who} could move {printable(hidden.place)}"
        lines.append(f"{printable(hidden.directory)} is hidden but for what is backed up and mounted in it, for {why}")
    return lines


def other_filesystems(plan: Plan) -> list[Uncovered]:
    """Return what is mounted in the trees, is not frozen, and is not a dataset with a verdict in the plan."""
    listed = {judged.name for judged in plan.judged}
    return [u for u in plan.uncovered if u.source not in listed and u.point not in listed]


def uncovered(other: Uncovered) -> str:
    """Return one of these filesystems in words."""
    source = f" {printable(other.source)}" if other.source not in {"none", other.fstype} else ""
    amount = "" if other.size is None else f", {size(other.size)}"
    note = f" ({other.note})" if other.note else ""
    note += " (in the backup, live and not frozen)" if other.live else ""
    return f"{printable(other.point)}: {other.fstype}{source}{amount}{note}"


def _not_in_it(plan: Plan, *, all_of_it: bool) -> list[str]:
    """Return what a user might believe to be in the backup because it is in the trees of what was taken."""
    others = [other for other in other_filesystems(plan) if not other.live and other.note != MIGHT_HANG]
    shown = others if all_of_it else others[:_OTHERS]
    lines = ["In these trees and not in the backup:"] if others else []
    lines += [f"  {uncovered(other)}" for other in shown]
    if len(shown) < len(others):
        lines.append(f"  and {len(others) - len(shown)} more (--verbose lists them)")
    return lines


def cleared_lines(cleared: Cleared) -> list[str]:
    """Return what a run reports about dead runs, and what became of their leftovers."""
    lines = ends_of_dead(cleared)
    lines += [f"{liveness.unknown_text(run_id)}; {liveness.assume_hint(run_id)}" for run_id in cleared.unjudged]
    gone: dict[str, list[str]] = {}
    left: list[str] = []
    for leftover in cleared.leftovers:
        what = f"{leftover.kind.replace('-', ' ')} {printable(leftover.name)}"
        if leftover.kind == "hook":
            whose = f"the {what} that run {leftover.run_id} of profile {printable(leftover.place)} owed"
            lines.append(f"{whose}: {leftover.problem}" if leftover.problem else f"ran {whose}")
        elif leftover.problem is None:
            gone.setdefault(leftover.run_id, []).append(what)
        else:
            left.append(f"{what} is left: {leftover.problem} (remove it with: {leftover.command})")
    lines += few(left)
    for run_id, names in gone.items():
        whose = f"run {run_id}" if run_id else "a killed run"
        lines.append(f"removed what {whose} left: {first_few(names)}")
    return lines + cleared.problems


def ends_of_dead(cleared: Cleared) -> list[str]:
    """Return what was recorded about the ends of dead runs."""
    return [
        *(f"run {run_id} was interrupted: its processes were killed" for run_id in cleared.interrupted),
        *(
            f"the end of run {run_id} was not recorded: its records could not be written, or the machine stopped"
            for run_id in cleared.unended
        ),
    ]


def size(count: int | None) -> str:
    """Return a number of bytes in decimal units."""
    value = float(count or 0)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


def duration(seconds: float | None) -> str:
    """Return a time span in words that fit a line."""
    seconds = seconds or 0.0
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
