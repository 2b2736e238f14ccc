"""Volumes: each a file of its exact size in the view, with the bytes of the same instant as everything else there."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kopiatomic.system import linux
from tests.support.filesystems import Pool
from tests.support.programs import Kopia, command
from tests.zfs import obstacles
from tests.zfs.runs import Runner

pytestmark = pytest.mark.in_part(1)

SIZE = (24 << 20) + 8192
"""Bytes; no multiple of what a stream or the kernel reads at once."""


def devices() -> set[str]:
    """The block devices of volumes and of their snapshots."""
    return {name for name in os.listdir("/sys/block") if name.startswith("zd")}


@contextmanager
def volume(pool: Pool, name: str) -> Iterator[tuple[str, Path]]:
    """A volume with data, rewritten data and holes; its name and its device."""
    full, before = f"{pool.name}/{name}", devices()
    command("zfs", "create", "-s", "-V", str(SIZE), "-o", "volblocksize=8k", full)
    deadline = time.monotonic() + 30
    while not (new := devices() - before):
        assert time.monotonic() < deadline, "the volume's device does not appear"
        time.sleep(0.1)
    device = Path("/dev", new.pop())
    chance = random.Random(name)
    with device.open("r+b") as file:
        for start in (0, 5000, 1 << 20, 9 << 20, (17 << 20) + 123, SIZE - 4096):
            file.seek(start)
            file.write(chance.randbytes(min(SIZE - start, 300_000)))
    try:
        yield full, device
    finally:
        command("zfs", "destroy", "-r", full)


@pytest.fixture(scope="module")
def disk(tank: Pool) -> Iterator[tuple[str, Path]]:
    # Where udev runs, /dev/fuse is there from the start and opening it loads the module.
    command("modprobe", "fuse")
    tank.dataset("home")
    (tank.path("home") / "file").write_text("home")
    with volume(tank, "disk") as made:
        yield made


READER = """\
import os, random, sys
file = sys.argv[-1] + sys.argv[1]
live, size = sys.argv[2], os.stat(file).st_size
with open(live, 'r+b') as disk:
    disk.seek(1 << 20)
    disk.write(b'changed since' * 1000)
    os.fsync(disk.fileno())
with open(file, 'rb') as shown, open(sys.argv[3], 'wb') as copy:
    while data := shown.read(1 << 20):
        copy.write(data)
