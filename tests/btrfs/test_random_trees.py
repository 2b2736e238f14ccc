"""Random trees with entries of all kinds, saved and restored, are equal. Plain ./test makes a small one.

KOPIATOMIC_TEST_RESTORES=whole (`./test restores`) makes ten of 100,000 entries; KOPIATOMIC_TEST_SEED=SEED
KOPIATOMIC_TEST_TREE=INDEX makes one of them again, KOPIATOMIC_TEST_ENTRIES=N those with so many entries.
"""

from __future__ import annotations

import json
import os
import random
import resource
import time
from pathlib import Path

import pytest

from tests.support.exact_tree import differences, grow
from tests.support.filesystems import Btrfs
from tests.support.programs import Kopia, Kopiatomic, command
from tests.support.repositories import Borg, Restic
from tests.support.schema import valid

SEED = os.environ.get("KOPIATOMIC_TEST_SEED", "0")
WHOLE = os.environ.get("KOPIATOMIC_TEST_RESTORES") == "whole"
ONLY = os.environ.get("KOPIATOMIC_TEST_TREE")
TREES = [int(ONLY)] if ONLY else range(10 if WHOLE else 1)
ENTRIES = int(os.environ.get("KOPIATOMIC_TEST_ENTRIES", "100000" if WHOLE else "1000"))
ENGINES = ("kopia", "kopia", "restic", "borg")
"""In turn: kopia loses most."""
LIMIT_S = 1200


@pytest.mark.parametrize("index", TREES)
def test_a_random_tree_is_restored_equal(
    index: int, btrfs: Btrfs, root: Path, kopiatomic: Kopiatomic, kopia: Kopia, tmp_path: Path
) -> None:
    os.truncate(btrfs.image, 8 << 30)
    command("losetup", "--set-capacity", btrfs.device)
    command("btrfs", "filesystem", "resize", "max", btrfs.mountpoint)
    source, target = btrfs.subvolume("home"), btrfs.mountpoint / "back"
    chance = random.Random(f"{SEED}/{index}")
    began = time.monotonic()
    grow(source, ENTRIES, chance)
    engine = ENGINES[index % len(ENGINES)] if WHOLE or ONLY else chance.choice(ENGINES)
    words, environment = [], kopia.environment
    if engine != "kopia":
        repository = {"restic": Restic, "borg": Borg}[engine](tmp_path / engine)
        words, environment = repository.words, repository.environment
    made = time.monotonic()
    options: list[str | Path] = ["--mount-root", root, "--json", source, *words]
    ended = kopiatomic(*options, env=environment, timeout=LIMIT_S)
    assert ended.returncode == 0, str(ended)
    record = valid(ended.stdout)["metadata"]
    saved = time.monotonic()
    options = ["restore", "latest", source, "--to", target, "--json", *words]
    ended = kopiatomic(*options, env=environment, timeout=LIMIT_S)
    assert ended.returncode == 0, str(ended)[:4000]
    restored = time.monotonic()
    found = json.loads(ended.stdout)
    assert (found["absent"], found["differences"], found["failures"]) == ([], [], [])
    assert found["applied"] >= 0.5 * ENTRIES or engine != "kopia"
    assert differences(source, target) == []
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    print(
        f"tree {index}, {engine}: {ENTRIES} entries, {record['entries']} recorded; made in {made - began:.0f} s, saved in "
        f"{saved - made:.0f}, restored in {restored - saved:.0f}, judged in {time.monotonic() - restored:.0f}; the largest "
        f"process had {peak} MiB"
    )
