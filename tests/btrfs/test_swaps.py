"""A user swaps a directory and a link while runs select and mount what lies below: nothing else than frozen is ever shown.

Some runs of each kind here, a hundred in all with `./test swaps`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.errors import KopiatomicError
from kopiatomic.model.mounts import Mount
from kopiatomic.model.request import Request
from kopiatomic.planning import gather, resolving
from kopiatomic.planning.plan import select
from tests.support.filesystems import Btrfs
from tests.support.programs import Kopiatomic, command
from tests.support.schema import valid
from tests.support.swapper import USER, exchange, swapping

pytestmark = pytest.mark.in_part(5)

Leftovers = Callable[..., list[str]]

RUNS = 10 if os.environ.get("KOPIATOMIC_TEST_SWAPS") == "whole" else 2
SEED = int(os.environ["KOPIATOMIC_TEST_SEED"], 36)

HIDDEN = "what the user may not read"
STRANGER = 4242
"""Whom all directories outside belong to: a view that shows one has looked there."""

ENGINE = """
import json, os, sys
out, root = sys.argv[1], sys.argv[2]
files, owners = {}, {}
for folder, folders, names in os.walk(root):
    owners[folder[len(root):]] = os.stat(folder).st_uid
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.islink(path):
            with open(path) as file:
                files[path[len(root):]] = file.read()
with open(out, "w") as file:
    json.dump([files, owners], file)
"""


@dataclass(frozen=True)
class Home:
    """What the user swaps: `dir`, with all kinds of things in it, and `link`, which leads to the same names outside."""

    path: Path
    outside: Path


THINGS = ("part", "nested", "point")


def populate(folder: Path, text: str, owner: int) -> None:
    for path in (folder, *(folder / name for name in THINGS)):
        path.mkdir(exist_ok=True)
        os.chown(path, owner, owner)
        if path != folder:
            (path / "file").write_text(f"{text} {path.name}")


@pytest.fixture(params=["on-another-filesystem", "on-the-same-filesystem"])
def home(request: pytest.FixtureRequest, make_btrfs: Callable[[], Btrfs], tmp_path: Path) -> Home:
    btrfs, inner = make_btrfs(), make_btrfs()
    path = btrfs.subvolume("home")
    os.chown(path, USER, USER)
    (path / "dir").mkdir()
    btrfs.subvolume("home/dir/nested")
    (path / "dir" / "point").mkdir()
    command("mount", inner.device, path / "dir" / "point")
    populate(path / "dir", "inside", USER)
    outside = tmp_path / "outside"
    if request.param == "on-the-same-filesystem":
        outside = btrfs.subvolume("outside")
        for name in ("nested", "point"):
            btrfs.subvolume(f"outside/{name}")
    populate(outside, HIDDEN, STRANGER)
    (path / "link").symlink_to(outside)
    return Home(path, outside)


@dataclass(frozen=True)
class Case:
    """Words for a run, below the user's home; and which things are in the view if it is complete."""

    words: tuple[str, ...]
    shown: frozenset[str]


