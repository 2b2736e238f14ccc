"""What must come of a plan and a run on a random tree, found without the planner.

The live tree is walked (os.walk, st_dev) and the kernel is asked which mount each mount point leads to (fdinfo); the rest is
read from mountinfo and from what was drawn. Nothing is imported from the program's plan, selection, gathering or mount table.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kopiatomic.text import printable
from tests.zfs.planting import Planted
from tests.zfs.tree_listing import Entry, listing


def under(path: str, top: str) -> bool:
    """Whether a path is another or lies in it."""
    return path == top or path.startswith(top.rstrip("/") + "/")


def above(path: str) -> Iterator[str]:
    """The directories above a path, the nearest first."""
    while path != "/":
        path = os.path.dirname(path)
        yield path


# What is there


@dataclass(frozen=True)
class Mounted:
    """A line of mountinfo."""

    id: int
    device: int
    root: str
    point: str
    fstype: str
    source: str


def mount_id(path: str) -> int:
    """Which mount a path leads to, as the kernel says."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))
    finally:
        os.close(fd)


def mount_table() -> list[Mounted]:
    with open("/proc/self/mountinfo", "rb") as file:
        return [_mounted(line) for line in file.read().split(b"\n") if line]


def _mounted(line: bytes) -> Mounted:
    words = [os.fsdecode(re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), word)) for word in line.split(b" ")]
    major, minor = words[2].split(":")
    tail = words[words.index("-", 6) + 1 :]
    return Mounted(int(words[0]), os.makedev(int(major), int(minor)), words[3], words[4], tail[0], tail[1])


class Live:
    """The live tree: what is mounted and can be reached, and every path in it."""

    def __init__(self, there: Planted) -> None:
        self.there = there
        self.table = [m for m in mount_table() if under(m.point, there.base)]
        self.seen = {m.point: m for m in self.table if self._reached(m)}
        self.paths = {there.base + path: entry for path, entry in listing(there.base).items()}
        self.owner = {m.device: m.source for m in self.table if m.fstype == "zfs"}
        self._contents: dict[str, dict[str, Entry]] = {}

    @staticmethod
    def _reached(mount: Mounted) -> bool:
        try:
            return mount_id(mount.point) == mount.id
        except (FileNotFoundError, NotADirectoryError):
            return False

    def holder(self, path: str) -> Mounted:
        """The mount that a path of the tree lies in."""
        there = mount_id(path)
        return next(m for m in self.table if m.id == there)

    def whole(self, name: str) -> list[Mounted]:
        """All mounts of a whole dataset, reached or not."""
        return [m for m in self.table if m.fstype == "zfs" and m.source == name and m.root == "/"]

    def reached(self, name: str) -> list[str]:
        """Where a dataset is to be seen whole."""
        return [m.point for m in self.whole(name) if self.seen.get(m.point) == m]

    def is_mounted(self, name: str) -> bool:
        """Whole or in part, reached or not."""
        return any(m.fstype == "zfs" and m.source == name for m in self.table)

    def contents(self, name: str) -> dict[str, Entry]:
        """All that is in a dataset itself, also what is covered."""
        if name not in self._contents:
            with self.there.aside(name) as top:
                self._contents[name] = listing(top)
        return self._contents[name]


# What is asked


@dataclass(frozen=True)
class Excluding:
    """A pattern of --exclude: ``base`` itself (depth 0), what lies directly in it (1), all that lies in it (None)."""

    base: str
    depth: int | None

    @property
    def pattern(self) -> str:
        return self.base + {0: "", 1: "/*", None: "/**"}[self.depth]

    def fits(self, name: str) -> bool:
        if self.depth == 0:
            return name == self.base
        return name.startswith(f"{self.base}/") and (self.depth is None or "/" not in name[len(self.base) + 1 :])


@dataclass(frozen=True)
class Asking:
    """What a plan and a run are asked for."""

    names: Sequence[str] = ()
    paths: Sequence[str] = ()
    recursive: bool = False
    exclude: Sequence[Excluding] = ()
    by_property: bool = False
    include_unmounted: bool = False

    @property
    def words(self) -> list[str]:
        flags = {"-r": self.recursive, "--by-property": self.by_property, "--include-unmounted": self.include_unmounted}
        excluding = [word for e in self.exclude for word in ("--exclude", e.pattern)]
        return [*(flag for flag, given in flags.items() if given), *excluding, "--", *self.names, *self.paths]


# What must come of it


