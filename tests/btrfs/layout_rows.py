"""How distributions and programs lay subvolumes out, as rows of the Btrfs matrix: what is data, and what is a copy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from kopiatomic.system import btrfs as ioctls
from tests.btrfs.matrix_rows import SNAPSHOT, UNASKED, Case, Ground, implied, marked, taken
from tests.support.matrix import Row
from tests.support.programs import command
from tests.support.subvolumes import create, opened

LAYERS = 500


def opensuse(ground: Ground) -> Case:
    """After a rollback: the root is a writable snapshot in /.snapshots, beside the first root and snapper's read-only ones."""
    ground.subvolumes("@", "@/home", "@/.snapshots")
    snapshots = ground.top / "@" / ".snapshots"
    for number in range(1, 6):
        (snapshots / str(number)).mkdir()
    first = ground.subvolume("@/.snapshots/1/snapshot")
    ground.snapshot(first, snapshots / "2" / "snapshot", "-r")
    ground.snapshot(first, snapshots / "3" / "snapshot", "-r")
    marked(ground.snapshot(snapshots / "3" / "snapshot", snapshots / "4" / "snapshot"), "root")
    ground.snapshot(snapshots / "4" / "snapshot", snapshots / "5" / "snapshot", "-r")
    root = ground.mounted("root", "subvol=@/.snapshots/4/snapshot")
    home, seen = ground.mounted("home", "subvol=@/home"), ground.mounted("snapshots", "subvol=@/.snapshots")
    copies = {str(seen / number / "snapshot"): SNAPSHOT for number in ("2", "3", "5")}
    rows = {
        str(root): implied(root, "root", "-a"),
        str(home): implied(home, "@/home", "-a"),
        str(seen): implied(seen, "@/.snapshots", "-a"),
        str(seen / "1" / "snapshot"): implied(seen / "1" / "snapshot", "@/.snapshots/1/snapshot", "-a"),
        str(seen / "4" / "snapshot"): Row("duplicate", reason=f"^the same subvolume as {root}$"),
    }
    return Case(["-a"], rows | copies, alone=[root, home, seen])


def timeshift(ground: Ground) -> Case:
    """Its snapshots are writable and lie in the top-level subvolume, which is mounted while it runs: they are data."""
    root, home = ground.subvolumes("@", "@home")
    folder = ground.top / "timeshift-btrfs" / "snapshots" / "2026-11-28_12-00-01"
    folder.mkdir(parents=True)
    saved = [marked(ground.snapshot(source, folder / source.name), f"saved {source.name}") for source in (root, home)]
    marked(ground.top, "top")
    at_root, at_home = ground.mounted("root", "subvol=@"), ground.mounted("home", "subvol=@home")
    rows = {
        str(ground.top): implied(ground.top, "top", "-a"),
        str(at_root): implied(at_root, "@", "-a"),
        str(at_home): implied(at_home, "@home", "-a"),
        str(root): Row("duplicate", reason=f"^the same subvolume as {at_root}$"),
        str(home): Row("duplicate", reason=f"^the same subvolume as {at_home}$"),
        **{str(path): implied(path, f"saved {path.name}", "-a") for path in saved},
    }
    return Case(["-a"], rows, alone=[ground.top, at_root, at_home])


def docker(ground: Ground) -> Case:
    """Each layer is a writable snapshot of the one below it, and Docker binds its directory onto itself."""
    root = ground.subvolume("@")
    at_root = ground.mounted("root", "subvol=@")
    docker = marked(at_root / "docker", "docker")
    ground.mount(docker, "--bind", docker)
    layers = [docker / f"{number:03d}" for number in range(LAYERS)]
    with opened(root / "docker", []) as directory:
        create(directory, layers[0].name)
        marked(layers[0], "layer")
        for below, layer in itertools.pairwise(layers):
            with opened(below, []) as source:
                ioctls.snapshot(source, directory, layer.name, read_only=False)
    rows = {str(at_root): implied(at_root, "@", "-a"), **{str(path): implied(path, "layer", "-a") for path in layers}}
    return Case(["-a"], rows, alone=[at_root, docker], more={str(docker): "docker"})


def _target(ground: Ground) -> tuple[Path, list[Path]]:
    """A filesystem that receives: the subvolume that it does so in, and the copies, the second one incremental."""
    home = ground.subvolume("home")
    monday, tuesday = ground.top / "home.monday", ground.top / "home.tuesday"
    ground.snapshot(home, monday, "-r")
    marked(home, "tuesday")
    ground.snapshot(home, tuesday, "-r")
    other = ground.make_btrfs().mountpoint
    target = ground.subvolume("target", top=other)
    command("bash", "-o", "pipefail", "-c", f"btrfs -q send {monday} | btrfs -q receive {target}")
    command("bash", "-o", "pipefail", "-c", f"btrfs -q send -p {monday} {tuesday} | btrfs -q receive {target}")
    return target, [target / monday.name, target / tuesday.name]


def btrbks_target(ground: Ground) -> Case:
    """Copies are of other machines, most likely: -a alone leaves them out, and says so."""
    target, copies = _target(ground)
    received = Row(
        "received copy", incomplete=True, reason="^btrfs receive has made it, and -a alone does not take it$"
    )
    rows = {
        str(target.parent): Row("taken", place=str(target.parent), marker="", reason="^-a$"),
        str(target): implied(target, "target", "-a"),
        **{str(copy): received for copy in copies},
    }
    marked(target.parent, str(target.parent))
    missed = [f"^2 received copies .*: {copies[0]}, {copies[1]} "]
    return Case(["-a"], rows, code=3, missed=missed, alone=[target.parent])


def btrbks_target_that_was_named(ground: Ground) -> Case:
    """A copy that was received, then made incremental by the next, is no snapshot of it."""
    target, (monday, tuesday) = _target(ground)
    daily = ground.snapshot(tuesday, target / "of-tuesday", "-r")
    rows = {
        str(target): taken(target, "target"),
        str(monday): implied(monday, "home"),
        str(tuesday): implied(tuesday, "tuesday"),
        str(daily): SNAPSHOT,
    }
    return Case(["-r", target], rows)


def what_btrbk_sends(ground: Ground) -> Case:
    """Read-only snapshots beside their source, in the top-level subvolume."""
    home = ground.subvolume("@home")
    folder = ground.subvolume("btrbk")
    copies = [ground.snapshot(home, folder / f"home.{number}", "-r") for number in range(3)]
    at_home, pool = ground.mounted("home", "subvol=@home"), ground.mounted("pool", "subvol=btrbk")
    rows = {
        str(at_home): implied(at_home, "@home", "-a"),
        str(pool): implied(pool, "btrbk", "-a"),
        **{str(pool / copy.name): SNAPSHOT for copy in copies},
    }
    return Case(["-a"], rows, alone=[at_home, pool])


def empty_ones_of_systemds(ground: Ground) -> Case:
    """systemd makes /var/lib/machines and portables as subvolumes, empty at first: nothing is missed."""
    data = ground.subvolume("data")
    empty = [data / name for name in ("machines", "portables")]
    for path in empty:
        command("btrfs", "subvolume", "create", path)
    return Case([data], {str(data): taken(data, "data"), **{str(path): UNASKED for path in empty}})


LAYOUTS: list[Callable[[Ground], Case]] = [
    opensuse,
    timeshift,
    docker,
    btrbks_target,
    btrbks_target_that_was_named,
    what_btrbk_sends,
    empty_ones_of_systemds,
]
