"""The demonstration from its first step to its last. ./demo starts it when all that it needs is installed."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from demo import counter, ground, programs, screen
from demo.counter import Copy
from demo.ground import Ground
from demo.programs import DemoError, Stopped, run

FILES = 24
# So much that kopia reads for a second or so, also in the VM, where all takes ten times as long.
FILE_BYTES = (96 if os.environ.get("KOPIATOMIC_IN_VM") == "qemu" else 1280) << 10
READY_S = 60.0
WARM_UP_S = 2.0
"""Until the program is at its full speed."""
TRIES = 3


@dataclass(frozen=True)
class Stage:
    """What all steps share: the live files, a folder for the rest, and a kopia repository of the demonstration's own."""

    ground: Ground
    folder: Path
    environment: Mapping[str, str]

    @property
    def counter(self) -> int:
        """What the program has come to."""
        return counter.read(counter.names(self.ground.folders, FILES)[0])

    def kopia(self, *arguments: str, typed: bool = False) -> str:
        if typed:
            screen.command(["kopia", *arguments])
        return run(["kopia", *arguments], env=self.environment)

    def restored(self, source: str, name: str) -> Copy:
        """Restore the latest backup of a source, and read what came back."""
        target = self.folder / name
        self.kopia("snapshot", "restore", "--snapshot-time=latest", source, str(target), typed=True)
        return counter.read_copy(target, FILES)


def main() -> int:
    programs.note_signals()
    try:
        return demonstrate()
    except Stopped as stopped:
        screen.say(f"\nStopped by {stopped}. Everything is removed again.")
        return 128 + stopped.number
    except DemoError as error:
        sys.stdout.flush()
        print(f"\nerror: {error}\n  -> {error.hint}", file=sys.stderr)
        return 1


def demonstrate() -> int:
    began = time.monotonic()
    screen.say("kopiatomic: backing up files that change all the time", screen.BOLD)
    screen.title("1. A throwaway filesystem, in memory")
    make = ground.zfs if ground.zfs_is_here() else ground.btrfs
    with ground.scratch() as folder, make(folder) as made:
        explain_ground(made)
        stage = Stage(made, folder, environment(folder))
        stage.kopia("repository", "create", "filesystem", f"--path={folder}/repository")
        screen.title("2. A program that never rests")
        with writer(made):
            screen.explain(
                f"It writes 1 into the first of {FILES} files, then into the next, up to the last; then 2 into the first, and"
                " so on. So at any one instant all counters are equal, or the first files are one ahead."
            )
            if made.synced:
                screen.explain(
                    "It waits until each write is on disk, as a database does: what is only in memory, Btrfs may miss."
                )
            plain = back_up_plainly(stage)
            frozen = back_up_frozen(stage)
    screen.title("5. What came back")
    show_result(plain, frozen)
    screen.explain(f"Everything is removed again. This took {time.monotonic() - began:.0f} s.")
    return 0 if frozen.whole and not plain.whole else 1


def explain_ground(made: Ground) -> None:
    if made.filesystem == "zfs":
        screen.explain(
            f"Two ZFS datasets of one pool, {' and '.join(made.datasets)}, each with half of the files. A pool freezes all its"
            " datasets at one instant."
        )
    else:
        screen.explain(
            "One Btrfs subvolume on a loop device. One, because two Btrfs subvolumes cannot be frozen at one instant; two"
            " datasets of a ZFS pool can, as './demo zfs' shows in a VM."
        )


def environment(folder: Path) -> Mapping[str, str]:
    """For kopia and kopiatomic: nothing of the kopia of whoever looks on is read or changed."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("KOPIA_", "KOPIATOMIC_"))},
        "KOPIA_CACHE_DIRECTORY": f"{folder}/cache",
        "KOPIA_CHECK_FOR_UPDATES": "false",
        "KOPIA_CONFIG_PATH": f"{folder}/repository.config",
        "KOPIA_LOG_DIR": f"{folder}/logs",
        "KOPIA_PASSWORD": "for this demonstration only",
        "KOPIATOMIC_STATE_DIR": f"{folder}/state",
    }


@contextmanager
def writer(made: Ground) -> Iterator[None]:
    """The program at work, from its first counter on."""
    options = [f"--count={FILES}", f"--size={FILE_BYTES}", *(["--synced"] if made.synced else [])]
    argv = [sys.executable, "-m", "demo.counter", *options, *map(str, made.folders)]
    with programs.started(argv) as process:
        wait_until_ready(process)
        programs.pause(WARM_UP_S)
        yield
        if process.poll() is not None:
            raise DemoError(
                "the program that writes has ended", (process.communicate()[1] or "it said nothing").strip()
            )


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    deadline = time.monotonic() + READY_S
    while not select.select([process.stdout], [], [], programs.LOOK_S)[0]:
        programs.check_signals()
        if time.monotonic() > deadline:
            raise DemoError("the program that writes does not begin", "Is this machine very busy? Try again.")
    if process.stdout.readline() != "ready\n":
        raise DemoError("the program that writes has failed", process.communicate()[1].strip())


def back_up_plainly(stage: Stage) -> Copy:
    """The live files, as they change: torn, but for luck, which is given up to three chances."""
    screen.title("3. Plain kopia reads the files while they change")
    source = str(stage.ground.top)
    for attempt in range(1, TRIES + 1):
        before = stage.counter
        stage.kopia("snapshot", "create", source, typed=True)
        screen.explain(f"While kopia ran, the program went from {before:,} to {stage.counter:,}.")
        copy = stage.restored(source, f"plain-{attempt}")
        if not copy.whole:
            break
        screen.explain(f"By luck that backup is whole (try {attempt} of {TRIES}).")
    return copy


def back_up_frozen(stage: Stage) -> Copy:
    screen.title("4. kopiatomic freezes them first, and lets kopia read that")
    # Whatever else uses /kopia on this machine is left alone.
    root = f"{stage.folder}/kopia" if os.path.lexists("/kopia") else "/kopia"
    arguments = [*([] if root == "/kopia" else [f"--mount-root={root}"]), *stage.ground.datasets]
    screen.command(["kopiatomic", *arguments])
    before = stage.counter
    screen.say()
    run([sys.executable, "-m", "kopiatomic", *arguments], env=stage.environment, shown=True, name="kopiatomic")
    screen.say()
    screen.explain(f"While kopiatomic ran, the program went from {before:,} to {stage.counter:,}.")
    return stage.restored(root, "frozen")


def show_result(plain: Copy, frozen: Copy) -> None:
    def verdict(copy: Copy) -> tuple[str, str]:
        return ("whole", screen.GREEN) if copy.whole else ("torn", screen.RED)

    screen.table(
        ("", "plain kopia", "kopiatomic"),
        [
            (("lowest counter", ""), (f"{plain.lowest:,}", ""), (f"{frozen.lowest:,}", "")),
            (("highest counter", ""), (f"{plain.highest:,}", ""), (f"{frozen.highest:,}", "")),
            (("verdict", ""), verdict(plain), verdict(frozen)),
        ],
    )
    screen.say()
    screen.explain(
        "Whole: no file is ahead of one that is written before it, and the first is at most one ahead of the last."
    )
    if plain.whole:
        screen.explain(f"Plain kopia was lucky {TRIES} times, so this showed nothing. Please run it again.")
    if not frozen.whole:
        screen.explain("kopiatomic's backup is torn: that is a defect. Please report it, with all of this output.")


if __name__ == "__main__":
    sys.exit(main())
