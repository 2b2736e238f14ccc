"""Faults that have nothing to do with a filesystem's kind: limits, the mount root, engines, hooks, outputs, signals."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kopiatomic.state import locks
from tests.support.faults import LIMIT_S, Fault, Ground, Running
from tests.support.moments import (
    ENDING,
    MOMENTS,
    after_reading,
    at,
    children,
    deliver,
    found,
    launcher_of,
    signalled,
    state_of,
)
from tests.support.programs import SLOWNESS, Completed, command
from tests.support.terminal import Terminal

Provoke = Callable[[Ground, random.Random], Completed]

GROWTH = 32 << 20
"""How much more memory (bytes) a run may take while an engine floods it."""

# Limits


def with_descriptors(ground: Ground, limit: int) -> Completed:
    return ground.run(before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)))


def few_descriptors(ground: Ground, drawn: random.Random) -> Completed:
    return with_descriptors(ground, drawn.randint(8, 40))


def with_processes(ground: Ground, limit: int) -> Completed:
    with ground.limited(pids_max=str(limit)) as join:
        return ground.run(before=join)


def few_processes(ground: Ground, drawn: random.Random) -> Completed:
    return with_processes(ground, drawn.randint(2, 8))


# The mount root: on the host it is an empty directory, and that a view is mounted on it elsewhere does not protect it


def root_removed(ground: Ground, drawn: random.Random) -> Completed:
    if drawn.random() < 0.5:
        with ground.at_engine() as run:
            ground.root.rmdir()
    else:
        with after_reading(ground) as run:
            ground.root.rmdir()
    return run.wait(LIMIT_S)


def root_covered(ground: Ground, _: random.Random) -> Completed:
    with ground.at_engine() as run:
        command("mount", "-t", "tmpfs", "none", ground.root)
    try:
        return run.wait(LIMIT_S)
    finally:
        command("umount", ground.root)


def root_filled(ground: Ground, _: random.Random) -> Completed:
    theirs = ground.root / "theirs"
    with ground.at_engine() as run:
        theirs.write_text("kept")
    ended = run.wait(LIMIT_S)
    assert theirs.read_text() == "kept"
    theirs.unlink()
    if not os.path.exists(locks.path_of("made", str(ground.root))):
        # Any other run that looks at it meanwhile leaves it to whose file it is.
        ground.root.rmdir()
    return ended


def root_renamed(ground: Ground, _: random.Random) -> Completed:
    elsewhere = ground.root.with_name("elsewhere")
    with ground.at_engine() as run:
        ground.root.rename(elsewhere)
    ended = run.wait(LIMIT_S)
    elsewhere.rmdir()
    return ended


def root_replaced(ground: Ground, _: random.Random) -> Completed:
    with ground.at_engine() as run:
        ground.root.rmdir()
        ground.root.mkdir()
    ended = run.wait(LIMIT_S)
    ground.root.rmdir() if ground.root.exists() else None
    return ended


def view_unmounted(ground: Ground, drawn: random.Random) -> Completed:
    """By somebody who goes into the view's namespace for it."""
    place = drawn.choice(list(ground.live))
    with ground.at_engine() as run:
        target = f"--target={found(run, launcher_of)}"
        command("nsenter", target, "--mount", "--pid", "umount", "--lazy", f"{ground.root}{place}")
    return run.wait(LIMIT_S)


# Engines


def engine(*habits: str) -> Provoke:
    return lambda ground, _: ground.run(habits=habits)


def flood(habit: str, *args: str) -> Provoke:
    return lambda ground, drawn: flooded(ground, f"{habit}={drawn.randint(8, 64)}", *args)


def flooded(ground: Ground, habit: str, *args: str) -> Completed:
    """Output without end; the memory of the run is watched meanwhile."""
    run = ground.start(*args, *ground.words("gate", habit), before=unread)
    run.until(ground.started, LIMIT_S)
    before = highest = _most_memory(run)
    ground.change()
    ground.let_go()
    deadline = time.monotonic() + LIMIT_S
    while state_of(run.pid)[0] not in "ZX":
        assert time.monotonic() < deadline, "it does not end"
        highest = max(highest, _most_memory(run))
        time.sleep(0.02)
    assert highest - before < GROWTH, f"it grew by {highest - before >> 20} MiB"
    return run.wait(LIMIT_S)


