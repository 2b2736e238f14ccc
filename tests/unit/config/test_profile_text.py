"""The starting file of a profile says all keys, and the schema accepts what the program accepts."""

from __future__ import annotations

import json
import random
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import kopiatomic
from kopiatomic.config.profile import Problem, ProfileError, load
from kopiatomic.config.profile_text import SCHEMA, schema, starting_file, toml
from kopiatomic.config.settings import ASK, BLOCKS, TABLES, Form, Setting
from kopiatomic.errors import UsageError
from tests.support.programs import SOURCE
from tests.unit.config.test_profile import EVERYTHING, WRONG

SHIPPED = Path(kopiatomic.__file__).parent / "config" / SCHEMA
VALID = jsonschema.Draft7Validator(schema())


def problems_of(path: Path) -> list[Problem]:
    try:
        load(str(path))
    except ProfileError as error:
        return error.problems
    return []


def test_the_schema_in_the_package_is_that_of_the_table() -> None:
    """To write it anew: python -c 'import json; from kopiatomic.config.profile_text import schema; ...' as below."""
    jsonschema.Draft7Validator.check_schema(schema())
    assert SHIPPED.read_text() == json.dumps(schema(), indent=2) + "\n"


def test_the_schema_accepts_a_profile_that_says_everything() -> None:
    VALID.validate(tomllib.loads(EVERYTHING))
    said = tomllib.loads(EVERYTHING)
    missing = {
        (table, setting.key)
        for table, settings in TABLES.items()
        for setting in settings
        if setting.key not in said.get(table, {})
    }
    # These exclude others of that profile.
    assert missing == {
        ("select", "all"),
        ("select", "volumes"),
        ("view", "mount_root"),
        ("view", "name"),
        ("engine", "command"),
        ("engine", "skip_unchanged"),
        ("engine", "no_maintenance"),
        ("view", "metadata"),
        ("hooks", "post_hook"),
    }


@pytest.mark.parametrize("text", WRONG)
def test_the_schema_refuses_what_one_value_alone_makes_wrong(text: str) -> None:
    message = WRONG[text][0]
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    several = re.search(
        r"exclude each other|quotation|is / itself| is for |does not exist|extend itself|only \$\{hostname\}", message
    )
    if several is None and "nan" not in message and "shorter" not in message:
        assert not VALID.is_valid(tree), message


def test_the_starting_file_has_every_key_and_says_what_it_was_given(tmp_path: Path) -> None:
    given: dict[tuple[str, str], Any] = {
        ("", "hold"): [{"kind": "postgresql", "name": "15/main"}, {"kind": "mariadb"}],
        ("select", "datasets"): ("tank/home", 'a "b"'),
        ("view", "mount_root"): "/kopia",
        ("run", "wait"): 60.0,
    }
    text = starting_file("home", given, f"/usr/share/{SCHEMA}")
    assert text.startswith(f"#:schema /usr/share/{SCHEMA}\n")
    path = tmp_path / "home.toml"
    path.write_text(text)
    assert problems_of(path) == []
    profile = load(str(path))
    assert profile.options() == {"names": ("tank/home", 'a "b"'), "mount_root": "/kopia", "wait": 60.0}
    held = [{key: value.value for key, value in entry.values.items()} for entry in profile.entries("hold")]
    assert held == given["", "hold"]
    for table, settings in TABLES.items():
        section = text.partition(f"\n[{table}]")[2].partition("\n[")[0]
        for setting in settings:
            assert re.search(rf"(?m)^(# )?{setting.key} = ", section), (table, setting.key)


@pytest.mark.parametrize("table", TABLES)
def test_each_key_of_the_starting_file_is_right_when_its_comment_sign_goes(table: str, tmp_path: Path) -> None:
    text = starting_file("home", {}, SCHEMA)
    path = tmp_path / "home.toml"
    for line in text.partition(f"\n[{table}]")[2].partition("\n[")[0].splitlines():
        if re.match(r"# [a-z_]+ = ", line):
            path.write_text(f"[{table}]\n{line[2:]}\n")
            # It is right by itself, and may need another engine or layout.
            assert [problem for problem in problems_of(path) if " is for " not in problem.message] == [], line


