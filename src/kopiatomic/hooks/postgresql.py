"""PostgreSQL (13 and later): nothing is held where all its files share one instant, else its processes are frozen.

A snapshot with its WAL is a backup from which the server recovers as after a power cut, if it is of one instant (the manual's
"File System Level Backup"). Frozen processes write nothing between the snapshots, so that is true of several sets as well, on a
primary and on a standby, and whatever restores them.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.hooks import servers
from kopiatomic.hooks.holder import Around, Finding, Held, Key, Wanted
from kopiatomic.hooks.servers import Account, Client, Spot
from kopiatomic.immutable import immutable
from kopiatomic.model.leftovers import Intent
from kopiatomic.system import coprocess, looking, process, sockets
from kopiatomic.text import first_few, printable

_OLDEST = 130000
"""The oldest version that is supported, as in ``server_version_num``."""

_PID = "postmaster.pid"
"""The file in the data directory with the number of the server's process."""

_LIST_TIMEOUT = 10.0
"""Seconds that Debian's pg_lsclusters has."""

_COLUMNS = (b"Owner", b"Data directory", b"Log file")
"""Words of pg_lsclusters's first line: paths may have spaces, so that only their columns tell them apart."""

_UNKNOWN = "<unknown>"
"""What pg_lsclusters says of what it could not find out."""

_SOCKET = re.compile(r"(.*)/\.s\.PGSQL\.(\d+)")

_ASKED = """
SELECT json_build_object(
  'version', current_setting('server_version_num')::int,
  'data', current_setting('data_directory'),
  'name', current_setting('cluster_name'),
  'fsync', current_setting('fsync'));
"""
"""What the server is asked. The answer is one line: JSON has no line ends in texts. Tablespaces are links in the directory."""

_ANSWER = MappingProxyType(
    {"version": servers.is_number, "data": servers.is_path, "name": servers.is_text, "fsync": servers.is_text}
)

_MEANINGS = (
    ("starting up", "hold-recovering"),
    ("in recovery mode", "hold-recovering"),
    ("not yet accepting connections", "hold-recovering"),
    ("not accepting connections", "hold-recovering"),
    ("shutting down", "hold-recovering"),
    ("permission denied", "hold-no-right"),
    ("must be superuser", "hold-no-right"),
    ("password", "hold-password"),
    ("authentication failed", "hold-password"),
    ("no pg_hba.conf entry", "hold-password"),
    ("role", "hold-password"),
    ("requirepeer", "hold-peer"),
    ("No such file or directory", "hold-no-server"),
    ("Connection refused", "hold-no-server"),
    ("timeout expired", "hold-no-answer"),
)
"""Words of libpq's and the server's messages, and what they mean. The first that is found counts."""

_HINTS = {
    "hold-recovering": "Wait until it accepts connections.",
    "hold-no-right": "Its user must be able to read all settings: GRANT pg_monitor TO ..., or be a superuser.",
    "hold-password": "Who may log in is in pg_hba.conf; a password is taken from ~/.pgpass of system_user, or from the profile.",
    "hold-peer": "Its process runs as another user than system_user: name that.",
    "hold-no-server": "Is it running? Where it listens can be said in a profile: host (the directory of its socket) and port.",
    "hold-no-answer": "Something listens there and does not answer: is it frozen or stopped? See 'ps', and its log.",
}


@immutable
class _Cluster:
    """A line of pg_lsclusters. ``name`` is as in "15/main", ``data`` its directory."""

    name: str
    port: str
    data: str


@immutable
class _Address:
    host: str
    """The directory of its socket, or a host's name."""
    port: str


