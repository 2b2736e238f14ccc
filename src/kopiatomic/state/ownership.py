"""What distinguishes a run's objects from all others: their name, and a mark that names run, host, boot and lock directory."""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache
from pathlib import Path

from kopiatomic import presence
from kopiatomic.immutable import immutable

PREFIX = "kopiatomic_"
"""The name of each of our snapshots is this plus the run's id."""

PROPERTY = "kopiatomic:run"
"""ZFS: the user property that carries the mark; only source ``local`` counts."""

ATTRIBUTE = "trusted.kopiatomic.run"
"""Btrfs: the extended attribute of a run's directory that carries the mark; only root reads and writes ``trusted``."""

TAG = "kopiatomic"
"""The tag of our holds. Holds with any other tag are not ours."""

_BOOKMARK = "kopiatomic_"
"""ZFS: the name of each of our bookmarks is this plus the host's id. A bookmark has no properties, so its name must say it."""

_RUN_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
_MARK = re.compile(r"([^@]+)@([0-9a-f]{16})(?:@([0-9a-f-]*)@([0-9a-f]*))?")
_MACHINE_IDS = (Path("/etc/machine-id"), Path("/etc/hostid"))
"""machine-id(5); FreeBSD keeps its kern.hostuuid in the second (rc.d/hostid)."""


@immutable
class Mark:
    """What made an object: a run, on a host, in a boot, with a lock directory. As text ``RUN@HOST@BOOT@LOCKS``.

    Earlier versions wrote ``RUN@HOST``: then ``boot`` and ``locks`` are empty.
    """

    run_id: str
    host: str
    boot: str = ""
    """The kernel's id of the boot that the run began in; empty if unknown."""
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
    """Return the mark of a recorded run; earlier versions recorded none."""
    return parse(text) or Mark(run_id, "")


def is_run_id(text: str) -> bool:
    """Whether a text has the form of a run's id."""
    return _RUN_ID.fullmatch(text) is not None


def run_of(snapshot: str) -> str | None:
    """Return the run named by a snapshot or directory (without its dataset); None for foreign names."""
    run_id = snapshot.removeprefix(PREFIX)
    return run_id if run_id != snapshot and is_run_id(run_id) else None


def bookmark() -> str:
    """Return the name of this host's bookmarks, without the dataset."""
    return _BOOKMARK + host_id()


@cache
def host_id() -> str:
    """Return a permanent name for this host: a hash of its machine id, which must not be disclosed, and its name.

    If either changes, what an earlier run left no longer counts as ours unless it is recorded: it is left alone. Raises OSError
    if the machine id cannot be read: any other name would not be this host's.
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
