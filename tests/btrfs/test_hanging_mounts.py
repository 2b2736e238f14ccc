"""Mounts whose server never answers: a plan and a run come to their end without a look into them, and name them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.system import fuse
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopiatomic, command
from tests.support.schema import valid
from tests.support.swapper import USER, swapping

pytestmark = pytest.mark.in_part(6)

Leftovers = Callable[..., list[str]]

LIMIT_S = 60
"""A run that looks into one of these mounts never ends."""


@pytest.fixture
def hang() -> Iterator[Callable[[Path], Path]]:
    """Mount a filesystem on a directory whose server takes no request: whoever asks it for anything waits for ever."""
    with ExitStack() as stack:

        def mount(point: Path) -> Path:
            point.mkdir(parents=True, exist_ok=True)
            server = fuse.mount(str(point), "hung")
            stack.callback(command, "umount", "--lazy", point)
            # First: what waits gets an error then.
            stack.callback(os.close, server)
            return point

        yield mount


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    data = btrfs.subvolume("data")
    (data / "file").write_text("then")
    return data


Say = Callable[..., tuple[Completed, Any]]


@pytest.fixture(params=["plan", "run", "in-place"])
def say(request: pytest.FixtureRequest, kopiatomic: Kopiatomic, root: Path, leftovers: Leftovers) -> Iterator[Say]:
    """A plan or a run with these words, and its document; it has to end soon."""
    first = {
        "plan": ("plan", "--json", "--mount-root", root),
        "run": ("--json", "--mount-root", root, "-c", "true"),
        "in-place": ("--json", "--layout", "in-place", "-c", "true"),
    }[request.param]

    def say(*words: str | Path) -> tuple[Completed, Any]:
        ended = kopiatomic(*first, *words, timeout=LIMIT_S)
        return ended, valid(ended.stdout)

    yield say
    assert leftovers(root) == []


Hang = Callable[[Path], Path]


def test_one_inside_is_named_and_not_covered(data: Path, say: Say, hang: Hang) -> None:
    point = hang(data / "hung")
    ended, document = say("-r", data)
    assert ended.returncode == 0, str(ended)
    (uncovered,) = document["uncovered"]
    assert (uncovered["path"], uncovered["type"], uncovered["bytes"]) == (str(point), "fuse.hung", None)


@pytest.mark.parametrize("where", ["nested", "dir"])
def test_a_nested_subvolume_under_one_is_covered(where: str, btrfs: Btrfs, data: Path, say: Say, hang: Hang) -> None:
    """On it, and on a directory above it."""
    (data / "dir").mkdir()
    nested = btrfs.subvolume("data/nested" if where == "nested" else "data/dir/nested")
    hang(data / where)
    ended, document = say("-r", data)
    assert ended.returncode == 3, str(ended)
    assert f"not complete: {nested}: another filesystem is mounted over it" in ended.stderr
    assert [(o["dataset"], o["verdict"]) for o in document["left_out"]] == [(str(nested), "covered")]


def test_a_path_into_one_is_refused(data: Path, say: Say, hang: Hang) -> None:
    """By itself, below it, through a link, and as a name that might be a pattern or a file."""
    point = hang(data / "hung")
    (data / "link").symlink_to("hung/inside")
    for path in (point, point / "inside", data / "link", data / "link" / "below"):
        ended, document = say(data, path)
        assert ended.returncode == 1, str(ended)
        assert document["error"]["message"] == f"{path} is on fuse.hung (hung), which is neither ZFS nor Btrfs"
        assert document["error"]["kind"] == "unsupported-filesystem"
    ended, document = say(data, f"{point}/*")
    assert ended.returncode == 1, str(ended)
    assert document["error"]["message"] == f"the pattern {point}/* matches no dataset"


def test_everything_is_taken_around_one(data: Path, say: Say, hang: Hang) -> None:
    hang(data / "hung")
    ended, document = say(data.parent, "--exclude", "/nowhere", "-r")
    assert ended.returncode == 0, str(ended)
    assert [u["path"] for u in document["uncovered"]] == [str(data / "hung")]


def test_a_link_into_one_that_a_user_swaps_in_is_not_followed_unseen(
    data: Path, btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path, hang: Hang, leftovers: Leftovers
) -> None:
    os.chown(data, USER, USER)
    (data / "dir").mkdir()
    btrfs.subvolume("data/dir/nested")
    os.chown(data / "dir", USER, USER)
    (data / "link").symlink_to(hang(btrfs.mountpoint / "hung"))
    codes = set()
    with swapping(data, "dir", "link", seed=0):
        for words in ((data / "dir" / "nested",), ("-r", data), ("-r", data / "dir")) * 3:
            codes.add(kopiatomic("--mount-root", root, "-c", "true", *words, timeout=LIMIT_S).returncode)
    assert codes <= {0, 1, 3}
    assert leftovers(root) == []
