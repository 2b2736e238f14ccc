"""A backup with a real kopia: the command, and what its result is judged to be."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest

from kopiatomic.engines import program
from kopiatomic.engines.kopia import listing
from kopiatomic.engines.names import OddNames, find_breaking
from kopiatomic.errors import UsageError
from kopiatomic.model.engine import EngineEnd
from tests.unit.support.kopia_fixtures import PASSWORD, Bench, back_up, make_job, taken

pytestmark = pytest.mark.in_part(9)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.connect()
    return bench


def in_place_of_create(script: str) -> str:
    """A fake's script: ``script`` runs in place of ``snapshot create``, everything else is the real kopia."""
    return f'[ "$1 $2" = "snapshot create" ] || exec "$KOPIA" "$@"\n{script}'


def test_a_whole_backup(bench: Bench) -> None:
    bench.tree("usr/home/a", "usr/home/b", "usr/src/deep/c", "usr/src/empty/")
    done = back_up(bench, bench.plan("/usr/home", "/usr/src"))
    result = done.result
    assert (result.saved, result.complete, result.message) == (True, True, "")
    assert (result.problems, result.problem_count) == ((), 0)
    (snapshot,) = bench.ask("snapshot", "list", str(bench.view))
    assert snapshot["id"] == result.snapshot_id
    assert snapshot["rootEntry"]["obj"] == result.root_object
    assert snapshot["startTime"] == "2023-11-14T22:13:20.123456Z"
    assert snapshot["tags"] == {"tag:kopiatomic-run": "20231114T221320Z-00c0ffee", "tag:kopiatomic-atomic": "yes"}
    assert result.statistics["files_total"] == 3
    assert result.statistics["files_hashed"] == 3
    assert result.statistics["files_cached"] == 0
    assert result.statistics["bytes_total"] == len("usr/home/a" + "usr/home/b" + "usr/src/deep/c")
    assert done.progress
    assert done.progress[-1].files == 3
    assert any(line.startswith("Snapshotting ") for line in done.lines)


def test_a_second_run_reads_no_file_again(bench: Bench) -> None:
    bench.tree(*(f"home/f{i}" for i in range(20)))
    back_up(bench, bench.plan("/home"))
    statistics = back_up(bench, bench.plan("/home")).result.statistics
    assert (statistics["files_hashed"], statistics["files_cached"]) == (0, 20)


def test_two_pools_are_tagged_as_not_atomic(bench: Bench) -> None:
    repository = bench.engine().check(bench.plan("/a"))
    argv = list(repository.backup(make_job(bench.plan("/a"), pools=("one", "two"))).command().argv)
    assert "kopiatomic-atomic:no" in argv


def test_no_password_is_in_an_argv(bench: Bench) -> None:
    Path(f"{bench.config}.kopia-password").unlink()
    bench.tree("a/f")
    done = back_up(bench, bench.plan("/a"), "--password", PASSWORD)
    assert done.result.complete
    assert PASSWORD not in " ".join(done.argv)
    assert done.environment["KOPIA_PASSWORD"] == PASSWORD


@pytest.mark.parametrize(
    "options",
    [
        ["--json"],
        ["--json-indent"],
        ["--no-progress"],
        ["--progress", "--progress-update-interval=1s", "--no-json-verbose"],
        ["--auto-maintenance"],
        ["--no-auto-maintenance"],
        ["--tags", "mine:x", "--description", "a b", "--parallel=2"],
        ["--start-time=2020-01-01 00:00:00 UTC"],
        ["--config-file", "repository.config"],
        ["--log-level=debug"],
    ],
    ids=" ".join,
)
def test_options_of_the_users_go_with_ours(bench: Bench, options: list[str]) -> None:
    bench.tree("a/f")
    done = back_up(bench, bench.plan("/a"), *options)
    assert (done.result.complete, done.result.message) == (True, "")


