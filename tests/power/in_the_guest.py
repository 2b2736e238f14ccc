"""One boot of a machine for a power cut: looks at what the last cut left, runs again, and cuts the power of a new run.

Started by test_power_cut.py, which judges: this only does things and writes what it found as JSON, a line each. All of it
is one process, because the start of a program takes seconds in qemu.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kopiatomic.system import libzfs_core, linux
from tests.support.programs import command
from tests.zfs.runs import Cgroup, Run, Runner

UML = os.environ.get("KOPIATOMIC_IN_VM") == "uml"
DISK = "/dev/ubdc" if UML else "/dev/vdc"
CUT = "now the power goes"
"""In User-Mode Linux the machine is a process of the host's, which kills it when it reads this."""
POOL = "tank"
KEPT = Path("/kept")
BTRFS = Path("/btrfs")
STATE, ROOT = KEPT / "state", BTRFS / "view"
"""On two filesystems, neither of which puts the other's changes on the disk."""
OTHER_RUN = "20200102T030405Z-deadbeef"
SCRATCH = Path("/run/power")

READER = """
cd "${{KOPIATOMIC_ROOT:-/}}" && : > {ready} && while :; do
    for file in tank/data/* tank/data/sub/*; do
        while read -r line; do :; done < "$file"
    done
done
"""


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def prepare() -> None:
    """Partition the disk and fill it, decoys included: nothing that only looks like ours may ever be touched."""
    layout = "size=512M\nsize=256M\n,\n"
    subprocess.run(["sfdisk", "-q", DISK], input=layout, text=True, check=True)
    command("mkfs.ext4", "-q", f"{DISK}2")
    command("mkfs.btrfs", "--quiet", f"{DISK}3")
    command("zpool", "create", "-o", "cachefile=none", "-O", f"mountpoint=/{POOL}", POOL, f"{DISK}1")
    mount()
    for name in ("data", "data/sub", "inherited"):
        command("zfs", "create", f"{POOL}/{name}")
    for folder in (Path(f"/{POOL}/data"), Path(f"/{POOL}/data/sub")):
        for number in range(20):
            (folder / f"file{number}").write_bytes(b"line of text\n" * 500)
    command("zfs", "set", f"kopiatomic:run={OTHER_RUN}@0", f"{POOL}/inherited")
    command("zfs", "snapshot", f"{POOL}/data@kopiatomic_{OTHER_RUN}", f"{POOL}/inherited@kopiatomic_{OTHER_RUN}")
    for name in ("kopiatomic_held", "kopiatomic"):
        command("zfs", "snapshot", f"{POOL}/data@{name}")
    command("zfs", "hold", "keep", f"{POOL}/data@kopiatomic_held")
    elsewhere = f"kopiatomic:run={OTHER_RUN}@another-host"
    command("zfs", "snapshot", "-o", elsewhere, f"{POOL}/data/sub@kopiatomic_{OTHER_RUN}")
    command("btrfs", "subvolume", "create", BTRFS / "data")
    (BTRFS / "data" / "file").write_text("x")
    command("btrfs", "subvolume", "snapshot", "-r", BTRFS / "data", BTRFS / f"kopiatomic_{OTHER_RUN}")
    command("sync")


def mount() -> None:
    for folder, device, kind in ((KEPT, f"{DISK}2", "ext4"), (BTRFS, f"{DISK}3", "btrfs")):
        folder.mkdir(exist_ok=True)
        linux.mount(device, str(folder), kind, 0)


