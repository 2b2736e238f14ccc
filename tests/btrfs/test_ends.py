"""Every way out of a run unwinds it: success, failure, a signal, the sudden death of any one of its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kopiatomic import platforms
from kopiatomic.errors import KopiatomicError
from kopiatomic.filesystems.backends import makers
from kopiatomic.model.engine import Command
from kopiatomic.model.plan import Dataset, Plan, PlannedPath, Taken
from kopiatomic.runs.launcher import Start
from kopiatomic.runs.patience import Patience
from kopiatomic.runs.streams import Pipes
from kopiatomic.runs.supervisor import Supervisor
from kopiatomic.system import btrfs as btrfs_ioctls
from tests.btrfs.conftest import Family, Gate, children, kill_all_of, only_child, wait_for
from tests.support.filesystems import Btrfs
from tests.support.programs import Completed, Kopiatomic, command
from tests.support.schema import valid

pytestmark = pytest.mark.in_part(9)

Leftovers = Callable[..., list[str]]
Run = Callable[..., Completed]
LOCKS = Path("/run/kopiatomic")


@pytest.fixture
def data(btrfs: Btrfs) -> Path:
    (btrfs.subvolume("data") / "file").write_text("x")
    btrfs.subvolume("other")
    return btrfs.mountpoint / "data"


# Signals


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_engine_and_ends_the_run_with_its_number(
    signum: signal.Signals, data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic, leftovers: Leftovers
) -> None:
    hook = f"echo $KOPIATOMIC_RESULT $KOPIATOMIC_EXIT_CODE >> {root}.hook"
    with kopiatomic.started("--mount-root", root, "-q", hook, "-c", gate.command, data) as process:
        gate.wait()
        process.send_signal(signum)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + signum
    assert f"stopped by {signum.name}" in errors
    assert root.with_suffix(".hook").read_text() == f"interrupted {128 + signum}\n"
    assert leftovers(root) == []


def test_an_engine_that_ends_well_after_a_signal_is_no_backup(
    data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic, leftovers: Leftovers
) -> None:
    """As kopia does: exit status 0, and half a snapshot."""
    polite = f"sh -c 'trap \"exit 0\" TERM; touch {gate.folder}/started; while :; do sleep 0.05; done'"
    with kopiatomic.started("--mount-root", root, "--json", "-c", polite, data) as process:
        gate.wait()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
    document = valid(output)
    assert (process.returncode, document["exit_code"], document["result"]) == (143, 143, "interrupted")
    assert (document["engine"]["status"], document["engine"]["saved"]) == (0, False)
    assert leftovers(root) == []


def test_a_second_signal_kills_an_engine_that_ignores_the_first(
    data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic, leftovers: Leftovers
) -> None:
    stubborn = f"sh -c 'trap \"\" TERM INT; touch {gate.folder}/started; while :; do sleep 0.05; done'"
    with kopiatomic.started("--mount-root", root, "-c", stubborn, data) as process:
        gate.wait()
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert time.monotonic() - began < 5
    assert process.returncode == 130
    assert leftovers(root) == []


def test_an_engine_that_ignores_a_signal_is_killed_when_its_time_is_over(
    data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic, leftovers: Leftovers
) -> None:
    stubborn = f"sh -c 'trap \"\" TERM; touch {gate.folder}/started; while :; do sleep 0.05; done'"
    with kopiatomic.started("--mount-root", root, "--stop-timeout", "0.5", "-c", stubborn, data) as process:
        gate.wait()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    assert process.returncode == 143
    assert leftovers(root) == []


def test_a_signal_during_the_first_hook_ends_the_run_before_anything_is_made(
    data: Path, root: Path, kopiatomic: Kopiatomic, leftovers: Leftovers
) -> None:
    started = root.with_suffix(".started")
    words = ("-p", f"touch {started}; sleep 60", "-q", f"echo ran >> {root}.hook", "-c", f"touch {root}.engine")
    with kopiatomic.started("--mount-root", root, *words, data) as process:
        wait_for(started.exists, "the hook's start")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 143
    assert root.with_suffix(".hook").read_text() == "ran\n"
    assert not root.with_suffix(".engine").exists()
    assert leftovers(root) == []


def test_signals_at_any_moment_leave_nothing(
    data: Path, root: Path, kopiatomic: Kopiatomic, leftovers: Leftovers
) -> None:
    words = ("--mount-root", root, "-c", "sh -c 'sleep 0.05'", data, data.parent / "other")
    start = time.monotonic()
    with kopiatomic.started(*words) as process:
        process.communicate(timeout=60)
    whole = time.monotonic() - start
    codes = []
    for step in range(12):
        with kopiatomic.started(*words) as process:
            time.sleep(whole * (0.3 + 0.06 * step))
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        codes.append(process.returncode)
        # Before kopiatomic has taken the signals over, the kernel ends it: -15.
        assert process.returncode in {0, 143, -15}, errors
        assert "Traceback" not in errors
    assert leftovers(root) == []
    assert 143 in codes


def test_a_signal_that_its_caller_ignores_is_ignored(
    data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic, leftovers: Leftovers
) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with kopiatomic.started("--mount-root", root, "-c", gate.command, data) as process:
            gate.wait()
            process.send_signal(signal.SIGHUP)
            time.sleep(0.2)
            gate.let_go()
            process.communicate(timeout=20)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert process.returncode == 0
    assert leftovers(root) == []


def test_an_engine_that_hears_the_same_signal_as_the_run_and_ends_well_is_no_backup(
    data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic, leftovers: Leftovers
) -> None:
    """As with systemctl stop, which tells every process of the unit: the engine may have ended before it is asked to."""
    polite = f"sh -c 'trap \"exit 0\" TERM; touch {gate.folder}/started; while :; do sleep 0.01; done'"
    for _ in range(5):
        with kopiatomic.started("--mount-root", root, "-c", polite, data) as process:
            gate.wait()
            engine = Family.of(process.pid).engine
            os.kill(process.pid, signal.SIGSTOP)
            os.kill(engine, signal.SIGTERM)
            wait_for(partial(has_ended, engine), "the engine's end")
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
            process.communicate(timeout=20)
        assert process.returncode == 143
        (gate.folder / "started").unlink()
    assert leftovers(root) == []


def has_ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_caller_that_ignores_its_childrens_ends_makes_no_difference(
    data: Path, root: Path, kopiatomic: Kopiatomic, leftovers: Leftovers
) -> None:
    ended = command(
        "python3",
        "-c",
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])",
        *Kopiatomic.argv("--mount-root", root, "-c", "true", data),
        env=kopiatomic.environment,
        check=False,
    )
    assert ended.returncode == 0, str(ended)
    assert leftovers(root) == []


def test_a_time_limit_ends_a_run_as_a_signal_does_and_makes_it_a_failure(
    data: Path, root: Path, gate: Gate, run: Run, leftovers: Leftovers
) -> None:
    ended = run("--timeout", "1.5s", "-q", f"echo $KOPIATOMIC_EXIT_CODE > {root}.hook", "-c", gate.command, data)
    assert ended.returncode == 1
    assert "the time limit of 1.5 s (--timeout) is over" in ended.stderr
    assert root.with_suffix(".hook").read_text() == "1\n"
    assert leftovers(root) == []


def test_a_time_limit_that_falls_into_an_orderly_stop_does_not_cut_it_short(
    data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic, leftovers: Leftovers
) -> None:
    slow = f"sh -c 'trap \"sleep 2; touch {root}.done; exit 0\" TERM; touch {gate.folder}/started; while :; do sleep 0.05; done'"
    with kopiatomic.started("--mount-root", root, "--timeout", "3s", "-c", slow, data) as process:
        gate.wait()
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 143
    assert root.with_suffix(".done").exists()


def test_a_hook_that_nothing_ends_does_not_hold_the_run(
    data: Path, root: Path, make_btrfs: Callable[[], Btrfs], kopiatomic: Kopiatomic, leftovers: Leftovers
) -> None:
    """It writes to a frozen filesystem: not even SIGKILL ends that call."""
    frozen = make_btrfs().mountpoint
    words = ("--mount-root", root, "--hook-timeout", "1", "-p", f"echo x > {frozen}/file", "-c", "true", data)
    command("fsfreeze", "-f", frozen)
    try:
        with kopiatomic.started(*words) as process:
            # Not its output: the hook has the same stderr, and lives on.
            process.wait(40)
            command("fsfreeze", "-u", frozen)
            _, errors = process.communicate(timeout=20)
    finally:
        command("fsfreeze", "-u", frozen, check=False)
    assert process.returncode == 1
    assert "did not end within 1 s" in errors
    assert leftovers(root) == []


# Deaths


@pytest.mark.parametrize("victim", ["main", "keeper", "launcher", "engine"])
def test_the_death_of_any_one_process_leaves_nothing(
    victim: str, data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic, leftovers: Leftovers
) -> None:
    words = ("--mount-root", root, "-q", f"echo $KOPIATOMIC_RESULT >> {root}.hook")
    with kopiatomic.started(*words, "-c", gate.command, data, data.parent / "other") as process:
        gate.wait()
        os.kill(getattr(Family.of(process.pid), victim), signal.SIGKILL)
        _, errors = process.communicate(timeout=30)
    if victim == "main":
        assert process.returncode == -9
    else:
        assert process.returncode == 1
        assert root.with_suffix(".hook").read_text() == "failed\n"
        expected = {"engine": "sh failed: killed by SIGKILL (9)", "launcher": "launcher of this run was killed"}
        assert expected.get(victim, "of this run was killed") in errors
    assert leftovers(root, within=10) == []


def test_a_killed_run_holds_its_root_until_its_last_process_is_gone(
    data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic, run: Run, leftovers: Leftovers
) -> None:
    with kopiatomic.started("--mount-root", root, "-c", gate.command, data) as process:
        gate.wait()
        family = Family.of(process.pid)
        os.kill(family.keeper, signal.SIGSTOP)
        process.kill()
        process.wait(10)
        assert run("-c", "true", data).returncode == 75
        os.kill(family.keeper, signal.SIGCONT)
    wait_for(lambda: not Path(f"/proc/{family.keeper}").exists(), "the keeper's end")
    assert run("-c", "true", data).returncode == 0
    assert leftovers(root) == []


def test_the_run_after_one_whose_processes_were_all_killed_clears_what_it_left(
    data: Path, root: Path, gate: Gate, kopiatomic: Kopiatomic, run: Run, btrfs: Btrfs, leftovers: Leftovers
) -> None:
    """What that leaves on Btrfs is no kernel's to remove; the next run shows nothing of it."""
    with kopiatomic.started("--mount-root", root, "-c", gate.command, data) as process:
        kill_all_of(process, gate)
    ended = run("-r", "-c", f"ls -A {root}{btrfs.mountpoint}", btrfs.mountpoint)
    assert ended.returncode == 0, str(ended)
    assert ".kopiatomic" not in ended.stdout
    assert "was interrupted" in ended.stderr
    assert "removed what run" in ended.stderr
    assert not (btrfs.mountpoint / ".kopiatomic").exists()
    assert leftovers(root) == []


