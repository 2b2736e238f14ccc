"""The view: what the engine sees of each dataset and where, and that nobody else sees or feels it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.system import linux, mountinfo
from tests.support.filesystems import Pool
from tests.support.programs import Kopiatomic, command
from tests.zfs import obstacles
from tests.zfs.runs import Run, Runner, children

pytestmark = pytest.mark.in_part(9)

# Writes down what it sees below the root (bytes of names kept), says so, and waits where it is told to.
ENGINE = """
import json, os, sys, time
out, wait, root = sys.argv[1], sys.argv[2], sys.argv[3]
seen = {}
for folder, folders, files in os.walk(root):
    status = os.stat(folder)
    seen[folder] = {
        "files": {name: open(os.path.join(folder, name), errors="surrogateescape").read() for name in files},
        "mode": status.st_mode & 0o7777, "owner": [status.st_uid, status.st_gid], "mtime": status.st_mtime_ns,
        "flags": os.statvfs(folder).f_flag,
    }
with open(out + ".part", "w") as file:
    json.dump({"seen": seen, "mounts": open("/proc/self/mountinfo", errors="surrogateescape").read()}, file)
os.rename(out + ".part", out)
while wait != "-" and os.path.exists(wait):
    time.sleep(0.05)
"""


class Looker:
    """An engine that tells what it saw, and can be kept running."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "engine.py"
        self.out = folder / "seen.json"
        self.wait = folder / "wait"
        self.script.write_text(ENGINE)

    @property
    def command(self) -> str:
        return f"python3 -SI {self.script} {self.out} {self.wait}"

    @property
    def looked(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.out.read_text())
        return result

    @property
    def seen(self) -> dict[str, Any]:
        result: dict[str, Any] = self.looked["seen"]
        return result


@pytest.fixture
def looker(tmp_path: Path) -> Looker:
    return Looker(tmp_path)


@pytest.fixture(scope="module")
def pool(tank: Pool) -> Pool:
    tank.dataset("home")
    tank.dataset("home/ann")
    (tank.path("home") / "file").write_text("home")
    (tank.path("home/ann") / "file").write_text("ann")
    for name in ("a", "b", "c", "d", "e"):
        tank.dataset(name, canmount="noauto")
    return tank


@pytest.fixture
def other(pool: Pool, make_pool: Any) -> Pool:
    made = make_pool()
    assert isinstance(made, Pool)
    return made


@contextmanager
def mounted(dataset: str, point: str) -> Iterator[str]:
    """A dataset mounted by hand, wherever its properties say."""
    os.makedirs(point, exist_ok=True)
    linux.mount(dataset, point, "zfs", 0)
    try:
        yield point
    finally:
        linux.detach(point)


def test_the_view_is_read_only_nosuid_nodev_and_nobody_elses(
    pool: Pool, other: Pool, run: Runner, looker: Looker
) -> None:
    looker.wait.touch()
    with run.started("-c", looker.command, f"{pool.name}/home", f"{pool.name}/home/ann") as started:
        started.until(looker.out.exists)
        assert [mount for mount in mountinfo.read("/proc/1/mountinfo") if "@" in mount.source] == []
        assert os.listdir("/kopia") == []
        assert os.stat("/kopia").st_mode & 0o7777 == 0o700
        # The host goes on as if there were no run.
        command("zfs", "unmount", other.name)
        command("zpool", "export", other.name)
        looker.wait.unlink()
    assert started.wait().returncode == 0
    command("zpool", "import", "-d", other.image.parent, "-N", other.name)
    ours = [m for m in mountinfo.parse(os.fsencode(looker.looked["mounts"])) if m.point.startswith("/kopia")]
    assert sorted(m.source.partition("@")[0] for m in ours if m.fstype == "zfs") == [
        f"{pool.name}/home",
        f"{pool.name}/home/ann",
    ]
    assert all({"ro", "nosuid", "nodev"} <= set(m.options) for m in ours if m.fstype == "zfs")
    home = f"/kopia{pool.path('home')}"
    assert looker.seen[home]["files"] == {"file": "home"}
    assert looker.seen[f"{home}/ann"]["files"] == {"file": "ann"}
    assert run.left(pool) == []


