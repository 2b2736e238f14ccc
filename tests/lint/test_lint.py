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