@pytest.mark.parametrize("victim", ["keeper", "launcher"])
def test_a_death_between_two_steps_is_told_as_what_it_is(victim: str, data: Path, tmp_path: Path) -> None:
    """The supervisor alone, so that the death comes in a moment that no engine marks."""
    root = tmp_path / "view"
    root.mkdir()
    plan = Plan(str(root), (Taken(dataset_at(data), str(data), named=True),))
    run_id = "20261122T101112Z-01234567"
    chosen = makers(plan, run_id)
    assert [maker.intents() for maker in chosen]
    supervisor = Supervisor(
        run_id,
        plan,
        chosen,
        lambda _: None,
        Patience([], 0.0, print),
        platform=platforms.here(),
        record=lambda _: None,
    )
    # The VM of the ZFS tests may be a child of this process as well.
    before = children(os.getpid())
    with supervisor:
        supervisor.freeze()
        (keeper,) = children(os.getpid()) - before
        if victim == "keeper":
            os.kill(keeper, signal.SIGKILL)
            wait_for(lambda: ") Z" in Path(f"/proc/{keeper}/stat").read_text(), "the keeper's end")
            with pytest.raises(KopiatomicError) as caught:
                supervisor.mount(plan)
        else:
            supervisor.mount(plan)
            os.kill(only_child(keeper), signal.SIGKILL)
            wait_for(lambda: not Path(f"/proc/{keeper}/task/{keeper}/children").read_text(), "the launcher's end")
            with pytest.raises(KopiatomicError) as caught:
                supervisor.run(Start(Command(["true"], {}), {}), Pipes(lambda *_: None), 1.0)
    assert caught.value.kind == f"{victim}-killed"
    assert supervisor.left == []
    assert not (data.parent / ".kopiatomic").exists()


