"""Databases under load: backed up from snapshots, restored, started from that alone, and checked.

A restored server runs in a mount namespace in which the restored files lie where the original's do, so that it finds them by the
absolute paths in links and indexes, and cannot reach the original's.
"""

from __future__ import annotations

import re
import shutil
import signal
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.programs import SLOWNESS, command
from tests.unit.support.databases import (
    COMMON,
    MariaDB,
    PostgreSQL,
    Server,
    Sources,
    as_user,
    mariadb,
    places_of,
    postgresql,
    program,
    start,
)
from tests.unit.support.holders import Grouped, grouped

ACCOUNTS = 1000
CLIENTS = 4

_IN_PLACE = """
copies=$1 folder=$2 log=$3
shift 3
while [ "$1" != -- ]; do
    mount --bind "$copies/$1" "$folder/$1"
    shift
done
shift
exec "$@" >"$log" 2>&1
"""
"""Lines for sh: mounts the restored directories where the original's are, and becomes a program."""


@dataclass
class Tally:
    """What many backups and restores of one server came to."""

    what: str
    backups: int = 0
    started: int = 0
    right: int = 0
    clean: int = 0
    stalls: list[float] = field(default_factory=list)
    controls: int = 0
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        words = [f"{self.what}:"]
        if self.backups:
            words.append(
                f"{self.backups} backups, {self.started} restores started, {self.right} sums right, {self.clean} checks clean;"
            )
            stalls = [1000 * stall for stall in self.stalls]
            stall = (
                f"median {statistics.median(stalls):.1f} ms, max {max(stalls):.1f} ms" if stalls else "nothing was held"
            )
            words.append(f"stall: {stall}")
        if self.controls:
            words.append(f"{len(self.broken)} of {self.controls} not held are broken")
        lines = [" ".join(words), *(f"    {line}" for line in self.broken)]
        return "\n".join(lines)


class Bank(ABC):
    """A server whose clients move money between accounts, and rest while what was restored is checked."""

    def __init__(self, server: Server, parts: Sequence[str], clients: Grouped) -> None:
        self.server = server
        self.parts = parts
        """The directories that its files are in, by their names in its folder: each is a filesystem of its own."""
        self.clients = clients

    @property
    @abstractmethod
    def hold(self) -> str:
        """What ``--hold`` names it by."""

    @property
    def paths(self) -> list[Path]:
        return [self.server.folder / part for part in self.parts]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Have the clients work."""
        before = self.moved(self.server)
        self.clients.freeze(frozen=False)
        try:
            time.sleep(0.3 * SLOWNESS)
            assert sum(self.moved(self.server)) > sum(before), "the clients do nothing"
            yield
        finally:
            self.clients.freeze(frozen=True)

    def moved(self, server: Server) -> list[int]:
        """How many transfers each client has made."""
        return [int(line) for line in server.sql(f"SELECT n FROM {self.table} ORDER BY client").splitlines()]

    table: str
    """Which has the number of each client's transfers."""

    @abstractmethod
    def hurry(self) -> None:
        """Have the server write its data and use its log again, as it does from time to time."""

    @abstractmethod
    def restored(self, copies: Path) -> AbstractContextManager[Server]:
        """A server that starts from copies alone. Fails with an AssertionError if it does not start."""

    @abstractmethod
    def wrong(self, again: Server) -> list[str]:
        """What is wrong with the data of a restored server."""

    @abstractmethod
    def damage(self, again: Server) -> list[str]:
        """What is wrong with its files."""

    def judged(self, copies: Path, tally: Tally, between: tuple[list[int], list[int]] | None = None) -> list[str]:
        """What is wrong with what was restored; nothing, if it starts, and all is right and clean.

        ``between``: how many transfers each client had made before, and after.
        """
        with ExitStack() as stack:
            try:
                again = stack.enter_context(self.restored(copies))
            except AssertionError as error:
                return [f"it does not start: {error}"]
            tally.started += 1
            wrong = self.wrong(again)
            if between is not None and not wrong:
                before, after, found = *between, self.moved(again)
                if not all(low <= n <= high for low, n, high in zip(before, found, after, strict=True)):
                    wrong.append(f"{found} transfers, not between {before} and {after}")
            tally.right += not wrong
            damage = self.damage(again)
            tally.clean += not damage
            return [*wrong, *damage]


