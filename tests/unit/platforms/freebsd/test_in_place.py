"""The view in place on FreeBSD, through the shim: a tree for a chroot, what is live in it and what frozen, and that it goes."""

import errno
import os
import signal
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kopiatomic.engines import IGNORE_FILES
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.leftovers import Intent
from kopiatomic.model.mounts import visible
from kopiatomic.model.plan import SCRATCH, Dataset, Layout, Plan, PlannedPath, Taken, Uncovered
from kopiatomic.platforms.freebsd import in_place
from kopiatomic.platforms.freebsd.in_place import InPlaceView
from kopiatomic.platforms.freebsd.leftovers import MountLeftovers
from kopiatomic.platforms.freebsd.platform import FreeBSDPlatform
from kopiatomic.platforms.steps import Missing, Step
from kopiatomic.runs import recovery
from kopiatomic.runs.recovery import Recovery
from kopiatomic.state import locks, root_leftovers
from kopiatomic.system import freebsd_mounting, linux, spawn
from tests.support.freebsd_shim import JAIL, Shim, isolated
from tests.support.repositories import Borg, Restic
from tests.unit.support.freebsd_views import RUN, Ground

pytestmark = [
    pytest.mark.usefixtures("lock_directory"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the shim mounts for real"),
]

NOT_LONG = 0.1
"""Seconds to wait for a mount that stays busy."""


class Place(Ground):
    """One run's, whose plan is put together here. ``live`` is a live tree, with a directory for datasets and for mounts."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.root = self.base
        self.live = folder / "live"
        (self.live / "data").mkdir(parents=True, exist_ok=True)
        (self.live / "file").write_text("live")
        (self.live / "data" / "file").write_text("live data")
        self.plan = Plan(str(self.base), (), layout=Layout.IN_PLACE, ignore_files=IGNORE_FILES)
        self.steps: list[Step] = []

    @property
    def seen(self) -> Path:
        """Where what is live at a path is in the view: what the engine sees there."""
        return self.base / "root"

    def inside(self, path: Path | str) -> Path:
        return Path(f"{self.seen}{path}")

    def take(self, dataset: str, place: Path | str, *directories: str, named: bool = False) -> None:
        """Have a dataset frozen at a place."""
        self.tree(dataset, *directories)
        one = Taken(Dataset("zfs", dataset, "tank", PlannedPath(str(place))), str(place), named=named)
        self.plan = replace(self.plan, taken=(*self.plan.taken, one))
        self.steps.append(self.step(dataset, str(place), named=named))

    def mounted(self, path: Path, *options: int) -> Uncovered:
        """A tmpfs that is mounted in the live tree, and has a file."""
        path.mkdir(exist_ok=True)
        linux.mount("none", str(path), "tmpfs", 0)
        (path / "file").write_text(f"in {path.name}")
        if options:
            linux.mount("none", str(path), None, linux.MS_BIND | linux.MS_REMOUNT | sum(options))
        return Uncovered(str(path), "tmpfs", "none", "", live=True)

    def beside(self, *mounts: Uncovered) -> None:
        self.plan = replace(self.plan, beside=(*self.plan.beside, *mounts))

    def view_in_place(self, shim: Shim | None = None) -> InPlaceView:
        def record(intents: Sequence[Intent]) -> None:
            self.records.intend_also(self.run_id, intents)

        return InPlaceView(str(self.base), self.plan, self.steps, (shim or self.shim).kernel, record)


@pytest.fixture
def place(tmp_path: Path, lock_directory: Path) -> Place:
    place = Place(tmp_path)
    place.begin()
    return place


@pytest.fixture
def small(place: Place) -> Place:
    """A frozen dataset with another in it."""
    place.take("tank/a", place.live / "data", "b")
    place.take("tank/a/b", place.live / "data" / "b")
    return place


MOUNTS = 7
"""Of that: a tmpfs, two snapshots, the live root, the directory for temporary files, and two that are frozen."""


@pytest.fixture
def whole(place: Place) -> Place:
    """A frozen root as a FreeBSD has it: an empty /dev, and a directory for the locks of runs."""
    place.take("tank", "/", "dev", locks.DIRECTORY.lstrip("/"), "home", "mnt")
    place.take("tank/home", "/home")
    return place


def refused(view: InPlaceView) -> KopiatomicError:
    with pytest.raises(KopiatomicError) as caught:
        view.assemble()
    assert caught.value.hint
    return caught.value


def entered(
    place: Place, view: InPlaceView, *argv: str, cwd: str = "/", env: dict[str, str] | None = None
) -> tuple[int, list[str]]:
    """How a program ends that is started in the view as the launcher does it, and what it says."""
    root = view.engine_root()
    out = os.open(place.folder / "said", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pid = spawn.start(argv, {**os.environ, **(env or {})}, spawn.SpawnOptions(null, out, out, cwd=cwd, root=root))
    finally:
        assert root is not None
        os.close(root)
        os.close(out)
        os.close(null)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, (place.folder / "said").read_text().splitlines()


def shell(place: Place, view: InPlaceView, lines: str, cwd: str = "/") -> list[str]:
    """What a shell in the view says."""
    status, said = entered(place, view, "/bin/sh", "-c", lines, cwd=cwd)
    assert status == 0, said
    return said


# What is seen


@isolated
def test_frozen_trees_are_at_their_true_paths_and_all_else_is_live(small: Place) -> None:
    view = small.view_in_place()
    made = view.assemble()
    data = small.live / "data"
    assert made.mounted == made.filled == (str(data), f"{data}/b")
    assert made.missing == ()
    assert (small.inside(data) / "file").read_text() == "tank/a"
    assert (small.inside(data) / "b" / "file").read_text() == "tank/a/b"
    assert view.seen_from_outside(os.getpid()) == str(small.seen)
    assert (small.inside(small.live) / "file").read_text() == "live"
    (small.live / "file").write_text("changed")
    assert (small.inside(small.live) / "file").read_text() == "changed"
    with pytest.raises(OSError, match="Read-only"):
        (small.inside(data) / "file").write_text("")
    assert (data / "file").read_text() == "live data"
    said = shell(small, view, f"cat {data}/file; echo; cat {small.live}/file; echo; echo x > {small.live}/new; pwd")
    assert said == ["tank/a", "changed", "/"]
    assert (small.live / "new").read_text() == "x\n"
    assert view.check() == []
    assert view.remove() == []
    assert small.shim.ours() == []


@isolated
def test_a_working_directory_is_entered_again_by_its_path(small: Place) -> None:
    data = str(small.live / "data")
    (small.live / "new").mkdir()
    os.chdir(data)
    view = small.view_in_place()
    view.assemble()
    assert shell(small, view, "cat file; echo; pwd", cwd=os.getcwd()) == ["tank/a", data]
    with pytest.raises(spawn.DirectoryError):
        shell(small, view, "true", cwd=f"{data}/new")
    assert view.remove() == []


@isolated
def test_restic_and_borg_save_true_paths_in_it(repository: Restic | Borg, small: Place) -> None:
    seen = visible(small.shim.table())
    here = [
        seen[point] for point in ("/dev", "/proc", *map(str, small.folder.parents)) if point in seen and point != "/"
    ]
    small.beside(*(Uncovered(m.point, m.fstype, m.source, "", live=True) for m in here))
    view = small.view_in_place()
    view.assemble()
    data = small.live / "data"
    words = ["backup"] if repository.engine == "restic" else ["create", "::first"]
    status, said = entered(
        small, view, repository.program, *words, str(data), cwd=str(data), env=repository.environment
    )
    assert status == 0, said
    assert view.check() == []
    assert view.remove() == []
    (kept,) = repository.kept()
    assert kept.paths == (str(data),)
    repository.restore(kept.id, small.folder / "restored")
    restored = Path(f"{small.folder}/restored{data}")
    assert {(restored / name / "file").read_text() for name in (".", "b")} == {"tank/a", "tank/a/b"}


@isolated
def test_every_mount_of_ours_lies_in_the_runs_own_directory(small: Place) -> None:
    small.beside(small.mounted(small.live / "memory"))
    before = [m.point for m in small.shim.table()]
    small.view_in_place().assemble()
    made = [point for _, _, point in small.shim.ours()]
    assert len(made) == MOUNTS + 1
    assert all(point == str(small.base) or point.startswith(f"{small.base}/") for point in made)
    assert sorted(m.point for m in small.shim.table()) == sorted([*before, *made])


@isolated
def test_a_live_mount_has_a_nullfs_of_its_own_with_the_flags_of_the_live_one(small: Place) -> None:
    outer = small.mounted(small.live / "outer", linux.MS_NOEXEC, linux.MS_NOSUID)
    inner = small.mounted(small.live / "outer" / "inner", linux.MS_RDONLY)
    hidden = small.mounted(small.live / "hidden")
    small.beside(outer, inner)
    small.view_in_place().assemble()
    table = {m.point: m for m in small.shim.table()}
    for mount, flags in ((outer, {"noexec", "nosuid"}), (inner, {"ro"})):
        assert (small.inside(mount.point) / "file").read_text() == f"in {Path(mount.point).name}"
        ours = table[str(small.inside(mount.point))]
        assert (ours.fstype, ours.source) == ("nullfs", mount.point)
        assert flags <= {*ours.options}
        assert {"ro", "noexec", "nosuid"} & {*ours.options} == flags
    assert os.listdir(small.inside(hidden.point)) == []


@isolated
def test_what_the_kernel_makes_is_mounted_anew(small: Place) -> None:
    (small.live / "dev" / "fd").mkdir(parents=True)
    dev = Uncovered(str(small.live / "dev"), "devfs", "devfs", "", live=True)
    automatic = Uncovered(str(small.live), "autofs", "map", "", live=True)
    small.beside(dev, automatic)
    view = small.view_in_place()
    view.assemble()
    assert ("devfs", "devfs", str(small.inside(dev.point))) in small.shim.ours()
    assert shell(small, view, f"echo x > {dev.point}/null && echo written") == ["written"]
    assert len(small.shim.ours()) == MOUNTS + 1
    assert view.remove() == []


@isolated
def test_no_mount_of_any_run_and_none_that_a_look_has_made_is_shown(small: Place) -> None:
    """A nullfs of it would keep it from being unmounted."""
    small.beside(
        Uncovered("/kopia", "nullfs", f"{locks.DIRECTORY}/view-other/d0", "", live=True),
        Uncovered(f"{locks.DIRECTORY}/view-other", "tmpfs", "tmpfs", "", live=True),
        Uncovered("/tank/.zfs/snapshot/a", "zfs", "tank@a", "", live=True),
    )
    view = small.view_in_place()
    view.assemble()
    assert len(small.shim.ours()) == MOUNTS


@isolated
def test_there_is_a_place_for_temporary_files_at_the_path_that_the_engine_is_told(small: Place) -> None:
    view = small.view_in_place()
    view.assemble()
    assert shell(small, view, f"cd {small.plan.scratch} && echo x > y && cat y") == ["x"]
    assert small.plan.scratch == f"{small.base}/{SCRATCH}"
    assert view.check() == []
    assert view.remove() == []


@isolated
def test_each_of_roots_programs_has_a_place_for_temporary_files_of_its_own(small: Place) -> None:
    view = small.view_in_place()
    view.assemble()
    with view.temporary("", None) as first:
        assert shell(small, view, f"ls -A {first}; echo x > {first}/y && cat {first}/y") == ["x"]
        assert stat.S_IMODE((small.inside(first)).stat().st_mode) == 0o700
    with view.temporary("", None) as second:
        assert shell(small, view, f"ls -A {second}; echo z") == ["z"]
    with view.temporary("", spawn.User(1, 1, ())) as none:
        # The directory of all runs is root's alone.
        assert none == ""
    assert view.check() == []
    assert view.remove() == []
    assert small.shim.ours() == []


@isolated
def test_what_an_engine_writes_is_live_in_a_frozen_tree_also_where_its_mount_is(small: Place) -> None:
    data = small.live / "data"
    cache = data / "b"
    cache.mkdir()
    memory = replace(small.mounted(data / "memory"), inside="tank/a")
    (small.trees / "tank-a" / "memory").mkdir()
    (small.trees / "tank-a-b" / "own").mkdir()
    (data / "b" / "own").mkdir()
    # In a live mount it is live already, and FreeBSD would refuse to mount it on itself.
    (data / "memory" / "own").mkdir()
    small.plan = replace(small.plan, uncovered=(memory,), writable=(f"{data}/b/own", f"{data}/memory/own"))
    view = small.view_in_place()
    view.assemble()
    (small.inside(data) / "b" / "own" / "x").write_text("")
    (small.inside(data) / "memory" / "own" / "x").write_text("")
    assert (data / "b" / "own" / "x").exists()
    assert len(small.shim.ours()) == MOUNTS + 2
    assert view.remove() == []


@isolated
def test_what_is_hidden_is_not_there(small: Place) -> None:
    data = small.live / "data"
    memory = replace(small.mounted(data / "memory"), inside="tank/a", live=False)
    (small.trees / "tank-a" / "memory").mkdir()
    small.plan = replace(small.plan, uncovered=(memory,))
    small.view_in_place().assemble()
    assert os.listdir(small.inside(data) / "memory") == []


# A frozen root


@isolated
def test_a_frozen_root_has_few_devices_and_an_own_directory_that_no_engine_reads(whole: Place) -> None:
    view = whole.view_in_place()
    made = view.assemble()
    assert made.mounted == ("/", "/home")
    assert sorted(os.listdir(whole.inside("/dev"))) == ["null", "random", "urandom", "zero"]
    assert os.listdir(whole.inside(locks.DIRECTORY)) != []
    assert (whole.inside(locks.DIRECTORY) / ".kopiaignore").read_text() == "*\n"
    (whole.inside(whole.plan.scratch) / "x").write_text("")
    with view.temporary("", None) as path:
        (whole.inside(path) / "x").write_text("")
    assert (whole.inside("/home") / "file").read_text() == "tank/home"
    assert view.check() == []
    assert view.remove() == []
    assert whole.shim.ours() == []


@isolated
def test_a_command_in_a_frozen_root_finds_the_systems_devices_and_the_locks_of_all_runs(whole: Place) -> None:
    dev = Uncovered("/dev", "devfs", "devfs", "tank", live=True)
    whole.plan = replace(whole.plan, live_system=True, uncovered=(dev,))
    Path(locks.DIRECTORY, "somebodys").write_text("lock")
    view = whole.view_in_place()
    view.assemble()
    assert set(os.listdir(whole.inside("/dev"))) > {"null", "tty"}
    assert (whole.inside(locks.DIRECTORY) / "somebodys").read_text() == "lock"
    (whole.inside(whole.plan.scratch) / "x").write_text("")
    assert view.check() == []
    assert view.remove() == []


@isolated
@pytest.mark.parametrize("live_system", [False, True])
def test_where_its_own_directory_is_in_a_hidden_mount_there_is_one_of_ours(live_system: bool, place: Place) -> None:
    """--only-frozen, with a tmpfs above the directory of locks."""
    above = os.path.dirname(locks.DIRECTORY)
    place.take("tank", "/", "dev", above.lstrip("/"))
    hidden = Uncovered(above, "tmpfs", "tmpfs", "tank", live=False)
    place.plan = replace(place.plan, uncovered=(hidden,), live_system=live_system)
    view = place.view_in_place()
    view.assemble()
    (place.inside(place.plan.scratch) / "x").write_text("")
    assert view.check() == []
    assert view.remove() == []


@isolated
def test_a_frozen_root_without_a_dev_is_refused(place: Place) -> None:
    place.take("tank", "/", locks.DIRECTORY.lstrip("/"))
    view = place.view_in_place()
    error = refused(view)
    assert "the devices cannot appear at /dev: /dev does not exist in the snapshot of tank" in error.message
    assert view.remove() == []
    assert place.shim.ours() == []


# What has no place


@isolated
def test_a_place_that_is_not_in_the_tree_above_is_left_out_and_said(small: Place) -> None:
    data = small.live / "data"
    small.take("tank/x", data / "gone")
    made = small.view_in_place().assemble()
    assert made.missing == (Missing("tank/x", f"{data}/gone", f"{data}/gone does not exist in the snapshot of tank/a"),)


@isolated
def test_a_path_that_is_too_long_in_the_run_s_own_directory_is_left_out(small: Place) -> None:
    deep = "/".join(["d" * 200] * 5)
    small.take("tank/x", small.live / deep)
    os.makedirs(small.live / deep)
    made = small.view_in_place().assemble()
    (missing,) = made.missing
    assert "FreeBSD mounts paths of up to 1023" in missing.reason


@isolated
def test_a_live_mount_that_is_gone_by_now_is_not_missed(small: Place) -> None:
    memory = small.mounted(small.live / "memory")
    linux.detach(memory.point)
    small.beside(memory)
    made = small.view_in_place().assemble()
    assert made.missing == ()
    assert len(small.shim.ours()) == MOUNTS


@isolated
def test_where_others_could_move_what_leads_to_it_nothing_is_mounted(small: Place) -> None:
    """A live mount is not shown, and said; a frozen dataset or what must be writable is refused."""
    theirs = small.live / "theirs"
    theirs.mkdir()
    memory = small.mounted(theirs / "memory")
    os.chown(theirs, 12345, 0)
    small.beside(memory)
    (warning,) = in_place.refuse(small.plan)
    assert warning.startswith(
        f"{theirs}/memory (tmpfs) is not there for what reads the view: user 12345 can change {theirs}"
    )
    made = small.view_in_place().assemble()
    assert made.missing == ()
    assert os.listdir(small.inside(theirs)) == ["memory"]
    assert os.listdir(small.inside(theirs) / "memory") == []


@isolated
def test_a_frozen_dataset_that_others_could_move_is_refused_unless_what_holds_it_is_frozen_too(place: Place) -> None:
    theirs = place.live / "theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 0)
    place.take("tank/x", theirs / "x")
    with pytest.raises(KopiatomicError) as caught:
        FreeBSDPlatform(place.shim.kernel).check(place.plan)
    assert caught.value.kind == "place-not-safe"
    assert f"user 12345 can change {theirs}" in caught.value.message
    place.take("tank", place.live, "theirs/x")
    assert FreeBSDPlatform(place.shim.kernel).check(place.plan) == []
    live = Uncovered(str(theirs), "tmpfs", "none", "tank", live=True)
    place.plan = replace(place.plan, uncovered=(live,))
    with pytest.raises(KopiatomicError, match="which is in a live tree"):
        FreeBSDPlatform(place.shim.kernel).check(place.plan)


@isolated
def test_what_has_to_be_writable_where_others_could_move_it_is_refused(small: Place) -> None:
    own = small.live / "data" / "b" / "own"
    own.mkdir(parents=True)
    os.chown(own.parent, 1000, 0)
    small.plan = replace(small.plan, writable=(str(own),))
    error = refused(small.view_in_place())
    assert (error.kind, str(own.parent) in error.message) == ("live", True)
    assert small.shim.calls == []
    assert small.recorded() == set()


JAIL_IN_PLACE = {**JAIL, "security.jail.mount_devfs_allowed": 1}


@isolated
@pytest.mark.parametrize("fstype", ["devfs", "fdescfs", "procfs"])
def test_a_jail_has_to_allow_what_is_mounted_anew(fstype: str, small: Place) -> None:
    small.beside(Uncovered("/x", fstype, fstype, "", live=True))
    for name, value in {**JAIL_IN_PLACE, f"security.jail.mount_{fstype}_allowed": 0}.items():
        small.shim.sysctls[name] = (value, 4)
    with pytest.raises(KopiatomicError, match=rf"it lacks allow\.mount\.{fstype}$"):
        FreeBSDPlatform(small.shim.kernel).check(small.plan)


@isolated
def test_in_a_jail_the_devices_are_those_of_the_jail(whole: Place) -> None:
    for name, value in JAIL_IN_PLACE.items():
        whole.shim.sysctls[name] = (value, 4)
    whole.shim.jailed = True
    asked: list[dict[str, str]] = []
    whole.shim.before_nmount = asked.append  # type: ignore[assignment]
    view = whole.view_in_place()
    view.assemble()
    assert [options.get("ruleset") for options in asked if options["fstype"] == "devfs"] == [None]
    assert view.check() == []
    assert view.remove() == []
    assert whole.shim.ours() == []


# On record, the check, and that it goes


@isolated
def test_every_mount_is_on_record_before_it_is_made(small: Place) -> None:
    (small.live / "dev").mkdir()
    small.beside(small.mounted(small.live / "memory"), Uncovered(f"{small.live}/dev", "devfs", "devfs", "", live=True))
    asked = []

    def look(options: dict[str, str]) -> None:
        source = options.get("from") or options["target"]
        assert (options["fstype"], options["fspath"], source) in small.recorded()
        asked.append(options["fstype"])

    small.shim.before_nmount = look  # type: ignore[assignment]
    small.view_in_place().assemble()
    assert len(asked) == len(small.recorded()) == MOUNTS + 2


@isolated
@pytest.mark.parametrize("what", ["root", "live", "frozen", "devices", "aside"])
@pytest.mark.parametrize("how", ["unmounted", "covered"])
def test_any_mount_that_is_not_what_it_was_is_noticed(how: str, what: str, small: Place) -> None:
    memory = small.mounted(small.live / "memory")
    (small.live / "dev").mkdir()
    small.beside(memory, Uncovered(str(small.live / "dev"), "devfs", "devfs", "", live=True))
    view = small.view_in_place()
    view.assemble()
    point, words = {
        "root": (small.seen, "the live / was"),
        "live": (small.inside(memory.point), f"the live {memory.point} was"),
        "frozen": (small.inside(small.live / "data" / "b"), "the snapshot of tank/a/b was"),
        "devices": (small.inside(small.live / "dev"), f"the live {small.live}/dev was"),
        "aside": (small.base / "s1", "the snapshot of tank/a/b was"),
    }[what]
    if how == "unmounted":
        linux.detach(str(point))
    else:
        linux.mount("none", str(point), "tmpfs", 0)
    assert any(problem.startswith(words) for problem in view.check())


@isolated
def test_what_somebody_mounts_in_the_view_is_noticed_and_stays_theirs(small: Place) -> None:
    view = small.view_in_place()
    view.assemble()
    linux.mount("none", str(small.inside(small.live)), "tmpfs", 0)
    assert f"somebody has mounted something in the view, at {small.inside(small.live)}" in view.check()
    assert view.remove(NOT_LONG) != []
    linux.detach(str(small.inside(small.live)))
    assert view.remove() == []


@isolated
def test_who_destroys_a_snapshot_is_refused(small: Place) -> None:
    view = small.view_in_place()
    view.assemble()
    with pytest.raises(OSError, match=r"\[Errno 16\]"):
        small.shim.destroy(small.snapshot("tank/a/b"))
    assert view.check() == []


@isolated
@pytest.mark.parametrize("at", range(MOUNTS))
def test_wherever_mounting_fails_what_was_made_goes(at: int, small: Place) -> None:
    small.shim.fail_at = {at: errno.EIO}
    view = small.view_in_place()
    assert "the shim was told to fail" in refused(view).message
    assert len(small.shim.ours()) == at
    assert view.remove() == []
    assert small.shim.ours() == []


@isolated
def test_another_process_that_made_nothing_can_take_it_away(small: Place) -> None:
    small.beside(small.mounted(small.live / "memory"))
    small.view_in_place().assemble()
    assert small.view_in_place().remove(0) == []
    assert small.shim.ours() == []


def killed(place: Place, at: int) -> None:
    """Begin a run and its view in a process that is killed before its mount of this number (from 0), or after the last."""
    pid = os.fork()
    if pid == 0:
        with locks.run(place.run_id, ""):
            shim = place.new_shim()
            shim.snapshots = place.shim.snapshots

            def die(_options: object) -> None:
                if sum(call[0] == "nmount" for call in shim.calls) == at:
                    os.kill(os.getpid(), signal.SIGKILL)

            shim.before_nmount = die
            place.view_in_place(shim).assemble()
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


LIVE_ONES = 2
"""Live mounts beside: a tmpfs and devices."""


@isolated
@pytest.mark.parametrize("record", [True, False], ids=["recorded", "without a record"])
@pytest.mark.parametrize("at", range(MOUNTS + LIVE_ONES + 1))
def test_whenever_a_run_is_killed_the_next_one_clears_all_of_it(
    at: int, record: bool, small: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    finders = {"mount": MountLeftovers(lambda: small.shim.kernel, timeout=NOT_LONG), "directory": root_leftovers}
    monkeypatch.setattr(recovery, "kinds", lambda _: finders)
    memory = small.mounted(small.live / "memory")
    (small.live / "dev").mkdir()
    small.beside(memory, Uncovered(str(small.live / "dev"), "devfs", "devfs", "", live=True))
    killed(small, at)
    assert len(small.shim.ours()) == at
    looking = Recovery(small.records, own=None, dry_run=False, warn=lambda _: None)
    if record:
        cleared = looking.recorded()
        assert (cleared.left, cleared.problems, cleared.interrupted) == (0, [], [RUN])
    else:
        small.records.forget(small.run_id)
        small.records.end_dead(small.run_id, "interrupted")
        looking.unrecorded(None)
        looking.remove(looking.cleared.leftovers)
        assert looking.cleared.left == 0
    assert small.shim.ours() == []
    assert not small.base.exists()
    # And nothing of anybody else's.
    assert (small.live / "memory" / "file").read_text() == "in memory"


@isolated
def test_a_mount_of_the_live_root_at_another_point_is_somebodys(small: Place) -> None:
    other = small.folder / "other"
    other.mkdir()
    small.view_in_place().assemble()
    freebsd_mounting.mount(small.shim.kernel, "nullfs", "/", str(other), ())
    assert small.view_in_place().remove(NOT_LONG) == []
    assert small.shim.ours() == [("nullfs", "/", str(other))]
