"""A filesystem that somebody has frozen (fsfreeze(8)) lets nothing be changed until it is thawed, and no signal ends the wait.

The main process does not wait: it says what is frozen, and ends. When it is thawed, everything goes by itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.btrfs.conftest import Gate, children, wait_for
from tests.support.filesystems import Btrfs
from tests.support.programs import SLOWNESS, Completed, Kopiatomic, command

pytestmark = pytest.mark.in_part(3)

Leftovers = Callable[..., list[str]]

STOP_TIMEOUT_S = 2
BOUND_S = (STOP_TIMEOUT_S + 10) * SLOWNESS


@contextmanager
def frozen(btrfs: Btrfs) -> Iterator[Callable[[], None]]:
    """A filesystem that is frozen; what is yielded thaws it."""
    command("fsfreeze", "-f", btrfs.mountpoint)
    thawed = False

    def thaw() -> None:
        nonlocal thawed
        if not thawed:
            command("fsfreeze", "-u", btrfs.mountpoint)
            thawed = True

    try:
        yield thaw
    finally:
        thaw()


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    data = btrfs.subvolume("data")
    (data / "file").write_text("then")
    return data


@pytest.fixture
def argv(root: Path) -> Callable[..., list[str]]:
    def argv(*words: str | Path) -> list[str]:
        return Kopiatomic.argv("--mount-root", root, "--stop-timeout", str(STOP_TIMEOUT_S), *words)

    return argv


def test_a_run_says_what_is_frozen_and_ends(
    btrfs: Btrfs,
    data: Path,
    argv: Callable[..., list[str]],
    kopiatomic: Kopiatomic,
    root: Path,
    leftovers: Leftovers,
) -> None:
    with frozen(btrfs):
        words = argv("-c", "true", data)
        ended = command(*words, env=kopiatomic.environment, timeout=BOUND_S, check=False)
    assert ended.returncode == 1, str(ended)
    assert f"the filesystem of {data} is frozen: nothing can be changed on it; waiting 2 s for it" in ended.stderr
    assert f"kopiatomic: the filesystem of {data} is frozen: nothing could be changed on it for 2 s\n" in ended.stderr
    assert f"to thaw it: fsfreeze -u {data}. What this run made goes by itself then." in ended.stderr
    wait_for(lambda: leftovers(root) == [], "the clean-up of a run that was held up")


@pytest.mark.parametrize("layout", ["merged", "in-place"])
def test_a_run_goes_on_when_it_is_thawed_in_time(
    layout: str,
    btrfs: Btrfs,
    data: Path,
    root: Path,
    kopiatomic: Kopiatomic,
    leftovers: Leftovers,
) -> None:
    words = Kopiatomic.argv("--mount-root", root, "--stop-timeout", "60", "--layout", layout, "-c", "true", data)
    with frozen(btrfs) as thaw, subprocess.Popen(words, env=kopiatomic.environment, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = b""
        while b"waiting 60 s for it" not in said:
            said += os.read(process.stderr.fileno(), 4096) or pytest.fail(said.decode())
        thaw()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, (said + errors).decode()
    assert leftovers(root) == []


@pytest.mark.parametrize(
    ("signum", "options", "code"),
    [(signal.SIGINT, (), 130), (signal.SIGTERM, (), 143), (None, ("--timeout", "3"), 1)],
    ids=["SIGINT", "SIGTERM", "timeout"],
)
def test_a_signal_ends_a_run_that_is_held_up(
    signum: signal.Signals | None,
    options: tuple[str, ...],
    code: int,
    btrfs: Btrfs,
    data: Path,
    root: Path,
    kopiatomic: Kopiatomic,
    leftovers: Leftovers,
) -> None:
    words = Kopiatomic.argv("--mount-root", root, "--stop-timeout", "600", *options, "-c", "true", data)
    with (
        frozen(btrfs),
        subprocess.Popen(words, env=kopiatomic.environment, stderr=subprocess.PIPE, text=True) as process,
    ):
        try:
            if signum is not None:
                wait_for(lambda: held_up(process.pid), "a child that waits for a thaw")
                process.send_signal(signum)
            _, errors = process.communicate(timeout=20 * SLOWNESS)
        finally:
            process.kill()
    assert process.returncode == code, errors
    assert "stopped" in errors
    assert f"the filesystem of {data} is frozen (to thaw it: fsfreeze -u {data})" in errors
    wait_for(lambda: leftovers(root) == [], "the clean-up of a run that was held up")


def held_up(pid: int) -> bool:
    """Whether a child of a process waits in the kernel for a lock of this kind."""
    return any("percpu_rwsem_wait" in Path(f"/proc/{child}/wchan").read_text() for child in children(pid))


def test_what_was_made_goes_when_the_filesystem_is_thawed(
    btrfs: Btrfs,
    data: Path,
    gate: Gate,
    argv: Callable[..., list[str]],
    kopiatomic: Kopiatomic,
    root: Path,
    leftovers: Leftovers,
) -> None:
    """It is frozen while the engine runs, so that the snapshot cannot be removed at the end."""
    words = argv("-c", gate.command, data)
    with subprocess.Popen(words, env=kopiatomic.environment, stderr=subprocess.PIPE, text=True) as process:
        gate.wait()
        with frozen(btrfs):
            gate.let_go()
            _, errors = process.communicate(timeout=BOUND_S)
            assert process.returncode == 4, errors
            assert "1 snapshot(s) named" in errors
            assert f"the filesystem of {data} is frozen (to thaw it: fsfreeze -u {data})" in errors
    wait_for(lambda: leftovers(root) == [], "the clean-up of a run that was held up")


def test_recover_names_it_too(
    btrfs: Btrfs,
    data: Path,
    gate: Gate,
    argv: Callable[..., list[str]],
    kopiatomic: Kopiatomic,
    root: Path,
    leftovers: Leftovers,
) -> None:
    words = argv("-c", gate.command, data)
    with subprocess.Popen(words, env=kopiatomic.environment, start_new_session=True) as process:
        gate.wait()
        for pid in [process.pid, *below(process.pid)]:
            os.kill(pid, signal.SIGSTOP)
        for pid in [process.pid, *below(process.pid)]:
            os.kill(pid, signal.SIGKILL)

    def recover() -> Completed:
        return command(*Kopiatomic.argv("recover"), env=kopiatomic.environment, timeout=20 * SLOWNESS, check=False)

    with frozen(btrfs):
        ended = recover()
    assert ended.returncode == 4, str(ended)
    assert "is frozen, and process " in ended.stdout + ended.stderr, str(ended)
    wait_for(lambda: recover().returncode == 0, "the clean-up")
    assert leftovers(root) == []


def below(pid: int) -> list[int]:
    """The processes below one."""
    found = sorted(children(pid))
    return found + [deeper for child in found for deeper in below(child)]
