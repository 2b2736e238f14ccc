"""MariaDB (10.4 and later) and MySQL (8 and later).

No SQL lock holds InnoDB's files still: page flushing, redo, purge and checkpoints go on under each of them. So InnoDB's data,
undo, redo and tables with DATA DIRECTORY must share one proven instant, in which nothing is needed, or the processes are frozen.
Other engines and binary logs are held by ``BACKUP STAGE BLOCK_COMMIT`` (MariaDB's manual: "BACKUP STAGE"): commits, Aria, MyISAM
and DDL wait, reads go on. The global read lock (``FLUSH TABLES WITH READ LOCK``) is never used: it waits for the longest SELECT
while everything waits for it.

The lock ends with the client's connection. If the client hangs, the server ends it by ``wait_timeout``.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from kopiatomic.errors import Interrupted, KopiatomicError
from kopiatomic.hooks import activation, servers
from kopiatomic.hooks.holder import SHORT_LIMIT, TIMEOUT, Around, Finding, Held, Key, Wanted, not_in_time
from kopiatomic.hooks.servers import Client
from kopiatomic.immutable import immutable
from kopiatomic.model.leftovers import Intent
from kopiatomic.system import process
from kopiatomic.system.coprocess import Coprocess, EndedError
from kopiatomic.text import printable

_END = "kopiatomic: so far"
"""A line that ends an answer."""

_END_TIMEOUT = 1.0
"""Seconds that the client has to end when it holds nothing."""

_SILENT = "its server, or the client, does not answer"
_BUSY = "something that writes to a table of another engine than InnoDB, or DDL, takes that long"
"""Why a statement is late."""

_RELEASE_TIMEOUT = 5.0
"""Seconds that the server has to release the lock and say so."""

_PORT = "3306"
"""The port where none is set."""

_VARIABLES = (
    "aria_log_dir_path",
    "datadir",
    "innodb_data_file_path",
    "innodb_data_home_dir",
    "innodb_doublewrite_dir",
    "innodb_log_group_home_dir",
    "innodb_undo_directory",
    "log_bin_basename",
    "pid_file",
    "version",
)
"""What the server is asked. Not each version has all of them."""

_VERSION = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})")

_NEEDED = MappingProxyType(
    {
        "version": lambda value: isinstance(value, str) and _VERSION.match(value) is not None,
        "datadir": servers.is_path,
        "pid_file": servers.is_text,
    }
)
"""What each must answer."""

_FILES = {
    "mariadb": "SELECT DISTINCT FILENAME FROM information_schema.INNODB_SYS_TABLESPACES WHERE FILENAME IS NOT NULL",
    "old mariadb": "SELECT DISTINCT PATH FROM information_schema.INNODB_SYS_DATAFILES",
    "mysql": "SELECT DISTINCT PATH FROM information_schema.INNODB_DATAFILES",
}
"""How each names InnoDB's files: absolute, or relative to the data directory."""

_MEANINGS = (
    ("ERROR 1045", "hold-password"),
    ("ERROR 1698", "hold-password"),
    ("ERROR 1227", "hold-no-right"),
    ("ERROR 1142", "hold-no-right"),
    ("ERROR 1044", "hold-no-right"),
    ("ERROR 1205", "hold-timeout"),
    ("ERROR 2002", "hold-no-server"),
    ("ERROR 2003", "hold-no-server"),
    ("ERROR 2005", "hold-no-server"),
    ("ERROR 2006", "hold-lost"),
    ("ERROR 2013", "hold-lost"),
    ("ERROR 1053", "hold-recovering"),
    ("ERROR 1040", "hold-no-answer"),
)
"""Numbers of the client's and the server's errors (MariaDB: "MariaDB Error Codes"), and what they mean."""

_HINTS = {
    "hold-password": "The user or the password is wrong. They are taken from the profile, or from ~/.my.cnf of system_user.",
    "hold-no-right": "Its user needs RELOAD and PROCESS: GRANT RELOAD, PROCESS ON *.* TO ...",
    "hold-no-server": "Is it running? Where it listens can be said in a profile: socket, or host and port.",
    "hold-lost": "See the server's log: it has ended, or has closed the connection.",
    "hold-recovering": "It is shutting down. Wait until it accepts connections again.",
    "hold-no-answer": "It has too many connections.",
}