class _PostgreSQL:
    name = "postgresql"
    settings: Mapping[str, Key] = MappingProxyType(
        {
            "checkpoint": Key(bool, "Make a checkpoint before, so that what is restored recovers sooner."),
            "host": Key(str, "The directory of its socket, or a host: where it listens."),
            "port": Key(int, "Its port, 5432 where only host is said."),
            "user": Key(str, "The role to log in as, by default that of system_user."),
            "password": Key(str, "Its password; ~/.pgpass of system_user counts as well.", is_secret=True),
            "database": Key(str, "The database to log in to.", default="postgres"),
            "system_user": Key(str, "The user of this system that the client runs as.", default="postgres"),
            "client": Key(str, "The client, by its path.", default="psql"),
        }
    )
    programs = ("client",)

    def find(self, wanted: Wanted, around: Around) -> list[Finding]:
        """Ask each server that listens here, and Debian's list for those that are down."""
        who = servers.account(wanted, "postgres")
        found = []
        named = not wanted.settings.keys() & {"host", "port"}
        known: dict[str, str] = {}
        problems: list[KopiatomicError] = []
        for address in _addresses(wanted, who):
            client = _client(wanted, who, address)
            try:
                told = _told(wanted, client)
            except KopiatomicError as error:
                if not (named and wanted.name) or wanted.name == address.port:
                    raise
                # The one that is meant may be another.
                problems.append(error)
                continue
            if told["data"] in known:
                # It listens in several directories.
                continue
            known[told["data"]] = f"{printable(told['name'] or '(without a name)')} on port {address.port}"
            if not named or not wanted.name or wanted.name in {told["name"], address.port}:
                label = f"postgresql {printable(wanted.name or told['name'] or address.port)}"
                found.append(_judged(wanted, around, client, label, told))
        clusters = _listed(wanted, who) if named else []
        found += _down(wanted, around, clusters, known, problems)
        if not found and problems:
            raise problems[0]
        there = {*known.values(), *(f"{printable(one.name)} on port {printable(one.port)}" for one in clusters)}
        if not found:
            raise KopiatomicError(
                f"--hold {wanted}: no server of user {printable(who.name)} is there"
                + (f" with this name or port; there are: {first_few(sorted(there))}" if there else ""),
                kind="hold-no-server",
                hint="The name or the port is what follows 'postgresql:'." if there else _HINTS["hold-no-server"],
            )
        return found


def _addresses(wanted: Wanted, who: Account) -> Iterator[_Address]:
    """Yield the address that is set, or those where a server of this user listens. Raises KopiatomicError, Interrupted."""
    settings = wanted.settings
    if settings.keys() & {"host", "port"}:
        yield _Address(settings.get("host", ""), str(settings.get("port", 5432)))
        return
    uid = os.geteuid() if who.user is None else who.user.uid
    for path in sockets.listening():
        match = _SOCKET.fullmatch(path)
        # Anybody can listen in /tmp; the client requires the same of the process.
        if match and _owner(path) == uid:
            yield _Address(match[1], match[2])


def _owner(path: str) -> int | None:
    found = looking.call(lambda: presence.status(path), path)
    return None if found is None else found.st_uid


def _client(wanted: Wanted, who: Account, address: _Address) -> Client:
    settings = wanted.settings
    user = str(settings.get("user", who.name))
    database = str(settings.get("database", "postgres"))
    argv = [str(settings.get("client", "psql")), "-X", "-w", "-qAt", "-v", "ON_ERROR_STOP=1"]
    argv += [*(("-h", address.host) if address.host else ()), "-p", address.port, "-U", user, "-d", database]
    variables = {
        "PGAPPNAME": "kopiatomic",
        "PGCLIENTENCODING": "UTF8",
        "PGCONNECT_TIMEOUT": str(servers.CONNECT_TIMEOUT),
        "PGREQUIREPEER": who.name,
    }
    if "password" in settings:
        variables["PGPASSWORD"] = settings["password"]
    return Client(argv, servers.environment(who, variables), who, "postgresql-client")


def _told(wanted: Wanted, client: Client) -> Mapping[str, Any]:
    """Return what a server answers. Raises KopiatomicError, Interrupted."""
    answer = client.ask(wanted, _ASKED)
    if answer.status != 0:
        raise _refused(wanted, answer)
    told = servers.checked(wanted, _parsed(answer.stdout), _ANSWER)
    if told["version"] < _OLDEST:
        raise KopiatomicError(
            f"--hold {wanted}: the server is PostgreSQL {told['version'] // 10000}, and 13 is the oldest that is supported",
            kind="hold-version",
            hint="Freeze its service instead, such as --hold unit:postgresql@12-main",
        )
    return told


