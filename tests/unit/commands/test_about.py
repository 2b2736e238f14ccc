"""``--version --verbose`` says what a report of a defect needs, on any machine, whatever is missing or broken there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kopiatomic import __version__
from kopiatomic.commands import about
from kopiatomic.system import host
from tests.support.programs import Kopiatomic, command

Said = Callable[[], dict[str, str]]


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    """The lines by their first word, where PATH has only what the test puts into ``tmp_path``."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("KOPIA", "RESTIC", "BORG"):
        monkeypatch.delenv(f"KOPIATOMIC_{name}", raising=False)
    return lambda: {name: fact.strip() for name, _, fact in (line.partition(":") for line in about.lines())}


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_what_is_not_installed_is_said(said: Said) -> None:
    found = said()
    assert list(found) == ["kopiatomic", "Python", "System", "OpenZFS", "Btrfs", "kopia", "restic", "Borg"]
    assert found["kopiatomic"].startswith(f"{__version__} in /")
    assert sys.executable in found["Python"]
    assert found["OpenZFS"].startswith("not found; kernel: ")
    assert found["Btrfs"].startswith("not found; kernel: ")
    assert (found["kopia"], found["restic"], found["Borg"]) == ("not found", "not found", "not found")


def test_versions_are_those_that_the_programs_say(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "zfs", 'test "$*" = version && printf "zfs-2.1.11-1\\nzfs-kmod-2.1.11-1\\n"')
    program(tmp_path / "btrfs", 'test "$*" = --version && echo "btrfs-progs v6.2"')
    program(tmp_path / "restic", 'test "$*" = version && echo "restic 0.14.0 compiled"')
    kopia = program(tmp_path / "kopia-0.22", 'test "$*" = --version && echo "v0.22.3"')
    monkeypatch.setenv("KOPIATOMIC_KOPIA", str(kopia))
    found = said()
    assert found["OpenZFS"].startswith("zfs-2.1.11-1; kernel: ")
    assert found["Btrfs"].startswith("btrfs-progs v6.2; kernel: ")
    assert found["kopia"] == f"v0.22.3 ({kopia})"
    assert found["restic"] == f"restic 0.14.0 compiled ({tmp_path}/restic)"
    # As on FreeBSD, which has no /sys.
    monkeypatch.setattr(type(host.here()), "has_zfs", lambda _: True)
    assert said()["OpenZFS"] == "zfs-2.1.11-1; kernel: zfs-kmod-2.1.11-1"


def test_programs_that_are_broken_or_do_not_answer_cost_only_their_own_line(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(about, "_LIMIT", 0.3)
    program(tmp_path / "zfs", "exec /bin/sleep 60")
    (tmp_path / "btrfs").write_text("no program")
    program(tmp_path / "kopia", "exit 3")
    (tmp_path / "restic").mkdir()
    program(tmp_path / "borg", "echo broken >&2; exit 1")
    found = said()
    assert found["OpenZFS"].startswith("zfs did not end within 0.3 s; kernel: ")
    assert found["Btrfs"].startswith("cannot be started: Permission denied; kernel: ")
    assert found["kopia"] == f"says nothing (exit status 3) ({tmp_path}/kopia)"
    assert "restic is a directory" in found["restic"]
    assert found["Borg"] == f"says nothing (broken) ({tmp_path}/borg)"


@pytest.mark.parametrize(
    "words", [("-v", "--verbose"), ("--verbose", "--version"), ("backup", "--version", "--verbose")]
)
def test_it_is_asked_for_with_verbose(words: tuple[str, ...], kopiatomic: Kopiatomic) -> None:
    ended = kopiatomic(*words, env={"PATH": "/nowhere"})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout.splitlines()) == 8


def test_the_plain_version_needs_none_of_that(kopiatomic: Kopiatomic) -> None:
    code = """
import atexit, sys
from kopiatomic.cli import entry as cli
late = "kopiatomic.commands.about", "kopiatomic.model.plan", "subprocess"
atexit.register(lambda: print([m for m in late if m in sys.modules]))
sys.argv[1:] = ["--version"]
cli.main()
"""
    assert command(sys.executable, "-c", code, env=kopiatomic.environment).stdout.splitlines()[1] == "[]"
