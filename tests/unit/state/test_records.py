"""The state database: on the disk when a call returns, whatever has happened to it before."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.model.leftovers import Intent
from kopiatomic.model.snapshots import Instant, Sets, Snapshot, SnapshotSet
from kopiatomic.output.history import list_of
from kopiatomic.state import records, state_file
from kopiatomic.state.ownership import Mark
from kopiatomic.state.records import Records, RunRecord, Unfinished
from kopiatomic.state.state_file import NewerStateError, StateError

pytestmark = pytest.mark.usefixtures("lock_directory")

RUN = "20261122T101112Z-01234567"
YEAR = 366 * 86400.0


def run_record(run_id: str = RUN, started: float = 1000.0, root: str = "/kopia") -> RunRecord:
    return RunRecord(run_id, "0.1.0", "kopiatomic tank", root, started, None, None, None, None)


def ended_record(result: str, exit_code: int, document: dict[str, object] | None = None) -> RunRecord:
    return replace(run_record(), result=result, exit_code=exit_code, document=document or {})


def numbered(number: int) -> str:
    return f"20261122T101112Z-{number:08x}"


@pytest.fixture
def state(tmp_path: Path) -> Records:
    return Records(str(tmp_path / "state"))


# Runs


def test_a_run_is_on_record_from_its_begin_to_its_end(state: Records) -> None:
    state.begin(run_record(), keep=YEAR)
    (begun,) = state.history(10)
    assert (begun.id, begun.ended, begun.result, begun.document) == (RUN, None, None, None)
    state.end(ended_record("saved", 0, {"datasets": ["tank"]}))
    (ended,) = state.history(10)
    assert (ended.result, ended.exit_code, ended.document) == ("saved", 0, {"datasets": ["tank"]})
    assert ended.ended is not None


def test_a_dead_runs_end_is_said_once(state: Records) -> None:
    state.begin(run_record(), keep=YEAR)
    assert state.end_dead(RUN, records.NOT_RECORDED)
    assert not state.end_dead(RUN, records.INTERRUPTED)
    (run,) = state.history(10)
    # When it died is not known.
    assert (run.result, run.exit_code, run.ended) == ("end not recorded", None, None)


def test_a_run_whose_record_was_removed_gets_a_whole_one_at_its_end(state: Records) -> None:
    state.begin(run_record(), keep=YEAR)
    shutil.rmtree(state.directory)
    assert not state.end(ended_record("saved", 0))
    (run,) = state.history(10)
    assert (run.id, run.result, run.series) == (RUN, "saved", "/kopia")
    assert state.end(ended_record("saved", 0))


def test_intents_of_a_run_that_has_ended_are_told_from_those_of_one_that_has_not(state: Records) -> None:
    state.begin(run_record(), keep=YEAR)
    state.intend(RUN, [Intent("zfs", "tank", "tank@x")], "s")
    assert state.unfinished() == [Unfinished(Mark(RUN, ""), has_ended=False)]
    state.end(ended_record("failed", 1))
    assert state.unfinished() == [Unfinished(Mark(RUN, ""), has_ended=True)]


@pytest.mark.skipif(os.geteuid() != 0, reason="a read-only filesystem is mounted")
def test_what_only_reads_needs_no_writable_disk(state: Records) -> None:
    state.begin(run_record(), keep=YEAR)
    state.intend(RUN, [Intent("zfs", "tank", "tank@x")], "s")
    reading = "from kopiatomic.state.records import Records; import sys; r = Records(sys.argv[1]);"
    reading += "print(len(r.history(9)), len(r.intents(sys.argv[2])), len(r.unfinished()))"
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec "$2" -c "$3" "$1" "$4"'
    words = ["unshare", "-m", "sh", "-c", script, "sh", state.directory, sys.executable, reading, RUN]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.stdout == "1 1 1\n", ended.stderr


def test_a_file_that_a_full_disk_left_empty_is_no_obstacle_for_who_reads(state: Records) -> None:
    os.mkdir(state.directory, 0o700)
    Path(state.path).touch()
    assert state.history(5) == []


def test_the_end_that_a_run_has_said_itself_stays(state: Records) -> None:
    state.begin(run_record(), keep=YEAR)
    state.end(ended_record("failed", 1))
    assert not state.end_dead(RUN, records.INTERRUPTED)
    assert state.history(10)[0].result == "failed"


def test_the_history_is_in_the_order_of_the_runs_whatever_the_clock_said(state: Records) -> None:
    for number, started in enumerate((5000.0, 9e12, 10.0, 6000.0)):
        state.begin(run_record(numbered(number), started), keep=YEAR * 1e6)
    assert [run.id for run in state.history(10)] == [numbered(n) for n in (3, 2, 1, 0)]
    assert [run.id for run in state.history(2)] == [numbered(3), numbered(2)]


def test_a_run_is_found_by_the_beginning_of_its_id(state: Records) -> None:
    for number in (1, 2):
        state.begin(run_record(numbered(number)), keep=YEAR)
    assert [run.id for run in state.run(numbered(2))] == [numbered(2)]
    assert len(state.run("20261122")) == 2
    assert state.run("*1") == []


def test_old_runs_are_dropped_but_for_the_last_and_those_that_left_something(state: Records) -> None:
    for number in range(30):
        state.begin(run_record(numbered(number), started=number), keep=YEAR)
    state.intend(numbered(0), [Intent("zfs", "tank", "tank@x")], "s")
    state.begin(run_record(numbered(30), started=1e9), keep=YEAR)
    # That may be a clock which is ahead: only the next run says that it is not.
    assert len(state.history(100)) == 31
    state.begin(run_record(numbered(31), started=1e9), keep=YEAR)
    kept = {run.id for run in state.history(100)}
    # The newest at the time of dropping are the new run and the nine before it.
    assert kept == {numbered(0), *(numbered(n) for n in range(22, 32))}


def test_the_runs_of_a_schedule_are_known_by_it(state: Records) -> None:
    for number, schedule in enumerate(("home", "", "mail", "home")):
        state.begin(replace(run_record(numbered(number)), schedule=schedule), keep=YEAR)
    state.end(replace(run_record(numbered(3)), result="failed", exit_code=75, document={}, schedule="home"))
    assert [(run.id, run.exit_code) for run in state.scheduled("home")] == [(numbered(3), 75), (numbered(0), None)]
    assert [run.schedule for run in state.history(9)] == ["home", "mail", "", "home"]
    assert state.scheduled("nobody") == []


def test_the_last_of_a_schedule_that_was_saved_stays_on_record(state: Records) -> None:
    """Else nobody could say any more since when there is none."""
    for number, result in enumerate(("saved", "saved", "failed")):
        run = replace(run_record(numbered(number), started=number), schedule="home")
        state.begin(run, keep=YEAR)
        state.end(replace(run, result=result, exit_code=0, document={}))
    for number in range(3, 30):
        state.begin(run_record(numbered(number), started=1e9), keep=YEAR)
    assert [run.id for run in state.scheduled("home")] == [numbered(1)]


def test_what_a_run_intends_besides_stands_beside_the_rest_and_may_come_again(state: Records) -> None:
    state.begin(run_record(), keep=YEAR)
    first, more = Intent("zfs", "tank", "tank@x"), Intent("mount", "nullfs", os.fsdecode(b"/caf\xe9"), "/s0")
    state.intend(RUN, [first], "s")
    state.intend_also(RUN, [more])
    again = replace(more, origin=os.fsdecode(b"/s\xe9"))
    state.intend_also(RUN, [again])
    assert state.intents(RUN) == [again, first]
    state.forget(RUN, [more])
    assert state.intents(RUN) == [first]


def test_names_with_any_bytes_are_kept(state: Records) -> None:
    name = os.fsdecode(b"/caf\xe9/\xff new\nline")
    state.begin(run_record(root=name), keep=YEAR)
    state.intend(RUN, [Intent("directory", "", name)], "here")
    assert state.history(1)[0].series == name
    assert state.intents(RUN) == [Intent("directory", "", name)]
    state.end(replace(run_record(root=name), result="saved", exit_code=0, document={}))
    assert state.last_selection(name, "") == (RUN, "here")
    assert state.last_selection(name, RUN) is None


def test_only_a_run_that_saved_something_is_compared_with(state: Records) -> None:
    results = ["saved", "incomplete", "unclean", "failed", "interrupted", None]
    for number, result in enumerate(results):
        run = run_record(numbered(number))
        state.begin(run, keep=YEAR)
        state.intend(run.id, [], f"selection {number}")
        if result is not None:
            state.end(replace(run, result=result, exit_code=1, document={}))
    assert state.last_selection("/kopia", "") == (numbered(2), "selection 2")
    # What nothing is compared with any more may be long, and is not kept.
    assert state.last_selection("/kopia", numbered(2)) is None


# Intents


def test_intents_get_their_identities_in_the_filesystem_that_they_are_of(state: Records) -> None:
    """Btrfs's paths are the same in each filesystem."""
    path = ".kopiatomic/kopiatomic_x/0/snapshot"
    state.begin(run_record(), keep=YEAR)
    state.intend(RUN, [Intent("btrfs", "one", path, "o1"), Intent("btrfs", "two", path, "o2")], "s")
    instant = Instant(1, 2, 1, 2)
    sets = [
        SnapshotSet("btrfs", pool, (Snapshot("/a", path, number, f"uuid-{pool}"),), instant)
        for number, pool in enumerate(("one", "two"))
    ]
    state.made(RUN, Sets(tuple(sets)), {"a": 1})
    assert state.intents(RUN) == [
        Intent("btrfs", "one", path, "o1", "uuid-one", 0),
        Intent("btrfs", "two", path, "o2", "uuid-two", 1),
    ]
    assert state.history(1)[0].document == {"a": 1}