def test_a_text_is_written_so_that_it_is_read_the_same() -> None:
    chance = random.Random(5)
    for _ in range(500):
        word = "".join(chr(chance.choice([0, 9, 10, 34, 39, 92, 127, 133, 233, 0x2028, 0x1F600])) for _ in range(9))
        assert tomllib.loads(f"a = {toml([word])}") == {"a": [word]}
    with pytest.raises(UsageError, match="not UTF-8"):
        toml("caf\udce9")


# The reference


def table_of_keys() -> str:
    """The reference of docs/profiles.md, made from the table of settings."""
    hold = BLOCKS["hold",]
    assert hold.kinds is not None
    lines = ["### [[hold]]", "", "| key | value | by default | |", "|---|---|---|---|"]
    lines += [f"| `{one.key}` | {value_of(one)} | {default_of(one)} | {one.help} |" for one in hold.settings]
    rows: dict[str, list[str]] = {}
    for kind, own in hold.kinds().items():
        for one in own:
            rows.setdefault(f"`{one.key}` | {value_of(one)} | {default_of(one)} | {one.help}", []).append(kind)
    lines += ["", "And of its kind:", "", "| of | key | value | by default | |", "|---|---|---|---|---|"]
    lines += [f"| {', '.join(kinds)} | {row} |" for row, kinds in rows.items()]
    lines.append("")
    for table, settings in TABLES.items():
        lines += [f"### [{table}]", "", "| key | value | by default | |", "|---|---|---|---|"]
        for setting in settings:
            only = [*setting.engines, *([f"layout {setting.layout}"] if setting.layout else [])]
            help_ = setting.help.partition("  [default")[0].removesuffix(" Repeatable.").replace("|", "\\|")
            more = f" (only {', '.join(only)})" if only else ""
            lines.append(f"| `{setting.key}` | {value_of(setting)} | {default_of(setting)} | {help_}{more} |")
        blocks = {place: block for place, block in BLOCKS.items() if place[0] == table}
        lines += [f"| `{place[-1]}` | table, or several |  | {block.help} |" for place, block in blocks.items()]
        lines.append("")
        if blocks:
            lines += [f"### [{table}.before] and the others", "", "| key | value | by default | |", "|---|---|---|---|"]
            every = {setting.key: setting for block in blocks.values() for setting in block.settings}
            lines += [f"| `{one.key}` | {value_of(one)} | {default_of(one)} | {one.help} |" for one in every.values()]
            lines += ["| `environment` | table |  | Variables for it alone, with the same forms. |", ""]
    return "\n".join(lines)


def value_of(setting: Setting) -> str:
    if setting.repeated:
        return "texts"
    match setting.form:
        case Form.FLAG:
            return "true, false"
        case Form.ANSWER:
            return f'true, false, "{ASK}"'
        case Form.CHOICE if len(setting.choices) > 8:
            return f'"{setting.choices[0]}", "{setting.choices[1]}" to "{setting.choices[-1]}"'
        case Form.CHOICE:
            return ", ".join(f'"{choice}"' for choice in setting.choices)
        case Form.DURATION:
            return "duration, true" if setting.alone else "duration"
        case Form.NUMBER:
            return f"{setting.least:g} to {setting.most:g}"
    return "text or words" if setting.words else "text, or where it is" if setting.is_secret else "text"


def default_of(setting: Setting) -> str:
    if setting.form is Form.FLAG:
        return "true" if setting.default else "false"
    if setting.form is Form.ANSWER:
        return f'`"{ASK}"`'
    if setting.name == "engine":
        return '"kopia"'
    if setting.of_profiles is not None:
        return f"`{toml(setting.of_profiles)}`"
    return f"`{toml(setting.default)}`" if setting.default not in {None, ""} else ""


def test_the_reference_is_made_from_the_table() -> None:
    document = (SOURCE.parent / "docs" / "profiles.md").read_text()
    assert document.partition("<!-- keys -->\n\n")[2] == table_of_keys()


def test_the_example_in_the_documentation_is_right(tmp_path: Path) -> None:
    document = (SOURCE.parent / "docs" / "profiles.md").read_text()
    path = tmp_path / "home.toml"
    path.write_text(document.partition("```toml\n")[2].partition("```")[0])
    assert problems_of(path) == []