CASES = {
    "a-part": Case(("dir/part",), frozenset(["part"])),
    "a-nested-subvolume": Case(("dir/nested",), frozenset(["nested"])),
    "a-mount-point": Case(("", "dir/point"), frozenset(["part", "point"])),
    "all-that-is-nested": Case(("-r", ""), frozenset(["part", "nested"])),
    "a-part-with-what-is-nested": Case(("-r", "dir"), frozenset(["part", "nested"])),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_nothing_from_outside_is_shown(
    case: Case, home: Home, kopiatomic: Kopiatomic, tmp_path: Path, root: Path, leftovers: Leftovers
) -> None:
    script, out = tmp_path / "engine.py", tmp_path / "shown.json"
    script.write_text(ENGINE)
    engine = shlex.join(["python3", "-SI", str(script), str(out)])
    words = [word if word.startswith("-") else str(home.path / word) for word in case.words]
    ends: dict[str, int] = {}
    for number in range(RUNS):
        out.write_text("[{}, {}]")
        with swapping(home.path, "dir", "link", SEED + number):
            ended = kopiatomic("--json", "--mount-root", root, "-c", engine, *words)
        document = valid(ended.stdout)
        what = judged(case, home, document, *json.loads(out.read_text()))
        ends[what] = ends.get(what, 0) + 1
    print(f"{' '.join(case.words)}: {ends}")
    assert leftovers(root) == []


@pytest.mark.parametrize("thing", THINGS)
def test_a_path_is_not_followed_once_more(thing: str, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst moment: what was a directory when the path was resolved is a link right after that."""
    resolve = resolving.resolve

    def and_then(name: str, seen: dict[str, Mount]) -> str:
        path = resolve(name, seen)
        exchange(home.path / "dir", home.path / "link")
        return path

    monkeypatch.setattr(gather, "resolve", and_then)
    path = f"{home.path}/dir/{thing}"
    request = Request((path,), everything=False, recursive=True, root="/kopia", suffix="")
    with pytest.raises(KopiatomicError, match=f"{path}.* (moved|replaced)"):
        select(gather.gather(request), request)
    exchange(home.path / "dir", home.path / "link")


def judged(case: Case, home: Home, document: Any, files: dict[str, str], owners: dict[str, int]) -> str:
    """How a run ended, in a word or two; fails the test where it shows or says what is not so."""
    followed = any(re.search(rf"/dir\S* leads to {home.outside}", warning) for warning in document["warnings"])
    for path, text in files.items():
        # The name on the command line led there at that moment: then it is taken as what it is, and that is said.
        assert HIDDEN not in text or (followed and Path(path).is_relative_to(home.outside)), document
    for path, owner in owners.items():
        assert owner != STRANGER or (followed and Path(path).is_relative_to(home.outside)), (path, document)
    if document["exit_code"] == 0 and followed:
        return "followed the link"
    if document["exit_code"] == 0:
        expected = [
            {f"{home.path}/{name}/{thing}/file": f"inside {thing}" for thing in case.shown} for name in ("dir", "link")
        ]
        assert files in expected, document
        return "saved"
    told = document["error"]["message"] if document["error"] else " ".join(document["incomplete"])
    assert re.search(rf"{home.path}/(dir|link)\b", told), document
    return f"refused: {document['error']['kind']}" if document["exit_code"] == 1 else document["result"]


EXCHANGE = """
import ctypes, os, sys
from kopiatomic.cli.entry import main
top, make = sys.argv.pop(), os.mkdir
def mkdir(path, *given, **more):
    if os.path.basename(str(path)).startswith("kopiatomic_"):
        os.mkdir = make
        ours, link = (os.fsencode(f"{top}/{name}") for name in (".kopiatomic", "link"))
        assert ctypes.CDLL(None).renameat2(-100, ours, -100, link, 2) == 0
    return make(path, *given, **more)
os.mkdir = mkdir
main()
"""
"""The program with a user in it who owns the top (the last word) and puts a link in our directory's place just then."""


def test_who_owns_the_top_has_root_make_folders_nowhere_else(
    btrfs: Btrfs, kopiatomic: Kopiatomic, tmp_path: Path
) -> None:
    """What was opened is what is used, and removed in the end."""
    data = btrfs.subvolume("data")
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    (btrfs.mountpoint / "link").symlink_to(victim)
    os.chown(btrfs.mountpoint, USER, USER)
    words = ("--mount-root", tmp_path / "view", "-c", "ls", data)
    ended = command(sys.executable, "-c", EXCHANGE, *words, btrfs.mountpoint, env=kopiatomic.environment, check=False)
    # The view finds no way to the snapshots; the run still has them, and removes them.
    assert (ended.returncode, "left behind" in ended.stderr) == (1, False), ended
    assert (btrfs.mountpoint / ".kopiatomic").is_symlink()
    assert list(victim.iterdir()) == []
    assert btrfs.snapshots() == []
    assert kopiatomic("recover").returncode == 0
