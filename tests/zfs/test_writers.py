"""Writers that a run holds still over two pools, or over two datasets that they have mapped: one instant for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kopiatomic.config.profile_text import toml
from tests.support.filesystems import imported_pool
from tests.support.folders import roots_own
from tests.support.parts import share
from tests.unit.support.holders import Grouped, count_torn, grouped, is_torn, number, thawers, write_in_order
from tests.zfs.runs import Runner

pytestmark = pytest.mark.in_part(4)

SETS = share(20, 2)


@pytest.fixture(params=[("pools", "written"), ("pools", "mapped"), ("datasets", "mapped")], ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """What the files are in two of, and how they are written."""
    found: tuple[str, str] = request.param
    return found


@pytest.fixture
def files(case: tuple[str, str], tmp_path: Path) -> Iterator[list[Path]]:
    """A file in each of two pools, or of two datasets of one."""
    with imported_pool(tmp_path / "one") as one, imported_pool(tmp_path / "other") as other:
        if case[0] == "pools":
            yield [one.path() / "file", other.path() / "file"]
        else:
            one.dataset("first")
            one.dataset("last")
            yield [one.path("first") / "file", one.path("last") / "file"]


@pytest.fixture
def writer(case: tuple[str, str], files: list[Path]) -> Iterator[Grouped]:
    with grouped() as group:
        write_in_order(group, files, mapped=case[1] == "mapped")
        yield group


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of profiles that root alone can change."""
    with roots_own() as made:
        yield made


def is_whole(run: Runner, files: list[Path], folder: Path, held: str = "") -> bool:
    """Whether the numbers in the files of a run's view are of one instant, and not older than the run."""
    before = number(files[-1])
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
    found = [int(line) for line in ended.stderr.splitlines() if line.strip().isdecimal()]
    assert len(found) == len(files), ended
    return not is_torn(found) and found[-1] >= before


def test_they_are_one_instant_for_what_is_held(files: list[Path], writer: Grouped, run: Runner, folder: Path) -> None:
    for _ in range(SETS):
        assert is_whole(run, files, folder, writer.path)
        assert not writer.is_asked()
    assert run.left() == []
    assert thawers() == []


def test_otherwise_they_are_not(files: list[Path], writer: Grouped, run: Runner, folder: Path) -> None:
    """The control: the test above could not fail otherwise."""
    del writer
    assert count_torn(lambda: not is_whole(run, files, folder), SETS)
