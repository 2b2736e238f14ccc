"""restic and Borg with repositories of one test alone. KOPIATOMIC_RESTIC and KOPIATOMIC_BORG choose other versions of them."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tests.support.programs import Completed, command

ENGINES = ("restic", "borg")
PASSWORD = "a password for tests"  # noqa: S105


@dataclass(frozen=True)
class Kept:
    """A snapshot or an archive, as the program lists it: its time as the clock on a wall would have shown it."""

    id: str
    time: str
    paths: tuple[str, ...]


class Repository(ABC):
    """A new repository; pass its ``environment`` to whatever starts the program."""

    engine: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.program = os.environ.get(f"KOPIATOMIC_{self.engine.upper()}") or shutil.which(self.engine) or ""
        if not self.program:
            pytest.fail(f"{self.engine} is not on PATH; ./test installs it", pytrace=False)
        self.environment = {f"KOPIATOMIC_{self.engine.upper()}": self.program, **self.variables()}
        self.make()

    @property
    def path(self) -> Path:
        return self.folder / "repository"

    @property
    def words(self) -> list[str]:
        """What makes kopiatomic use it."""
        return ["--engine", self.engine]

    def __call__(self, *words: str | Path, check: bool = True, cwd: Path | None = None, zone: str = "UTC") -> Completed:
        environment = {**os.environ, **self.environment, "TZ": zone}
        return command(self.program, *words, env=environment, check=check, cwd=cwd)

    @abstractmethod
    def variables(self) -> dict[str, str]:
        """What the program's environment has."""

    @abstractmethod
    def make(self) -> None:
        """Make the repository."""

    @abstractmethod
    def kept(self, zone: str = "UTC") -> list[Kept]:
        """All that is in it, the oldest first."""

    @abstractmethod
    def restore(self, snapshot: str, target: Path) -> None:
        """Bring all of a snapshot back, below a folder."""


class Restic(Repository):
    engine = "restic"
    password_variable = "RESTIC_PASSWORD"  # noqa: S105
    variable = "RESTIC_REPOSITORY"

    def variables(self) -> dict[str, str]:
        return {
            "RESTIC_CACHE_DIR": str(self.folder / "cache"),
            "RESTIC_PASSWORD": PASSWORD,
            "RESTIC_REPOSITORY": str(self.path),
        }

    def make(self) -> None:
        shutil.copytree(_new_restic(self.program).name, self.path)

    def kept(self, zone: str = "UTC") -> list[Kept]:
        found = json.loads(self("snapshots", "--json", "--no-lock", zone=zone).stdout) or []
        return [
            Kept(
                s["id"],
                datetime.fromisoformat(s["time"]).astimezone(ZoneInfo(zone)).strftime("%Y-%m-%dT%H:%M:%S"),
                tuple(s["paths"]),
            )
            for s in found
        ]

    def restore(self, snapshot: str, target: Path) -> None:
        self("restore", snapshot, "--target", target)


class Borg(Repository):
    engine = "borg"
    password_variable = "BORG_PASSPHRASE"  # noqa: S105
    variable = "BORG_REPO"

    def variables(self) -> dict[str, str]:
        return {
            "BORG_BASE_DIR": str(self.folder),
            "BORG_PASSPHRASE": PASSWORD,
            "BORG_REPO": str(self.path),
        }

    def make(self) -> None:
        self("init", "--encryption=repokey-blake2")

    def kept(self, zone: str = "UTC") -> list[Kept]:
        found = json.loads(self("list", "--json", zone=zone).stdout)["archives"]
        return [Kept(a["name"], a["start"][:19], self._tops(a["name"])) for a in found]

    def _tops(self, name: str) -> tuple[str, ...]:
        """The topmost paths in an archive, which keeps no list of what it was asked for."""
        listed = self("list", "--format={path}{NUL}", f"::{name}").stdout.split("\0")[:-1]
        paths = sorted(f"/{path}" for path in listed)
        return tuple(p for p in paths if not any(p.startswith(f"{q}/") for q in paths))

    def restore(self, snapshot: str, target: Path) -> None:
        target.mkdir()
        self("extract", f"::{snapshot}", cwd=target)


@functools.cache
def _new_restic(program: str) -> tempfile.TemporaryDirectory[str]:
    """An empty repository, made once: restic takes 2 s to derive a key that is hard to guess. Gone with this process."""
    folder = tempfile.TemporaryDirectory()
    environment = {**os.environ, "RESTIC_PASSWORD": PASSWORD, "RESTIC_REPOSITORY": folder.name}
    command(program, "init", "--no-cache", env=environment)
    return folder


def make(engine: str, folder: Path) -> Restic | Borg:
    return Restic(folder) if engine == "restic" else Borg(folder)


@pytest.fixture(params=ENGINES)
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Restic | Borg:
    """Of each engine in turn."""
    return make(request.param, tmp_path / request.param)


@pytest.fixture
def restic(tmp_path: Path) -> Restic:
    return Restic(tmp_path / "restic")


@pytest.fixture
def borg(tmp_path: Path) -> Borg:
    return Borg(tmp_path / "borg")
