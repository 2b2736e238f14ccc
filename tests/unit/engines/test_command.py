"""``-c COMMAND``: any program in kopia's place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kopiatomic import engines
from kopiatomic.engines.command import CommandBackup
from kopiatomic.engines.engine import Backup, Engine, Remembering
from kopiatomic.engines.names import OddNames
from kopiatomic.errors import KopiatomicError, UsageError
from kopiatomic.model.engine import EngineEnd
from kopiatomic.model.plan import Plan
from tests.unit.support.kopia_fixtures import make_job, taken

PLAN = Plan("/kopia", (taken("/a"),))


def create(*words: str, options: tuple[str, ...] = (), path: str | None = None) -> Engine:
    environment = {"PATH": os.environ["PATH"] if path is None else path}
    return engines.create(words, options, environment=environment)


def backup(*words: str, options: tuple[str, ...] = (), path: str | None = None) -> Backup:
    return create(*words, options=options, path=path).check(PLAN).backup(make_job(PLAN))


def end_of(*words: str) -> EngineEnd:
    made = backup(*words)
    argv = list(made.command().argv)
    return EngineEnd(subprocess.run(argv, check=False).returncode, stopped=False)


def test_the_root_is_the_last_argument_after_the_options() -> None:
    made = backup("tar", "-cf", "/backup.tar", options=("--one", "two words"))
    argv = made.command().argv
    assert os.path.basename(argv[0]) == "tar"
    assert list(argv[1:]) == ["-cf", "/backup.tar", "--one", "two words", "/kopia"]
    described = create("tar", "-cf", "/backup.tar", options=("--one", "two words")).describe(PLAN)
    assert list(described) == ["tar", "-cf", "/backup.tar", "--one", "two words", "/kopia"]


def test_the_words_are_not_given_to_a_shell() -> None:
    made = backup("echo", "$HOME; `id` > /x")
    assert made.command().argv[1] == "$HOME; `id` > /x"


def test_kopia_is_neither_looked_for_nor_needed(tmp_path: Path) -> None:
    program = tmp_path / "mine"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    engine = create("mine", path=str(tmp_path))
    found = engine.check(PLAN)
    assert (engine.name, found.version, found.warnings) == ("mine", None, ())
    assert engine.remembers == isinstance(found, Remembering)


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
    made = backup("tool", path=f"{tmp_path}/first:{tmp_path}/second")
    assert made.command().argv[0] == f"{tmp_path}/second/tool"


def test_a_relative_path_is_below_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "tool").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    made = backup("sub/tool")
    assert made.command().argv[0] == f"{tmp_path}/sub/tool"


def test_an_empty_command_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        create()


def test_status_zero_is_a_whole_backup() -> None:
    result = backup("true").judge(end_of("true"), OddNames())
    assert (result.saved, result.complete, result.message) == (True, True, "")


@pytest.mark.parametrize(
    ("script", "words"),
    [("exit 3", "exit status 3"), ("kill -9 $$", "killed by SIGKILL (9)"), ("exit 255", "exit status 255")],
)
def test_any_other_end_is_named(script: str, words: str) -> None:
    result = backup("sh").judge(end_of("sh", "-c", script), OddNames())
    assert not result.saved
    assert not result.complete
    assert words in result.message


def test_a_command_that_the_run_stopped_is_not_saved() -> None:
    result = backup("sh").judge(EngineEnd(-15, stopped=True), OddNames())
    assert not result.saved
    assert "SIGTERM (15), stopped by this run" in result.message


def test_output_is_passed_through_as_harmless_lines() -> None:
    made = CommandBackup("x", ("x",))
    assert made.feed("stdout", b"one\ntw") == ["one"]
    assert made.feed("stderr", b"other\n") == ["other"]
    assert made.feed("stdout", b"o\r\n\tthree \x1b[31m\xff\n\nend") == ["two", "\tthree \\x1b[31m\\xff", ""]
    assert made.feed("stdout", b"") == ["end"]
    assert made.feed("stdout", b"") == []


def test_output_without_line_ends_does_not_fill_the_memory() -> None:
    made = CommandBackup("x", ("x",))
    lines = [line for _ in range(100) for line in made.feed("stdout", b"x" * 65536)]
    assert sum(len(str(line)) for line in lines) > 100 * 65536 - 10_000
    assert len(made.feed("stdout", b"")) == 1
