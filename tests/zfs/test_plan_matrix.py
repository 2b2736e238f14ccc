"""Every way in which a dataset can be there: what the plan says of it, and what a run then does.

What is expected of a row is written by hand from zfs(8), zfsprops(7) and mount(8), not computed.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.system import linux
from tests.support.filesystems import POOL_BYTES, Pool, imported_pool, patiently
from tests.support.programs import command
from tests.support.schema import valid
from tests.zfs.conftest import cgroup
from tests.zfs.runs import Runner

pytestmark = pytest.mark.in_part(4)

MARKER = "marker"
ODD = "/odd space\ttab\nline'\"\\#%\udcff"

LONGEST = 255 - len("@kopiatomic_20261122T101112Z-01234567")
"""The longest name of a dataset of which a snapshot can be made."""


@dataclass(frozen=True)
class Row:
    """What is expected of a dataset: its verdict, whether that makes the run incomplete, and where it appears."""

    verdict: str
    incomplete: bool = False
    place: str = ""


class Builder:
    """Makes datasets in few processes: each costs 0.2 s and more here."""

    def __init__(self, pool: Pool, second: Pool, environments: Pool, folder: Path) -> None:
        self.pool = pool
        self.second = second
        self.environments = environments
        """A pool that was imported with an altroot, its ``mountpoint``."""
        self.folder = folder
        self.rows: dict[str, Row] = {}
        self.mounted: list[str] = []

    def zfs(self, *words: str | Path) -> None:
        command("zfs", *words)

    def add(self, name: str, row: Row, *options: str, mark: bool = True) -> str:
        """Create a dataset; put its name into a file of it if it is mounted."""
        full = f"{self.pool.name}/{name}"
        self.zfs("create", *options, full)
        self.rows[full] = row
        if mark:
            self.mark(full, self.pool.path(name))
        return full

    def mark(self, full: str, where: Path) -> None:
        (where / MARKER).write_text(full)

    def mount(self, source: str, where: str, fstype: str | None, flags: int = 0) -> Path:
        point = self.folder / where
        point.mkdir(exist_ok=True)
        linux.mount(source, str(point), fstype, flags)
        self.mounted.append(str(point))
        return point

    def taken(self, name: str, *options: str) -> str:
        """A dataset that is mounted as its property says, and so is taken there."""
        return self.add(name, Row("taken", place=str(self.pool.path(name))), *options)


def build(make: Builder) -> None:  # noqa: PLR0915 - a table in the form of steps
    """The rows."""
    pool, path = make.pool, make.pool.path
    make.taken("plain")
    make.add("legacy", Row("not mounted"), "-o", "mountpoint=legacy", mark=False)
    legacy = make.add("legacy-mounted", Row("?"), "-o", "mountpoint=legacy", mark=False)
    make.mark(legacy, make.mount(legacy, "legacy", "zfs"))
    make.rows[legacy] = Row("taken", place=str(make.folder / "legacy"))
    make.add("none", Row("no mount point"), "-o", "mountpoint=none", mark=False)
    make.add("off", Row("not mounted"), "-o", "canmount=off", mark=False)
    make.add("off/child", Row("taken", place=str(path("off/child"))))
    make.add("noauto", Row("not mounted"), "-o", "canmount=noauto", mark=False)
    noauto = make.add(
        "noauto-mounted", Row("taken", place=str(path("noauto-mounted"))), "-o", "canmount=noauto", mark=False
    )
    make.zfs("mount", noauto)
    make.mark(noauto, path("noauto-mounted"))
    gone = make.taken("gone")
    make.zfs("unmount", gone)
    make.rows[gone] = Row("not mounted", incomplete=True)
    parent = make.taken("parent")
    make.zfs("create", "-o", f"mountpoint={make.folder}/child", f"{parent}/child")
    # It unmounts what lies below as well, wherever that is mounted.
    make.zfs("unmount", parent)
    make.zfs("mount", f"{parent}/child")
    make.rows[parent] = Row("not mounted", incomplete=True)
    make.rows[f"{parent}/child"] = Row("taken", place=f"{make.folder}/child")
    make.mark(f"{parent}/child", make.folder / "child")
    build_elsewhere(make)
    elsewhere = make.add("elsewhere", Row("?"), "-o", "mountpoint=legacy", mark=False)
    make.mark(elsewhere, make.mount(elsewhere, "elsewhere", "zfs"))
    make.zfs("set", "canmount=noauto", elsewhere)
    make.rows[elsewhere] = Row("taken", place=f"{make.folder}/elsewhere")
    twice = make.taken("twice")
    make.mount(str(path("twice")), "twice", None, linux.MS_BIND)
    assert twice in make.rows
    make.taken("part")
    (path("part") / "inner").mkdir()
    make.mount(str(path("part") / "inner"), "part", None, linux.MS_BIND)
    only_part = make.taken("only-part")
    (path("only-part") / "inner").mkdir()
    make.mount(str(path("only-part") / "inner"), "only-part", None, linux.MS_BIND)
    make.zfs("unmount", only_part)
    make.rows[only_part] = Row("mounted elsewhere", incomplete=True)
    covered = make.taken("covered")
    linux.mount("none", str(path("covered")), "tmpfs", 0, "size=1M")
    make.mounted.append(str(path("covered")))
    make.rows[covered] = Row("covered", incomplete=True)
    below = make.taken("below")
    above = make.add("above", Row("taken", place=str(path("below"))), "-o", "mountpoint=legacy", mark=False)
    linux.mount(above, str(path("below")), "zfs", 0)
    make.mounted.append(str(path("below")))
    make.mark(above, path("below"))
    make.rows[below] = Row("covered", incomplete=True)
    build_encrypted(make)
    make.taken("readonly")
    make.zfs("set", "readonly=on", f"{pool.name}/readonly")
    make.zfs("snapshot", f"{pool.name}/plain@origin")
    make.zfs("clone", f"{pool.name}/plain@origin", f"{pool.name}/clone")
    make.rows[f"{pool.name}/clone"] = Row("taken", place=str(path("clone")))
    make.mark(f"{pool.name}/clone", path("clone"))
    make.taken("quota", "-o", "quota=1M")
    with pytest.raises(OSError, match="quota"):
        fill(path("quota") / "much")
    # Only from inside a zone can it be mounted.
    make.add("zoned", Row("mounted elsewhere", incomplete=True), "-o", "zoned=on", mark=False)
    make.taken("visible", "-o", "snapdir=visible")
    make.zfs("create", "-s", "-V", "1M", f"{pool.name}/volume")
    make.rows[f"{pool.name}/volume"] = Row("volume")
    longest = LONGEST - len(f"{pool.name}/")
    for name in ("with space", " leading", "trailing ", "a:b", "dots..", "x" * longest):
        make.taken(name)
    for count in (longest + 1, 250 - len(f"{pool.name}/")):
        make.add("n" * count, Row("name too long", incomplete=True))
    # zfs mounts there, and cannot make such a directory itself.
    Path(f"{make.folder}{ODD}").mkdir()
    odd = make.add("odd", Row("taken", place=f"{make.folder}{ODD}"), "-o", f"mountpoint={make.folder}{ODD}", mark=False)
    make.mark(odd, Path(f"{make.folder}{ODD}"))
    unmounted = f"mountpoint={make.folder}/never\nthere\tat all"
    make.add("odd-unmounted", Row("not mounted", incomplete=True), "-o", unmounted, "-o", "canmount=noauto", mark=False)
    make.zfs("set", "canmount=noauto", f"{pool.name}/odd-unmounted")
    make.rows[f"{pool.name}/odd-unmounted"] = Row("not mounted")
    deep = "/".join(["deep", *(str(n) for n in range(29))])
    make.zfs("create", "-p", f"{pool.name}/{deep}")
    for depth in range(1, 31):
        name = "/".join(deep.split("/")[:depth])
        make.rows[f"{pool.name}/{name}"] = Row("taken", place=str(path(name)))
        make.mark(f"{pool.name}/{name}", path(name))
    build_by_property(make)
    build_other_pools(make)


def fill(file: Path) -> None:
    """Write until there is no more room. Raises OSError."""
    with file.open("wb", buffering=0) as open_file:
        for _ in range(64):
            open_file.write(os.urandom(1 << 20))
            os.sync()


def build_elsewhere(make: Builder) -> None:
    """Mounted as the property does not say, seen at several places, or under something else."""
    path = make.pool.path
    # For one whose property names a place only this works: zfs mount knows no other place.
    moved = make.taken("moved")
    make.zfs("unmount", moved)
    point = make.folder / "moved"
    point.mkdir()
    command("mount", "-t", "zfs", "-o", "zfsutil", moved, point)
    make.mounted.append(str(point))
    make.rows[moved] = Row("taken", place=str(point))
    off = make.add("off-mounted", Row("?"), "-o", "canmount=off", mark=False)
    make.mark(off, make.mount(off, "off-mounted", "zfs"))
    make.rows[off] = Row("taken", place=f"{make.folder}/off-mounted")
    two = make.add("two-mounts", Row("?"), "-o", "mountpoint=legacy", mark=False)
    make.mark(two, make.mount(two, "first", "zfs"))
    make.mount(two, "second", "zfs")
    make.rows[two] = Row("taken", place=f"{make.folder}/first")
    make.add("outer/inner", Row("?"), "-p", "-o", f"mountpoint={make.folder}/inner", mark=False)
    make.rows[f"{make.pool.name}/outer"] = Row("taken", place=str(path("outer")))
    make.rows[f"{make.pool.name}/outer/inner"] = Row("taken", place=f"{make.folder}/inner")
    make.mark(f"{make.pool.name}/outer", path("outer"))
    make.mark(f"{make.pool.name}/outer/inner", make.folder / "inner")
    overlaid = make.taken("overlaid")
    command("modprobe", "overlay")
    linux.mount("overlay", str(path("overlaid")), "overlay", 0, f"lowerdir={path('overlaid')}:{make.folder}")
    make.mounted.append(str(path("overlaid")))
    make.rows[overlaid] = Row("covered", incomplete=True)


def build_other_pools(make: Builder) -> None:
    """A second pool, with a dataset in the first one's tree; and a pool with an altroot and two boot environments."""
    second, environments = make.second, make.environments
    make.rows[second.name] = Row("taken", place=str(second.mountpoint))
    make.mark(second.name, second.mountpoint)
    inside = f"{make.pool.path('plain')}/second"
    make.zfs("create", "-o", f"mountpoint={inside}", f"{second.name}/inside")
    make.rows[f"{second.name}/inside"] = Row("taken", place=inside)
    make.mark(f"{second.name}/inside", Path(inside))
    make.rows[environments.name] = make.rows[f"{environments.name}/ROOT"] = Row("not mounted")
    make.zfs("create", "-o", "canmount=off", f"{environments.name}/ROOT")
    for name in ("one", "two"):
        make.zfs("create", "-o", "mountpoint=/", "-o", "canmount=noauto", f"{environments.name}/ROOT/{name}")
    two = f"{environments.name}/ROOT/two"
    make.zfs("mount", two)
    make.mark(two, environments.mountpoint)
    make.rows[two] = Row("taken", place=str(environments.mountpoint))
    make.rows[f"{environments.name}/ROOT/one"] = Row("boot environment not booted")
    for name in ("data", "failed"):
        make.zfs("create", "-o", f"mountpoint=/{name}", f"{environments.name}/{name}")
        make.mark(f"{environments.name}/{name}", environments.mountpoint / name)
    make.rows[f"{environments.name}/data"] = Row("taken", place=f"{environments.mountpoint}/data")
    make.zfs("unmount", f"{environments.name}/failed")
    make.rows[f"{environments.name}/failed"] = Row("not mounted", incomplete=True)


