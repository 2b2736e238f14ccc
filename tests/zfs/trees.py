"""Random trees of ZFS datasets, as data: drawn from a seed, and the same for the same seed everywhere.

A tree says what there is (datasets, their properties and files) and in which order what is mounted where. Names begin with
``tank`` or ``lake``, paths with ``/``: what stands for the pools and for the folder that all lies in is chosen where it is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

SIZE = 200
POOLS = ("tank", "lake")
_DEEPEST = 8

_NAMES = ("d{}", "d{}", "d{}", "with space {}", " before{}", "behind{} ", "a:b.{}", "-{}", "UPPER_{}")
_PLACES = (
    "p{}",
    "p{}",
    "100%{}",
    "zürich-{}",
    "tab\t{}",
    "line\n{}",
    "quo'te\"{}",
    "back\\slash{}",
    "#{}",
    "\udcff{}",
    " {} ",
)


@dataclass
class Node:
    """A dataset: what is set on it, its files (path in it, contents; None stands for a directory), where it is mounted."""

    name: str
    volume: bool = False
    canmount: str = "on"
    mountpoint: str | None = None
    """As set on it; None is inherited."""
    readonly: bool = False
    backup: str | None = None
    """kopiatomic:backup as set on it."""
    files: dict[str, str | None] = field(default_factory=dict)
    points: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Mount:
    """A step: something is mounted. ``source`` is a dataset's name, for a bind a path; a tmpfs has none."""

    how: str
    source: str
    point: str


@dataclass(frozen=True)
class Tree:
    """Datasets, parents first, and what is mounted, in order."""

    nodes: Mapping[str, Node]
    mounts: Sequence[Mount]

    def place(self, name: str) -> str:
        """The mountpoint property in effect: a path, ``none`` or ``legacy``."""
        own = self.nodes[name].mountpoint
        if own is not None:
            return own
        above, _, last = name.rpartition("/")
        inherited = self.place(above)
        return f"{inherited}/{last}" if inherited.startswith("/") else inherited

    def backup(self, name: str) -> str:
        """What kopiatomic:backup says of a dataset: on, off or nothing."""
        own = self.nodes[name].backup
        if own is not None:
            return "off" if own == "children" else own
        above = name.rpartition("/")[0]
        while above:
            value = self.nodes[above].backup
            if value is not None:
                return "on" if value == "children" else value
            above = above.rpartition("/")[0]
        return ""

    def below(self, name: str) -> Iterator[str]:
        return (other for other in self.nodes if other.startswith(f"{name}/"))


def draw(chance: Random) -> Tree:
    """A tree of 200 datasets."""
    return _Drawing(chance).tree()


class _Drawing:
    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._count = 0
        self._nodes: dict[str, Node] = {}
        self._mounts: list[Mount] = []
        self._late: list[Mount] = []
        self._tree = Tree(self._nodes, self._mounts)

    def _one_in(self, n: float) -> bool:
        return self._chance.random() * n < 1

    def _odd(self, shapes: Sequence[str]) -> str:
        self._count += 1
        return self._chance.choice(shapes).format(self._count)

    def tree(self) -> Tree:
        tank = self._add(Node("tank", mountpoint="/tank"))
        tank.points.append("/tank")
        if self._one_in(2):
            # The pool's own dataset is mounted when it is made.
            place = self._chance.choice(["/lake", "/tank/dir0/lake"])
            self._add(Node("lake", mountpoint=place)).points.append(place)
        while len(self._nodes) < SIZE:
            self._grow()
        self._mounts += self._late
        for _ in range(self._chance.randint(14, 24)):
            self._cover()
        return self._tree

    # Datasets

    def _add(self, node: Node) -> Node:
        self._nodes[node.name] = node
        if not node.volume:
            self._fill(node)
        return node

    def _fill(self, node: Node) -> None:
        node.files |= {"dir0": None, "dir1": None}
        for shape in self._chance.sample(("{}", "dir0/{}", "dir1/{}", "dir1/deep {}/{}", "dir0/hidden/{}"), 3):
            name = self._odd(_PLACES)
            node.files[shape.format(*[name] * shape.count("{}"))] = f"{name} of {node.name} {self._chance.random()}"

    def _grow(self) -> None:
        above = self._chance.choice([n for n in self._nodes.values() if not n.volume and n.name.count("/") < _DEEPEST])
        name = f"{above.name}/{self._odd(_NAMES)}"
        if self._one_in(30):
            self._add(Node(name, volume=True))
            return
        node = Node(name, canmount=self._chance.choices(["on", "noauto", "off"], [84, 9, 7])[0])
        node.readonly = self._one_in(20)
        node.backup = self._chance.choices([None, "on", "off", "children"], [88, 6, 2, 4])[0]
        kind = self._chance.choices(["inherited", "elsewhere", "none", "legacy"], [80, 13, 2, 5])[0]
        if kind != "inherited":
            node.mountpoint = self._new_place() if kind == "elsewhere" else kind
        self._add(node)
        self._mount(node)

    def _mount(self, node: Node) -> None:
        place = self._tree.place(node.name)
        usual = place.startswith("/") and node.canmount != "off"
        often = {"on": 0.92, "noauto": 0.5}.get(node.canmount, 0) if usual else 0.6 if place == "legacy" else 0.05
        if self._chance.random() < often:
            # Not where the property says: mount -t zfs.
            node.points.append(place if usual and not self._one_in(25) else self._new_place())
            if self._one_in(25):
                node.points.append(self._new_place())
        for position, point in enumerate(node.points):
            late = self._one_in(30)
            step = Mount("zfs", node.name, point)
            if position and self._one_in(2):
                step = Mount("bind", node.points[0], point)
            (self._late if late else self._mounts).append(step)

    # Places

    def _mounted(self) -> Node:
        return self._chance.choice([node for node in self._nodes.values() if node.points])

    def _quiet(self) -> Node:
        """One with little below it: what covers it does not hide the whole tree."""
        while True:
            node = self._mounted()
            if len(list(self._tree.below(node.name))) < 5 and "/" in node.name:
                return node

    def _new_place(self) -> str:
        if self._one_in(2) or len(self._nodes) < 20:
            return f"/spots/{self._odd(_PLACES)}"
        if self._one_in(4):
            return self._quiet().points[0]
        return f"{self._mounted().points[0]}/{self._chance.choice(['dir0', 'dir1/deep', 'made'])}/{self._odd(_PLACES)}"

    def _cover(self) -> None:
        """Mount something over what is there."""
        directory = f"{self._mounted().points[0]}/dir{self._chance.randrange(2)}"
        what = self._chance.choice(["tmpfs", "tmpfs", "tmpfs whole", "inside", "bind", "bind", "bind whole", "again"])
        if what == "tmpfs":
            self._mounts.append(Mount("tmpfs", "", directory))
        elif what == "tmpfs whole":
            self._mounts.append(Mount("tmpfs", "", self._quiet().points[0]))
        elif what == "inside":
            # A dataset in a tmpfs in a dataset.
            self._mounts.append(Mount("tmpfs", "", directory))
            self._mounts.append(Mount("zfs", self._quiet().name, f"{directory}/{self._odd(_PLACES)}"))
        elif what == "bind":
            target = self._chance.choice([self._new_place(), f"{self._mounted().points[0]}/dir1"])
            self._mounts.append(Mount("bind", directory, target))
        else:
            source = self._mounted()
            how = ("bind", source.points[0]) if what == "bind whole" else ("zfs", source.name)
            self._mounts.append(Mount(*how, self._new_place()))
