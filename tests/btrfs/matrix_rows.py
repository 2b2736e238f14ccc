"""The rows of the Btrfs matrix: each builds a situation, and says what is expected of it.

Written by hand from btrfs-subvolume(8), btrfs(5), mount(8) and mount_namespaces(7), not computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.filesystems import Btrfs
from tests.support.matrix import MARKER, Row
from tests.support.programs import command


@dataclass(frozen=True)
class Case:
    """A command line, and what a plan and a run must say to it. Texts are regular expressions."""

    words: Sequence[str | Path]
    rows: Mapping[str, Row] = field(default_factory=dict)
    code: int = 0
    uncovered: Mapping[str, str] = field(default_factory=dict)
    """Type by mount point."""
    said: Sequence[str] = ()
    """Warnings, all of them in this order."""
    missed: Sequence[str] = ()
    """What is said of several datasets together that are missing."""
    error: str = ""
    ask: str = "plan"
    """What asks for the plan alone."""
    more: Mapping[str, str] = field(default_factory=dict)
    """What is shown besides the datasets' own markers."""
    alone: Sequence[Path] = ()
    """Where it is mounted, if no other Btrfs filesystem of the machine may be in sight."""


class Ground:
    """Makes subvolumes that carry their names, and mounts that are gone at the end."""

    def __init__(self, make_btrfs: Callable[[], Btrfs], folder: Path, stack: ExitStack) -> None:
        self.make_btrfs = make_btrfs
        self.btrfs = make_btrfs()
        self.top = self.btrfs.mountpoint
        self._folder = folder
        self._stack = stack

    def subvolume(self, name: str, *, top: Path | None = None) -> Path:
        path = (top or self.top) / name
        command("btrfs", "subvolume", "create", path)
        return marked(path, name)

    def subvolumes(self, *names: str) -> list[Path]:
        return [self.subvolume(name) for name in names]

    def snapshot(self, source: Path, target: Path, *options: str) -> Path:
        """With its origin's marker."""
        command("btrfs", "subvolume", "snapshot", *options, source, target)
        return target

    def mount(self, point: Path, *words: str | Path) -> Path:
        """Mount something; `words` are what mount(8) is given before the mount point."""
        point.mkdir(parents=True, exist_ok=True)
        command("mount", *words, point)
        self._stack.callback(command, "umount", point)
        return point

    def mounted(self, where: str, options: str) -> Path:
        """Mount this row's filesystem once more, beside it."""
        return self.mount(self.aside(where), "-o", options, self.btrfs.device)

    def aside(self, name: str) -> Path:
        return self._folder / name

    def device(self, name: str) -> str:
        """A loop device with nothing on it."""
        image = self._folder / name
        with image.open("wb") as file:
            file.truncate(128 << 20)
        device = command("losetup", "--find", "--show", image).stdout.strip()
        self._stack.callback(command, "losetup", "--detach", device)
        return device


def marked(path: Path, text: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / MARKER).write_bytes(os.fsencode(text))
    return path


def taken(path: Path, marker: str, reason: str = "^it was named$") -> Row:
    """Taken, and shown whole at its own path."""
    return Row("taken", place=str(path), marker=marker, reason=reason)


def implied(path: Path, marker: str, by: str = "-r .*") -> Row:
    return taken(path, marker, f"^{by}$")


UNASKED = Row("not asked for", reason="^it was not named; -r takes it$")
MISSED = Row("not asked for", incomplete=True, reason="^it was not named; -r takes it$")
COVERED = Row("covered", incomplete=True, reason="^another filesystem is mounted over it$")
SNAPSHOT = Row("read-only snapshot", reason="^a read-only snapshot of .*, which is taken; name it to take it$")


def nested(path: Path, count: int) -> str:
    return f"^{path} holds {count} nested subvolume\\(s\\) with something in them that are not taken: "


# Where a subvolume is mounted


def mounted_with_subvol(ground: Ground) -> Case:
    ground.subvolume("@home")
    point = ground.mounted("home", "subvol=@home")
    return Case([point], {str(point): taken(point, "@home")})


def mounted_with_subvolid(ground: Ground) -> Case:
    path = ground.subvolume("@home")
    number = command("btrfs", "inspect-internal", "rootid", path).stdout.strip()
    point = ground.mounted("home", f"subvolid={number}")
    return Case([point], {str(point): taken(point, "@home")})


