"""Backups with restic and Borg: the verdict is what their own words prove."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from kopiatomic.engines.numbers import OddNumberError
from kopiatomic.model.plan import Layout
from kopiatomic.system import fuse, linux
from tests.support.programs import command
from tests.support.small_disk import on_small_disk
from tests.unit.support.engine_bench import EngineBench
from tests.unit.support.kopia_fixtures import STARTED_NS, Driven, make_job

pytestmark = pytest.mark.in_part(8)

BEFORE, AFTER = 1_793_511_000 * 10**9, 1_793_514_600 * 10**9
"""2026-11-01 05:30 and 06:30 UTC: 01:30 in New York both times, as the clocks are put back at 06:00 UTC."""


def test_it_is_saved_and_proven(bench: EngineBench) -> None:
    done = bench.back_up()
    result = done.result
    assert (result.saved, result.complete, result.message) == (True, True, "")
    (kept,) = bench.repository.kept()
    assert kept.id == result.snapshot_id
    assert set(kept.paths) == {str(bench.one), str(bench.other)}
    assert kept.time == "2023-11-14T22:13:20"
    assert [(s.source, s.snapshot_id, s.complete) for s in result.sources] == [
        (source, kept.id, True) for source in bench.plan.sources
    ]
    assert result.statistics["files_total"] == 3
    assert result.statistics["files_hashed"] == 3
    assert result.statistics["errors"] == 0
    assert done.progress


@pytest.mark.parametrize("started_ns", [BEFORE, AFTER])
def test_the_time_is_the_instant_also_where_clocks_are_put_back(started_ns: int, bench: EngineBench) -> None:
    zone = "America/New_York"
    bench.environment["TZ"] = zone
    result = bench.back_up(started_ns=started_ns + 999_999_999).result
    assert result.complete, result.message
    expected = datetime.fromtimestamp(started_ns // 10**9, ZoneInfo("UTC"))
    assert [k.time for k in bench.repository.kept()] == [expected.strftime("%Y-%m-%dT%H:%M:%S")]
    assert [k.time for k in bench.repository.kept(zone)] == ["2026-11-01T01:30:00"]


def test_the_archives_name(borg_bench: EngineBench) -> None:
    host = borg_bench.repository("create", "--json", "::{hostname}", borg_bench.other).stdout
    import json

    name = json.loads(host)["archive"]["name"]
    assert borg_bench.back_up().result.snapshot_id == f"{name}-2023-11-14T22:13:20.123"
    found = borg_bench.engine(archive="all-{instant}-{user}").check(borg_bench.plan)
    result = Driven(found.backup(make_job(borg_bench.plan)), borg_bench).result
    assert result.snapshot_id == "all-2023-11-14T22:13:20.123-root"
    again = borg_bench.back_up().result
    assert not again.saved
    assert "already exists" in again.message


def test_unchanged_files_are_not_read_again(bench: EngineBench) -> None:
    time.sleep(0.05)
    (bench.other / "late").touch()
    first = bench.back_up(started_ns=STARTED_NS)
    second = bench.back_up(started_ns=STARTED_NS + 10**9)
    assert second.result.complete
    newest = 1 if bench.repository.engine == "borg" else 0
    assert second.result.statistics["files_cached"] == first.result.statistics["files_total"] - newest


def test_a_mount_that_the_users_exclusions_leave_out_is_missed(bench: EngineBench) -> None:
    result = bench.back_up(f"--exclude={bench.inner}").result
    assert (result.saved, result.complete) == (True, False)
    assert f"{bench.inner} (tank/inner) is not in what" in result.message


def test_a_mount_that_exclusions_empty_is_missed(bench: EngineBench) -> None:
    """Borg's own style fm: has an asterisk match slashes too."""
    pattern = f"{bench.inner}/*" if bench.repository.engine == "restic" else f"sh:{bench.inner}/*"
    result = bench.back_up("--exclude", pattern).result
    assert (result.saved, result.complete) == (True, False)
    assert f"{bench.inner} (tank/inner) is empty in what" in result.message


def test_names_of_all_kinds(bench: EngineBench) -> None:
    folder = Path(os.fsdecode(os.fsencode(bench.other) + b"/a \xff*[x]\\n\n'\xc3\xa4"))
    folder.mkdir()
    (folder / "file").touch()
    plan = bench.plan_of(bench.other, folder)
    result = bench.back_up(plan=plan).result
    assert result.complete, result.message