def steps_of_sqlite(records_: Records, count: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many instructions SQLite's machine runs, in hundreds, for a run that makes so many snapshots."""
    steps = 0
    connect = sqlite3.connect

    def counted() -> None:
        nonlocal steps
        steps += 1

    def connect_and_count(*args: Any, **more: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **more)
        connection.set_progress_handler(counted, 100)
        return connection

    names = [f"tank/d{number:05d}@kopiatomic_{RUN}" for number in range(count)]
    made = [Snapshot(name.partition("@")[0], name, 7, str(number)) for number, name in enumerate(names)]
    records_.begin(run_record(), keep=YEAR)
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect_and_count)
        records_.intend(RUN, [Intent("zfs", "tank", name) for name in names], "[]")
        records_.made(RUN, Sets((SnapshotSet("zfs", "tank", tuple(made), Instant(0, 0, 0, 0)),)), {})
        records_.forget(RUN)
    return steps


def test_what_it_takes_grows_no_faster_than_the_number_of_snapshots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (steps_of_sqlite(Records(str(tmp_path / str(n))), n, monkeypatch) for n in (500, 5000))
    assert few > 0
    assert many < 15 * few


def test_intents_of_a_second_try_replace_those_of_the_first(state: Records) -> None:
    state.begin(run_record(), keep=YEAR)
    state.intend(RUN, [Intent("zfs", "tank", "tank/a@x"), Intent("zfs", "tank", "tank/b@x")], "s")
    state.intend(RUN, [Intent("zfs", "tank", "tank/a@x")], "s")
    assert [intent.name for intent in state.intents(RUN)] == ["tank/a@x"]


