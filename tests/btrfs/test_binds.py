"""Mounts inside a dataset that show a part of it, or hide one: what is asked for is in the view, or named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.btrfs.conftest import alone
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopiatomic, command
from tests.support.schema import valid

pytestmark = pytest.mark.in_part(6)


class Ground:
    """A subvolume, mounts on it that go at the end, and runs in one layout with what their engine found."""

    def __init__(self, btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path, layout: str, stack: ExitStack) -> None:
        self.btrfs = btrfs
        self.layout = layout
        self.data = btrfs.subvolume("data")
        self._kopiatomic = kopiatomic
        self._root = root
        self._found = root.with_name("found")
        self._stack = stack

    def write(self, name: str, text: str = "") -> Path:
        path = self.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text or name)
        return path

    def mount(self, *words: str | Path) -> None:
        command("mount", *words)
        self._stack.callback(command, "umount", "-l", words[-1], check=False)

    @property
    def device(self) -> str:
        return command("findmnt", "-no", "SOURCE", self.btrfs.mountpoint).stdout.split("[")[0].strip()

    def run(self, *names: str | Path) -> tuple[Completed, Any, dict[str, str]]:
        """A run of these; how it ended, its document, and the files below ``data`` in its view, with their content."""
        top = f"{self._root}{self.data}" if self.layout == "merged" else str(self.data)
        engine = self._root.with_name("engine")
        engine.write_text(f"cd {top}\nfind . -type f -printf '%P ' -exec cat {{}} ';' -printf '\\n' > {self._found}\n")
        words: list[str | Path] = ["--json", "--layout", self.layout, "--mount-root", self._root, "-c", f"sh {engine}"]
        ended = self._kopiatomic(*words, *names)
        lines = self._found.read_text().splitlines() if self._found.exists() else []
        return ended, valid(ended.stdout), dict(line.split(" ", 1) for line in lines)


@pytest.fixture(params=["merged", "in-place"])
def ground(request: pytest.FixtureRequest, btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path) -> Iterator[Ground]:
    with ExitStack() as stack:
        yield Ground(btrfs, kopiatomic, root, request.param, stack)


def bound_onto_itself(ground: Ground) -> None:
    ground.mount("--bind", ground.data / "docker", ground.data / "docker")


def bound_onto_itself_twice(ground: Ground) -> None:
    bound_onto_itself(ground)
    bound_onto_itself(ground)


def bound_onto_itself_in_one_that_is(ground: Ground) -> None:
    bound_onto_itself(ground)
    ground.mount("--bind", ground.data / "docker/deep", ground.data / "docker/deep")


def bound_onto_itself_and_mounted_on(ground: Ground) -> None:
    bound_onto_itself(ground)
    (ground.data / "docker/memory").mkdir()
    ground.mount("-t", "tmpfs", "none", ground.data / "docker/memory")


@pytest.mark.in_part(3)
@pytest.mark.parametrize(
    "bind",
    [
        bound_onto_itself,
        bound_onto_itself_twice,
        bound_onto_itself_in_one_that_is,
        bound_onto_itself_and_mounted_on,
    ],
)
def test_a_directory_that_is_bound_onto_itself_is_no_boundary(ground: Ground, bind: Callable[[Ground], None]) -> None:
    ground.write("docker/key.json", "precious")
    ground.write("docker/deep/file", "deeper")
    ground.btrfs.subvolume("data/docker/deep/layer")
    ground.write("docker/deep/layer/file", "nested")
    bind(ground)
    requests: list[list[str | Path]] = [
        [ground.data],
        [ground.data / "docker"],
        [ground.data / "docker/deep", ground.data],
    ]
    for names in requests:
        ended, document, found = ground.run("-r", *names)
        assert ended.returncode == 0, str(ended)
        assert found == {
            "docker/key.json": "precious",
            "docker/deep/file": "deeper",
            "docker/deep/layer/file": "nested",
        }
        assert [u["path"] for u in document["uncovered"]] == (
            [f"{ground.data}/docker/memory"] if bind is bound_onto_itself_and_mounted_on else []
        )


def test_a_part_that_is_bound_onto_another_is_not_taken_for_that(ground: Ground) -> None:
    """What is named there is what can be seen there, and never what it hides."""
    ground.write("x/file", "bound")
    ground.write("y/hidden", "hidden")
    ground.write("z/file", "beside")
    ground.mount("--bind", ground.data / "x", ground.data / "y")
    ended, document, _ = ground.run(ground.data / "z", ground.data / "y")
    assert ended.returncode == 1
    assert document["error"]["kind"] == "bind-mount"
    ended, _, found = ground.run(ground.data)
    assert ended.returncode == 0, str(ended)
    also = {"y/hidden": "hidden"} if ground.layout == "merged" else {"y/file": "bound"}
    assert found == {"x/file": "bound", "z/file": "beside", **also}


def test_what_is_nested_in_a_part_is_seen_wherever_that_is_bound(ground: Ground) -> None:
    ground.write("x/file", "bound")
    ground.btrfs.subvolume("data/x/layer")
    ground.write("x/layer/file", "nested")
    ground.btrfs.subvolume("data/x/layer/deep")
    ground.write("x/layer/deep/file", "deep")
    (ground.data / "y").mkdir()
    ground.mount("--bind", ground.data / "x", ground.data / "y")
    ended, _, found = ground.run("-r", ground.data)
    assert ended.returncode == 0, str(ended)
    inside = {"file": "bound", "layer/file": "nested", "layer/deep/file": "deep"}
    places = ["x"] if ground.layout == "merged" else ["x", "y"]
    assert found == {f"{place}/{name}": text for place in places for name, text in inside.items()}


def test_a_directory_bound_onto_itself_inside_a_bind_of_another(ground: Ground) -> None:
    ground.write("x/deep/file", "bound")
    (ground.data / "y").mkdir()
    ground.mount("--bind", ground.data / "x", ground.data / "y")
    ground.mount("--bind", ground.data / "y/deep", ground.data / "y/deep")
    ended, document, found = ground.run(ground.data)
    assert ended.returncode == 0, str(ended)
    assert found["x/deep/file"] == "bound"
    assert [u["path"] for u in document["uncovered"]] == ([f"{ground.data}/y"] if ground.layout == "merged" else [])


@pytest.mark.parametrize("there", [True, False], ids=["its-directory-is-there", "its-directory-is-not-there"])
def test_what_a_mount_hides_is_in_the_view_or_named(
    there: bool, btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path
) -> None:
    """A mount that is not taken lies on a directory with files, and one that is taken lies in it."""
    with ExitStack() as stack:
        ground = Ground(btrfs, kopiatomic, root, "merged", stack)
        ground.write("point/hidden", "hidden")
        if there:
            (ground.data / "point/inner").mkdir()
        (btrfs.subvolume("other") / "file").write_text("other")
        ground.mount("-t", "tmpfs", "none", ground.data / "point")
        (ground.data / "point/inner").mkdir()
        ground.mount("-o", "subvol=other", ground.device, ground.data / "point/inner")
        ended, document, found = ground.run(ground.data, ground.data / "point/inner")
        assert found == {"point/inner/file": "other", **({"point/hidden": "hidden"} if there else {})}
        assert ended.returncode == (0 if there else 3), str(ended)
        told = [text for text in document["incomplete"] if f"{ground.data}/point itself" in text]
        assert len(told) == (0 if there else 1)


def test_everything_with_a_directory_bound_onto_itself(btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path) -> None:
    with ExitStack() as stack:
        ground = Ground(btrfs, kopiatomic, root, "merged", stack)
        ground.write("docker/key.json", "precious")
        bound_onto_itself(ground)
        points = [btrfs.mountpoint, ground.data / "docker"]
        ended = alone(points, kopiatomic, "-n", "--json", "--mount-root", root, "-a")
        assert ended.returncode == 0, str(ended)
        document = valid(ended.stdout)
        assert [d["dataset"] for d in document["datasets"]][:1] == [str(btrfs.mountpoint)]
        assert not [w for w in document["warnings"] if "docker" in w]