@dataclass
class Expected:
    """The outcome that the manual promises. ``places`` of a dataset are sets of places, each of which is right.

    ``maybe`` are those of which the manual leaves open whether they are excluded: of several mounts one fits.
    """

    refusals: set[str] = field(default_factory=set)
    places: dict[str, list[set[str]]] = field(default_factory=dict)
    missed: set[str] = field(default_factory=set)
    maybe: set[str] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)
    """Datasets all of which is asked for."""


def expect(live: Live, asking: Asking) -> Expected:
    return _Oracle(live, asking).expected


class _Oracle:
    def __init__(self, live: Live, asking: Asking) -> None:
        self._live, self._there, self._asking = live, live.there, asking
        self._tree = self._there.tree
        self._named: set[str] = set()
        self._parts: dict[str, set[str]] = {}
        """Paths in datasets, and through which mounts they were named: in one of these places they all appear."""
        self._through: dict[str, set[str]] = {}
        self._excluded: set[str] = set()
        self.expected = Expected()
        self._whole = self.expected.whole
        self._ask()
        for name in [self._there.name(drawn) for drawn in self._tree.nodes]:
            if name in self._whole or name in self._parts:
                self._decide(name)
        self._refuse()

    def _ask(self) -> None:
        asking = self._asking
        if asking.by_property:
            scopes = asking.names
            for drawn in self._tree.nodes:
                name = self._there.name(drawn)
                if self._tree.backup(drawn) == "on" and any(under(name, scope) for scope in scopes):
                    self._whole.add(name)
            return
        for name in asking.names:
            self._ask_whole(name)
        for path in asking.paths:
            self._ask_path(os.path.realpath(path))

    def _ask_whole(self, name: str) -> None:
        self._named.add(name)
        self._whole.add(name)
        if self._asking.recursive:
            self._whole |= set(self._below(name))

    def _below(self, name: str) -> Iterator[str]:
        return map(self._there.name, self._tree.below(self._there.drawn(name)))

    def _ask_path(self, path: str) -> None:
        mount = self._live.holder(path)
        if mount.fstype != "zfs":
            self.expected.refusals.add("unsupported-filesystem")
        elif mount.root != "/":
            self.expected.refusals.add("bind-mount")
        elif path == mount.point:
            self._ask_whole(mount.source)
        elif not os.path.isdir(path):
            self.expected.refusals.add("not-a-directory")
        else:
            self._named.add(mount.source)
            self._parts.setdefault(mount.source, set()).add(path[len(mount.point) :])
            self._through.setdefault(mount.source, set()).add(mount.point)
            if self._asking.recursive:
                self._whole |= {name for name in self._below(mount.source) if self._belongs_in(name, path)}

    def _belongs_in(self, name: str, path: str) -> bool:
        """Whether a dataset is mounted below a path, or should be."""
        mounts = [m.point for m in self._live.whole(name)]
        return any(under(point, path) for point in mounts or [self._property(name)])

    def _property(self, name: str) -> str:
        place = self._tree.place(self._there.drawn(name))
        return self._there.path(place) if place.startswith("/") else place

    def _decide(self, name: str) -> None:
        node = self._tree.nodes[self._there.drawn(name)]
        reached = self._live.reached(name)
        excluded = {any(e.fits(name) or e.fits(point) for e in self._asking.exclude) for point in reached or [""]}
        if excluded == {True}:
            self._excluded.add(name)
            return
        if name not in self._named and (node.backup == "children" or self._tree.backup(node.name) == "off"):
            return
        places = self._places(name, reached) if not node.volume else None
        if places:
            self.expected.places[name] = places
        elif not node.volume and (
            self._live.is_mounted(name) or (node.canmount == "on" and self._property(name).startswith("/"))
        ):
            self.expected.missed.add(name)
        if excluded == {True, False}:
            self.expected.maybe.add(name)

    def _places(self, name: str, reached: list[str]) -> list[set[str]] | None:
        """Where it may appear; nowhere if it is not taken."""
        if reached:
            parts = self._parts.get(name, set())
            if name in self._whole:
                return [{point} for point in reached]
            tops = {p for p in parts if not any(p != q and under(p, q) for q in parts)}
            return [{point + part for part in tops} for point in self._through[name]]
        if not self._asking.include_unmounted or name not in self._whole or self._live.whole(name):
            return None
        usual = self._property(name)
        if self._is_sure(name, usual):
            return [{usual}]
        return [{self._aside(name)}]

    def _is_sure(self, name: str, usual: str) -> bool:
        """Whether the place that the properties say is free, and in something that can be looked into."""
        if self._tree.nodes[self._there.drawn(name)].canmount == "off" or not usual.startswith("/"):
            return False
        claims = {
            self._property(other)
            for other in map(self._there.name, self._tree.nodes)
            if other in self._whole and other != name and self._tree.nodes[self._there.drawn(other)].canmount != "off"
        }
        if any(under(point, usual) for other in self._whole for point in self._live.reached(other)):
            # It would be in the way.
            return False
        between = list(itertools.takewhile(lambda directory: directory not in self._live.seen, above(usual)))
        free = usual not in self._live.seen and os.path.isdir(usual) and not os.listdir(usual)
        return free and not claims & {usual, *between}

    def _aside(self, name: str) -> str:
        """Below /.unmounted; what lies below a dataset that is there itself, in a directory beside it."""
        words = name.split("/")
        place = "/.unmounted"
        for position, word in enumerate(words):
            upper = "/".join(words[:position])
            there = any(p.startswith("/.unmounted/") for places in self.expected.places.get(upper, []) for p in places)
            place += f"@/{word}" if there else f"/{word}"
        return place

    def _refuse(self) -> None:
        """What makes plan and run fail."""
        expected = self.expected
        for name in self._named - expected.places.keys():
            node = self._tree.nodes[self._there.drawn(name)]
            if name in self._excluded:
                continue
            inside = self._asking.recursive and any(below in expected.places for below in self._below(name))
            if node.volume or name in expected.missed or not inside:
                expected.refusals.add("cannot-take")
        if not expected.places:
            expected.refusals.add("nothing-left")
        fixed = [place for places in expected.places.values() if len(places) == 1 for place in places[0]]
        if len(set(fixed)) != len(fixed):
            expected.refusals.add("same-place")


