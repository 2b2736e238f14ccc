"""The table of errors: each is one clear message with its exit code, says what to do, and leaves nothing behind.

KOPIATOMIC_TEST_ERROR_TABLE=FILE writes the table, as it was seen, to a file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from kopiatomic.filesystems.zfs import listing as zfs_listing
from kopiatomic.model.plan import VOLUMES
from kopiatomic.model.user_property import PROPERTY
from kopiatomic.system import linux
from tests.support.filesystems import Pool
from tests.support.programs import command
from tests.zfs import obstacles
from tests.zfs.runs import Runner

TABLE = os.environ.get("KOPIATOMIC_TEST_ERROR_TABLE")
LIBZFS_CORE = next(iter(Path("/lib").glob("*/libzfs_core.so.3")), Path("/lib/libzfs_core.so.3"))
# Its number is that of the version: 4 is that of OpenZFS 2.1, 6 that of 2.3.
LIBZFS = next(iter(sorted(LIBZFS_CORE.parent.glob("libzfs.so.?"))), Path("/lib/libzfs.so.4"))
LIBM = LIBZFS_CORE.parent / "libm.so.6"

FORGED = "on\t{own}\n{other}\tvolume\t-\t-\t1\toff\t-\t{other}\n{own}\tfilesystem\ton\t-\t2\toff\ton"
"""A property's value that looks like lines of 'zfs list', of which one makes a volume of another dataset."""


@dataclass(frozen=True)
class World:
    """What the cases name: a pool with a dataset of every kind, and a folder with odd mount roots and programs."""

    pool: Pool
    folder: Path

    def __call__(self, name: str) -> str:
        return f"{self.pool.name}/{name}" if name else self.pool.name


