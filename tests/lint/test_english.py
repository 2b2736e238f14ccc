"""Docstrings, comments and documentation are in plain English: forms that were once here must not come back."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]

FORMS = (
    (r"\bon record\b", "recorded"),
    (r"\boff the record\b", "not recorded; deleted"),
    (r"\bunless told otherwise\b", "by default"),
    (r"(?<!would\s)\b(?:has|have) to be\b", "must be"),
    (r"\bshall\b", "must; should"),
    (r"\banew\b", "again; afresh"),
    (r"\bfor good\b", "permanently; no longer"),
    (r"\bby now\b", "now; already; meanwhile"),
    (r"\bof theirs\b", "their"),
    (r"\bnone such\b", "no such"),
    (r"\bwhosever\b", "any; whose ... it is"),
    (r"\bnext to none\b", "almost no"),
    (r"\bwhatever kind\b", "any kind"),
    (r"\bbesides(?=[.;,:])", "also; in addition"),
    (r"\btold apart\b", "distinguished"),
    (r"\b(?:is|are) told by\b", "shows; decides"),
    (r"\bin the likeness of\b", "like"),
    (r"\bsees? to it\b", "make sure"),
    (r"\bjudged is said\b", "judged is reported"),
    (r"\bhears? of\b", "notice; receive"),
    (r"\blets? go of\b", "release; close"),
    (r"\bso as to\b", "to"),
    (r"\bfor all who\b", "for; to"),
    (r"\blive as\b", "run as"),
)
"""Regular expressions, and what to write instead. A space also stands for the end of a line."""

Passage = tuple[int, str]
"""A text, and the number of its first line."""


def docstrings(source: str) -> Iterator[Passage]:
    """Yield the docstrings of a module, those of its constants and attributes included."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            match statement:
                case ast.Expr(value=ast.Constant(value=str())):
                    yield statement.lineno, "\n".join(lines[statement.lineno - 1 : statement.end_lineno])


def comments(source: str) -> Iterator[Passage]:
    """Yield the comments of a module; those on successive lines are one."""
    first = 0
    texts: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != first + len(texts):
                yield first, "\n".join(texts)
                first, texts = token.start[0], []
            texts.append(token.string.lstrip("# "))
    yield first, "\n".join(texts)


def passages(path: Path) -> Iterator[Passage]:
    """Yield the English of a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from docstrings(text)
        yield from comments(text)
    else:
        yield 1, text


def faults(path: Path) -> list[str]:
    """Return the banned forms in a file in the order of their lines, each with the better form."""
    name = path.relative_to(TREE) if path.is_relative_to(TREE) else path.name
    found: list[tuple[int, str]] = []
    for first, text in passages(path):
        for form, better in FORMS:
            for match in re.finditer(form.replace(" ", r"\s+"), text, re.IGNORECASE):
                line = first + text.count("\n", 0, match.start())
                found.append((line, f"{name}:{line}: {' '.join(match[0].split())!r}; better: {better}"))
    return [fault for _, fault in sorted(found)]


def files() -> list[Path]:
    """Return the files to read."""
    modules, pages, manuals = (sorted(TREE.glob(pattern)) for pattern in ("src/**/*.py", "docs/**/*.md", "man/*"))
    return [*modules, TREE / "README.md", TREE / "dev/README.md", *pages, *manuals]


def test_english_is_plain() -> None:
    found = [fault for path in files() for fault in faults(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("form", "better"), FORMS)
def test_the_better_form_is_none_of_the_banned_ones(form: str, better: str) -> None:
    assert not any(re.search(other, better, re.IGNORECASE) for other, _ in FORMS), form


def test_each_place_is_read(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        '"""Made\nanew."""\n\nTEXT = "by now"\n"""Is on\nrecord."""\n\n# Not by\n# now\nmore = 1  # anew\n'
    )
    page = tmp_path / "page.md"
    page.write_text("One\n\nIt has to be\nanew.\n")
    lines = [fault.partition(";")[0] for path in (module, page) for fault in faults(path)]
    assert lines == [
        "module.py:2: 'anew'",
        "module.py:5: 'on record'",
        "module.py:8: 'by now'",
        "module.py:10: 'anew'",
        "page.md:3: 'has to be'",
        "page.md:4: 'anew'",
    ]
