"""The state database: what every run did, and what runs have made that no kernel removes by itself.

Each call here is one transaction, which is on the disk when it returns (``state/state_file.py``).
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from kopiatomic.immutable import immutable
from kopiatomic.model.leftovers import Intent
from kopiatomic.model.snapshots import Sets
from kopiatomic.state import ownership
from kopiatomic.state.ownership import Mark
from kopiatomic.state.state_file import StateFile, corrupt

AHEAD = 300.0
"""Seconds that a record may be ahead of the clock. A record further ahead was made while the clock was wrong."""

KEPT_ANYHOW = 10
"""How many of the last runs stay in the history whatever age the clock gives them: clocks jump."""

_SAVED = ("saved", "incomplete", "unclean")
"""The results of runs that saved something."""

INTERRUPTED = "interrupted"
"""The result of a run whose processes are known to have been killed."""

NOT_RECORDED = "end not recorded"
"""The result of a dead run of which nothing more is known: it could not record its end here, or the machine stopped."""


@immutable
class RunRecord:
    """A run as it is recorded. Times in seconds since the epoch. ``document`` is what ``--json`` shows of it."""

    id: str
    version: str
    command: str
    series: str
    started: float
    ended: float | None
    result: str | None
    exit_code: int | None
    document: Mapping[str, Any] | None
    schedule: str = ""
    """The schedule that started it; empty for a run by hand."""
    took: float | None = None
    """Seconds by the monotonic clock, from beginning to end; None if its end is not recorded."""
    mark_text: str = ""
    """Says where its lock is; empty in records of earlier versions."""
    profile: str = ""
    """The profile that it is of; empty for words on a command line."""

    @property
    def mark(self) -> Mark:
        """The mark, parsed."""
        return ownership.recorded(self.id, self.mark_text)


@immutable
class Unfinished:
    """A run that has intents or no result: it is alive, or dead and must be cleared."""

    mark: Mark
    has_ended: bool
    """Whether it has a result."""


@immutable
class StandingSnapshot:
    """A complete snapshot of a source, which stands for a new one as long as all of this still holds."""

    snapshot_id: str
    terms: str
    """Where and how it was saved, as the engine describes it."""
    states: Mapping[str, Sequence[str]]
    """The places in the source: for each the dataset, the part, and the state that it was in."""


@immutable
class Comparisons:
    """What is known of a series' comparisons with the frozen view (``--verify``)."""

    count: int = 0
    """How many have been made."""
    left_out: Mapping[str, int] | None = None
    """How many entries the last one did not find in the engine's list, by folder; None before the first."""
    reads_all: bool = False
    """Whether the next run must have the engine read every file."""
    instant_ns: int | None = None
    """The instant that the last one was of (ns since the epoch)."""


