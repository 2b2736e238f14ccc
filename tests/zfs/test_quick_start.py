"""The quick start as the README has it, with the installed commands."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.filesystems import Pool
from tests.support.programs import IN_QEMU, SOURCE, Completed, Kopia, command
from tests.zfs.runs import Runner
from tests.zfs.tracing import tracing

pytestmark = [pytest.mark.core, pytest.mark.in_part(2)]

MANY = 10 if IN_QEMU else 40


def test_quick_start(pool: Pool, kopia: Kopia, run: Runner, tmp_path: Path) -> None:
    usr = tmp_path / "usr"
    # tank and tank/usr hold no files of their own, as on most systems.
    command("zfs", "unmount", pool.name)
    command("zfs", "set", "canmount=off", pool.name)
    pool.dataset("usr", mountpoint=str(usr), canmount="off")
    names = ["home", "src", *(f"more{number}" for number in range(MANY - 2))]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: pool.dataset(f"usr/{name}"), names))
    for name in names:
        (usr / name / "file").write_text(name)
    environment = {
        **os.environ,
        "HOME": str(tmp_path / "root"),
        "KOPIA_CHECK_FOR_UPDATES": "false",
        "KOPIA_PASSWORD": kopia.environment["KOPIA_PASSWORD"],
    }
    storage = {"storage": {"type": "filesystem", "config": {"path": str(kopia.repository)}}}
    (tmp_path / "repository.config").write_text(json.dumps(storage))

    def type_in(*words: str) -> Completed:
        return command(*words, env=environment, cwd=tmp_path, timeout=120)

    type_in("kopia", "repository", "connect", "from-config", "--file=repository.config")
    started = []
    with tracing(tmp_path / "tracing") as trace:
        trace.watch(os.getpid())
        for words in ([f"{pool.name}/usr/home", f"{pool.name}/usr/src"], ["-r", pool.name], ["-a"]):
            known = len(trace.started())
            ended = type_in("kopiatomic", *words)
            started.append(trace.started()[known:])
            assert "at one instant" in ended.stdout
            assert "NOT" not in ended.stdout
            assert f"/kopia{usr}/home" in ended.stdout
            assert run.left(pool) == []
        trace.watch(None)

    # More datasets need no more programs. -r and -a look for new datasets once more, with zfs and zpool; maintenance of the
    # new repository is due in the first run alone.
    kopias = [sum(program.endswith("/kopia") for program in programs) for programs in started]
    print("programs started:", [len(programs) for programs in started], "of them kopia:", kopias)
    assert 0 < kopias[2] == kopias[1] <= kopias[0]
    assert len(started[2]) == len(started[1]) <= len(started[0]) + 2

    # Two of each backup's files are the metadata record, and one more for each dataset.
    backups: list[dict[str, Any]] = json.loads(type_in("kopia", "snapshot", "list", "/kopia", "--all", "--json").stdout)
    assert [backup["source"]["path"] for backup in backups] == ["/kopia"] * 3
    assert [backup["rootEntry"]["summ"]["files"] for backup in backups] == [2 * count + 2 for count in (2, MANY, MANY)]
    type_in("kopia", "snapshot", "restore", backups[-1]["id"], "restored")
    for name in names:
        assert (tmp_path / f"restored{usr}" / name / "file").read_text() == name


def test_profiles_as_the_readme_has_them(pool: Pool, kopia: Kopia, run: Runner) -> None:
    """Its commands, but those of a timer: tests/packages/test_profiles.py has these."""
    readme = (SOURCE.parent / "README.md").read_text()
    block = readme.partition("## Profiles\n")[2].partition("```\n")[2].partition("```")[0]
    lines = [line.partition("  #")[0].removeprefix("sudo ").replace("tank", pool.name) for line in block.splitlines()]
    assert [line.split()[1] for line in lines] == ["profile", "profile", "run", "schedule", "profile", "engine"]
    pool.dataset("home")
    (pool.mountpoint / "home" / "letter").write_text("Dear Ann,\n")
    said = {}
    try:
        for line in lines:
            if " schedule " not in line:
                said[line] = command(*shlex.split(line), env={**os.environ, **kopia.environment}, timeout=120).stdout
    finally:
        shutil.rmtree("/etc/kopiatomic")
    wrote, checked, _, listed, snapshots = said.values()
    assert wrote.startswith("Wrote /etc/kopiatomic/home.toml.")
    assert checked.startswith(f"home: {pool.name}/home; kopia saves to filesystem ")
    assert [line.split()[:2] for line in listed.splitlines()[1:]] == [["home", "kopia"]]
    assert "saved" in listed
    assert ":/kopia\n" in snapshots
    assert run.left(pool) == []


def test_cron_has_no_sbin_on_its_path(pool: Pool) -> None:
    ended = command(sys.executable, "-m", "kopiatomic", "-n", pool.name, env={**os.environ, "PATH": "/usr/bin:/bin"})
    assert f"  {pool.name}" in ended.stdout
