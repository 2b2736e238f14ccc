"""Every way in which a dataset can be there: what the plan says of it, and what a run then does.

What is expected of a row is written by hand from zfs(8), zfsprops(7) and mount(8), not computed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.system import linux
from tests.support.filesystems import Pool, imported_pool
from tests.support.matrix import MARKER, Markers, Row, expected_markers, verdicts, wrong
from tests.support.programs import command
from tests.support.schema import valid
from tests.zfs.runs import Runner

ODD = "/odd space\ttab\nline'\"\\#\udcff"


class Builder:
    """Makes datasets in few processes: each costs 0.2 s and more here."""

    def __init__(self, pool: Pool, folder: Path) -> None:
        self.pool = pool
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
    quota = make.taken("quota", "-o", "quota=1M")
    try:
        (path("quota") / "much").write_bytes(os.urandom(3 << 20))
    except OSError:
        assert quota in make.rows
    make.taken("visible", "-o", "snapdir=visible")
    make.zfs("create", "-s", "-V", "1M", f"{pool.name}/volume")
    make.rows[f"{pool.name}/volume"] = Row("volume")
    for name in ("with space", " leading", "trailing ", "a:b", "dots..", "x" * 200):
        make.taken(name)
    make.add("n" * 220, Row("name too long", incomplete=True))
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


def build_by_property(make: Builder) -> None:
    make.taken("on", "-o", "kopiatomic:backup=on")
    make.add("no", Row("excluded"), "-o", "kopiatomic:backup=off")
    make.add("no/inherits", Row("excluded"))
    make.add("no/again", Row("taken", place=str(make.pool.path("no/again"))), "-o", "kopiatomic:backup=on")
    make.add("children", Row("excluded"), "-o", "kopiatomic:backup=children")
    make.taken("children/one")
    stream = make.folder / "stream"
    make.zfs("snapshot", f"{make.pool.name}/no@sent")
    command(
        "sh",
        "-c",
        f"zfs send -p {make.pool.name}/no@sent > {stream}; zfs receive -u {make.pool.name}/received < {stream}",
    )
    make.zfs("mount", f"{make.pool.name}/received")
    received = f"{make.pool.name}/received"
    make.rows[received] = Row("taken", place=str(make.pool.path("received")))
    make.mark(received, make.pool.path("received"))


@dataclass(frozen=True)
class Seen:
    """The matrix, what the plan said of it, and the marker files that a run showed to its engine."""

    rows: dict[str, Row]
    plan: Any
    plan_code: int
    run: Any
    shown: dict[str, str]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    from tests.zfs.conftest import _cgroup

    folder = tmp_path_factory.mktemp("matrix")
    mountpoint = folder / "tank"
    with imported_pool(folder / "pool", mountpoint) as pool, _cgroup() as group:
        make = Builder(pool, folder / "points")
        make.folder.mkdir()
        make.rows[pool.name] = Row("taken", place=str(mountpoint))
        make.mark(pool.name, mountpoint)
        try:
            build(make)
            run = Runner(group, folder)
            markers = Markers(folder)
            words = ("-r", pool.name, "-c", markers.command)
            planned = run("plan", "--json", *words)
            ended = run("--json", *words)
            assert ended.returncode == planned.returncode, (ended, planned)
            assert run.left(pool) == []
            yield Seen(make.rows, valid(planned.stdout), planned.returncode, valid(ended.stdout), markers.shown())
        finally:
            for point in reversed(make.mounted):
                linux.detach(point)


def test_every_dataset_has_the_verdict_that_the_manuals_say(seen: Seen) -> None:
    assert wrong(seen.rows, seen.plan) == {}


def test_the_run_does_what_the_plan_says(seen: Seen) -> None:
    assert verdicts(seen.run) == verdicts(seen.plan)
    # A received copy carries the marker of what it was sent from until it is written anew.
    assert seen.shown == expected_markers(seen.rows)


def test_the_plans_exit_code_is_the_runs(seen: Seen) -> None:
    assert seen.plan_code == 3
    assert seen.run["result"] == "incomplete"


def test_what_is_mounted_in_the_trees_and_not_covered_is_named(seen: Seen) -> None:
    named = {u["path"]: u["type"] for u in seen.plan["uncovered"]}
    covered = next(name for name in seen.rows if name.endswith("/covered"))
    assert named[str(Path(seen.rows[covered.rpartition("/")[0]].place, "covered"))] == "tmpfs"


def test_everything_with_a_read_only_pool_and_one_with_a_commands_name(tmp_path: Path, run: Runner, pool: Pool) -> None:
    """A pool imported read-only is said and left out; one that is called like a command is reached by 'backup'."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(128 << 20)
    command("zpool", "create", "-o", "cachefile=none", "-O", f"mountpoint={tmp_path}/plan", "plan", image)
    try:
        assert run("backup", "-c", "true", "plan").returncode == 0
        command("zpool", "export", "plan")
        command("zpool", "import", "-d", tmp_path, "-o", "readonly=on", "-o", "cachefile=none", "plan")
        ended, document = run.json("-a", "-c", "true")
        named = run("backup", "-c", "true", "plan")
    finally:
        command("zpool", "destroy", "plan")
    assert ended.returncode == 3
    (left_out,) = (o for o in document["left_out"] if o["dataset"] == "plan")
    assert (left_out["verdict"], left_out["incomplete"]) == ("read-only pool", True)
    assert pool.name in [d["dataset"] for d in document["datasets"]]
    assert named.returncode == 1
    assert "imported read-only" in named.stderr