Backup = Callable[[Bank, Path], float | None]
"""Makes a backup into a tar archive; returns how long the server had to wait (seconds), or None if it did not."""

SnapshotOne = Callable[[Path, Path], None]
"""Makes a snapshot of one directory of a server's, and a copy of it, without holding anything."""


def back_up_and_restore(bank: Bank, backup: Backup, count: int, what: str) -> None:
    """Make backups while the clients work, and restore each. Prints what it came to."""
    tally = Tally(what)
    try:
        for _ in range(count):
            with in_memory() as folder:
                archive, copies = folder / "backup.tar", folder / "restored"
                with bank.at_work():
                    before = bank.moved(bank.server)
                    stall = backup(bank, archive)
                    after = bank.moved(bank.server)
                tally.backups += 1
                tally.stalls += [] if stall is None else [stall]
                copies.mkdir()
                command("tar", "-C", copies, "-xpf", archive)
                found = bank.judged(copies, tally, (before, after))
                assert not found, "\n".join(found)
    finally:
        print(tally)
    assert tally.backups == tally.started == tally.right == tally.clean == count


def snapshot_without_holding(bank: Bank, snapshot: SnapshotOne, count: int, what: str) -> None:
    """The control: each is broken whose snapshots are apart, with checkpoints between them. Prints in what way."""
    tally = Tally(what)
    try:
        for _ in range(count):
            with in_memory() as folder:
                copies = folder / "restored"
                copies.mkdir()
                with bank.at_work():
                    for number, part in enumerate(bank.parts):
                        if number:
                            bank.hurry()
                        snapshot(bank.server.folder / part, copies / part)
                tally.controls += 1
                found = bank.judged(copies, Tally(""))
                assert found, "it is whole"
                tally.broken.append(_in_a_line(found[0]))
    finally:
        print(tally)
    assert len(tally.broken) == count


def _in_a_line(problem: str) -> str:
    """What a server said when it failed, or the beginning of what is wrong."""
    lines = problem.splitlines()
    said = (line for line in lines if re.search(r"FATAL|PANIC|ERROR", line) and "starting up" not in line)
    return next(said, lines[0])[:150]


def archived(bank: Bank, root: Path, archive: Path) -> str:
    """The engine's command that saves the server's files from the view below ``root``, for ``-c``."""
    tops = " ".join(part for part in bank.parts if "/" not in part)
    return f"tar -C {root}{bank.server.folder} -cf {archive} {tops}"


def snapshot_of_subvolume(path: Path, copy: Path) -> None:
    """Make a snapshot of a subvolume of Btrfs, and a copy of it. A ``SnapshotOne``."""
    taken = path / "taken"
    command("btrfs", "subvolume", "snapshot", "-r", path, taken)
    copy.mkdir(exist_ok=True)
    command("cp", "-a", f"{taken}/.", copy)
    command("btrfs", "subvolume", "delete", taken)


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder in memory, where nothing waits for a disk."""
    folder = Path(tempfile.mkdtemp(prefix="kopiatomic-test-", dir="/var/tmp"))
    command("mount", "-t", "tmpfs", "-o", "mode=755", "none", folder)
    try:
        yield folder
    finally:
        command("umount", "--lazy", folder)
        folder.rmdir()


@contextmanager
def started_in_place(bank: Bank, again: Server, copies: Path, *argv: str | Path, end: signal.Signals) -> Iterator[None]:
    """Start a server that finds the copies where the original's files are, and end it with a signal."""
    tops = [part for part in bank.parts if "/" not in part]
    log = copies.parent / "server.log"
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _IN_PLACE, "sh"]
    first: list[str | Path] = [*words, copies, bank.server.folder, log, *tops, "--"]
    try:
        process = start(again, *argv, first=first)
    except AssertionError as error:
        said = log.read_text(errors="replace").splitlines() if log.exists() else []
        raise AssertionError("\n".join([str(error), *said[-40:]])) from None
    try:
        yield
    finally:
        process.send_signal(end)
        process.wait(30)