@immutable
class _Layout:
    """Where the real files of a server are."""

    innodb: tuple[str, ...]
    others: tuple[str, ...]
    binary_log: str
    """The directory of the binary log; empty if there is none."""


class _MySQL:
    programs = ("client",)

    def __init__(self, name: str) -> None:
        self.name = name
        self.settings: Mapping[str, Key] = MappingProxyType(
            {
                "socket": Key(str, "The path of its socket."),
                "host": Key(str, "The host where it listens."),
                "port": Key(int, "Its port."),
                "user": Key(str, "The user to log in as."),
                "password": Key(str, "Its password; ~/.my.cnf of system_user counts as well.", is_secret=True),
                "system_user": Key(str, "The user of this system that the client runs as.", default="root"),
                "client": Key(str, "The client, by its path.", default=name),
            }
        )

    def find(self, wanted: Wanted, around: Around) -> list[Finding]:
        """Ask the server that is set, or the one that the client's own files name."""
        client = self._client(wanted)
        _require_running(wanted, client)
        told = _told(wanted, client)
        label = printable(f"{self.name} {wanted.name}" if wanted.name else self.name)
        data = told["datadir"].rstrip("/") or "/"
        server = servers.process_of(wanted, os.path.join(data, told["pid_file"]), data)
        files = _lines(_answer(wanted, client, f"{_FILES[_which(told)]};\n"))
        layout = servers.look(wanted, data, lambda: _layout(data, told, files))
        innodb, others = servers.spots(layout.innodb, around), servers.spots(layout.others, around)
        outside = servers.outside([*innodb, *others])
        if outside is not None:
            return [Finding(label, str(outside), in_backup=False)]
        note = ""
        if layout.binary_log and around.place_of(layout.binary_log) is None:
            note = f"its binary log in {printable(layout.binary_log)} is not in this backup"
        if not servers.share_one_instant(innodb):
            text = f"InnoDB in {servers.datasets(innodb)}, which share no instant, so that no lock helps: "
            return [servers.frozen(label, wanted, server, around, text=text)]
        if "MariaDB" not in told["version"]:
            what = "in one instant, nothing to hold; tables of other engines are as after a power cut"
            return [Finding(label, f"InnoDB {what}", note=note)]
        _try_lock(wanted, client)
        text = "InnoDB in one instant; other engines held by BACKUP STAGE"
        return [Finding(label, text, BackupStage(label, wanted, client), note=note)]

    def _client(self, wanted: Wanted) -> Client:
        settings = wanted.settings
        who = servers.account(wanted, "root")
        argv = [str(settings.get("client", self.name)), "--batch", "--raw", "--skip-column-names", "--unbuffered"]
        argv += ["--skip-reconnect", f"--connect-timeout={servers.CONNECT_TIMEOUT}"]
        # A server may otherwise ask its client for any file, and this one is root's.
        argv.append("--local-infile=0")
        address = {**settings, **({"socket": wanted.name} if wanted.name.startswith("/") else {})}
        argv += [f"--{key}={address[key]}" for key in ("host", "port", "socket", "user") if key in address]
        variables = {"MYSQL_PWD": settings["password"]} if "password" in settings else {}
        return Client(argv, servers.environment(who, variables), who, f"{self.name}-client")


def _require_running(wanted: Wanted, client: Client) -> None:
    """Refuse to ask a server that does not run and that systemd would start for it. Raises KopiatomicError, Interrupted."""
    # What the client's own files say counts as well: it shows what it would use, and connects to nothing.
    shown = client.shown(wanted, "--help")
    host, port, path = (_variable(shown, name) for name in ("host", "port", "socket"))
    if host in {"", "localhost"}:
        activation.require_running(wanted, path, "")
    else:
        activation.require_running(wanted, "", port if port not in {"", "0"} else _PORT)


