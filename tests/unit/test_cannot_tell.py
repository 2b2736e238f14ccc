"""In the program's source: "cannot tell" is never taken for "is not there".

Whoever asks whether something is there asks ``presence.py``, which raises what it cannot tell. Whoever catches what the system
refuses raises it again, in words or as it is, or asks ``presence.py`` what it means. The rest is listed here.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import kopiatomic

_SOURCES = Path(kopiatomic.__file__).parent
_ANSWERS = "presence"

_ASKING = {"exists", "lexists", "isdir", "isfile", "islink", "ismount"}
"""Of os.path: each answers "no" to every refusal."""

_METHODS = {"exists", "is_dir", "is_file", "is_symlink", "is_mount"}
"""Of pathlib.Path. An ``os.DirEntry``, which is called ``entry`` here, has some of them too, and knows the answer."""

_WALKING = {"walk", "fwalk", "glob", "rglob", "iglob"}
"""They leave out what cannot be listed."""

_BROAD = {"OSError", "EnvironmentError", "IOError", "PermissionError"}
_MEANING = {"ENOENT", "ENOTDIR", "ELOOP", "EXDEV", "ESTALE"}

SAID = "the refusal is put into words for the user, or into the report"
SHOWN = "it is only shown, and nothing is decided by it"
NOTHING_ASKED = "nothing is asked by it: what it undoes or adds may be gone, or cannot be had, without harm"
AS_IT_MAY_BE = "the answer that is safe is taken: it may be there, it may live, it may be unsafe"

EXCEPTIONS: dict[str, tuple[int, str]] = {
    "commands.about._distribution": (1, SHOWN),
    "commands.about._said": (1, SAID),
    "commands.about._zfs": (1, SHOWN),
    "cli.completion._listed": (1, SHOWN),
    "cli.completion.datasets": (1, SHOWN),
    "cli.completion._if_known": (1, SHOWN),
    "filesystems.btrfs.listing._Walk._holds": (1, AS_IT_MAY_BE),
    "filesystems.zfs.listing._at_boot": (1, SAID),
    "planning.gather._loop_files": (1, SHOWN),
    "planning.gather._sizes": (1, SHOWN),
    "commands.inside._as_a_shell_says": (
        1,
        "the numbers of a shell for a program that is not there and one that cannot be executed",
    ),
    "runs.keeper.remove_view": (1, SAID),
    "runs.owed._start": (1, NOTHING_ASKED),
    "runs.launcher._clear": (1, NOTHING_ASKED),
    "runs.launcher._watch": (1, SAID),
    "state.locks._locked": (1, SHOWN),
    "state.locks._remove": (1, NOTHING_ASKED),
    "state.locks._remove_lists": (2, NOTHING_ASKED),
    "state.locks.alive": (1, AS_IT_MAY_BE),
    "platforms.freebsd.leftovers._clear_once": (1, SAID),
    "engines.names._tree": (1, "the engine reads the same tree, and names what cannot be listed"),
    "output.console.Console._surviving": (1, NOTHING_ASKED),
    "output.console._styled": (1, SAID),
    "output.console.discard": (1, NOTHING_ASKED),
    "output.console.write": (1, SAID),
    "platforms.linux.platform.HostMounts.follow": (1, NOTHING_ASKED),
    "runs.recovery._removed": (1, SAID),
    "planning.resolving._require_roots": (1, SAID),
    "state.root_leftovers.unrecorded": (1, SAID),
    "state.roots._remove": (1, SAID),
    "state.roots._remove_one": (1, NOTHING_ASKED),
    "state.roots.remove": (1, SAID),
    "commands.backup._Run._finish": (1, SAID),
    "system.safety._mover": (1, AS_IT_MAY_BE),
    "schedules.started._Judge._status": (1, SAID),
    "filesystems.btrfs.snapshots.BtrfsMaker._look_at_sources": (1, SAID),
    "filesystems.btrfs.snapshots.BtrfsMaker._snapshot_all.share": (1, SAID),
    "filesystems.btrfs.folder._is_deleted": (1, AS_IT_MAY_BE),
    "filesystems.btrfs.folder._remove": (2, SAID),
    "filesystems.btrfs.folder.device_of": (1, AS_IT_MAY_BE),
    "filesystems.zfs.snapshots.ZfsMaker._guids": (1, AS_IT_MAY_BE),
    "filesystems.zfs.snapshots.ZfsMaker._leave_out": (3, "the kernel's answer for one dataset of a call that named it"),
    "runs.supervisor.Supervisor._remove_in_its_place": (1, SAID),
    "system.channel.close_quietly": (1, NOTHING_ASKED),
    "system.freebsd_host.FreeBSDHost.pool_state": (1, AS_IT_MAY_BE),
    "system.fuse.Server._reply": (1, "FUSE's protocol: the request, or its caller, is gone (fuse(4))"),
    "system.fuse.Server.serve": (2, SAID),
    "system.descriptors.close_all_but": (1, NOTHING_ASKED),
    "system.descriptors.keep_from_programs": (1, NOTHING_ASKED),
    "system.descriptors._listed": (1, "another way follows"),
    "system.inherited._more_files": (1, NOTHING_ASKED),
    "system.inherited._settle_descriptors": (1, NOTHING_ASKED),
    "system.libzfs_core._load": (1, SAID),
    "system.libzfs_core.may_exist": (1, AS_IT_MAY_BE),
    "system.linux.boot_id": (1, "another way follows"),
    "system.linux.hide_argument": (1, NOTHING_ASKED),
    "system.linux_host.LinuxHost.transaction_group": (1, AS_IT_MAY_BE),
    "system.linux_users._detached": (1, SHOWN),
    "system.linux_users._device": (1, SHOWN),
    "system.linux_users.find": (1, SHOWN),
    "system.looking.Opener._serve": (1, "the refusal is handed to the process that asked, which raises it"),
    "system.looking._answer": (1, "the refusal is handed to the process that asked, which raises it"),
    "system.looking._serve": (1, "the refusal is handed to the process that asked, which raises it"),
    "system.process._shown_by_linux": (1, "what is not seen to be frozen is waited for as anything slow"),
    "system.process.family": (1, SHOWN),
    "system.signals._say": (1, NOTHING_ASKED),
    "system.terminal.Screen.handle": (1, NOTHING_ASKED),
    "system.terminal.Terminal.aside": (1, NOTHING_ASKED),
    "system.terminal.Terminal.attach": (1, NOTHING_ASKED),
    "system.terminal.Terminal.detach": (1, NOTHING_ASKED),
    "system.terminal.Terminal.drain": (1, NOTHING_ASKED),
    "system.terminal.Terminal.fit": (1, NOTHING_ASKED),
    "system.terminal.Terminal.handle": (1, NOTHING_ASKED),
    "system.terminal.Terminal.in_foreground": (1, NOTHING_ASKED),
    "system.terminal.Terminal.resemble": (1, NOTHING_ASKED),
    "system.terminal._show": (1, NOTHING_ASKED),
    "platforms.linux.anchors.Anchors._hold": (3, NOTHING_ASKED),
    "platforms.freebsd.view.FreeBSDView.obstacle": (2, SAID),
    "platforms.freebsd.view._print": (1, AS_IT_MAY_BE),
    "platforms.freebsd.view._obstacle": (3, SAID),
    "platforms.freebsd.view.unsafe": (1, AS_IT_MAY_BE),
    "platforms.freebsd.merged._status": (1, NOTHING_ASKED),
    "platforms.linux.in_place.InPlaceView.assemble": (1, NOTHING_ASKED),
    "platforms.linux.in_place._furnish_run": (1, NOTHING_ASKED),
    "platforms.linux.in_place._make_like": (1, NOTHING_ASKED),
    "platforms.linux.view.LinuxView._bind": (1, SAID),
    "platforms.linux.view.LinuxView.check": (1, SAID),
    "platforms.linux.view._have_descriptors": (1, NOTHING_ASKED),
    "platforms.linux.view._obstacle": (1, SAID),
    "platforms.linux.view._strayed": (1, SAID),
    "platforms.linux.merged._copy_attributes": (1, NOTHING_ASKED),
    "platforms.linux.merged._scaffolding": (1, NOTHING_ASKED),
}
"""How many places in each function, and why. This list may only shrink."""

_MOST = 105
"""How many places all of them have together."""


class _Finder(ast.NodeVisitor):
    """Collects the functions of a module that take a refusal for an answer, once for each place."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        self.found: list[str] = []
        self._where = [module]
        self._broad = _BROAD | set(_tuples(tree))
        self.visit(tree)

    def _add(self) -> None:
        self.found.append(".".join(self._where))

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        self._where.append(node.name)
        self.generic_visit(node)
        self._where.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.visit_FunctionDef(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if self._is_broad(node.type) and not _raises_or_asks(node):
            self._add()
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in _ASKING and ast.unparse(node.value) == "os.path":
            self._add()
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if any(isinstance(part, ast.Attribute) and part.attr in _MEANING for part in ast.walk(node)):
            self._add()
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id == "suppress" and any(map(self._is_broad, node.args)):
            self._add()
        if isinstance(node.func, ast.Attribute):
            asked = ast.unparse(node.func.value)
            if (node.func.attr in _METHODS and asked not in {"os.path", "presence", "entry"}) or (
                node.func.attr in _WALKING and asked != "ast"
            ):
                self._add()
        self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module == "os.path" and _ASKING.intersection(alias.name for alias in node.names):
            self._add()

    def _is_broad(self, kinds: ast.AST | None) -> bool:
        return kinds is not None and any(isinstance(n, ast.Name) and n.id in self._broad for n in ast.walk(kinds))


def _tuples(tree: ast.Module) -> Iterator[str]:
    """The names that a module gives to tuples of exceptions which have one of the broad ones."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(n, ast.Name) and n.id in _BROAD for n in ast.walk(node.value)
        ):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _raises_or_asks(handler: ast.ExceptHandler) -> bool:
    for node in (inner for statement in handler.body for inner in ast.walk(statement)):
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            asked = ast.unparse(node.func)
            if asked in {"presence.meaning", "presence.absent", "presence.moved"}:
                return True
    return False


def found_in(source: str, module: str = "m") -> list[str]:
    return _Finder(module, ast.parse(source)).found


def test_what_cannot_be_told_is_taken_for_no_answer() -> None:
    """A new place must raise or ask ``presence.py``; one that is gone must go from the list, and from the number, as well."""
    assert sum(count for count, _ in EXCEPTIONS.values()) <= _MOST
    found: Counter[str] = Counter()
    for path in sorted(_SOURCES.rglob("*.py")):
        module = path.relative_to(_SOURCES).with_suffix("").as_posix().replace("/", ".")
        if module != _ANSWERS:
            found.update(found_in(path.read_text(), module))
    assert dict(found) == {where: count for where, (count, _) in EXCEPTIONS.items()}


@pytest.mark.parametrize(
    "source",
    [
        "os.path.exists(a)",
        "x = [p for p in a if os.path.isdir(p)]",
        "list(filter(os.path.isfile, a))",
        "from os.path import lexists",
        "Path(a).exists()",
        "(a / 'b').is_dir()",
        "for _ in os.walk(a): pass",
        "a.glob('*')",
        "try: f()\nexcept OSError: pass",
        "try: f()\nexcept (ValueError, OSError) as error: x = error.strerror",
        "try: f()\nexcept PermissionError: return_ = None",
        "_FAILED = (OSError, ValueError)\ntry: f()\nexcept _FAILED: pass",
        "with suppress(OSError): f()",
        "if error.errno == errno.ENOENT: pass",
        "x = error.errno in {errno.EBUSY, errno.ESTALE}",
    ],
)
def test_a_place_that_takes_a_refusal_for_an_answer_is_found(source: str) -> None:
    assert found_in(f"def f():\n    {source.replace(chr(10), chr(10) + '    ')}") == ["m.f"] or found_in(source) == [
        "m"
    ]


@pytest.mark.parametrize(
    "source",
    [
        "presence.exists(a)",
        "entry.is_dir(follow_symlinks=False)",
        "try: f()\nexcept FileNotFoundError: pass",
        "try: f()\nexcept OSError as error:\n    if presence.absent(error): x = None\n    else: raise",
        "try: f()\nexcept OSError as error: raise KopiatomicError(error.strerror) from None",
        "with suppress(FileNotFoundError, NotADirectoryError): f()",
        "raise OSError(errno.ENOENT, '')",
    ],
)
def test_a_place_that_raises_or_asks_is_in_order(source: str) -> None:
    assert found_in(source) == []
