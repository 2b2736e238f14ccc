"""The how-to guides (docs/how-to) as a list of steps: what of them is run, compared, parsed, and what is not checked and why.

A comment before a fenced block says what it is:

| mark | |
|---|---|
| ``given: WORDS`` | no block: a test prepares what these words describe |
| ``run`` | a script of root's, run as it stands |
| ``output`` | what the script before it prints: ``...`` is anything, a line of it any lines, and each number any number |
| ``profile: NAME`` | a profile: it is read and its writers are judged |
| ``parsed`` | a script that cannot be run here: a shell and our own parser read it |
| ``not checked: WHY`` | neither |
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.programs import SOURCE

GUIDES = sorted((SOURCE.parent / "docs/how-to").glob("*.md"))

_STEP = re.compile(r"(?ms)^<!-- (?P<mark>[^\n]*?) -->\n(?:```\n(?P<text>.*?)^```$)?")
_MARK = re.compile(r"run|output|parsed|(given|profile|not checked): .+")
_NUMBER = re.compile(r"\b[0-9A-Fa-f]*\d[0-9A-Fa-f,]*\b")


@dataclass(frozen=True)
class Step:
    """One mark of a guide with its block. ``about`` is what follows the mark's colon."""

    line: int
    mark: str
    about: str
    text: str


def steps(markdown: str) -> list[Step]:
    """The steps of a guide in their order. Fails where a block has no mark, or a mark no block."""
    found = []
    for match in _STEP.finditer(markdown):
        line = markdown.count("\n", 0, match.start()) + 1
        whole, text = match["mark"], match["text"]
        assert _MARK.fullmatch(whole), f"line {line}: there is no mark {whole!r}"
        mark, _, about = whole.partition(": ")
        assert (text is None) == (mark == "given"), f"line {line}: {whole!r} with the wrong kind of block"
        found.append(Step(line, mark, about, text or ""))
    blocks = len(re.findall(r"(?m)^```", markdown)) / 2
    assert blocks == sum(step.mark != "given" for step in found), "a block has no mark"
    return found


def own_commands(script: str) -> Iterator[list[str]]:
    """The words of each command of ours in a script, without our name."""
    for line in script.replace("\\\n", " ").splitlines():
        if line.strip().startswith("kopiatomic "):
            yield shlex.split(line, comments=True)[1:]


def same(line: str) -> str:
    """A line without what differs between two runs: numbers, and the width of columns."""
    return " ".join(_NUMBER.sub("N", line).split())


def is_shown(expected: str, found: str) -> bool:
    """Whether a script has printed what a guide shows."""
    pattern = ""
    for line in expected.splitlines():
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(map(re.escape, same(line).split("..."))) + "\n"
    return re.fullmatch(pattern, "".join(f"{same(line)}\n" for line in found.splitlines())) is not None


def guide(path: Path) -> list[Step]:
    return steps(path.read_text())
