"""Fixtures of the unit tests."""

from pathlib import Path

import pytest
from hypothesis import settings

from kopiatomic.state import locks
from tests.unit.support.engine_bench import bench, borg_bench, restic_bench

__all__ = ["bench", "borg_bench", "restic_bench"]

# How long an example takes says nothing on a busy machine.
settings.register_profile("kopiatomic", deadline=None)
settings.load_profile("kopiatomic")


@pytest.fixture
def lock_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock directory of this test alone, so that it neither needs root nor meets real runs."""
    directory = tmp_path / "run" / "kopiatomic"
    directory.parent.mkdir()
    monkeypatch.setattr(locks, "DIRECTORY", str(directory))
    return directory
