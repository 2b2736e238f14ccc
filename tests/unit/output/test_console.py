"""What a person sees fits the terminal, is plain where that is wanted, and never stands in the way of a run."""

from __future__ import annotations

import fcntl
import io
import os
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest

from kopiatomic.config.invocation import Invocation
from kopiatomic.errors import KopiatomicError
from kopiatomic.model.engine import Progress
from kopiatomic.model.plan import Judged, Uncovered, Verdict
from kopiatomic.model.report import Report
from kopiatomic.output.console import Console
from kopiatomic.output.document import document
from kopiatomic.output.summary import duration, size
from tests.unit.support.reports import RUN_ID, failed, finished, held, interrupted, planned, several

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(show: Callable[[], None], *, columns: int = 80, **environment: str) -> str:
    """What a process with a terminal of its own writes to it."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ours)
            for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
                os.environ.pop(name, None)
            os.environ.update({"TERM": "xterm-256color", **environment})
            for fd in (0, 1, 2):
                os.dup2(theirs, fd)
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            show()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(0)
    os.close(theirs)
    written = b""
    while select.select([ours], [], [], 20)[0]:
        try:
            chunk = os.read(ours, 1 << 16)
        except OSError:
            # All of the other side is closed.
            break
        written += chunk
    os.close(ours)
    os.waitpid(pid, 0)
    return written.decode()


def shown(report: Report) -> Callable[[], None]:
    return lambda: Console().report(report, summary=True)


def plain(report: Report, capsys: pytest.CaptureFixture[str], **how: bool) -> tuple[str, str]:
    """What is printed where there is no terminal: stdout and stderr."""
    Console(Invocation(), **how).report(report, summary=True)
    written = capsys.readouterr()
    return written.out, written.err


def test_the_summary_says_what_was_saved_at_which_instant_with_what_proof(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = plain(finished(), capsys)
    assert out.splitlines() == [
        "Saved 2 datasets at one instant, 2026-11-22 10:11:12.000000 UTC",
        "  tank/usr/home  in /kopia/usr/home",
        "  tank/usr/src   in /kopia/usr/src",
        "Proof:    pool tank: 2 snapshots, all in transaction group 4711",
        "Engine:   kopia 0.22.3, snapshot 2f3a, 123,456 files, 7.8 GB, 123,000 unchanged",
        "Removed:  all snapshots and mounts; they existed for 1 min 15 s",
    ]
    assert err == ""


def test_several_sets_are_never_said_to_be_one_instant(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = plain(several(), capsys)
    assert "NOT at one instant" in out
    assert "at one instant" not in out.replace("NOT at one instant", "")
    assert "2 snapshots in 2 transactions (3 to 4)" in out
    assert "upper bound" in out
    assert "Removed:" not in out
    assert "not saved: /kopia/a\\x1b: unreadable" in out
    assert "and 24 more" in out
    assert err.splitlines() == [
        "kopiatomic: not complete: tank/x: its encryption key is not loaded",
        "kopiatomic: left behind: snapshot tank@x",
        "kopiatomic: the hook -q failed (exit status 1): false",
    ]


def lines_below(heading: str, out: str) -> list[str]:
    """The lines from one that begins so, up to the next that begins with a word."""
    lines = out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(heading))
    return [lines[first], *takewhile(lambda line: line.startswith(" "), lines[first + 1 :])]


def test_several_sets_are_one_instant_for_what_was_frozen_and_for_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = several()
    report.writers = held()
    report.writers[0].stall, report.writers[1].stall = 3_100_000, 200_000
    out, _ = plain(report, capsys)
    assert lines_below("Held:", out) == [
        "Held:     unit mail.service 3.1 ms, mariadb 0.2 ms, postgresql 15/main not needed",
        "          one instant for what was held (unit mail.service), not proven for others",
    ]
    assert out.startswith("Saved, but not complete: 2 datasets NOT at one instant, ")
    assert [one["one_instant"] for one in document(report)["writers"]] == [True, False, False]
    assert document(report)["atomic"] is False


def test_one_set_is_one_instant_for_everything(capsys: pytest.CaptureFixture[str]) -> None:
    report = finished()
    report.writers = held()
    report.writers[0].stall, report.writers[1].stall = 3_100_000, 200_000
    out, _ = plain(report, capsys)
    assert lines_below("Held:", out) == [
        "Held:     unit mail.service 3.1 ms, mariadb 0.2 ms, postgresql 15/main not needed"
    ]
    assert [one["one_instant"] for one in document(report)["writers"]] == [False, False, False]


def test_what_was_not_held_to_the_end_has_no_instant_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    report = several()
    report.writers = held()[:2]
    report.writers[0].why = "its processes ran before the last snapshot existed: the limit is 2 s"
    out, _ = plain(report, capsys)
    assert lines_below("Held:", out) == [
        "Held:     unit mail.service NOT held: its processes ran before the last snapshot existed: the limit is 2 s, "
        "mariadb NOT held"
    ]
    assert not any(one["one_instant"] for one in document(report)["writers"])


def test_a_plan_says_for_what_several_sets_are_one_instant(capsys: pytest.CaptureFixture[str]) -> None:
    report = planned()
    report.writers = held()
    out, _ = plain(report, capsys)
    assert lines_below("Writers", out) == [
        "Writers while the snapshots are made:",
        "  unit mail.service   its process is frozen for the snapshots (one instant for what was held, not proven for others)",
        "  mariadb             InnoDB in one instant; other engines held by BACKUP STAGE (no binary log)",
        "  postgresql 15/main  /srv/pg: all in one instant, nothing to hold",
    ]
    assert [one["one_instant"] for one in document(report)["writers"]] == [True, False, False]


def test_a_failure_goes_to_stderr_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert plain(failed(), capsys) == ("", "kopiatomic: no such dataset: tank/hom\n  Did you mean tank/home?\n")


def test_a_part_that_was_saved_is_named_and_said_to_be_no_backup(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = plain(interrupted(), capsys)
    assert out.startswith("NOT a backup")
    assert "snapshot 2f3a" in out
    assert "stopped by SIGINT" in err


def test_quiet_leaves_only_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert plain(finished(), capsys, quiet=True) == ("", "")
    assert "no such dataset" in plain(failed(), capsys, quiet=True)[1]


@pytest.mark.parametrize("count", [20, 21])
def test_many_datasets_are_counted_unless_all_are_asked_for(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    report = finished(*(f"/d{number:02}" for number in range(count)))
    out, _ = plain(report, capsys)
    listed = out.count("  in /kopia/d")
    assert listed == 20 if count == 20 else listed == 19
    assert ("and 2 more (--verbose lists them)" in out) == (count == 21)
    assert plain(report, capsys, verbose=True)[0].count("  in /kopia/d") == count


@pytest.mark.parametrize("count", [0, 1, 5, 6, 12])
def test_other_filesystems_in_the_trees_are_named_up_to_five(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    report = finished()
    assert report.plan is not None
    others = [Uncovered(f"/usr/home/{n:02d}", "ext4", f"/dev/sd{n}", "tank/usr/home", 12_000_000) for n in range(count)]
    live = Uncovered("/usr/home/live", "tmpfs", "tmpfs", "tank/usr/home", live=True)
    excluded = Uncovered("/usr/home/excluded", "zfs", "tank/excluded", "tank/usr/home")
    judged = (Judged("tank/excluded", "zfs", Verdict.EXCLUDED, "--exclude tank/excluded"),)
    report.plan = replace(report.plan, uncovered=(*others, live, excluded), judged=judged)
    assert report.exit_code == 0
    for verbose in (False, True):
        Console(verbose=verbose).report(report, summary=True)
        out = capsys.readouterr().out
        named = [line for line in out.splitlines() if line.startswith("  /usr/home/")]
        shown = others if verbose else others[:5]
        assert named == [f"  {other.point}: ext4 {other.source}, 12.0 MB" for other in shown]
        assert ("In these trees and not in the backup:" in out) is (count > 0)
        assert (f"  and {count - 5} more" in out) is (count > 5 and not verbose)
    assert len(document(report)["uncovered"]) == count + 2


def test_a_plan_says_of_each_dataset_where_it_appears_or_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = plain(planned(), capsys)
    assert out.splitlines() == [
        "Would save 1 dataset below /kopia, but not 1 that would be missed; nothing was changed",
        "   DATASET      VERDICT         WHERE IT APPEARS, OR WHY NOT",
        "+  tank/home    taken           /kopia/usr/home",
        "-  tank/secret  key not loaded  its encryption key is not loaded (a run ends with exit code 3 for it)",
        "Left out: 1 (key not loaded 1)",
        "Command:  kopia snapshot create /kopia",
        f"Against the last run under /kopia ({RUN_ID}):",
        "  not any more: tank/src",
    ]
    assert err == "kopiatomic: not complete: tank/secret: its encryption key is not loaded\n"


def test_a_plan_in_a_pipe_is_folded_where_one_asks_for_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out, _ = plain(planned(), capsys)
    assert out.splitlines()[3:5] == [
        "-  tank/secret  key not loaded  its encryption key is not loaded (a run ends",
        "                                with exit code 3 for it)",
    ]


# On a terminal


def test_what_colours_say_in_a_plan_is_also_said_in_words() -> None:
    written = on_terminal(shown(planned()))
    assert "\x1b[32m+\x1b[0m" in written
    assert "\x1b[31mkey not loaded\x1b[0m" in written
    assert "+  tank/home" in ESCAPE.sub("", written)
    assert re.search(r"\x1b\[3[0-9]m", on_terminal(shown(planned()), NO_COLOR="1")) is None
    assert "\x1b" not in on_terminal(shown(planned()), TERM="dumb")


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    "report",
    [finished(), several(), failed(), interrupted(), planned()],
    ids=["saved", "several", "failed", "stopped", "planned"],
)
def test_lines_fit_the_terminal_and_lose_nothing(
    report: Report, columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ESCAPE.sub("", on_terminal(shown(report), columns=columns)).replace("\r", "").splitlines()
    assert max(map(len, lines)) <= columns
    out, err = plain(report, capsys)
    assert " ".join(lines).split() == (out + err).split()


def test_a_long_name_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    name = "/" + "x" * 250
    assert name in "".join(ESCAPE.sub("", on_terminal(shown(finished(name)))).split())


def test_colours_are_used_on_a_terminal_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert "\x1b[1;32m" in on_terminal(shown(finished()))
    assert "\x1b[1;31m" in on_terminal(shown(failed()))
    assert "\x1b" not in "".join(plain(finished(), capsys))


def test_no_color_is_respected() -> None:
    written = on_terminal(shown(several()), NO_COLOR="1")
    codes = {code for sequence in re.findall(r"\x1b\[([0-9;]*)m", written) for code in sequence.split(";")}
    assert codes <= {"", "0", "1"}, "only bold is left"


def test_a_dumb_terminal_gets_plain_text() -> None:
    assert "\x1b" not in on_terminal(shown(several()), TERM="dumb")


def test_names_are_not_taken_for_markup() -> None:
    written = on_terminal(shown(finished("/[bold]x[/bold]/[/red]")))
    assert "/[bold]x[/bold]/[/red]" in ESCAPE.sub("", written)


@pytest.mark.parametrize(
    "say", ["result", "warning", "notice", "engine_line", "error_text", "error", "result of a run"]
)
def test_no_control_character_reaches_a_terminal(say: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever forgets that a value of somebody else's is in a text: the value of a property, say."""
    console, text = Console(), "a value \x1b]0;title\x07\x9b31m of\ttwo\nlines"
    if say == "error":
        console.error(KopiatomicError("x", kind="x", hint=text))
    elif say == "result of a run":
        report = finished()
        report.incomplete = [text]
        console.report(report, summary=True)
    else:
        getattr(console, say)(text)
    written = capsys.readouterr()
    assert "a value \\x1b]0;title\\x07\\x9b31m of\ttwo\nlines" in written.out + written.err


