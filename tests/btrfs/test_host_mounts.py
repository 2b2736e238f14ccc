"""What the host mounts and unmounts while a run goes on: nothing new comes over a place, and nothing is held."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.btrfs.conftest import Gate
from tests.support.filesystems import Btrfs
from tests.support.programs import Kopiatomic, command
from tests.support.schema import valid

pytestmark = pytest.mark.in_part(4)

Leftovers = Callable[..., list[str]]

LAYOUTS = {"merged": (), "in place": ("--layout", "in-place"), "exec": ("exec",)}


def run_of(layout: str, gate: Gate, root: Path, *words: str | Path) -> list[str | Path]:
    """The words of a run whose program is the gate's."""
    if layout == "exec":
        return ["exec", *words, "--", *shlex.split(gate.command)]
    return [*LAYOUTS[layout], "--mount-root", root, "--json", "-c", gate.command, *words]


def on_a_host(script: str, kopiatomic: Kopiatomic, *words: str | Path) -> None:
    """Run a script in a mount namespace that plays the host; its arguments are a run's command line. It must end with 0."""
    begin = "set -e; mount --make-rshared /\n"
    argv = ("unshare", "-m", "--propagation", "private", "bash", "-c", begin + script, "bash", *kopiatomic.argv(*words))
    ended = command(*argv, env=kopiatomic.environment, check=False)
    assert ended.returncode == 0, str(ended)


def begun(gate: Gate) -> str:
    """What starts the run in such a script, and waits for its engine."""
    return f""""$@" &
        while [ ! -e {gate.folder}/started ]; do sleep 0.02; kill -0 $!; done"""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_new_mount_comes_over_no_place(
    layout: str,
    make_btrfs: Callable[[], Btrfs],
    make_gate: Callable[..., Gate],
    kopiatomic: Kopiatomic,
    tmp_path: Path,
    leftovers: Leftovers,
) -> None:
    """Over the place, over each directory above it, and over those above the mount root: each with the same names in it."""
    btrfs = make_btrfs()
    above, said = tmp_path / "above", tmp_path / "said"
    place, root = above / "inner" / "place", above / "roots" / "view"
    place.mkdir(parents=True)
    root.parent.mkdir()
    (btrfs.mountpoint / "file").write_text("frozen\n")
    seen = place if layout != "merged" else Path(f"{root}{place}")
    end = tmp_path / "end"
    gate = make_gate(f"cat {seen}/file > {said}.new; mv {said}.new {said}; while [ ! -e {end} ]; do sleep 0.02; done")
    covered = [place, place.parent, root.parent, above]
    meanwhile = ""
    for path in covered:
        meanwhile += f"mount -t tmpfs none {path}\n"
        for same in {place, seen}:
            if same.is_relative_to(path):
                meanwhile += f"mkdir -p {same}; echo foreign > {same}/file\n"
    script = f"""
        trap 'touch {gate.folder}/go {end}' EXIT
        mount --bind {btrfs.mountpoint} {place}
        {begun(gate)}
        {meanwhile}
        touch {gate.folder}/go
        while [ ! -e {said} ]; do sleep 0.02; kill -0 $!; done
        umount {" ".join(map(str, reversed(covered)))}
        touch {end}
        wait $!
    """
    on_a_host(script, kopiatomic, *run_of(layout, gate, root, place))
    assert said.read_text() == "frozen\n"
    assert leftovers(root) == []


def test_a_new_mount_does_not_come_over_a_live_one_that_a_place_is_in(
    make_btrfs: Callable[[], Btrfs],
    make_gate: Callable[..., Gate],
    kopiatomic: Kopiatomic,
    tmp_path: Path,
    leftovers: Leftovers,
) -> None:
    """A dataset, another filesystem in it, and another dataset in that: the middle one is live, and stays what it was."""
    outer, inner = make_btrfs(), make_btrfs()
    middle, said = outer.mountpoint / "middle", tmp_path / "said"
    place = middle / "deep" / "place"
    middle.mkdir()
    (inner.mountpoint / "file").write_text("frozen\n")
    gate = make_gate(f"cat {place}/file {middle}/live > {said}")
    script = f"""
        trap 'touch {gate.folder}/go' EXIT
        mount -t tmpfs -o mode=755 none {middle}
        echo live > {middle}/live
        mkdir -p {place}
        mount --bind {inner.mountpoint} {place}
        {begun(gate)}
        for path in {place} {middle}/deep {middle}; do
            mount -t tmpfs none $path
            mkdir -p {place}
            echo foreign > {place}/file
        done
        touch {gate.folder}/go
        wait $!
    """
    on_a_host(script, kopiatomic, "--layout", "in-place", "-c", gate.command, outer.mountpoint, place)
    assert said.read_text() == "frozen\nlive\n"
    assert leftovers(tmp_path / "view") == []


