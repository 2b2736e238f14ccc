"""Mounts that a killed run left on FreeBSD, through the shim: exactly those go, by the records or by the run's own directory."""

import ctypes
import errno
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kopiatomic.filesystems.backends import Leftovers
from kopiatomic.model.leftovers import Cleared, Intent, Leftover
from kopiatomic.platforms.freebsd import leftovers as mount_leftovers
from kopiatomic.platforms.freebsd.leftovers import MountLeftovers
from kopiatomic.runs import recovery
from kopiatomic.runs.recovery import Recovery
from kopiatomic.state import locks, root_leftovers
from kopiatomic.state.records import Records
from kopiatomic.system import freebsd_mounting, linux
from tests.support.freebsd_shim import Shim, isolated, mount_nullfs
from tests.unit.support.freebsd_views import RUN, Ground

pytestmark = [
    pytest.mark.usefixtures("lock_directory"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the shim mounts for real"),
]

OTHER = "20261122T101113Z-89abcdef"
MOUNTS = 6
"""Of the view that is made here."""

NOT_LONG = 0.2


@pytest.fixture
def ground(tmp_path: Path, lock_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Ground:
    ground = Ground(tmp_path)
    finders: dict[str, Leftovers] = {
        "mount": MountLeftovers(lambda: ground.shim.kernel, timeout=NOT_LONG),
        "directory": root_leftovers,
    }
    monkeypatch.setattr(recovery, "kinds", lambda _: finders)
    return ground


def killed(ground: Ground, at: int = MOUNTS) -> None:
    """Begin a run and its view in a process that is killed before its mount of this number (from 0), or after the last."""
    pid = os.fork()
    if pid == 0:
        with locks.run(ground.run_id, ""):
            ground.begin()
            shim = ground.new_shim()
            ground.tree("tank/a", "b") if not (ground.trees / "tank-a").exists() else None
            steps = ground.step("tank/a", "/a"), ground.step("tank/a/b", "/a/b")
            shim.snapshots = ground.shim.snapshots

            def die(_options: object) -> None:
                if sum(call[0] == "nmount" for call in shim.calls) == at:
                    os.kill(os.getpid(), signal.SIGKILL)

            shim.before_nmount = die
            ground.view(*steps, shim=shim).assemble()
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def recover(ground: Ground, *, dry_run: bool = False) -> Cleared:
    told: list[str] = []
    cleared = Recovery(ground.records, own=None, dry_run=dry_run, warn=told.append).recorded()
    assert told == []
    return cleared


def lost_records(ground: Ground) -> None:
    ground.records.forget(ground.run_id)
    ground.records.end_dead(ground.run_id, "interrupted")


def unrecorded(ground: Ground) -> Recovery:
    looking = Recovery(ground.records, own=None, dry_run=False, warn=lambda _: None)
    looking.unrecorded(None)
    return looking


@isolated
@pytest.mark.parametrize("at", range(MOUNTS + 1))
def test_whenever_a_run_is_killed_the_next_one_clears_all_of_it(at: int, ground: Ground) -> None:
    killed(ground, at)
    assert len(ground.shim.ours()) == at
    cleared = recover(ground)
    assert (cleared.left, cleared.problems, cleared.interrupted) == (0, [], [RUN])
    assert [o.kind for o in cleared.leftovers] == ["mount"] * at + ["directory"] * 2
    assert ground.left() == []
    assert ground.records.unfinished() == []
    assert recover(ground).leftovers == []


@isolated
def test_what_would_go_is_shown_with_its_proof_and_what_to_type(ground: Ground) -> None:
    killed(ground)
    leftovers = recover(ground, dry_run=True).leftovers
    assert len(ground.shim.ours()) == MOUNTS
    first = leftovers[0]
    assert (first.name, first.command) == (f"{ground.root}/a/b", f"umount {ground.root}/a/b")
    assert first.proof == f"nullfs of {ground.base}/s1, recorded, with what is mounted there"
    assert {(o.place, o.name, o.origin) for o in leftovers if o.kind == "mount"} == ground.recorded()


@isolated
def test_a_living_run_keeps_its_view(ground: Ground) -> None:
    with locks.run(ground.run_id, "") as held:
        for directory in (ground.root, ground.base):
            locks.take_root(held, str(directory), {}, None)
        ground.begin()
        view = ground.view(ground.step("tank/a", "/a"))
        view.assemble()
        # Asked by another process: a lock is its whole process's.
        pid = os.fork()
        if pid == 0:
            cleared = recover(ground)
            assert unrecorded(ground).cleared.leftovers == []
            os._exit(0 if cleared.alive == [RUN] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert view.check() == []


@isolated
def test_of_two_runs_only_what_the_dead_one_left_goes(ground: Ground) -> None:
    killed(ground)
    other = Ground(ground.folder, OTHER, "other")
    with locks.run(OTHER, ""):
        other.begin()
        view = other.view(other.step("tank/c", "/c"))
        view.assemble()
        recover(ground)
        assert [str(path) for path in (ground.root, ground.base) if path.exists()] == []
        assert len(ground.shim.ours()) == 4
        assert view.check() == []


@isolated
@pytest.mark.parametrize("what", ["source", "point", "type"])
def test_a_mount_that_is_not_quite_the_recorded_one_is_somebodys(what: str, ground: Ground) -> None:
    killed(ground, 0)
    theirs, elsewhere = ground.folder / "theirs", ground.folder / "elsewhere"
    theirs.mkdir()
    elsewhere.mkdir()
    kernel = ground.shim.kernel
    match what:
        case "source":
            mount_nullfs(kernel, str(theirs), str(ground.root))
        case "point":
            freebsd_mounting.mount_tmpfs(kernel, str(elsewhere))
        case "type":
            freebsd_mounting.mount_tmpfs(kernel, str(ground.root))
    before = ground.shim.ours()
    cleared = recover(ground)
    assert ground.shim.ours() == before
    assert "mount" not in [o.kind for o in cleared.leftovers]


def found(ground: Ground, *intents: Intent) -> list[Leftover]:
    return MountLeftovers(lambda: ground.shim.kernel).recorded(RUN, intents)


@isolated
def test_only_what_is_on_record_itself_is_ours_not_a_part_of_it_and_not_what_begins_alike(ground: Ground) -> None:
    ground.begin()
    freebsd_mounting.mount_tmpfs(ground.shim.kernel, str(ground.base))
    for directory in ("s1/part", "s10", "view", "view2", "view3"):
        (ground.base / directory).mkdir(parents=True)
    for source, point in (("s1", "view"), ("s1/part", "view2"), ("s10", "view3")):
        mount_nullfs(ground.shim.kernel, f"{ground.base}/{source}", f"{ground.base}/{point}")
    points = ("view", "view2", "view3")
    intents = [Intent("mount", "nullfs", f"{ground.base}/{point}", f"{ground.base}/s1") for point in points]
    assert [o.name for o in found(ground, *intents)] == [f"{ground.base}/view"]


@isolated
def test_what_is_in_use_stays_on_record_and_goes_with_the_next_one(ground: Ground) -> None:
    killed(ground)
    with open(f"{ground.root}/a/b/file") as used:
        cleared = recover(ground)
        assert used.read() == "tank/a/b"
    problems = {o.name: o.problem for o in cleared.leftovers if o.kind == "mount"}
    assert "in use" in (problems[f"{ground.root}/a/b"] or "")
    assert cleared.left > 0
    assert (("nullfs", f"{ground.root}/a/b", f"{ground.base}/s1")) in ground.recorded()
    assert recover(ground).left == 0
    assert ground.left() == []


@isolated
def test_what_somebody_mounted_in_a_dead_view_stays_theirs(ground: Ground) -> None:
    killed(ground)
    linux.mount("none", f"{ground.root}/a/b", "tmpfs", 0)
    (ground.root / "a" / "b" / "theirs").write_text("kept")
    assert recover(ground).left > 0
    assert (ground.root / "a" / "b" / "theirs").read_text() == "kept"


@isolated
def test_after_a_reboot_nothing_is_mounted_and_the_record_goes(ground: Ground) -> None:
    killed(ground)
    for _, _, point in reversed(ground.shim.ours()):
        linux.detach(point)
    cleared = recover(ground)
    assert "mount" not in [o.kind for o in cleared.leftovers]
    assert ground.records.unfinished() == []


@isolated
def test_without_a_record_the_runs_own_directory_tells(ground: Ground) -> None:
    killed(ground)
    lost_records(ground)
    assert recover(ground).leftovers == []
    looking = unrecorded(ground)
    mounts = [o for o in looking.cleared.leftovers if o.kind == "mount"]
    assert len(mounts) == MOUNTS
    assert all(o.run_id == RUN and f"of {ground.base}" in o.proof for o in mounts)
    looking.remove(looking.cleared.leftovers)
    assert looking.cleared.left == 0
    assert ground.shim.ours() == []


@isolated
@pytest.mark.parametrize("name", ["view-", "view-20261122T101112Z", f"view-{RUN}x", f"other-{RUN}"])
def test_without_a_record_a_directory_of_any_other_name_tells_nothing(name: str, ground: Ground) -> None:
    locks.prepare()
    point = Path(locks.DIRECTORY, name)
    point.mkdir()
    freebsd_mounting.mount_tmpfs(ground.shim.kernel, str(point))
    assert unrecorded(ground).cleared.leftovers == []


@isolated
def test_in_a_jail_what_somebody_mounted_over_ours_is_not_unmounted_in_its_place(ground: Ground) -> None:
    killed(ground)
    ground.shim.jailed = True
    freebsd_mounting.mount_tmpfs(ground.shim.kernel, str(ground.root))
    cleared = recover(ground)
    problems = {o.name: o.problem for o in cleared.leftovers if o.kind == "mount"}
    assert problems[str(ground.root)] == "something is mounted over it"
    assert ("tmpfs", "tmpfs", str(ground.root)) in ground.shim.ours()


@isolated
def test_where_the_table_cannot_be_read_the_record_stays(ground: Ground) -> None:
    killed(ground)
    whole = ground.shim.kernel

    def refuse(*_: object) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    ground.shim.kernel = replace(whole, getfsstat=refuse)
    before = ground.recorded()
    cleared = recover(ground)
    assert all("the mount table cannot be read" in problem for problem in cleared.problems)
    assert (len(cleared.problems), ground.recorded()) == (3, before)
    ground.shim.kernel = whole
    assert recover(ground).left == 0
    assert ground.left() == []


@isolated
@pytest.mark.parametrize("jailed", [False, True])
def test_of_several_on_one_point_each_is_ours_and_goes(ground: Ground, jailed: bool) -> None:
    """Two nullfs on one point, as a table without ids made them; and what somebody else has mounted between them stays."""
    shim = ground.shim
    shim.jailed = jailed
    point = ground.base
    point.mkdir(parents=True)
    sources = [point.parent / name for name in ("one", "two")]
    for source in sources:
        source.mkdir()
        freebsd_mounting.mount(shim.kernel, "nullfs", str(source), str(point), ())
    wanted = [("nullfs", str(point), str(source)) for source in sources]
    assert mount_leftovers.clear(shim.kernel, wanted, NOT_LONG) == {}
    assert shim.ours() == []
    for source in (sources[0], point.parent, sources[1]):
        freebsd_mounting.mount(shim.kernel, "nullfs", str(source), str(point), ())
    left = mount_leftovers.clear(shim.kernel, wanted, NOT_LONG)
    assert set(left) == {wanted[0]}
    assert [source for _, source, _ in shim.ours()] == [str(sources[0]), str(point.parent)]


@isolated
def test_a_mount_that_comes_back_is_told(ground: Ground) -> None:
    ground.begin()
    shim = ground.shim
    freebsd_mounting.mount_tmpfs(shim.kernel, str(ground.base))
    take_away: Callable[..., None] = shim._take_away

    def and_back(mount: object, *, force: bool) -> None:
        take_away(mount, force=force)
        freebsd_mounting.mount_tmpfs(shim.kernel, str(ground.base))

    shim._take_away = and_back  # type: ignore[method-assign]
    problems = mount_leftovers.clear(shim.kernel, [("tmpfs", str(ground.base), "tmpfs")], NOT_LONG)
    assert problems == {("tmpfs", str(ground.base), "tmpfs"): "it came back"}


def test_on_linux_there_is_nothing_of_the_kind_to_look_for(tmp_path: Path) -> None:
    assert list(recovery.kinds(Records(str(tmp_path)))) == ["cgroup", "hook", "zfs", "btrfs", "directory"]


def test_the_shim_knows_what_an_earlier_one_mounted(tmp_path: Path) -> None:
    assert Shim(state=tmp_path / "none").ours() == []
