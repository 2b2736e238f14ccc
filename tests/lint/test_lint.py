"""Style, formatting and types are checked like everything else: as tests."""

import sys
from pathlib import Path

import pytest

from tests.support.programs import command

TREE = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "tool",
    [
        pytest.param(("ruff", "check"), id="ruff-check"),
        pytest.param(("ruff", "format", "--check", "--diff"), id="ruff-format"),
        pytest.param(("mypy",), id="mypy"),
    ],
)
def test_python_is_clean(tool: tuple[str, ...]) -> None:
    ended = command(sys.executable, "-m", *tool, cwd=TREE, timeout=300, check=False)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"


def scripts() -> list[Path]:
    """The files here that a shell runs."""
    found = []
    for path in sorted(
        [
            *TREE.iterdir(),
            *TREE.glob("dev/*"),
            *TREE.glob("dev/uml/*"),
            *TREE.glob(".ci/*"),
            *TREE.glob("packaging/*/**/*"),
        ]
    ):
        if path.is_file() and path.read_bytes().startswith((b"#!/bin/bash", b"#!/bin/sh", b"# shellcheck shell=bash")):
            found.append(path)
    return found


@pytest.mark.parametrize("script", [str(path.relative_to(TREE)) for path in scripts()])
def test_shell_scripts_are_clean(script: str) -> None:
    ended = command("shellcheck", "--external-sources", script, cwd=TREE, check=False)
    assert ended.returncode == 0, ended.stdout


def asked_for_help() -> list[str]:
    """The scripts that people start: those that source dev/lib.sh."""
    return [str(path.relative_to(TREE)) for path in scripts() if "/lib.sh\n" in path.read_text()]


@pytest.mark.parametrize("word", ["-h", "--help"])
@pytest.mark.parametrize("script", asked_for_help())
def test_scripts_say_what_they_are_for_and_do_nothing(script: str, word: str, tmp_path: Path) -> None:
    """Not even as root make they the cache, install anything, or ask a network."""
    cache = tmp_path / "cache"
    environment = {"PATH": "/usr/bin:/bin", "KOPIATOMIC_CACHE": str(cache), "TMPDIR": str(tmp_path)}
    ended = command(TREE / script, word, env=environment, timeout=10, check=False)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    first = (TREE / script).read_text().splitlines()[1]
    assert ended.stdout.startswith(first.removeprefix("# ") + "\n")
    assert "#" not in ended.stdout[:1]
    assert list(tmp_path.iterdir()) == []


def test_a_word_of_a_command_is_no_call_for_help() -> None:
    """What is behind -- is not ours."""
    source = f'. "{TREE}/dev/lib.sh"; help_if_asked a -- -h; echo went on'
    assert command("bash", "-c", source, "x").stdout == "went on\n"
