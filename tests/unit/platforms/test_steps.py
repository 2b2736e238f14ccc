"""The steps of a view are what is mounted in it, each kind of filesystem in its own way; and what counts as its content."""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kopiatomic.filesystems import KINDS
from kopiatomic.filesystems.kind import Mounting
from kopiatomic.model.plan import Uncovered
from kopiatomic.model.snapshots import Instant, Sets, Snapshot, SnapshotSet
from kopiatomic.platforms.steps import (
    LiveStep,
    ScaffoldStep,
    SnapshotStep,
    VolumesStep,
    holds_something,
    is_frozen,
    steps_of,
)
from tests.unit.support.plans import facts, plan, zfs


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        # Its path may be short only.
        here = os.open(path.parent, os.O_PATH)
        one.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


@pytest.mark.parametrize(
    ("make", "counts"),
    [
        pytest.param(Path.mkdir, True, id="a directory"),
        pytest.param(Path.touch, True, id="a file"),
        pytest.param(lambda path: path.symlink_to("nowhere"), True, id="a link"),
        pytest.param(os.mkfifo, False, id="a pipe"),
        pytest.param(a_socket, False, id="a socket"),
        pytest.param(lambda _path: None, False, id="nothing"),
    ],
)
def test_only_what_every_backup_program_keeps_fills_a_directory(
    make: Callable[[Path], None], counts: bool, tmp_path: Path
) -> None:
    make(tmp_path / "entry")
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        assert holds_something(directory) is counts
        assert holds_something(str(tmp_path)) is counts
    finally:
        os.close(directory)


def set_of(kind: str, *snapshots: Snapshot) -> Sets:
    return Sets((SnapshotSet(kind, "pool", snapshots, Instant(5, 6, 7, 8)),))


def test_each_class_of_step_is_made_of_its_part_of_the_plan() -> None:
    known = facts(
        ("/tank", "zfs", "tank"),
        ("/tank/tmp", "tmpfs", "tmpfs"),
        datasets=[zfs("tank"), zfs("tank/disk", "volume")],
    )
    chosen = replace(
        plan(known, "tank", recursive=True, volumes=True),
        scaffolds=("/tank/between",),
        uncovered=(Uncovered("/tank/tmp", "tmpfs", "none", "tank", live=True),),
        writable=("/tank/cache",),
    )
    disk = Snapshot("tank/disk", "tank/disk@x", 1, size=512)
    steps = steps_of(chosen, set_of("zfs", Snapshot("tank", "tank@x", 1), disk))
    found = {step.place: step for step in steps}
    top, volumes = found["/tank"], found["/.volumes"]
    assert isinstance(top, SnapshotStep)
    assert (top.kind, top.source, top.mounting) == (KINDS["zfs"], "tank@x", Mounting("tank@x", "zfs"))
    assert isinstance(volumes, VolumesStep)
    assert [(file.snapshot, file.size) for file in volumes.files] == [("tank/disk@x", 512)]
    assert found["/tank/between"] == ScaffoldStep("", "/tank/between")
    assert found["/tank/tmp"] == LiveStep("tmpfs none", "/tank/tmp", "tmpfs", "none")
    assert found["/tank/cache"] == LiveStep("the directory /tank/cache, which must be writable,", "/tank/cache")
    assert {step.place for step in steps if is_frozen(step)} == {"/tank", "/.volumes"}


def test_a_kind_says_itself_how_its_snapshots_are_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one needs nothing of the platforms: here the snapshot of a volume that holds an XFS."""
    kind = replace(
        KINDS["zfs"],
        name="volume",
        mounting=lambda source, device: Mounting(f"{device}-{source}", "xfs", "nouuid,norecovery"),
    )
    monkeypatch.setitem(KINDS, kind.name, kind)
    chosen = plan(facts(("/tank", "zfs", "tank"), datasets=[zfs("tank")]), "tank")
    taken = chosen.taken[0]
    dataset = replace(taken.dataset, kind=kind.name, device="/dev/group/home")
    chosen = replace(chosen, taken=(replace(taken, dataset=dataset),))
    (step,) = steps_of(chosen, set_of(kind.name, Snapshot("tank", "snapshot", 1)))
    assert isinstance(step, SnapshotStep)
    assert step.mounting == Mounting("/dev/group/home-snapshot", "xfs", "nouuid,norecovery")