@pytest.mark.parametrize(
    ("places", "reads", "options", "expected"),
    [
        (["/a"], None, [], [f"--parallel={program.processors() + 1}"]),
        (["/usr/home", "/usr/home/ann", "/usr/src/x"], None, [], [f"--parallel={program.processors() + 1}"]),
        (["/a/b/c"], 5, [], ["--parallel=8"]),
        (["/a", "/b"], 5, [], []),
        (["/", "/a"], 5, [], []),
        (["/a"], None, ["--parallel=2"], ["--parallel=2"]),
        (["/a"], None, ["--parallel", "2"], ["--parallel"]),
    ],
)
def test_levels_that_hold_nothing_but_a_folder_take_no_worker_away(
    bench: Bench, places: list[str], reads: int | None, options: list[str], expected: list[str]
) -> None:
    if reads is not None:
        bench.kopia("policy", "set", "--global", f"--max-parallel-file-reads={reads}")
    bench.tree(*(f"{place}/f".strip("/") for place in places))
    done = back_up(bench, bench.plan(*places), *options)
    assert done.result.complete
    assert [word for word in done.argv if word.startswith("--parallel")] == expected
    described = bench.engine(*options).describe(bench.plan(*places))
    assert ("--parallel=WORKERS" in described) == (bool(expected) and not options)


def test_a_source_of_the_users_is_the_one_that_is_judged(bench: Bench) -> None:
    """The option came with kopia 0.14.0; an older one says that it does not know it."""
    bench.tree("a/f")
    options = ("--override-source", "me@there:/data")
    if "--override-source" in bench.kopia("snapshot", "create", "--help"):
        assert back_up(bench, bench.plan("/a"), *options).result.complete
    else:
        with pytest.raises(UsageError, match="unknown long flag"):
            bench.engine(*options).check(bench.plan("/a"))


def test_files_that_could_not_be_saved_are_named_and_counted(bench: Bench) -> None:
    """Pipes, made an error by policy: files that cannot be read would need another user than root."""
    bench.kopia("policy", "set", str(bench.view), "--ignore-unknown-types=false")
    bench.tree("home/good")
    for i in range(25):
        os.mkfifo(bench.view / "home" / f"p{i:02}")
    os.mkfifo(bench.view / "home" / "a\x1b[31m\nb")
    done = back_up(bench, bench.plan("/home"))
    result = done.result
    # The exit status says nothing dependable: with --json it is 0 in kopia 0.13.0, and 1 in 0.22.3.
    assert (result.saved, result.complete) == (True, False)
    first = ", ".join(f"{bench.view}/home/{name}" for name in ("a\\x1b[31m\\x0ab", "p00", "p01"))
    assert result.message == f"26 entries could not be saved: {first} and 23 more"
    assert result.problem_count == 26
    assert len(result.problems) == 20
    assert result.problems[0].path == f"{bench.view}/home/a\\x1b[31m\\x0ab"
    assert result.problems[1].path == f"{bench.view}/home/p00"
    assert "unsupported" in result.problems[0].message
    assert all(line.isprintable() for line in done.lines)
    assert result.snapshot_id


