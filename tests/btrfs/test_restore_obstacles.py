"""What a restore meets that cannot hold everything, or is not free: an error or named differences, and it can be run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kopiatomic.trees.target import FOLDER
from tests.btrfs.conftest import wait_for
from tests.support.exact_tree import furnish
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopia, Kopiatomic, command
from tests.support.repositories import Borg, Restic

pytestmark = pytest.mark.in_part(4)

ENGINES = ("kopia", "restic", "borg")


@dataclass(frozen=True)
class Ground:
    """A tree and a backup of it."""

    source: Path
    folder: Path
    kopiatomic: Kopiatomic
    words: list[str]
    environment: dict[str, str]

    def restore(self, target: Path, *more: str, before: str = "true") -> Completed:
        """Restore in a mount namespace in which shell lines have run before."""
        words: list[str | Path] = ["restore", "latest", self.source, "--to", target, *self.words, *more]
        shell = ("unshare", "--mount", "--propagation", "private", "sh", "-ec", f'{before}\nexec "$@"', "sh")
        environment = {**self.kopiatomic.environment, **self.environment}
        return command(*shell, *Kopiatomic.argv(*words), env=environment, check=False)


@contextmanager
def mounted(at: Path, kind: str, *options: str) -> Iterator[Path]:
    """A filesystem in memory."""
    at.mkdir()
    command("mount", "-t", kind, *options, "target", at)
    try:
        yield at
    finally:
        command("umount", at)


def prepared(
    name: str, source: Path, root: Path, kopiatomic: Kopiatomic, kopia: Kopia, folder: Path, before: str = "true"
) -> Ground:
    """Back a directory up with an engine."""
    if name == "kopia":
        made = Ground(source, folder, kopiatomic, [], kopia.environment)
    else:
        repository = {"restic": Restic, "borg": Borg}[name](folder / name)
        made = Ground(source, folder, kopiatomic, repository.words, repository.environment)
    words: list[str | Path] = ["--mount-root", root, *made.words, source]
    shell = ("unshare", "--mount", "--propagation", "private", "sh", "-ec", f'{before}\nexec "$@"', "sh")
    environment = {**kopiatomic.environment, **made.environment}
    command(*shell, *Kopiatomic.argv(*words), env=environment)
    return made


@pytest.fixture(params=ENGINES)
def ground(
    request: pytest.FixtureRequest, btrfs: Btrfs, root: Path, kopiatomic: Kopiatomic, kopia: Kopia, tmp_path: Path
) -> Ground:
    source = btrfs.subvolume("home")
    furnish(source)
    return prepared(request.param, source, root, kopiatomic, kopia, tmp_path)


@pytest.fixture
def with_kopia(btrfs: Btrfs, root: Path, kopiatomic: Kopiatomic, kopia: Kopia, tmp_path: Path) -> Ground:
    source = btrfs.subvolume("home")
    furnish(source)
    (source / "fifos").mkdir()
    for number in range(40):
        os.mkfifo(source / f"fifos/{number}")
    return prepared("kopia", source, root, kopiatomic, kopia, tmp_path)


def same(source: Path, target: Path) -> str:
    """What rsync finds different."""
    return command("rsync", "-aHAXn", "--checksum", "--delete", "-i", f"{source}/", f"{target}/").stdout


def test_a_full_disk_is_an_error_and_the_same_command_goes_on(ground: Ground, tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "tmpfs", "-o", "size=400k") as disk:
        (disk / "mine").write_text("mine")
        ended = ground.restore(disk / "back")
        assert ended.returncode == 1, str(ended)
        assert "no space left on device" in ended.stderr.lower(), str(ended)
        assert f"Make room in {disk / 'back'}, or" in ended.stderr, str(ended)
        assert sorted(os.listdir(disk)) == ["back", "mine"]
        command("mount", "-o", "remount,size=64m", disk)
        ended = ground.restore(disk / "back")
        assert ended.returncode == 0, str(ended)
        assert same(ground.source, disk / "back") == ""
        assert (disk / "mine").read_text() == "mine"


def test_what_there_is_no_room_for_at_the_end_is_named(with_kopia: Ground, tmp_path: Path) -> None:
    """When kopia's part is done, and the special files cannot be made."""
    with mounted(tmp_path / "large", "tmpfs") as disk:
        assert with_kopia.restore(disk / "back", "--no-metadata").returncode == 0
        room = os.statvfs(disk)
        inodes = room.f_files - room.f_ffree
    # Those of kopia, some that it uses meanwhile, and the directories above in its own place.
    above = len((tmp_path / "view").parts) + len(with_kopia.source.parts) - 2
    with mounted(tmp_path / "small", "tmpfs", "-o", f"nr_inodes={inodes + above + 12}") as disk:
        ended = with_kopia.restore(disk / "back")
        assert ended.returncode == 3, str(ended)
        assert "it cannot be made: No space left on device" in ended.stderr
        assert os.listdir(disk) == ["back"]