def dataset_at(path: Path) -> Dataset:
    device = command("findmnt", "-n", "-o", "SOURCE", "-T", path).stdout.split("[")[0].strip()
    fd = os.open(path, os.O_RDONLY)
    try:
        uuid, number = btrfs_ioctls.filesystem_uuid(fd), btrfs_ioctls.subvolume(fd).id
    finally:
        os.close(fd)
    return Dataset("btrfs", str(path), uuid, PlannedPath(str(path)), number, device)


# What it says


def test_json_tells_of_a_failure_as_of_a_success(data: Path, run: Run, root: Path, leftovers: Leftovers) -> None:
    ended = run("--json", "-c", "sh -c 'exit 9'", data)
    document = valid(ended.stdout)
    assert (ended.returncode, document["exit_code"], document["result"]) == (1, 1, "failed")
    assert document["error"]["kind"] == "engine-failed"
    assert document["engine"]["status"] == 9
    assert document["sets"][0]["snapshots"][0]["dataset"] == str(data)
    assert leftovers(root) == []


@pytest.mark.parametrize(
    "then", ["", "echo still here; sleep 0.2; echo and here"], ids=["silent engine", "talking engine"]
)
def test_a_terminal_that_goes_away_ends_nothing(
    then: str,
    data: Path,
    root: Path,
    make_gate: Callable[..., Gate],
    kopiatomic: Kopiatomic,
    leftovers: Leftovers,
) -> None:
    """A session that is lost while SIGHUP is ignored: every later write to it fails."""
    gate = make_gate(then)
    ours, theirs = os.openpty()
    argv = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"]
    argv += kopiatomic.argv("--mount-root", root, "-c", gate.command, data)
    environment = {**kopiatomic.environment, "TERM": "xterm"}
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        gate.wait()
        os.read(ours, 1 << 16)
        os.close(ours)
        gate.let_go()
        assert process.wait(20) == 0
    assert leftovers(root) == []