class Records(StateFile):
    """What the state database in a directory says. Nothing is opened before the first call.

    Every method raises StateError where the database cannot be used, and NewerStateError.
    """

    # Runs

    def begin(self, run: RunRecord, *, keep: float) -> None:
        """Record a run that begins now; delete those that ended more than ``keep`` seconds ago.

        The last saved run of each schedule stays: it shows since when none has succeeded. One from the future does not count.
        """
        values = (
            *(run.id, run.version, run.command, os.fsencode(run.series)),
            *(run.started, run.schedule, run.mark_text, run.profile),
        )
        with self.transaction() as database:
            database.execute(
                "INSERT INTO run (id, version, command, root, started, schedule, mark, profile) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
            # One run with a clock that is ahead must not delete all the others.
            now = min(row[0] for row in database.execute("SELECT started FROM run ORDER BY number DESC LIMIT 2"))
            database.execute(
                "DELETE FROM run WHERE started < ? AND id NOT IN (SELECT run FROM intent) AND number NOT IN"
                " (SELECT number FROM run ORDER BY number DESC LIMIT ?) AND number NOT IN"
                " (SELECT max(number) FROM run WHERE schedule != '' AND result = 'saved' AND started <= ? GROUP BY schedule)",
                (now - keep, KEPT_ANYHOW, now + AHEAD),
            )

    def end(self, run: RunRecord) -> bool:
        """Record how a run ended. Return whether its beginning was still recorded; if not, it is added as well."""
        assert run.document is not None
        ended = (time.time(), run.took, run.result, run.exit_code, _packed(run.document))
        with self.transaction() as database:
            changed = database.execute(
                "UPDATE run SET ended = ?, took = ?, result = ?, exit_code = ?, document = ? WHERE id = ?",
                (*ended, run.id),
            )
            # Later runs compare with the last run that saved something: other selections are dropped, as they are long for many
            # datasets.
            database.execute(
                "UPDATE run SET selection = '' WHERE root = ? AND (id = ?) != ?",
                (os.fsencode(run.series), run.id, run.result in _SAVED),
            )
            if changed.rowcount:
                return True
            database.execute(
                "INSERT INTO run (id, version, command, root, started, schedule, mark, profile, ended, took, result,"
                " exit_code, document) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    run.id,
                    run.version,
                    run.command,
                    os.fsencode(run.series),
                    run.started,
                    run.schedule,
                    run.mark_text,
                    run.profile,
                    *ended,
                ),
            )
            return False

    def end_dead(self, run_id: str, result: str) -> bool:
        """Record what is known of the end of a run whose processes are gone. Return whether that was news."""
        with self.transaction() as database:
            # The time of its death is unknown.
            changed = database.execute("UPDATE run SET result = ? WHERE id = ? AND result IS NULL", (result, run_id))
            return changed.rowcount > 0

    def history(self, limit: int) -> list[RunRecord]:
        """Return the last runs, newest first, in the order in which they began, whatever the clock said."""
        with self.transaction(create=False) as database:
            return [_run(row) for row in database.execute(f"{_SELECT} ORDER BY number DESC LIMIT ?", (limit,))]

    def run(self, run_id: str) -> list[RunRecord]:
        """Return the runs whose id begins with a text."""
        with self.transaction(create=False) as database:
            pattern = run_id.replace("*", "").replace("?", "").replace("[", "") + "*"
            return [_run(row) for row in database.execute(f"{_SELECT} WHERE id GLOB ? ORDER BY number", (pattern,))]

    def last_of(self, profile: str) -> RunRecord | None:
        """Return the last run of a profile, without its document; None if there is none."""
        with self.transaction(create=False) as database:
            rows = database.execute(f"{_SELECT} WHERE profile = ? ORDER BY number DESC LIMIT 1", (profile,))
            return next((_run((*row[:8], None, *row[9:])) for row in rows), None)

    def scheduled(self, schedule: str) -> list[RunRecord]:
        """Return the runs of a schedule, newest first, without their documents."""
        with self.transaction(create=False) as database:
            rows = database.execute(f"{_SELECT} WHERE schedule = ? ORDER BY number DESC", (schedule,))
            return [_run((*row[:8], None, *row[9:])) for row in rows]

    def last_selection(self, root: str, before: str) -> tuple[str, str] | None:
        """Return the last run under a root that saved something, except the run ``before``, and what it selected."""
        with self.transaction(create=False) as database:
            row = database.execute(
                "SELECT id, selection FROM run WHERE root = ? AND selection != '' AND id != ? "
                "AND result IN ('saved', 'incomplete', 'unclean') ORDER BY number DESC LIMIT 1",
                (os.fsencode(root), before),
            ).fetchone()
            return None if row is None else (str(row[0]), str(row[1]))

    # What was saved last

    def standing(self, series: str) -> dict[str, StandingSnapshot]:
        """Return the last complete snapshots of a series' sources."""
        with self.transaction() as database:
            rows = database.execute(
                "SELECT source, snapshot, terms, states FROM standing WHERE series = ?", (os.fsencode(series),)
            )
            return {os.fsdecode(row[0]): StandingSnapshot(row[1], row[2], json.loads(row[3])) for row in rows}

    def stand(self, series: str, standing: Mapping[str, StandingSnapshot | None]) -> None:
        """Record what was saved last of these sources; None if nothing complete was."""
        key = os.fsencode(series)
        with self.transaction() as database:
            database.executemany(
                "DELETE FROM standing WHERE series = ? AND source = ?", [(key, os.fsencode(path)) for path in standing]
            )
            database.executemany(
                "INSERT INTO standing (series, source, snapshot, terms, states) VALUES (?, ?, ?, ?, ?)",
                [
                    (key, os.fsencode(path), one.snapshot_id, one.terms, json.dumps(one.states))
                    for path, one in standing.items()
                    if one is not None
                ],
            )

    def agreed(self, series: str, repository: str) -> bool | None:
        """Return whether a person has agreed that a series has a metadata record in a repository; None: nobody was asked."""
        with self.transaction(create=False) as database:
            row = database.execute(
                "SELECT answer FROM agreement WHERE series = ? AND repository = ?", (os.fsencode(series), repository)
            ).fetchone()
            return None if row is None else bool(row[0])

    def agree(self, series: str, repository: str, *, answer: bool) -> None:
        """Record what a person has said to that."""
        with self.transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO agreement (series, repository, answer) VALUES (?, ?, ?)",
                (os.fsencode(series), repository, int(answer)),
            )

    def comparisons(self, series: str) -> Comparisons:
        """Return what is known of a series' comparisons."""
        with self.transaction(create=False) as database:
            row = database.execute(
                "SELECT count, left_out, reads_all, instant FROM comparison WHERE series = ?", (os.fsencode(series),)
            ).fetchone()
        return Comparisons() if row is None else Comparisons(row[0], json.loads(row[1]), bool(row[2]), row[3])

    def compared(self, series: str, now: Comparisons) -> None:
        """Record what is known of them now."""
        with self.transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO comparison (series, count, left_out, reads_all, instant) VALUES (?, ?, ?, ?, ?)",
                (os.fsencode(series), now.count, json.dumps(now.left_out), int(now.reads_all), now.instant_ns),
            )

    def forget_standing(self) -> None:
        """Delete the standing snapshots of all series."""
        with self.transaction() as database:
            database.execute("DELETE FROM standing")

    # Intents

    def intend(self, run_id: str, intents: Sequence[Intent], selection: str) -> None:
        """Record what a run is about to make, in one transaction; this replaces what it intended to make before."""
        rows = [_row(run_id, intent) for intent in intents]
        with self.transaction() as database:
            database.execute("DELETE FROM intent WHERE run = ? AND kind != 'hook'", (run_id,))
            database.executemany(f"INSERT {_INTENT}", rows)
            database.execute("UPDATE run SET selection = ? WHERE id = ?", (selection, run_id))

    def intend_also(self, run_id: str, intents: Sequence[Intent]) -> None:
        """Record what else a run is about to make, in addition to what is recorded; the same may be recorded again."""
        rows = [_row(run_id, intent) for intent in intents]
        with self.transaction() as database:
            database.executemany(f"INSERT OR REPLACE {_INTENT}", rows)

    def made(self, run_id: str, sets: Sets, document: Mapping[str, Any]) -> None:
        """Add identities and transactions to the intents of a run, and what is known of it so far."""
        rows = [
            (s.identity, s.transaction, run_id, made.kind, made.pool, os.fsencode(s.source))
            for made in sets.sets
            for s in made.snapshots
        ]
        with self.transaction() as database:
            database.executemany(
                "UPDATE intent SET identity = ?, txn = ? WHERE run = ? AND kind = ? AND place = ? AND name = ?", rows
            )
            database.execute("UPDATE run SET document = ? WHERE id = ?", (_packed(document), run_id))

    def intents(self, run_id: str) -> list[Intent]:
        """Return what a run may have left, by its records."""
        with self.transaction(create=False) as database:
            rows = database.execute(
                "SELECT kind, place, name, origin, identity, txn, txn_first, txn_last FROM intent WHERE run = ?",
                (run_id,),
            )
            return [
                Intent(
                    kind,
                    place,
                    os.fsdecode(name),
                    os.fsdecode(origin),
                    identity,
                    txn,
                    None if first is None or last is None else (first, last),
                )
                for kind, place, name, origin, identity, txn, first, last in rows
            ]

    def start(self, run_id: str, kind: str, word: str) -> None:
        """Mark what a run intends of a kind as begun, by a word in place of an identity."""
        with self.transaction() as database:
            database.execute("UPDATE intent SET identity = ? WHERE run = ? AND kind = ?", (word, run_id, kind))

    def settle(self, run_id: str, kind: str) -> None:
        """Delete what a run intends of a kind."""
        with self.transaction() as database:
            database.execute("DELETE FROM intent WHERE run = ? AND kind = ?", (run_id, kind))

    def forget(self, run_id: str, intents: Sequence[Intent] | None = None) -> None:
        """Delete intents whose objects are gone: all that a run intended to make, or these."""
        with self.transaction() as database:
            if intents is None:
                database.execute("DELETE FROM intent WHERE run = ? AND kind != 'hook'", (run_id,))
            else:
                rows = [(run_id, i.kind, i.place, os.fsencode(i.name)) for i in intents]
                database.executemany("DELETE FROM intent WHERE run = ? AND kind = ? AND place = ? AND name = ?", rows)

    def unfinished(self, *, mend: bool = False) -> list[Unfinished]:
        """Return the runs that are alive, or dead and must be cleared.

        With ``mend`` a corrupt database is set aside, as by every call that writes.
        """
        with self.transaction(create=False, mend=mend) as database:
            rows = database.execute(
                "SELECT open.id, coalesce(run.mark, ''), run.result IS NOT NULL"
                " FROM (SELECT run AS id FROM intent UNION SELECT id FROM run WHERE result IS NULL) AS open"
                " LEFT JOIN run ON run.id = open.id ORDER BY 1"
            )
            return [Unfinished(ownership.recorded(run_id, mark), bool(ended)) for run_id, mark, ended in rows]


