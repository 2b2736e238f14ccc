"""``-c COMMAND``: any program in kopia's place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kopiatomic import engines
from kopiatomic.engines import engine
from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.model.engine import EngineEnd
from kopiatomic.model.plan import Plan
from tests.unit.support.kopia_fixtures import make_job, taken

PLAN = Plan("/kopia", (taken("/a"),))


def create(*words: str, options: tuple[str, ...] = (), path: str | None = None) -> engine.Engine:
    environment = {"PATH": os.environ["PATH"] if path is None else path}
    return engines.create(words, options, environment=environment)


def end_of(*words: str) -> EngineEnd:
    engine = create(*words)
    engine.check(PLAN)
    argv = list(engine.command(make_job(PLAN)).argv)
    return EngineEnd(subprocess.run(argv, check=False).returncode, stopped=False)


def test_the_root_is_the_last_argument_after_the_options() -> None:
    engine = create("tar", "-cf", "/backup.tar", options=("--one", "two words"))
    engine.check(PLAN)
    argv = engine.command(make_job(PLAN)).argv
    assert os.path.basename(argv[0]) == "tar"
    assert list(argv[1:]) == ["-cf", "/backup.tar", "--one", "two words", "/kopia"]
    assert list(engine.describe(PLAN)) == ["tar", "-cf", "/backup.tar", "--one", "two words", "/kopia"]


def test_the_words_are_not_given_to_a_shell() -> None:
    engine = create("echo", "$HOME; `id` > /x")
    engine.check(PLAN)
    assert engine.command(make_job(PLAN)).argv[1] == "$HOME; `id` > /x"


def test_kopia_is_neither_looked_for_nor_needed(tmp_path: Path) -> None:
    program = tmp_path / "mine"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    engine = create("mine", path=str(tmp_path))
    assert engine.check(PLAN) == []
    assert (engine.name, engine.version) == ("mine", None)


def test_a_missing_command_is_an_error_before_anything_is_made() -> None:
    with pytest.raises(KopiatomicError, match="no-such-program") as caught:
        create("no-such-program").check(PLAN)
    assert (caught.value.kind, caught.value.exit_code) == ("command-missing", 1)
    assert caught.value.hint


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_command_that_cannot_be_executed_is_named(tmp_path: Path, what: str) -> None:
    target = tmp_path / "thing"
    if what == "file":
        target.write_text("x")
        target.chmod(0o644)
    else:
        target.mkdir()
    with pytest.raises(KopiatomicError, match=str(target)) as caught:
        create(str(target)).check(PLAN)
    assert caught.value.kind == "command-not-executable"


def test_path_is_searched_beyond_what_cannot_be_executed(tmp_path: Path) -> None:
    for folder, mode in (("first", 0o644), ("second", 0o755)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool").write_text("#!/bin/sh\n")
        (tmp_path / folder / "tool").chmod(mode)
    engine = create("tool", path=f"{tmp_path}/first:{tmp_path}/second")
    engine.check(PLAN)
    assert engine.command(make_job(PLAN)).argv[0] == f"{tmp_path}/second/tool"


def test_a_relative_path_is_below_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "tool").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    engine = create("sub/tool")
    engine.check(PLAN)
    assert engine.command(make_job(PLAN)).argv[0] == f"{tmp_path}/sub/tool"


def test_an_empty_command_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        create()


def test_status_zero_is_a_whole_backup() -> None:
    result = create("true").judge(make_job(PLAN), end_of("true"))
    assert (result.saved, result.complete, result.message) == (True, True, "")


@pytest.mark.parametrize(
    ("script", "words"),
    [("exit 3", "exit status 3"), ("kill -9 $$", "killed by SIGKILL (9)"), ("exit 255", "exit status 255")],
)
def test_any_other_end_is_named(script: str, words: str) -> None:
    result = create("sh").judge(make_job(PLAN), end_of("sh", "-c", script))
    assert not result.saved
    assert not result.complete
    assert words in result.message


def test_a_command_that_the_run_stopped_is_not_saved() -> None:
    result = create("sh").judge(make_job(PLAN), EngineEnd(-15, stopped=True))
    assert not result.saved
    assert "SIGTERM (15), stopped by this run" in result.message


def test_output_is_passed_through_as_harmless_lines() -> None:
    engine = create("x")
    assert engine.feed("stdout", b"one\ntw") == ["one"]
    assert engine.feed("stderr", b"other\n") == ["other"]
    assert engine.feed("stdout", b"o\r\n\tthree \x1b[31m\xff\n\nend") == ["two", "\tthree \\x1b[31m\\xff", ""]
    assert engine.feed("stdout", b"") == ["end"]
    assert engine.feed("stdout", b"") == []


def test_output_without_line_ends_does_not_fill_the_memory() -> None:
    engine = create("x")
    lines = [line for _ in range(100) for line in engine.feed("stdout", b"x" * 65536)]
    assert sum(len(str(line)) for line in lines) > 100 * 65536 - 10_000
    assert len(engine.feed("stdout", b"")) == 1