# PostgreSQL

POSTGRESQL_PARTS = ("data", "logs", "space", "wal")
"""Data directory, logs, a tablespace, WAL."""

_POSTGRESQL = (
    "shared_buffers=4MB",
    "max_wal_size=16MB",
    "min_wal_size=2MB",
    "logging_collector=on",
    "log_directory=../logs",
    "log_checkpoints=on",
)

_TRANSFER = rf"""
\set a random(1, {ACCOUNTS})
\set b random(1, {ACCOUNTS})
BEGIN;
UPDATE account SET money = money - 1 WHERE id = :a;
UPDATE savings SET money = money + 1 WHERE id = :b;
UPDATE moved SET n = n + 1 WHERE client = :client_id;
COMMIT;
"""


@contextmanager
def bank_in_postgresql(on: Sources) -> Iterator[Bank]:
    """Transfers between two tables, each of which lies in another filesystem than its index, beside pgbench's own."""
    made = ["--data-checksums", "--wal-segsize=1"]
    with postgresql(*_POSTGRESQL, on=on, made=made) as server, grouped() as clients:
        server.sql(f"CREATE TABLESPACE space LOCATION '{server.folder}/space'")
        server.sql("CREATE EXTENSION amcheck; CREATE TABLE moved (client int PRIMARY KEY, n int)")
        server.sql(f"INSERT INTO moved SELECT i, 0 FROM generate_series(0, {CLIENTS - 1}) i")
        for name, table, index in (("account", "space", "pg_default"), ("savings", "pg_default", "space")):
            columns = f"id int PRIMARY KEY USING INDEX TABLESPACE {index}, money int, fill text"
            server.sql(f"CREATE TABLE {name} ({columns}) TABLESPACE {table}")
            server.sql(f"INSERT INTO {name} SELECT i, 100, repeat('x', 200) FROM generate_series(1, {ACCOUNTS}) i")
        script = server.folder / "transfer"
        script.write_text(_TRANSFER)
        bench: list[str | Path] = [*as_user(server.user), program("pgbench"), "-h", server.folder, "-p", server.number]
        command(*bench, "-i", "-q", "-s", "1", "--tablespace=space", "--index-tablespace=pg_default", "postgres")
        load = ["-n", "-c", str(CLIENTS), "-T", "36000", "-f", f"{script}@3", "-b", "tpcb-like@1", "postgres"]
        clients.start("sh", "-c", 'exec "$@" >/dev/null 2>&1', "sh", *bench, *load)
        yield _InPostgreSQL(server, POSTGRESQL_PARTS, clients)