def test_what_is_gone_goes_off_the_record_and_the_rest_stays(state: Records) -> None:
    kept, gone = Intent("zfs", "tank", "tank/a@x"), Intent("zfs", "tank", "tank/b@x")
    state.intend(RUN, [kept, gone], "s")
    state.forget(RUN, [gone])
    assert state.intents(RUN) == [kept]
    assert state.unfinished() == [Unfinished(Mark(RUN, ""), has_ended=False)]
    state.forget(RUN)
    assert state.unfinished() == []


def test_a_run_without_an_end_is_unfinished_also_without_intents(state: Records) -> None:
    state.begin(run_record(), keep=YEAR)
    assert state.unfinished() == [Unfinished(Mark(RUN, ""), has_ended=False)]
    state.end(ended_record("saved", 0))
    assert state.unfinished() == []


def test_what_was_said_is_on_the_disk_although_the_process_is_killed_at_once(tmp_path: Path) -> None:
    program = (
        "import os, sys; from kopiatomic.state.records import Records; from kopiatomic.model.leftovers import Intent;"
        "Records(sys.argv[1]).intend('r', [Intent('zfs', 'tank', f'tank/{n}@x') for n in range(1000)], 's');"
        "os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", program, tmp_path / "state"], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(Records(str(tmp_path / "state")).intents("r")) == 1000


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace shows what is flushed")
def test_an_intent_is_flushed_with_its_directory_in_one_transaction(tmp_path: Path) -> None:
    """Database, journal, and the directory that the journal's entry was in."""
    program = (
        "import sys; from kopiatomic.state.records import Records; from kopiatomic.model.leftovers import Intent;"
        "state = Records(sys.argv[1]); state.forget('other'); print('MARK', flush=True);"
        "state.intend('r', [Intent('zfs', 'tank', f'tank/{n}@x') for n in range(200)], 's')"
    )
    log = tmp_path / "log"
    strace = ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync,write", "-o", str(log)]
    argv = [*strace, sys.executable, "-c", program, str(tmp_path / "state")]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    after = log.read_text().partition("MARK")[2]
    flushed = [line for line in after.splitlines() if "sync(" in line]
    assert sum("state.db-journal>" in line for line in flushed) >= 1
    assert sum("state.db>" in line for line in flushed) == 1
    assert flushed[-1].rstrip().endswith("= 0")
    assert f"{tmp_path}/state>" in flushed[-1]