def mounted_as_the_default_subvolume(ground: Ground) -> Case:
    """`mount` without options shows it, although its mount looks like any other of the filesystem."""
    command("btrfs", "subvolume", "set-default", ground.subvolume("@"))
    point = ground.mounted("root", "rw")
    return Case([point], {str(point): taken(point, "@")})


def mounted_twice_and_named_twice(ground: Ground) -> Case:
    ground.subvolume("@home")
    one, other = ground.mounted("a", "subvol=@home"), ground.mounted("b", "subvol=@home")
    duplicate = Row("duplicate", reason=f"^the same subvolume as {one}$")
    return Case([other, one], {str(one): taken(one, "@home"), str(other): duplicate})


def mounted_and_seen_in_the_top_level(ground: Ground) -> Case:
    """Named where it is mounted, implied where it is nested: shown where it was named."""
    seen = ground.subvolume("@home")
    point = ground.mounted("home", "subvol=@home")
    rows = {
        str(ground.top): taken(ground.top, "top"),
        str(point): taken(point, "@home"),
        str(seen): Row("duplicate", reason=f"^the same subvolume as {point}$"),
    }
    marked(ground.top, "top")
    return Case(["-r", ground.top, point], rows)


def the_top_level_subvolume(ground: Ground) -> Case:
    inside = ground.subvolume("data")
    marked(ground.top, "top")
    rows = {str(ground.top): taken(ground.top, "top"), str(inside): MISSED}
    return Case([ground.top], rows, code=3, missed=[nested(ground.top, 1)])


def mounted_read_only(ground: Ground) -> Case:
    """The mount is, and the filesystem is not: a snapshot can be made."""
    ground.subvolume("@home")
    point = ground.mounted("home", "subvol=@home")
    command("mount", "-o", "remount,bind,ro", point)
    return Case([point], {str(point): taken(point, "@home")})


def a_read_only_subvolume(ground: Ground) -> Case:
    """Sealed data that is no snapshot of anything is data."""
    data, sealed = ground.subvolumes("data", "data/sealed")
    command("btrfs", "property", "set", "-ts", sealed, "ro", "true")
    return Case(["-r", data], {str(data): taken(data, "data"), str(sealed): implied(sealed, "data/sealed")})


def on_several_devices(ground: Ground) -> Case:
    """Mounted from its second device: both are one filesystem."""
    one, other = ground.device("one"), ground.device("other")
    command("mkfs.btrfs", "--quiet", "-d", "raid0", "-m", "raid1", one, other)
    point = ground.mount(ground.aside("two"), other)
    inside = ground.subvolume("data", top=point)
    marked(point, "two")
    return Case(["-r", point], {str(point): taken(point, "two"), str(inside): implied(inside, "data")})


def two_filesystems(ground: Ground) -> Case:
    data = ground.subvolume("data")
    other = marked(ground.make_btrfs().mountpoint, "other")
    return Case([data, other], {str(data): taken(data, "data"), str(other): taken(other, "other")})


def two_filesystems_that_have_to_be_one_instant(ground: Ground) -> Case:
    data, other = ground.subvolume("data"), ground.make_btrfs().mountpoint
    error = "^--require-atomic: the datasets lie in 2 pools or filesystems .*, which share no instant$"
    return Case(["--require-atomic", data, other], code=1, error=error, ask="-n")


# What is nested


def nested_in_three_levels(ground: Ground) -> Case:
    names = ("data", "data/a", "data/a/b", "data/a/b/c")
    data, *inside = ground.subvolumes(*names)
    rows = {str(path): implied(path, name) for path, name in zip(inside, names[1:], strict=True)}
    return Case(["-r", data], {str(data): taken(data, "data"), **rows})


def nested_and_not_asked_for(ground: Ground) -> Case:
    data, *inside = ground.subvolumes("data", "data/a", "data/a/b", "data/c")
    rows = {str(data): taken(data, "data")} | {str(path): MISSED for path in inside}
    missed = [nested(data, 3) + f"{inside[0]}, {inside[1]}, {inside[2]} \\(-r takes them"]
    return Case([data], rows, code=3, missed=missed)


def nested_and_not_wanted(ground: Ground) -> Case:
    data, *inside = ground.subvolumes("data", "data/a", "data/a/b")
    rows = {str(data): taken(data, "data")} | {str(path): UNASKED for path in inside}
    return Case(["--no-nested", data], rows)


