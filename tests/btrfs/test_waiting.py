"""What users control may never answer: no run waits for it without end, none is deaf meanwhile, and the path is named."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kopiatomic.filesystems import KINDS
from kopiatomic.platforms.linux.merged import MergedView
from kopiatomic.platforms.steps import SnapshotStep
from kopiatomic.system import fuse, linux, looking
from tests.btrfs.conftest import wait_for
from tests.support.filesystems import Btrfs
from tests.support.programs import Kopia, Kopiatomic, command
from tests.support.schema import valid

pytestmark = pytest.mark.in_part(4)

Leftovers = Callable[..., list[str]]

EARLY_TABLE = """
import sys
from kopiatomic.system import looking, mountinfo
from kopiatomic.cli.entry import main
read = mountinfo.read
mountinfo.read = lambda *path: [mount for mount in read(*path) if mount.fstype != "fuse.hung"]
looking.LIMIT = float(sys.argv.pop(1))
main()
"""
"""kopiatomic as it is where a user mounts a FUSE right after the mount table was read: a race that is not won on request."""


@contextmanager
def hung(point: Path) -> Iterator[Path]:
    """A filesystem whose server takes no request: whoever asks it for anything waits in the kernel, SIGKILL or not."""
    point.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        server = fuse.mount(str(point), "hung")
        stack.callback(command, "umount", "--lazy", point)
        # First: what waits gets an error then.
        stack.callback(os.close, server)
        yield point


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    data = btrfs.subvolume("data")
    (data / "file").write_text("then")
    return data


@pytest.fixture
def late(data: Path, kopiatomic: Kopiatomic) -> Iterator[Callable[..., list[str]]]:
    """The argv of kopiatomic with these words, which does not know of the hung filesystem on data/hung.

    The first is how many seconds a path may take.
    """
    with hung(data / "hung"):
        yield lambda limit, *words: [sys.executable, "-c", EARLY_TABLE, str(limit), *map(str, words)]


def waits(pid: int) -> bool:
    """Whether a child of a process waits in the kernel for the hung server (fs/fuse/dev.c)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    where = [Path(f"/proc/{child}/wchan").read_text() for child in children]
    return any("fuse" in name or "request_wait_answer" in name for name in where)


@pytest.mark.parametrize("first", [("plan",), ("-c", "true"), ("--layout", "in-place", "-c", "true")], ids=" ".join)
def test_a_path_that_does_not_answer_is_given_up_and_named(
    first: tuple[str, ...],
    data: Path,
    kopiatomic: Kopiatomic,
    root: Path,
    late: Callable[..., list[str]],
    leftovers: Leftovers,
) -> None:
    words = late(2, *first, "--mount-root", root, data / "hung" / "inside")
    ended = command(*words, env=kopiatomic.environment, timeout=30, check=False)
    assert ended.returncode == 1, str(ended)
    assert f"kopiatomic: {data}/hung did not answer within 2 s\n" in ended.stderr
    assert leftovers(root) == []


@pytest.mark.parametrize(
    ("signum", "options", "code"),
    [(signal.SIGTERM, (), 143), (signal.SIGINT, (), 130), (None, ("--timeout", "3"), 1)],
    ids=["SIGTERM", "SIGINT", "timeout"],
)
def test_a_signal_ends_a_run_while_a_path_does_not_answer(
    signum: signal.Signals | None,
    options: tuple[str, ...],
    code: int,
    data: Path,
    kopiatomic: Kopiatomic,
    root: Path,
    late: Callable[..., list[str]],
    leftovers: Leftovers,
) -> None:
    words = late(600, "--mount-root", root, *options, "-c", "true", data / "hung" / "inside")
    with subprocess.Popen(words, env=kopiatomic.environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: waits(process.pid), "a child that waits for the server")
            if signum is not None:
                process.send_signal(signum)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == code, errors
    assert "stopped" in errors
    assert leftovers(root) == []


def after_the_plan(line: str, folder: Path) -> dict[str, str]:
    """A user does this after the plan: here when kopia, the real one, is asked for its version. Returns the environment."""
    program = folder / "bin" / "kopia"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncase $* in *--version*) {line} ;; esac\nexec {shutil.which("kopia")} "$@"\n')
    program.chmod(0o755)
    return {"KOPIATOMIC_KOPIA": str(program)}


