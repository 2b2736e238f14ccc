"""What is mounted in place on a FreeBSD as its installer makes it: exactly this, in this order, before anything is mounted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kopiatomic.model.facts import Facts
from kopiatomic.model.plan import Layout
from kopiatomic.model.request import Request
from kopiatomic.model.snapshots import Instant, Sets, Snapshot, SnapshotSet
from kopiatomic.planning.plan import select
from kopiatomic.platforms.freebsd import in_place
from kopiatomic.platforms.freebsd.in_place import InPlaceView
from kopiatomic.platforms.steps import steps_of
from kopiatomic.state import locks
from tests.support.freebsd_shim import Shim
from tests.unit.support.plans import SUFFIX, facts, zfs

RUNS = "/var/run/kopiatomic"
BASE = f"{RUNS}/view-X"


def installed(*more: tuple[str, str, str], names: tuple[str, ...] = ()) -> Facts:
    made = (
        ("/", "zfs", "zroot/ROOT/default"),
        ("/dev", "devfs", "devfs"),
        ("/dev/fd", "fdescfs", "fdescfs"),
        ("/tmp", "zfs", "zroot/tmp"),
        ("/usr/home", "zfs", "zroot/home"),
        ("/usr/home/ann", "zfs", "zroot/home/ann"),
        ("/var/log", "zfs", "zroot/var/log"),
        ("/net", "autofs", "map -hosts"),
        ("/backup", "nfs", "server:/backup"),
        ("/tmp/.zfs/snapshot/a", "zfs", "zroot/tmp@a"),
        ("/kopia", "nullfs", f"{RUNS}/view-OTHER/d0"),
        (f"{RUNS}/view-OTHER", "tmpfs", "tmpfs"),
        *more,
    )
    datasets = [zfs(source) for _, fstype, source in made if fstype == "zfs" and "@" not in source]
    return facts(*made, datasets=datasets, directories=names)


def mounts(known: Facts, *names: str, writable: tuple[str, ...] = (), **more: Any) -> list[tuple[str, str, str]]:
    """Type, source, and point below the run's own directory, of all that is mounted after the snapshots."""
    request = Request(
        names, everything=False, recursive=False, root=BASE, suffix=SUFFIX, layout=Layout.IN_PLACE, **more
    )
    chosen = replace(select(known, request), writable=writable)
    shots = tuple(Snapshot(t.dataset.name, f"{t.dataset.name}@x", 1) for t in chosen.taken)
    made = Sets((SnapshotSet("zfs", "zroot", shots, Instant(0, 0, 0, 0)),))
    view = InPlaceView(BASE, chosen, steps_of(chosen, made), Shim().kernel, lambda _: None)
    found = [(i.place, i.origin, i.name.removeprefix(f"{BASE}/")) for i in view._intents]
    assert found[0] == ("tmpfs", "tmpfs", BASE)
    snapshots = [mount for mount in found[1:] if mount[0] == "zfs"]
    assert [source for _, source, _ in snapshots] == [shot.source for shot in shots]
    names_of = {f"{BASE}/{point}": source.partition("@")[0] for _, source, point in snapshots}
    return [(fstype, names_of.get(source, source), point) for fstype, source, point in found[1 + len(snapshots) :]]


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "DIRECTORY", RUNS)


OWN = f"{BASE}/own"


def test_a_dataset_with_all_else_live() -> None:
    assert mounts(installed(), "/usr/home") == [
        ("nullfs", "/", "root"),
        ("nullfs", "/backup", "root/backup"),
        ("devfs", "devfs", "root/dev"),
        ("fdescfs", "fdescfs", "root/dev/fd"),
        ("nullfs", "/tmp", "root/tmp"),
        ("nullfs", "zroot/home", "root/usr/home"),
        # It was not asked for, and is live in what is frozen.
        ("nullfs", "/usr/home/ann", "root/usr/home/ann"),
        ("nullfs", "/var/log", "root/var/log"),
        ("nullfs", OWN, f"root{BASE}"),
    ]


