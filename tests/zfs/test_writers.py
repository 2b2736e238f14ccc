"""Writers that are held still by a run over two pools: one instant for them, which nothing else gives."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kopiatomic.config.profile_text import toml
from tests.support.filesystems import imported_pool
from tests.unit.support.holders import Grouped, grouped, thawers, write_in_order
from tests.zfs.runs import Runner

SETS = 5


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[Path]]:
    """A file in each of two pools."""
    with imported_pool(tmp_path / "one") as one, imported_pool(tmp_path / "other") as other:
        yield [one.path() / "file", other.path() / "file"]


@pytest.fixture(params=[True, False], ids=["mapped", "written"])
def writer(request: pytest.FixtureRequest, files: list[Path]) -> Iterator[Grouped]:
    with grouped() as group:
        write_in_order(group, files, mapped=request.param)
        yield group


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of profiles that root alone can change."""
    made = Path(tempfile.mkdtemp(prefix="kopiatomic-profiles-", dir="/run"))
    yield made
    shutil.rmtree(made)


def numbers(run: Runner, files: list[Path], folder: Path, held: str = "") -> list[int]:
    """The numbers in the files of a run's view."""
    reads = "; ".join(f"od -An -t u8 -N 8 /kopia{file}" for file in files)
    lines = [
        f"[select]\ndatasets = {toml([str(file.parent) for file in files])}",
        '[view]\nmount_root = "/kopia"',
        f"[engine]\ncommand = {toml(['sh', '-c', reads])}",
        # An emulated machine under load may take seconds.
        f'[[hold]]\nkind = "cgroup"\nname = {toml(held)}\nlimit = "60s"\ntimeout = "60s"' if held else "",
    ]
    path = folder / "home.toml"
    path.touch(0o600)
    path.write_text("\n".join(lines))
    ended = run("run", "home", "--verbose", env={"KOPIATOMIC_CONFIG_DIR": str(folder)})
    assert ended.returncode == 0, ended
    return [int(line) for line in ended.stderr.splitlines() if line.strip().isdecimal()]


def test_two_pools_are_one_instant_for_what_is_held(
    files: list[Path], writer: Grouped, run: Runner, folder: Path
) -> None:
    for _ in range(SETS):
        first, last = numbers(run, files, folder, writer.path)
        # The second is written right after the first.
        assert first - last in {0, 1}
        assert not writer.is_asked()
    assert run.left() == []
    assert thawers() == []


def test_otherwise_they_are_not(files: list[Path], run: Runner, folder: Path) -> None:
    """The control: the test above could not fail otherwise."""
    with grouped() as group:
        write_in_order(group, files, mapped=False)
        found = (numbers(run, files, folder) for _ in range(4 * SETS))
        assert any(first - last not in {0, 1} for first, last in found)
