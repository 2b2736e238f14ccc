"""The manual page says what the program does: every command, option, value, variable and exit status, and no more."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kopiatomic import errors
from kopiatomic.cli import entry as cli
from kopiatomic.commands import inside
from tests.support.programs import SOURCE, command

PAGE = SOURCE.parent / "man/kopiatomic.8"

Flags = tuple[str, ...]


def section(title: str) -> list[str]:
    """The lines of a section of the page."""
    return PAGE.read_text().partition(f"\n.Sh {title}\n")[2].partition("\n.Sh ")[0].splitlines()


def commands() -> dict[str, click.Command]:
    """All commands by the words that lead to them, but for those that only our own units start."""
    found: dict[str, click.Command] = {}
    for name, one in cli.cli.commands.items():
        if isinstance(one, click.Group):
            found |= {f"{name} {part}": two for part, two in one.commands.items() if not two.hidden}
        else:
            found[name] = one
    return found


COMMANDS = commands()


def options(name: str) -> dict[Flags, str]:
    """The options of a command as click has them, each with the value that it takes. ``-h`` is click's own."""
    found = {}
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option):
            value = parameter.metavar or ""
            if isinstance(parameter.type, click.Choice):
                value = "|".join(parameter.type.choices)
            found[tuple(parameter.opts)] = "" if parameter.is_flag else value
            found |= {(flag,): "" for flag in parameter.secondary_opts}
    return found


EVERY = {flags: value for name in COMMANDS for flags, value in options(name).items()}


def value_in(macros: str) -> str:
    """The value that follows a flag in mdoc(7): ``Ar NAME``, ``Cm a | b``, ``Op Ar RUN``, ``Ns Op = Ns Ar DURATION``."""
    found = re.sub(r"\bOp\b(.*)", r"[\1]", macros)
    return re.sub(r"\b(Ar|Cm|Ns)\b|\s", "", found)


# The synopsis: what each command takes


def synopsis() -> dict[str, dict[str, str]]:
    """What the synopsis gives each command: flags, each with its value."""
    found: dict[str, dict[str, str]] = {}
    for block in "\n".join(section("SYNOPSIS")).split(".Nm\n")[1:]:
        first, *_ = block.splitlines()
        command_ = re.fullmatch(r"\.(?:Op )?Cm (\w+(?: \w+)?)", first)
        taken = found.setdefault(command_[1] if command_ else "", {})
        for flag, rest in re.findall(r"^\.(?:Op )?Fl (\S+)(.*)$", block, re.MULTILINE):
            if flag.startswith("-"):
                taken |= {f"-{flag}": value_in(rest)} if flag != "-" else {}
            else:
                taken |= {f"-{letter}": value_in(rest) for letter in flag}
    return found


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_synopsis_has_the_options_of_each_command(name: str) -> None:
    """None missing, none too many; each by its shortest form, with its value."""
    wanted = {min(flags, key=len): value for flags, value in options(name).items()}
    given = dict(synopsis()[name])
    if name == "backup":
        given["-v"] = synopsis()[""].pop("-v")
    assert given == wanted


def test_the_synopsis_has_every_command_and_no_other() -> None:
    assert set(synopsis()) == {*COMMANDS, ""}


def test_every_command_is_described() -> None:
    described = [line.removeprefix(".It Cm ") for line in section("DESCRIPTION") if line.startswith(".It Cm ")]
    assert described == list(cli.cli.commands)


# The options, each with what it does


def described() -> dict[Flags, set[str]]:
    """The options that are described, in all their forms, with their values."""
    found: dict[Flags, set[str]] = {}
    for line in section("OPTIONS"):
        if line.startswith(".It Fl "):
            forms = re.split(r" , ", line.removeprefix(".It Fl "))
            flags = tuple(f"-{form.split()[0]}" for form in forms)
            found.setdefault(flags, set()).add(value_in(forms[-1].partition(" ")[2]))
    return found


def test_every_option_is_described_with_all_its_forms_and_its_value() -> None:
    wanted = {flags: {value} for flags, value in EVERY.items()}
    assert described() == {**wanted, ("-h", "--help"): {""}}


def test_the_defaults_that_are_named_are_those_of_the_program() -> None:
    text = re.sub(r"\s+", " ", re.sub(r"^\.\w+ |[\\]&", "", "\n".join(section("OPTIONS")), flags=re.MULTILINE))
    for name in COMMANDS:
        for parameter in COMMANDS[name].params:
            if isinstance(parameter, click.Option) and parameter.show_default:
                default = parameter.default
                assert re.search(rf"{re.escape(str(default))}\b", text), parameter.opts