@pytest.mark.parametrize("layout", ["in place", "exec"])
def test_what_the_host_unmounts_above_a_place_stays_above_it(
    layout: str,
    make_btrfs: Callable[[], Btrfs],
    make_gate: Callable[..., Gate],
    kopiatomic: Kopiatomic,
    root: Path,
    tmp_path: Path,
    leftovers: Leftovers,
) -> None:
    """A live filesystem with a dataset in it goes away while the dataset is read, and something else comes to its place."""
    btrfs = make_btrfs()
    above, said = tmp_path / "above", tmp_path / "said"
    place = above / "deep" / "place"
    above.mkdir()
    (btrfs.mountpoint / "file").write_text("frozen\n")
    gate = make_gate(f"cat {place}/file > {said}")
    script = f"""
        trap 'touch {gate.folder}/go' EXIT
        mount -t tmpfs -o mode=755 none {above}
        mkdir -p {place}
        mount --bind {btrfs.mountpoint} {place}
        {begun(gate)}
        umount --lazy {above}
        mount -t tmpfs none {above}
        mkdir -p {place}
        echo foreign > {place}/file
        touch {gate.folder}/go
        wait $!
    """
    on_a_host(script, kopiatomic, *run_of(layout, gate, root, place))
    assert said.read_text() == "frozen\n"
    assert leftovers(root) == []


def test_a_mount_over_the_mount_roots_directory_is_not_touched(
    btrfs: Btrfs, gate: Gate, kopiatomic: Kopiatomic, tmp_path: Path, root: Path
) -> None:
    """It has a directory of the same name, which is not ours: ours is left, and goes when it can be seen again."""
    above = tmp_path / "above"
    root = above / "view"
    above.mkdir()
    words: list[str | Path] = ["--json", "--mount-root", root, "-c", gate.command, btrfs.mountpoint]
    with kopiatomic.started(*words) as process:
        gate.wait()
        command("mount", "-t", "tmpfs", "none", above)
        root.mkdir()
        gate.let_go()
        assert process.stdout is not None
        document = valid(process.stdout.read())
    assert document["exit_code"] == 4
    (left,) = document["left_behind"]
    assert f"{root}: another directory is above it by now" in left
    assert root.is_dir()
    command("umount", above)
    assert root.is_dir()
    # The next run takes it away.
    ended = kopiatomic("--mount-root", tmp_path / "other", "-c", "true", btrfs.mountpoint)
    assert ended.returncode == 0, str(ended)
    assert not root.exists()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("propagation", ["shared", "private"])
def test_what_the_host_unmounts_is_free(
    propagation: str,
    layout: str,
    make_btrfs: Callable[[], Btrfs],
    gate: Gate,
    kopiatomic: Kopiatomic,
    root: Path,
    leftovers: Leftovers,
) -> None:
    """Each other filesystem, beside the place and below what is beside it: at once, where mounts are passed on."""
    data, others = make_btrfs(), [make_btrfs(), make_btrfs()]
    # In the namespace that plays the host its mounts must be the only ones.
    for other in others:
        command("umount", other.mountpoint)
    first, second = others
    free = "python3 -c 'import os, sys; os.close(os.open(sys.argv[1], os.O_RDWR | os.O_EXCL))'"
    tries = "for i in 1 2 3 4 5 6 7 8 9; do {free} $1 2>/dev/null && break; sleep 0.2; done"
    wait = "true" if propagation == "shared" else tries.format(free=free)
    inner = first.mountpoint / "inner"
    script = f"""
        set -e
        mount --make-r{propagation} /
        # Devices that stay ours when nothing is mounted of them.
        one=$(losetup -f --show {first.image})
        two=$(losetup -f --show {second.image})
        trap 'touch {gate.folder}/go; losetup -d $one $two' EXIT
        is_free() {{ {wait}; {free} $1; }}
        mount $one {first.mountpoint}
        mkdir -p {inner}
        mount $two {inner}
        {begun(gate)}
        umount {inner}
        is_free $two
        umount {first.mountpoint}
        is_free $one
        touch {gate.folder}/go
        wait $!
    """
    argv = kopiatomic.argv(*run_of(layout, gate, root, data.mountpoint))
    ended = command(
        *("unshare", "-m", "--propagation", "private", "bash", "-c", script, "bash", *argv),
        env=kopiatomic.environment,
        check=False,
    )
    for other in others:
        command("mount", "-o", "loop", other.image, other.mountpoint)
    assert ended.returncode == 0, str(ended)
    if layout != "exec":
        assert valid(ended.stdout)["exit_code"] == 0
    assert leftovers(root) == []
