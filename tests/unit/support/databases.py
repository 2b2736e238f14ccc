"""Database servers of a test's own, in a control group and a folder of their own."""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.support.programs import Completed, command
from tests.unit.support.holders import Grouped, grouped

_START_S = 60
_LASTS = "Hot standby mode is disabled"
"""What a server says to all that ask it: it has started, and accepts nobody."""


def as_user(user: str) -> list[str]:
    """The words before a command that runs as a user."""
    return ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--init-groups"]


@contextmanager
def folder_of(user: str) -> Iterator[Path]:
    """A folder of a user's that it can reach: those of pytest are root's alone."""
    path = Path(tempfile.mkdtemp(prefix="kopiatomic-test-", dir="/var/tmp"))
    try:
        shutil.chown(path, user)
        path.chmod(0o755)
        yield path
    finally:
        shutil.rmtree(path)


Sources = Mapping[str, Path | str]
"""What is mounted in a folder, by name: directories, or datasets of ZFS by their names."""


@contextmanager
def bound(folder: Path, on: Sources, user: str) -> Iterator[None]:
    """Directories and datasets mounted in a folder, by name (empty: as the folder itself), and given to a user."""
    with ExitStack() as stack:
        for name, source in on.items():
            point = folder / name
            point.mkdir(exist_ok=True)
            if isinstance(source, Path):
                command("mount", "--bind", source, point)
            else:
                command("zfs", "set", f"mountpoint={point}", source)
            stack.callback(command, "umount", "--lazy", point)
            shutil.chown(point, user)
            point.chmod(0o755 if point == folder else 0o700)
        yield


@dataclass
class Server:
    """A server that runs. ``apart`` is the part of its files that lies outside of ``data``."""

    user: str
    folder: Path
    data: Path
    apart: Path
    group: Grouped
    number: str = ""
    """PostgreSQL: the number of its port, with which its socket is named."""

    def sql(self, text: str, timeout: float = 60) -> str:
        """What it answers, as its administrator."""
        return self.client(text, timeout).stdout.strip()

    def client(self, text: str, timeout: float = 60, *, check: bool = True) -> Completed:
        raise NotImplementedError

    def started(self, text: str) -> subprocess.Popen[str]:
        """A client that waits for the answer."""
        return subprocess.Popen([*self.words(), text], stdout=subprocess.PIPE, text=True)

    def words(self) -> Sequence[str]:
        raise NotImplementedError

    def answers(self, text: str, within: float) -> bool:
        """Whether a statement is answered within so many seconds."""
        with self.started(text) as client:
            try:
                return client.wait(within) == 0
            except subprocess.TimeoutExpired:
                return False
            finally:
                client.kill()


class PostgreSQL(Server):
    def words(self) -> Sequence[str]:
        psql = ["psql", "-XqAt", "-h", str(self.folder), "-p", self.number, "-d", "postgres", "-c"]
        return [*as_user(self.user), *psql]

    def client(self, text: str, timeout: float = 60, *, check: bool = True) -> Completed:
        return command(*self.words(), text, timeout=timeout, check=check)


