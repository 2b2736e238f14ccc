"""An engine that restores as root writes nowhere but into the target, whatever the repository says, or the program tries."""

from __future__ import annotations

import errno
import io
import os
import shlex
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from kopiatomic.system import confined, linux, process
from kopiatomic.trees.target import FOLDER
from tests.support.programs import Completed, Kopia, Kopiatomic, command
from tests.support.repositories import Borg, Restic

ENGINES = ("kopia", "restic", "borg")

SET_ATTRIBUTES = linux.restrict_mounts


@dataclass(frozen=True)
class Ground:
    """A place that must not change, one to restore into, and the command under test."""

    folder: Path
    kopiatomic: Kopiatomic

    @property
    def outside(self) -> Path:
        return self.folder / "outside"

    @property
    def target(self) -> Path:
        return self.folder / "back"

    @property
    def place(self) -> Path:
        """What the engine restores into."""
        return self.target / FOLDER / "data"

    def restore(self, words: list[str], environment: dict[str, str], *before: str) -> Completed:
        argv = Kopiatomic.argv("restore", "latest", "--to", self.target, *words)
        return command(*before, *argv, env={**self.kopiatomic.environment, **environment}, check=False)

    def attempts(self, within: Path) -> str:
        """Shell lines that try to write elsewhere, and leave in a file of that directory which succeeded; one should."""
        mine, other = shlex.quote(str(self.outside / "mine")), shlex.quote(str(self.outside / "new"))
        inside = shlex.quote(str(within))
        lines = (
            f"echo x >> {mine}",
            f"echo x > {other}",
            f"chmod 777 {mine}",
            f"chown 1 {mine}",
            f"touch -d @1 {mine}",
            f"setfattr -n user.name -v x {mine}",
            f"ln {mine} {inside}/link",
            f"mv {mine} {inside}/moved && mv {inside}/moved {mine}",
            f"echo x > {inside}/../../../outside/new",
            f"echo x > /proc/{os.getpid()}/root{other}",
            f"echo x > /proc/self/root{other}",
            "chmod 666 /dev/null",
            f"mknod {inside}/device c 1 3 && echo x > {inside}/device",
            f"mkdir {shlex.quote(str(self.folder / 'made'))}",
            "echo x > /dev/null && : written as it must be",
        )
        tries = (
            f"sh -c {shlex.quote(line)} 2> /dev/null && echo {shlex.quote(line)} >> {inside}/done" for line in lines
        )
        return "\n".join([*tries, f"rm -f {inside}/device", ":"])

    def unchanged(self) -> bool:
        """Whether everything outside is as it was."""
        status = (self.outside / "mine").stat()
        return (
            os.listdir(self.outside) == ["mine"]
            and (self.outside / "mine").read_text() == "mine"
            and (status.st_mode & 0o7777, status.st_uid, status.st_nlink, status.st_mtime_ns) == (0o600, 0, 1, 10**18)
            and not (self.folder / "made").exists()
        )


@pytest.fixture
def ground(tmp_path: Path, kopiatomic: Kopiatomic) -> Ground:
    made = Ground(tmp_path, kopiatomic)
    made.outside.mkdir()
    (made.outside / "mine").write_text("mine")
    (made.outside / "mine").chmod(0o600)
    os.utime(made.outside / "mine", ns=(10**18, 10**18))
    return made


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Something to save."""
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/file").write_text("content")
    return tmp_path / "saved"


def words_of(engine: str, saved: Path, kopia: Kopia, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Save a directory with an engine; return what the command needs to find it."""
    if engine == "kopia":
        kopia("snapshot", "create", saved)
        return [], {**kopia.environment, "KOPIATOMIC_KOPIA": shutil.which("kopia") or ""}
    if engine == "restic":
        restic = Restic(folder / "restic")
        restic("backup", saved)
        return restic.words, restic.environment
    borg = Borg(folder / "borg")
    borg("create", "::one", saved)
    return borg.words, borg.environment