def unread() -> None:
    """What floods is not to be kept by the test either."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def _most_memory(run: Running) -> int:
    """The most memory that the main process has had at once (bytes)."""
    try:
        status = Path(f"/proc/{run.pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def deaf_engine(ground: Ground, drawn: random.Random) -> Completed:
    """It ignores SIGTERM: its time ends, or a second signal comes."""
    impatient = drawn.random() < 0.5
    run = ground.start("--stop-timeout", "600" if impatient else "0.5", *ground.words("deaf"))
    run.until((ground.folder / "deaf").exists, LIMIT_S)
    for _ in range(2 if impatient else 1):
        deliver(run, signal.SIGTERM)
    return run.wait(LIMIT_S)


def stopped_engine(ground: Ground, _: random.Random) -> Completed:
    """One that SIGSTOP has stopped hears no SIGTERM."""
    run = ground.start("--stop-timeout", "0.5", *ground.words("hang"))
    run.until(ground.started, LIMIT_S)
    (pid,) = children(found(run, launcher_of))
    os.kill(pid, signal.SIGSTOP)
    deliver(run, signal.SIGTERM)
    return run.wait(LIMIT_S)


def over_time(ground: Ground, drawn: random.Random) -> Completed:
    """The time limit of the whole run, with something in it that hangs."""
    limit = ("--timeout", str(2 * SLOWNESS), "--stop-timeout", "0.5")
    if drawn.random() < 0.3:
        return ground.run(*limit, "-p", "sleep 1000")
    return ground.run(*limit, habits=["deaf" if drawn.random() < 0.5 else "hang"])


# Hooks and outputs


def hook(*words: str) -> Provoke:
    return lambda ground, _: ground.run("--hook-timeout", "0.5", *words)


def outputs(stdout: str, stderr: str) -> Callable[[], None]:
    """``closed``, ``full``, or ``broken`` (a pipe that nobody reads any more)."""

    def become() -> None:
        for fd, kind in ((1, stdout), (2, stderr)):
            if kind == "closed":
                os.close(fd)
            elif kind == "full":
                os.dup2(os.open("/dev/full", os.O_WRONLY), fd)
            else:
                read, write = os.pipe()
                os.close(read)
                os.dup2(write, fd)
                os.close(write)

    return become


OUTPUTS = ("closed", "full", "broken")


def bad_outputs(ground: Ground, drawn: random.Random) -> Completed:
    return ground.run(before=outputs(drawn.choice(OUTPUTS), drawn.choice(OUTPUTS)))


def terminal_gone(ground: Ground, drawn: random.Random) -> Completed:
    terminal = Terminal()
    with at(ground, drawn.choice(("snapshot", "engine")), before=terminal.become) as run:
        terminal.begun()
        terminal.close()
        # The kernel sends the signal; held processes do not keep the main process from taking it.
    ended = run.wait(LIMIT_S)
    ground.let_go()
    return ended


# Signals


def any_signal(ground: Ground, drawn: random.Random) -> Completed:
    moment, signum = drawn.choice(MOMENTS), drawn.choice(ENDING)
    ended = signalled(ground, moment, signum, times=drawn.randint(1, 2))
    assert ended.returncode in signal_codes(moment, signum), f"{moment}: {ended}"
    return ended


def signal_codes(moment: str, signum: int) -> set[int]:
    """A signal that comes when the engine has ended well may find all of it done: then saved is the truth."""
    return {128 + signum, 0} if moment == "clean-up" else {128 + signum}


def is_signal(*signums: int) -> dict[int, str]:
    return {128 + signum: f"stopped by {signal.Signals(signum).name}" for signum in signums}


def always(_: Completed) -> bool:
    return True


def if_unclean(ended: Completed) -> bool:
    return ended.returncode == 4


REFUSED = {0: "", 1: "Too many open files|Resource temporarily unavailable"}
"""What comes of a limit of the system: it is high enough, or the message says which it was."""

GONE = "what .* saved is not the frozen view"

FAULTS: Sequence[Fault] = (
    Fault("few descriptors", few_descriptors, REFUSED),
    Fault("few processes", few_processes, REFUSED),
    Fault("the mount root is removed", root_removed, {1: GONE}),
    Fault(
        "the mount root is mounted over",
        root_covered,
        {4: "left behind: directory .*something is mounted on it"},
        if_unclean,
    ),
    Fault("the mount root gets a file", root_filled, {4: "left behind: directory .*not empty"}, if_unclean),
    Fault("the mount root is renamed", root_renamed, {1: GONE}),
    Fault("the mount root is replaced", root_replaced, {1: GONE}),
    Fault("somebody unmounts a snapshot in the view", view_unmounted, {1: GONE}),
    Fault("the engine closes what it inherits", engine("closes"), {0: ""}),
    Fault("the engine closes its output early", engine("mute"), {0: ""}),
    Fault("the engine leaves a daemon in the view", engine("daemon"), {0: ""}),
    Fault("the engine floods stderr", flood("flood"), {0: ""}),
    Fault("the engine floods stderr, and nobody wants to know", flood("flood", "--quiet"), {0: ""}),
    Fault("the engine writes a line without end", flood("endless-line", "--quiet"), {0: ""}),
    Fault("the engine fails", engine("exits=7"), {1: "failed: exit status 7"}),
    Fault("the engine dies", engine("dies=11"), {1: r"failed: killed by SIGSEGV \(11\)"}),
    Fault("the engine is killed", engine("dies=9"), {1: r"failed: killed by SIGKILL \(9\)"}),
    Fault("the engine is deaf to SIGTERM", deaf_engine, is_signal(signal.SIGTERM)),
    Fault("the engine is stopped and then to end", stopped_engine, is_signal(signal.SIGTERM)),
    Fault("the time limit is over", over_time, {1: r"the time limit of \d+ s \(--timeout\) is over"}),
    Fault("-p fails", hook("-p", "exit 3"), {1: "hook -p failed"}),
    Fault("-p hangs", hook("-p", "sleep 1000"), {1: r"hook -p did not end within 0\.5 s"}),
    Fault("-q fails", hook("-q", "exit 3"), {4: "hook -q failed"}),
    Fault("-q hangs", hook("-q", "trap '' TERM INT HUP; sleep 1000"), {4: r"hook -q did not end within 0\.5 s"}),
    Fault("-q hangs in a session of its own", hook("-q", "setsid sleep 1000; :"), {4: "hook -q did not end within"}),
    Fault("outputs that cannot be written to", bad_outputs, {0: ""}),
    Fault("the terminal goes away", terminal_gone, {129: ""}),
    Fault("a signal at any moment", any_signal, {0: "", **is_signal(*ENDING)}),
)