def program(name: str) -> Path:
    """A program of PostgreSQL's newest version here."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if not folders:
        pytest.fail("there is no PostgreSQL; ./test installs it", pytrace=False)
    return folders[-1].parent / name


@contextmanager
def postgresql(
    *settings: str,
    user: str = "postgres",
    standby: bool = False,
    on: Sources = MappingProxyType({}),
    made: Sequence[str] = (),
) -> Iterator[PostgreSQL]:
    """A cluster whose WAL lies outside of its data directory.

    ``on``: what is mounted as ``data`` and ``wal``, or as other directories beside them. ``made``: how initdb makes it.
    """
    with folder_of(user) as folder, bound(folder, on, user), grouped() as group:
        server = PostgreSQL(user, folder, folder / "data", folder / "wal", group, str(20000 + secrets.randbelow(20000)))
        words: list[str | Path] = [
            *as_user(user),
            program("initdb"),
            "-D",
            server.data,
            "-X",
            server.apart,
            "--auth=trust",
            "--no-sync",
            *made,
        ]
        command(*words, "--username=postgres", "--locale=C.UTF-8")
        options = [
            f"unix_socket_directories={folder}",
            f"port={server.number}",
            "listen_addresses=",
            "cluster_name=15/test",
            *settings,
        ]
        with (folder / "data/postgresql.conf").open("a") as file:
            file.writelines(re.sub("=(.*)", r"='\1'", option, count=1) + "\n" for option in options)
        if standby:
            (server.data / "standby.signal").touch()
            shutil.chown(server.data / "standby.signal", user)
        start(server, program("postgres"), "-D", server.data)
        yield server


@contextmanager
def transfers(server: PostgreSQL, clients: int = 4) -> Iterator[None]:
    """Clients that move money between 100 accounts, whose sum stays 10000."""
    server.sql("CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, money int)")
    server.sql("TRUNCATE account; INSERT INTO account SELECT i, 100 FROM generate_series(1, 100) i")
    script = server.folder / "transfer"
    script.write_text(
        "\\set a random(1, 100)\n\\set b random(1, 100)\n"
        "BEGIN; UPDATE account SET money = money - 1 WHERE id = least(:a, :b);\n"
        "UPDATE account SET money = money + 1 WHERE id = greatest(:a, :b); COMMIT;\n"
    )
    with pgbench(server, "-f", str(script), clients=clients):
        yield


@contextmanager
def pgbench(server: PostgreSQL, *words: str, clients: int = 4) -> Iterator[None]:
    """Clients that do what pgbench does by default, or what a script says."""
    where = ["-h", str(server.folder), "-p", server.number]
    argv: list[str | Path] = [*as_user(server.user), program("pgbench"), "-n", *where]
    argv += ["-c", str(clients), "-T", "7200", *words, "postgres"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as bench:
        try:
            time.sleep(1)
            assert bench.poll() is None
            yield
        finally:
            bench.kill()


@contextmanager
def restored(server: PostgreSQL, data: Path, wal: Path) -> Iterator[PostgreSQL]:
    """A server that starts from copies of another's files. Fails with an AssertionError if it does not start."""
    (data / "postmaster.pid").unlink(missing_ok=True)
    (data / "pg_wal").unlink()
    (data / "pg_wal").symlink_to(wal)
    with grouped() as group:
        number = str(int(server.number) + 1)
        copy = PostgreSQL(server.user, server.folder, data, wal, group, number)
        start(copy, program("postgres"), "-D", data, "-p", number)
        yield copy


def copied(source: Path, target: Path) -> Path:
    """A copy with owners and times, as a backup has it."""
    command("cp", "-a", source, target)
    return target


def start(server: Server, *argv: str | Path, first: Sequence[str | Path] = ()) -> subprocess.Popen[bytes]:
    """Start it in its control group, after words that run as root, and wait until it answers."""
    process = server.group.start(*first, *as_user(server.user), *argv)
    deadline = time.monotonic() + _START_S
    while (asked := server.client("SELECT 1", check=False)).returncode != 0 and _LASTS not in asked.stderr:
        assert process.poll() is None, "the server has ended"
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.1)
    return process


class MariaDB(Server):
    def words(self) -> Sequence[str]:
        return ["mariadb", "--no-defaults", f"--socket={self.folder}/socket", "--batch", "--skip-column-names", "-e"]

    def client(self, text: str, timeout: float = 60, *, check: bool = True) -> Completed:
        return command(*self.words(), text, timeout=timeout, check=check)


COMMON = ("--no-defaults", "--innodb-buffer-pool-size=16M", "--innodb-log-file-size=16M", "--skip-networking")


