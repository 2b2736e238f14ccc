"""``kopiatomic history``: what runs did, from their records."""

from __future__ import annotations

from typing import Any

from kopiatomic import errors
from kopiatomic.commands.failures import ended, require_root
from kopiatomic.errors import KopiatomicError
from kopiatomic.output.console import Console
from kopiatomic.output.history import lines_of, list_of
from kopiatomic.state import locks
from kopiatomic.state.liveness import Life, life
from kopiatomic.state.records import INTERRUPTED, NOT_RECORDED, Records, RunRecord
from kopiatomic.system import signals
from kopiatomic.text import printable

HISTORY_FORMAT = "kopiatomic-history-1"


def history(state_dir: str, console: Console, *, run_id: str, limit: int, as_json: bool) -> int:
    """Show what runs did; return the exit code."""

    def run() -> int:
        require_root("reading the records needs root", console.command_line)
        records = Records(state_dir)
        runs = one_of(records, run_id) if run_id else records.history(limit)
        if as_json:
            console.document({"format": HISTORY_FORMAT, "runs": [_run_document(record) for record in runs]})
        elif run_id:
            for line in lines_of(runs[0], result_of(runs[0]), records.intents(runs[0].id)):
                console.result(line)
        else:
            for line in list_of([(record, result_of(record)) for record in runs]):
                console.result(line)
        for warning in records.warnings:
            console.warning(warning)
        return errors.SAVED

    with signals.handled():
        return ended(run, console)


def result_of(record: RunRecord) -> str:
    """Return how a run ended, in a few words. Without a recorded end it goes on, was killed, or could not record its end."""
    if record.result is not None:
        return record.result
    state = life(record.mark)
    if state is Life.DEAD:
        return INTERRUPTED if locks.has_file(record.id) else NOT_RECORDED
    return "running" if state is Life.ALIVE else "unknown"


def one_of(records: Records, run_id: str) -> list[RunRecord]:
    """Return the run whose id begins with the given text. Raises KopiatomicError if none or several match."""
    runs = records.run(run_id)
    if len(runs) != 1:
        raise _not_one(run_id, runs)
    return runs


def _not_one(run_id: str, runs: list[RunRecord]) -> KopiatomicError:
    if not runs:
        return KopiatomicError(
            f"no recorded run begins with {printable(run_id)}",
            kind="no-such-run",
            hint="'kopiatomic history' lists the runs, each with its profile; --state-dir and KOPIATOMIC_STATE_DIR say whose.",
        )
    return KopiatomicError(
        f"{len(runs)} recorded runs begin with {printable(run_id)}",
        kind="ambiguous-run",
        hint=f"Name one of them: {', '.join(record.id for record in runs[:5])}",
    )


def _run_document(record: RunRecord) -> dict[str, Any]:
    return {
        "run_id": record.id,
        "version": record.version,
        "command": record.command,
        "root": record.series,
        "schedule": record.schedule or None,
        "profile": record.profile or None,
        "started": record.started,
        "ended": record.ended,
        "seconds": record.took,
        "result": result_of(record),
        "exit_code": record.exit_code,
        "document": record.document,
    }