def test_folders_that_only_hold_mount_points_look_like_the_real_ones(pool: Pool, run: Runner, looker: Looker) -> None:
    os.chown(pool.mountpoint, 1234, 4321)
    pool.mountpoint.chmod(0o1751)
    os.utime(pool.mountpoint, ns=(1, 1_234_567_890_123_456_789))
    assert run("-c", looker.command, f"{pool.name}/home").returncode == 0
    for real in (pool.mountpoint, *pool.mountpoint.parents):
        status = real.stat()
        shown = looker.seen["/kopia" + (str(real) if str(real) != "/" else "")]
        assert shown["mode"] == status.st_mode & 0o7777, real
        assert shown["owner"] == [status.st_uid, status.st_gid], real
        if real != Path("/"):
            assert shown["mtime"] == status.st_mtime_ns, real
    assert run.left(pool) == []


def test_a_host_with_private_propagation_is_not_pinned_either(
    pool: Pool, other: Pool, run: Runner, looker: Looker
) -> None:
    looker.wait.touch()
    with subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "600"]) as host:
        try:
            run_until_private(host.pid)
            # The other pool's dataset is now mounted in the private host alone.
            linux.detach(str(other.mountpoint))
            inside = ["nsenter", f"--mount=/proc/{host.pid}/ns/mnt"]
            with run.started("-c", looker.command, f"{pool.name}/home", before=lambda: enter(host.pid)) as started:
                started.until(looker.out.exists)
                assert str(other.mountpoint) in points_of_launcher(started)
                command(*inside, "umount", other.mountpoint)
                started.until(lambda: str(other.mountpoint) not in points_of_launcher(started))
                command("zpool", "export", other.name)
                looker.wait.unlink()
            assert started.wait().returncode == 0
        finally:
            host.kill()
    command("zpool", "import", "-d", other.image.parent, "-N", other.name)
    assert looker.seen[f"/kopia{pool.path('home')}"]["files"] == {"file": "home"}
    assert run.left(pool) == []


def run_until_private(pid: int) -> None:
    """Wait until unshare has made its namespace and started sleep in it."""
    while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
        pass


def enter(pid: int) -> None:
    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    assert ctypes.CDLL(None).setns(fd, linux.CLONE_NEWNS) == 0


def points_of_launcher(started: Run) -> set[str]:
    (keeper,) = children(started.pid)
    (launcher,) = children(keeper)
    return {mount.point for mount in mountinfo.read(f"/proc/{launcher}/mountinfo")}


def test_datasets_appear_where_they_are_mounted_whatever_their_properties_say(
    pool: Pool, run: Runner, looker: Looker, tmp_path: Path
) -> None:
    legacy = pool.dataset("legacy", mountpoint="legacy")
    twice = f"{pool.name}/b"
    points = [str(tmp_path / name) for name in ("legacy", "by-hand", "second", "first")]
    with (
        mounted(legacy, points[0]),
        mounted(f"{pool.name}/a", points[1]),
        mounted(twice, points[3]),
        mounted(twice, points[2]),
    ):
        for number, point in enumerate(points[:3]):
            Path(point, "file").write_text(str(number))
        ended, document = run.json("-c", looker.command, legacy, points[1], points[2], twice)
    assert ended.returncode == 0, ended
    assert {d["dataset"]: d["path"] for d in document["datasets"]} == {
        legacy: points[0],
        f"{pool.name}/a": points[1],
        twice: points[2],
    }
    for number, point in enumerate(points[:3]):
        assert looker.seen[f"/kopia{point}"]["files"] == {"file": str(number)}
    assert run.left(pool) == []


def test_a_covered_mount_is_refused_with_what_covers_it(pool: Pool, run: Runner, tmp_path: Path) -> None:
    point = str(tmp_path / "point")
    with mounted(f"{pool.name}/a", point), mounted(f"{pool.name}/b", point):
        ended = run("-c", "true", f"{pool.name}/a")
    assert ended.returncode == 1
    assert f"{pool.name}/a cannot be backed up: its mount at {point} is covered by {pool.name}/b" in ended.stderr
    assert run.left(pool) == []


