"""A ZFS dataset that a backup is restored into: made for it, and mounted where nobody else sees it.

It is mounted in a mount namespace of this process, over an empty directory of root's: the mount ends with this process and the
engine that it has started, however they end.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems.zfs import listing
from kopiatomic.filesystems.zfs.kind import ZFS
from kopiatomic.immutable import immutable
from kopiatomic.model.record import RecordedDataset
from kopiatomic.state import locks
from kopiatomic.system import linux, process, signals
from kopiatomic.system.descriptors import closing
from kopiatomic.text import printable

PROPERTY = "kopiatomic:restoring"
"""The user property on a dataset that is being restored into: the restore's id, a colon, what is unique to its making."""

PLACE = f"{locks.DIRECTORY}/restoring"
"""What it is mounted over. This stays: another restore may have its own mount on it."""

_AT_BIRTH = (
    "recordsize",
    "compression",
    "casesensitivity",
    "normalization",
    "utf8only",
    "acltype",
    "xattr",
    "atime",
)
"""What is set when it is made, since it decides how the data is stored, or cannot be set later."""

_AFTER = ("quota", "refquota")
"""What is set when all data is there, since the data may need more room on its way."""

_OF_THE_ROOT = ("keylocation",)
"""What can only be set where an encryption begins; the new dataset inherits its parent's."""

_UNLIMITED = str((1 << 64) - 1)
"""How ``zfs get -p`` writes ``none`` for the limits of filesystems and snapshots."""

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@immutable
class _Identity:
    """What a dataset is known by: its guid, and our mark if it has that itself."""

    guid: str
    mark: str


class NewZfsDataset:
    """Satisfies :class:`kopiatomic.filesystems.backends.NewDataset`."""

    path = PLACE
    inherited = ()

    def __init__(self, recorded: RecordedDataset, name: str, fd: int, *, is_ours: bool) -> None:
        self.fd = fd
        self.is_ours = is_ours
        self.discarded = False
        self._name = name
        self._values = {key: setting.value for key, setting in recorded.properties.items() if key != PROPERTY}
        of_the_root = [key for key in _OF_THE_ROOT if key in self._values]
        self.notes = [
            f"{key} was {printable(self._values[key])}; {printable(name)} has the encryption of the dataset above it"
            for key in of_the_root
        ]
        self.commands = list(_commands(name, self._values))

    def discard(self) -> None:
        """Note that nothing has been restored into it."""
        self.discarded = True

    def settle(self) -> list[str]:
        """Set the limits, compare what has been set, and remove our mark; return what is not as it is recorded.

        Raises KopiatomicError.
        """
        wrong = []
        for key in _AFTER:
            if key in self._values:
                answer = listing.run(["zfs", "set", f"{key}={self._values[key]}", self._name], may_fail=True)
                if answer.status != 0:
                    wrong.append(f"{printable(self._name)}: {key} cannot be set: {answer.why}")
        set_by_us = [key for key in (*_AT_BIRTH, *_AFTER) if key in self._values]
        for key, value in _get(self._name, set_by_us).items():
            if value != self._values[key]:
                wrong.append(f"{printable(self._name)}: {key} is {printable(value)} and was {self._values[key]}")
        listing.run(["zfs", "inherit", PROPERTY, self._name])
        return wrong


@contextmanager
def new_dataset(recorded: RecordedDataset, name: str, restore: str) -> Iterator[NewZfsDataset]:
    """Make a dataset, or take the one that is there, and mount it. Raises KopiatomicError, OSError."""
    if not re.fullmatch(r"[A-Za-z0-9][^@#%]*/[^@#%]*", name):
        raise KopiatomicError(
            f"{printable(name)} is not the name of a dataset in a pool",
            kind="new-dataset",
            hint="For example: --as tank/home.restored",
        )
    found = _identity(name)
    made = None
    if found is None:
        mark = f"{restore}:{secrets.token_hex(8)}"
        _create(recorded, name, mark)
        found = _identity(name)
        if found is None or found.mark != mark:
            raise KopiatomicError(
                f"{printable(name)} is not the dataset that was made there",
                kind="new-dataset",
                hint="Somebody has renamed or replaced it: see 'zpool history'. Run again.",
            )
        made = found
    new = None
    try:
        with _mounted(name) as fd:
            new = NewZfsDataset(recorded, name, fd, is_ours=found.mark.partition(":")[0] == restore)
            yield new
    except BaseException:
        if made is not None and (new is None or new.discarded):
            with signals.deferred():
                _destroy(name, made)
        raise