def _variable(shown: str, name: str) -> str:
    """Return the value of a variable in what the client shows; empty if it has none."""
    match = re.search(rf"^{name} +(.+)$", shown, re.MULTILINE)
    return "" if match is None or match[1].startswith("(") else match[1].strip()


def _told(wanted: Wanted, client: Client) -> Mapping[str, str]:
    """Return the server's variables. Raises KopiatomicError, Interrupted."""
    names = ", ".join(f"'{name}'" for name in _VARIABLES)
    answer = _answer(wanted, client, f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names});\n")
    told = servers.checked(wanted, dict(line.split("\t", 1) for line in _lines(answer) if "\t" in line), _NEEDED)
    is_mariadb = "MariaDB" in told["version"]
    if _version(told) < ((10, 4) if is_mariadb else (8, 0)):
        oldest = "MariaDB 10.4" if is_mariadb else "MySQL 8"
        raise KopiatomicError(
            f"--hold {wanted}: the server is {printable(told['version'])}, and {oldest} is the oldest that is supported",
            kind="hold-version",
            hint="Freeze its service instead: --hold unit:NAME",
        )
    return told


def _version(told: Mapping[str, str]) -> tuple[int, int]:
    match = _VERSION.match(told["version"])
    assert match is not None
    return int(match[1]), int(match[2])


def _which(told: Mapping[str, str]) -> str:
    if "MariaDB" not in told["version"]:
        return "mysql"
    return "mariadb" if _version(told) >= (10, 6) else "old mariadb"


def _answer(wanted: Wanted, client: Client, statements: str) -> process.Finished:
    """Run statements in a connection of their own. Raises KopiatomicError, Interrupted."""
    answer = client.ask(wanted, statements)
    if answer.status != 0:
        raise _refused(f"--hold {wanted}", answer)
    servers.checked(wanted, {"text": os.fsdecode(answer.stdout)}, {"text": servers.is_text})
    return answer


def _lines(answer: process.Finished) -> list[str]:
    return os.fsdecode(answer.stdout).splitlines()


def _refused(what: str, answer: process.Finished) -> KopiatomicError:
    """Return the error for a client that failed, by the number of its error."""
    kind = next((kind for number, kind in _MEANINGS if number in answer.errors), "hold-failed")
    lines = [line for line in answer.errors.splitlines() if line.startswith("ERROR")]
    said = lines[-1] if lines else answer.why
    return KopiatomicError(f"{what}: {said}", kind=kind, hint=_HINTS.get(kind, "See the server's log."))


def _try_lock(wanted: Wanted, client: Client) -> None:
    """Begin a backup and end it, which holds nothing up, to see whether that is allowed and no other one runs.

    Raises KopiatomicError, Interrupted.
    """
    seconds = max(1, math.floor(min(TIMEOUT, wanted.timeout) / 2))
    try:
        _answer(wanted, client, f"SET SESSION lock_wait_timeout={seconds}; BACKUP STAGE START; BACKUP STAGE END;\n")
    except KopiatomicError as error:
        if error.kind == "hold-timeout":
            raise _another_backup(f"--hold {wanted}") from None
        raise


def _another_backup(what: str) -> KopiatomicError:
    return KopiatomicError(
        f"{what}: another backup of this server is running, in BACKUP STAGE",
        kind="hold-backup-running",
        hint="Wait for it; SHOW PROCESSLIST names it.",
    )


def _layout(data: str, told: Mapping[str, str], files: Iterable[str]) -> _Layout:
    """In a child: return where the files are. Raises OSError."""
    home = told.get("innodb_data_home_dir", "")
    system = [item.partition(":")[0] for item in told.get("innodb_data_file_path", "").split(";") if item]
    # An empty home means that the names are absolute, or relative to the data directory.
    innodb = [os.path.join(data, home, name) for name in system]
    for name in ("innodb_undo_directory", "innodb_log_group_home_dir", "innodb_doublewrite_dir"):
        innodb.append(os.path.join(data, told.get(name, "")))
    # Thousands of tables are in few directories; a table elsewhere may be a link itself.
    innodb += {os.path.dirname(os.path.join(data, name)) for name in files if not name.startswith("innodb_")}
    log = told.get("log_bin_basename", "")
    others = [*servers.real_entries(data, ()), os.path.join(data, told.get("aria_log_dir_path", ""))]
    (binary_log,) = servers.real_paths([os.path.dirname(os.path.join(data, log))]) if log else ("",)
    return _Layout(tuple(servers.real_paths(innodb)), tuple(servers.real_paths(others)), binary_log)


