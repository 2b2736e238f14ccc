"""What a plan is made from, as data: the mount table, ZFS datasets and pools, Btrfs subvolumes. Nothing here looks anything up.

Facts can be saved as JSON (``kopiatomic plan --facts``) and planned again elsewhere (``--from-facts``). Names may hold any
bytes: those that are not UTF-8 are lone surrogates there, as everywhere in our JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, field
from typing import Any

from kopiatomic.errors import KopiatomicError
from kopiatomic.immutable import immutable
from kopiatomic.model.mounts import Mount

FORMAT = "kopiatomic-facts-1"

JAIL_NEEDS = "allow.mount, allow.mount.zfs; see docs/freebsd.md"
"""What a jail needs in addition to a dataset, for hints."""

NO_DATASET = (
    f"Has this jail a dataset of its own? On the host: zfs set jailed=on DATASET; zfs jail JAIL DATASET ({JAIL_NEEDS})."
)


@immutable
class ZfsDataset:
    """A dataset as ``zfs list`` shows it: ``kind`` is "filesystem" or "volume"; "-" stands for a missing value."""

    name: str
    kind: str
    canmount: str
    keystatus: str
    zoned: bool = False
    """Whether it is managed from inside a jail or a user namespace."""
    guid: str = ""
    """The id that stays the same when the dataset is renamed."""
    mountpoint: str = ""
    """The property. Where the dataset is really mounted is in the mount table."""

    @property
    def should_be_mounted(self) -> bool:
        """Whether ZFS would mount it at boot."""
        return self.canmount == "on" and self.mountpoint not in {"", "-", "none", "legacy"}


@immutable
class PropertySetting:
    """A user property of a dataset: its value, and ``source`` as in ``zfs get`` (``local``, ``inherited from tank``)."""

    value: str
    source: str


@immutable
class ZfsPool:
    """A line of ``zpool list``."""

    name: str
    health: str
    read_only: bool

    @property
    def suspended(self) -> bool:
        """Whether its devices do not respond."""
        return self.health == "SUSPENDED"


@immutable
class BtrfsSubvolume:
    """A subvolume and the path where it is visible. ``above`` is the path of the one it is nested in, if reached through that."""

    path: str
    id: int
    filesystem: str
    device: str
    above: str | None = None
    uuid: str = ""
    parent: str = ""
    """The UUID of the subvolume that it was made from, as a snapshot or by ``btrfs receive``; empty if there was none."""
    received: str = ""
    """The UUID that ``btrfs receive`` sets; a read-only snapshot keeps its source's."""
    read_only: bool = False
    holds: bool | None = None
    """Whether a nested subvolume contains anything; None if nobody looked, or it cannot be determined."""
    no_device: bool = False
    """Whether the device that it is mounted from no longer exists, so that nothing can be mounted from it."""
    clone: bool = False
    """Whether its filesystem is the copy of another one that is mounted as well, and has its UUID."""
    covered: bool = False
    """Whether its path leads elsewhere: something is mounted over it, or somebody keeps moving it."""
    too_long: bool = False
    """Whether its path is too long for any program to open. The middle of the path is then left out here."""
    owner: int | None = None
    """The owner of its top directory; None where that cannot be read."""


@immutable
class Facts:
    """Everything that :func:`kopiatomic.planning.plan.select` needs to know."""

    mounts: tuple[Mount, ...]
    datasets: Mapping[str, ZfsDataset]
    pools: Mapping[str, ZfsPool]
    subvolumes: tuple[BtrfsSubvolume, ...]
    resolved: Mapping[str, str]
    """The paths that were named, with symbolic links resolved."""
    properties: Mapping[str, PropertySetting] = field(default_factory=dict)
    """The property that selects (``kopiatomic:backup``), of datasets that have it or inherit it, and of its origins."""
    directories: frozenset[str] = frozenset()
    """The paths in question that are directories now; of the mount points of what is not mounted, only the empty ones."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes in use on other filesystems, by mount point; only of those that can be queried without blocking."""
    loop_files: Mapping[str, str] = field(default_factory=dict)
    """The backing files of loop devices, by device."""
    spelled: Mapping[str, str] = field(default_factory=dict)
    """The excluded paths that their directories spell differently, and that spelling."""
    at_boot: Mapping[str, str] = field(default_factory=dict)
    """Where /etc/fstab mounts datasets at boot that are not mounted now, by dataset."""
    fstab_problem: str = ""
    """Why that is unknown, if some dataset is mounted by /etc/fstab or by hand."""
    movers: Mapping[str, str] = field(default_factory=dict)
    """In place: who other than root can replace what is at a path (:func:`kopiatomic.system.safety.look`)."""
    jailed: bool = False
    """Whether this is a FreeBSD jail: it manages the datasets that are ``jailed``, and only sees their parents."""
    room: int | None = None
    """How many more mounts are possible (``Host.room``); None: any number."""


def dump(facts: Facts) -> str:
    """Return facts as JSON text."""
    document = {
        "format": FORMAT,
        "mounts": [asdict(mount) for mount in facts.mounts],
        "datasets": [asdict(dataset) for dataset in facts.datasets.values()],
        "pools": [asdict(pool) for pool in facts.pools.values()],
        "subvolumes": [asdict(subvolume) for subvolume in facts.subvolumes],
        "resolved": dict(facts.resolved),
        "properties": {name: asdict(setting) for name, setting in facts.properties.items()},
        "directories": sorted(facts.directories),
        "sizes": dict(facts.sizes),
        "loop_files": dict(facts.loop_files),
        "spelled": dict(facts.spelled),
        "at_boot": dict(facts.at_boot),
        "fstab_problem": facts.fstab_problem,
        "movers": dict(facts.movers),
        "jailed": facts.jailed,
        "room": facts.room,
    }
    return json.dumps(document, indent=1)


def load(text: str) -> Facts:
    """Read what :func:`dump` wrote. Raises KopiatomicError."""
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']!r}, not {FORMAT!r}")
        return _facts(document)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KopiatomicError(
            f"these are no facts that 'kopiatomic plan --facts' has written: {type(error).__name__}: {error}",
            kind="bad-facts",
            hint="Give the whole file, unchanged, as the same version wrote it.",
        ) from None


def _facts(document: Mapping[str, Any]) -> Facts:
    mounts = []
    for item in document["mounts"]:
        lists = {key: tuple(item[key]) for key in ("options", "super_options", "propagation")}
        mounts.append(Mount(**{**item, **lists}))
    return Facts(
        mounts=tuple(mounts),
        datasets={item["name"]: ZfsDataset(**item) for item in document["datasets"]},
        pools={item["name"]: ZfsPool(**item) for item in document["pools"]},
        subvolumes=tuple(BtrfsSubvolume(**item) for item in document["subvolumes"]),
        resolved=dict(document["resolved"]),
        properties={name: PropertySetting(**item) for name, item in document["properties"].items()},
        directories=frozenset(document["directories"]),
        sizes=dict(document["sizes"]),
        loop_files=dict(document["loop_files"]),
        spelled=dict(document["spelled"]),
        at_boot=dict(document["at_boot"]),
        fstab_problem=str(document["fstab_problem"]),
        movers=dict(document["movers"]),
        jailed=document.get("jailed", False),
        room=document.get("room"),
    )
