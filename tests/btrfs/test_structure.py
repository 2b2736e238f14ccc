"""What a run does does not grow with the number of subvolumes, but for the one call that makes each snapshot."""

from __future__ import annotations

from pathlib import Path

from tests.support.filesystems import Btrfs
from tests.support.programs import Kopiatomic
from tests.support.structure import counted

MANY = 200


def test_a_run_of_200_does_what_a_run_of_four_does(
    btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path, tmp_path: Path
) -> None:
    top = btrfs.subvolume("top")
    nested = [btrfs.subvolume(f"top/s{number}") for number in range(MANY - 1)]
    words = ("--mount-root", root, "-c", "true")
    # Two or three are tried several times.
    few, four = counted(tmp_path / "few", *words, *nested[:4], env=kopiatomic.environment)
    many, _ = counted(tmp_path / "many", *words, *nested, env=kopiatomic.environment)
    everything, all_of_them = counted(tmp_path / "everything", *words, "-r", top, env=kopiatomic.environment)
    print(dict(few), dict(many), dict(everything))
    assert (four, all_of_them) == (4, MANY)
    assert (few.pop("snapshot (v2)"), many.pop("snapshot (v2)")) == (4, MANY - 1)
    assert everything.pop("snapshot (v2)") == MANY
    for each in (few, many, everything):
        # Each snapshot is deleted by a call of its own as well.
        each.pop("delete subvolume", None)
        each.pop("delete subvolume (v2)", None)
    assert few == many
    # kopiatomic itself and the engine.
    assert many["programs"] == everything["programs"] == 2
    # With -r there is a second look at what is there, in a child.
    assert everything["processes"] == many["processes"] + 1
