"""Several profiles in one process: what happens to one leaves the reports of the others."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from kopiatomic.commands import run as running
from kopiatomic.commands.profiles import Folder
from kopiatomic.commands.run import RunRequest
from kopiatomic.config.invocation import Invocation
from kopiatomic.config.profile import Profile
from kopiatomic.model.report import Report
from kopiatomic.output.console import Console


def test_a_signal_while_a_file_is_read_ends_all_and_loses_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is real; the signal comes while it is read, which takes too short a time to hit from outside."""
    for name, text in (("one", "[selct]\n"), ("two", "[select]\nall = true\n"), ("three", "[selct]\n")):
        (tmp_path / f"{name}.toml").write_text(text)
    load = Folder.load

    def interrupted(folder: Folder, name: str, *, trusted: bool = True) -> Profile:
        if name == "two":
            os.kill(os.getpid(), signal.SIGTERM)
        return load(folder, name, trusted=trusted)

    monkeypatch.setattr(Folder, "load", interrupted)
    monkeypatch.setattr(running, "_schedules", lambda: lambda _: [])
    done: list[tuple[str, int]] = []

    def note(name: str, report: Report, _console: Console) -> None:
        done.append((name, report.exit_code))

    wanted = RunRequest(("one", "two", "three"), False, Folder(str(tmp_path)), {"dry_run": True})
    assert running.run(wanted, lambda: Console(quiet=True), Invocation(), lambda *_: None, note) == 128 + signal.SIGTERM
    assert done == [("one", 2), ("two", 143)]
