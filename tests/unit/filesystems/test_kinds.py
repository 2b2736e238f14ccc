"""The kinds of filesystem are values: what is outside of their folders asks them, and compares no names."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import kopiatomic
from kopiatomic.filesystems import KINDS, backends
from kopiatomic.platforms.linux.platform import LinuxPlatform
from kopiatomic.system import btrfs
from tests.unit.test_layers import imports, modules

PACKAGE = Path(kopiatomic.__file__).parent

OWN = ("filesystems/", "platforms/freebsd/")
"""Where a kind is known by its name: its own folder, and a system that has only one."""

COMPARING: set[str] = set()
"""The modules besides that compare a name with that of a kind. No other may be added."""

KNOWING: set[str] = set()
"""The modules besides that import something of one kind. No other may be added."""


def _is_a_kind(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.split("-")[0] in KINDS


def _comparisons(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.MatchValue) and any(map(_is_a_kind, ast.walk(node))):
            yield node


@pytest.mark.parametrize(
    "code",
    [
        'mount.fstype == "zfs"',
        '"btrfs" != kind',
        'kind in {"zfs", "btrfs"}',
        'leftover.kind == "zfs-snapshot"',
        'match kind:\n    case "zfs" | "btrfs":\n        pass',
    ],
)
def test_a_comparison_with_a_kind_is_seen(code: str) -> None:
    assert list(_comparisons(ast.parse(code)))


def test_nothing_outside_compares_with_the_name_of_a_kind() -> None:
    files = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    comparing = {
        name
        for name, path in files.items()
        if not name.startswith(OWN) and any(_comparisons(ast.parse(path.read_text())))
    }
    assert comparing == COMPARING


def test_nothing_outside_imports_one_kind() -> None:
    known = modules()
    folders = tuple(f"filesystems.{name}." for name in KINDS)
    knowing = {
        f"{name}: {imported}"
        for name, path in known.items()
        for imported in imports(path, known)
        if not name.startswith("filesystems") and imported.startswith(folders)
    }
    assert knowing == KNOWING


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_has_its_folder_and_its_backend(name: str) -> None:
    kind = KINDS[name]
    assert (kind.name, kind.module) == (name, f"kopiatomic.filesystems.{name}.backend")
    assert backends.of(kind).leftovers.KIND.split("-")[0] == name


def test_every_kind_is_in_the_schema_and_can_be_mounted_on_linux() -> None:
    schema = json.loads((PACKAGE / "output/run.schema.json").read_text())
    assert schema["$defs"]["filesystem"]["enum"] == list(KINDS) == list(LinuxPlatform().filesystems)


def test_btrfs_is_mounted_at_its_top_level() -> None:
    assert KINDS["btrfs"].mounting("path", "/dev/x").data == f"subvolid={btrfs.TOP_LEVEL}"