# What may be wrong with it


def test_the_database_is_roots_alone(state: Records) -> None:
    state.begin(run_record(), keep=YEAR)
    assert stat.S_IMODE(os.stat(state.directory).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(state.path).st_mode) == 0o600


def test_asking_makes_nothing(state: Records) -> None:
    assert state.history(5) == []
    assert state.unfinished() == []
    assert state.intents(RUN) == []
    assert not os.path.exists(state.directory)


def test_a_directory_that_others_can_write_to_is_refused(state: Records) -> None:
    os.mkdir(state.directory)
    os.chmod(state.directory, 0o777)
    with pytest.raises(StateError, match="not one that only root can write to") as caught:
        state.begin(run_record(), keep=YEAR)
    assert caught.value.kind == "state-directory"
    if os.geteuid() == 0:
        assert caught.value.hint == f"Look at it, then: chmod 700 {shlex.quote(state.directory)}"
        # A user's directory is not taken away, and not given to root with what is in it.
        os.chown(state.directory, 12345, -1)
        with pytest.raises(StateError) as caught:
            state.begin(run_record(), keep=YEAR)
        assert caught.value.hint == "Name a directory of root's with --state-dir."


@pytest.mark.skipif(os.geteuid() != 0, reason="root's records alone can be bent by others")
@pytest.mark.parametrize("exists", [True, False])
def test_a_directory_that_others_can_exchange_is_refused(tmp_path: Path, exists: bool) -> None:
    """Else a link in its place has root write its records where a user wants them."""
    theirs = tmp_path / "theirs"
    (theirs / "state").mkdir(parents=True, mode=0o700) if exists else theirs.mkdir()
    os.chown(theirs, 1234, 1234)
    state = Records(str(theirs / "state"))
    for call in (lambda: state.begin(run_record(), keep=YEAR), lambda: state.history(1)):
        with pytest.raises(StateError, match=r"can (change|move)") as caught:
            call()
        assert caught.value.kind == "state-directory"
    assert [path.name for path in theirs.iterdir()] == (["state"] if exists else [])


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="cannot be used: Not a directory"):
        Records(str(tmp_path / "file" / "state")).begin(run_record(), keep=YEAR)