def test_a_part_of_a_dataset_in_the_live_rest_of_it() -> None:
    known = installed(names=("/usr/home/ann/docs",))
    assert [m for m in mounts(known, "/usr/home/ann/docs") if "home" in m[2]] == [
        ("nullfs", "/usr/home", "root/usr/home"),
        ("nullfs", "/usr/home/ann", "root/usr/home/ann"),
        ("nullfs", f"{BASE}/s0/docs", "root/usr/home/ann/docs"),
    ]


def test_the_root_of_all_in_a_backup() -> None:
    """Of the running system there is nothing but a few devices and a directory that no engine reads."""
    known = installed(("/mnt", "ufs", "/dev/da0p1"))
    assert mounts(known, "/", "/var/log", writable=("/root/.cache/kopia",)) == [
        ("nullfs", "zroot/ROOT/default", "root"),
        ("devfs", "devfs", "root/dev"),
        ("nullfs", "/mnt", "root/mnt"),
        ("nullfs", "/root/.cache/kopia", "root/root/.cache/kopia"),
        ("nullfs", "/tmp", "root/tmp"),
        ("nullfs", "/usr/home", "root/usr/home"),
        ("nullfs", "/usr/home/ann", "root/usr/home/ann"),
        ("nullfs", "zroot/var/log", "root/var/log"),
        ("nullfs", OWN, f"root{RUNS}"),
    ]


def test_the_root_of_all_for_a_command() -> None:
    """What the running system has is there, the locks of all runs as well."""
    assert mounts(installed(), "/", "/usr/home", live_system=True, exclude=("zroot/home/ann",)) == [
        ("nullfs", "zroot/ROOT/default", "root"),
        ("devfs", "devfs", "root/dev"),
        ("fdescfs", "fdescfs", "root/dev/fd"),
        ("nullfs", "/tmp", "root/tmp"),
        # In it is nothing of what was excluded.
        ("nullfs", "zroot/home", "root/usr/home"),
        ("nullfs", "/var/log", "root/var/log"),
        ("nullfs", RUNS, f"root{RUNS}"),
        ("nullfs", OWN, f"root{BASE}"),
    ]


def test_only_what_is_frozen() -> None:
    known = installed(("/var/run", "tmpfs", "tmpfs"))
    assert mounts(known, "/", "/usr/home/ann", only_frozen=True) == [
        ("nullfs", "zroot/ROOT/default", "root"),
        ("devfs", "devfs", "root/dev"),
        # In the frozen root there is no place for what lies in a mount that is hidden.
        ("nullfs", f"{BASE}/d2", "root/usr/home"),
        ("nullfs", "zroot/home/ann", "root/usr/home/ann"),
        ("nullfs", f"{BASE}/d4", "root/var/run"),
        ("nullfs", OWN, f"root{RUNS}"),
    ]


def test_what_an_engine_writes_is_not_mounted_twice() -> None:
    """A directory in what is live already: FreeBSD refuses a nullfs on itself."""
    written = ("/tmp/cache", "/usr/home/ann/cache")
    found = mounts(installed(), "/usr/home", "/tmp", writable=written)
    assert [m for m in found if "cache" in m[2]] == [("nullfs", "/tmp/cache", "root/tmp/cache")]


def test_what_somebody_has_mounted_where_runs_have_their_directories_is_shown() -> None:
    found = mounts(installed((RUNS, "tmpfs", "tmpfs")), "/usr/home")
    assert found[-2:] == [("nullfs", RUNS, f"root{RUNS}"), ("nullfs", OWN, f"root{BASE}")]


def test_a_jail_has_to_allow_just_what_is_mounted_anew() -> None:
    for names, live_system, kinds in (
        (("/usr/home",), False, {"devfs", "fdescfs"}),
        (("/",), False, {"devfs"}),
        (("/",), True, {"devfs", "fdescfs"}),
    ):
        request = Request(names, False, False, BASE, SUFFIX, layout=Layout.IN_PLACE, live_system=live_system)
        assert in_place.filesystems(select(installed(), request)) == kinds
