"""What documentation names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.programs import SOURCE

TREE = SOURCE.parent
DOCUMENTS = sorted([*TREE.glob("docs/*.md"), TREE / "README.md", TREE / "dev/README.md"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_module_that_is_named_exists(document: Path) -> None:
    """By its path in the tree, in the package or in its folder of tests."""
    folders = ("src", "tests", "dev", "demo", "tools", "packaging")
    known = {path.relative_to(TREE).as_posix() for folder in folders for path in TREE.glob(f"{folder}/**/*.py")}
    named = {name for name in re.findall(r"`([\w*/.-]+\.py)`", document.read_text()) if "NAME" not in name}
    patterns = {name: re.compile("(?:^|.*/)" + re.escape(name).replace(r"\*", "[^/]*") + "$") for name in named}
    assert [name for name, pattern in patterns.items() if not any(map(pattern.match, known))] == []