def test_errors_that_a_policy_ignores_are_no_whole_backup(bench: Bench) -> None:
    """A fake, in so far as the ignored error is put into the result of the real kopia: root can read everything."""
    bench.tree("home/good")
    bench.fake(
        in_place_of_create(
            '"$KOPIA" "$@" > "$HOME/o"\n'
            'sed \'s/"numFailed":0}},"tags/"numFailed":0,"numIgnoredErrors":2,"errors":[{"path":"x","error":"no"}]}},"tags/\' '
            '"$HOME/o"'
        )
    )
    result = back_up(bench, bench.plan("/home")).result
    assert (result.saved, result.complete) == (True, False)
    assert f"2 entries could not be saved: {bench.view}/x and 1 more, which kopia's policy ignores" in result.message
    assert result.problem_count == 2
    assert [p.path for p in result.problems] == [f"{bench.view}/x"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_kopia_that_is_asked_to_stop_is_not_a_backup(bench: Bench, number: signal.Signals) -> None:
    """It ends with status 0 then; before 0.16.0 SIGTERM ended it at once."""
    with (bench.view / "sparse").open("wb") as file:
        file.truncate(1 << 42)

    def stop(pid: int) -> bool:
        time.sleep(2)
        os.kill(pid, number)
        return number == signal.SIGTERM

    done = back_up(bench, bench.plan("/"), during=stop)
    assert (done.result.saved, done.result.complete) == (False, False)
    if done.end.status == 0:
        assert "only a part" in done.result.message
        assert ("was stopped" if number == signal.SIGTERM else "canceled") in done.result.message
    else:
        assert "killed by SIGTERM (15), stopped by this run" in done.result.message


def test_kopia_that_is_killed_is_not_a_backup(bench: Bench) -> None:
    with (bench.view / "sparse").open("wb") as file:
        file.truncate(1 << 42)

    def kill(pid: int) -> bool:
        time.sleep(1)
        os.kill(pid, signal.SIGKILL)
        return False

    result = back_up(bench, bench.plan("/"), during=kill).result
    assert not result.saved
    assert "killed by SIGKILL (9)" in result.message


def test_an_upload_limit_that_was_reached_is_not_a_backup(bench: Bench) -> None:
    for i in range(4):
        (bench.view / f"f{i}").write_bytes(os.urandom(3 << 20))
    result = back_up(bench, bench.plan("/"), "--upload-limit-mb=1", "--parallel=1").result
    assert not result.saved
    assert "only a part" in result.message


def test_nothing_changed_under_the_policy_ignore_identical(bench: Bench) -> None:
    bench.kopia("policy", "set", "--global", "--ignore-identical-snapshots=true")
    bench.tree("home/f")
    first = back_up(bench, bench.plan("/home")).result
    second = back_up(bench, bench.plan("/home")).result
    assert (second.saved, second.complete, second.message) == (True, True, "")
    assert second.snapshot_id == first.snapshot_id
    assert second.statistics["unchanged"] == 1
    assert "unchanged" not in first.statistics
    assert len(bench.ask("snapshot", "list", str(bench.view))) == 1


def test_nothing_changed_since_a_backup_with_failures_is_no_whole_backup(bench: Bench) -> None:
    """kopia then exits with status 0 and says nothing on its standard output, in spite of the failures."""
    bench.kopia("policy", "set", str(bench.view), "--ignore-identical-snapshots=true", "--ignore-unknown-types=false")
    bench.tree("home/f")
    os.mkfifo(bench.view / "home" / "p")
    back_up(bench, bench.plan("/home"))
    done = back_up(bench, bench.plan("/home"))
    assert done.end.status == 0
    assert (done.result.saved, done.result.complete) == (True, False)
    assert done.result.problem_count == 1


@pytest.mark.parametrize("policy", ["true", "false"])
def test_silence_of_a_kopia_that_never_saved_anything_is_not_a_backup(bench: Bench, policy: str) -> None:
    """A fake that says nothing and succeeds."""
    bench.kopia("policy", "set", "--global", f"--ignore-identical-snapshots={policy}")
    bench.fake(in_place_of_create("exit 0"))
    result = back_up(bench, bench.plan("/home")).result
    assert not result.saved
    assert "without a result" in result.message


def test_silence_without_the_policy_is_not_a_backup_though_there_are_older_ones(bench: Bench) -> None:
    """A fake that says nothing and succeeds."""
    bench.tree("home/f")
    back_up(bench, bench.plan("/home"))
    bench.fake(in_place_of_create("exit 0"))
    assert not back_up(bench, bench.plan("/home")).result.saved


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo garbage", "garbage"),
        ("echo '{'", "something else than its result"),
        ('echo \'{"id":"x"}\'', "something else than its result"),
        ("exec >&-; exit 0", "without a result"),
        ("echo 'the disk is on fire' >&2; exit 1", "exit status 1): the disk is on fire"),
        ("exit 3", "exit status 3): it gave no reason"),
        ("kill -SEGV $$", "killed by SIGSEGV (11)"),
        ('head -c 30000000 /dev/zero | tr "\\0" x', "something else than its result"),
        ('"$KOPIA" "$@" | head -c 100', "something else than its result"),
    ],
)
def test_faults_that_are_no_backup(bench: Bench, script: str, words: str) -> None:
    """A fake in place of ``snapshot create``."""
    bench.tree("home/f")
    bench.fake(in_place_of_create(script))
    result = back_up(bench, bench.plan("/home")).result
    assert (result.saved, result.complete) == (False, False)
    assert words in result.message
    assert len(result.message) < 300