@pytest.mark.parametrize("columns", [80, 120])
def test_progress_is_one_line_that_is_taken_away_again(columns: int) -> None:
    def show() -> None:
        console = Console()
        console.phase("kopia is backing up /kopia")
        console.progress(Progress(files=1234, bytes_done=5_600_000_000, bytes_total=9_000_000_000, text="2 min left"))
        console.warning("something to know " + "x" * 100)
        console.phase("kopia is backing up /" + "y" * 200)
        console.end()

    written = on_terminal(show, columns=columns)
    assert "1,234 files, 5.6 GB of 9.0 GB, 2 min left" in written
    pieces = [ESCAPE.sub("", piece) for piece in re.split(r"\r|\n", written)]
    assert all(len(piece) <= columns for piece in pieces if "warning" not in piece and "xxx" not in piece)
    assert written.count("\n") <= 4
    assert written.rstrip().endswith(("\x1b[?25h", "\x1b[2K"))


def test_without_a_terminal_phases_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.phase("taking 2 snapshot(s)")
    for number in range(1000):
        console.progress(Progress(files=number))
    console.end()
    assert capsys.readouterr().err == "kopiatomic: taking 2 snapshot(s) ...\n"


def test_without_a_terminal_a_long_backup_says_now_and_then_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that runs a thousand times faster."""
    now = iter(range(0, 10_000_000, 20))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    console = Console()
    for number in range(100):
        console.progress(Progress(files=number))
    lines = capsys.readouterr().err.splitlines()
    assert 5 < len(lines) < 60
    assert all("files" in line for line in lines[2:])


@pytest.mark.parametrize("path", ["/dev/full", "closed"])
def test_an_output_that_fails_is_dropped(path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stream = open("/dev/full" if path == "/dev/full" else tmp_path / "x", "w", encoding="utf-8")  # noqa: SIM115
    if path == "closed":
        stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    console = Console()
    console.phase("a phase")
    console.warning("a warning")
    console.report(several(), summary=True)
    if path != "closed":
        stream.close()
    assert isinstance(stream, io.TextIOWrapper)


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (7_800_000_000, "7.8 GB"), (10**16, "10000.0 TB")],
)
def test_sizes(count: int | None, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "0.0 s"), (59.94, "59.9 s"), (61, "1 min 01 s"), (3600, "1 h 00 min"), (90061, "25 h 01 min")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_what_holds_for_all_of_a_command_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    for _ in range(2):
        console.warning_once("long")
        console.warning("short")
    assert capsys.readouterr().err == (
        "kopiatomic: warning: long\nkopiatomic: warning: short\nkopiatomic: warning: short\n"
    )