@pytest.mark.parametrize("engine", ENGINES)
def test_a_program_that_tries_writes_into_the_target_alone(
    ground: Ground, saved: Path, kopia: Kopia, engine: str
) -> None:
    words, environment = words_of(engine, saved, kopia, ground.folder)
    variable = f"KOPIATOMIC_{engine.upper()}"
    restoring = {"kopia": "--mode=local", "restic": "restore", "borg": "extract"}[engine]
    program = ground.folder / f"{engine}-that-tries"
    program.write_text(
        f'#!/bin/sh\ncase " $* " in *" {restoring} "*)\n{ground.attempts(ground.place)}\n;; esac\n'
        f'exec {environment[variable]} "$@"\n'
    )
    program.chmod(0o755)
    ended = ground.restore(words, environment | {variable: str(program)})
    assert ended.returncode == 0, str(ended)
    assert (ground.target / "done").read_text().splitlines() == ["echo x > /dev/null && : written as it must be"]
    assert ground.unchanged()
    assert [path.read_text() for path in ground.target.rglob("file")] == ["content"]
    assert "can write outside" not in ended.stderr


def archive(kind: str, outside: Path) -> bytes:
    """A tar archive that leads out of the directory that it is extracted into."""
    out = io.BytesIO()
    up = "../" * 40 + str(outside).lstrip("/")
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, kind: bytes = tarfile.REGTYPE, to: str = "", data: bytes = b"") -> None:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size, entry.mode = kind, to, len(data), 0o666
            tar.addfile(entry, io.BytesIO(data))

        if kind == "a link":
            add("home/a", tarfile.SYMTYPE, str(outside))
            add("home/a/mine", data=b"theirs")
        elif kind == "dots":
            add("home", tarfile.DIRTYPE)
            add(f"home/{up}/new", data=b"theirs")
        else:
            add("home/a", tarfile.SYMTYPE, str(outside))
            add("home/x", tarfile.LNKTYPE, "home/a/mine")
    return out.getvalue()


@pytest.mark.parametrize("kind", ["a link", "dots", "a hard link"])
def test_what_an_archive_of_borgs_leads_to_is_not_written(ground: Ground, borg: Borg, kind: str) -> None:
    forged = ground.folder / "forged.tar"
    forged.write_bytes(archive(kind, ground.outside))
    borg("import-tar", "::forged", forged)
    ended = ground.restore(borg.words, borg.environment)
    assert ended.returncode == 1, str(ended)
    assert ground.unchanged()


def test_what_a_snapshot_of_kopias_leads_to_is_not_written(ground: Ground, saved: Path, kopia: Kopia) -> None:
    name = "../" * 40 + str(ground.outside / "new").lstrip("/")
    words = ["kopia", "snapshot", "create", str(saved), f"--stdin-file={name}"]
    subprocess.run(words, input=b"theirs", env={**os.environ, **kopia.environment}, check=True, capture_output=True)
    ended = ground.restore([], kopia.environment)
    assert ended.returncode == 1, str(ended)
    assert "does the snapshot lead elsewhere" in ended.stderr, str(ended)
    assert ground.unchanged()


def test_where_there_can_be_no_mounts_it_is_said_and_the_restore_goes_on(
    ground: Ground, saved: Path, kopia: Kopia
) -> None:
    words, environment = words_of("kopia", saved, kopia, ground.folder)
    ended = ground.restore(words, environment, "setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    assert ended.returncode == 0, str(ended)
    assert "kopia can write outside of the target here (mounts of its own are refused: " in ended.stderr
    assert [path.read_text() for path in ground.target.rglob("file")] == ["content"]


@pytest.mark.parametrize("number", [0, errno.ENOSYS, errno.EPERM])
def test_a_kernel_without_mount_setattr_does_the_same(
    ground: Ground, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restrict(top: str, flags: int) -> None:
        if number:
            raise OSError(number, os.strerror(number))
        SET_ATTRIBUTES(top, flags)

    monkeypatch.setattr(linux, "restrict_mounts", restrict)
    within = ground.folder / "within"
    within.mkdir()
    first = confined.only([str(within), str(ground.folder / "missing")])
    ended = process.run(["sh", "-c", ground.attempts(within)], timeout=60, first=first)
    assert ended.status == 0, ended.errors
    assert (within / "done").read_text().splitlines() == ["echo x > /dev/null && : written as it must be"]
    assert ground.unchanged()


def test_without_it_the_attempts_succeed(ground: Ground) -> None:
    within = ground.folder / "within"
    within.mkdir()
    process.run(["sh", "-c", ground.attempts(within)], timeout=60)
    assert len((within / "done").read_text().splitlines()) >= 10
    assert not ground.unchanged()