def test_the_result_of_another_source_is_not_a_backup_of_the_view(bench: Bench) -> None:
    """A fake that backs up another folder."""
    bench.tree("home/f")
    bench.fake(in_place_of_create(f'exec "$KOPIA" snapshot create --json --no-progress {shlex.quote(str(bench.home))}'))
    result = back_up(bench, bench.plan("/home")).result
    assert not result.saved
    assert f"is of {bench.home} and not of {bench.view}" in result.message


def test_a_result_that_is_printed_and_not_stored_is_not_a_backup(bench: Bench) -> None:
    """A fake: kopia prints its result before it writes out its last data, and can fail in between."""
    bench.tree("home/f")
    bench.fake(
        in_place_of_create(
            '"$KOPIA" "$@" | sed s/\'"id":"[0-9a-f]*\'/\'"id":"00\'/; echo "flush error: disk full" >&2; exit 1'
        )
    )
    result = back_up(bench, bench.plan("/home")).result
    assert not result.saved
    assert "flush error: disk full" in result.message


def test_a_failure_after_the_snapshot_was_stored_is_said(bench: Bench) -> None:
    """A fake that fails after the real kopia has done its work."""
    bench.tree("home/f")
    bench.fake(in_place_of_create('"$KOPIA" "$@"; echo "late trouble" >&2; exit 1'))
    result = back_up(bench, bench.plan("/home")).result
    assert (result.saved, result.complete) == (True, False)
    assert "late trouble" in result.message
    assert result.snapshot_id


@pytest.mark.parametrize("ignore", ["", "x.kopia-entry/", "*.kopia-entry"])
def test_a_folder_that_kopia_takes_for_its_placeholder_fails_with_its_reason_and_the_folder(
    ignore: str, bench: Bench
) -> None:
    """No rule that ignores the folder itself prevents it."""
    bench.tree("home/sub/x.kopia-entry/f")
    if ignore:
        bench.kopia("policy", "set", str(bench.view), f"--add-ignore={ignore}")
    done = back_up(bench, bench.plan("/home"))
    assert not done.result.saved
    assert "upload error" in done.result.message
    folder = f"{bench.view}/home/sub"
    odd = find_breaking(None, done.backup.command().directories, done.backup.command().breaks_at, lambda: True)
    assert odd.breaking == (f"{folder}/x.kopia-entry",)
    message = done.backup.judge(done.end, odd).message
    assert f"it fails at {folder}/x.kopia-entry, since it takes each name that ends with .kopia-entry" in message
    assert f"or have kopia ignore {folder} (" in message


def test_what_is_advised_for_such_a_folder_works(bench: Bench) -> None:
    bench.tree("home/sub/x.kopia-entry/f", "home/g")
    bench.kopia("policy", "set", str(bench.view), "--add-ignore=/home/sub/")
    assert back_up(bench, bench.plan("/home")).result.saved


# What kopia's own listing shows


def test_each_mount_must_be_in_the_listing(bench: Bench) -> None:
    bench.kopia("policy", "set", str(bench.view), "--add-ignore=/usr/home", "--add-ignore=/srv")
    bench.tree("usr/home/f", "usr/src/f", "srv/deep/f")
    result = back_up(bench, bench.plan("/usr/home", "/usr/src", "/srv/deep")).result
    assert (result.saved, result.complete) == (True, False)
    assert "/usr/home (tank/usr/home) is not in kopia's snapshot" in result.message
    assert "/srv/deep (tank/srv/deep) is not in kopia's snapshot" in result.message
    assert "/usr/src" not in result.message


@pytest.mark.parametrize("marker", [b"Signature: 8a477f597d28d172789f06886806bc55", None])
def test_a_filled_dataset_that_is_empty_in_the_listing_is_named(bench: Bench, marker: bytes | None) -> None:
    bench.tree("home/f", "empty/")
    if marker:
        (bench.view / "home" / "CACHEDIR.TAG").write_bytes(marker)
    else:
        bench.kopia("policy", "set", str(bench.view), "--add-ignore=/home/f")
    result = back_up(bench, bench.plan("/home", "/empty"), filled=["/home"]).result
    assert (result.saved, result.complete) == (True, False)
    assert "/home (tank/home) is empty in kopia's snapshot" in result.message
    assert "/empty" not in result.message


