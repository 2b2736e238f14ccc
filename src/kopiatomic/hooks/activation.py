"""Sockets that systemd listens on for services that do not run: whoever connects to one starts the service.

A plan changes nothing, and a server that was stopped for a restore must not come back in the middle of it. So a server is not
asked where systemd itself would accept the connection (systemd.socket(5)).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from kopiatomic.errors import KopiatomicError
from kopiatomic.hooks.holder import Wanted
from kopiatomic.system import cgroups, looking, process

_TIMEOUT = 10.0
"""Seconds that systemctl has to answer."""

_ASK = ("systemctl", "show", "--property=Id,SubState,Listen", "--", "*.socket")

_WAITS = "listening"
"""The state of a socket's unit while its service does not run."""

_PORT = re.compile(r"(?:.*:)?(\d+)")


def require_running(wanted: Wanted, path: str, port: str) -> None:
    """Refuse to ask a server that would be started by that. It is reached by a socket with a path, or by a port.

    Raises KopiatomicError, Interrupted.
    """
    paths = {path, looking.real(path)} if path else set()
    for unit, address in _listening(wanted):
        match = _PORT.fullmatch(address)
        if address in paths or (match and port and match[1] == port):
            raise KopiatomicError(
                f"--hold {wanted}: the server does not run, and asking it would start it: {unit} listens on {address}",
                kind="hold-not-running",
                hint="Start it. Where a backup is to be made while it is stopped: required = false.",
            )


def _listening(wanted: Wanted) -> Iterator[tuple[str, str]]:
    """Yield units of sockets whose services do not run, with their addresses. Raises KopiatomicError, Interrupted."""
    try:
        answer = process.run(_ASK, timeout=_TIMEOUT, environment={**os.environ, "LC_ALL": "C"})
    except FileNotFoundError:
        return
    if answer.status != 0:
        if not cgroups.belong_to_systemd():
            return
        raise KopiatomicError(
            f"--hold {wanted}: systemd could not be asked whether asking the server would start it: {answer.why}",
            kind="hold-no-answer",
            hint="See 'systemctl status'.",
        )
    for unit in answer.stdout.decode("utf-8", "surrogateescape").split("\n\n"):
        yield from _addresses(unit.splitlines())


def _addresses(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield name and addresses of a unit whose service does not run: ``Listen=/run/x (Stream)``."""
    fields = [line.partition("=")[::2] for line in lines]
    told = dict(fields)
    if told.get("SubState") == _WAITS:
        for key, value in fields:
            if key == "Listen":
                yield told.get("Id", ""), value.rpartition(" ")[0]