class _InPostgreSQL(Bank):
    server: PostgreSQL
    table = "moved"

    @property
    def hold(self) -> str:
        return f"postgresql:{self.server.number}"

    def hurry(self) -> None:
        for _ in range(3):
            self.server.sql("SELECT pg_switch_wal()")
            self.server.sql("CHECKPOINT")

    @contextmanager
    def restored(self, copies: Path) -> Iterator[Server]:
        server = self.server
        (copies / "data/postmaster.pid").unlink(missing_ok=True)
        number = str(int(server.number) + 1)
        # Nothing that it writes must outlive it.
        how: list[str | Path] = ["-D", server.data, "-p", number, "-F", "-c", "logging_collector=off"]
        with grouped() as group:
            again = PostgreSQL(server.user, server.folder, server.data, server.apart, group, number)
            # So that it removes its shared memory.
            with started_in_place(self, again, copies, program("postgres"), *how, end=signal.SIGQUIT):
                yield again

    def wrong(self, again: Server) -> list[str]:
        sums = "SELECT (SELECT sum(money) FROM account) + (SELECT sum(money) FROM savings)"
        counts = "(SELECT count(*) FROM account), (SELECT count(*) FROM savings)"
        asked = again.client(f"{sums}, {counts}", check=False)
        found = [] if asked.stdout.strip() == f"{200 * ACCOUNTS}|{ACCOUNTS}|{ACCOUNTS}" else [f"transfers: {asked}"]
        # Each of pgbench's transactions adds one amount to all of these.
        columns = (("accounts", "abalance"), ("tellers", "tbalance"), ("branches", "bbalance"), ("history", "delta"))
        each = " UNION ALL ".join(f"SELECT coalesce(sum({column}), 0) FROM pgbench_{name}" for name, column in columns)
        asked = again.client(each, check=False)
        totals = asked.stdout.split()
        return found if len(totals) == len(columns) and len(set(totals)) == 1 else [*found, f"pgbench: {asked}"]

    def damage(self, again: Server) -> list[str]:
        assert isinstance(again, PostgreSQL)
        where: list[str | Path] = ["-h", again.folder, "-p", again.number, "-d", "postgres"]
        ended = command(*as_user(again.user), program("pg_amcheck"), *where, "--heapallindexed", check=False)
        return [] if (ended.returncode, ended.stdout) == (0, "") else [f"pg_amcheck: {ended}"]


# MariaDB

SPREAD_PARTS = ("binary", "data", "log", "undo")
"""InnoDB is in several: binary log, data directory, redo log, undo tablespaces."""

TOGETHER_PARTS = ("binary", "data", "data/notes", "far")
"""InnoDB is in one: binary log, data directory, a database of other engines' tables, the data of one of these."""

_MARIADB = (
    *("--innodb-log-file-size=8M", "--max-binlog-size=4M", "--binlog-expire-logs-seconds=60"),
    # Clients that rest may have locks.
    "--innodb-lock-wait-timeout=36000",
)

_TRANSFERS = """
BEGIN {
    srand(client)
    for (k = 1; ; k++) {
        a = int(rand() * accounts) + 1
        b = int(rand() * accounts) + 1
        printf "BEGIN; UPDATE account SET money = money - 1 WHERE id = %d;", a
        printf " UPDATE savings SET money = money + 1 WHERE id = %d;", b
        printf " UPDATE moved SET n = %d WHERE client = %d; COMMIT;", k, client
        printf " INSERT INTO notes.myisam VALUES (%d, %d); INSERT INTO notes.aria VALUES (%d, %d);\\n", client, k, client, k
    }
}
"""
"""A program for awk: one client's transfers, each of which it notes in tables of other engines when it is committed."""

_LOGGED = re.compile(
    r"^ *UPDATE moved SET n = (?P<n>\d+) WHERE client = (?P<mover>\d+)"
    r"|^ *INSERT INTO notes\.(?P<table>\w+) VALUES \((?P<client>\d+), (?P<k>\d+)\)",
    re.MULTILINE,
)
"""The same as mariadb-binlog prints it."""


@contextmanager
def bank_in_mariadb_spread(on: Sources) -> Iterator[Bank]:
    """InnoDB's files in several filesystems. What is restored is as after a kill of the server: MyISAM must be repaired."""
    undo = ["--innodb-undo-directory={folder}/undo", "--innodb-undo-tablespaces=3"]
    with mariadb(*_MARIADB, *undo, on=on) as server, grouped() as clients:
        yield _in_mariadb(server, SPREAD_PARTS, clients, [*_MARIADB, *undo])


