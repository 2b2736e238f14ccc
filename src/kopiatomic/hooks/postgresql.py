"""PostgreSQL (13 and later): nothing is held where all its files share one instant, else its processes are frozen.

A snapshot with its WAL is a backup from which the server recovers as after a power cut, if it is of one instant (the manual's
"File System Level Backup"). Frozen processes write nothing between the snapshots, so that is true of several sets as well, on a
primary and on a standby, and whatever restores them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from kopiatomic import presence
from kopiatomic.errors import KopiatomicError
from kopiatomic.hooks import freezer, servers
from kopiatomic.hooks.holder import Around, Finding, Held, Wanted
from kopiatomic.hooks.servers import Account, Client
from kopiatomic.immutable import immutable
from kopiatomic.model.leftovers import Intent
from kopiatomic.paths import is_at_or_below
from kopiatomic.system import cgroups, looking, process, sockets
from kopiatomic.text import first_few, printable

_OLDEST = 130000
"""The oldest version that is supported, as in ``server_version_num``."""

_LIST_TIMEOUT = 10.0
"""Seconds that Debian's pg_lsclusters has."""

_DOWN_FIELDS = 5
"""Of a line of pg_lsclusters: version, name, port, state, owner. Paths follow."""

_SOCKET = re.compile(r"(.*)/\.s\.PGSQL\.(\d+)")

_ASKED = """
SELECT json_build_object(
  'version', current_setting('server_version_num')::int,
  'data', current_setting('data_directory'),
  'name', current_setting('cluster_name'),
  'fsync', current_setting('fsync'));
"""
"""What the server is asked. The answer is one line: JSON has no line ends in texts. Tablespaces are links in the directory."""

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
    ("timeout expired", "hold-no-server"),
)
"""Words of libpq's and the server's messages, and what they mean. The first that is found counts."""

_HINTS = {
    "hold-recovering": "Wait until it accepts connections.",
    "hold-no-right": "Its user must be able to read all settings: GRANT pg_monitor TO ..., or be a superuser.",
    "hold-password": "Who may log in is in pg_hba.conf; a password is taken from ~/.pgpass of system_user, or from the profile.",
    "hold-peer": "Its process runs as another user than system_user: name that.",
    "hold-no-server": "Is it running? Name its socket's directory and its number: host, port.",
}


@immutable
class _Address:
    host: str
    """The directory of its socket, or a host's name."""
    port: str


class _PostgreSQL:
    name = "postgresql"
    settings: Mapping[str, type] = MappingProxyType(
        {
            "checkpoint": bool,
            "client": str,
            "database": str,
            "host": str,
            "password": str,
            "port": int,
            "system_user": str,
            "user": str,
        }
    )
    programs = ("client",)

    def find(self, wanted: Wanted, around: Around) -> list[Finding]:
        """Ask each server that listens here, and Debian's list for those that are down."""
        who = servers.account(wanted, "postgres")
        found = []
        named = not wanted.settings.keys() & {"host", "port"}
        known: set[str] = set()
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
            known.add(told["data"])
            if not named or not wanted.name or wanted.name in {told["name"], address.port}:
                label = f"postgresql {printable(wanted.name or told['name'] or address.port)}"
                found.append(_judged(wanted, around, client, label, told))
        if named:
            found += [
                Finding(f"postgresql {printable(name)}", "is down: its files do not change, nothing to hold")
                for name in _down()
                if not wanted.name or wanted.name == name
            ]
        if not found and problems:
            raise problems[0]
        if not found:
            raise KopiatomicError(
                f"--hold {wanted}: no server of user {printable(who.name)} is there"
                + (f"; known are: {first_few(sorted(known))}" if known else ""),
                kind="hold-no-server",
                hint=_HINTS["hold-no-server"],
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
    told: Mapping[str, Any] = json.loads(answer.stdout.decode("utf-8", "surrogateescape"))
    if told["version"] < _OLDEST:
        raise KopiatomicError(
            f"--hold {wanted}: the server is PostgreSQL {told['version'] // 10000}, and 13 is the oldest that is supported",
            kind="hold-version",
            hint="Freeze its service instead: --hold unit:NAME",
        )
    return told


def _refused(wanted: Wanted, answer: process.Finished) -> KopiatomicError:
    """Return the error for a client that failed, by its words."""
    # Its last line may be only a hint of the server's.
    lines = [line for line in answer.errors.splitlines() if "error:" in line or "FATAL:" in line or "ERROR:" in line]
    said = lines[-1] if lines else answer.why
    kind = next((kind for words, kind in _MEANINGS if words in answer.errors), "hold-failed")
    return KopiatomicError(f"--hold {wanted}: {said}", kind=kind, hint=_HINTS.get(kind, "See the server's log."))


def _down() -> list[str]:
    """Return the names of Debian's clusters that are down. Raises KopiatomicError, Interrupted."""
    try:
        listed = process.run(["pg_lsclusters", "--no-header"], timeout=_LIST_TIMEOUT)
    except FileNotFoundError:
        # This is not Debian.
        return []
    lines = [line.split() for line in listed.stdout.decode("utf-8", "replace").splitlines()]
    return [f"{words[0]}/{words[1]}" for words in lines if len(words) >= _DOWN_FIELDS and words[3].startswith("down")]


def _judged(wanted: Wanted, around: Around, client: Client, label: str, told: Mapping[str, Any]) -> Finding:
    """Return what must be done about one server. Raises KopiatomicError, Interrupted."""
    data = told["data"]
    pid = servers.process_of(wanted, f"{data}/postmaster.pid", data)
    real = servers.look(wanted, data, lambda: servers.real_entries(data, ("base", "pg_tblspc")))
    (wal,) = servers.look(wanted, data, lambda: servers.real_paths([f"{data}/pg_wal"]))
    places = servers.spots(real, around)
    note = "fsync is off: a crash of this system would damage it in any case" if told["fsync"] == "off" else ""
    outside = servers.outside(places)
    if outside is not None:
        return Finding(label, str(outside), in_backup=False, note=note)
    apart = [path for path in real[1:] if not path.startswith(f"{real[0]}/") and path != wal]
    text = ", ".join(
        [
            printable(real[0]),
            f"WAL in {printable(wal)}",
            *([f"more in {first_few(apart)}"] if apart else []),
        ]
    )
    checkpoint = _Checkpoint(label, wanted, client) if wanted.settings.get("checkpoint") else None
    if servers.share_one_instant(places):
        return Finding(label, f"{text}: all in one instant, nothing to hold", checkpoint, note=note)
    return freezer.frozen(
        label,
        wanted,
        _group(label, pid),
        around,
        text=f"{text}: in {servers.datasets(places)}, which share no instant: ",
        first=None if checkpoint is None else checkpoint.prepare,
    )


def _group(label: str, pid: int) -> str:
    """Return the path of the control group of a server, if all its processes are in it. Raises KopiatomicError."""
    path = cgroups.path_of(pid)
    for child, name in process.family(pid):
        try:
            other = cgroups.path_of(child)
        except KopiatomicError as error:
            if error.kind != "hold-no-process":
                raise
            continue
        if not is_at_or_below(other, path):
            raise KopiatomicError(
                f"{label} cannot be frozen: its process {child} ({name}) is in another control group, {printable(other)}",
                kind="hold-refused",
                hint="Start it so that all its processes stay in one control group.",
            )
    return path


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
