"""Where the keys of a TOML file stand, against what tomllib finds in it."""

from __future__ import annotations

import random
import tomllib
from typing import Any

from kopiatomic.config.positions import Position, index

DOCUMENT = '''\
# A comment with [brackets] and a = "sign".
extends = "base"
[select]
datasets = [ # all of them
    "tank/home", 'tank/[x]',
    """tank/"long" # no comment""" ,
]
"exclude" = ["a, b"]
view.layout = "in-place"   # a dotted key

[ engine . environment ]
RESTIC_PASSWORD = { file = "/root/x", "a\\u0041" = [1, {b = 2}] }
when = 2026-11-29 02:00:00
[[hooks]]
name = "one"
[[hooks]]
name = \'\'\'
two \'\'\'
[hooks.more]
is = true
'''


def at(*path: str | int) -> tuple[int, int]:
    found = index(DOCUMENT, tomllib.loads(DOCUMENT))[path]
    return found.line, found.column


def test_every_key_and_item_has_its_place() -> None:
    assert at("extends") == (2, 1)
    assert at("select") == (3, 2)
    assert at("select", "datasets") == (4, 1)
    assert [at("select", "datasets", number) for number in range(3)] == [(5, 5), (5, 18), (6, 5)]
    assert at("select", "exclude") == (8, 1)
    assert at("select", "view") == (9, 1)
    assert at("select", "view", "layout") == (9, 6)
    assert at("engine") == (11, 3)
    assert at("engine", "environment") == (11, 12)
    assert at("engine", "environment", "RESTIC_PASSWORD", "aA", 1, "b") == (12, 56)
    assert at("engine", "environment", "when") == (13, 1)
    assert at("hooks", 1, "name") == (17, 1)
    assert at("hooks", 1, "more", "is") == (20, 1)


def test_lines_are_counted_alike_with_either_line_end() -> None:
    text = DOCUMENT.replace("\n", "\r\n")
    assert index(text, tomllib.loads(text)) == index(DOCUMENT, tomllib.loads(DOCUMENT))


def test_there_is_no_position_where_the_tree_is_another() -> None:
    assert index("a = 1\n", {"a": 1}) == {("a",): Position(1, 1, 1)}
    assert index("a = 1\n", {"b": 1}) == {}
    assert index("not toml at all", {"not": 1}) == {}


WORDS = ["a", '"b.c"', "'d e'", "1", "x-y", '"\\u00e4"']


def some_value(chance: random.Random, deep: int) -> str:
    kind = chance.randrange(9 if deep else 7)
    if kind == 7:
        gap = chance.choice(["", " ", "\n", " # of [it\n"])
        items = [some_value(chance, deep - 1) for _ in range(chance.randrange(4))]
        return "[" + gap + f"{gap},".join(items) + gap + chance.choice([",", ""] if items else [""]) + gap + "]"
    if kind == 8:
        keys = chance.sample(WORDS, chance.randrange(3))
        return "{" + ", ".join(f"{key} = {some_value(chance, deep - 1)}" for key in keys) + "}"
    return ['"te,x]t \\" #"', "'\\ }'", '"""\nlong ""two"" #""""', "'''it''s '''", "-1_000.5e3", "07:32:00", "true"][
        kind
    ]


def some_document(chance: random.Random) -> str:
    lines = []
    for _ in range(chance.randrange(12)):
        kind = chance.randrange(8)
        dotted = chance.choice([".", " . "]).join(chance.choice(WORDS) for _ in range(chance.randrange(1, 4)))
        lines.append({0: f"[{dotted}]", 1: f"[[ {dotted} ]] # it", 2: "", 3: " # [none]"}.get(kind, ""))
        if kind > 3:
            lines[-1] = f"{chance.choice(['', '  '])}{dotted} = {some_value(chance, 3)}{chance.choice(['', ' # = '])}"
    return chance.choice(["\n", "\r\n"]).join(lines)


def test_the_places_are_found_in_whatever_tomllib_accepts() -> None:
    chance = random.Random(20)
    accepted = 0
    while accepted < 2_000:
        text = some_document(chance)
        try:
            tree: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            continue
        accepted += 1
        found = index(text, tree)
        assert found or not tree, text
        lines = text.replace("\r\n", "\n").split("\n")
        for path, position in found.items():
            shown = lines[position.line - 1][position.column - 1 :]
            if isinstance(path[-1], str):
                assert tomllib.loads(f"{shown[: position.length]} = 1") == {path[-1]: 1}, (text, path)
