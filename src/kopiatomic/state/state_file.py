"""The state database file: opened for each transaction, checked, migrated to our schema, and set aside if it is damaged.

SQLite in a directory that only root can enter. No connection passes through a fork. With a rollback journal and
``synchronous=EXTRA`` a transaction is on the disk, including the journal's directory entry, when the block has ended
(sqlite.org/pragma.html#pragma_synchronous): an intent can be relied on before the object itself is made, even after a power cut.
"""

from __future__ import annotations

import os
import shlex
import sqlite3
import stat
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import closing, contextmanager

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.state import locks
from kopiatomic.system import safety
from kopiatomic.text import printable

FILE = "state.db"

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
    "ALTER TABLE run ADD COLUMN profile TEXT NOT NULL DEFAULT ''",
    """
    CREATE TABLE agreement (
        series BLOB NOT NULL,
        repository TEXT NOT NULL,
        answer INTEGER NOT NULL,
        PRIMARY KEY (series, repository)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE comparison (
        series BLOB PRIMARY KEY,
        count INTEGER NOT NULL,
        left_out TEXT NOT NULL,
        reads_all INTEGER NOT NULL,
        instant INTEGER
    ) WITHOUT ROWID
    """,
)
"""Each turns a database of schema N into one of schema N+1; a new one begins at 0."""

SCHEMA = len(_STEPS)


class StateError(KopiatomicError):
    """The state database cannot be used now: a run can do without it if the kernel ties what it makes."""


class NewerStateError(KopiatomicError):
    """A newer version wrote the state database: what it says of leftovers cannot be understood."""


class StateFile:
    """The state database in a directory. Nothing is opened before the first transaction.

    ``warnings`` holds what a caller should pass on.
    """

    def __init__(self, directory: str) -> None:
        self.directory = os.path.abspath(directory)
        self.path = os.path.join(self.directory, FILE)
        self.warnings: list[str] = []
        self._checked = False
        self._safe = False
        """Whether it is known that only root can change where the directory's path leads."""

    @contextmanager
    def transaction(self, *, create: bool = True, mend: bool | None = None) -> Iterator[sqlite3.Connection]:
        """Run one transaction; it is on the disk when the block has ended.

        A corrupt database is set aside first by default, except by calls that only read: these report that they cannot.
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
                if isinstance(error, sqlite3.DatabaseError) and _is_corrupt(error):
                    raise self._damaged(error) from None
                raise self._unusable(error) from None

    def _open(self, *, create: bool, mend: bool) -> sqlite3.Connection:
        """Begin a transaction on a database of our schema. Raises sqlite3.Error, OSError, StateError, NewerStateError."""
        if not create:
            reading = self._connect_to_read(check=mend)
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

    def _connect_to_read(self, *, check: bool) -> sqlite3.Connection | None:
        """Begin a transaction that need not write, even on a full or read-only disk; return None if that is not enough.

        It is not enough if another process was killed while it wrote (then SQLite must roll that back), for an older schema, and
        if a ``check`` finds damage.
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
            if version == SCHEMA and (not check or connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)):
                return connection
        except sqlite3.Error:
            # The other way reports, or mends, what is wrong.
            pass
        connection.close()
        return None

    def _is_empty(self) -> bool:
        """Whether nothing was ever recorded here. Raises OSError, StateError if that cannot be known."""
        self._check_way()
        if not presence.exists(self.directory, follow_links=False):
            return True
        self._check_directory()
        if not presence.exists(self.path, follow_links=False):
            return True
        # A link to nothing may mean a disk that is not mounted: that is an error here.
        status = os.stat(self.path)
        self._require_file(status)
        # An unfinished first transaction leaves the file empty. If there is a journal, SQLite decides what was in it.
        return stat.S_ISREG(status.st_mode) and status.st_size == 0 and not presence.exists(f"{self.path}-journal")

    def _require_file(self, status: os.stat_result) -> None:
        """Refuse what no database can be: SQLite would wait for a pipe, and call a directory a disk error. Raises StateError."""
        if stat.S_ISREG(status.st_mode):
            return
        what = "a directory" if stat.S_ISDIR(status.st_mode) else "no file"
        raise StateError(
            f"the state database {printable(self.path)} is {what}, so what runs have recorded cannot be told",
            kind="state-unusable",
            hint=self._by_hand(),
        )

    def _by_hand(self) -> str:
        """Return how to begin a new database without the old one."""
        move = shlex.join(["mv", self.path, f"{self.path}.away"])
        return f"Move it away: {printable(move)} && kopiatomic recover --state-dir {printable(shlex.quote(self.directory))}"

    def _connect(self) -> sqlite3.Connection:
        found = presence.status(self.path)
        if found is not None:
            self._require_file(found)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute("BEGIN IMMEDIATE")
            if not self._checked:
                # Damage in rarely read parts must not stay hidden until they are needed.
                (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                if verdict != "ok":
                    raise corrupt(verdict)
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
        self._check_way()
        try:
            os.makedirs(self.directory, 0o700, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from None
        self._check_directory()

    def _check_way(self) -> None:
        """Refuse a directory that others can exchange for one of their choice. Looks once, in a child if need be.

        Raises StateError.
        """
        if self._safe or os.geteuid() != 0:
            return
        try:
            why = safety.unsafe_way(self.directory)
        except OSError as error:
            raise self._unusable(error) from None
        if why:
            raise StateError(
                f"the state directory {printable(self.directory)} cannot be used: {why}",
                kind="state-directory",
                hint="Choose one with --state-dir, in directories that root alone can write to, such as /var/lib.",
            )
        self._safe = True

    def _check_directory(self) -> None:
        try:
            status = os.stat(self.directory)
        except OSError as error:
            raise self._unusable(error) from None
        if os.geteuid() != 0 and status.st_uid == 0:
            raise StateError("the records of runs are root's", kind="not-root", hint="Give this command as root.")
        shown = printable(self.directory)
        safety.require_own(
            status,
            f"the state directory {shown} is not one",
            shut=False,
            kind="state-directory",
            # A user's directory is not ours to take.
            hint=f"Look at it, then: chmod 700 {printable(shlex.quote(self.directory))}"
            if stat.S_ISDIR(status.st_mode) and status.st_uid == 0
            else "Name a directory of root's with --state-dir.",
            error=StateError,
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
            f"snapshots that it spoke of. If this is said again: {self._by_hand()}",
        )

    def _unusable(self, error: sqlite3.Error | OSError) -> StateError:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return StateError(
                f"the state database {printable(self.path)} is locked by another process, and was not free within "
                f"{_BUSY_TIMEOUT:g} s",
                kind="state-locked",
                hint="kopiatomic holds it for milliseconds; 'fuser -v' with its path names what does: a copy that is being "
                "made, or sqlite3?",
            )
        return StateError(
            f"the state database {printable(self.path)} cannot be used: {reason}",
            kind="state-unusable",
            hint="Look at its directory (space, permissions, read-only?), or choose another with --state-dir.",
        )


def corrupt(verdict: str) -> sqlite3.DatabaseError:
    """Return the error that SQLite would raise if it found such damage itself."""
    error = sqlite3.DatabaseError(verdict)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _is_corrupt(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
