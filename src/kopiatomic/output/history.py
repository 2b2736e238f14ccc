"""Recorded runs, in lines for a person. Pure: the console prints them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from kopiatomic.model.leftovers import Intent
from kopiatomic.output.summary import duration, held, size
from kopiatomic.state.records import RunRecord
from kopiatomic.text import ended, printable


def list_of(runs: Sequence[tuple[RunRecord, str]]) -> list[str]:
    """Return one line per run: id, when, how long, result with exit code, datasets, root."""
    if not runs:
        return ["No run is recorded."]
    rows = [("RUN", "STARTED (UTC)", "TOOK", "RESULT", "DATASETS", "ROOT")]
    rows += [
        (
            run.id,
            _time(run.started),
            _took(run),
            result if run.exit_code is None else f"{result} ({run.exit_code})",
            str(len(run.document["datasets"])) if run.document else "-",
            (f"profile {printable(run.profile)}: " if run.profile else "") + printable(run.series),
        )
        for run, result in runs
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]


def lines_of(run: RunRecord, result: str, intents: Sequence[Intent]) -> list[str]:
    """Return all that is recorded of one run."""
    lines = [
        f"Run:      {run.id} (kopiatomic {run.version})",
        f"Command:  {run.command}",
        f"Root:     {printable(run.series)}",
        *([f"Profile:  {printable(run.profile)}"] if run.profile else []),
        *([f"Schedule: {printable(run.schedule)}"] if run.schedule else []),
        f"Started:  {_time(run.started)} UTC",
        f"Ended:    {_time(run.ended)} UTC, after {_took(run)}"
        if run.ended is not None
        else "Ended:    no recorded end",
        f"Result:   {result}" + (f", exit code {run.exit_code}" if run.exit_code is not None else ""),
    ]
    if run.document is not None:
        lines += _document_lines(run.document)
    lines += [
        f"Perhaps left: {intent.kind} {printable(intent.name)} ('kopiatomic recover' looks)" for intent in intents
    ]
    return lines


def _document_lines(document: Mapping[str, Any]) -> list[str]:
    lines = []
    for kind in ("error", "hook_error"):
        if document[kind]:
            lines.append(f"Error:    {document[kind]['message']}")
    for dataset in document["datasets"]:
        lines.append(f"Dataset:  {printable(dataset['dataset'])} at {printable(dataset['path'])}")
    lines += [f"Left out: {printable(o['dataset'])}: {o['reason']}" for o in document["left_out"]]
    if document["instant"]:
        one = "one instant" if document["atomic"] else f"NOT one instant, up to {document['skew_seconds']:.3f} s apart"
        lines.append(f"Instant:  {document['instant']}, {one}")
    for made in document["sets"]:
        number = made["transaction"] if made["one_instant"] else "several"
        lines.append(
            f"Set:      {made['filesystem']} {printable(made['pool'])}: {len(made['snapshots'])}, transaction {number}"
        )
    lines += held(document.get("writers", ()))
    kind = document.get("kind", "backup")
    if kind == "hold":
        lines += _held_lines(document.get("hold"))
    else:
        lines += _engine_lines(document["engine"]) if kind == "backup" else _ran_lines(document)
    if document["frozen_seconds"] is not None:
        lines.append(f"Frozen:   the snapshots existed for {duration(document['frozen_seconds'])}")
    times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in document["durations"].items())
    lines += [f"Times:    {times}"] if times else []
    for key, label in (("incomplete", "Not complete"), ("left_behind", "Left behind"), ("warnings", "Warning")):
        lines += [f"{label}: {text}" for text in document[key]]
    return lines


def _engine_lines(engine: Mapping[str, Any] | None) -> list[str]:
    if engine is None:
        return []
    words = [engine["name"] + (f" {engine['version']}" if engine["version"] else "")]
    if engine["snapshot_id"]:
        words.append(f"snapshot {engine['snapshot_id']}")
    statistics = engine["statistics"]
    if "files_total" in statistics:
        words.append(f"{statistics['files_total']:,} files, {size(statistics.get('bytes_total', 0))}")
    return [f"Engine:   {', '.join(words)}"]


def _ran_lines(document: Mapping[str, Any]) -> list[str]:
    engine = document["engine"]
    if engine is None:
        return []
    how = "it never ran" if engine["status"] is None else ended(engine["status"])
    return [f"Ran:      {printable(shlex.join(engine['argv']))} ({document['kind']}), {how}"]


_ENDED_BY = MappingProxyType(
    {"process": "; the process ended", "request": "; it was asked to end", "deadline": "; that came first"}
)


def _held_lines(hold: Mapping[str, Any] | None) -> list[str]:
    if hold is None:
        return []
    program = f" ({printable(hold['program'])})" if hold["program"] else ""
    deadline = hold["deadline"].replace("T", " ").partition(".")[0]
    # Nothing if it is still held, or ended by a signal or a failure, which is shown in lines of their own.
    how = _ENDED_BY.get(hold["ended_by"], "")
    return [f"Held:     for process {hold['process']}{program}, at the latest until {deadline} UTC{how}"]


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def _took(run: RunRecord) -> str:
    # Not computed from its two times: the clock may have been set between them.
    return "-" if run.took is None else duration(run.took)
