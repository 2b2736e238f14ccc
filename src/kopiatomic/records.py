"""The state database: what every run did, and what runs have made that no kernel removes by itself.

SQLite in a directory that only root enters. Each call here opens it anew, so that nothing of it passes through a fork, and
is one transaction. With a rollback journal and ``synchronous=EXTRA`` a transaction is on the disk, the journal's directory
entry included, when the call returns (sqlite.org/pragma.html#pragma_synchronous): an intent may be relied on before the
thing itself is made, also after a power cut.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import time
import urllib.parse
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from kopiatomic import locks, ownership, presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.model import Intent, Sets
from kopiatomic.ownership import Mark
from kopiatomic.text import printable

FILE = "state.db"

AHEAD = 300.0
"""Seconds that a record may be ahead of the clock. One that is further was made while the clock was wrong."""

KEPT_ANYHOW = 10
"""How many of the last runs stay in the history however old the clock says they are: clocks jump."""

_BUSY_TIMEOUT = 10.0
"""Seconds to wait for another process that is writing."""

_STEPS = (
    """
    CREATE TABLE run (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        version TEXT NOT NULL,
        command TEXT NOT NULL,
        root BLOB NOT NULL,
        started REAL NOT NULL,
        ended REAL,
        result TEXT,
        exit_code INTEGER,
        document BLOB
    )
    """,
    """
    CREATE TABLE intent (
        run TEXT NOT NULL,
        kind TEXT NOT NULL,
        place TEXT NOT NULL,
        name BLOB NOT NULL,
        origin TEXT NOT NULL,
        identity TEXT,
        txn INTEGER,
        PRIMARY KEY (run, kind, place, name)
    ) WITHOUT ROWID
    """,
    "ALTER TABLE run ADD COLUMN selection TEXT NOT NULL DEFAULT ''",
    """
    CREATE TABLE standing (
        series BLOB NOT NULL,
        source BLOB NOT NULL,
        snapshot TEXT NOT NULL,
        terms TEXT NOT NULL,
        states TEXT NOT NULL,
        PRIMARY KEY (series, source)
    ) WITHOUT ROWID
    """,
    "ALTER TABLE run ADD COLUMN schedule TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE run ADD COLUMN took REAL",
    "ALTER TABLE run ADD COLUMN mark TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE intent ADD COLUMN txn_first INTEGER",
    "ALTER TABLE intent ADD COLUMN txn_last INTEGER",
)
"""What makes a database of schema N one of schema N+1; a new one begins at 0."""

SCHEMA = len(_STEPS)

_SAVED = ("saved", "incomplete", "unclean")
"""The results of runs that saved something."""

INTERRUPTED = "interrupted"
"""The result of a run whose processes are known to have been killed."""

NOT_RECORDED = "end not recorded"
"""The result of a dead run of which no more is known: it could not write its end here, or the machine stopped."""


class StateError(KopiatomicError):
    """The state database cannot be used now: a run can do without it where the kernel ties what it makes."""


class NewerStateError(KopiatomicError):
    """The state database was written by a newer version: what it says of leftovers cannot be understood."""


@immutable
class RunRecord:
    """A run as it is on record. Times in seconds since the epoch. ``document`` is what ``--json`` shows of it."""

    id: str
    version: str
    command: str
    root: str
    started: float
    ended: float | None
    result: str | None
    exit_code: int | None
    document: Mapping[str, Any] | None
    schedule: str = ""
    """The schedule that it was one of; empty for a run by hand."""
    took: float | None = None
    """Seconds by the monotonic clock, from its beginning to its end; None where its end is not on record."""
    mark_text: str = ""
    """Says where its lock is; empty in records of earlier versions."""

    @property
    def mark(self) -> Mark:
        """The same, read."""
        return ownership.recorded(self.id, self.mark_text)


@immutable
class Unfinished:
    """A run that has intents or no result: alive, or dead and to be cleared."""

    mark: Mark
    has_ended: bool
    """Whether it has a result."""


@immutable
class Standing:
    """A complete snapshot of a source, which stands for a new one as long as all of this is still so."""

    snapshot_id: str
    terms: str
    """Where and how it was saved: the engine's."""
    states: Mapping[str, Sequence[str]]
    """The places in the source: for each the dataset, the part, and the state that it was in."""


