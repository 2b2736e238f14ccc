"""``--verify``: what was saved equals the frozen view, or the run says what differs. With each engine, merged and in place."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.exact_tree import BTRFS, furnish
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopia, Kopiatomic
from tests.support.repositories import Borg, Restic
from tests.support.schema import valid

pytestmark = pytest.mark.in_part(6)

ENGINES = ("kopia", "restic", "borg")


class Ground:
    """Two subvolumes, and an engine with a repository."""

    def __init__(self, btrfs: Btrfs, root: Path, kopiatomic: Kopiatomic, words: list[str], environment: dict[str, str]):
        self.home, self.data = btrfs.subvolume("home"), btrfs.subvolume("data")
        for number in range(40):
            (self.home / f"file {number}").write_text(f"{number} " * 1000)
        (self.data / "folder").mkdir()
        (self.data / "folder" / "large").write_bytes(os.urandom(3_000_001))
        os.link(self.data / "folder" / "large", self.data / "second name")
        self.root, self.kopiatomic, self.words, self.environment = root, kopiatomic, words, environment
        self.engine = words[1] if words else "kopia"

    def __call__(self, *more: str | Path, layout: str = "merged") -> Completed:
        place = ["--mount-root", self.root] if layout == "merged" else ["--layout", layout]
        words = ["--json", *place, *self.words, *more, self.home, self.data]
        return self.kopiatomic(*words, env=self.environment)

    def verified(self, *more: str | Path, layout: str = "merged") -> Any:
        ended = self(*more, layout=layout)
        document = valid(ended.stdout)
        assert document["exit_code"] == ended.returncode == 0, str(ended)
        assert document["verified"]["equal"]
        return document["verified"]


@pytest.fixture(params=ENGINES)
def ground(
    request: pytest.FixtureRequest, btrfs: Btrfs, root: Path, kopiatomic: Kopiatomic, kopia: Kopia, tmp_path: Path
) -> Ground:
    if request.param == "kopia":
        return Ground(btrfs, root, kopiatomic, [], kopia.environment)
    repository = {"restic": Restic, "borg": Borg}[request.param](tmp_path / request.param)
    return Ground(btrfs, root, kopiatomic, repository.words, repository.environment)


@pytest.mark.parametrize("layout", ["merged", "in-place"])
def test_a_backup_that_is_right_is_equal(ground: Ground, layout: str) -> None:
    """Also one of everything that a tree can have, and one that has read nothing anew."""
    furnish(ground.home, BTRFS)
    try:
        for _ in range(2):
            found = ground.verified("--verify", "all", layout=layout)
            assert found["files"] == found["all_files"] >= 42
            assert found["entries"] > 60
            assert found["left_out"] == {}
    finally:
        subprocess.run(["chattr", "-R", "-f", "-i", "-a", ground.home], check=False)


def test_so_many_runs_read_every_file(ground: Ground) -> None:
    found = [ground.verified("--verify", "25%") for _ in range(4)]
    assert {one["rounds"] for one in found} == {4}
    assert sum(one["files"] for one in found) >= found[0]["all_files"]
    assert all(one["files"] < one["all_files"] for one in found)


def test_no_more_than_the_limit_is_read(ground: Ground) -> None:
    """But what is small, and the few that were there before."""
    found = ground.verified("--verify", "50%", "--verify-limit", "10k")
    assert found["bytes"] <= 10_240 + 8 * 5_000


def unseen(file: Path, change: Callable[[], object]) -> None:
    """Change a file so that its size and its time say nothing."""
    before = file.stat()
    change()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("share", ["all", "0.01%"])
def test_a_change_that_the_engine_does_not_see_is_found(ground: Ground, share: str) -> None:
    """And the next run has it read everything again."""
    ground.verified("--verify", share)
    file = ground.data / "folder" / "large"

    def change() -> None:
        with file.open("r+b") as opened:
            opened.seek(2_000_000)
            opened.write(b"another content")

    unseen(file, change)
    ended = ground("--verify", share)
    document = valid(ended.stdout)
    if ground.engine != "kopia":
        # They look at the time of the last change of the inode.
        assert document["verified"]["equal"], str(ended)
        return
    assert ended.returncode == 1, str(ended)
    assert document["error"]["kind"] == "differs"
    assert {(one["path"], one["what"]) for one in document["verified"]["differences"]} == {
        (f"{ground.root}{path}", "its content is another one in the backup, from byte 2000000 on")
        for path in (file, ground.data / "second name")
    }
    assert ground.verified("--verify", share)["difference_count"] == 0


def test_what_rules_leave_out_is_counted_and_a_change_is_a_warning(ground: Ground) -> None:
    cache = ground.data / "folder" / "cache"
    cache.mkdir()
    (cache / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    for number in range(3):
        (cache / str(number)).touch()
    more = {"kopia": [], "restic": ["-o", "--exclude-caches"], "borg": ["-o", "--exclude-caches"]}[ground.engine]
    found = ground.verified("--verify", "1%", *more)
    assert list(found["left_out"]) == [f"{ground.root}{ground.data}/folder"]
    (cache / "4").touch()
    ended = ground("--verify", "1%", *more)
    warnings = valid(ended.stdout)["warnings"]
    assert any("leaves out has changed since the last comparison" in warning for warning in warnings), str(ended)
    assert ended.returncode == 0


def test_one_that_takes_too_long_is_not_taken_for_a_proof(ground: Ground) -> None:
    ended = ground("--verify", "all", "--verify-time-limit", "0.1")
    document = valid(ended.stdout)
    assert ended.returncode == 3, str(ended)
    assert document["verified"] is None
    assert "what was saved is not verified: that took longer than 0.1 s" in document["incomplete"]


def test_a_command_of_ones_own_cannot_be_verified(kopiatomic: Kopiatomic, btrfs: Btrfs) -> None:
    ended = kopiatomic("-c", "true", "--verify", "all", btrfs.subvolume("home"))
    assert ended.returncode == 2
    assert "cannot be read back" in ended.stderr


def test_share_and_size_are_what_is_documented(kopiatomic: Kopiatomic) -> None:
    for words in (["--verify", "0"], ["--verify", "101%"], ["--verify", "some"], ["--verify-limit", "1 XB"]):
        ended = kopiatomic(*words, "/nowhere")
        assert ended.returncode == 2, str(ended)