def build_encrypted(make: Builder) -> None:
    key = make.folder / "key"
    key.write_bytes(os.urandom(32))
    encryption = ["-o", "encryption=on", "-o", "keyformat=raw", "-o", f"keylocation=file://{key}"]
    make.taken("open", *encryption)
    locked = make.taken("locked", *encryption)
    make.zfs("create", *encryption, f"{locked}/own")
    make.mark(f"{locked}/own", make.pool.path("locked/own"))
    make.rows[f"{locked}/own"] = Row("key not loaded", incomplete=True)
    make.zfs("unmount", f"{locked}/own")
    make.zfs("unmount", locked)
    make.zfs("unload-key", f"{locked}/own")
    make.zfs("unload-key", locked)
    make.rows[locked] = Row("key not loaded", incomplete=True)
    # A key of its own: neither is a parent's key its child's, nor the other way round.
    shut = make.add("open/shut", Row("key not loaded", incomplete=True), *encryption)
    make.zfs("unmount", shut)
    make.zfs("unload-key", shut)
    loaded = ("-o", f"mountpoint={make.folder}/loaded", *encryption)
    make.zfs("load-key", locked)
    make.zfs("create", *loaded, f"{locked}/loaded")
    make.zfs("unload-key", locked)
    make.rows[f"{locked}/loaded"] = Row("taken", place=f"{make.folder}/loaded")
    make.mark(f"{locked}/loaded", make.folder / "loaded")