_SELECT = "SELECT id, version, command, root, started, ended, result, exit_code, document, schedule, took, mark, profile FROM run"
_INTENT = "INTO intent (run, kind, place, name, origin, identity, txn_first, txn_last) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


def _run(row: tuple[Any, ...]) -> RunRecord:
    """Convert a row of ``_SELECT``. Raises sqlite3.DatabaseError if its document is damaged."""
    try:
        document = None if row[8] is None else json.loads(zlib.decompress(row[8]))
    except (zlib.error, ValueError) as error:
        raise corrupt(f"the document of run {row[0]} cannot be read: {error}") from None
    id_, version, command, root, started, ended, result, exit_code, _, schedule, took, mark, profile = row
    return RunRecord(
        id_,
        version,
        command,
        os.fsdecode(root),
        started,
        ended,
        result,
        exit_code,
        document,
        schedule,
        took,
        mark,
        profile,
    )


def _row(run_id: str, intent: Intent) -> tuple[str, str, str, bytes, str | bytes, str | None, int | None, int | None]:
    # Text where possible, as other versions of the program read it too. Only a path may not be UTF-8.
    origin = intent.origin if intent.origin.isascii() else os.fsencode(intent.origin)
    first, last = intent.between or (None, None)
    return run_id, intent.kind, intent.place, os.fsencode(intent.name), origin, intent.identity, first, last


def _packed(document: Mapping[str, Any]) -> bytes:
    return zlib.compress(json.dumps(document).encode(), 6)