def _parsed(text: bytes) -> object:
    """Return what a server answers; None if that is no JSON."""
    try:
        return json.loads(text.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None


def _refused(wanted: Wanted, answer: process.Finished) -> KopiatomicError:
    """Return the error for a client that failed, by its words."""
    # Its last line may be only a hint of the server's.
    lines = [line for line in answer.errors.splitlines() if "error:" in line or "FATAL:" in line or "ERROR:" in line]
    said = lines[-1] if lines else answer.why
    kind = next((kind for words, kind in _MEANINGS if words in answer.errors), "hold-failed")
    return KopiatomicError(f"--hold {wanted}: {said}", kind=kind, hint=_HINTS.get(kind, "See the server's log."))


def _listed(wanted: Wanted, who: Account) -> list[_Cluster]:
    """Return Debian's clusters of a user. Raises KopiatomicError, Interrupted."""
    # As that user: it reads what his files name.
    client = Client(["pg_lsclusters"], servers.environment(who, {}), who, "postgresql-common")
    try:
        listed = coprocess.run(client.argv, client.variables, time.monotonic() + _LIST_TIMEOUT, user=who.user)
    except FileNotFoundError:
        # This is not Debian.
        return []
    except TimeoutError:
        raise _no_list(wanted, f"did not end within {_LIST_TIMEOUT:g} s") from None
    except OSError as error:
        raise client.not_started(wanted, error) from None
    first, *lines = listed.stdout.splitlines() or [b""]
    if listed.status != 0 or any(column not in first for column in _COLUMNS):
        raise _no_list(wanted, f"failed: {listed.why}")
    owner, data, log = map(first.index, _COLUMNS)
    return [
        _Cluster(
            "/".join(os.fsdecode(line).split()[:2]), os.fsdecode(line).split()[2], os.fsdecode(line[data:log].strip())
        )
        for line in lines
        if os.fsdecode(line[owner:data].strip()) in {who.name, _UNKNOWN}
    ]


def _no_list(wanted: Wanted, why: str) -> KopiatomicError:
    return KopiatomicError(
        f"--hold {wanted}: Debian's list of servers, pg_lsclusters, {why}",
        kind="hold-no-answer",
        hint="Run it by hand: does a file in /etc/postgresql include what cannot be read? Or name one server: host, port.",
    )


_DOWN = "is down: its files do not change"


@immutable
class _Files:
    """Where the files of a server lie."""

    real: Sequence[str]
    """The data directory, and what lies in it or is linked from it."""
    wal: str
    places: Sequence[Spot]

    @classmethod
    def of(cls, wanted: Wanted, around: Around, data: str) -> _Files:
        """Look at them. Raises KopiatomicError, OSError, Interrupted."""
        real = servers.look(wanted, data, lambda: servers.real_entries(data, ("base", "pg_tblspc")))
        (wal,) = servers.look(wanted, data, lambda: servers.real_paths([f"{data}/pg_wal"]))
        return cls(real, wal, servers.spots(real, around))

    @property
    def outside(self) -> Spot | None:
        """The first place that is not in the backup."""
        return servers.outside(self.places)

    def __str__(self) -> str:
        apart = [path for path in self.real[1:] if not path.startswith(f"{self.real[0]}/") and path != self.wal]
        more = [f"more in {first_few(apart)}"] if apart else []
        return ", ".join([printable(self.real[0]), f"WAL in {printable(self.wal)}", *more])


def _down(
    wanted: Wanted,
    around: Around,
    clusters: Sequence[_Cluster],
    known: Iterable[str],
    problems: Sequence[KopiatomicError],
) -> list[Finding]:
    """Return those of Debian's clusters that are down: no process works in their directories. Their files must be there, too.

    The list says so also of one whose settings were changed since its start, or that has no socket of Unix. One that runs and is
    not ``known`` must not be missed. Raises KopiatomicError, Interrupted.
    """
    asked = {servers.worker_in(wanted, f"{data}/{_PID}", data) for data in known}
    found = []
    for cluster in clusters:
        if wanted.name not in {"", cluster.name, cluster.port}:
            continue
        has_data = cluster.data != _UNKNOWN
        pid = servers.worker_in(wanted, f"{cluster.data}/{_PID}", cluster.data) if has_data else None
        if has_data and pid is None:
            label = f"postgresql {printable(cluster.name)}"
            lies = _Files.of(wanted, around, cluster.data)
            if lies.outside is not None:
                found.append(Finding(label, f"{_DOWN}; {lies.outside}", in_backup=False))
            else:
                found.append(Finding(label, f"{_DOWN}, nothing to hold"))
        elif pid not in asked:
            raise next(iter(problems), _not_asked(wanted, cluster, pid))
    return found


def _not_asked(wanted: Wanted, cluster: _Cluster, pid: int | None) -> KopiatomicError:
    name = printable(cluster.name)
    kind, hint = "hold-no-server", _HINTS["hold-no-server"]
    if pid is None:
        return KopiatomicError(f"--hold {wanted}: the server {name} has no known data directory", kind=kind, hint=hint)
    return KopiatomicError(
        f"--hold {wanted}: the server {name} runs (process {pid}), and no socket of it is found", kind=kind, hint=hint
    )


def _judged(wanted: Wanted, around: Around, client: Client, label: str, told: Mapping[str, Any]) -> Finding:
    """Return what must be done about one server. Raises KopiatomicError, Interrupted."""
    data = told["data"]
    server = servers.process_of(wanted, f"{data}/{_PID}", data)
    lies = _Files.of(wanted, around, data)
    note = "fsync is off: a crash of this system would damage it in any case" if told["fsync"] == "off" else ""
    if lies.outside is not None:
        return Finding(label, str(lies.outside), in_backup=False, note=note)
    text = str(lies)
    checkpoint = _checkpoint(label, wanted, client)
    if servers.share_one_instant(lies.places):
        return Finding(label, f"{text}: all in one instant, nothing to hold", checkpoint, note=note)
    return servers.frozen(
        label,
        wanted,
        server,
        around,
        text=f"{text}: in {servers.datasets(lies.places)}, which share no instant: ",
        first=None if checkpoint is None else checkpoint.prepare,
    )


_MAY_CHECKPOINT = """
SELECT rolsuper OR EXISTS (SELECT FROM pg_roles WHERE rolname = 'pg_checkpoint' AND pg_has_role(oid, 'USAGE'))
  FROM pg_roles WHERE rolname = current_user;
"""
"""Before version 15 there is no such role, and only superusers may."""


def _checkpoint(label: str, wanted: Wanted, client: Client) -> _Checkpoint | None:
    """Return what has the server write a checkpoint; None if none is wanted. Raises KopiatomicError, Interrupted."""
    if not wanted.settings.get("checkpoint"):
        return None
    answer = client.ask(wanted, _MAY_CHECKPOINT)
    if answer.status != 0:
        raise _refused(wanted, answer)
    if answer.stdout.strip() != b"t":
        raise KopiatomicError(
            f"--hold {wanted}: checkpoint = true, and its user may not make one",
            kind="hold-no-right",
            hint="GRANT pg_checkpoint TO ... (PostgreSQL 15 and later; before only superusers may), or leave out checkpoint.",
        )
    return _Checkpoint(label, wanted, client)


class _Checkpoint:
    """Has the server write a checkpoint first, so that what is restored starts sooner. Holds nothing.

    Satisfies :class:`kopiatomic.hooks.holder.Holder`.
    """

    def __init__(self, label: str, wanted: Wanted, client: Client) -> None:
        self.label = label
        self.wanted = wanted
        self._client = client

    def intents(self) -> Sequence[Intent]:
        """Return nothing."""
        return ()

    def prepare(self, deadline: float) -> None:
        """Send CHECKPOINT."""
        program = self._client.start(self.wanted)
        try:
            program.send(b"CHECKPOINT;\n")
            answer = program.finish(deadline)
        except TimeoutError:
            raise KopiatomicError(
                f"{self.label}: CHECKPOINT did not end in time",
                kind="hold-timeout",
                hint="Give it longer (timeout), or leave out checkpoint = true.",
            ) from None
        finally:
            program.kill()
        if answer.status != 0:
            raise _refused(self.wanted, answer)

    def hold(self, _deadline: float) -> None:
        """Do nothing."""

    def settle(self) -> None:
        """Do nothing."""

    def release(self) -> Held:
        """Return that nothing was held."""
        return Held(self.label, 0, True, "all in one instant: nothing was held")

    def close(self) -> None:
        """Do nothing."""


POSTGRESQL = _PostgreSQL()
