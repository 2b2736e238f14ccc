"""The layers of the package: an arrow of imports only points down. The table in docs/architecture.md is generated from here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import kopiatomic
from tests.support.programs import SOURCE

PACKAGE = Path(kopiatomic.__file__).parent
ARCHITECTURE = SOURCE.parent / "docs" / "architecture.md"

LAYERS = {
    "cli": "parsers and help, one module for each command",
    "commands": "what each command does; `failures.py` turns errors into exit codes",
    "monitoring": "what is told of runs that should have been",
    "runs": "the processes of a run, its order of things, its record, its recovery",
    "schedules": "systemd and cron: the files of both, and who may change them",
    "planning": "what there is (`planning/gather.py`), and what of it is taken (`planning/plan.py`)",
    "output": "console, JSON document, history",
    "config": "what a person or a file says about a run",
    "engines": "kopia, restic, Borg and any command; what they share",
    "platforms": "how processes and view hang together on Linux and on FreeBSD",
    "hooks": "what runs around the snapshots",
    "trees": "a directory tree: its walk, its metadata record, and what applies and compares that",
    "filesystems": "ZFS and Btrfs: listing, selection, snapshots, leftovers",
    "state": "what is kept between runs and shared by them: records, locks, marks, directories",
    "secrets": "what is a secret, where it stands, and how it is masked",
    "system": "the only modules that start processes, call ctypes or read the mount table",
    "model": "plain data that the others share",
    "": "`errors`, `immutable`, `paths`, `presence`, `text`: what everybody uses",
}
"""From the top down. The last is what lies at the root of the package."""

PURE = (
    "model/*",
    "planning/plan",
    "planning/fitting",
    "planning/shielding",
    "filesystems/__init__",
    "filesystems/**/kind",
    "filesystems/**/selection",
)
"""Modules that nothing of ``system/`` reaches, directly or through others."""

ENTRY = ("__main__",)
"""What only starts the topmost layer."""


def modules() -> dict[str, Path]:
    """All modules by name, relative to the package; the package itself is the empty name."""
    named = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix("__init__").rstrip("/").replace("/", "."): path for name, path in named.items()}


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that one imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            first, _, module = node.module.partition(".")
            for alias in node.names if first == "kopiatomic" else ():
                whole = f"{module}.{alias.name}".lstrip(".")
                yield whole if whole in known else module
        elif isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] for a in node.names if a.name.partition(".")[0] == "kopiatomic")


def layer_of(module: str) -> str:
    first, dot, _ = module.partition(".")
    return first if dot or (first and (PACKAGE / first).is_dir()) else ""


def test_every_import_points_down() -> None:
    known, order = modules(), list(LAYERS)
    up = [
        f"{name} imports {imported}"
        for name, path in known.items()
        for imported in imports(path, known)
        if name not in ENTRY and order.index(layer_of(name)) > order.index(layer_of(imported))
    ]
    assert up == []


def test_every_package_is_a_layer_and_every_layer_a_package() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(LAYERS) - {""}


def test_no_module_imports_itself_through_others() -> None:
    known = modules()
    arrows = {name: {i for i in imports(path, known) if i != name} for name, path in known.items()}
    left = dict(arrows)
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    assert sorted(left) == []


def test_the_pure_modules_reach_nothing_of_the_system() -> None:
    known = modules()
    for pattern in PURE:
        found = [path.relative_to(PACKAGE) for path in PACKAGE.glob(f"{pattern}.py")]
        assert found, f"no module is {pattern}"
        for start in found:
            # The package of a module is imported with it, and is empty or a face.
            first = start.with_suffix("").as_posix().removesuffix("/__init__").replace("/", ".")
            waiting, seen = [first], set[str]()
            while waiting:
                name = waiting.pop()
                if name in seen:
                    continue
                seen.add(name)
                waiting += imports(known[name], known)
            assert [name for name in seen if layer_of(name) == "system"] == [], start


def table() -> str:
    rows = [f"| {f'`{name}/`' if name else 'at the root'} | {what} |" for name, what in LAYERS.items()]
    return "\n".join(["| layer | what is in it |", "|---|---|", *rows])


def test_the_table_of_layers_is_that_of_the_documentation() -> None:
    assert table() in ARCHITECTURE.read_text(), f"put this table into {ARCHITECTURE}:\n{table()}"


ASKS = ("is_freebsd", "sys.platform", "platform.system", "sysname")
MAY_ASK = ("system/host.py", "commands/about.py")
"""The one place that decides, and what only shows it."""


def test_only_the_host_asks_which_system_this_is() -> None:
    asking = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node).endswith(ASKS)
    }
    assert {name for name in asking if not name.startswith(("platforms/freebsd/", "system/freebsd"))} == set(MAY_ASK)
