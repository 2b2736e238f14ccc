"""How the Debian package is made: the same bytes each time, to lintian's liking, for the click and rich of each suite."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest

from kopiatomic import __version__
from tests.packages.conftest import SUITES, built, copied_tree
from tests.packages.machine import TREE
from tests.support.programs import command

pytestmark = pytest.mark.in_part(1)

# What shows or parses something with click or rich.
UNIT_TESTS = [
    f"tests/unit/{path}.py"
    for path in (
        "cli/test_completion",
        "cli/test_entry",
        "cli/test_manual",
        "commands/test_about",
        "output/test_columns",
        "output/test_console",
    )
]


def test_the_same_tree_gives_the_same_bytes(package: Path, tmp_path: Path) -> None:
    """Also if all differs that is not content."""
    tree = copied_tree(tmp_path / "another" / "tree")
    script = "umask 077; find . -exec touch -h -d 2031-07-01 {} +; chmod -R go-rwx src packaging; exec ./build deb"
    command("bash", "-c", script, cwd=tree, env={**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C"}, timeout=300)
    again = tree / "dist" / package.name
    assert sha256(again.read_bytes()).hexdigest() == sha256(package.read_bytes()).hexdigest()
    assert package.name == f"kopiatomic_{__version__}-1_all.deb"


def test_both_suites_build_it(package: Path, tmp_path: Path) -> None:
    """With the same files, but for a word or two that the tools of each suite put into it."""
    other = built(copied_tree(tmp_path / "tree"), "bookworm")

    def names(file: Path) -> set[str]:
        listed = command("dpkg-deb", "--contents", file).stdout.splitlines()
        return {line.split(" ./")[1] for line in listed if ".dist-info/" not in line}

    assert names(other) == names(package)


@pytest.mark.parametrize("suite", SUITES)
def test_lintian_has_nothing_to_say(suite: str, package: Path) -> None:
    words = ["lintian", "--fail-on", "error,warning,info", "--display-info", "--pedantic", "--allow-root"]
    ended = command(
        *(TREE / "dev/clean-root", "build", suite, "--exchange", package.parent, "--"),
        *(*words, f"/exchange/{package.name}"),
        timeout=900,
    )
    assert ended.stdout == ""


# Both in every run: only here do the tests' own parts meet the pytest of Debian 12.
@pytest.mark.in_part(2)
@pytest.mark.parametrize("suite", SUITES)
def test_it_works_with_the_click_and_rich_of_the_suite(suite: str, tmp_path: Path) -> None:
    tree = copied_tree(tmp_path / "tree")
    words = ["env", "PYTHONPATH=/exchange/src", "PYTHONDONTWRITEBYTECODE=1"]
    words += [
        "python3",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir=/exchange",
        "-c",
        "/exchange/pyproject.toml",
    ]
    command(
        *(TREE / "dev/clean-root", "build", suite, "--exchange", tree, "--"),
        *(*words, *(f"/exchange/{name}" for name in UNIT_TESTS)),
        timeout=900,
    )