def an_untaken_one_between_two(ground: Ground) -> Case:
    data, middle, lower = ground.subvolumes("data", "data/middle", "data/middle/lower")
    rows = {str(data): taken(data, "data"), str(middle): MISSED, str(lower): taken(lower, "data/middle/lower")}
    return Case([data, lower], rows, code=3, missed=[nested(data, 1) + f"{middle} "])


def excluded_with_what_is_below_left_in(ground: Ground) -> Case:
    data, middle, lower = ground.subvolumes("data", "data/middle", "data/middle/lower")
    rows = {
        str(data): taken(data, "data"),
        str(middle): Row("excluded", reason=f"^--exclude {middle}$"),
        str(lower): implied(lower, "data/middle/lower"),
    }
    return Case(["-r", "--exclude", middle, data], rows)


def what_is_below_excluded(ground: Ground) -> Case:
    data, middle, lower = ground.subvolumes("data", "data/middle", "data/middle/lower")
    rows = {
        str(data): taken(data, "data"),
        str(middle): implied(middle, "data/middle"),
        str(lower): Row("excluded", reason=r"^--exclude .*/data/middle/\*\*$"),
    }
    return Case(["-r", "--exclude", f"{middle}/**", "--exclude", "/nowhere", data], rows, said=["^--exclude /nowhere "])


def snapper_and_its_like(ground: Ground) -> Case:
    """Its directory is a subvolume of its own, and what lies in it is not the user's data."""
    data, home = ground.subvolumes("data", "data/.snapshots")
    copies = [home / number / "snapshot" for number in ("1", "2")]
    for copy in copies:
        copy.parent.mkdir()
        ground.snapshot(data, copy, "-r")
    rows = {str(data): taken(data, "data"), str(home): implied(home, "data/.snapshots")}
    return Case(["-r", data], rows | {str(copy): SNAPSHOT for copy in copies})


def somebodys_snapshot_that_is_named(ground: Ground) -> Case:
    data = ground.subvolume("data")
    one, other = (ground.snapshot(data, data / name, "-r") for name in ("one", "other"))
    rows = {str(data): taken(data, "data"), str(one): taken(one, "data"), str(other): SNAPSHOT}
    return Case(["-r", data, one], rows)


def a_writable_snapshot(ground: Ground) -> Case:
    """Somebody works in it: it is data like any other."""
    data = ground.subvolume("data")
    copy = ground.snapshot(data, data / "copy")
    return Case(["-r", data], {str(data): taken(data, "data"), str(copy): implied(copy, "data")})


# What a name can be


def a_part_of_a_subvolume(ground: Ground) -> Case:
    """With `-r` what is nested in the part, and nothing beside it."""
    data = ground.subvolume("data")
    part = marked(data / "home" / "ann", "ann")
    inside, beside = ground.subvolumes("data/home/ann/vm", "data/other")
    rows = {
        str(data): Row("taken", place=str(part), marker="ann", reason="^it was named$"),
        str(inside): implied(inside, "data/home/ann/vm"),
        str(beside): Row("outside the named path", reason=f"^it is not below {part}, which was named$"),
    }
    return Case(["-r", part], rows)


def a_part_of_a_nested_subvolume(ground: Ground) -> Case:
    _, inside = ground.subvolumes("data", "data/nested")
    part = marked(inside / "deep" / "down", "down")
    return Case([part], {str(inside): Row("taken", place=str(part), marker="down")})


def a_path_that_leads_through_links(ground: Ground) -> Case:
    data, inside = ground.subvolumes("data", "data/nested")
    (ground.top / "absolute").symlink_to(data)
    (data / "relative").symlink_to("../data/nested")
    rows = {str(inside): taken(inside, "data/nested")}
    link = ground.top / "absolute" / "relative"
    return Case([link], rows, said=[f"^{link} leads to {inside}$"])


def a_pattern(ground: Ground) -> Case:
    paths = ground.subvolumes("vm-one", "vm-two", "other", "vm-two/inside")
    by = r"the pattern .*/vm-\*"
    rows = {
        str(ground.top): UNASKED,
        str(paths[0]): implied(paths[0], "vm-one", by),
        str(paths[1]): implied(paths[1], "vm-two", by),
        str(paths[2]): UNASKED,
        str(paths[3]): MISSED,
    }
    missed = [nested(paths[1], 1) + f"{paths[3]} "]
    return Case([f"{ground.top}/vm-*"], rows, code=3, missed=missed, alone=[ground.top])


def a_pattern_that_fits_nothing(ground: Ground) -> Case:
    return Case([f"{ground.top}/vm-*"], code=1, error=r"the pattern .*/vm-\* matches no dataset", alone=[ground.top])


