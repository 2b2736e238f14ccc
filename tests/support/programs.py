"""Programs that tests start: any command, kopiatomic as a user runs it, and kopia with a repository of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
# What emulates a guest needs longer than a real machine: qemu about ten times as long, User-Mode Linux twice.
EMULATOR = os.environ.get("KOPIATOMIC_IN_VM", "")
SLOWNESS = {"qemu": 6, "uml": 2}.get(EMULATOR, 1)
IN_QEMU = EMULATOR == "qemu"
"""Loops that User-Mode Linux makes in full are shorter there."""


@dataclass(frozen=True)
class Completed:
    """How a program ended."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"{self.argv} ended with {self.returncode}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


def command(
    *argv: str | Path,
    env: Mapping[str, str] | None = None,
    timeout: float = 60,
    check: bool = True,
    cwd: Path | None = None,
) -> Completed:
    """Run a program; `timeout` is in seconds of a real machine; fails the test if it ends with an error unless not `check`."""
    words = tuple(str(word) for word in argv)
    process = subprocess.run(
        words,
        env=None if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout * SLOWNESS,
        check=False,
        cwd=cwd,
        encoding="utf-8",
        errors="surrogateescape",
    )
    completed = Completed(words, process.returncode, process.stdout, process.stderr)
    if check and completed.returncode != 0:
        pytest.fail(str(completed))
    return completed


@dataclass(frozen=True)
class Kopiatomic:
    """Runs the real command, with an environment of its own that names this test."""

    environment: dict[str, str]

    def __call__(self, *args: str | Path, env: Mapping[str, str] | None = None, timeout: float = 60) -> Completed:
        """Run it to its end; whatever its exit code is, that is for the test to judge."""
        environment = {**self.environment, **(env or {})}
        return command(*self.argv(*args), env=environment, timeout=timeout, check=False)

    @contextmanager
    def started(
        self, *args: str | Path, env: Mapping[str, str] | None = None, group: int | None = None
    ) -> Iterator[subprocess.Popen[str]]:
        """Start it and leave it running; it is killed at the end if it still runs.

        With a ``group`` of 0 it is a job of its own, which can be stopped however the tests were started.
        """
        with subprocess.Popen(
            self.argv(*args),
            env={**self.environment, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=group,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    @staticmethod
    def argv(*args: str | Path) -> list[str]:
        return [sys.executable, "-m", "kopiatomic", *map(str, args)]


@dataclass(frozen=True)
class Kopia:
    """A kopia that is connected to a repository of this test alone."""

    folder: Path
    environment: dict[str, str] = field(repr=False)

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    def __call__(self, *args: str | Path, check: bool = True, timeout: float = 60) -> Completed:
        return command("kopia", *args, env={**os.environ, **self.environment}, check=check, timeout=timeout)

    def json(self, *args: str | Path) -> Any:
        return json.loads(self(*args, "--json").stdout)


def kopia_in(folder: Path) -> Kopia:
    return Kopia(
        folder,
        {
            "KOPIA_CACHE_DIRECTORY": str(folder / "cache"),
            "KOPIA_CHECK_FOR_UPDATES": "false",
            "KOPIA_CONFIG_PATH": str(folder / "repository.config"),
            "KOPIA_LOG_DIR": str(folder / "logs"),
            "KOPIA_PASSWORD": "a password for tests",
        },
    )


@pytest.fixture(scope="session")
def kopia_template(tmp_path_factory: pytest.TempPathFactory) -> Kopia:
    """A new repository, made once: making one takes 8 s in the VM."""
    if shutil.which("kopia") is None:
        pytest.fail("kopia is not on PATH; ./test builds it and puts it there", pytrace=False)
    template = kopia_in(tmp_path_factory.mktemp("kopia-template"))
    template.repository.mkdir()
    template("repository", "create", "filesystem", "--path", template.repository, "--no-persist-credentials")
    return template


@pytest.fixture
def kopia(kopia_template: Kopia, tmp_path: Path) -> Kopia:
    """A copy of the new repository, connected; pass its `environment` to whatever starts kopia."""
    copy = kopia_in(tmp_path / "kopia")
    shutil.copytree(kopia_template.folder, copy.folder, symlinks=True)
    config = copy.folder / "repository.config"
    text = config.read_text().replace(str(kopia_template.folder), str(copy.folder))
    config.write_text(text)
    return copy


@pytest.fixture
def kopiatomic(tmp_path: Path) -> Kopiatomic:
    """The command under test: `kopiatomic("plan", dataset, env=kopia.environment)`."""
    home = tmp_path / "home"
    home.mkdir()
    return Kopiatomic(
        {
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(SOURCE),
            "KOPIATOMIC_STATE_DIR": str(tmp_path / "state"),
            "KOPIATOMIC_TEST_MARK": secrets.token_hex(8),
        }
    )