def build_by_property(make: Builder) -> None:
    make.taken("on", "-o", "kopiatomic:backup=on")
    make.taken("on/inherits")
    make.add("no", Row("excluded"), "-o", "kopiatomic:backup=off")
    make.add("no/inherits", Row("excluded"))
    make.add("no/again", Row("taken", place=str(make.pool.path("no/again"))), "-o", "kopiatomic:backup=on")
    make.add("children", Row("excluded"), "-o", "kopiatomic:backup=children")
    make.taken("children/one")
    for name in ("no", "on"):
        make.zfs("snapshot", f"{make.pool.name}/{name}@sent")
        received = f"{make.pool.name}/{name}-received"
        command("sh", "-c", f"zfs send -p {make.pool.name}/{name}@sent | zfs receive -u {received}")
        make.zfs("mount", received)
        # Until it is written anew the marker is that of what was sent.
        make.mark(received, make.pool.path(f"{name}-received"))
        make.rows[received] = Row("taken", place=str(make.pool.path(f"{name}-received")))
        make.taken(f"{name}-received/below")


ENGINE = """
import json, os, sys
out, root = sys.argv[1], sys.argv[2]
found = {}
for folder, folders, files in os.walk(os.fsencode(root)):
    if b"marker" in files:
        with open(os.path.join(folder, b"marker"), "rb") as file:
            found[os.fsdecode(folder)[len(root):] or "/"] = os.fsdecode(file.read())
with open(out, "w") as file:
    json.dump(found, file)
"""


