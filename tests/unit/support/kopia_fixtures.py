"""A real kopia with a repository of its own, a folder tree in place of a view, and what an engine needs to be driven."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from kopiatomic import engines
from kopiatomic.engines import self_backup
from kopiatomic.engines.engine import Backup, Engine, Job
from kopiatomic.engines.names import OddNames
from kopiatomic.model.engine import EngineEnd, EngineResult, Progress
from kopiatomic.model.plan import Dataset, Plan, PlannedPath, Taken
from kopiatomic.model.snapshots import Instant, Sets, Snapshot, SnapshotSet

PASSWORD = "correct horse"  # noqa: S105
STARTED_NS = 1_700_000_000_123_456_789
"""2023-11-14 22:13:20.123456789 UTC."""


def find_kopia() -> str:
    """The kopia under test: KOPIATOMIC_TEST_KOPIA, else the one on PATH. Fails the test where there is none."""
    found = os.environ.get("KOPIATOMIC_TEST_KOPIA") or shutil.which("kopia")
    if not found or not os.access(found, os.X_OK):
        pytest.fail("no kopia to test with: set KOPIATOMIC_TEST_KOPIA (./test does), or put kopia on PATH")
    return found


def taken(place: str, *, mountpoint: str = "", named: bool = True, name: str = "") -> Taken:
    """A dataset of a plan. Unless told otherwise its mount point does not exist, so that nothing lies on it."""
    dataset = Dataset(
        "zfs", name or "tank" + place.rstrip("/"), "tank", PlannedPath(mountpoint or f"/nonexistent{place}")
    )
    return Taken(dataset, place, named)


def holding(directory: Path, place: str, *, named: bool = True) -> Taken:
    """A dataset of a plan that really holds a directory, whatever filesystem that is on."""
    found = self_backup.look(str(directory))
    dataset = Dataset(
        found.filesystem, found.source, found.pool, PlannedPath(str(directory)), subvolume=found.subvolume
    )
    return Taken(dataset, place, named)


def make_job(
    plan: Plan, *, filled: Sequence[str] | None = None, pools: Sequence[str] = ("tank",), started_ns: int = STARTED_NS
) -> Job:
    """A job in which everything planned is mounted and, by default, holds something."""
    mounted = [t.place for t in plan.taken]
    sets = [
        SnapshotSet(
            "zfs",
            pool,
            (Snapshot(f"{pool}/a", f"{pool}/a@s", 7),),
            Instant(started_ns + i * 10**9, started_ns + i * 10**9 + 5, i * 10**9, i * 10**9 + 5),
        )
        for i, pool in enumerate(pools)
    ]
    return Job(
        "20231114T221320Z-00c0ffee", plan, Sets(tuple(sets)), mounted, mounted if filled is None else list(filled)
    )


class Bench:
    """A place to run the engine in: home, repository and view are folders below ``base``."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.program = find_kopia()
        self.home = base / "home"
        self.repository = base / "repository"
        self.view = base / "view"
        for folder in (self.home, self.view):
            folder.mkdir()
        self.environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.home),
            "KOPIATOMIC_KOPIA": self.program,
            "KOPIA_CHECK_FOR_UPDATES": "false",
            "KOPIA_DISABLE_COLOR": "true",
        }

    @property
    def config(self) -> Path:
        """kopia's configuration file."""
        return self.home / ".config" / "kopia" / "repository.config"

    def connect(self) -> None:
        """Put a new repository in place and connect to it; kopia keeps the password."""
        made = _new_repository()
        shutil.copytree(made.repository, self.repository)
        shutil.copytree(made.config.parent, self.config.parent)
        config = json.loads(self.config.read_text())
        config["storage"]["config"]["path"] = str(self.repository)
        self.config.write_text(json.dumps(config))

    def kopia(self, *words: str) -> str:
        """Run kopia itself; its standard output."""
        argv = [self.program, *words]
        done = subprocess.run(argv, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def ask(self, *words: str) -> Any:
        """kopia's answer as JSON."""
        return json.loads(self.kopia(*words, "--json"))

    def tree(self, *paths: str) -> None:
        """Fill the view: files with their own names in them; folders end with a slash."""
        for path in paths:
            target = self.view / path
            if path.endswith("/"):
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(path)

    def plan(self, *entries: Taken | str) -> Plan:
        """A plan of the view; places stand for datasets that the user named."""
        return Plan(str(self.view), tuple(taken(e) if isinstance(e, str) else e for e in entries))

    def engine(self, *options: str, maintenance: bool = True, invoking_user: str | None = None) -> Engine:
        """The engine, as the run makes it."""
        return engines.create(
            None, options, maintenance=maintenance, environment=self.environment, invoking_user=invoking_user
        )

    def fake(self, script: str) -> None:
        """Put a shell script in kopia's place, for faults that kopia cannot be made to show. ``$KOPIA`` is the real one."""
        path = self.base / "fake-kopia"
        path.write_text(f"#!/bin/sh\nKOPIA={self.program}\n{script}\n")
        path.chmod(0o755)
        self.environment["KOPIATOMIC_KOPIA"] = str(path)


@functools.cache
def _new_repository() -> Bench:
    """A repository to copy, for speed; with the cheaper of kopia's key derivations where it has a choice (since 0.17)."""
    folder = Path(tempfile.mkdtemp(prefix="kopiatomic-test-"))
    atexit.register(shutil.rmtree, folder)
    bench = Bench(folder)
    words = ["repository", "create", "filesystem"]
    cheap = "--format-block-key-derivation-algorithm"
    if cheap in bench.kopia(*words, "--help"):
        words.append(f"{cheap}=pbkdf2-sha256-600000")
    bench.kopia(*words, f"--path={bench.repository}", f"--password={PASSWORD}")
    return bench


class Environment(Protocol):
    """Where a program is run in."""

    @property
    def environment(self) -> dict[str, str]: ...


class Driven:
    """What came of one backup."""

    def __init__(self, backup: Backup, bench: Environment, during: Callable[[int], bool] | None = None) -> None:
        self.backup = backup
        command = backup.command()
        self.argv = command.argv
        self.environment = command.environment
        process = subprocess.Popen(
            list(command.argv),
            env={**bench.environment, **command.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        stopped = during(process.pid) if during is not None else False
        stdout, stderr = process.communicate()
        self.found: list[str | Progress] = []
        for stream, data in (("stdout", stdout), ("stderr", stderr)):
            # In small pieces, as pipes give them.
            for start in range(0, min(len(data), 1 << 16), 7):
                self.found += backup.feed(stream, data[start : min(start + 7, 1 << 16)])
            for start in range(1 << 16, len(data), 1 << 16):
                self.found += backup.feed(stream, data[start : start + (1 << 16)])
            self.found += backup.feed(stream, b"")
        self.end = EngineEnd(process.returncode, stopped)
        self.result: EngineResult = backup.judge(self.end, OddNames())

    @property
    def lines(self) -> list[str]:
        """What was passed through."""
        return [f for f in self.found if isinstance(f, str)]

    @property
    def progress(self) -> list[Progress]:
        """The progress found."""
        return [f for f in self.found if isinstance(f, Progress)]


def back_up(
    bench: Bench,
    plan: Plan,
    *options: str,
    filled: Sequence[str] | None = None,
    during: Callable[[int], bool] | None = None,
) -> Driven:
    """Check, run and judge one backup as a run does."""
    repository = bench.engine(*options).check(plan)
    return Driven(repository.backup(make_job(plan, filled=filled)), bench, during)