def a_name_that_looks_like_a_pattern(ground: Ground) -> Case:
    star, question, _ = ground.subvolumes("a*", "b?", "ab")
    return Case([star, question], {str(star): taken(star, "a*"), str(question): taken(question, "b?")})


def odd_names(ground: Ground) -> Case:
    names = ("data", "data/two words", "data/trailing ", "data/new\nline", "data/tab\t#\\", "data/\udcff\udcfe")
    paths = ground.subvolumes(*names)
    rows = {str(path): Row("taken", place=str(path), marker=name) for path, name in zip(paths, names, strict=True)}
    return Case(["-r", paths[0]], rows)


def mounted_at_an_odd_place(ground: Ground) -> Case:
    ground.subvolume("@home")
    point = ground.mounted("new\nline and \udcff ", "subvol=@home")
    return Case([point], {str(point): Row("taken", place=str(point), marker="@home")})


def two_parts_and_one_in_the_other(ground: Ground) -> Case:
    """What lies in another part is the same asked for twice."""
    data = ground.subvolume("data")
    marked(data / "a" / "inside", "inside")
    marked(data / "b", "b")
    row = Row("taken", place=str(data / "a"), marker="a")
    marked(data / "a", "a")
    more = {str(data / "a/inside"): "inside", str(data / "b"): "b"}
    return Case([data / "b", data / "a/inside", data / "a"], {str(data): row}, more=more)


def a_file(ground: Ground) -> Case:
    data = ground.subvolume("data")
    error = f"^{data}/marker is neither a mount point nor a directory: it lies in the Btrfs subvolume {data}$"
    return Case([data / MARKER], code=1, error=error)


def everything(ground: Ground) -> Case:
    """A subvolume that is mounted, without what is nested in it."""
    ground.subvolumes("@home", "@home/vm", "@unmounted")
    home = ground.mounted("home", "subvol=@home")
    rows = {str(home): implied(home, "@home", "-a"), str(home / "vm"): UNASKED}
    return Case(["-a", "--no-nested"], rows, alone=[home])


def everything_with_what_is_nested(ground: Ground) -> Case:
    """One that is mounted twice is taken once; of one that is bound in part, that part is said and not taken."""
    ground.subvolumes("@home", "@home/vm")
    home, again = ground.mounted("home", "subvol=@home"), ground.mounted("home2", "subvol=@home")
    part = ground.mount(ground.aside("part"), "--bind", marked(home / "docs", "docs"))
    duplicates = {
        str(again): Row("duplicate", reason=f"^the same subvolume as {home}$"),
        str(again / "vm"): Row("duplicate", reason=f"^the same subvolume as {home}/vm$"),
    }
    rows = {str(home): implied(home, "@home", "-a"), str(home / "vm"): implied(home / "vm", "@home/vm", "-a")}
    said = [f"^{part} shows only a part of a Btrfs subvolume and is not taken for -a$"]
    more = {str(home / "docs"): "docs"}
    return Case(["-a"], rows | duplicates, said=said, more=more, alone=[home, again, part])


# What is mounted over, and in between


def nested_under_a_tmpfs(ground: Ground) -> Case:
    data, inside = ground.subvolumes("data", "data/nested")
    ground.mount(inside, "-t", "tmpfs", "none")
    rows = {str(data): taken(data, "data"), str(inside): COVERED}
    return Case(["-r", data], rows, code=3, uncovered={str(inside): "tmpfs"})


def nested_under_another_subvolume(ground: Ground) -> Case:
    """The other one is named by where it is seen, and then it is shown there."""
    data, inside, _ = ground.subvolumes("data", "data/nested", "@other")
    ground.mount(inside, "-o", "subvol=@other", ground.btrfs.device)
    rows = {str(data): taken(data, "data"), str(inside): COVERED}
    return Case(["-r", data], rows, code=3, uncovered={str(inside): "btrfs"})


def a_nested_one_that_is_covered_and_named(ground: Ground) -> Case:
    inside = ground.subvolumes("data", "data/nested")[1]
    ground.mount(inside, "-t", "tmpfs", "none")
    return Case([inside], code=1, error=f"^{inside} is on tmpfs .none., which is neither ZFS nor Btrfs$")


def under_a_tmpfs_at_its_own_mount_point(ground: Ground) -> Case:
    ground.subvolume("@home")
    home = ground.mounted("home", "subvol=@home")
    ground.mount(home, "-t", "tmpfs", "none")
    return Case([home], code=1, error=f"^{home} is on tmpfs .none., which is neither ZFS nor Btrfs$")


