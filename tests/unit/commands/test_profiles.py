"""The commands about profiles: what happens to one keeps no other from being looked at, and a signal ends all."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.cli import entry
from kopiatomic.commands import backup, profile, schedule
from kopiatomic.commands.profiles import Folder
from kopiatomic.config import profile as reading
from kopiatomic.config.invocation import Invocation
from kopiatomic.config.profile import Profile
from kopiatomic.errors import SAVED
from kopiatomic.model.report import Report
from kopiatomic.output.console import Console
from kopiatomic.runs.freezing import failures_in
from kopiatomic.system import host, signals

Main = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three profiles, with the second of which a defect of ours shows itself: there is no file that does that for ever."""
    for name in ("one", "second", "third"):
        path = tmp_path / f"{name}.toml"
        path.touch(0o600)
        path.write_text(f'[select]\ndatasets = ["/srv"]\n[view]\nname = "{name[0]}"\n')
    load = Folder.load

    def broken(folder: Folder, name: str, *, trusted: bool = True) -> Profile:
        if name == "second":
            raise ValueError("invalid literal")
        return load(Folder(folder.path, str(tmp_path)), name, trusted=trusted)

    monkeypatch.setattr(Folder, "load", broken)
    monkeypatch.setenv("KOPIATOMIC_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Main:
    """Runs a command in this process, which has the defect; returns its exit code."""

    def main(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["kopiatomic", *words, "--config-dir", str(folder)])
        with pytest.raises(SystemExit) as ended:
            entry.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return main


def test_a_defect_with_one_profile_is_told_and_the_others_are_listed(
    main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("profile", "list") == 1
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ["PROFILE", "one", "second", "third"]
    assert "internal error: ValueError: invalid literal" in said.err


def test_a_defect_with_one_profile_changes_no_verdict_on_another(
    main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("profile", "check", "one", "--offline") == 0
    said = capsys.readouterr()
    assert (said.out.startswith("one: the file is right"), said.err) == (True, "")
    assert main("profile", "check", "--offline") == 1
    said = capsys.readouterr()
    assert [line.split(":")[0] for line in said.out.splitlines()] == ["one", "second", "third"]
    assert "internal error: ValueError: invalid literal" in said.err


def test_a_defect_with_one_profile_keeps_no_new_one_from_being_told(
    main: Main, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kopiatomic.schedules.trust.check", lambda *_, **__: None)
    assert main("profile", "new", "other") == 0
    assert f"Wrote {folder}/other.toml" in capsys.readouterr().out


@pytest.mark.parametrize("ends", [SAVED, 130])
def test_a_defect_with_one_profile_keeps_no_other_from_being_scheduled(
    ends: int, main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def install(wanted: schedule.ScheduleRequest, *_: Any, **__: Any) -> int:
        asked.append(wanted.name)
        return ends if wanted.name == "one" else SAVED

    monkeypatch.setattr(schedule, "install", install)
    monkeypatch.setattr("kopiatomic.schedules.here", lambda: None)
    assert main("schedule", "install", "--all") == (130 if ends else 1)
    assert asked == (["one"] if ends else ["one", "third"])
    assert ("internal error: ValueError: invalid literal" in capsys.readouterr().err) is (not ends)


def test_no_command_shows_a_traceback(
    main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a defect that nothing on the way caught."""

    def broken(*_: Any, **__: Any) -> int:
        raise ValueError("invalid literal")

    monkeypatch.setattr(profile, "show", broken)
    assert main("profile", "show", "one") == 1
    assert capsys.readouterr().err.startswith(
        "kopiatomic: internal error: ValueError: invalid literal (test_profiles.py:"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="a check needs root")
def test_a_signal_ends_the_check_of_all_profiles(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It comes while the first is looked at, which takes too short a time to hit from outside."""
    looked: list[str] = []

    def look(options: Any, *_: Any) -> Report:
        report = Report(run_id="", root="")
        looked.append(options.profile)
        with signals.handled(), failures_in(report):
            os.kill(os.getpid(), signal.SIGINT)
            signals.check()
        return report

    monkeypatch.setattr(backup, "check", look)
    names = ("one", "third")
    code = profile.check(names, None, Folder(str(folder)), Console(), Invocation(), offline=False)
    assert (code, looked) == (130, ["one"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "engine",
    [
        'options = ["-p", "wetpaint"]',
        'options = "-p wetpaint"',
        "options = ['-pwetpaint']",
        'command = "mysqldump"\noptions = "-u x -pwetpaint"',
        'command = ["mysqldump", "-pwetpaint"]',
        'environment = { BORG_PASSCOMMAND = "echo wetpaint" }',
    ],
)
def test_no_password_among_options_is_shown(engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "home.toml"
    path.touch(0o600)
    path.write_text(f"[select]\nall = true\n[engine]\n{engine}\n")
    for as_json in (True, False):
        assert profile.show("home", Folder(str(tmp_path)), Console(), origin=False, as_json=as_json) == 0
    shown = capsys.readouterr().out
    assert "wetpaint" not in shown
    assert shown.count("***") == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="a check needs root")
def test_a_hook_is_checked_with_the_path_that_it_will_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("all", "own"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of-{name}").touch(0o755)
    path = tmp_path / "home.toml"
    path.touch(0o600)
    path.write_text(
        f"""
[select]
all = true
[hooks]
pre_hook = "of-all -x"
post_hook = "none | true"
environment = {{ PATH = "{tmp_path}/all:/usr/bin:/bin" }}
[[hooks.before]]
command = ["of-own"]
environment = {{ PATH = "{tmp_path}/own:/usr/bin:/bin" }}
[[hooks.after]]
shell = "of-own"
"""
    )
    monkeypatch.setattr(backup, "check", lambda *_: Report(run_id="", root=""))
    folder = Folder(str(tmp_path), str(tmp_path))
    assert profile.check(["home"], None, folder, Console(), Invocation(), offline=False) == 2
    said = capsys.readouterr().err
    assert "home.toml:6:1: post_hook begins with none, which is not there or cannot be executed" in said
    assert "home.toml:11:9: after begins with of-own, which is not there or cannot be executed" in said
    assert said.count("which is not there") == 2


def test_a_folder_that_is_not_there_is_no_empty_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, code in ((tmp_path / "none", 1), (tmp_path, 0)):
        assert profile.listing(Folder(str(path)), Console(), as_json=True) == code
        said = capsys.readouterr()
        assert (f"there is no profile in {path}" in said.err, '"profiles": []' in said.out) == (code == 1, code == 0)
    # A machine that has none is not to fail whatever looks there.
    monkeypatch.setattr(type(host.here()), "profiles", str(tmp_path / "none"))
    assert profile.listing(Folder(str(tmp_path / "none")), Console(), as_json=True) == 0


def test_a_new_profile_has_no_variable_that_none_can_name(
    main: Main, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kopiatomic.schedules.trust.check", lambda *_, **__: None)
    monkeypatch.setenv("KOPIA_X.Y", "1")
    monkeypatch.setenv("KOPIA_CONFIG_PATH", "/root/kopia.config")
    assert main("profile", "new", "other") == 0
    assert "KOPIA_X.Y of this environment is not in the file: no profile can name it" in capsys.readouterr().err
    found = reading.load(str(folder / "other.toml"))
    assert found.environment["engine", "KOPIA_CONFIG_PATH"].value == "/root/kopia.config"


@pytest.mark.parametrize(
    ("words", "kind"), [(["a b"], "bad-name"), (["home.toml"], "bad-name"), ([], "usage"), (["one", "--nope"], "usage")]
)
def test_words_that_run_nothing_are_answered_in_the_form_of_a_run_of_profiles(
    words: list[str], kind: str, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("run", "--json", "-n", *words) == 2
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert (answer["format"], answer["exit_code"], answer["profiles"]) == ("kopiatomic-profiles-1", 2, [])
    assert answer["error"]["kind"] == kind
    assert answer["error"]["message"] in said.err
