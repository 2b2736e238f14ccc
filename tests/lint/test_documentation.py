"""What documentation names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.programs import SOURCE

TREE = SOURCE.parent
DOCUMENTS = sorted([*TREE.glob("docs/**/*.md"), TREE / "README.md", TREE / "dev/README.md"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_module_that_is_named_exists(document: Path) -> None:
    """By its path in the tree, in the package or in its folder of tests."""
    folders = ("src", "tests", "dev", "demo", "tools", "packaging")
    known = {path.relative_to(TREE).as_posix() for folder in folders for path in TREE.glob(f"{folder}/**/*.py")}
    named = {name for name in re.findall(r"`([\w*/.-]+\.py)`", document.read_text()) if "NAME" not in name}
    patterns = {name: re.compile("(?:^|.*/)" + re.escape(name).replace(r"\*", "[^/]*") + "$") for name in named}
    assert [name for name, pattern in patterns.items() if not any(map(pattern.match, known))] == []


FREEBSD = (
    "it was seen working on 13.2 and 15.1 (amd64), in an emulator; not on 14.x, on another architecture, on a real machine, "
    "with encryption, or with restic or Borg"
)
"""What was seen on FreeBSD: the table in docs/freebsd.md says more."""


@pytest.mark.parametrize(
    "document", ["README.md", "docs/freebsd.md", "man/kopiatomic.8", "packaging/freebsd/files/pkg-message.in"]
)
def test_all_say_the_same_of_what_was_seen_on_freebsd(document: str) -> None:
    text = " ".join((TREE / document).read_text().split())
    assert FREEBSD.lower() in text.lower()
    assert not re.search(r"nothing of.{0,40}has been (run|seen)|has been run yet", text)