ODD = ("with space", "tab\there", "new\nline", "back\\slash", "ha#sh", "b\udcffyte", "ünïcode", "-dash")


def test_any_mount_point_and_name_can_be_taken(pool: Pool, run: Runner, looker: Looker, tmp_path: Path) -> None:
    names = [" two  spaces", "n" * (255 - len(pool.name) - 1 - 37)]
    datasets = [pool.dataset(name, canmount="noauto") for name in names]
    datasets += [f"{pool.name}/{name}" for name in "abcde"]
    points = [f"{tmp_path}/{name}" for name in ODD[: len(datasets)]]
    check_odd(datasets, points, run.json, looker)
    assert run.left(pool) == []


def check_odd(datasets: list[str], points: list[str], start: Any, looker: Looker) -> None:
    from contextlib import ExitStack

    with ExitStack() as stack:
        for number, (dataset, point) in enumerate(zip(datasets, points, strict=True)):
            stack.enter_context(mounted(dataset, point))
            Path(point, "file").write_text(str(number))
        ended, document = start("-c", looker.command, *datasets[::2], *points[1::2])
    assert ended.returncode == 0, ended
    assert {d["dataset"]: d["path"] for d in document["datasets"]} == dict(zip(datasets, points, strict=True))
    for number, point in enumerate(points):
        assert looker.seen[f"/kopia{point}"]["files"] == {"file": str(number)}


def test_odd_mount_points_work_without_a_locale(
    pool: Pool, kopiatomic: Kopiatomic, run: Runner, looker: Looker, tmp_path: Path
) -> None:
    def start(*words: str) -> tuple[Any, Any]:
        ended = kopiatomic("--json", *words, env={"LC_ALL": "C", "LANG": ""})
        return ended, json.loads(ended.stdout)

    check_odd([f"{pool.name}/a", f"{pool.name}/b"], [f"{tmp_path}/b\udcffyte", f"{tmp_path}/ünïcode"], start, looker)
    assert run.left(pool) == []


def test_what_kopia_cannot_store_is_refused_by_name(pool: Pool, run: Runner, tmp_path: Path) -> None:
    with mounted(f"{pool.name}/a", f"{tmp_path}/b\udcffyte"):
        ended = run(f"{pool.name}/a")
    assert ended.returncode == 1
    assert f"{tmp_path}/b\\xffyte" in ended.stderr
    assert run.left(pool) == []


@contextmanager
def child_on_a_folder_of_its_own(pool: Pool) -> Iterator[tuple[str, str]]:
    """A child dataset whose mount point is not in its parent's tree, but in a tmpfs that is mounted there."""
    point = pool.path("home") / "sub"
    point.mkdir(exist_ok=True)
    linux.mount("tmpfs", str(point), "tmpfs", 0)
    try:
        with mounted(f"{pool.name}/a", f"{point}/child") as child:
            yield f"{pool.name}/a", child
    finally:
        linux.detach(str(point))


def test_a_child_whose_mount_point_is_not_in_its_parents_tree_is_shown_there(
    pool: Pool, run: Runner, looker: Looker
) -> None:
    """A directory of ours stands for the tmpfs, which is not in the backup."""
    with child_on_a_folder_of_its_own(pool) as (child, point):
        ended, document = run.json("-c", looker.command, f"{pool.name}/home", child)
    assert ended.returncode == 0, ended
    assert "tmpfs" in [u["type"] for u in document["uncovered"]]
    assert f"/kopia{point}" in looker.seen
    assert run.left(pool) == []


@contextmanager
def child_that_goes(pool: Pool) -> Iterator[tuple[str, Path, str]]:
    """A child dataset, its place, and a hook that takes the place away between the listing and the snapshot."""
    child, point = pool.dataset("home/goes"), pool.path("home/goes")
    try:
        yield child, point, f"zfs unmount {child} && rmdir {point}"
    finally:
        command("zfs", "destroy", child)