def test_the_help_of_every_command_has_its_options() -> None:
    for name, one in COMMANDS.items():
        text = one.get_help(
            one.make_context(name, [], resilient_parsing=True, terminal_width=200, max_content_width=200)
        )
        for flags in options(name):
            assert all(re.search(rf"(?<![\w-]){re.escape(flag)}\b", text) for flag in flags), (name, flags)


# What surrounds it


_COMMON = {"HOME", "LC_ALL", "LOGNAME", "PATH", "PROMPT_COMMAND", "PS1", "PWD", "SHELL", "TERM", "TMPDIR", "TZ", "USER"}
"""Those that programs in general are told by."""


def variables_in_the_code() -> set[str]:
    """The environment variables that the code names: by how they look, or by what they are asked of."""
    found: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.fullmatch(r"_?(KOPIATOMIC|KOPIA|RESTIC|BORG|XDG)(_[A-Z]+)+", node.value):
                    found.add(node.value)
            elif isinstance(node, ast.Dict):
                found |= {key.value for key in node.keys if isinstance(key, ast.Constant) and key.value in _COMMON}
            found |= set(_asked(node))
    # Program names its variable after itself.
    assert 'f"KOPIATOMIC_{self.name.upper()}"' in (SOURCE / "kopiatomic/engines/program.py").read_text()
    engines = next(value for flags, value in EVERY.items() if flags == ("--engine",))
    return found | {f"KOPIATOMIC_{engine.upper()}" for engine in engines.split("|")}


def _asked(node: ast.AST) -> Iterator[str]:
    """The name in ``environ["NAME"]``, ``environment.get("NAME")`` and what is like them."""
    if isinstance(node, ast.Subscript):
        of, keys = node.value, [node.slice]
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"get", "setdefault", "pop"}
    ):
        of, keys = node.func.value, node.args[:1]
    else:
        return
    if re.search(r"(environ|environment|additions|_given|given|told)$", ast.unparse(of)):
        yield from (str(key.value) for key in keys if isinstance(key, ast.Constant) and str(key.value).isupper())


def test_the_environment_is_that_of_the_code() -> None:
    """``NO_COLOR``, ``COLUMNS`` and ``TERM`` are respected by rich and click; ``COMP_`` is between a shell and its completion."""
    lines = section("ENVIRONMENT")
    named = {
        name for line in lines if re.match(r"\.(It )?Ev ", line) for name in re.findall(r"\b_?[A-Z][A-Z0-9_]+", line)
    }
    assert named - {"NO_COLOR", "COLUMNS", "TERM"} == {
        name for name in variables_in_the_code() if not name.startswith("COMP_")
    }


def test_the_exit_statuses_are_those_of_the_program() -> None:
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    codes |= {inside._NOT_EXECUTABLE, inside._NOT_FOUND}
    given = [line.removeprefix(".It ") for line in section("EXIT STATUS") if line.startswith(".It ")]
    assert given == [*map(str, sorted(codes - {errors.SIGNAL_BASE})), f"{errors.SIGNAL_BASE}+n"]


def test_every_kopiatomic_in_the_examples_is_understood() -> None:
    lines = [line for line in section("EXAMPLES") if re.match(r"kopiatomic ", line)]
    assert len(lines) >= 6
    for line in lines:
        words = re.findall(r"(?<!\S)--?[a-z][a-z-]*", line.partition(" -- ")[0].partition("-cf")[0])
        name = next((name for name in COMMANDS if line.startswith(f"kopiatomic {name} ")), "backup")
        known = {flag for flags in options(name) for flag in flags}
        assert set(words) <= known, line


def test_mandoc_has_nothing_to_say_against_it() -> None:
    """Except which other pages are installed on this machine."""
    ended = command("mandoc", "-T", "lint", PAGE, check=False)
    said = [line for line in ended.stdout.splitlines() if "referenced manual not found" not in line]
    assert [line for line in said if "mandoc.db" not in line] == []


def test_it_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    text = command("mandoc", "-T", "ascii", "-O", "width=80", PAGE).stdout
    assert max(len(re.sub(r".\x08", "", line)) for line in text.splitlines()) <= 80