def test_what_the_engine_writes_and_what_is_of_the_system_is_left_out(bench: EngineBench) -> None:
    """In names with all that a pattern means something in."""
    odd = bench.other / "a*[b]?\\c"
    for folder in (odd, bench.other / "a*[b]?\\c2"):
        folder.mkdir()
        (folder / "inside").touch()
        (folder / ".hidden").touch()
    plan = replace(bench.plan_of(bench.other), writable=(str(odd),))
    result = bench.back_up(plan=plan).result
    assert result.complete, result.message
    target = bench.base / "restored"
    bench.repository.restore(str(result.snapshot_id), target)
    restored = target / str(bench.other).lstrip("/")
    assert sorted(p.name for p in restored.iterdir()) == [odd.name, f"{odd.name}2", "file"]
    assert list((restored / odd.name).iterdir()) == []
    assert len(list((restored / f"{odd.name}2").iterdir())) == 2


def test_the_pseudo_filesystems_are_left_out_where_the_root_is_a_source(bench: EngineBench) -> None:
    argv = " ".join(bench.engine().describe(bench.plan_of(Path("/"))))
    for top in ("/proc", "/sys", "/dev", "/run"):
        assert f"{top}/*" in argv
    assert "/proc" not in " ".join(bench.engine().describe(bench.plan))
    assert "/proc" not in " ".join(bench.engine().describe(bench.plan_of(Path("/"), layout=Layout.MERGED)))


def test_other_paths_than_the_sources_are_told(restic_bench: EngineBench) -> None:
    # As a wrapper in restic's place might add them: -o takes no paths.
    more = restic_bench.base / "home"
    restic_bench.fake(f'for word; do [ "$word" = backup ] && exec "$REAL" "$@" {more}; done; exec "$REAL" "$@"')
    result = restic_bench.back_up().result
    assert not result.complete
    assert "restic's snapshot is of" in result.message


def test_a_source_that_is_gone_is_missed(bench: EngineBench) -> None:
    """restic says so and exits 0, Borg warns."""
    plan = bench.plan
    found = bench.engine().check(plan)
    shutil.rmtree(bench.other)
    result = Driven(found.backup(make_job(plan)), bench).result
    assert not result.complete
    assert str(bench.other) in result.message


# Faults


@contextmanager
def unreadable(folder: Path) -> Iterator[None]:
    """A file ``bad`` in a filesystem of its own, whose content gives EIO."""

    def read(length: int, offset: int) -> bytes:
        raise OSError(errno.EIO, "no")

    folder.mkdir()
    fd = fuse.mount(str(folder), "kopiatomictest")
    server = multiprocessing.get_context("fork").Process(
        target=fuse.Server(fd, {"bad": fuse.File(100, read)}, STARTED_NS).serve
    )
    server.start()
    try:
        yield
    finally:
        linux.detach(str(folder))
        server.terminate()
        server.join()
        os.close(fd)


def test_a_file_that_cannot_be_read(bench: EngineBench) -> None:
    with unreadable(bench.other / "disk"):
        done = bench.back_up()
    result = done.result
    assert (result.saved, result.complete) == (True, False), result.message
    assert f"1 entry could not be saved: {bench.other}/disk/bad" in result.message
    assert result.problem_count == 1
    (problem,) = result.problems
    assert problem.path == str(bench.other / "disk" / "bad")
    assert "nput/output error" in problem.message
    assert bench.repository.kept()[0].id == result.snapshot_id


def test_a_path_that_is_too_long_for_restic(restic_bench: EngineBench) -> None:
    deep = os.open(restic_bench.other, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=deep)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    result = restic_bench.back_up().result
    assert (result.saved, result.complete) == (True, False)
    assert "could not be saved" in result.message
    command("rm", "-rf", restic_bench.other)


def noise(folder: Path) -> None:
    """What takes a while to save."""
    with (folder / "noise").open("wb") as file:
        for _ in range(60):
            file.write(os.urandom(1 << 20))


@pytest.mark.parametrize(("signum", "stopped"), [(signal.SIGKILL, False), (signal.SIGTERM, True)])
def test_an_engine_that_is_ended_has_saved_nothing(signum: int, stopped: bool, bench: EngineBench) -> None:
    noise(bench.other)

    def end(pid: int) -> bool:
        # As soon as it stores something: Borg has written its first segment of data, restic its first pack.
        data = bench.repository.path / "data"
        before = sum(1 for p in data.rglob("*") if p.is_file())
        while sum(1 for p in data.rglob("*") if p.is_file()) <= before:
            time.sleep(0.005)
        os.kill(pid, signum)
        return stopped

    result = bench.back_up(during=end).result
    assert (result.saved, result.complete) == (False, False)
    assert all(not source.saved for source in result.sources)
    if bench.repository.engine == "borg":
        bench.repository("break-lock")
    assert bench.repository.kept() == []


