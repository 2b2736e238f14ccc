"""Facts for tests of the plan, made from a few words: mounts in the order in which they were made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from kopiatomic.model.facts import BtrfsSubvolume, Facts, PropertySetting, ZfsDataset, ZfsPool
from kopiatomic.model.mounts import Mount, holder, visible
from kopiatomic.model.plan import Plan
from kopiatomic.model.request import Request
from kopiatomic.paths import parents
from kopiatomic.planning.plan import select

FILESYSTEM = "11111111-2222-3333-4444-555555555555"
SUFFIX = "@kopiatomic_20261122T101112Z-01234567"


def mounts(*made: tuple[str, str, str]) -> tuple[Mount, ...]:
    """A mount table from (point, fstype, source), each mounted on what is seen at its point, as the kernel does."""
    table = [_mount(1, 0, "/", "ext4", "/dev/root")]
    for point, fstype, source in made:
        parent = holder(point, visible(table)).id
        table.append(_mount(len(table) + 1, parent, point, fstype, source))
    return tuple(table)


def _mount(id_: int, parent: int, point: str, fstype: str, source: str) -> Mount:
    source, _, root = source.partition(":")
    return Mount(id_, parent, f"0:{id_}", root or "/", point, fstype, source, ("rw",), ("rw",), ())


def zfs(name: str, kind: str = "filesystem", **columns: Any) -> ZfsDataset:
    return ZfsDataset(name, kind, **{"canmount": "on", "keystatus": "-", **columns})


def subvolume(path: str, id_: int, above: str | None = None, **more: Any) -> BtrfsSubvolume:
    usual = {"filesystem": FILESYSTEM, "device": "/dev/sdb", "uuid": f"{id_:032x}"}
    return BtrfsSubvolume(path=path, id=id_, above=above, **{**usual, **more})


def facts(
    *made: tuple[str, str, str],
    datasets: Iterable[ZfsDataset] = (),
    subvolumes: Iterable[BtrfsSubvolume] = (),
    pools: Iterable[ZfsPool] = (),
    resolved: dict[str, str] | None = None,
    directories: Iterable[str] = (),
    properties: dict[str, tuple[str, str]] | None = None,
    movers: dict[str, str] | None = None,
) -> Facts:
    """``made`` are mounts; paths are taken as they are unless ``resolved`` says where a link leads.

    Nobody besides root can move anything but what ``movers`` says.
    """
    table = mounts(*made)
    subvolumes, directories = tuple(subvolumes), tuple(directories)
    found = {mount.point: mount.point for mount in table} | {s.path: s.path for s in subvolumes}
    paths = [*found, *directories, *(resolved or {}).values()]
    safe = {entry: "" for path in paths for entry in (path, *parents(path))}
    return Facts(
        mounts=table,
        datasets={d.name: d for d in datasets},
        pools={p.name: p for p in pools},
        subvolumes=tuple(subvolumes),
        resolved=found | {path: path for path in directories} | (resolved or {}),
        directories=frozenset(directories),
        properties={name: PropertySetting(*setting) for name, setting in (properties or {}).items()},
        movers=safe | (movers or {}),
    )


def many(count: int) -> Facts:
    """So many datasets, all mounted. What is seen at a point is not looked for again at each, as :func:`facts` does."""
    names = [f"tank/d{number:05d}" for number in range(count)]
    known = facts(("/tank", "zfs", "tank"), datasets=map(zfs, names))
    root, template = known.mounts
    made = (replace(template, id=10 + n, parent=1, point=f"/{name}", source=name) for n, name in enumerate(names))
    return replace(known, mounts=(root, *made))


def plan(known: Facts, *names: str, everything: bool = False, recursive: bool = False, **more: Any) -> Plan:
    return select(known, Request(names, everything, recursive, "/kopia", SUFFIX, **more))


def places(chosen: Plan) -> list[tuple[str, str]]:
    return [(taken.dataset.name, taken.place) for taken in chosen.taken]
