"""The how-to guides without running them: every command is one that our parser takes, every message one that the program has."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kopiatomic import hooks
from kopiatomic.cli.entry import cli
from kopiatomic.commands import profiles
from kopiatomic.config import profile
from kopiatomic.config.invocation import Invocation
from kopiatomic.hooks import mariadb, postgresql
from tests.support.how_to import GUIDES, guide, is_shown, own_commands, steps
from tests.support.programs import SOURCE, command

DOCS = SOURCE.parent / "docs"
PAGES = [DOCS / "holding.md", *GUIDES]
GUIDE = pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)

MODULES = [
    *(
        f"kopiatomic.hooks.{module.name}"
        for module in pkgutil.iter_modules(hooks.__path__)
        if module.name not in {"hook", "run", "shell"}
    ),
    "kopiatomic.config.options",
    "kopiatomic.system.cgroups",
]
"""Where the messages about writers that are held are: not those of hooks."""

RAISED = {"KopiatomicError", "UsageError"}

PASSED_ON = {"--hold ...: ...", "...: ..."}
"""What is only another program's words, or those of a finding."""


# What can be run


def test_every_block_is_marked_and_most_are_run(capsys: pytest.CaptureFixture[str]) -> None:
    counts = Counter(step.mark for path in GUIDES for step in guide(path))
    with capsys.disabled():
        print("how-to guides:", ", ".join(f"{mark} {count}" for mark, count in sorted(counts.items())))
    assert counts["run"] > 4 * (counts["parsed"] + counts["not checked"])


def parse(words: list[str]) -> None:
    """Parse a command line as the program does. Raises click's errors."""
    called = Invocation("kopiatomic", tuple(words), {})
    current: click.Command = cli
    context = cli.make_context("kopiatomic", list(words), obj=called)
    while isinstance(current, click.Group):
        name, found, rest = current.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        context, current = found.make_context(name, rest, parent=context), found


@GUIDE
def test_every_command_of_ours_is_one(path: Path) -> None:
    commands = [words for step in guide(path) if step.mark in {"run", "parsed"} for words in own_commands(step.text)]
    assert commands
    for words in commands:
        parse(words)


def test_a_command_that_is_none_is_found() -> None:
    for words in (
        ["plan", "--hold"],
        ["profile", "chek", "x"],
        ["run", "--holder", "x"],
        ["schedule", "instal", "x"],
    ):
        with pytest.raises(click.UsageError):
            parse(words)


@GUIDE
def test_every_script_is_one_for_a_shell(path: Path) -> None:
    for step in guide(path):
        if step.mark in {"run", "parsed"}:
            command("sh", "-nc", step.text)


@GUIDE
def test_every_profile_is_right(path: Path, tmp_path: Path) -> None:
    written = [
        (name, text)
        for step in guide(path)
        for name, text in (
            [(step.about, step.text)]
            if step.mark == "profile"
            else re.findall(r"(?ms)^cat > /etc/kopiatomic/(\w+)\.toml <<'END'\n(.*?)^END$", step.text)
        )
    ]
    assert written
    for name, text in written:
        file = tmp_path / f"{name}.toml"
        file.write_text(text)
        found = profiles.options(profile.load(str(file), lambda _: None), {})
        assert found.hold_blocks or path.stem == "others"


# Messages


def texts(module: str) -> Iterator[tuple[str, bool]]:
    """Yield the texts in a module, values as three dots, and whether each is an error's message."""
    file = importlib.import_module(module).__file__
    assert file is not None
    for node in ast.walk(ast.parse(Path(file).read_text())):
        if isinstance(node, ast.Constant | ast.JoinedStr):
            yield template(node), False
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISED and node.args:
            first = node.args[0]
            yield template(first.left if isinstance(first, ast.BinOp) else first), True


def template(node: ast.expr) -> str:
    match node:
        case ast.JoinedStr():
            return "".join(template(part) for part in node.values)
        case ast.Constant(value=str()):
            return str(node.value)
        case ast.FormattedValue() | ast.Name() | ast.Attribute() | ast.Call():
            return "..."
    return ""


TEXTS = {text for module in MODULES for text, _ in texts(module)}
ERRORS = {text for module in MODULES for text, is_error in texts(module) if is_error}


def documented(path: Path) -> set[str]:
    """The messages in the first table below "Messages"."""
    table = (
        path.read_text()
        .partition("\n## Messages\n")[2]
        .partition("\n| message | what to do |\n")[2]
        .partition("\n\n")[0]
    )
    return {row.split("`")[1] for row in table.splitlines() if row.startswith("| `")}


def is_one(message: str) -> bool:
    """Whether the program has a message: as it stands, or with another of its texts at its end."""
    return message in TEXTS or any(
        message.startswith(text[:-3]) and message[len(text) - 3 :] in TEXTS
        for text in TEXTS
        if text.endswith(": ...") and len(text) > len("...: ...")
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_message_of_a_page_is_the_programs(path: Path) -> None:
    assert [message for message in sorted(documented(path)) if not is_one(message)] == []


def test_every_message_of_the_program_is_on_a_page() -> None:
    pages = set[str]().union(*map(documented, PAGES))
    options = {text for text, is_error in texts("kopiatomic.config.options") if is_error and "hold" not in text}
    missing = {
        message
        for message in ERRORS - PASSED_ON - options
        if not any(page == message or (message.endswith("...") and page.startswith(message[:-3])) for page in pages)
    }
    assert missing == set()


@pytest.mark.parametrize(("name", "module"), [("postgresql", postgresql), ("mariadb", mariadb)])
def test_the_servers_words_are_on_its_page(name: str, module: object) -> None:
    table = (DOCS / f"how-to/{name}.md").read_text().partition("\n| words | what to do |\n")[2].partition("\n\n")[0]
    meanings: tuple[tuple[str, str], ...] = getattr(module, "_MEANINGS")  # noqa: B009 - mypy knows no private names of it
    assert [words for words, _ in meanings if words not in table] == []


# Links


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)]+)\)", path.read_text()):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        headings = re.findall(r"(?m)^#+ (.*)$", target.read_text())
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, link


# The reading of a guide


def test_what_is_printed_is_compared_without_numbers() -> None:
    expected = "...\nHeld:   mariadb 3.1 ms\n...\nshot e47310a1 of ...\n"
    assert is_shown(expected, "Saved 2\nHeld: mariadb 12.0 ms\nshot 99f of x\n")
    assert not is_shown(expected, "Held: mariadb not needed\nshot 99f of x\n")
    assert not is_shown(expected, "Held: mariadb 12.0 ms\nshot 99f of x\nmore\n")
    assert not is_shown("a\nb\n", "a\nc\nb\n")


@pytest.mark.parametrize("text", ["```\nls\n```\n", "<!-- run -->\nls\n", "<!-- ran -->\n```\nls\n```\n"])
def test_a_block_without_a_mark_is_found(text: str) -> None:
    with pytest.raises(AssertionError):
        steps(text)