def test_no_lock_of_another_borg_is_taken_for_a_dead_ones(borg_bench: EngineBench) -> None:
    """In the engine's PID namespace every process of the host's looks dead."""
    lock = borg_bench.repository.path / "lock.exclusive"
    name = borg_bench.repository("with-lock", borg_bench.repository.path, "ls", lock).stdout.strip()
    found = borg_bench.engine().check(borg_bench.plan)
    lock.mkdir()
    (lock / name).touch()
    result = Driven(found.backup(make_job(borg_bench.plan)), borg_bench).result
    assert not result.saved
    assert "locked" in result.message
    # The control: one that goes by its own processes removes it.
    borg_bench.repository("info")


def test_a_checkpoint_that_borg_left_is_named(borg_bench: EngineBench) -> None:
    noise(borg_bench.other)

    def end(pid: int) -> bool:
        time.sleep(8)
        os.kill(pid, signal.SIGTERM)
        return True

    result = borg_bench.back_up("-C", "lzma,9", "-c", "1", during=end).result
    assert not result.saved
    assert str(result.snapshot_id).endswith(".checkpoint")
    assert f"it left {result.snapshot_id}" in result.message
    borg_bench.repository("info", f"::{result.snapshot_id}")


@pytest.mark.parametrize(
    "script", ["exit 0", "echo '{}'", "echo '{'", "head -c 9000000 /dev/zero; exit 0", '$REAL "$@"; exit 42']
)
def test_without_proof_nothing_is_saved(script: str, bench: EngineBench) -> None:
    """Stand-ins for a program that says nothing, something else, too much, or ends as nobody knows."""
    bench.fake(f'case "$1" in backup|create) {script};; *) exec $REAL "$@";; esac')
    result = bench.back_up().result
    assert (result.saved, result.complete) == (False, False)
    assert result.message


def test_a_snapshot_that_the_repository_does_not_show_is_none(bench: EngineBench) -> None:
    """A stand-in that tells of it and takes it away."""
    drop = {"restic": "$REAL forget -q latest > /dev/null", "borg": "$REAL delete --glob-archives '*' > /dev/null"}
    bench.fake(f'case "$1" in backup|create) $REAL "$@"; {drop[bench.repository.engine]};; *) exec $REAL "$@";; esac')
    result = bench.back_up().result
    assert not result.saved
    assert "its repository did not show" in result.message


def test_a_list_that_lacks_a_mount_is_incomplete(bench: EngineBench) -> None:
    """A stand-in that keeps silent of it."""
    script = f'"$REAL" "$@" 2>&1 >$0.out | grep -v {bench.inner} >&2; grep -v {bench.inner} $0.out'
    bench.fake(f'case "$1" in ls|create) {script};; *) exec $REAL "$@";; esac')
    if bench.repository.engine == "borg":
        bench.fake(
            f'case "$1" in create) $REAL "$@" 2>$0.err; grep -v {bench.inner} $0.err >&2;; *) exec $REAL "$@";; esac'
        )
    result = bench.back_up().result
    assert (result.saved, result.complete) == (True, False)
    assert "(tank/inner) is not in what" in result.message


def test_a_full_repository_is_the_cause_in_one_line(bench: EngineBench) -> None:
    (bench.one / "large").write_bytes(os.urandom(8 << 20))
    with on_small_disk(bench.repository.path):
        result = bench.back_up().result
    assert (result.saved, result.complete) == (False, False)
    name = bench.repository.engine
    assert re.match(
        rf"{name} failed \(exit status \d+\): no space is left \(.*[Nn]o space left on device\)", result.message
    )
    assert result.message.lower().count("no space left on device") == 1


def test_a_count_of_another_kind_is_not_taken_for_none(bench: EngineBench) -> None:
    """A stand-in that counts in words."""
    keys = {"restic": "total_bytes_processed", "borg": "original_size"}
    change = f's/"{keys[bench.repository.engine]}": *[0-9]*/"{keys[bench.repository.engine]}":"many"/'
    bench.fake(f'case "$1" in backup|create) $REAL "$@" | sed \'{change}\';; *) exec $REAL "$@";; esac')
    with pytest.raises(OddNumberError, match="is 'many'"):
        bench.back_up()


def test_endless_output_takes_no_memory(bench: EngineBench) -> None:
    import tracemalloc

    plan = bench.plan
    backup = bench.engine().check(plan).backup(make_job(plan))
    lines = {
        "restic": b'{"message_type":"error","error":{"message":"no"},"during":"x","item":"/a"}\n',
        "borg": b'{"type":"log_message","levelname":"WARNING","message":"/a: no"}\n'
        b'{"type":"file_status","status":"E","path":"/a"}\n',
    }[bench.repository.engine]
    tracemalloc.start()
    for _ in range(300):
        backup.feed("stderr", lines * 50)
        backup.feed("stderr", b"x" * 70_000)
        backup.feed("stdout", b"y" * 70_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20