@contextmanager
def bank_in_mariadb_together(on: Sources) -> Iterator[Bank]:
    """InnoDB's files in one filesystem, binary log and tables of other engines in others.

    The lock has other engines' tables closed, so nothing is repaired where they are restored.
    """
    with mariadb(*_MARIADB, on=on, log="data") as server, grouped() as clients:
        unrepaired = ["--myisam-recover-options=OFF", "--aria-recover-options=OFF"]
        directory = f"DATA DIRECTORY='{server.folder}/far'"
        yield _in_mariadb(server, TOGETHER_PARTS, clients, [*_MARIADB, *unrepaired], directory)


def _in_mariadb(
    server: MariaDB, parts: Sequence[str], clients: Grouped, again: Sequence[str], directory: str = ""
) -> Bank:
    server.sql("CREATE DATABASE bank; CREATE DATABASE IF NOT EXISTS notes")
    # A sequence of numbers belongs to the database that is in use.
    for name in ("account", "savings"):
        server.sql(f"CREATE TABLE bank.{name} (id int PRIMARY KEY, money int, fill char(250)) ENGINE=InnoDB")
        server.sql(f"USE bank; INSERT INTO {name} SELECT seq, 100, 'x' FROM seq_1_to_{ACCOUNTS}")
    server.sql("CREATE TABLE bank.moved (client int PRIMARY KEY, n int) ENGINE=InnoDB")
    server.sql("CREATE TABLE bank.filler (id int PRIMARY KEY, fill char(250)) ENGINE=InnoDB")
    server.sql("USE bank; INSERT INTO filler SELECT seq, 'x' FROM seq_1_to_5000")
    server.sql(f"USE bank; INSERT INTO moved SELECT seq, 0 FROM seq_1_to_{CLIENTS}")
    server.sql(f"CREATE TABLE notes.myisam (client int, k int, PRIMARY KEY (client, k)) ENGINE=MyISAM {directory}")
    server.sql("CREATE TABLE notes.aria (client int, k int, PRIMARY KEY (client, k)) ENGINE=Aria")
    line = f'awk -v client="$1" -v accounts={ACCOUNTS} "$0" | mariadb --no-defaults --batch --socket={server.folder}/socket bank'
    for number in range(1, CLIENTS + 1):
        clients.start("sh", "-c", f"{{ {line}; }} >/dev/null 2>&1", _TRANSFERS, str(number))
    return _InMariaDB(server, parts, clients, again, closed=bool(directory))