@dataclass(frozen=True)
class Seen:
    """The matrix, what the plan said of it, and the marker files that a run showed to its engine."""

    pool: Pool
    rows: dict[str, Row]
    plan: Any
    plan_code: int
    run: Any
    shown: dict[str, str]
    by_property: Any


@contextmanager
def pool_with_altroot(folder: Path) -> Iterator[Pool]:
    """Imported as an installer or a rescue system does: everything is mounted below another root."""
    folder.mkdir()
    pool = Pool(f"pool{secrets.token_hex(3)}", folder / "root", folder / "vdev")
    with pool.image.open("wb") as image:
        image.truncate(POOL_BYTES)
    options = ["-o", "cachefile=none", "-O", "mountpoint=/none", "-O", "canmount=off"]
    command("zpool", "create", *options, "-R", pool.mountpoint, pool.name, pool.image)
    try:
        yield pool
    finally:
        patiently("zpool", "destroy", "-f", pool.name)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("matrix")
    with ExitStack() as stack:
        pool = stack.enter_context(imported_pool(folder / "pool", folder / "tank"))
        second = stack.enter_context(imported_pool(folder / "second"))
        environments = stack.enter_context(pool_with_altroot(folder / "environments"))
        group = stack.enter_context(cgroup())
        make = Builder(pool, second, environments, folder / "points")
        make.folder.mkdir()
        make.rows[pool.name] = Row("taken", place=str(pool.mountpoint))
        make.mark(pool.name, pool.mountpoint)
        try:
            build(make)
            run = Runner(group, folder)
            engine, out = folder / "engine.py", folder / "shown.json"
            engine.write_text(ENGINE)
            words = ("-r", pool.name, second.name, environments.name, "-c", f"python3 -SI {engine} {out}")
            planned = run("plan", "--json", *words)
            ended = run("--json", *words)
            assert ended.returncode == planned.returncode, (ended, planned)
            assert run.left(pool, second, environments) == []
            by_property = run("plan", "--json", "--by-property", pool.name, "-c", "true")
            yield Seen(
                pool,
                make.rows,
                valid(planned.stdout),
                planned.returncode,
                valid(ended.stdout),
                json.loads(out.read_text()),
                valid(by_property.stdout),
            )
        finally:
            for point in reversed(make.mounted):
                linux.detach(point)