def _identity(name: str) -> _Identity | None:
    """Return what a dataset is known by; None if there is none. Raises KopiatomicError."""
    argv = ["zfs", "get", "-H", "-o", "property,value,source", f"guid,{PROPERTY}", name]
    answer = listing.run(argv, may_fail=True)
    if answer.status != 0:
        if "dataset does not exist" in answer.errors:
            return None
        raise _refused(f"whether {printable(name)} exists cannot be found out", answer)
    found: dict[str, tuple[str, str]] = {}
    for line in answer.stdout.decode("utf-8", "surrogateescape").splitlines():
        key, _, rest = line.partition("\t")
        value, _, source = rest.partition("\t")
        found.setdefault(key, (value, source))
    mark, source = found[PROPERTY]
    return _Identity(found["guid"][0], mark if source == "local" else "")


def _create(recorded: RecordedDataset, name: str, mark: str) -> None:
    """Make the dataset, as closed to others as its mount. Raises KopiatomicError."""
    options = {key: recorded.properties[key].value for key in _AT_BIRTH if key in recorded.properties}
    options |= {"canmount": "noauto", PROPERTY: mark}
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    answer = listing.run(["zfs", "create", *words, name], may_fail=True)
    if answer.status != 0:
        raise _refused(f"{printable(name)} cannot be made", answer)


def _refused(what: str, answer: process.Finished) -> KopiatomicError:
    return KopiatomicError(
        f"{what}: {answer.why}",
        kind="new-dataset",
        hint="The dataset above it must exist, with its key loaded, in a pool that is writable and has room ('zfs list').",
    )


def _destroy(name: str, made: _Identity) -> None:
    """Destroy the dataset that this process has made, while nothing has been restored into it."""
    if _identity(name) == made:
        listing.run(["zfs", "destroy", name], may_fail=True)


@contextmanager
def _mounted(name: str) -> Iterator[int]:
    """Mount a dataset where this process and what it starts see it, and nobody else. Raises KopiatomicError, OSError."""
    locks.prepare()
    try:
        os.mkdir(PLACE, 0o700)
    except FileExistsError:
        pass
    linux.take_own_mounts(linux.MS_SLAVE)
    try:
        linux.mount(name, PLACE, "zfs", linux.MS_NOSUID | linux.MS_NODEV)
    except OSError as error:
        known = ZFS.why_not_mounted(name, error)
        raise known or KopiatomicError(
            f"{printable(name)} cannot be mounted: {error.strerror}",
            kind="new-dataset",
            hint="See 'zfs get mounted,keystatus,zoned' of it, and 'dmesg'.",
        ) from None
    try:
        with closing(os.open(PLACE, _OPEN)) as fd:
            yield fd
    finally:
        linux.detach(PLACE)


def _get(name: str, keys: Sequence[str]) -> dict[str, str]:
    """Return properties that are no texts of users. Raises KopiatomicError."""
    if not keys:
        return {}
    answer = listing.run(["zfs", "get", "-Hp", "-o", "property,value", ",".join(keys), name])
    lines = answer.stdout.decode("utf-8", "surrogateescape").splitlines()
    return dict(line.split("\t", 1) for line in lines)


def _commands(name: str, values: dict[str, str]) -> Iterator[str]:
    """Yield the commands that set what we do not: in an order in which nothing is mounted before all is set."""
    last = ("mountpoint", "canmount")
    rest = [key for key in sorted(values) if key not in {*_AT_BIRTH, *_AFTER, *_OF_THE_ROOT, *last}]
    settings = {key: values[key] for key in (*rest, "mountpoint") if key in values}
    settings["canmount"] = values.get("canmount", "on")
    for key, value in settings.items():
        yield set_command(name, key, "none" if value == _UNLIMITED else value)
    if values.get("mountpoint") not in {"none", "legacy"} and settings["canmount"] != "off":
        yield shlex.join(["zfs", "mount", name])


def set_command(name: str, key: str, value: str) -> str:
    """Return what a shell does to set a property. Nothing in it can do anything to a terminal, whatever the value has."""
    setting = f"{key}={value}"
    if setting.isprintable():
        return shlex.join(["zfs", "set", setting, name])
    # A shell takes newlines from the end of what a command writes: the point is the end.
    plain = re.compile(rb"[A-Za-z0-9 _.:,/=+@-]")
    coded = "".join(chr(c) if plain.match(bytes([c])) else f"\\{c:03o}" for c in os.fsencode(setting))
    return f"""v=$(printf '{coded}.') && zfs set "${{v%.}}" {shlex.quote(name)}"""