# What is in the view


def uncovered(live: Live, places: Iterable[str]) -> set[str]:
    """The mounts in the trees of what is taken that are not taken themselves."""
    taken = set(places)
    return {point for point in live.seen.keys() - taken if any(directory in taken for directory in above(point))}


def view(live: Live, places: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """All that must be in a view in which at these places these datasets appear, or a part (path in it, "/..." or empty)."""
    shown: dict[str, tuple[str, str]] = {}
    hollow = _hollow(live, set(places))
    for place, (name, part) in places.items():
        for path, entry in live.contents(name).items():
            if not under(path, part):
                continue
            where = place.rstrip("/") + path[len(part) :]
            first = next(p for p in (where, *above(where)) if p in places or (p in hollow and p != where))
            if first == place:
                shown[where] = entry.shown
    for place in places:
        shown |= dict.fromkeys(above(place), ("d", ""))
    shown[""] = shown.pop("/")
    return shown


def _hollow(live: Live, places: set[str]) -> set[str]:
    """Mount points of what is not taken, between what is and what is mounted in it: the frozen files below are not shown."""
    found: set[str] = set()
    for place in places:
        between: set[str] = set()
        for directory in above(place):
            if directory in places:
                found |= between
                break
            if directory in live.seen:
                between.add(directory)
    return found


def _said(live: Live, dataset: Mapping[str, Any]) -> set[str]:
    """Where else a dataset is mounted, as far as the plan says so."""
    mounts = [m for m in live.seen.values() if m.source == dataset["dataset"]]
    return {m.point for m in mounts if printable(m.point) in dataset["reason"]}


def unaccounted(
    live: Live,
    asking: Asking,
    expected: Expected,
    plan: Mapping[str, Any],
    shown: Mapping[str, Entry],
) -> list[str]:
    """The live files that are neither in the view nor named as not covered; there must be none."""
    datasets = plan["datasets"]
    places = {place for d in datasets for place in d["paths"]}
    left_out = {d["dataset"] for d in plan["left_out"]}
    named = {u["path"] for u in plan["uncovered"]}
    said = {d["dataset"]: _said(live, d) for d in datasets}
    asked = [os.path.realpath(path) for path in asking.paths]
    problems = []
    for path, entry in live.paths.items():
        directories = (path, *above(path))
        inside = any(directory in places for directory in directories)
        owner = live.owner.get(entry.device, "")
        if not inside and owner not in expected.whole and not any(under(path, top) for top in asked):
            continue
        found = shown.get(path)
        if found is not None and found.shown == entry.shown:
            continue
        if any(directory in named for directory in directories):
            continue
        if not inside and owner in left_out:
            continue
        if not inside and any(point in said.get(owner, ()) for point in directories):
            # Of what is mounted twice one place is shown, and the plan has said so.
            continue
        problems.append(f"{path!r} (of {owner or 'no dataset'})")
    return problems