def another_subvolume_mounted_inside(ground: Ground) -> Case:
    """It is no part of the tree for Btrfs: `-r` does not take it, and it is named as not covered."""
    data, _ = ground.subvolumes("data", "@other")
    point = ground.mount(data / "point", "-o", "subvol=@other", ground.btrfs.device)
    return Case(["-r", data], {str(data): taken(data, "data")}, uncovered={str(point): "btrfs"})


def another_subvolume_mounted_inside_and_named(ground: Ground) -> Case:
    data, _ = ground.subvolumes("data", "@other")
    point = ground.mount(data / "point", "-o", "subvol=@other", ground.btrfs.device)
    return Case([data, point], {str(data): taken(data, "data"), str(point): taken(point, "@other")})


def other_filesystems_mounted_inside(ground: Ground) -> Case:
    data = ground.subvolume("data")
    device = ground.device("ext4")
    command("mkfs.ext4", "-q", device)
    disk = ground.mount(data / "disk", device)
    memory = ground.mount(data / "memory", "-t", "tmpfs", "none")
    ground.mount(data / "kernel", "-t", "proc", "none")
    bound = ground.mount(data / "bound", "--bind", marked(ground.aside("elsewhere"), "elsewhere"))
    types = {str(disk): "ext4", str(memory): "tmpfs", str(bound): filesystem_of(bound)}
    return Case([data], {str(data): taken(data, "data")}, uncovered=types)


def a_bind_mount_of_a_part(ground: Ground) -> Case:
    """No snapshot can be made of a part, and where it lies is not for us to guess."""
    data = ground.subvolume("data")
    bound = ground.mount(ground.aside("bound"), "--bind", marked(data / "docs", "docs"))
    error = f"^{bound} is in a mount of only a part of the Btrfs subvolume \\(a bind mount at {bound}\\)$"
    return Case([bound], code=1, error=error)


def a_bind_mount_of_a_whole_one(ground: Ground) -> Case:
    data = ground.subvolume("data")
    bound = ground.mount(ground.aside("bound"), "--bind", data)
    return Case([bound], {str(bound): taken(bound, "data")})


def a_bind_mount_inside_itself(ground: Ground) -> Case:
    """A part of the subvolume seen again within it is not covered: its snapshot has an empty directory there."""
    data = ground.subvolume("data")
    docs = marked(data / "docs", "docs")
    bound = ground.mount(data / "again", "--bind", docs)
    return Case([data], {str(data): taken(data, "data")}, uncovered={str(bound): "btrfs"}, more={str(docs): "docs"})


def filesystem_of(path: Path) -> str:
    return command("findmnt", "-n", "-o", "FSTYPE", "--target", path).stdout.strip()


ROWS: list[Callable[[Ground], Case]] = [
    mounted_with_subvol,
    mounted_with_subvolid,
    mounted_as_the_default_subvolume,
    mounted_twice_and_named_twice,
    mounted_and_seen_in_the_top_level,
    the_top_level_subvolume,
    mounted_read_only,
    a_read_only_subvolume,
    on_several_devices,
    two_filesystems,
    two_filesystems_that_have_to_be_one_instant,
    nested_in_three_levels,
    nested_and_not_asked_for,
    nested_and_not_wanted,
    an_untaken_one_between_two,
    excluded_with_what_is_below_left_in,
    what_is_below_excluded,
    snapper_and_its_like,
    somebodys_snapshot_that_is_named,
    a_writable_snapshot,
    a_part_of_a_subvolume,
    a_part_of_a_nested_subvolume,
    two_parts_and_one_in_the_other,
    a_path_that_leads_through_links,
    a_pattern,
    a_pattern_that_fits_nothing,
    a_name_that_looks_like_a_pattern,
    odd_names,
    mounted_at_an_odd_place,
    a_file,
    everything,
    everything_with_what_is_nested,
    nested_under_a_tmpfs,
    nested_under_another_subvolume,
    a_nested_one_that_is_covered_and_named,
    under_a_tmpfs_at_its_own_mount_point,
    another_subvolume_mounted_inside,
    another_subvolume_mounted_inside_and_named,
    other_filesystems_mounted_inside,
    a_bind_mount_of_a_part,
    a_bind_mount_of_a_whole_one,
    a_bind_mount_inside_itself,
]