def test_a_mount_over_what_is_implied_costs_that_alone(
    btrfs: Btrfs, data: Path, kopiatomic: Kopiatomic, root: Path, kopia: Kopia, tmp_path: Path, leftovers: Leftovers
) -> None:
    """A user mounts it between the plan and the snapshots, over a directory that two nested subvolumes are in."""
    for name in ("one", "two"):
        (data / name).mkdir()
    nested = [btrfs.subvolume(f"data/{name}/nested") for name in ("one", "two")]
    other = btrfs.subvolume("data/other")
    with hung(tmp_path / "hung") as point:
        over = "; ".join(f"mount --bind {point} {path.parent}" for path in nested)
        environment = {**kopiatomic.environment, **kopia.environment, **after_the_plan(over, tmp_path)}
        words = [sys.executable, "-c", EARLY_TABLE, "2", "--mount-root", str(root), "--json", "-r", str(data)]
        ended = command(*words, env=environment, timeout=60, check=False)
        for path in nested:
            command("umount", "--lazy", path.parent)
    assert ended.returncode == 3, str(ended)
    document = valid(ended.stdout)
    assert [d["dataset"] for d in document["datasets"]] == [str(data), str(other)]
    for path in nested:
        assert f"not complete: {path}: it cannot be opened: it did not answer within 2 s" in ended.stderr
    assert leftovers(root) == []