whole = open(sys.argv[3], 'rb').read()
chance = random.Random(5)
fd = os.open(file, os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
for _ in range(12):
    start, length = chance.randrange(size), chance.randrange(1, 100_000)
    assert os.pread(fd, length, start) == whole[start:start + length], start
places = [0, 8 << 20, 16 << 20]
for step in range(4):
    for place in places:
        start = place + step * 65536
        assert os.pread(fd, 65536, start) == whole[start:start + 65536], start
"""


def test_a_volume_is_a_file_of_the_same_instant(
    tank: Pool, disk: tuple[str, Path], run: Runner, tmp_path: Path
) -> None:
    name, device = disk
    reader, copy = tmp_path / "reader.py", tmp_path / "copy"
    reader.write_text(READER)
    frozen, before = device.read_bytes(), devices()
    properties = command("zfs", "get", "-Hp", "all", name).stdout
    words = ["-c", f"python3 {reader} /.volumes/{name} {device} {copy}", "--volumes", name, f"{tank.name}/home"]
    ended, document = run.json(*words)
    assert ended.returncode == 0, ended
    assert copy.read_bytes() == frozen
    assert device.read_bytes() != frozen
    assert len(frozen) == SIZE
    assert [(d["path"], d["volume"]) for d in document["datasets"]] == [
        (f"/.volumes/{name}", True),
        (str(tank.path("home")), False),
    ]
    (made,) = document["sets"]
    assert made["one_instant"]
    assert {s["dataset"]: s["bytes"] for s in made["snapshots"]} == {name: SIZE, f"{tank.name}/home": None}
    assert devices() == before
    used = {line for line in properties.splitlines() if line.split("\t")[1] in {"snapdev", "volmode", "readonly"}}
    assert used <= set(command("zfs", "get", "-Hp", "all", name).stdout.splitlines())
    assert run.left(tank) == []


def test_kopia_saves_a_volume_and_gives_it_back(
    tank: Pool, disk: tuple[str, Path], run: Runner, kopia: Kopia, tmp_path: Path
) -> None:
    name, device = disk
    frozen = device.read_bytes()
    ended, document = run.json("--no-maintenance", "-r", "--volumes", tank.name, env=kopia.environment)
    assert ended.returncode == 0, ended
    restored = tmp_path / "restored"
    kopia("snapshot", "restore", document["engine"]["snapshot_id"], restored)
    assert (restored / ".volumes" / name).read_bytes() == frozen
    assert (restored / str(tank.path("home")).lstrip("/") / "file").read_text() == "home"
    assert run.left(tank) == []


def test_kopia_that_ignores_volumes_has_not_saved_them(
    tank: Pool, disk: tuple[str, Path], run: Runner, kopia: Kopia
) -> None:
    name, _ = disk
    kopia("policy", "set", "/kopia", "--add-ignore", "/.volumes")
    ended, document = run.json("--no-maintenance", "--volumes", name, f"{tank.name}/home", env=kopia.environment)
    assert ended.returncode != 0, ended
    assert f"/.volumes/{name}" in str([document["incomplete"], document["error"]])


@pytest.mark.parametrize("words", [["-r"], ["-a"]])
def test_without_being_asked_for_volumes_are_left_out_and_said(
    words: list[str], tank: Pool, disk: tuple[str, Path], run: Runner
) -> None:
    name, _ = disk
    ended, document = run.json("-n", "-c", "true", *words, *([tank.name] if words == ["-r"] else []))
    assert ended.returncode == 0, ended
    verdicts = {o["dataset"]: (o["verdict"], o["incomplete"]) for o in document["left_out"]}
    assert verdicts[name] == ("volume", False)


def test_a_volume_that_is_named_without_the_option_is_refused(disk: tuple[str, Path], run: Runner) -> None:
    name, _ = disk
    ended = run("-c", "true", name)
    assert ended.returncode == 1
    assert f"{name} cannot be backed up: it is a volume, not a filesystem" in ended.stderr
    assert "--volumes" in ended.stderr


def test_a_pattern_and_an_exclusion_take_volumes_as_any_dataset(
    tank: Pool, disk: tuple[str, Path], run: Runner
) -> None:
    name, _ = disk
    _, document = run.json("-n", "-c", "true", "--volumes", f"{tank.name}/di*")
    assert [d["dataset"] for d in document["datasets"]] == [name]
    _, document = run.json("-n", "-c", "true", "--volumes", "-r", tank.name, "--exclude", name)
    assert name not in [d["dataset"] for d in document["datasets"]]
    assert [o["verdict"] for o in document["left_out"] if o["dataset"] == name] == ["excluded"]


def test_a_volume_whose_reader_is_taken_away_is_no_success(
    tank: Pool, disk: tuple[str, Path], run: Runner, tmp_path: Path
) -> None:
    """An engine that does not mind an error of input has still not read the volume."""
    name, _ = disk
    engine = tmp_path / "engine.py"
    engine.write_text(
        "import os, sys\n"
        f"path = sys.argv[-1] + '/.volumes/{name}'\n"
        "fd = os.open(path, os.O_RDONLY)\n"
        "connection = '/sys/fs/fuse/connections/%d/abort' % os.minor(os.fstat(fd).st_dev)\n"
        "import subprocess\n"
        "if not os.path.exists(connection):\n"
        "    os.makedirs('/tmp/connections', exist_ok=True)\n"
        "    subprocess.run(['mount', '-t', 'fusectl', 'none', '/tmp/connections'], check=True)\n"
        "    connection = connection.replace('/sys/fs/fuse', '/tmp')\n"
        "open(connection, 'w').write('1')\n"
        "try:\n"
        "    os.pread(fd, 10, 0)\n"
        "except OSError:\n"
        "    print('it could not be read')\n"
    )
    ended = run("-c", f"python3 {engine}", "--volumes", name)
    assert ended.returncode == 1, ended
    assert "is not the frozen view" in ended.stderr
    assert run.left(tank) == []


# Beside the dataset at /, whose frozen tree takes no new directory

FOLDERS = ("bin", "dev", "etc", "lib", "lib64", "opt", "proc", "run", "sbin", "source", "sys", "tmp", "usr", "var")


def show(root: Path) -> dict[str, list[object]]:
    """What a tree's top directory holds, and the top itself: type and mode, owners, time of change, target of a link."""
    found = {}
    for path in (root, *root.iterdir()):
        status = path.lstat()
        link = str(path.readlink()) if path.is_symlink() else ""
        name = "" if path == root else path.name
        found[name] = [status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, link]
    return found


LOOKER = """\
import json, os, sys
sys.path[:0] = ["/source/src", "/source"]
from pathlib import Path
from tests.zfs.test_volumes import show
root = Path(sys.argv[-1])
paths = [root / "file", root / "srv/inside", root / "link", *root.glob(".unmounted/**/kept")]
texts = [path.read_text() for path in paths]
xattr = os.getxattr(root, "trusted.test").decode()
Path(sys.argv[1]).write_text(json.dumps([show(root), texts, xattr]))
"""


@dataclass(frozen=True)
class System:
    """A dataset with all kinds of entries that is to be the root, and another that is not mounted."""

    folder: Path
    top: str
    loose: str

    def enter(self) -> None:
        obstacles.own_mounts()
        for folder in FOLDERS:
            linux.mount(f"/{folder}", str(self.folder / folder), None, linux.MS_BIND | linux.MS_REC)
        os.chroot(self.folder)
        os.chdir("/")


@pytest.fixture(scope="module")
def system(tank: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("system")
    made = System(folder, tank.dataset("system", mountpoint="legacy"), tank.dataset("loose", mountpoint="legacy"))
    command("mount", "-t", "zfs", made.loose, folder)
    (folder / "kept").write_text("not lost")
    command("umount", folder)
    command("mount", "-t", "zfs", made.top, folder)
    for name in (*FOLDERS, "srv"):
        (folder / name).mkdir()
    (folder / "srv" / "inside").write_text("in a directory")
    (folder / "file").write_text("at the top")
    (folder / "empty").touch(0o640)
    (folder / "link").symlink_to("srv/inside")
    os.lchown(folder / "link", 12, 34)
    os.mkfifo(folder / "pipe")
    os.setxattr(folder, "trusted.test", b"of the top")
    (folder / "srv").chmod(0o1777)
    folder.chmod(0o711)
    os.chown(folder, 0, 6)
    for path in ("link", "file", "srv", "."):
        os.utime(folder / path, ns=(1, 1_600_000_000_123_456_789), follow_symlinks=False)
    try:
        yield made
    finally:
        command("umount", folder)


def test_what_has_no_place_of_its_own_appears_beside_a_frozen_root(
    tank: Pool, disk: tuple[str, Path], system: System, run: Runner, tmp_path: Path
) -> None:
    name, _ = disk
    looker, seen = tmp_path / "looker.py", tmp_path / "seen"
    looker.write_text(LOOKER)
    frozen = show(system.folder)
    words = ["/", name, system.loose, "--volumes", "--include-unmounted"]
    ended, document = run.json("-c", f"python3 {looker} {seen}", *words, before=system.enter)
    assert ended.returncode == 0, ended
    assert {d["dataset"]: d["path"] for d in document["datasets"]} == {
        system.top: "/",
        name: f"/.volumes/{name}",
        system.loose: f"/.unmounted/{system.loose}",
    }
    entries, texts, xattr = json.loads(seen.read_text())
    assert {n: s for n, s in entries.items() if n not in {".volumes", ".unmounted"}} == frozen
    assert texts == ["at the top", "in a directory", "in a directory", "not lost"]
    assert xattr == "of the top"
    assert run.left(tank, root=system.folder / "kopia") == []


def test_all_of_a_frozen_root_and_what_is_beside_it_is_restored(
    disk: tuple[str, Path], system: System, run: Runner, kopia: Kopia, tmp_path: Path
) -> None:
    name, device = disk
    words = ["--no-maintenance", "/", name, system.loose, "--volumes", "--include-unmounted"]
    ended, document = run.json(*words, before=system.enter, env=kopia.environment)
    assert ended.returncode == 0, ended
    restored = tmp_path / "restored"
    kopia("snapshot", "restore", document["engine"]["snapshot_id"], restored)
    assert (restored / ".volumes" / name).read_bytes() == device.read_bytes()
    assert (restored / ".unmounted" / system.loose / "kept").read_text() == "not lost"
    assert (restored / "srv/inside").read_text() == "in a directory"
    assert (restored / "link").readlink() == Path("srv/inside")
    assert (restored / "empty").stat().st_mode & 0o777 == 0o640


def test_a_root_that_has_such_an_entry_itself_is_refused(
    tank: Pool, disk: tuple[str, Path], system: System, run: Runner
) -> None:
    theirs = system.folder / ".volumes"
    theirs.mkdir()
    ended = run("-c", "true", "--volumes", "/", disk[0], before=system.enter)
    theirs.rmdir()
    assert ended.returncode == 1
    assert f"/.volumes exists in {system.top}, where --include-unmounted and --volumes put" in ended.stderr
    assert run.left(tank, root=system.folder / "kopia") == []