@pytest.mark.parametrize("content", ["folder/", "link"])
def test_folders_and_links_alone_are_content(bench: Bench, content: str) -> None:
    bench.tree("home/")
    if content == "link":
        (bench.view / "home" / "link").symlink_to("nowhere")
    else:
        bench.tree("home/folder/")
    assert back_up(bench, bench.plan("/home")).result.complete


def test_the_root_itself_can_be_a_mount(bench: Bench) -> None:
    bench.tree("a/f")
    assert back_up(bench, bench.plan(taken("/", name="tank"), "/a")).result.complete
    bench.kopia("policy", "set", str(bench.view), "--add-ignore=*")
    result = back_up(bench, bench.plan(taken("/", name="tank"))).result
    assert not result.complete
    assert "/ (tank) is empty" in result.message


def test_odd_names_are_found_in_the_listing(bench: Bench) -> None:
    places = ["/a b/-x", "/a b/-x/new\nline", "/%41/ä€\u202e", "/'\"\\/$HOME", "/..a/.hidden", "/" + "n" * 255]
    bench.tree(*(f"{place[1:]}/f" for place in places))
    result = back_up(bench, bench.plan(*places)).result
    assert (result.complete, result.message) == (True, "")
    bench.kopia("policy", "set", str(bench.view), "--add-ignore=new?line")
    result = back_up(bench, bench.plan(*places)).result
    assert "/a b/-x/new\\x0aline" in result.message
    assert result.message.isprintable()


def test_a_file_where_a_mount_should_be_is_no_mount(bench: Bench) -> None:
    bench.tree("a")
    assert "/a (tank/a) is not in" in back_up(bench, bench.plan("/a")).result.message


@pytest.mark.parametrize("processors", [1, 2, 8])
def test_listings_cost_one_process_for_each_parent(
    processors: int, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And maintenance one, beside them if there are processors for it. A fake counts: it is the real kopia else."""
    monkeypatch.setattr(program, "processors", lambda: processors)
    bench.kopia("maintenance", "set", "--owner=nobody@nowhere")
    bench.fake('echo "$*" >> "$HOME/calls"; exec "$KOPIA" "$@"')
    places = [f"/home/u{i}" for i in range(12)] + ["/srv"]
    bench.tree(*(f"{p[1:]}/f" for p in places))
    done = back_up(bench, bench.plan(*places))
    assert done.result.complete
    calls = (bench.home / "calls").read_text().splitlines()
    assert len([c for c in calls if c.startswith("show ")]) == 2
    assert len(calls) == 3 + 1 + 2 + (processors > 1)
    assert done.backup.finish() == []
    assert len((bench.home / "calls").read_text().splitlines()) == 3 + 1 + 2 + 1


def test_a_folder_too_large_to_read_is_asked_for_each_mount(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "KEEP", 100)
    bench.tree("home/a/f", "home/b/", "home/c/")
    result = back_up(
        bench, bench.plan("/home/a", "/home/b", "/home/c", "/home/d"), filled=["/home/a", "/home/c"]
    ).result
    assert "/home/a" not in result.message
    assert "/home/b" not in result.message
    assert "/home/c (tank/home/c) is empty" in result.message
    assert "/home/d (tank/home/d) is not in" in result.message


def test_a_listing_that_cannot_be_had_is_no_whole_backup(bench: Bench) -> None:
    """A fake that cannot show anything."""
    bench.tree("home/f")
    bench.fake('[ "$1" = show ] && { echo "ERROR no route to host" >&2; exit 1; }; exec "$KOPIA" "$@"')
    result = back_up(bench, bench.plan("/home")).result
    assert (result.saved, result.complete) == (True, False)
    assert "no route to host" in result.message


def test_a_result_is_judged_where_the_run_stopped_kopia_too_late(bench: Bench) -> None:
    bench.tree("home/f")
    done = back_up(bench, bench.plan("/home"), during=lambda _: False)
    assert done.result.complete
    again = done.backup.judge(EngineEnd(0, stopped=True), OddNames())
    assert (again.saved, again.complete) == (True, True)
    assert done.backup.finish() == []


def test_the_result_is_plain_data(bench: Bench) -> None:
    bench.tree("home/f")
    result = back_up(bench, bench.plan("/home")).result
    assert json.loads(json.dumps(result.statistics)) == result.statistics