def test_a_named_child_without_a_place_is_an_error_that_names_both(pool: Pool, run: Runner, tmp_path: Path) -> None:
    started = tmp_path / "started"
    with child_that_goes(pool) as (child, point, hook):
        ended = run("-p", hook, "-c", f"touch {started}", f"{pool.name}/home", child)
    assert ended.returncode == 1
    message = f"{child} cannot appear at {point}: {point} does not exist in the snapshot of {pool.name}/home"
    assert message in ended.stderr
    assert not started.exists()
    assert run.left(pool) == []


def test_an_implied_child_without_a_place_is_left_out_and_said(pool: Pool, run: Runner, looker: Looker) -> None:
    with child_that_goes(pool) as (child, point, hook):
        ended, document = run.json("-r", "-p", hook, "-c", looker.command, pool.name)
    assert ended.returncode == 3, ended
    assert document["result"] == "incomplete"
    assert any(child in text and f"{pool.name}/home" in text for text in document["incomplete"])
    assert f"/kopia{point}" not in looker.seen
    assert looker.seen[f"/kopia{pool.path('home/ann')}"]["files"] == {"file": "ann"}
    assert run.left(pool) == []


def test_a_link_in_the_frozen_tree_is_not_followed(pool: Pool, run: Runner, tmp_path: Path) -> None:
    """The child's mount point becomes a link between the listing and the snapshot."""
    point = pool.path("home") / "becomes-a-link"
    child = pool.dataset("home/becomes-a-link")
    hook = f"zfs unmount {child} && rmdir {point} && ln -s /etc {point}"
    started = tmp_path / "started"
    ended = run("-p", hook, "-c", f"touch {started}", f"{pool.name}/home", child)
    assert ended.returncode == 1
    assert f"{child} cannot appear at {point}: {point} is a link in the snapshot of {pool.name}/home" in ended.stderr
    assert not started.exists()
    assert run.left(pool) == []
    point.unlink()
    command("zfs", "destroy", child)


def test_a_system_whose_root_is_a_dataset(pool: Pool, run: Runner, looker: Looker, tmp_path: Path) -> None:
    """The dataset at / is the view's root itself; what is mounted below it appears in it."""
    system, data = tmp_path / "system", tmp_path / "system" / "data"
    with mounted(f"{pool.name}/a", str(system)), mounted(f"{pool.name}/b", str(data)):
        (system / "file").write_text("root")
        (data / "file").write_text("data")
        folders = ("bin", "dev", "etc", "lib", "lib64", "opt", "proc", "run", "sbin", "source", "sys", "tmp", "usr")

        def change_root() -> None:
            obstacles.own_mounts()
            for name in folders:
                (system / name).mkdir()
                linux.mount(f"/{name}", str(system / name), None, linux.MS_BIND | linux.MS_REC)
            os.chroot(system)
            os.chdir("/")

        ended, document = run.json("-c", looker.command, "/data", "/", before=change_root)
        assert ended.returncode == 0, ended
        assert {d["dataset"]: d["path"] for d in document["datasets"]} == {
            f"{pool.name}/a": "/",
            f"{pool.name}/b": "/data",
        }
        assert looker.seen["/kopia"]["files"] == {"file": "root"}
        assert looker.seen["/kopia/data"]["files"] == {"file": "data"}
        assert run.left(pool, root=system / "kopia") == []


def test_a_pool_imported_below_another_root(
    pool: Pool, other: Pool, run: Runner, looker: Looker, tmp_path: Path
) -> None:
    command("zpool", "export", other.name)
    command("zpool", "import", "-d", other.image.parent, "-R", tmp_path / "alt", other.name)
    (tmp_path / f"alt{other.mountpoint}" / "file").write_text("alt")
    ended, document = run.json("-c", looker.command, other.name)
    assert ended.returncode == 0, ended
    assert document["datasets"][0]["path"] == f"{tmp_path}/alt{other.mountpoint}"
    assert looker.seen[f"/kopia{tmp_path}/alt{other.mountpoint}"]["files"] == {"file": "alt"}
    assert run.left(other) == []
