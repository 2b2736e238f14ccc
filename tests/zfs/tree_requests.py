"""What is asked of a random tree, drawn as well."""

from __future__ import annotations

from random import Random

from tests.zfs.tree_oracle import Asking, Excluding, Live

KINDS = ("pools", "datasets", "path", "paths", "exclude", "property", "unmounted")


def draw(kind: str, live: Live, chance: Random) -> Asking:
    """A request of this kind."""
    return {
        "pools": _pools,
        "datasets": _datasets,
        "path": _path,
        "paths": _paths,
        "exclude": _exclude,
        "property": _property,
        "unmounted": _unmounted,
    }[kind](live, chance)


def _pools(live: Live, chance: Random) -> Asking:
    return Asking(list(live.there.pools.values()), recursive=True)


def _datasets(live: Live, chance: Random) -> Asking:
    return Asking(
        [_dataset(live, chance) for _ in range(chance.randint(1, 3))],
        recursive=chance.random() < 0.7,
    )


def _dataset(live: Live, chance: Random) -> str:
    """Mostly one that can be taken; that one cannot is as likely to be refused as to be seen."""
    nodes = live.there.tree.nodes.values()
    names = [live.there.name(node.name) for node in nodes]
    return chance.choice(names if chance.random() < 0.1 else [name for name in names if live.reached(name)])


def _path(live: Live, chance: Random) -> Asking:
    return Asking(paths=[_directory(live, chance)], recursive=chance.random() < 0.8)


def _paths(live: Live, chance: Random) -> Asking:
    """Several, some of them in trees of others."""
    first = _directory(live, chance)
    inside = [
        path
        for path, e in live.paths.items()
        if path.startswith(f"{first}/") and e.kind == "d" and _is_fine(live, path)
    ]
    more = [chance.choice(inside)] if inside else []
    return Asking(
        paths=[first, *more, _directory(live, chance)],
        recursive=chance.random() < 0.4,
        exclude=_patterns(live, chance, chance.randint(0, 1)),
    )


def _directory(live: Live, chance: Random) -> str:
    """A directory in a dataset, its top as likely; now and then anything there is."""
    anything = chance.random() < 0.05
    tops = chance.random() < 0.4
    paths = [
        path
        for path, entry in live.paths.items()
        if anything or (entry.kind == "d" and (not tops or path in live.seen) and _is_fine(live, path))
    ]
    return chance.choice(paths)


def _is_fine(live: Live, path: str) -> bool:
    holder = live.holder(path)
    return holder.fstype == "zfs" and holder.root == "/"


def _exclude(live: Live, chance: Random) -> Asking:
    return Asking(
        list(live.there.pools.values()), recursive=True, exclude=_patterns(live, chance, chance.randint(1, 5))
    )


def _patterns(live: Live, chance: Random, count: int) -> list[Excluding]:
    names = [live.there.name(drawn) for drawn in live.there.tree.nodes if "/" in drawn]
    tops = [point for point, mount in live.seen.items() if mount.fstype == "zfs" and "*" not in point]
    return [Excluding(chance.choice(chance.choice([names, tops])), chance.choice([0, 1, None])) for _ in range(count)]


def _property(live: Live, chance: Random) -> Asking:
    pools = list(live.there.pools.values())
    names = [_dataset(live, chance) for _ in range(2)] if chance.random() < 0.3 else pools
    return Asking(names, by_property=True, exclude=_patterns(live, chance, chance.randint(0, 2)))


def _unmounted(live: Live, chance: Random) -> Asking:
    return Asking(
        list(live.there.pools.values()),
        recursive=True,
        include_unmounted=True,
        exclude=_patterns(live, chance, chance.randint(0, 2)),
    )
