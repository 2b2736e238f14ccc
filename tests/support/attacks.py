"""Attackers who exchange what lies above a place, again and again while runs go on, and what a run must never read.

The user owns `ann` and all below, in which a directory and a dataset are backed up. `secret` is root's alone, has the same names
at every level and lies on another filesystem.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from kopiatomic.system import linux
from tests.support.programs import Completed, Kopiatomic, command
from tests.support.swapper import USER, at_work, can_exchange, exchange

_ASKED = os.environ.get("KOPIATOMIC_TEST_ATTACKS", "3")
RUNS = 500 if _ASKED == "whole" else int(_ASKED)
"""Of each attack, over all layouts and requests."""
BATCH = 50
BATCHES = range(0, RUNS, BATCH)
"""The first run of each batch, which is a test: one of all would be silent for longer than a guest may be."""
SEED = os.environ.get("KOPIATOMIC_TEST_SEED", "0")

HIDDEN = "what the user may not read"
MINE, FORGED = "mine", "forged"
STRANGER = 4242
"""Whom all in `secret` belongs to. Files count: directories of ours in a merged view look like the live ones."""

ENGINE = """
import json, os, sys, time
out, end, seen = sys.argv[1], time.monotonic() + float(sys.argv[2]), {}
def note(path, what):
    seen.setdefault(path, set()).add(what)
def look(source, path):
    # As engines do: a source is what its path leads to, and links in it are not followed.
    whole, opened = os.path.join(source, path), []
    try:
        opened.append(os.open(source, os.O_RDONLY))
        for name in path.split("/"):
            opened.append(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=opened[-1]))
        note(whole, os.read(opened[-1], 100).decode())
        note(whole + ":owner", os.fstat(opened[-1]).st_uid)
    except OSError as error:
        note(whole, "errno %d" % error.errno)
    for fd in opened:
        os.close(fd)
known = [f"{ann}{rest}" for ann in ("", "ann/") for rest in ("docs/deep/file", "deep/file", "file", "inner/vm/file")]
while True:
    for source in sys.argv[3:]:
        for name in known:
            look(source, name)
        for folder, folders, names in os.walk(source):
            for name in names:
                look(source, os.path.relpath(os.path.join(folder, name), source))
    if time.monotonic() > end:
        break
with open(out, "w") as file:
    json.dump({path: sorted(map(str, found)) for path, found in seen.items()}, file)
"""


@dataclass(frozen=True)
class Ground:
    """`home` is a dataset of root's, `vm` one that is mounted at `home/ann/inner/vm`."""

    home: Path
    secret: Path
    kopiatomic: Kopiatomic
    folder: Path

    @property
    def vm(self) -> Path:
        return self.home / "ann" / "inner" / "vm"


def populate(ground: Ground) -> None:
    """Fill the ground, when `home` is there and before `vm` is mounted."""
    tree(ground.home / "ann", MINE, USER)
    tree(ground.secret / "ann", HIDDEN, STRANGER)
    ground.secret.chmod(0o700)
    (ground.home / "ann" / "forged" / "deep").mkdir(parents=True)
    (ground.home / "ann" / "forged" / "deep" / "file").write_text(FORGED)
    for link, target in (("link", "docs"), ("inner-link", "inner"), ("docs/deep-link", "docs/deep")):
        (ground.home / "ann" / link).symlink_to(ground.secret / "ann" / target)
    give(ground.home / "ann", USER)


def tree(ann: Path, text: str, owner: int) -> None:
    for path in (ann / "docs" / "deep", ann / "inner" / "vm"):
        path.mkdir(parents=True)
        (path / "file").write_text(text)
    give(ann, owner)


def give(top: Path, owner: int) -> None:
    for path in (top, *top.rglob("*")):
        os.chown(path, owner, owner, follow_symlinks=False)


# Attacks: a round each, after which all is as it was


def swap(ground: Ground, drawn: random.Random) -> None:
    """A directory above a place, or of a place, and a link: at no moment is either name gone."""
    one, other = drawn.choice([("docs", "link"), ("inner", "inner-link"), ("docs/deep", "docs/deep-link")])
    exchange(one, other)
    pause(drawn)
    exchange(one, other)
    pause(drawn, 0.03 if drawn.random() < 0.9 else 0.5)


def forge(ground: Ground, drawn: random.Random) -> None:
    """A directory and another one of the user's."""
    exchange("docs", "forged")
    pause(drawn)
    exchange("docs", "forged")


def relink(ground: Ground, drawn: random.Random) -> None:
    """At each component: away, a link in its place, and back."""
    name = drawn.choice(["docs", "inner", "docs/deep"])
    os.rename(name, f"{name}.old")
    pause(drawn)
    os.symlink(ground.secret / "ann" / name, name)
    pause(drawn)
    os.unlink(name)
    os.rename(f"{name}.old", name)
    pause(drawn, 0.2)


def bind(ground: Ground, drawn: random.Random) -> None:
    """Root's files mounted in the host's namespace over a place, or over a directory above it."""
    over = drawn.choice(["ann/docs", "ann/docs/deep", "ann/inner", "ann", ""])
    point = str(ground.home / over)
    linux.mount(str(ground.secret / over), point, None, linux.MS_BIND)
    pause(drawn, 0.1)
    linux.detach(point)
    pause(drawn, 0.2)