class _InMariaDB(Bank):
    server: MariaDB
    table = "bank.moved"

    def __init__(
        self, server: MariaDB, parts: Sequence[str], clients: Grouped, again: Sequence[str], *, closed: bool
    ) -> None:
        super().__init__(server, parts, clients)
        self._again = again
        """Options of a restored server."""
        self._slack = int(not closed)
        """How far the binary log and tables of other engines may be apart: a killed server may have written to either first."""
        self._logged: dict[tuple[str, int], int] = {}
        """What the binary log of the one that was restored last says: the last number of each table's and client's."""
        self._log_damage: list[str] = []

    @property
    def hold(self) -> str:
        return f"mariadb:{self.server.folder}/socket"

    def hurry(self) -> None:
        fill = "UPDATE bank.filler SET fill = CONCAT(id, RAND());"
        # On a machine that does other things as well it may take minutes: each update waits for the disk.
        self.server.sql(f"SET sql_log_bin=0; {fill * 8}", 900)

    @contextmanager
    def restored(self, copies: Path) -> Iterator[Server]:
        server = self.server
        # A server that starts begins a new log.
        self._read_log(copies)
        folder = server.folder / "restored"
        folder.mkdir()
        shutil.chown(folder, server.user)
        try:
            with grouped() as group:
                again = MariaDB(server.user, folder, server.data, server.apart, group)
                places = places_of(folder, server.data, server.apart, server.folder / "binary")
                options = [*COMMON, *(option.format(folder=server.folder) for option in self._again), *places]
                with started_in_place(self, again, copies, "mariadbd", *options, end=signal.SIGKILL):
                    if self._slack:
                        # It was frozen within a statement, and the quick check at the start does not find a missing key (seen).
                        again.client("REPAIR TABLE notes.myisam", check=False)
                    yield again
        finally:
            shutil.rmtree(folder)

    def _read_log(self, copies: Path) -> None:
        # Beside them are the list of them and, from MariaDB 11.4 on, an index for each.
        files = sorted(path for path in (copies / "binary").iterdir() if re.fullmatch(r"log\.\d+", path.name))
        ended = command("mariadb-binlog", "--no-defaults", "--verify-binlog-checksum", *files, check=False)
        self._log_damage = (
            [] if (ended.returncode, ended.stderr) == (0, "") else [f"the binary log: {ended.stderr[-500:]}"]
        )
        self._logged = {}
        for found in _LOGGED.finditer(ended.stdout):
            if found["n"]:
                self._logged["moved", int(found["mover"])] = int(found["n"])
            else:
                self._logged[found["table"], int(found["client"])] = int(found["k"])

    def wrong(self, again: Server) -> list[str]:
        sums = "SELECT (SELECT SUM(money) FROM bank.account) + (SELECT SUM(money) FROM bank.savings)"
        counts = "(SELECT COUNT(*) FROM bank.account), (SELECT COUNT(*) FROM bank.savings)"
        asked = again.client(f"{sums}, {counts}", check=False)
        expected = f"{200 * ACCOUNTS}\t{ACCOUNTS}\t{ACCOUNTS}"
        found = [] if asked.stdout.strip() == expected else [f"transfers: {asked}"]
        moved = self._numbers(again, "SELECT client, n FROM bank.moved ORDER BY client", found)
        noted = {
            name: self._numbers(
                again,
                f"SELECT client, MAX(k), COUNT(*), SUM(k) FROM notes.{name} GROUP BY client ORDER BY client",
                found,
            )
            for name in ("myisam", "aria")
        }
        if found:
            return found
        for row, myisam, aria in zip(moved, noted["myisam"], noted["aria"], strict=True):
            client, n = row
            # A client notes a transfer in one table, and then in the other, before it makes the next one.
            last = [n, myisam[1], aria[1]]
            if last != sorted(last, reverse=True) or last[0] - last[-1] > 1:
                found.append(f"client {client}: the last in InnoDB, MyISAM and Aria are {last}")
            for k, count, total in (myisam[1:], aria[1:]):
                if (count, total) != (k, k * (k + 1) // 2):
                    found.append(f"client {client}: {count} rows with the sum {total} up to {k}")
            logged = [self._logged.get((name, client), 0) for name in ("moved", "myisam", "aria")]
            apart = [abs(one - other) for one, other in zip(logged, last, strict=True)]
            if apart[0] or max(apart) > self._slack:
                found.append(f"client {client}: the last in the tables are {last}, and in the binary log {logged}")
        return found

    @staticmethod
    def _numbers(again: Server, text: str, found: list[str]) -> list[list[int]]:
        """The rows of an answer, one for each client; what is wrong is added to ``found``."""
        asked = again.client(text, check=False)
        rows = [[int(word) for word in line.split("\t")] for line in asked.stdout.splitlines()]
        if [row[0] for row in rows] != list(range(1, CLIENTS + 1)):
            found.append(f"{text}: {asked}")
        return rows

    def damage(self, again: Server) -> list[str]:
        listed = again.client(
            "SELECT CONCAT('`', table_schema, '`.`', table_name, '`') FROM information_schema.tables"
            " WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('information_schema', 'performance_schema')",
            check=False,
        )
        tables = listed.stdout.splitlines()
        checked = again.client(f"CHECK TABLE {', '.join(tables)} EXTENDED", check=False)
        bad = [line for line in checked.stdout.splitlines() if line.split("\t")[2:] != ["status", "OK"]]
        if checked.returncode or len(checked.stdout.splitlines()) < len(tables) or not tables:
            bad.append(str(checked))
        return [*bad, *self._log_damage]
