"""Backups of OpenZFS restored: everything comes back with each engine; what a dataset cannot hold is named.

The guest's own versions of OpenZFS, Python, restic and Borg. With -s the first test shows what the engine alone keeps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kopiatomic.trees.target import FOLDER
from tests.support.exact_tree import KEPT, LOST, NONE, ZFS, cells, differences, furnish, listed
from tests.support.filesystems import Pool
from tests.support.plain import compared, with_borg, with_kopia, with_restic
from tests.support.programs import Completed, Kopia, command
from tests.support.repositories import Borg, Restic
from tests.zfs.runs import Runner

pytestmark = pytest.mark.in_part(2)

LIMIT_S = 600


@pytest.fixture(scope="module")
def source(tank: Pool) -> Path:
    """A tree on a dataset with one in it, and a dataset to restore to that can hold all of it."""
    for name in ("back", "home", "home/nested"):
        tank.dataset(name, acltype="posix", xattr="sa")
        if name != "back":
            furnish(tank.path(name), ZFS, projects=True)
    # Mounting the last has changed the time of the one above.
    os.utime(tank.path("home"), ns=(0, 1_234_567_890_123_456_789))
    return tank.path("home")


class Saved:
    """A backup of the tree with an engine, and how it is restored."""

    def __init__(self, run: Runner, words: list[str], environment: dict[str, str], *names: str) -> None:
        self._run, self._words, self._environment = run, words, environment
        more = [] if words else ["--no-maintenance"]
        ended, document = run.json(*names, *words, *more, env=environment, timeout=LIMIT_S)
        assert ended.returncode == 0, ended
        assert document["metadata"]["saved"], ended
        assert document["metadata"]["unreadable"] == 0, ended

    def restore(self, *words: str | Path) -> Completed:
        return self._run("restore", "latest", *words, *self._words, env=self._environment, timeout=LIMIT_S)


@pytest.mark.core
@pytest.mark.parametrize("engine", ["kopia", "restic", "borg"])
def test_everything_comes_back(
    engine: str, tank: Pool, source: Path, run: Runner, kopia: Kopia, tmp_path: Path
) -> None:
    names = [f"{tank.name}/home", f"{tank.name}/home/nested"]
    way: Callable[[Path, Path], Path]
    if engine == "kopia":
        saved, way = Saved(run, [], kopia.environment, *names), partial(with_kopia, kopia)
    elif engine == "restic":
        restic = Restic(tmp_path / engine)
        saved, way = Saved(run, restic.words, restic.environment, *names), partial(with_restic, restic)
    else:
        borg = Borg(tmp_path / engine)
        saved, way = Saved(run, borg.words, borg.environment, *names), partial(with_borg, borg)
    target = tank.path("back") / engine
    ended = saved.restore(source, "--to", target)
    assert ended.returncode == 0, ended
    assert differences(source, target) == []
    lost = {row: cell for row, cell in cells(listed(source), listed(target)).items() if cell not in {KEPT, NONE}}
    # Engines write holes out.
    assert lost in ({"holes in files": LOST}, {})
    assert run.left(tank) == []
    (tank.path("back") / f"plain-{engine}").mkdir()
    compared(source, tank.path("back") / f"plain-{engine}", {engine: way})


def test_names_that_a_dataset_takes_for_the_same_are_an_error(
    tank: Pool, run: Runner, kopia: Kopia, tmp_path: Path
) -> None:
    tank.dataset("cases")
    tank.dataset("folded", casesensitivity="insensitive")
    source, folded = tank.path("cases"), tank.path("folded")
    for name in ("docs/readme", "docs/ReadMe", "other/file"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    saved = Saved(run, [], kopia.environment, f"{tank.name}/cases")
    ended = saved.restore(source, "--to", folded / "back")
    assert ended.returncode == 1, ended
    assert f"{source}/docs/".lower() in ended.stderr.lower(), ended
    assert "takes names that differ in case alone for the same, and 1 would be lost" in ended.stderr
    assert [path.name for path in (folded / "back").iterdir()] == [FOLDER]
    # What has no such names can be restored there, and everything elsewhere.
    ended = saved.restore(source / "other", "--to", folded / "other")
    assert ended.returncode == 0, ended
    ended = saved.restore(source, "--to", tmp_path / "back")
    assert ended.returncode == 0, ended


def test_what_a_dataset_cannot_hold_is_named(tank: Pool, source: Path, run: Runner, kopia: Kopia) -> None:
    tank.dataset("poor", acltype="posix", xattr="sa", utf8only="on")
    target = tank.path("poor") / "back"
    saved = Saved(run, [], kopia.environment, f"{tank.name}/home", f"{tank.name}/home/nested")
    ended = saved.restore(source, "--to", target, "--json")
    assert ended.returncode == 3, ended
    failures = json.loads(ended.stdout)["failures"]
    assert any("a\\xff: " in one and "Invalid or incomplete multibyte" in one for one in failures), failures
    kept = command("find", target, "-name", "large", "-size", "300000c").stdout.split()
    assert len(kept) == 2


@pytest.mark.parametrize("engine", ["kopia", "restic", "borg"])
def test_what_a_dataset_without_attributes_cannot_hold_is_named(
    engine: str, tank: Pool, source: Path, run: Runner, kopia: Kopia, tmp_path: Path
) -> None:
    tank.dataset(f"without-{engine}", acltype="off", xattr="off")
    target = tank.path(f"without-{engine}") / "back"
    if engine == "kopia":
        saved = Saved(run, [], kopia.environment, f"{tank.name}/home")
    else:
        repository = (Restic if engine == "restic" else Borg)(tmp_path / engine)
        saved = Saved(run, repository.words, repository.environment, f"{tank.name}/home")
    ended = saved.restore(source, "--to", target, "--json")
    assert ended.returncode == 3, ended
    failures = "\n".join(json.loads(ended.stdout)["failures"])
    if engine == "restic":
        # It ignores that, and what it keeps is not recorded.
        for what in ("extended attributes", "access control lists"):
            assert f"its filesystem has no {what}: what was saved with some comes back without" in ended.stderr, ended
    else:
        attribute = "setting extended attribute user." if engine == "borg" else "its attribute user."
        assert attribute in failures, failures
        assert "not supported" in failures, failures
    kept = command("rsync", "-rlHDn", "--checksum", "--delete", "-i", "-x", f"{source}/", f"{target}/").stdout
    assert [line for line in kept.splitlines() if not line.startswith(".d") and " nested/" not in line] == []