def verdicts(document: Any) -> dict[str, tuple[str, bool, str]]:
    taken = {d["dataset"]: ("taken", False, d["path"]) for d in document["datasets"]}
    return taken | {o["dataset"]: (o["verdict"], o["incomplete"], "") for o in document["left_out"]}


def test_every_dataset_has_the_verdict_that_the_manuals_say(seen: Seen) -> None:
    expected = {name: (row.verdict, row.incomplete, row.place) for name, row in seen.rows.items()}
    found = verdicts(seen.plan)
    wrong = {name: (found.get(name), row) for name, row in expected.items() if found.get(name) != row}
    assert wrong == {}
    assert found.keys() == expected.keys()


def test_the_run_does_what_the_plan_says(seen: Seen) -> None:
    assert verdicts(seen.run) == verdicts(seen.plan)
    expected = {row.place: name for name, row in seen.rows.items() if row.verdict == "taken"}
    assert seen.shown == expected


def test_the_plans_exit_code_is_the_runs(seen: Seen) -> None:
    assert seen.plan_code == 3
    assert seen.run["result"] == "incomplete"


def test_what_is_mounted_in_the_trees_and_not_covered_is_named(seen: Seen) -> None:
    named = {u["path"]: u["type"] for u in seen.plan["uncovered"]}
    covered = next(name for name in seen.rows if name.endswith("/covered"))
    assert named[str(Path(seen.rows[covered.rpartition("/")[0]].place, "covered"))] == "tmpfs"
    assert named[str(seen.pool.path("overlaid"))] == "overlay"


def test_the_property_takes_what_has_it_here_and_nothing_that_came_with_a_stream(seen: Seen) -> None:
    taken = {
        name.removeprefix(f"{seen.pool.name}/") for name, row in verdicts(seen.by_property).items() if row[0] == "taken"
    }
    assert taken == {"on", "on/inherits", "no/again", "children/one"}
    said = [text for text in seen.by_property["warnings"] if "was received with a stream: it does not count" in text]
    assert {seen.pool.name + f"/{name}-received" in " ".join(said) for name in ("no", "on")} == {True}


@contextmanager
def named_pool(name: str, folder: Path) -> Iterator[None]:
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(POOL_BYTES)
    command("zpool", "create", "-o", "cachefile=none", "-O", f"mountpoint={folder}/{name}", name, image)
    try:
        command("zfs", "create", f"{name}/inside")
        yield
    finally:
        patiently("zpool", "destroy", "-f", name)


@pytest.mark.parametrize("name", ["status", "history", "recover"])
def test_a_pool_that_is_called_like_a_command(name: str, tmp_path: Path, run: Runner) -> None:
    """It is reached by 'backup' and by 'plan', and a command's name stays the command."""
    with named_pool(name, tmp_path):
        planned = run("plan", "--json", name, "-c", "true")
        saved = run("backup", "-c", "true", name)
        inside = run("-c", "true", f"{name}/inside")
    assert (planned.returncode, saved.returncode, inside.returncode) == (0, 0, 0), (planned, saved, inside)
    assert [d["dataset"] for d in valid(planned.stdout)["datasets"]] == [name]
    assert run.left() == []


def test_everything_with_a_read_only_pool_and_one_with_a_commands_name(tmp_path: Path, run: Runner, pool: Pool) -> None:
    """A pool imported read-only is said and left out; one that is called like a command is reached by 'backup'."""
    with named_pool("plan", tmp_path):
        assert run("backup", "-c", "true", "plan").returncode == 0
        assert run("plan", "-c", "true", "plan").returncode == 0
        command("zpool", "export", "plan")
        command("zpool", "import", "-d", tmp_path, "-o", "readonly=on", "-o", "cachefile=none", "plan")
        ended, document = run.json("-a", "-c", "true")
        named = run("backup", "-c", "true", "plan")
    assert ended.returncode == 3
    (left_out,) = (o for o in document["left_out"] if o["dataset"] == "plan")
    assert (left_out["verdict"], left_out["incomplete"]) == ("read-only pool", True)
    assert pool.name in [d["dataset"] for d in document["datasets"]]
    assert named.returncode == 1
    assert "imported read-only" in named.stderr