class Records:
    """The state database in a directory. Nothing is opened before the first call.

    Every method raises StateError where the database cannot be used, and NewerStateError. ``warnings`` holds what a
    caller should pass on.
    """

    def __init__(self, directory: str) -> None:
        self.directory = os.path.abspath(directory)
        self.path = os.path.join(self.directory, FILE)
        self.warnings: list[str] = []
        self._checked = False

    # Runs

    def begin(self, run: RunRecord, *, keep: float) -> None:
        """Put a run on record that begins now; drop those that ended more than ``keep`` seconds ago.

        The last of each schedule that was saved stays: it says since when there is none. One of the future says nothing.
        """
        values = (run.id, run.version, run.command, os.fsencode(run.root), run.started, run.schedule, run.mark_text)
        with self._transaction() as database:
            database.execute(
                "INSERT INTO run (id, version, command, root, started, schedule, mark) VALUES (?, ?, ?, ?, ?, ?, ?)",
                values,
            )
            database.execute(
                "DELETE FROM run WHERE started < ? AND id NOT IN (SELECT run FROM intent) AND number NOT IN"
                " (SELECT number FROM run ORDER BY number DESC LIMIT ?) AND number NOT IN"
                " (SELECT max(number) FROM run WHERE schedule != '' AND result = 'saved' AND started <= ? GROUP BY schedule)",
                (run.started - keep, KEPT_ANYHOW, run.started + AHEAD),
            )

    def end(self, run: RunRecord) -> bool:
        """Say how a run ended. Returns whether its beginning was still on record; if not it is put there as well."""
        assert run.document is not None
        ended = (time.time(), run.took, run.result, run.exit_code, _packed(run.document))
        with self._transaction() as database:
            changed = database.execute(
                "UPDATE run SET ended = ?, took = ?, result = ?, exit_code = ?, document = ? WHERE id = ?",
                (*ended, run.id),
            )
            # Nothing is compared with what an earlier run selected, or one that saved nothing: of many datasets it is long.
            database.execute(
                "UPDATE run SET selection = '' WHERE root = ? AND (id = ?) != ?",
                (os.fsencode(run.root), run.id, run.result in _SAVED),
            )
            if changed.rowcount:
                return True
            database.execute(
                "INSERT INTO run (id, version, command, root, started, schedule, mark, ended, took, result, exit_code,"
                " document) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    run.id,
                    run.version,
                    run.command,
                    os.fsencode(run.root),
                    run.started,
                    run.schedule,
                    run.mark_text,
                    *ended,
                ),
            )
            return False

    def end_dead(self, run_id: str, result: str) -> bool:
        """Put on record of a run whose processes are gone what is known of its end. Returns whether that was news."""
        with self._transaction() as database:
            # When it died is not known.
            changed = database.execute("UPDATE run SET result = ? WHERE id = ? AND result IS NULL", (result, run_id))
            return changed.rowcount > 0

    def history(self, limit: int) -> list[RunRecord]:
        """The last runs, the newest first, in the order in which they began, whatever the clock said."""
        with self._transaction(create=False) as database:
            return [_run(row) for row in database.execute(f"{_SELECT} ORDER BY number DESC LIMIT ?", (limit,))]

    def run(self, run_id: str) -> list[RunRecord]:
        """The runs whose id begins so."""
        with self._transaction(create=False) as database:
            pattern = run_id.replace("*", "").replace("?", "").replace("[", "") + "*"
            return [_run(row) for row in database.execute(f"{_SELECT} WHERE id GLOB ? ORDER BY number", (pattern,))]

    def scheduled(self, schedule: str) -> list[RunRecord]:
        """The runs of a schedule, the newest first; without their documents."""
        with self._transaction(create=False) as database:
            rows = database.execute(f"{_SELECT} WHERE schedule = ? ORDER BY number DESC", (schedule,))
            return [_run((*row[:8], None, *row[9:])) for row in rows]

    def last_selection(self, root: str, before: str) -> tuple[str, str] | None:
        """The last run under a root that saved something, and what it selected; not the run ``before``."""
        with self._transaction() as database:
            row = database.execute(
                "SELECT id, selection FROM run WHERE root = ? AND selection != '' AND id != ? "
                "AND result IN ('saved', 'incomplete', 'unclean') ORDER BY number DESC LIMIT 1",
                (os.fsencode(root), before),
            ).fetchone()
            return None if row is None else (str(row[0]), str(row[1]))

    # What was saved last

    def standing(self, series: str) -> dict[str, Standing]:
        """The last complete snapshots of a series' sources."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT source, snapshot, terms, states FROM standing WHERE series = ?", (os.fsencode(series),)
            )
            return {os.fsdecode(row[0]): Standing(row[1], row[2], json.loads(row[3])) for row in rows}

    def stand(self, series: str, standing: Mapping[str, Standing | None]) -> None:
        """Put on record what was saved last of these sources; None where nothing complete was."""
        key = os.fsencode(series)
        with self._transaction() as database:
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

    def forget_standing(self) -> None:
        """Take it off the record, of all series."""
        with self._transaction() as database:
            database.execute("DELETE FROM standing")

    # Intents

    def intend(self, run_id: str, intents: Sequence[Intent], selection: str) -> None:
        """Put on record what a run is about to make, in one transaction; what it intended before is replaced."""
        rows = [_row(run_id, intent) for intent in intents]
        with self._transaction() as database:
            database.execute("DELETE FROM intent WHERE run = ?", (run_id,))
            database.executemany(f"INSERT {_INTENT}", rows)
            database.execute("UPDATE run SET selection = ? WHERE id = ?", (selection, run_id))

    def intend_also(self, run_id: str, intents: Sequence[Intent]) -> None:
        """Put on record what a run is about to make besides what is on record of it already; the same may come again."""
        rows = [_row(run_id, intent) for intent in intents]
        with self._transaction() as database:
            database.executemany(f"INSERT OR REPLACE {_INTENT}", rows)

    def made(self, run_id: str, sets: Sets, document: Mapping[str, Any]) -> None:
        """Add identities and transactions to the intents of a run, and what is known of it by now."""
        rows = [
            (s.identity, s.transaction, run_id, made.filesystem, made.pool, os.fsencode(s.source))
            for made in sets.sets
            for s in made.snapshots
        ]
        with self._transaction() as database:
            database.executemany(
                "UPDATE intent SET identity = ?, txn = ? WHERE run = ? AND kind = ? AND place = ? AND name = ?", rows
            )
            database.execute("UPDATE run SET document = ? WHERE id = ?", (_packed(document), run_id))

    def intents(self, run_id: str) -> list[Intent]:
        """What is on record as perhaps left by a run."""
        with self._transaction(create=False) as database:
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

    def forget(self, run_id: str, intents: Sequence[Intent] | None = None) -> None:
        """Take intents off the record, since what they speak of is gone: all of a run, or these."""
        with self._transaction() as database:
            if intents is None:
                database.execute("DELETE FROM intent WHERE run = ?", (run_id,))
            else:
                rows = [(run_id, i.kind, i.place, os.fsencode(i.name)) for i in intents]
                database.executemany("DELETE FROM intent WHERE run = ? AND kind = ? AND place = ? AND name = ?", rows)

    def unfinished(self, *, mend: bool = False) -> list[Unfinished]:
        """The runs that are alive, or dead and to be cleared.

        With ``mend`` a corrupt database is set aside, as by everything that writes.
        """
        with self._transaction(create=False, mend=mend) as database:
            rows = database.execute(
                "SELECT open.id, coalesce(run.mark, ''), run.result IS NOT NULL"
                " FROM (SELECT run AS id FROM intent UNION SELECT id FROM run WHERE result IS NULL) AS open"
                " LEFT JOIN run ON run.id = open.id ORDER BY 1"
            )
            return [Unfinished(ownership.recorded(run_id, mark), bool(ended)) for run_id, mark, ended in rows]

    # The file

    @contextmanager
    def _transaction(self, *, create: bool = True, mend: bool | None = None) -> Iterator[sqlite3.Connection]:
        """One transaction; it is on the disk when the block has been left.

        A corrupt database is set aside first by default, but not by what only reads: then it says that it cannot.
        """
        try:
            connection = self._open(create=create, mend=create if mend is None else mend)
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from None
        with closing(connection):
            try:
                with connection:
                    yield connection
            except sqlite3.Error as error:
                raise self._unusable(error) from None

    def _open(self, *, create: bool, mend: bool) -> sqlite3.Connection:
        """An open transaction on a database of our schema. Raises sqlite3.Error, OSError, StateError, NewerStateError."""
        if not create:
            reading = self._connect_to_read()
            if reading is not None:
                return reading
        self._prepare_directory()
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if not _is_corrupt(error):
                raise
            if not mend:
                raise self._damaged(error) from None
        self._set_aside()
        return self._connect()

    def _connect_to_read(self) -> sqlite3.Connection | None:
        """A transaction that needs to write nothing, also on a full or read-only disk; None where that is not enough.

        It is not where another process was killed while it wrote (then SQLite has to roll that back), and for an older
        schema.
        """
        if self._is_empty():
            empty = sqlite3.connect(":memory:", isolation_level=None)
            empty.execute("BEGIN")
            self._migrate(empty)
            return empty
        uri = f"file:{urllib.parse.quote(os.fsencode(self.path))}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT, isolation_level=None)
        try:
            connection.execute("BEGIN")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == SCHEMA:
                return connection
        except sqlite3.Error:
            # What is wrong is said, or mended, by the other way.
            pass
        connection.close()
        return None

    def _is_empty(self) -> bool:
        """Whether nothing was ever put on record here. Raises OSError, StateError where that cannot be told."""
        if not presence.exists(self.directory, follow_links=False):
            return True
        self._check_directory()
        if not presence.exists(self.path, follow_links=False):
            return True
        # Behind a link to nothing may be a disk that is not mounted: that is an error here.
        status = os.stat(self.path)
        # A first transaction that did not come to its end leaves it empty. With a journal it is SQLite's to say what was in it.
        return stat.S_ISREG(status.st_mode) and status.st_size == 0 and not presence.exists(f"{self.path}-journal")

    def _connect(self) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute("BEGIN IMMEDIATE")
            if not self._checked:
                # Damage in what is read rarely must not wait for the day on which it is needed.
                (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                if verdict != "ok":
                    raise _corrupt(verdict)
                self._checked = True
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA:
            raise NewerStateError(
                f"the state database {printable(self.path)} is of schema {version}, which a newer kopiatomic wrote; "
                f"this one knows {SCHEMA}",
                kind="state-newer",
                hint="Use the newer kopiatomic, or give this one a place of its own with --state-dir.",
            )
        for step in _STEPS[version:]:
            connection.execute(step)
        if version < SCHEMA:
            connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def _prepare_directory(self) -> None:
        try:
            os.makedirs(self.directory, 0o700, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from None
        self._check_directory()

    def _check_directory(self) -> None:
        try:
            status = os.stat(self.directory)
        except OSError as error:
            raise self._unusable(error) from None
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise StateError(
                f"the state directory {printable(self.directory)} is not one that only root can write to",
                kind="state-directory",
                hint=f"Look at it, then: chown root {printable(self.directory)}; chmod 700 {printable(self.directory)}",
            )

    def _set_aside(self) -> None:
        """Rename a corrupt database and its journal, unless another run has done it."""
        with locks.clean_up():
            try:
                self._connect().close()
                return
            except sqlite3.DatabaseError as error:
                if not _is_corrupt(error):
                    raise
            aside = f"{self.path}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.urandom(2).hex()}"
            try:
                os.rename(self.path, aside)
                for journal in ("-journal", "-wal", "-shm"):
                    if presence.exists(self.path + journal, follow_links=False):
                        os.rename(self.path + journal, aside + journal)
            except OSError as error:
                raise self._unusable(error) from None
        self.warnings.append(
            f"the state database was damaged and is set aside as {printable(aside)}; a new one is begun, and 'kopiatomic "
            "recover' finds by themselves the snapshots that the old one spoke of"
        )

    def _damaged(self, error: sqlite3.Error) -> StateError:
        return StateError(
            f"the state database {printable(self.path)} is damaged, so what is in it cannot be told: {error}",
            kind="state-damaged",
            hint="The next run, or 'kopiatomic recover', sets it aside and begins a new one; 'kopiatomic recover' finds the "
            "snapshots that it spoke of.",
        )

    def _unusable(self, error: sqlite3.Error | OSError) -> StateError:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        return StateError(
            f"the state database {printable(self.path)} cannot be used: {reason}",
            kind="state-unusable",
            hint="Look at its directory (space, permissions, read-only?), or choose another with --state-dir.",
        )


_SELECT = (
    "SELECT id, version, command, root, started, ended, result, exit_code, document, schedule, took, mark FROM run"
)
_INTENT = "INTO intent (run, kind, place, name, origin, txn_first, txn_last) VALUES (?, ?, ?, ?, ?, ?, ?)"


def _run(row: tuple[Any, ...]) -> RunRecord:
    """A row of ``_SELECT``. Raises sqlite3.DatabaseError where its document is damaged."""
    try:
        document = None if row[8] is None else json.loads(zlib.decompress(row[8]))
    except (zlib.error, ValueError) as error:
        raise _corrupt(f"the document of run {row[0]} cannot be read: {error}") from None
    id_, version, command, root, started, ended, result, exit_code, _, schedule, took, mark = row
    return RunRecord(
        id_, version, command, os.fsdecode(root), started, ended, result, exit_code, document, schedule, took, mark
    )


def _row(run_id: str, intent: Intent) -> tuple[str, str, str, bytes, str | bytes, int | None, int | None]:
    # Text where it can be: so it is for whichever version of the program reads it. Only a path may be no UTF-8.
    origin = intent.origin if intent.origin.isascii() else os.fsencode(intent.origin)
    first, last = intent.between or (None, None)
    return run_id, intent.kind, intent.place, os.fsencode(intent.name), origin, first, last


def _packed(document: Mapping[str, Any]) -> bytes:
    return zlib.compress(json.dumps(document).encode(), 6)


def _corrupt(verdict: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(verdict)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _is_corrupt(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