@pytest.fixture(scope="module")
def world(tank: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    for name in ("home", "src"):
        tank.dataset(name)
    tank.dataset("unmounted", canmount="noauto")
    tank.dataset("n" * 215, mountpoint=str(folder / "long"))
    (folder / "key").write_text("0" * 64)
    key = {"encryption": "on", "keyformat": "hex", "keylocation": f"file://{folder}/key"}
    tank.dataset("secret", canmount="noauto", **key)
    command("zfs", "unload-key", f"{tank.name}/secret")
    command("zfs", "create", "-s", "-V", "1M", f"{tank.name}/volume")
    command("zfs", "snapshot", f"{tank.name}/home@monday")
    command("zfs", "bookmark", f"{tank.name}/home@monday", f"{tank.name}/home#monday")
    (tank.path("home") / "ann").mkdir()
    (tank.path("home") / "ann" / "file").touch()
    (folder / "full").mkdir()
    (folder / "full" / "file").touch()
    (folder / "file").write_text("text")
    (folder / "link").symlink_to(folder / "empty")
    (folder / "empty").mkdir()
    programs = folder / "programs"
    programs.mkdir()
    for name in ("zpool", "mount", "umount", "env", "sh"):
        (programs / name).symlink_to(command("which", name).stdout.strip())
    (folder / "loop").symlink_to(folder / "loop")
    with ExitStack() as stack:
        _out_of_reach(World(tank, folder), stack)
        yield World(tank, folder)


def _out_of_reach(world: World, stack: ExitStack) -> None:
    """Datasets that cannot be taken, each for another reason, and mounts of what is no whole dataset."""
    pool, folder = world.pool, world.folder

    def mount(source: str | Path, where: str, fstype: str | None, flags: int = 0) -> None:
        (folder / where).mkdir(exist_ok=True)
        linux.mount(str(source), str(folder / where), fstype, flags)
        stack.callback(linux.detach, str(folder / where))

    pool.dataset("none", mountpoint="none")
    pool.dataset("off", canmount="off")
    pool.dataset("legacy", mountpoint="legacy")
    pool.dataset("zoned", zoned="on")
    for name in ("gone", "part"):
        pool.dataset(name)
    (pool.path("part") / "inner").mkdir()
    mount(pool.path("part") / "inner", "bind", None, linux.MS_BIND)
    for name in ("gone", "part"):
        command("zfs", "unmount", world(name))
    for name in ("blue", "green"):
        pool.dataset(name, mountpoint=str(folder / "root"), canmount="noauto")
    command("zfs", "mount", world("green"))
    pool.dataset("below", mountpoint=str(folder / "covered"))
    mount("none", "covered", "tmpfs")
    mount(world("home@monday"), "monday", "zfs", linux.MS_RDONLY)
    pool.dataset("there", mountpoint=str(pool.path("home") / "ann"), canmount="noauto")
    pool.dataset("volumes", mountpoint=VOLUMES)
    stack.callback(os.rmdir, VOLUMES)
    stack.callback(linux.detach, VOLUMES)
    pool.dataset("values")
    for name, value in (("odd", "yes"), ("empty", "")):
        pool.dataset(f"values/{name}", **{PROPERTY: value})


@dataclass(frozen=True)
class Case:
    """One error: how it is brought about, and what must be seen."""

    what: str
    code: int
    message: str
    """A regular expression for the first line after ``kopiatomic: ``; {pool} and {folder} are filled in."""
    args: Callable[[World], Sequence[str | Path]]
    hint: str = "."
    """A regular expression for the line below; empty where there is none."""
    env: Callable[[World], Mapping[str, str]] = lambda _: {}
    before: Callable[[World], Callable[[], None] | None] = lambda _: None


def _true(world: World) -> list[str | Path]:
    return ["-c", "true", world("home")]


def _named(*names: str) -> Callable[[World], Sequence[str | Path]]:
    return lambda world: ["-c", "true", *map(world, names)]


def _with_name(name: str) -> Callable[[World], Sequence[str | Path]]:
    return lambda world: ["--name", name, world("home")]


def _unanswered_listing() -> None:
    zfs_listing.LIST_TIMEOUT = 0.5


def _hung_fuse(world: World) -> Callable[[], None]:
    """A FUSE filesystem whose daemon never answers, for this run alone."""

    def mount() -> None:
        obstacles.own_mounts()
        obstacles.hung_fuse(world.folder / "empty")

    return mount


def _programs(world: World, **lines: str) -> dict[str, str]:
    """Scripts of these names before all else on PATH."""
    folder = world.folder / "shims"
    folder.mkdir(exist_ok=True)
    for name, line in lines.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def _property(name: str) -> Callable[[World], Sequence[str | Path]]:
    return lambda world: ["--property", name, "--by-property", *_true(world)]


def _obstacle(step: Callable[[], None]) -> Callable[[World], Callable[[], None]]:
    return lambda _: step


def _zfs_of_the_host(world: World) -> dict[str, str]:
    """A zfs that works although the run's own libzfs_core does not: stands for an old library beside a newer program."""
    there = 'exec nsenter --mount=/proc/1/ns/mnt /usr/sbin/{} "$@"'
    return _programs(world, zfs=there.format("zfs"), zpool=there.format("zpool"))


CASES = [
    Case("no arguments", 2, "no dataset was named", lambda _: [], "-a"),
    Case("unknown flag", 2, "No such option: --frozen", lambda world: ["--frozen", world("home")]),
    Case("-c without its value", 2, "Option '-c' requires an argument", lambda _: ["-c"]),
    Case(
        "unbalanced quotes in -c",
        2,
        "-c: no closing quotation",
        lambda world: ["-c", "echo 'a", world("home")],
    ),
    Case("unbalanced quotes in -o", 2, "-o: no closing quotation", lambda world: ["-o", '"', world("home")]),
    Case("empty -c", 2, "-c.* empty", lambda world: ["-c", "", world("home")]),
    *(Case(f"--name {name!r}", 2, "--name .*one path component", _with_name(name)) for name in ("..", "a/b", "-x", "")),
    Case(
        "not root",
        1,
        "making and mounting snapshots needs root",
        _true,
        "-n .* sudo ",
        before=_obstacle(obstacles.nobody),
    ),
    Case("no such dataset, a near name", 1, "no such dataset: {pool}/hone", _named("hone"), "{pool}/home"),
    Case(
        "no such dataset, the name elsewhere", 1, "no such dataset: nopool/src", lambda _: ["nopool/src"], "{pool}/src"
    ),
    Case("no such dataset, nothing near", 1, "no such dataset: qqqqqqqq", lambda _: ["qqqqqqqq"], "zfs list"),
    Case("not a name", 1, "{pool}/a,b is not a valid dataset name", _named("a,b")),
    Case("no such path", 1, "/no/such: No such file or directory", lambda _: ["/no/such"]),
    Case(
        "a path to a file",
        1,
        "{mnt}/home/ann/file is neither a mount point nor a directory: it lies in the dataset {pool}/home mounted at {mnt}/home",
        lambda world: ["-c", "true", world.pool.path("home") / "ann" / "file"],
        "{pool}/home",
    ),
    Case("another filesystem", 1, "/proc is on proc .*neither ZFS nor Btrfs", lambda _: ["/proc"]),
    Case("a snapshot", 1, "{pool}/home@monday is a snapshot", _named("home@monday"), "{pool}/home"),
    Case("a bookmark", 1, "{pool}/home#monday is a bookmark", _named("home#monday"), "{pool}/home"),
    Case("a volume", 1, "{pool}/volume cannot be backed up: it is a volume", _named("volume")),
    Case("not mounted", 1, "{pool}/unmounted cannot be backed up: it is not mounted", _named("unmounted"), "zfs mount"),
    Case(
        "key not loaded",
        1,
        "{pool}/secret cannot be backed up: its .*key is not loaded",
        _named("secret"),
        "zfs load-key",
    ),
    Case(
        "name too long with the snapshot's",
        1,
        r"{pool}/nnn.* cannot be backed up: its name is too long for a snapshot's \(2\d\d \+ \d+ > 255\)",
        _named("n" * 215),
        "Rename",
    ),
    Case(
        "no mount point", 1, r"{pool}/none cannot be backed up: it is not mounted \(mountpoint=none\)", _named("none")
    ),
    Case("canmount=off", 1, r"{pool}/off cannot be backed up: it is not mounted \(canmount=off\)", _named("off")),
    Case("legacy", 1, r"{pool}/legacy cannot be backed up: it is not mounted \(mountpoint=legacy\)", _named("legacy")),
    Case(
        "should be mounted",
        1,
        "{pool}/gone cannot be backed up: it should be mounted and is not",
        _named("gone"),
        "zfs mount {pool}/gone.*--include-unmounted",
    ),
    Case(
        "zoned", 1, r"{pool}/zoned cannot be backed up: it belongs to a jail .*zoned=on", _named("zoned"), "from there"
    ),
    Case(
        "only a part is mounted",
        1,
        r"{pool}/part cannot be backed up: only a part of it is mounted \(a bind mount at {folder}/bind\)",
        _named("part"),
    ),
    Case(
        "another boot environment",
        1,
        r"{pool}/blue cannot be backed up: another boot environment is mounted there \({pool}/green\)",
        _named("blue"),
    ),
    Case(
        "covered",
        1,
        r"{pool}/below cannot be backed up: its mount at {folder}/covered is covered by none \(tmpfs\)",
        _named("below"),
        "Unmount",
    ),
    Case(
        "a path in a mounted snapshot",
        1,
        r"{folder}/monday is in a mounted snapshot \({pool}/home@monday\), not a filesystem",
        lambda world: ["-c", "true", world.folder / "monday"],
        "Name the dataset itself: {pool}/home$",
    ),
    Case(
        "a path in a mount of a part",
        1,
        r"{folder}/bind is in a mount of only a part of the dataset {pool}/part \(a bind mount at {folder}/bind\)",
        lambda world: ["-c", "true", world.folder / "bind"],
        "Name {pool}/part",
    ),
    Case(
        "a path in a hung FUSE filesystem",
        1,
        r"{folder}/empty/x is on fuse \(hung\), which is neither ZFS nor Btrfs",
        lambda world: ["-c", "true", world.folder / "empty" / "x"],
        before=_hung_fuse,
    ),
    Case(
        "a link to itself",
        1,
        "{folder}/loop: Too many levels of symbolic links",
        lambda world: ["-c", "true", world.folder / "loop"],
    ),
    Case(
        "a directory is meant",
        1,
        "no such dataset: full",
        lambda _: ["full"],
        "To name the directory, write ./full",
        before=lambda world: lambda: os.chdir(world.folder),
    ),
    Case(
        "a pattern that fits nothing",
        1,
        r"the pattern {pool}/zz\* matches no dataset",
        _named("zz*"),
        "any number",
    ),
    Case(
        "all is excluded",
        1,
        "nothing is left to take: {pool}/home: --exclude {pool}/h",
        lambda world: ["--exclude", world("h**"), *_true(world)],
        "leave out less",
    ),
    Case(
        "no dataset has the property",
        1,
        "nothing is left to take: {pool}/home: kopiatomic:backup is not set for it",
        lambda world: ["--by-property", *_true(world)],
        "No dataset has the property",
    ),
    *(
        Case(
            f"the property is {value!r}",
            1,
            f"nothing is left to take: {{pool}}/values/{name}: the property kopiatomic:backup is '{value}', set on it",
            lambda world, name=name: ["--by-property", "-c", "true", world(f"values/{name}")],  # type: ignore[misc]
            "on, off or children",
        )
        for name, value in (("odd", "yes"), ("empty", ""))
    ),
    *(
        Case(f"--property {name}", 2, f"Invalid value for '--property': {name}: ", _property(name))
        for name in ("compression", "a:b,name", "-a:b")
    ),
    Case(
        "two at one place",
        1,
        "{pool}/home and {pool}/there would both appear at {mnt}/home/ann",
        lambda world: ["--include-unmounted", "-c", "true", world.pool.path("home") / "ann", world("there")],
        "--exclude",
    ),
    Case(
        "a dataset where volumes appear",
        1,
        "{pool}/volumes would appear at /.volumes, where --include-unmounted and --volumes put",
        lambda world: ["--volumes", "-c", "true", world("volumes"), world("volume")],
        "Rename /.volumes",
    ),
    Case(
        "a volume in place",
        1,
        "{pool}/volume has no true path: it would appear at /.volumes/{pool}/volume",
        lambda world: ["--layout", "in-place", "--volumes", "-c", "true", world("volume")],
        "--layout merged",
    ),
    Case(
        "zfs does not answer",
        1,
        "'zfs list' did not answer within 0.5 s",
        _true,
        "suspended",
        env=lambda world: _programs(world, zfs="exec sleep 99"),
        before=_obstacle(_unanswered_listing),
    ),
    Case(
        "zfs is broken",
        1,
        rf"'zfs list' failed: .*{LIBZFS.name}",
        _true,
        "zfs list",
        before=lambda world: obstacles.replaced(LIBZFS, world.folder / "file"),
    ),
    Case(
        "ZFS not installed",
        1,
        "ZFS is not installed: there is no command 'zfs'",
        _true,
        "apt install",
        env=lambda world: {"PATH": str(world.folder / "programs")},
    ),
    Case(
        "module not loaded",
        1,
        "/dev/zfs does not exist: the ZFS kernel module is not loaded",
        _true,
        "modprobe zfs.*container",
        before=_obstacle(obstacles.without_dev_zfs),
    ),
    Case(
        "/dev/zfs forbidden",
        1,
        "no permission to .*/dev/zfs",
        _true,
        "container",
        before=_obstacle(obstacles.with_forbidden_dev_zfs),
    ),
    Case(
        "libzfs_core missing",
        1,
        "the library libzfs_core.* cannot be loaded",
        _true,
        "zfsutils-linux",
        env=_zfs_of_the_host,
        before=lambda world: obstacles.replaced(LIBZFS_CORE, world.folder / "file"),
    ),
    Case(
        "libzfs_core without a function",
        1,
        "libzfs_core.* has no function lzc_snapshot",
        _true,
        "OpenZFS",
        env=_zfs_of_the_host,
        before=lambda _: obstacles.replaced(LIBZFS_CORE, LIBM),
    ),
    Case(
        "no CAP_SYS_ADMIN",
        1,
        "no snapshot was made of .*: not permitted",
        _true,
        "container",
        before=_obstacle(obstacles.without_capability(obstacles.CAP_SYS_ADMIN)),
    ),
    Case(
        "unshare not permitted",
        1,
        "a PID namespace cannot be made: Operation not permitted",
        _true,
        "RestrictNamespaces",
        before=_obstacle(obstacles.without_call(obstacles.SYS_UNSHARE)),
    ),
    Case(
        "mount not permitted",
        1,
        "a private mount namespace cannot be made: Operation not permitted",
        _true,
        "CAP_SYS_ADMIN",
        before=_obstacle(obstacles.without_call(obstacles.SYS_MOUNT)),
    ),
    Case("mount root is /", 1, "the mount root / cannot be used", lambda world: ["--mount-root", "/", *_true(world)]),
    Case(
        "mount root is a file",
        1,
        "the mount root {folder}/file cannot be used: it is not a directory",
        lambda world: ["--mount-root", world.folder / "file", *_true(world)],
    ),
    Case(
        "mount root is a link",
        1,
        "the mount root {folder}/link cannot be used: it is a symbolic link",
        lambda world: ["--mount-root", world.folder / "link", *_true(world)],
    ),
    Case(
        "mount root not empty",
        1,
        r"the mount root {folder}/full cannot be used: it is not empty \(file\)",
        lambda world: ["--mount-root", world.folder / "full", *_true(world)],
    ),
    Case(
        "mount root on a read-only filesystem",
        1,
        "the mount root {folder}/empty/root cannot be used: .*Read-only file system",
        lambda world: ["--mount-root", world.folder / "empty" / "root", *_true(world)],
        before=lambda world: obstacles.read_only(world.folder / "empty"),
    ),
    Case(
        "-c missing", 1, "no program 'no-such-program' on PATH", lambda world: ["-c", "no-such-program", world("home")]
    ),
    Case(
        "-c not executable",
        1,
        "cannot start {folder}/file: .*may not be executed",
        lambda world: ["-c", world.folder / "file", world("home")],
        "chmod",
    ),
    Case("-c fails", 1, r"false failed: exit status 1", lambda world: ["-c", "false", world("home")]),
    Case(
        "-c killed by a signal",
        1,
        r"sh failed: killed by SIGTERM \(15\)",
        lambda world: ["-c", "sh -c 'kill -TERM $$'", world("home")],
    ),
    Case("-p fails", 1, r"the hook -p failed \(exit status 7\): exit 7", lambda world: ["-p", "exit 7", *_true(world)]),
    Case(
        "-p too slow",
        1,
        "the hook -p did not end within 0.2 s",
        lambda world: ["--hook-timeout", "0.2", "-p", "sleep 99", *_true(world)],
    ),
    Case(
        "-q fails after a good backup",
        4,
        r"the hook -q failed \(exit status 7\): exit 7",
        lambda world: ["-q", "exit 7", *_true(world)],
        "as said above",
    ),
    Case(
        "kopia missing",
        1,
        "no program 'kopia' on PATH",
        lambda world: [world("home")],
        "KOPIATOMIC_KOPIA",
        env=lambda _: {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    ),
    Case("kopia not connected", 1, "kopia is not connected", lambda world: [world("home")], "kopia repository connect"),
]


@pytest.mark.in_part(10)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what.replace(" ", "-"))
def test_error(case: Case, world: World, run: Runner) -> None:
    ended = run(*case.args(world), env=case.env(world), before=case.before(world))
    message, hint = message_and_hint(ended.stderr)
    _note(case.what, ended.returncode, message, hint, world)
    assert ended.returncode == case.code, ended
    assert re.match(_filled(case.message, world), message), ended
    assert re.search(_filled(case.hint, world), hint), ended
    assert bool(hint) == bool(case.hint), ended
    assert "internal error" not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert run.left(world.pool) == []
    assert run.left(root=world.folder / "empty" / "root") == []


@pytest.mark.parametrize("value", ["o\tn", "on\n", FORGED], ids=["a tab", "a newline", "another line"])
def test_a_property_that_looks_like_more_than_a_value(value: str, world: World, run: Runner) -> None:
    """Whoever may set a property of one dataset must not be able to take another one out of the backup, nor to end it."""
    own = world.pool.dataset("home/odd")
    command("zfs", "set", f"{PROPERTY}={value.format(own=own, other=world('home'))}", own)
    try:
        named = run("-c", "true", world("home"), own)
        implied = run("--json", "-c", "true", "-r", world("home"))
    finally:
        command("zfs", "destroy", own)
    assert named.returncode == 0, named
    assert implied.returncode == 3, implied
    document = json.loads(implied.stdout)
    left_out = {one["dataset"]: one["verdict"] for one in document["left_out"] if one["incomplete"]}
    assert left_out == {own: "bad property"}, implied
    assert world("home") in {one["dataset"] for one in document["datasets"]}
    assert f"{own}: the property {PROPERTY} is " in implied.stderr


def message_and_hint(stderr: str) -> tuple[str, str]:
    """The last message on stderr, and the line that says what to do."""
    lines = stderr.splitlines()
    last = max((number for number, line in enumerate(lines) if line.startswith("kopiatomic: ")), default=None)
    if last is None:
        return "", stderr
    return lines[last].removeprefix("kopiatomic: "), " ".join(line.strip() for line in lines[last + 1 :])


def _filled(pattern: str, world: World) -> str:
    values = {"pool": world.pool.name, "folder": str(world.folder), "mnt": str(world.pool.mountpoint)}
    return re.sub(r"\{(pool|folder|mnt)\}", lambda m: re.escape(values[m[1]]), pattern)


def _note(what: str, code: int, message: str, hint: str, world: World) -> None:
    """Add a line to the table of errors, with names that do not change from run to run."""
    if TABLE is None:
        return
    text = f"| {what} | {code} | {message} | {hint} |\n"
    for found, shown in (
        (str(world.pool.mountpoint), "/tank"),
        (world.pool.name, "tank"),
        (str(world.folder), "/folder"),
        ("n" * 50, "n"),
    ):
        text = text.replace(found, shown)
    with Path(TABLE).open("a") as table:
        table.write(re.sub("n{9,}", "nnn...", text))