def places_of(folder: Path, data: Path, log: Path, binary: Path) -> list[str]:
    """The options that say where a server's files are. ``folder``: for its socket and what only lives as long as it does."""
    return [
        *(f"--datadir={data}", f"--innodb-log-group-home-dir={log}", f"--log-bin={binary}/log"),
        *(f"--tmpdir={folder}", f"--socket={folder}/socket", f"--pid-file={folder}/pid"),
    ]


@contextmanager
def mariadb(
    *settings: str, user: str = "nobody", on: Sources = MappingProxyType({}), log: str = "log"
) -> Iterator[MariaDB]:
    """A server whose binary log lies outside of its data directory, and its redo log in ``log``.

    ``on``: what is mounted as these directories, or as others. ``settings``: options, in which ``{folder}`` is what all lies in.
    """
    if shutil.which("mariadbd") is None:
        pytest.fail("there is no MariaDB; ./test installs it", pytrace=False)
    with folder_of(user) as folder, bound(folder, on, user), grouped() as group:
        server = MariaDB(user, folder, folder / "data", folder / log, group)
        for directory in (server.data, server.apart, folder / "binary"):
            directory.mkdir(exist_ok=True)
            shutil.chown(directory, user)
        options = [*COMMON, *(setting.format(folder=folder) for setting in settings)]
        places = places_of(folder, server.data, server.apart, folder / "binary")
        how = ["--skip-test-db", "--auth-root-authentication-method=normal", f"--user={user}"]
        command("mariadb-install-db", *options, *places[:2], places[3], *how)
        start(server, "mariadbd", *options, *places)
        yield server


@contextmanager
def restored_mariadb(server: MariaDB, data: Path, log: Path, binary: Path) -> Iterator[MariaDB]:
    """A server that starts from copies of another's files. Fails with an AssertionError if it does not start."""
    folder = server.folder / "restored"
    folder.mkdir()
    shutil.chown(folder, server.user)
    with grouped() as group:
        copy = MariaDB(server.user, folder, data, log, group)
        start(copy, "mariadbd", *COMMON, *places_of(folder, data, log, binary))
        yield copy


def open_accounts(server: MariaDB, count: int) -> None:
    """Accounts of 100 each, in InnoDB."""
    server.sql(
        "CREATE DATABASE bank; CREATE TABLE bank.account (id int PRIMARY KEY, money int, fill char(250)) ENGINE=InnoDB"
    )
    server.sql(f"USE bank; INSERT INTO account SELECT seq, 100, 'x' FROM seq_1_to_{count}")


@contextmanager
def transfers_between(server: MariaDB, accounts: int, clients: int) -> Iterator[None]:
    """Clients that move money between accounts."""
    program = """
BEGIN {
    srand(seed)
    change = "UPDATE account SET money = money + %d WHERE id = %d;"
    while (1) {
        a = int(rand() * accounts) + 1
        b = int(rand() * accounts) + 1
        if (a > b) { c = a; a = b; b = c }
        printf "BEGIN; " change change " COMMIT;\\n", -1, a, 1, b
    }
}
"""
    line = f'awk -v accounts={accounts} -v seed="$1" "$0" | mariadb --no-defaults --batch --socket={server.folder}/socket bank'
    with ExitStack() as stack:
        for number in range(clients):
            words = ["sh", "-c", line, program, str(number)]
            writer = stack.enter_context(subprocess.Popen(words, process_group=0, stderr=subprocess.DEVNULL))
            stack.callback(os.killpg, writer.pid, signal.SIGKILL)
        time.sleep(1)
        assert server.sql("SELECT MIN(money) < 100 FROM bank.account") == "1"
        yield


@contextmanager
def transfers_in_innodb(server: MariaDB, clients: int = 4) -> Iterator[None]:
    """Clients that move money between 1000 accounts on many pages, whose sum stays 100000."""
    open_accounts(server, 1000)
    with transfers_between(server, 1000, clients):
        yield
