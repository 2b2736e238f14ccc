"""restic or Borg driven on folders that stand for a view, as a run drives them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kopiatomic import engines
from kopiatomic.engines.borg.client import Client as BorgClient
from kopiatomic.engines.borg.engine import BorgRepository
from kopiatomic.engines.engine import Engine
from kopiatomic.engines.repository import NamedRepository
from kopiatomic.engines.restic.client import Client as ResticClient
from kopiatomic.engines.restic.engine import ResticRepository
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.plan import Dataset, Layout, Plan, PlannedPath, Taken
from tests.support.repositories import Borg, Restic
from tests.unit.support.kopia_fixtures import STARTED_NS, Driven, make_job


class EngineBench:
    """A repository, and folders that are sources in place: ``one`` with a mount ``inner``, and ``other``."""

    def __init__(self, repository: Restic | Borg, base: Path) -> None:
        self.repository = repository
        self.base = base
        home = {"HOME": str(base / "home"), "RESTIC_PROGRESS_FPS": "60"}
        self.environment = {"PATH": os.environ["PATH"], **home, **repository.environment}
        self.one, self.other = base / "one", base / "other"
        self.inner = self.one / "deep" / "inner"
        for folder in (self.inner, self.other, base / "home"):
            folder.mkdir(parents=True)
            (folder / "file").write_text(folder.name)
        (self.one / "file").write_text("one")

    @property
    def plan(self) -> Plan:
        return self.plan_of(self.one, self.inner, self.other)

    @staticmethod
    def plan_of(*folders: Path, named: bool = True, layout: Layout = Layout.IN_PLACE) -> Plan:
        taken = tuple(
            Taken(Dataset("zfs", f"tank/{f.name}", "tank", PlannedPath(str(f))), str(f), named) for f in sorted(folders)
        )
        return Plan("/run/kopiatomic/view-x", taken, layout=layout)

    def engine(self, *options: str, repository: str | None = None, archive: str | None = None) -> Engine:
        return engines.create(
            None,
            options,
            engine=self.repository.engine,
            repository=repository,
            archive=archive,
            environment=self.environment,
        )

    def unasked(self, *options: str, repository: str | None = None) -> NamedRepository:
        """A repository as a check finds it, whether or not the program would."""
        if self.repository.engine == "restic":
            return ResticRepository(ResticClient(options, self.environment, repository), None, ())
        return BorgRepository(BorgClient(options, self.environment, repository), None, ())

    def back_up(
        self,
        *options: str,
        plan: Plan | None = None,
        started_ns: int = STARTED_NS,
        during: Callable[[int], bool] | None = None,
    ) -> Driven:
        """Check, run and judge one backup as a run does."""
        repository = self.engine(*options).check(plan or self.plan)
        return Driven(repository.backup(make_job(plan or self.plan, started_ns=started_ns)), self, during)

    def refused(self, *options: str, plan: Plan | None = None) -> KopiatomicError:
        """Why a check says no."""
        with pytest.raises(KopiatomicError) as caught:
            self.engine(*options).check(plan or self.plan)
        return caught.value

    def fake(self, script: str) -> None:
        """Put a shell script in the program's place, for faults that it cannot be made to show. ``$REAL`` is the real one."""
        path = self.base / "fake"
        path.write_text(f"#!/bin/sh\nREAL={self.repository.program}\n{script}\n")
        path.chmod(0o755)
        self.environment[f"KOPIATOMIC_{self.repository.engine.upper()}"] = str(path)


@pytest.fixture
def bench(repository: Restic | Borg, tmp_path: Path) -> EngineBench:
    return EngineBench(repository, tmp_path)


@pytest.fixture
def restic_bench(restic: Restic, tmp_path: Path) -> EngineBench:
    return EngineBench(restic, tmp_path)


@pytest.fixture
def borg_bench(borg: Borg, tmp_path: Path) -> EngineBench:
    return EngineBench(borg, tmp_path)
