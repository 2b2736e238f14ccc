"""A kind of filesystem is one folder and one line: a toy is registered with one line, and whole runs work with it.

It stands with the tests of real runs, whose ground it needs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.btrfs.conftest import Family, Gate
from tests.btrfs.toy_kind import STORE
from tests.support.filesystems import Btrfs
from tests.support.programs import SOURCE, Completed, Kopia, Kopiatomic, command


@dataclass(frozen=True)
class Toys:
    """Two datasets, one mounted in the other, and kopiatomic with their kind."""

    top: Path
    nested: Path
    copies: Path
    kopiatomic: Kopiatomic

    def change(self) -> None:
        (self.top / "file").write_text("live\n")
        (self.nested / "deep" / "file").write_text("live\n")


class _WithToys(Kopiatomic):
    @staticmethod
    def argv(*args: str | Path) -> list[str]:
        return [sys.executable, "-m", "tests.btrfs.toy_kind", *map(str, args)]


@pytest.fixture
def toys(tmp_path: Path, kopiatomic: Kopiatomic) -> Iterator[Toys]:
    top, box = tmp_path / "toys", tmp_path / "store"
    nested, copies, shown = top / "nested", box / "rw", box / "ro"
    try:
        for point, source in ((top, "toy:top"), (nested, "toy:nested"), (copies, "store")):
            point.mkdir(parents=True)
            command("mount", "-t", "tmpfs", "-o", "mode=755", source, point)
        shown.mkdir()
        command("mount", "--bind", copies, shown)
        command("mount", "-o", "remount,bind,ro,nosuid,nodev", shown)
        (top / "file").write_text("frozen\n")
        (nested / "deep").mkdir()
        (nested / "deep" / "file").write_text("nested\n")
        more = {STORE: str(box), "PYTHONPATH": f"{SOURCE}:{SOURCE.parent}"}
        yield Toys(top, nested, copies, _WithToys({**kopiatomic.environment, **more}))
    finally:
        for point in (shown, copies, nested, top):
            command("umount", "-l", point, check=False)


def ended(toys: Toys, gate: Gate, *args: str | Path) -> tuple[Any, Completed]:
    """Run; what is live is changed while the engine waits. Returns the document, and the state of things after it."""
    with toys.kopiatomic.started("--json", "-c", gate.command, *args) as process:
        gate.wait()
        assert [p.name for p in toys.copies.iterdir()] != []
        toys.change()
        gate.let_go()
        out, errors = process.communicate(timeout=60)
    done = Completed((), process.returncode, out, errors)
    assert (done.returncode, list(toys.copies.iterdir())) == (0, []), str(done)
    return json.loads(out), done


def test_nobody_else_knows_toys(toys: Toys, kopiatomic: Kopiatomic, root: Path) -> None:
    refused = kopiatomic("--mount-root", root, "-c", "true", toys.top)
    assert (refused.returncode, "is on tmpfs (toy:top)" in refused.stderr) == (1, True), str(refused)


def test_a_merged_run_freezes_a_toy(toys: Toys, make_gate: Any, root: Path, tmp_path: Path) -> None:
    said = tmp_path / "said"
    lines = f"cat {root}{toys.top}/file {root}{toys.nested}/deep/file {toys.top}/file > {said}\n"
    gate = make_gate(lines + f"touch {root}{toys.top}/new 2>/dev/null || echo no >> {said}")
    document, done = ended(toys, gate, "--mount-root", root, toys.top, toys.nested)
    assert said.read_text() == "frozen\nnested\nlive\nno\n"
    assert [(d["filesystem"], d["dataset"]) for d in document["datasets"]] == [
        ("toy", "toy:top"),
        ("toy", "toy:nested"),
    ]
    assert document["atomic"], str(done)
    assert not root.exists()


def test_an_in_place_run_freezes_a_toy(toys: Toys, make_gate: Any, tmp_path: Path) -> None:
    said = tmp_path / "said"
    lines = f"cat {toys.top}/file {toys.nested}/deep/file > {said}\n"
    gate = make_gate(lines + f"touch {toys.nested}/new 2>/dev/null || echo no >> {said}")
    document, _ = ended(toys, gate, "--layout", "in-place", toys.top, toys.nested)
    assert said.read_text() == "frozen\nnested\nno\n"
    assert (document["layout"], document["sources"]) == ("in-place", [str(toys.top)])


def test_a_part_of_a_toy_beside_a_subvolume(
    toys: Toys, btrfs: Btrfs, make_gate: Any, root: Path, tmp_path: Path
) -> None:
    (btrfs.subvolume("data") / "file").write_text("btrfs\n")
    data, said = btrfs.mountpoint / "data", tmp_path / "said"
    gate = make_gate(f"cat {root}{data}/file {root}{toys.nested}/deep/file > {said}; ls {root}{toys.nested} >> {said}")
    document, _ = ended(toys, gate, "--mount-root", root, data, toys.nested / "deep")
    assert said.read_text() == "btrfs\nnested\ndeep\n"
    assert [made["filesystem"] for made in document["sets"]] == ["btrfs", "toy"]


def test_what_the_kind_says_is_in_the_summary(toys: Toys, root: Path) -> None:
    said = toys.kopiatomic("--mount-root", root, "--verbose", "-c", "true", toys.top)
    assert "box box: one snapshot, copy 7" in said.stdout + said.stderr, str(said)
    assert "toys are copied while somebody plays with them" in said.stdout + said.stderr, str(said)


def test_what_a_killed_run_left_of_a_toy_is_cleared(toys: Toys, gate: Gate, root: Path) -> None:
    with toys.kopiatomic.started("--mount-root", root, "-c", gate.command, toys.top) as process:
        gate.wait()
        family = Family.of(process.pid)
        for pid in (family.main, family.keeper, family.launcher):
            os.kill(pid, signal.SIGKILL)
    assert len(list(toys.copies.glob("*/0/file"))) == 1
    cleared = toys.kopiatomic("recover")
    assert cleared.returncode == 0, str(cleared)
    assert list(toys.copies.glob("*/0")) == []


def test_no_new_toy_is_made_for_a_restore(toys: Toys, root: Path, kopia: Kopia) -> None:
    ended = toys.kopiatomic("--mount-root", root, "-r", toys.top, env=kopia.environment)
    assert ended.returncode == 0, str(ended)
    refused = toys.kopiatomic("restore", "latest", "--dataset", "toy:top", "--as", "toy:new", env=kopia.environment)
    assert (refused.returncode, "of the kind toy, of which no new one can be made" in refused.stderr) == (1, True)
    target = Path(tempfile.mkdtemp(prefix="toys-", dir="/var/tmp"))
    try:
        restored = toys.kopiatomic("restore", "latest", toys.top, "--to", target, env=kopia.environment)
        assert restored.returncode == 0, str(restored)
        assert (target / "file").read_text() == "frozen\n"
    finally:
        shutil.rmtree(target)
