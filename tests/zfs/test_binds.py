"""Mounts inside a dataset that show a part of it, or hide one: what is asked for is in the view, or named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.filesystems import Pool
from tests.support.programs import command
from tests.zfs.runs import Runner

LAYOUTS = pytest.mark.parametrize("layout", ["merged", "in-place"])


@contextmanager
def bound(source: Path, point: Path) -> Iterator[None]:
    command("mount", "--bind", source, point)
    try:
        yield
    finally:
        command("umount", point)


def files(run: Runner, tmp_path: Path, layout: str, top: Path, *names: str | Path) -> tuple[int, dict[str, str]]:
    """Run, and give the exit code and the files below a directory in the view, with their content."""
    root, found, engine = tmp_path / "view", tmp_path / "found", tmp_path / "engine"
    place = f"{root}{top}" if layout == "merged" else top
    engine.write_text(f"cd {place}\nfind . -type f -printf '%P ' -exec cat {{}} ';' -printf '\\n' > {found}\n")
    ended, _ = run.json("--layout", layout, "--mount-root", root, "-c", f"sh {engine}", *names)
    return ended.returncode, dict(line.split(" ", 1) for line in found.read_text().splitlines())


@LAYOUTS
def test_a_directory_that_is_bound_onto_itself_is_no_boundary(
    layout: str, tank: Pool, run: Runner, tmp_path: Path
) -> None:
    name = tank.dataset(f"bound-{layout}")
    top = tank.path(f"bound-{layout}")
    (top / "docker" / "deep").mkdir(parents=True)
    (top / "docker" / "key.json").write_text("precious")
    (top / "docker" / "deep" / "file").write_text("deeper")
    with bound(top / "docker", top / "docker"), bound(top / "docker" / "deep", top / "docker" / "deep"):
        layer = tank.dataset(f"bound-{layout}/layer", mountpoint=str(top / "docker/deep/layer"))
        (top / "docker" / "deep" / "layer" / "file").write_text("child")
        whole = {"docker/key.json": "precious", "docker/deep/file": "deeper", "docker/deep/layer/file": "child"}
        assert files(run, tmp_path, layout, top, "-r", name) == (0, whole)
        assert files(run, tmp_path, layout, top / "docker", "-r", top / "docker") == (
            0,
            {"key.json": "precious", "deep/file": "deeper", "deep/layer/file": "child"},
        )
        command("zfs", "destroy", layer)


def test_what_a_mount_hides_is_in_the_view_or_named(tank: Pool, run: Runner, tmp_path: Path) -> None:
    name = tank.dataset("hiding")
    top = tank.path("hiding")
    (top / "point").mkdir()
    (top / "point" / "hidden").write_text("hidden")
    command("mount", "-t", "tmpfs", "none", top / "point")
    try:
        tank.dataset("hiding/inner", mountpoint=str(top / "point/inner"))
        (top / "point" / "inner" / "file").write_text("child")
        code, found = files(run, tmp_path, "merged", top, "-r", name)
        assert (code, found) == (3, {"point/inner/file": "child"})
        command("umount", "-l", top / "point")
        (top / "point" / "inner").mkdir()
        command("mount", "-t", "tmpfs", "none", top / "point")
        command("zfs", "mount", f"{name}/inner")
        code, found = files(run, tmp_path, "merged", top, "-r", name)
        assert (code, found) == (0, {"point/hidden": "hidden", "point/inner/file": "child"})
    finally:
        command("umount", "-lR", top / "point", check=False)
        command("zfs", "destroy", "-r", name, check=False)