class BackupStage:
    """Holds what is not InnoDB by a backup lock. Satisfies :class:`kopiatomic.hooks.holder.Holder`."""

    def __init__(self, label: str, wanted: Wanted, client: Client) -> None:
        self.label = label
        self.wanted = wanted
        self._client = client
        self._program: Coprocess | None = None
        self._since = 0
        self._held = False
        self._limit = max(1, math.ceil(SHORT_LIMIT if wanted.limit is None else wanted.limit))

    def intents(self) -> tuple[Intent, ...]:
        """Return nothing: the lock ends with its connection."""
        return ()

    def prepare(self, deadline: float) -> None:
        """Connect."""
        # It may have been stopped since the plan.
        _require_running(self.wanted, self._client)
        self._program = self._client.start(self.wanted)
        self._say("", deadline, _SILENT)

    def hold(self, deadline: float) -> None:
        """Take the lock."""
        left = max(1, math.floor(deadline - time.monotonic()))
        # Not earlier: it also counts while nothing is asked of the connection.
        self._say(f"SET SESSION wait_timeout={self._limit}, lock_wait_timeout={left};", deadline, _SILENT)
        try:
            self._say("BACKUP STAGE START;", deadline, _BUSY)
        except KopiatomicError as error:
            if error.kind == "hold-timeout":
                raise _another_backup(self.label) from None
            raise
        self._since = time.monotonic_ns()
        self._held = True
        self._say("BACKUP STAGE BLOCK_COMMIT;", deadline, _BUSY)

    def settle(self) -> None:
        """Do nothing: the server has written what it has committed."""

    def release(self) -> Held:
        """End the backup in the session that began it: had it ended, the server would not know of any."""
        try:
            self._say("BACKUP STAGE END;", time.monotonic() + _RELEASE_TIMEOUT, _SILENT)
        except KopiatomicError as error:
            late = f"nothing was answered within {_RELEASE_TIMEOUT:g} s"
            why = late if error.kind == "hold-timeout" else error.message
            return Held(self.label, time.monotonic_ns() - self._since, False, why)
        self._held = False
        return Held(self.label, time.monotonic_ns() - self._since, True, "released in the session that held it")

    def close(self) -> None:
        """End the connection."""
        program, self._program = self._program, None
        if program is None:
            return
        if not self._held:
            try:
                program.finish(time.monotonic() + _END_TIMEOUT)
            except (TimeoutError, Interrupted):
                # It has been killed.
                pass
        program.kill()

    def _say(self, statements: str, deadline: float, why_late: str) -> None:
        """Have statements executed. If that fails, the connection has ended. Raises KopiatomicError, Interrupted."""
        program = self._program
        if program is None:
            raise KopiatomicError(f"{self.label}: it is not connected", kind="hold-lost", hint=_HINTS["hold-lost"])
        try:
            program.send(f"{statements}\nSELECT '{_END}';\n".encode())
            program.lines(_END.encode(), deadline)
        except TimeoutError:
            self.close()
            raise not_in_time(self.label, why_late, self.wanted.timeout) from None
        except EndedError as error:
            self.close()
            raise self._ended(error.finished) from None
        except BaseException:
            self.close()
            raise

    def _ended(self, finished: process.Finished) -> KopiatomicError:
        error = _refused(self.label, finished)
        if error.kind == "hold-timeout":
            return not_in_time(
                self.label, "something writes to a table of another engine, or DDL runs", self.wanted.timeout
            )
        return error


MARIADB = _MySQL("mariadb")
MYSQL = _MySQL("mysql")
