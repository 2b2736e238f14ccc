"""Datasets that take several spellings for the same name: what is named is what is opened, in whichever spelling."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.filesystems import Pool
from tests.support.programs import command
from tests.zfs.runs import Runner

pytestmark = pytest.mark.in_part(3)

NFC = "caf\u00e9"
NFD = unicodedata.normalize("NFD", NFC)
LAYOUTS = pytest.mark.parametrize("layout", ["merged", "in-place"])


def test_the_letters_are_two_spellings() -> None:
    assert NFC != NFD


class Ground:
    """A dataset with a child in it and plain directories, and runs that tell which files their engine has found where."""

    def __init__(self, pool: Pool, name: str, run: Runner, tmp_path: Path, **properties: str) -> None:
        self.name = pool.dataset(name, **properties)
        self.top = pool.path(name)
        self._run = run
        self._folder = tmp_path

    def child(self, name: str) -> str:
        full = f"{self.name}/child"
        command("zfs", "create", "-o", f"mountpoint={self.top / name}", full)
        (self.top / name / "thesis").write_text("thesis")
        return full

    def directory(self, name: str) -> None:
        (self.top / name).mkdir(parents=True)
        (self.top / name / "file").write_text("file")

    def run(self, layout: str, *names: str | Path) -> tuple[int, list[str], list[str]]:
        """The exit code, the files below the dataset's top as the engine lists them, and the places that were taken."""
        root, found, engine = self._folder / "view", self._folder / "found", self._folder / "engine"
        found.unlink(missing_ok=True)
        place = f"{root}{self.top}" if layout == "merged" else self.top
        engine.write_text(f"ls \"$@\" > /dev/null; cd {place} && find . -type f -printf '%P\\n' > {found}\n")
        ended, document = self._run.json("--layout", layout, "--mount-root", root, "-c", f"sh {engine}", *names)
        files = sorted(found.read_text().splitlines()) if found.exists() else []
        taken = [os.path.relpath(path, self.top) for dataset in document["datasets"] for path in dataset["paths"]]
        return ended.returncode, files, taken


@pytest.fixture(scope="module")
def pool(tank: Pool) -> Pool:
    return tank


@pytest.fixture
def win(pool: Pool, run: Runner, tmp_path: Path) -> Iterator[Ground]:
    ground = Ground(pool, "win", run, tmp_path, casesensitivity="insensitive")
    yield ground
    command("zfs", "destroy", "-r", ground.name)


@pytest.fixture
def normal(pool: Pool, run: Runner, tmp_path: Path, form: str) -> Iterator[Ground]:
    ground = Ground(pool, "normal", run, tmp_path, normalization=form)
    yield ground
    command("zfs", "destroy", "-r", ground.name)


@LAYOUTS
def test_a_child_in_other_case_is_the_child(layout: str, win: Ground) -> None:
    win.child("Docs")
    assert win.run(layout, win.top / "DOCS") == (0, ["Docs/thesis"], ["Docs"])
    if layout == "merged":
        assert win.run(layout, "-r", win.name, "--exclude", f"{win.top}/./dOcS/") == (0, [], ["."])


@LAYOUTS
def test_a_plain_directory_in_other_case(layout: str, win: Ground) -> None:
    win.directory("Plain/Deep")
    win.directory("Other")
    (win.top / "link").symlink_to("PLAIN")
    for name in ("PLAIN/deep", "LINK/dEEP"):
        code, files, taken = win.run(layout, win.top / name)
        assert (code, taken) == (0, ["Plain/Deep"])
        assert "Plain/Deep/file" in files


@LAYOUTS
def test_what_lies_below_a_directory_in_other_case_is_taken(layout: str, win: Ground) -> None:
    win.directory("Plain")
    win.child("Plain/Docs")
    code, files, taken = win.run(layout, "-r", win.top / "PLAIN")
    assert (code, sorted(taken)) == (0, ["Plain", "Plain/Docs"])
    assert {"Plain/file", "Plain/Docs/thesis"} <= set(files)


@pytest.mark.in_part(2)
@pytest.mark.parametrize(("layout", "form"), [("merged", "formD"), ("in-place", "formC")])
def test_composed_and_decomposed_letters_are_the_same(layout: str, normal: Ground) -> None:
    normal.child(NFC)
    normal.directory(f"plain-{NFD}")
    listed = set(os.listdir(normal.top))
    for looked_up, other in ((NFC, NFD), (NFD, NFC)):
        # The mount table has the spelling that was looked up last.
        os.listdir(normal.top / looked_up)
        code, files, taken = normal.run(layout, "-r", normal.name)
        assert (code, len(files), len(taken)) == (0, 2, 2)
        assert set(taken) - {"."} < listed
        os.listdir(normal.top / looked_up)
        code, files, taken = normal.run(layout, normal.top / other)
        assert (code, len(taken), set(taken) <= listed) == (0, 1, True)
        assert [os.path.basename(file) for file in files if "plain" not in file] == ["thesis"]
    assert normal.run(layout, normal.top / f"plain-{NFC}")[::2] == (0, [f"plain-{NFD}"])
    os.listdir(normal.top / NFC)
    code, files, _ = normal.run("merged", "-r", normal.name, "--exclude", normal.top / NFD)
    assert (code, [os.path.basename(file) for file in files]) == (0, ["file"])


def test_a_dataset_that_is_exact_is_left_so(pool: Pool, run: Runner, tmp_path: Path) -> None:
    ground = Ground(pool, "exact", run, tmp_path)
    ground.directory(NFC)
    ground.directory(NFD)
    ground.directory("Plain")
    assert ground.run("merged", ground.top / NFC) == (0, [f"{NFC}/file"], [NFC])
    assert ground.run("merged", ground.top / NFD) == (0, [f"{NFD}/file"], [NFD])
    assert ground.run("merged", ground.top / "PLAIN")[0] == 1
    command("zfs", "destroy", "-r", ground.name)