@pytest.mark.parametrize("damage", ["garbage", "middle", "truncated"])
def test_a_damaged_database_is_set_aside_and_a_new_one_begun(damage: str, state: Records) -> None:
    for number in range(200):
        state.begin(run_record(numbered(number), root="/" + "x" * 500), keep=YEAR)
    path = Path(state.path)
    content = path.read_bytes()
    broken = {
        "garbage": b"no database at all" * 100,
        "middle": content[:4096] + os.urandom(len(content) - 8192) + content[-4096:],
        "truncated": content[: len(content) // 2],
    }[damage]
    path.write_bytes(broken)
    again = Records(state.directory)
    again.begin(run_record(), keep=YEAR)
    assert [run.id for run in again.history(5)] == [RUN]
    (aside,) = path.parent.glob("state.db.corrupt-*")
    assert aside.read_bytes() == broken
    (warning,) = again.warnings
    assert str(aside) in warning
    assert "recover" in warning


@pytest.mark.parametrize("damage", ["garbage", "document"])
def test_what_only_reads_says_that_a_database_is_damaged_and_leaves_it(damage: str, state: Records) -> None:
    """A new one, begun for a question, would answer it with "nothing"."""
    state.begin(run_record(), keep=YEAR)
    state.end(ended_record("saved", 0))
    if damage == "garbage":
        Path(state.path).write_bytes(b"no database at all" * 100)
    else:
        with sqlite3.connect(state.path) as database:
            database.execute("UPDATE run SET document = x'00'")
    before = Path(state.path).read_bytes()
    asks: tuple[Callable[[], object], ...] = (lambda: state.history(5), lambda: state.run(RUN))
    for ask in asks:
        with pytest.raises(StateError, match=r"damaged|cannot be read"):
            ask()
    assert Path(state.path).read_bytes() == before
    assert os.listdir(state.directory) == ["state.db"]


def test_to_ask_what_was_selected_last_writes_nothing(state: Records) -> None:
    """As ``plan --diff-last`` does: not even a damaged database is set aside."""
    assert state.last_selection("/kopia", "") is None
    assert not os.path.exists(state.directory)
    state.begin(run_record(), keep=YEAR)
    Path(state.path).write_bytes(b"damaged" * 2000)
    with pytest.raises(StateError, match="damaged"):
        state.last_selection("/kopia", "")
    assert os.listdir(state.directory) == ["state.db"]


def in_the_way(state: Records, what: str) -> None:
    """Put something into the place of the database that is none, and says nothing of whether there was one."""
    path = Path(state.path)
    if what == "a file for a directory":
        Path(state.directory).touch()
        return
    if what == "a directory that leads nowhere":
        Path(state.directory).symlink_to("not-mounted")
        return
    os.mkdir(state.directory, 0o700)
    if what == "a loop of links":
        path.symlink_to(path.name)
    elif what == "a link to nothing":
        path.symlink_to("/not-mounted/state.db")
    elif what == "a directory":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "anybody's directory":
        os.chmod(state.directory, 0o777)


@pytest.mark.parametrize(
    "what",
    [
        "a loop of links",
        "a link to nothing",
        "a directory",
        "a pipe",
        "a file for a directory",
        "a directory that leads nowhere",
        "anybody's directory",
    ],
)
def test_a_database_that_cannot_be_read_is_never_an_empty_one(what: str, state: Records) -> None:
    in_the_way(state, what)
    for ask in (
        lambda: state.history(5),
        lambda: state.run(RUN),
        lambda: state.scheduled("home"),
        lambda: state.intents(RUN),
        lambda: state.unfinished(mend=True),
    ):
        with pytest.raises(StateError, match="state d"):
            ask()


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ESTALE])
def test_a_refusal_to_look_for_the_database_is_passed_on(
    number: int, state: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake refuses, since no filesystem here gives these to root on request."""
    state.begin(run_record(), keep=YEAR)
    real = os.stat

    def refused(path: str, **more: Any) -> os.stat_result:
        if path == state.path:
            raise OSError(number, os.strerror(number))
        return real(path, **more)

    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(StateError, match=os.strerror(number)):
        state.history(5)


def test_how_long_a_run_took_is_what_it_says_whatever_the_clock_said(state: Records) -> None:
    """The clock was set back by a day between its beginning and its end."""
    state.begin(run_record(started=time.time() + 86400), keep=YEAR)
    state.end(replace(ended_record("saved", 0), took=61.5))
    (run,) = state.history(1)
    assert run.took == 61.5
    assert "1 min 01 s" in list_of([(run, "saved")])[1]


def test_a_database_of_a_newer_schema_is_refused_and_untouched(state: Records) -> None:
    state.begin(run_record(), keep=YEAR)
    with sqlite3.connect(state.path) as database:
        database.execute(f"PRAGMA user_version = {state_file.SCHEMA + 1}")
    before = Path(state.path).read_bytes()
    with pytest.raises(NewerStateError, match="a newer kopiatomic wrote") as caught:
        Records(state.directory).begin(run_record(numbered(1)), keep=YEAR)
    assert caught.value.kind == "state-newer"
    assert Path(state.path).read_bytes() == before


@pytest.mark.parametrize("version", range(state_file.SCHEMA))
def test_a_database_of_an_older_schema_is_brought_up_to_date(version: int, state: Records) -> None:
    os.mkdir(state.directory, 0o700)
    with sqlite3.connect(state.path) as database:
        for step in state_file._STEPS[:version]:
            database.execute(step)
        database.execute(f"PRAGMA user_version = {version}")
        if version:
            database.execute(
                "INSERT INTO run (id, version, command, root, started) VALUES (?, '0.0.9', 'kopiatomic old', ?, 5.0)",
                (numbered(9), b"/kopia"),
            )
    state.begin(run_record(), keep=YEAR)
    state.intend(RUN, [Intent("zfs", "tank", "tank@x")], "chosen")
    state.end(ended_record("saved", 0))
    assert state.last_selection("/kopia", "") == (RUN, "chosen")
    assert {run.id for run in state.history(5)} == {RUN, numbered(9)} - (set() if version else {numbered(9)})


def test_a_database_that_is_locked_for_a_moment_is_waited_for(state: Records) -> None:
    state.begin(run_record(), keep=YEAR)
    holder = (
        "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); time.sleep(0.7)"
    )
    with subprocess.Popen([sys.executable, "-c", holder, state.path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        began = time.monotonic()
        state.end(ended_record("saved", 0))
        assert time.monotonic() - began > 0.3
    assert state.history(1)[0].result == "saved"


def test_a_database_that_stays_locked_is_said(state: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "_BUSY_TIMEOUT", 0.2)
    state.begin(run_record(), keep=YEAR)
    blocker = sqlite3.connect(state.path, isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(StateError, match=r"is locked by another process, and was not free within 0\.2 s") as caught:
            state.end(ended_record("saved", 0))
    finally:
        blocker.close()
    assert caught.value.kind == "state-locked"


def _write_many(arguments: tuple[str, int]) -> None:
    directory, number = arguments
    for turn in range(15):
        state = Records(directory)
        run_id = f"20261122T101112Z-{number:04x}{turn:04x}"
        state.begin(run_record(run_id), keep=YEAR * 1e6)
        state.intend(run_id, [Intent("zfs", "tank", f"tank/{n}@x") for n in range(5)], "s")
        state.end(replace(run_record(run_id), result="saved", exit_code=0, document={}))


def test_several_runs_write_at_once(state: Records) -> None:
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(_write_many, [(state.directory, number) for number in range(4)])
    assert len(state.history(1000)) == 60
    assert len(state.unfinished()) == 60


def test_what_was_agreed_to_is_kept_for_a_series_and_a_repository(tmp_path: Path) -> None:
    kept = Records(str(tmp_path / "state"))
    kept.begin(run_record(), keep=YEAR)
    assert kept.agreed("in place: kopia /home", "repository") is None
    kept.agree("in place: kopia /home", "repository", answer=False)
    assert kept.agreed("in place: kopia /home", "repository") is False
    kept.agree("in place: kopia /home", "repository", answer=True)
    assert kept.agreed("in place: kopia /home", "repository") is True
    assert kept.agreed("in place: kopia /home", "another") is None
    assert kept.agreed("in place: kopia /srv", "repository") is None
