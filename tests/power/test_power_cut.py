"""Power cuts: the machine is gone in the middle of a run, its disk survives, and of the run nothing stays.

Each boot looks at what the last cut left, runs to the end, and ends in the next cut: a reset of qemu's machine, SIGKILL for
User-Mode Linux. Both lose what the guest has not handed to its disk, and nothing else. ``-s`` shows each cut and what it left.
Plain ``./test`` makes a few, in User-Mode Linux.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.power.in_the_guest import CUT

TREE = Path(__file__).resolve().parents[2]
WHOLE = os.environ.get("KOPIATOMIC_TEST_POWER") == "whole"
CUTS = int(os.environ.get("KOPIATOMIC_TEST_CUTS", "10" if WHOLE else "2"))
ASKED = os.environ.get("KOPIATOMIC_VM_EMULATOR")
EMULATORS = [ASKED] if ASKED else ["uml", "qemu"] if WHOLE else ["uml"]
SEED = os.environ.get("KOPIATOMIC_TEST_SEED") or random.SystemRandom().randbytes(4).hex()
DISK_BYTES = 2 << 30
BOOT_LIMIT_S = 600
VM_ENDED = 125
ENGINE_READS_S = 4.0
"""How far into the engine's reading a cut may come."""
PARTS = {"gap": 1.0, "window": 1.5}
"""How far a cut may come into the gap between snapshot call and deferred destroy; or into the run, and beyond its end."""
ZFS, BOTH = ["tank/data", "tank/data/sub"], ["tank/data", "tank/data/sub", "/btrfs/data"]


@dataclass(frozen=True)
class Cut:
    """When the power goes. `fraction` is in seconds while the engine reads, else a part of `where`."""

    moment: str
    where: str
    fraction: float


@dataclass(frozen=True)
class Step:
    """One boot: what its runs take, whether `recover` comes before the first, and how it ends.

    `how` is the layout of its runs; or "exec", where the first is a backup in place, and the one that is cut off is not.
    """

    datasets: list[str]
    how: str
    recover: bool
    cut: Cut | None


def steps(moment: str) -> list[Step]:
    """The boots of one test, chosen by the seed. Every second cut after a snapshot call is in the gap behind it."""
    dice = random.Random(f"{SEED} {moment}")
    made: list[Step] = []
    for number in range(CUTS + 1):
        where = "window" if number % 2 else "gap"
        fraction = dice.random() * (ENGINE_READS_S if moment == "engine" else PARTS[where])
        cut = Cut(moment, where, fraction) if number < CUTS else None
        how = dice.choice(["merged", "in-place", "exec"])
        made.append(Step(dice.choice([ZFS, BOTH]), how, recover=dice.random() < 0.5, cut=cut))
    return made


def boot(disk: Path, step: Step, emulator: str, *, first: bool) -> dict[str, Any]:
    """Boot a machine on the disk, have in_the_guest.py do the step, and return what it found."""
    cut = step.cut
    told = {
        "first": first,
        "datasets": step.datasets,
        "how": step.how,
        "recover": step.recover and not first,
        "moment": cut and cut.moment,
        "fraction": cut.fraction if cut else 0,
        "where": cut.where if cut else "gap",
    }
    argv = [str(TREE / "dev" / "vm"), "run", "--disk", str(disk), "--timeout", str(BOOT_LIMIT_S)]
    argv += ["--cut-at", CUT] if emulator == "uml" else []
    argv += ["--", "python3", "-m", "tests.power.in_the_guest", json.dumps(told)]
    environment = os.environ | {"KOPIATOMIC_VM_EMULATOR": emulator}
    ended = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    said = f"{told}\nexit code {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
    assert ended.returncode == (VM_ENDED if cut else 0), said
    how = "the power was cut" if emulator == "uml" else "sysrq: Resetting"
    assert cut is None or how in ended.stderr, said
    found: dict[str, Any] = {}
    for line in ended.stdout.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    return found


def decoys(found: dict[str, Any]) -> list[list[str]]:
    return [snapshot for snapshot in found["zfs"] if not is_ours(snapshot)]


def is_ours(snapshot: list[str]) -> bool:
    """Whether a run of this test made it; the decoys were made with a run's id of long ago, or none."""
    return "@kopiatomic_2" in snapshot[0] and "@kopiatomic_2020" not in snapshot[0]


def left(found: dict[str, Any]) -> list[str]:
    """What is there that a run made."""
    snapshots: list[str] = [snapshot[0] for snapshot in found["zfs"] if is_ours(snapshot)]
    snapshots += [path for path in found["btrfs"] if path.startswith(".kopiatomic")]
    return [*snapshots, *found["directories"]]


def check_the_cut(cut: Cut, found: dict[str, Any], last_run: str) -> None:
    """What the record says of a run that was cut off, and what the import has left of it."""
    (newest, *_) = found["history"]["json"]["runs"]
    assert newest["run_id"] != last_run, "the run that was cut off has no record"
    if cut.moment == "engine":
        assert [name for name in left(found["after_import"]) if "@" in name] == []
    if cut.where == "window" and cut.moment == "snapshot" and newest["result"] in {"saved", "ran"}:
        # It came when the run had done everything, and had written it down.
        assert (newest["exit_code"], left(found["after_import"])) == (0, [])
    else:
        assert (newest["result"], newest["exit_code"]) == ("end not recorded", None)


def check_what_follows(found: dict[str, Any]) -> None:
    """Recover clears all, the next run clears all and succeeds, and neither touches what is not ours."""
    there = left(found["after_import"])
    if "recover" in found:
        recovered = found["recover"]
        assert (recovered["exit"], recovered["json"]["left"], left(found["after_recover"])) == (0, 0, [])
        listed = " ".join(leftover["name"] for leftover in recovered["json"]["leftovers"])
        assert [name for name in there if "@" in name and name not in listed] == []
        assert decoys(found["after_recover"]) == decoys(found["after_import"])
    else:
        said = found["run"]["stderr"]
        assert [name for name in there if "@" in name and name not in said] == []
    assert found["run"]["exit"] == 0, found["run"]
    assert left(found["after_run"]) == []
    assert (found["rest"]["exit"], found["rest"]["json"]["left"], found["rest"]["json"]["leftovers"]) == (0, 0, [])
    (newest,) = found["history_then"]["json"]["runs"]
    assert (newest["result"], newest["exit_code"]) == ("saved", 0)
    assert newest["run_id"] == json.loads(found["run"]["stdout"])["run_id"]


@pytest.mark.parametrize("emulator", EMULATORS)
@pytest.mark.parametrize("moment", ["engine", "snapshot"])
def test_of_a_run_that_a_power_cut_ended_nothing_stays(moment: str, emulator: str, tmp_path: Path) -> None:
    """While the engine reads, ZFS's part is gone with the import; from the first snapshot call on with the next run."""
    print(f"KOPIATOMIC_TEST_SEED={SEED}")
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    cut: Cut | None = None
    how, last_run, intact = "", "", None
    for step in steps(moment):
        found = boot(disk, step, emulator, first=cut is None)
        print(f"{how}, {cut}: left at boot: {left(found['after_import'])}")
        if cut is not None:
            check_the_cut(cut, found, last_run)
        check_what_follows(found)
        intact = intact or decoys(found["after_import"])
        assert len(intact) == 5
        assert decoys(found["after_run"]) == intact
        assert "kopiatomic_20200102T030405Z-deadbeef" in found["after_run"]["btrfs"]
        last_run = found["history_then"]["json"]["runs"][0]["run_id"]
        cut, how = step.cut, step.how
