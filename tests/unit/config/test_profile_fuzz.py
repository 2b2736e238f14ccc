"""Whatever bytes are in a profile, it is refused in plain words or understood, and then it says the same when written again."""

from __future__ import annotations

import json
import os
import random
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kopiatomic.commands.profile import show
from kopiatomic.commands.profiles import Folder, options
from kopiatomic.config.profile import Profile, ProfileError, load
from kopiatomic.config.profile_text import block, toml
from kopiatomic.config.settings import BLOCKS
from kopiatomic.output.console import Console
from kopiatomic.secrets.masking import MASK
from tests.support.parts import share
from tests.unit.config.test_profile import EVERYTHING
from tests.unit.config.test_profile_text import VALID

FILES = share(10_000, 1_000)
LINES = [line for line in EVERYTHING.splitlines() if line]
BITS = [
    *LINES,
    *"\"'=[]{}\\#\n\t\0é1.-:",
    "true",
    "nan",
    "1e999",
    "9" * 30,
    "1979-05-27",
    "${",
    "${hostname}",
    "''''",
    "[[select]]",
    "\u202e",
    "./",
]


def damaged(chance: random.Random) -> bytes:
    """A profile with a few changes at random places."""
    some = chance.sample(LINES, chance.randrange(len(LINES)))
    text = EVERYTHING if chance.random() < 0.6 else "\n".join(sorted(some, key=EVERYTHING.index))
    for _ in range(chance.randrange(4)):
        begin = chance.randrange(len(text) + 1)
        text = text[:begin] + chance.choice(BITS) + text[begin + chance.randrange(6) :]
    content = text.encode()
    return content.replace(b"e", b"\xff", 1) if chance.random() < 0.05 else content


def said(profile: Profile) -> dict[tuple[str, ...], Any]:
    """What a profile says, without where."""
    values = {("value", *place): value.value for place, value in profile.values.items()}
    blocks = {
        ("block", *place): [
            [{k: v.value for k, v in part.items()} for part in (entry.values, entry.environment)]
            for entry in value.value
        ]
        for place, value in profile.blocks.items()
    }
    return values | blocks | {("variable", *place): value.value for place, value in profile.environment.items()}


def written(tables: Mapping[str, Any]) -> str:
    lines = []
    for table, content in tables.items():
        if isinstance(content, list):
            lines += [line for one in content for line in (f"[[{table}]]", *block(table, one))]
            continue
        variables = content.get("environment", {})
        blocks = [key for key in content if (table, key) in BLOCKS]
        plain = {key: value for key, value in content.items() if key != "environment" and key not in blocks}
        lines += [f"[{table}]", *(f"{key} = {toml(value)}" for key, value in plain.items())]
        if variables:
            lines += [f"[{table}.environment]", *(f"{name} = {toml(value)}" for name, value in variables.items())]
        for key in blocks:
            for one in content[key]:
                lines += [f"[[{table}.{key}]]", *block(f"{table}.{key}", one)]
    return "\n".join(lines) + "\n"


def test_any_file_is_refused_or_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(f"{os.environ['KOPIATOMIC_TEST_SEED']}/profiles")
    path, again = tmp_path / "home.toml", tmp_path / "again.toml"
    for file in (path, again):
        file.touch(0o600)
    accepted = 0
    for number in range(FILES):
        content = damaged(chance)
        path.write_bytes(content)
        try:
            profile = load(str(path))
        except ProfileError as error:
            lines = [line for problem in error.problems for line in problem.lines()]
            assert lines
            assert all(line.startswith((f"{path}:", "    ")) and line.isprintable() for line in lines), (number, lines)
            continue
        accepted += 1
        VALID.validate(tomllib.loads(content.decode()))
        try:
            options(profile, {})
        except ProfileError:
            # Nothing is selected, or a kind of writer is none: what a file alone does not say.
            continue
        assert show("home", Folder(str(tmp_path)), Console(), origin=False, as_json=True) == 0
        shown = json.loads(capsys.readouterr().out)["profile"]
        if MASK not in json.dumps(shown):
            again.write_text(written(shown))
            assert said(load(str(again))) == said(profile), (number, content)
    print(f"{FILES} files, {accepted} of them understood")
    assert FILES / 20 < accepted < FILES * 0.95
