"""What the tests with real OpenZFS share beyond tests/support: pools that many tests use, and runs that start quickly."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.filesystems import Pool, imported_pool
from tests.zfs.runs import Cgroup, Runner


@contextmanager
def cgroup() -> Iterator[Cgroup]:
    group = Cgroup(Path("/sys/fs/cgroup") / f"kopiatomic-{secrets.token_hex(4)}")
    group.folder.mkdir()
    try:
        yield group
    finally:
        group.kill()
        group.folder.rmdir()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Runner]:
    """The command under test in a fork of this process, in a control group of its own."""
    with cgroup() as group:
        yield Runner(group, tmp_path)


@pytest.fixture(scope="module")
def tank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool that the tests of one module share: making and destroying one takes 3 s here."""
    with imported_pool(tmp_path_factory.mktemp("tank") / "pool") as pool:
        yield pool