def pause(drawn: random.Random, longest: float = 0.03) -> None:
    """Mostly none, so that it is a tight loop; now and then a while in which all looks well, or not."""
    if longest > 0.03 or drawn.random() < 0.05:
        time.sleep(drawn.random() * longest)


ATTACKS: dict[str, Callable[[Ground, random.Random], None]] = {
    "swap": swap,
    "forge": forge,
    "relink": relink,
    "bind": bind,
}
LAYOUTS = ("merged", "in-place", "exec")
REQUESTS: tuple[tuple[str, ...], ...] = (
    ("ann/docs",),
    ("ann/docs/deep",),
    ("ann/inner/vm",),
    ("",),
    ("ann/docs", "ann/inner/vm"),
)


@contextmanager
def host() -> Iterator[int]:
    """A mount namespace that plays the host, in which mounts are passed on as systemd has it; its process."""
    script = "mount --make-rshared / && echo ready && exec sleep infinity"
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.kill()


def enter(pid: int) -> None:
    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    assert ctypes.CDLL(None, use_errno=True).setns(fd, linux.CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())


@contextmanager
def attacked(name: str, ground: Ground, namespace: int, drawn: random.Random) -> Iterator[None]:
    """Attack for the length of the block, and leave all as it was."""
    with at_work(lambda: _attack(name, ground, namespace, drawn)):
        yield


def _attack(name: str, ground: Ground, namespace: int, drawn: random.Random) -> None:
    asked_to_end: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked_to_end.append(number))
    enter(namespace)
    if name != "bind":
        # The directories above are root's alone.
        os.chdir(ground.home / "ann")
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
    while not asked_to_end:
        ATTACKS[name](ground, drawn)
    os._exit(0)


def run(
    ground: Ground, namespace: int, layout: str, request: tuple[str, ...], seconds: float
) -> tuple[Completed, dict[str, list[str]]]:
    """One run, in the host's namespace; how it ended, and what its engine read at each path."""
    script, out = ground.folder / "engine.py", ground.folder / "read.json"
    script.write_text(ENGINE)
    out.unlink(missing_ok=True)
    paths = [str(ground.home / path) for path in request]
    engine = ["python3", "-SI", str(script), str(out), str(seconds)]
    words = ["--mount-root", str(ground.folder / "view"), "--json", "-c", shlex.join(engine), *paths]
    if layout == "in-place":
        words = ["--layout", "in-place", "--only-frozen", *words]
    if layout == "exec":
        words = ["exec", "--only-frozen", *paths, "--", *engine, *paths]
    argv = ["nsenter", f"--mount=/proc/{namespace}/ns/mnt", *ground.kopiatomic.argv(*words)]
    ended = command(*argv, env=ground.kopiatomic.environment, check=False)
    with suppress(FileNotFoundError):
        return ended, json.loads(out.read_text())
    return ended, {}


def judge(ground: Ground, ended: Completed, read: dict[str, list[str]]) -> str:
    """How a run ended, in a word; fails the test where it read what it must not, or what changed."""
    for path, found in read.items():
        assert HIDDEN not in found, f"{path}: {found}\n{ended}"
        assert path.removesuffix(":owner") == path or str(STRANGER) not in found, f"{path}: {found}\n{ended}"
        assert len(found) == 1, f"{path} is not frozen: {found}\n{ended}"
    assert "Traceback" not in ended.stderr, str(ended)
    assert "internal error" not in ended.stderr, str(ended)
    if ended.returncode == 0:
        assert any(found in ([MINE], [FORGED]) for found in read.values()), str(ended)
        return "saved"
    assert ended.returncode in {1, 3}, str(ended)
    return "refused" if ended.returncode == 1 else "incomplete"


def examine(name: str, ground: Ground, first: int) -> None:
    """Make a batch of the runs of one attack, and count how they ended."""
    if name in {"swap", "forge"} and not can_exchange(ground.home):
        pytest.skip("this filesystem cannot exchange two names at once")
    ends: dict[str, int] = {}
    with ExitStack() as stack:
        namespace = stack.enter_context(host())
        for number in range(first, min(first + BATCH, RUNS)):
            drawn = random.Random(f"{SEED}/{name}/{number}")
            layout = LAYOUTS[number % len(LAYOUTS)]
            request = drawn.choice(REQUESTS)
            with attacked(name, ground, namespace, drawn):
                ended, read = run(ground, namespace, layout, request, drawn.random() * 0.2)
            try:
                what = f"{layout}: {judge(ground, ended, read)}"
            except AssertionError as error:
                pytest.fail(
                    f"{name}/{number} ({layout}, {request}, KOPIATOMIC_TEST_SEED={SEED}): {error}", pytrace=False
                )
            ends[what] = ends.get(what, 0) + 1
    print(f"{name}: {dict(sorted(ends.items()))}")
    assert RUNS < BATCH or any(what.endswith("saved") for what in ends), "no run came to its engine"
