"""Makes a drawn tree for real, in one process.

`zfs create` and `zfs mount` would take 0.3 s and more for each dataset in the emulated machine.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kopiatomic.system import libzfs_core, linux
from tests.support.filesystems import imported_pool
from tests.zfs.trees import POOLS, Mount, Node, Tree

_FILESYSTEM, _VOLUME = 2, 3
_CANMOUNT = {"off": 0, "on": 1, "noauto": 2}
_POOL_BYTES = 512 << 20


@dataclass(frozen=True)
class Planted:
    """A tree that is there: the folder that all of it is mounted in, and what its pools are called."""

    tree: Tree
    base: str
    pools: dict[str, str]
    spare: str
    """A directory beside it, to mount something for a moment."""

    def name(self, drawn: str) -> str:
        """The dataset's real name."""
        pool, slash, rest = drawn.partition("/")
        return self.pools[pool] + slash + rest

    def drawn(self, name: str) -> str:
        pool, slash, rest = name.partition("/")
        return next(drawn for drawn, real in self.pools.items() if real == pool) + slash + rest

    def path(self, drawn: str) -> str:
        return self.base + drawn

    @contextmanager
    def aside(self, name: str) -> Iterator[str]:
        """A dataset mounted at the spare place, whatever else is mounted where."""
        try:
            linux.mount(name, self.spare, "zfs", 0, "rw")
        except OSError:
            # It is mounted read-only.
            linux.mount(name, self.spare, "zfs", linux.MS_RDONLY)
        try:
            yield self.spare
        finally:
            linux.detach(self.spare)


@contextmanager
def planted(tree: Tree, folder: Path) -> Iterator[Planted]:
    """Make it below ``folder``; all of it is gone afterwards."""
    base, spare = folder / "base", folder / "spare"
    base.mkdir()
    spare.mkdir()
    there = Planted(tree, str(base), {}, str(spare))
    linux.mount("base", there.base, "tmpfs", 0, "mode=0755")
    with ExitStack() as pools, ExitStack() as mounts:
        # With it goes all that is mounted in it, so that the pools can go.
        mounts.callback(linux.detach, there.base)
        for name in (name for name in POOLS if name in tree.nodes):
            node = tree.nodes[name]
            point = Path(there.path(node.points[0]))
            point.parent.mkdir(exist_ok=True)
            there.pools[name] = pools.enter_context(imported_pool(folder / name, point, _POOL_BYTES)).name
            _fill(str(point), node)
        _create(there)
        _mount(there)
        yield there


# Datasets


def _create(there: Planted) -> None:
    """Level by level, several at a time: what is made at once shares one transaction group."""
    levels: dict[int, list[Node]] = {}
    for node in there.tree.nodes.values():
        if "/" in node.name:
            levels.setdefault(node.name.count("/"), []).append(node)
    libzfs_core.prepare()
    try:
        with ThreadPoolExecutor(16) as together:
            for _, nodes in sorted(levels.items()):
                list(together.map(lambda node: _create_one(there, node), nodes))
    finally:
        # A run is a fork of this process, and opens the library's connection for itself.
        libzfs_core._core().libzfs_core_fini()
        libzfs_core._core.cache_clear()


def _create_one(there: Planted, node: Node) -> None:
    with libzfs_core._List() as properties:
        if node.volume:
            _add_number(properties, "volsize", 1 << 20)
        elif node.canmount != "on":
            _add_number(properties, "canmount", _CANMOUNT[node.canmount])
        if node.readonly:
            _add_number(properties, "readonly", 1)
        if node.mountpoint is not None:
            where = there.path(node.mountpoint) if node.mountpoint.startswith("/") else node.mountpoint
            properties.add_string("mountpoint", where)
        if node.backup is not None:
            properties.add_string("kopiatomic:backup", node.backup)
        name, kind = os.fsencode(there.name(node.name)), ctypes.c_int(_VOLUME if node.volume else _FILESYSTEM)
        number = libzfs_core._core().lzc_create(name, kind, properties.pointer, None, ctypes.c_uint(0))
    if number:
        raise OSError(number, os.strerror(number), node.name)


def _add_number(properties: libzfs_core._List, name: str, value: int) -> None:
    add = libzfs_core._nvpair().nvlist_add_uint64
    assert add(properties.pointer, name.encode(), ctypes.c_uint64(value)) == 0


# Mounts and files


def _mount(there: Planted) -> None:
    filled = set(there.pools)
    for step in there.tree.mounts:
        _take_step(there, step, filled)
    _fill_unmounted(there, [n for n in there.tree.nodes.values() if n.name not in filled and not n.volume])
    for node in there.tree.nodes.values():
        if node.readonly:
            # Of the filesystem, not of this mount alone: wherever else it is mounted.
            with there.aside(there.name(node.name)) as point:
                linux.mount("none", point, "zfs", linux.MS_REMOUNT | linux.MS_RDONLY)


def _fill_unmounted(there: Planted, nodes: Sequence[Node]) -> None:
    """All of them are mounted before the first is unmounted, which must wait until everything is written."""
    points = [f"{there.spare}/{position}" for position in range(len(nodes))]
    for point, node in zip(points, nodes, strict=True):
        os.mkdir(point)
        linux.mount(there.name(node.name), point, "zfs", 0, "rw")
        _fill(point, node)
    for point in points:
        linux.detach(point)
        os.rmdir(point)


def _take_step(there: Planted, step: Mount, filled: set[str]) -> None:
    point = there.path(step.point)
    source = there.path(step.source)
    if step.how == "bind" and not os.path.isdir(source):
        # It was covered in the meantime.
        return
    try:
        os.makedirs(point, exist_ok=True)
    except FileExistsError:
        # A file stands there.
        return
    if step.how == "tmpfs":
        linux.mount("covering", point, "tmpfs", 0, "size=1M")
        Path(point, "in memory").write_bytes(os.fsencode(f"on {step.point}"))
    elif step.how == "bind":
        linux.mount(source, point, None, linux.MS_BIND)
    else:
        linux.mount(there.name(step.source), point, "zfs", 0, "rw")
        if step.source not in filled:
            _fill(point, there.tree.nodes[step.source])
            filled.add(step.source)


def _fill(point: str, node: Node) -> None:
    for path, text in node.files.items():
        whole = os.path.join(point, path)
        if text is None:
            os.makedirs(whole, exist_ok=True)
            continue
        os.makedirs(os.path.dirname(whole), exist_ok=True)
        with open(whole, "wb") as file:
            file.write(os.fsencode(text))
    os.symlink("dir0", os.path.join(point, "link"))
