"""``measure PART`` runs one part and writes what it found as JSON; ``show FILE...`` makes a table of all, and the plot."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from itertools import accumulate
from pathlib import Path

from demo import ground

from bench import engine, hold, many, orchestration, restore, scale, start
from bench.results import Results, dump, load
from bench.show import plot, table

GROUPS = (2, 8, 90, 200, 700)
COUNTS = tuple(accumulate(GROUPS))
"""The numbers of datasets that are measured."""

WHOLE_LOOP = 100
"""Where the loop over all of them is timed as well, once."""

ON_DISK = "/var/lib"


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    zfs = Path("/sys/module/zfs/version")
    version = f", OpenZFS {zfs.read_text().strip()}" if zfs.exists() else ""
    where = {"uml": "User-Mode Linux", "qemu": "qemu"}.get(os.environ.get("KOPIATOMIC_IN_VM", ""), "native")
    return (
        f"{where}: Linux {platform.release()}{version}, Python {platform.python_version()}, {os.cpu_count()} processors, "
        f"{memory} MiB"
    )


def _zfs(rounds: int, folder: Path, state: Path, results: Results) -> None:
    with many.zfs(folder, GROUPS) as made:
        contest = orchestration.Orchestration(made, folder, state, results, rounds)
        goals = {100: {"above": ">=20"}, 1000: {"bare": "<=1.25"}}
        taken = []
        for count in COUNTS:
            taken.append(contest.measure(count, orchestration.SAMPLE))
            contest.compare(taken[-1], **goals.get(count, {}))
            if count == WHOLE_LOOP:
                contest.whole_loop_once(count)
        contest.freeze(taken[-1])
        for who in ("kopiatomic", "bare"):
            orchestration.growth(taken, who, results)


def _btrfs(rounds: int, folder: Path, state: Path, results: Results) -> None:
    with many.btrfs(folder, GROUPS) as made:
        contest = orchestration.Orchestration(made, folder, state, results, rounds)
        goals = {1000: {"loop": ">=4", "bare": "<=1.3"}}
        for count in COUNTS:
            contest.compare(contest.measure(count, count), **goals.get(count, {}))
        contest.profile(GROUPS[0])


def _scale(rounds: int, folder: Path, state: Path, results: Results) -> None:
    if not ground.zfs_is_here():
        scale.plan_from_facts(10_000, rounds, folder, results)
        scale.memory_with_mounts(10_000, folder, results)
        return
    with many.zfs(folder, GROUPS) as made:
        contest = orchestration.Orchestration(made, folder, state, results, rounds)
        heads = {count: made.first(count)[0] for count in (2, 1000)}
        scale.plan_beside_list(1000, rounds, folder, results)
        scale.memory(contest, heads[1000], 1000, results)
        scale.processes(contest, heads, folder, results)


def _hold(rounds: int, folder: Path, state: Path, results: Results) -> None:
    on = hold.on_zfs if ground.zfs_is_here() else hold.on_btrfs
    on(rounds, folder, state, results)


def _measure(part: str, rounds: int | None, out: Path) -> None:
    results = Results(part, _machine())
    with ground.scratch() as folder, tempfile.TemporaryDirectory(dir=ON_DISK) as on_disk:
        state = Path(on_disk)
        if part == "zfs":
            _zfs(rounds or 5, folder, state, results)
        elif part == "btrfs":
            _btrfs(rounds or 5, folder, state, results)
        elif part == "scale":
            _scale(rounds or 5, folder, state, results)
        elif part == "hold":
            _hold(rounds or 100, folder, state, results)
        elif part == "restore":
            restore.measure(rounds or 3, state, results)
        elif part == "start":
            start.measure(rounds or 15, results)
        else:
            engine.measure(rounds or 7, state, results)
    out.write_text(dump(results))


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench")
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure")
    measure.add_argument("part", choices=["zfs", "btrfs", "hold", "engine", "restore", "start", "scale"])
    measure.add_argument("--rounds", type=int)
    measure.add_argument("--out", type=Path, required=True)
    show = commands.add_parser("show")
    show.add_argument("--json", action="store_true")
    show.add_argument("--plot", type=Path)
    show.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command == "measure":
        _measure(options.part, options.rounds, options.out)
        return
    found = [load(file.read_text()) for file in options.files]
    if options.plot is not None:
        plot(found, options.plot)
    if options.json:
        print("[" + ",\n".join(map(dump, found)) + "]")
    else:
        table(found)
    if any(figure.reached is False for results in found for figure in results.figures):
        sys.exit("Not every goal was reached here.")


if __name__ == "__main__":
    main()
