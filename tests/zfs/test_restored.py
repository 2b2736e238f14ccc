"""What kopia gives back is what was frozen, byte for byte and name for name; what has not changed is not read again."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.filesystems import Pool
from tests.support.programs import Kopia
from tests.zfs.runs import Runner

NAMES = (
    "plain",
    "with space",
    " leading and trailing ",
    "new\nline",
    "tab\there",
    "-leading-dash",
    "--help",
    "back\\slash",
    "quote'\"`$(id)",
    "Ünïcödé-日本語",
    "e\u0301",
    "\N{ROCKET}",
    "n" * 255,
    "*?[a]",
    ".hidden",
)
MODES = (0o644, 0o600, 0o4755, 0o2755, 0o1777, 0o6711, 0o000, 0o444)
Entry = tuple[str, int, int, int, int, bytes]


@pytest.fixture(scope="module")
def pool(tank: Pool) -> Pool:
    """Three datasets full of names, modes, owners, times and links."""
    for dataset in ("home", "home/ann", "src"):
        tank.dataset(dataset)
        folder = tank.path(dataset)
        for number, name in enumerate(NAMES):
            file = folder / name
            file.write_text(f"{dataset} {name} {number}")
            os.chown(file, 1000 + number, 2000 + number)
            file.chmod(MODES[number % len(MODES)])
        inner = folder / "folder" / NAMES[3] / NAMES[9]
        inner.mkdir(parents=True)
        (inner / "file").write_bytes(os.urandom(100_000))
        (folder / "empty").mkdir()
        (folder / "empty").chmod(0o1770)
        (folder / "link").symlink_to("../no where/\n")
        (folder / "link to folder").symlink_to("folder")
        for path in below(folder):
            os.utime(path, ns=(1, 1_600_000_000_123_456_789 - len(path.name)), follow_symlinks=False)
    return tank


def below(folder: Path) -> Iterator[Path]:
    """All that lies in one dataset's folder, what is deepest first."""
    device = folder.stat().st_dev
    for here, folders, files in os.walk(folder, topdown=False):
        if os.stat(here).st_dev == device:
            yield from (Path(here, name) for name in (*folders, *files) if not os.path.ismount(Path(here, name)))


def entries(root: Path) -> dict[str, Entry]:
    """Everything below a folder: type and mode, owners, time of change (ns), content.

    Of folders that are not empty kopia restores no times; those of links it rounds to microseconds.
    """
    found = {}
    for here, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(here, name)
            status = path.lstat()
            content = b""
            time = status.st_mtime_ns
            if stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.fsencode(path.readlink())
                time = round(time, -3)
            elif os.listdir(path):
                time = 0
            found[str(path.relative_to(root))] = (name, status.st_mode, status.st_uid, status.st_gid, time, content)
    return found


def test_restored_equals_frozen_and_a_second_run_reads_nothing(
    pool: Pool, run: Runner, kopia: Kopia, tmp_path: Path
) -> None:
    names = [f"{pool.name}/{name}" for name in ("home", "home/ann", "src")]
    before = entries(pool.mountpoint)
    ended, first = run.json("--no-maintenance", *names, env=kopia.environment)
    assert ended.returncode == 0, ended
    assert (
        first["engine"]["statistics"]["files_hashed"] == first["engine"]["statistics"]["files_total"] > 3 * len(NAMES)
    )

    ended, second = run.json("--no-maintenance", *names, env=kopia.environment)
    assert ended.returncode == 0, ended
    # The directories above the datasets are as the host has them: where their times have changed, so has the record.
    assert second["engine"]["statistics"]["files_hashed"] <= 2
    # kopia counts links among the files that it knew already.
    links = first["engine"]["statistics"]["symlinks_total"]
    read = second["engine"]["statistics"]["files_hashed"]
    assert second["engine"]["statistics"]["files_cached"] == first["engine"]["statistics"]["files_total"] + links - read

    restored = tmp_path / "restored"
    kopia("snapshot", "restore", first["engine"]["snapshot_id"], restored)
    assert entries(restored / str(pool.mountpoint).lstrip("/")) == before
    assert entries(pool.mountpoint) == before
    # The folders above are made up for the view, in the likeness of the real ones.
    for real in pool.mountpoint.parents[:-1]:
        status, shown = real.stat(), (restored / str(real).lstrip("/")).stat()
        assert (shown.st_mode, shown.st_uid, shown.st_gid) == (status.st_mode, status.st_uid, status.st_gid), real
    assert run.left(pool) == []