def test_a_read_only_target_is_an_error(with_kopia: Ground, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "tmpfs", "-o", "ro") as disk:
        ended = with_kopia.restore(disk / "back")
        assert ended.returncode == 1, str(ended)
        assert "cannot be restored into: Read-only file system" in ended.stderr
        command("mount", "-o", "remount,rw", disk)
        assert with_kopia.restore(disk / "back").returncode == 0


def test_a_path_that_is_too_long_is_an_error(ground: Ground, tmp_path: Path) -> None:
    ended = ground.restore(tmp_path / ("n" * 256))
    assert ended.returncode == 1, str(ended)
    assert "cannot be restored into: File name too long" in ended.stderr
    # What is below would be longer than a path may be.
    deep = tmp_path / "deep"
    longest = Path(f"{deep}/{'/'.join(['d' * 99] * ((3900 - len(str(deep))) // 100))}")
    longest.mkdir(parents=True)
    ended = ground.restore(longest / "back")
    assert ended.returncode == 1, str(ended)
    assert "name too long" in ended.stderr.lower(), str(ended)


def test_a_target_without_attributes_has_the_rest_and_names_what_is_missing(ground: Ground, tmp_path: Path) -> None:
    with mounted(tmp_path / "plain", "ramfs") as disk:
        ended = ground.restore(disk / "back", "--json")
        assert ended.returncode == 3, str(ended)
        failures = json.loads(ended.stdout)["failures"]
        if "borg" in ground.words:
            said = [line for line in failures if line.startswith("borg: when setting extended attribute user.note: ")]
            assert any("not supported" in line for line in said), failures
        if ground.words:
            # They ignore that, Borg only of lists, and what they keep is not recorded.
            for what in ("extended attributes", "access control lists"):
                assert f"its filesystem has no {what}: what was saved with some comes back without" in ended.stderr
        attributes = () if ground.words else ("user.note", "security.capability", "system.posix_acl_access")
        for attribute in attributes:
            assert (
                f"{ground.source}/setuid: its attribute {attribute} cannot be set: Operation not supported" in failures
            )
        kept = command("rsync", "-aHn", "--checksum", "--delete", "-i", f"{ground.source}/", f"{disk}/back/").stdout
        # The bits of the group are the mask of an access control list.
        assert [line for line in kept.splitlines() if ".....p" not in line] == []


def test_a_locked_repository_is_an_error(
    btrfs: Btrfs, root: Path, kopiatomic: Kopiatomic, kopia: Kopia, tmp_path: Path
) -> None:
    source = btrfs.subvolume("home")
    (source / "file").touch()
    ground = prepared("borg", source, root, kopiatomic, kopia, tmp_path)
    environment = {**os.environ, **ground.environment}
    lock = [ground.environment["KOPIATOMIC_BORG"], "with-lock", "::", "sleep", "1000"]
    target = tmp_path / "back"
    with subprocess.Popen(lock, env=environment) as process:
        try:
            wait_for((tmp_path / "borg/repository/lock.exclusive").exists, "the lock")
            ended = ground.restore(target)
        finally:
            process.terminate()
    assert ended.returncode == 1, str(ended)
    assert "lock" in ended.stderr, str(ended)
    assert not target.exists()
    wait_for(lambda: not (tmp_path / "borg/repository/lock.exclusive").exists(), "the end of the lock")
    assert ground.restore(target).returncode == 0


def test_ctrl_c_ends_it_and_the_same_command_goes_on(ground: Ground, btrfs: Btrfs) -> None:
    target = btrfs.mountpoint / "back"
    words: list[str | Path] = ["restore", "latest", ground.source, "--to", target, *ground.words]
    with ground.kopiatomic.started(*words, env=ground.environment) as process:
        wait_for((target / FOLDER).exists, "the target")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert oct(target.stat().st_mode)[-3:] == "700"
    ended = ground.restore(target)
    assert ended.returncode == 0, str(ended)
    assert same(ground.source, target) == ""


@pytest.mark.parametrize("engine", ENGINES)
def test_owners_are_numbers(
    engine: str, btrfs: Btrfs, root: Path, kopiatomic: Kopiatomic, kopia: Kopia, tmp_path: Path
) -> None:
    """Also where their names are others', or nobody's."""
    source = btrfs.subvolume("home")
    for number, name in enumerate(("known", "unknown", "later-unknown")):
        (source / name).touch()
        os.chown(source / name, 5000 + number, 6000 + number)
    before = {}
    for when, known in (("saved", (("ann", 5000), ("eve", 5002))), ("restored", (("ann", 7000), ("bob", 5001)))):
        for file, shift in (("passwd", 0), ("group", 1000)):
            lines = [f"{name}:x:{number + shift}:" + ("" if shift else "100::/:/bin/false") for name, number in known]
            (tmp_path / f"{file}.{when}").write_text(Path("/etc", file).read_text() + "\n".join([*lines, ""]))
        before[when] = "\n".join(f"mount --bind {tmp_path}/{file}.{when} /etc/{file}" for file in ("passwd", "group"))
    ground = prepared(engine, source, root, kopiatomic, kopia, tmp_path, before["saved"])
    ended = ground.restore(btrfs.mountpoint / "back", before=before["restored"])
    assert ended.returncode == 0, str(ended)
    assert same(source, btrfs.mountpoint / "back") == ""