class Boot:
    """What is done in one boot."""

    def __init__(self, datasets: Sequence[str], how: str) -> None:
        SCRATCH.mkdir()
        group = Cgroup(Path("/sys/fs/cgroup") / f"kopiatomic-{secrets.token_hex(4)}")
        group.folder.mkdir()
        self._runner = Runner(group, SCRATCH)
        self._environment = {"KOPIATOMIC_STATE_DIR": str(STATE)}
        place = ["--mount-root", str(ROOT)] if how == "merged" else ["--layout", "in-place"]
        self._backup = ["--json", *place, *datasets, "-c"]
        self._cut_off = ["exec", *datasets, "--", "sh", "-c"] if how == "exec" else self._backup
        self._called, self._tied, self._ready = (SCRATCH / name for name in ("called", "tied", "ready"))
        reader = SCRATCH / "reader"
        reader.write_text(READER.format(ready=self._ready))
        self._reader = f"sh {reader}"

    def found(self) -> dict[str, Any]:
        """All snapshots there are, and the mount root."""
        columns = "name,guid,userrefs,kopiatomic:run"
        snapshots = command("zfs", "list", "-Hp", "-t", "snapshot", "-o", columns).stdout.splitlines()
        subvolumes = command("btrfs", "subvolume", "list", BTRFS).stdout.splitlines()
        return {
            "zfs": [line.split("\t") for line in snapshots],
            "btrfs": [line.partition(" path ")[2] for line in subvolumes],
            "directories": [str(path) for path in (ROOT, BTRFS / ".kopiatomic") if path.exists()],
        }

    def look(self, *args: str) -> dict[str, Any]:
        """Ask kopiatomic itself, in JSON."""
        ended = self._runner(*args, "--json", env=self._environment)
        return {"exit": ended.returncode, "stderr": ended.stderr, "json": json.loads(ended.stdout or "null")}

    def whole_run(self) -> dict[str, Any]:
        """A run to its end, with the time from its first snapshot call to its set being tied, and to its end."""
        run = self._start(*self._backup, "true")
        ended = run.wait()
        over = time.time()
        times = {"exit": ended.returncode, "stdout": ended.stdout, "stderr": ended.stderr}
        if self._tied.exists():
            called = self._called.stat().st_mtime
            times |= {"gap": self._tied.stat().st_mtime - called, "window": over - called}
            self._called.unlink()
            self._tied.unlink()
        return times

    def cut(self, moment: str, delay: float) -> None:
        """Start a run and cut the power `delay` seconds after its first snapshot call, or its engine's first read."""
        sign = {"engine": self._ready, "snapshot": self._called}[moment]
        command_line = self._reader if moment == "engine" else "true"
        goes = (1, f"{CUT}\n".encode()) if UML else (os.open("/proc/sysrq-trigger", os.O_WRONLY), b"b")
        run = self._start(*self._cut_off, command_line)
        run.until(sign.exists)
        time.sleep(delay)
        os.write(*goes)
        time.sleep(60)
        raise AssertionError("the power is still there")

    def _start(self, *words: str) -> Run:
        return self._runner.start(*words, env=self._environment, before=self._mark)

    def _mark(self) -> None:
        """In the run's own process: have its calls leave a sign. The calls are the real ones."""
        snapshot, destroy = libzfs_core.snapshot, libzfs_core.destroy

        def marked_snapshot(*args: Any, **more: Any) -> None:
            self._called.touch()
            snapshot(*args, **more)

        def marked_destroy(*args: Any, **more: Any) -> None:
            destroy(*args, **more)
            if more.get("deferred"):
                self._tied.touch()

        libzfs_core.snapshot, libzfs_core.destroy = marked_snapshot, marked_destroy


def main(
    first: bool,
    datasets: Sequence[str],
    how: str,
    recover: bool,
    moment: str | None,
    fraction: float,
    where: str,
) -> None:
    """`how` is that of `Step` in test_power_cut.py.

    `fraction` is the place of the cut: in seconds while the engine reads, else as a part of `where` (gap or window).
    """
    if first:
        prepare()
    else:
        command("zpool", "import", "-d", "/dev", POOL)
        mount()
    boot = Boot(datasets, how)
    say(after_import=boot.found(), history=boot.look("history"))
    if recover:
        say(recover=boot.look("recover"), after_recover=boot.found())
    run = boot.whole_run()
    say(run=run, after_run=boot.found())
    say(history_then=boot.look("history", "--limit", "1"), rest=boot.look("recover", "--dry-run"))
    if moment is not None:
        boot.cut(moment, fraction if moment == "engine" else fraction * run[where])


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