def test_attributes_of_a_directory_that_does_not_answer_are_done_without(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What holds mount points has the attributes of the real directories; a user mounts something there right before."""
    monkeypatch.setattr(looking, "LIMIT", 1.0)
    (data / "dir").mkdir(mode=0o710)
    view = MergedView(
        "/nowhere",
        [
            SnapshotStep(name, f"{data}/{directory}/{name}", KINDS["btrfs"], "")
            for name, directory in (("one", "dir"), ("two", "hung"))
        ],
    )
    with hung(data / "hung"):
        # The mount table says that it may hang.
        view.look()
        assert stat.S_IMODE(view.scaffolding[f"{data}/dir"].status.st_mode) == 0o710
        assert f"{data}/hung" not in view.scaffolding
        monkeypatch.setattr("kopiatomic.platforms.linux.merged.may_hang", lambda _: False)
        view.look()


def test_a_subvolume_that_is_replaced_by_a_link_into_one_holds_up_nothing(
    data: Path, kopiatomic: Kopiatomic, root: Path, kopia: Kopia, tmp_path: Path, leftovers: Leftovers
) -> None:
    with hung(tmp_path / "hung") as point:
        swap = f"[ -L {data} ] || {{ mv {data} {data}.old; ln -s {point}/data {data}; }}"
        environment = {**kopia.environment, **after_the_plan(swap, tmp_path)}
        ended = kopiatomic("--mount-root", root, data, env=environment, timeout=30)
        assert data.is_symlink()
    assert ended.returncode == 1, str(ended)
    assert str(data) in ended.stderr
    assert "did not answer" not in ended.stderr
    assert leftovers(root) == []


@pytest.mark.parametrize("name", ["--writable", "TMPDIR"])
def test_what_an_engine_writes_to_is_waited_for_no_longer(
    name: str, data: Path, kopiatomic: Kopiatomic, root: Path, late: Callable[..., list[str]], leftovers: Leftovers
) -> None:
    inside = str(data / "hung" / "inside")
    words = late(
        2, "--layout", "in-place", *(["--writable", inside] if name == "--writable" else []), "-c", "true", data
    )
    environment = {**kopiatomic.environment, "TMPDIR": inside if name == "TMPDIR" else "/tmp"}
    ended = command(*words, env=environment, timeout=30, check=False)
    assert ended.returncode == 1, str(ended)
    assert f"kopiatomic: {inside} did not answer within 2 s\n" in ended.stderr
    assert leftovers(root) == []


def test_in_place_what_might_not_answer_is_hidden_and_named(
    data: Path, kopiatomic: Kopiatomic, tmp_path: Path, leftovers: Leftovers
) -> None:
    with hung(data / "hung") as point:
        look = shlex.join(["sh", "-c", f"ls -A {point} > {tmp_path}/seen"])
        ended = kopiatomic("--layout", "in-place", "-c", look, data)
        planned = kopiatomic("plan", "--layout", "in-place", data)
        inside = kopiatomic("exec", data, "--", "true")
        merged = kopiatomic("plan", data)
    assert ended.returncode == 0, str(ended)
    assert (tmp_path / "seen").read_text() == ""
    assert f"Hidden:   {point} (fuse.hung): it might not answer\n" in ended.stdout
    assert f"{point}: fuse.hung hung (hidden: it might not answer)\n" in planned.stdout
    assert f"kopiatomic: hidden, for it might not answer: {point} (fuse.hung)\n" in inside.stderr
    assert f"{point}: fuse.hung hung\n" in merged.stdout
    assert leftovers(Path("/frozen")) == []


@pytest.fixture
def automount() -> Iterator[Callable[[Path, str], Callable[[], bool]]]:
    """Make an automount point of a kind; returns a function that says whether anybody has asked its daemon for anything."""
    with ExitStack() as stack:

        def mount(point: Path, kind: str) -> Callable[[], bool]:
            point.mkdir(parents=True, exist_ok=True)
            # autofs takes everybody in the daemon's process group for the daemon.
            daemon = stack.enter_context(subprocess.Popen(["sleep", "600"], process_group=0))
            stack.callback(daemon.kill)
            requests, ask = os.pipe()
            stack.callback(os.close, requests)
            data = f"fd={ask},pgrp={daemon.pid},minproto=5,maxproto=5,{kind}"
            linux.mount("map", str(point), "autofs", 0, data)
            stack.callback(linux.detach, str(point))
            os.close(ask)
            return lambda: bool(select.select([requests], [], [], 0)[0])

        yield mount


@pytest.mark.parametrize("kind", ["direct", "indirect"])
def test_a_path_below_an_automount_point_is_refused_with_what_to_do(
    kind: str, data: Path, kopiatomic: Kopiatomic, automount: Callable[[Path, str], Callable[[], bool]]
) -> None:
    asked = automount(data / "auto", kind)
    path = data / "auto" / "it's"
    ended = kopiatomic("plan", path, timeout=20)
    assert ended.returncode == 1, str(ended)
    assert ended.stderr == (
        f"kopiatomic: {path} is not mounted: {data}/auto is an automount point (autofs), which a look would mount\n"
        f"  ls '{data}/auto/it'\"'\"'s'/., then run again\n"
    )
    top = kopiatomic("plan", data / "auto", timeout=20)
    assert top.returncode == 1
    assert ("then run again" in top.stderr) == (kind == "direct"), str(top)
    # Where nobody names it, it is hidden, and named.
    around = kopiatomic("--layout", "in-place", "-c", "true", data, timeout=20)
    assert around.returncode == 0, str(around)
    assert f"Hidden:   {data}/auto (autofs): it might not answer\n" in around.stdout
    assert not asked()


def test_what_an_automount_point_has_mounted_is_taken(
    btrfs: Btrfs, data: Path, kopiatomic: Kopiatomic, root: Path, automount: Callable[[Path, str], Callable[[], bool]]
) -> None:
    """In place of the daemon, which is in its own process group, the test mounts it."""
    home = btrfs.subvolume("home")
    (home / "file").write_text("then")
    point = data / "auto"
    point.mkdir()
    requests, ask = os.pipe()
    linux.mount("map", str(point), "autofs", 0, f"fd={ask},pgrp={os.getpgrp()},minproto=5,maxproto=5,indirect")
    try:
        (point / "ann").mkdir()
        command("mount", "--bind", home, point / "ann")
        engine = shlex.join(["sh", "-c", f"cat {root}{point}/ann/file"])
        script = 'exec setsid "$@"'
        words = Kopiatomic.argv("--mount-root", root, "-c", engine, point / "ann")
        ended = command("sh", "-c", script, "sh", *words, env=kopiatomic.environment, timeout=20, check=False)
        assert ended.returncode == 0, str(ended)
        assert "then" in ended.stderr
        assert not select.select([requests], [], [], 0)[0]
    finally:
        command("umount", point / "ann", check=False)
        linux.detach(str(point))
        os.close(requests)
        os.close(ask)
