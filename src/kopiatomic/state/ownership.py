"""What tells a run's things from everybody else's: their name, and a mark that names run, host, boot and lock directory."""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache
from pathlib import Path

from kopiatomic import presence
from kopiatomic.immutable import immutable

PREFIX = "kopiatomic_"
"""Every snapshot of ours is named this plus the run's id."""

PROPERTY = "kopiatomic:run"
"""ZFS: the user property that carries the mark; only source ``local`` counts."""

ATTRIBUTE = "trusted.kopiatomic.run"
"""Btrfs: the extended attribute of a run's directory that carries the mark; only root reads and writes ``trusted``."""

TAG = "kopiatomic"
"""The tag of our holds. Holds with any other tag are somebody else's."""

_BOOKMARK = "kopiatomic_"
"""ZFS: every bookmark of ours is named this plus the host's id. A bookmark has no properties, so that its name must say it."""

_RUN_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
_MARK = re.compile(r"([^@]+)@([0-9a-f]{16})(?:@([0-9a-f-]*)@([0-9a-f]*))?")
_MACHINE_IDS = (Path("/etc/machine-id"), Path("/etc/hostid"))
"""machine-id(5); FreeBSD keeps its kern.hostuuid in the second (rc.d/hostid)."""


@immutable
class Mark:
    """Who made a thing: a run, on a host, in a boot, with a lock directory. As text ``RUN@HOST@BOOT@LOCKS``.

    Earlier versions wrote ``RUN@HOST``: then ``boot`` and ``locks`` are empty.
    """

    run_id: str
    host: str
    boot: str = ""
    """The kernel's name for the boot that the run began in; empty where that is not known."""
    locks: str = ""
    """The id of the lock directory that has the run's lock (:func:`kopiatomic.state.locks.identity`)."""

    def __str__(self) -> str:
        return f"{self.run_id}@{self.host}@{self.boot}@{self.locks}"


def parse(text: str) -> Mark | None:
    """Read a mark; None for any other text."""
    found = _MARK.fullmatch(text)
    if found is None or not is_run_id(found[1]):
        return None
    return Mark(found[1], found[2], found[3] or "", found[4] or "")


def recorded(run_id: str, text: str) -> Mark:
    """The mark of a recorded run; earlier versions recorded none."""
    return parse(text) or Mark(run_id, "")


def is_run_id(text: str) -> bool:
    """Whether a text has the form of a run's id."""
    return _RUN_ID.fullmatch(text) is not None


def run_of(snapshot: str) -> str | None:
    """The run that a snapshot's or directory's name (without its dataset) speaks of; None for foreign names."""
    run_id = snapshot.removeprefix(PREFIX)
    return run_id if run_id != snapshot and is_run_id(run_id) else None


def bookmark() -> str:
    """What a bookmark of this host's is called, without its dataset."""
    return _BOOKMARK + host_id()


@cache
def host_id() -> str:
    """A name for this host that stays: a hash of its machine id, which shall not be shown, and its name.

    Where either changes, what an earlier run left is no longer taken for ours without its record: it is left alone. Raises
    OSError where the machine id cannot be read: another name would be no name of this host.
    """
    machine = b""
    for path in _MACHINE_IDS:
        try:
            machine = path.read_bytes().strip()
        except OSError as error:
            if presence.absent(error):
                continue
            raise
        break
    return hashlib.sha256(b"kopiatomic\0" + machine + b"\0" + os.fsencode(os.uname().nodename)).hexdigest()[:16]
