"""What is written about profiles: the file that ``profile new`` starts with, and the schema that editors read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from kopiatomic.config.options import COMMAND_VARIABLES, ENGINE_FILE_VARIABLES, FILE_VARIABLES, REPOSITORY_VARIABLES
from kopiatomic.config.profile import SUFFIX
from kopiatomic.config.settings import ASK, BLOCKS, TABLES, WITH_ENVIRONMENT, Block, Form, Setting
from kopiatomic.errors import UsageError
from kopiatomic.text import printable

SCHEMA = "kopiatomic-profile.schema.json"
"""The name of the schema's file, which is part of the package."""

_ABOUT = {
    "select": "What is taken.",
    "view": "How it appears to the engine.",
    "engine": "What backs it up.",
    "hooks": "What runs around it.",
    "run": "Limits and demands.",
    "schedule": "When: 'kopiatomic schedule install NAME' reads it.",
    "records": "What is kept about runs.",
}

_ENVIRONMENT = {
    "engine": "Variables for the engine and what it starts, and for nothing else.",
    "hooks": "Variables for the hooks.",
}

_SECRETS = {"kopia": "PASSWORD", "restic": "PASSWORD", "borg": "PASSPHRASE"}
"""What the variable that has an engine's password is called, behind the engine's own name."""


def toml(value: Any) -> str:
    """Return a text, number, truth value or an array of them, or a table of these, as TOML.

    Raises UsageError for text that is not UTF-8, which TOML cannot hold.
    """
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_item(below)}" for key, below in value.items()) + " }"
    return _item(value)


def _item(value: Any) -> str:
    if not isinstance(value, str) and isinstance(value, Iterable):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{printable(value)} is not UTF-8, and a profile must be",
            kind="not-utf8",
            hint="Name it by a pattern, such as '*' for what cannot be written.",
        ) from None
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def block(name: str, content: Mapping[str, Any]) -> list[str]:
    """Return the lines of one block below its header; ``name`` is what leads to it, with dots."""
    lines = [f"{key} = {toml(value)}" for key, value in content.items() if key != "environment"]
    variables = content.get("environment", {})
    if variables:
        lines += [f"[{name}.environment]", *(f"{variable} = {toml(value)}" for variable, value in variables.items())]
    return lines


def starting_file(
    name: str, given: Mapping[tuple[str, str], Any], schema: str, variables: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Return a commented profile with these values, by table and key, and these variables of the engine.

    ``schema`` is where editors find the schema. Every other key is there as a comment, with its default. ``hold``, a list
    of tables, is in the table without a name. Raises UsageError.
    """
    holds = given.get(("", "hold"))
    hold = '# hold = [{ kind = "postgresql" }]' if holds is None else f"hold = [{', '.join(map(toml, holds))}]"
    lines = [
        f"#:schema {schema}",
        f"# What 'kopiatomic run {name}' backs up. A key that is commented out shows its default, or an example.",
        f"# 'kopiatomic profile check {name}' says whether all of it works.",
        '# extends = "_common"',
        f"{hold}  # Writers that are held still while the snapshots are made.",
    ]
    for table, settings in TABLES.items():
        lines += ["", f"[{table}]  # {_ABOUT[table]}"]
        for setting in settings:
            value = given.get((table, setting.key))
            lines += [f"# {_help(setting)}"]
            if value is None:
                default = _default(setting, name)
                lines += [f"# {setting.key} = {default}"]
            else:
                kept = "  # As it was: another root is another history." if setting.name == "mount_root" else ""
                lines += [f"{setting.key} = {toml(value)}{kept}"]
        for place, block in BLOCKS.items():
            if place[0] == table and len(place) > 1:
                lines += [f"# {block.help}", f"# {place[-1]} = {_EXAMPLE}"]
        if table in WITH_ENVIRONMENT:
            lines += ["", f"[{table}.environment]  # {_ENVIRONMENT[table]}", *_examples(_secret(table, given))]
            lines += [f"{variable} = {toml(value)}" for variable, value in variables.items() if table == "engine"]
    return "\n".join(lines) + "\n"


_EXAMPLE = '{ command = ["/usr/local/sbin/...", "..."], timeout = "10m" }'
"""A hook on one line."""


def _secret(table: str, given: Mapping[tuple[str, str], Any]) -> str:
    """Return a variable that probably holds a password there."""
    if table == "hooks" or ("engine", "command") in given:
        return "PGPASSWORD"
    engine = given.get(("engine", "engine"), "kopia")
    return f"{engine.upper()}_{_SECRETS[engine]}"


def _examples(variable: str) -> list[str]:
    word = variable.lower().removesuffix("password").removesuffix("passphrase").strip("_")
    return [
        f'# {variable} = {{ file = "/root/{word}.pw" }}',
        f'# {variable} = {{ credential = "{word}" }}',
        f'# {variable} = {{ command = ["pass", "show", "{word}"] }}',
    ]


def _help(setting: Setting) -> str:
    """Return what a setting means, without what only a command line needs."""
    text = setting.help.partition("  [default")[0]
    return text.removesuffix(" Repeatable.")


def _default(setting: Setting, name: str) -> str:
    if setting.name == "repository":
        return toml("/srv/repository")
    if setting.of_profiles is not None:
        return toml(setting.of_profiles.replace("NAME", name))
    if setting.form is Form.FLAG:
        return toml(bool(setting.default))
    if setting.form is Form.ANSWER:
        return toml(ASK)
    if setting.repeated:
        return "[]"
    if setting.default not in {None, ""}:
        return toml(setting.default)
    match setting.form:
        case Form.CHOICE:
            return toml(setting.choices[0])
        case Form.DURATION:
            return toml("1h")
        case Form.SHARE:
            return toml("1%")
        case Form.NUMBER:
            return "0"
    if setting.words:
        return "[]" if setting.default == "" else toml(["..."])
    return toml(f"/{setting.value}" if setting.directory else setting.value or "")


# For editors


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 7, which editors of TOML understand) of a profile."""
    tables = {
        table: {
            "type": "object",
            "description": _ABOUT[table],
            "additionalProperties": False,
            "properties": {setting.key: _schema_of(setting) for setting in settings}
            | ({"environment": _ENVIRONMENT_SCHEMA} if table in WITH_ENVIRONMENT else {})
            | {place[1]: _schema_of_block(block) for place, block in BLOCKS.items() if place[0] == table},
        }
        for table, settings in TABLES.items()
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": "urn:kopiatomic:profile-1",
        "title": "A profile of kopiatomic",
        "description": f"A file NAME{SUFFIX} in /etc/kopiatomic: one backup.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "extends": {
                "type": "string",
                "description": "The profile whose values hold where this one says nothing.",
                "pattern": "^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
            },
            **tables,
            **{place[0]: _schema_of_block(block) for place, block in BLOCKS.items() if len(place) == 1},
        },
        "definitions": {
            "text": {"type": "string", "pattern": _TEXT},
            "duration": {
                "description": "Seconds, or a text with a unit.",
                "anyOf": [
                    {"type": "number", "minimum": 0, "maximum": 3650 * 86400},
                    {"type": "string", "pattern": "^\\s*[0-9]+(\\.[0-9]+)?\\s*[smhd]?\\s*$"},
                ],
            },
            "source": {"anyOf": _sources()},
            "environment": {
                "type": "object",
                "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
                "patternProperties": {
                    rf"^({'|'.join(REPOSITORY_VARIABLES)}|{ENGINE_FILE_VARIABLES})$": _variable(_REPOSITORY),
                    rf"^(?!{ENGINE_FILE_VARIABLES}$)({FILE_VARIABLES})$": _variable(_MAYBE_FILE),
                    rf"^({COMMAND_VARIABLES})$": _variable(rf"^{_NO_RELATIVE}{_NOT_EMPTY[1:]}"),
                },
                "additionalProperties": _variable(_NOT_EMPTY),
            },
        },
    }


_ENVIRONMENT_SCHEMA = {"$ref": "#/definitions/environment"}


def _schema_of_block(block: Block) -> dict[str, Any]:
    several = [_schema_of_one(block, kind) for kind in block.kinds()] if block.kinds is not None else []
    one = {"anyOf": several} if several else _schema_of_one(block)
    return {"description": block.help, "anyOf": [one, {"type": "array", "minItems": 1, "items": one}]}


def _schema_of_one(block: Block, kind: str | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {key: _schema_of(setting) for key, setting in block.of(kind).items()}
        | ({} if kind is None else {"kind": {"const": kind}})
        | ({"environment": _ENVIRONMENT_SCHEMA} if block.has_environment else {}),
        **({"oneOf": [{"required": [key]} for key in block.one_of]} if block.one_of else {}),
        **({"required": list(block.needs)} if block.needs else {}),
    }


def _variable(pattern: str) -> dict[str, Any]:
    """Return what a variable may be: a text of this pattern, or a table that says where its value is."""
    return {"anyOf": [{"type": "string", "pattern": pattern}, {"$ref": "#/definitions/source"}]}


def _sources() -> list[dict[str, Any]]:
    """Return the forms in which a variable says where its value is."""
    forms: dict[str, tuple[str, dict[str, Any]]] = {
        "file": ("The path of a file that root alone can read.", {"type": "string", "pattern": _ABSOLUTE}),
        "credential": ("The name of a credential of systemd.", {"type": "string", "pattern": r"^[^/\u0000]+$"}),
        "command": (
            "A command that prints it.",
            {
                "type": "array",
                "minItems": 1,
                "items": {"type": "string", "pattern": r"^[^\u0000]+$"},
                "allOf": [_FIRST_WORD],
            },
        ),
    }
    return [
        {
            "type": "object",
            "required": [form],
            "additionalProperties": False,
            "properties": {form: {"description": text, **rule}},
        }
        for form, (text, rule) in forms.items()
    ]


_TEXT = r"^[^\u0000]*$"
_NOT_EMPTY = r"^[^\u0000]+$"
_FILLED = r"^[^\u0000]*[^\s\u0000][^\u0000]*$"
_ABSOLUTE = r"^/[^\u0000]*$"
_REPOSITORY = r"^((local:|file://)(/|[^/\u0000]*:)|(?!local:|file://)(/|[^/\u0000]*:))[^\u0000]*$"
_MAYBE_FILE = r"^([/$~][^\u0000]*|[^/\u0000]+|(local:|file://)/[^\u0000]*|[^/\u0000]*:[^\u0000]*)$"
_NO_RELATIVE = r"(?!\s*['\"]?\.{1,2}/)"
_RULES = {
    "names": r"^(/[^\u0000]*|(?!\s*$|-|\.{1,2}(/|$))[^@#\u0000]*)$",
    "exclude": r"^(/[^\u0000]*|(?!\s*$|-|\.{1,2}(/|$))([^@#\u0000]*|[^\u0000]*\*[^\u0000]*))$",
    "property": r"^(?=.*:)([a-z0-9_.:]|\$\{hostname\})([a-z0-9_.:-]|\$\{hostname\}){0,255}$",
    "name": r"^(?!\s*$|-|\.{1,2}$)[^/\u0000-\u001f\u007f]{1,255}$",
    "calendar": r"^(?!\s*$|\s*(@\w+|[0-9*,/-]+(\s+[\w*,/-]+){4})\s*$)[^\u0000]+$",
    "repository": _REPOSITORY,
    **dict.fromkeys(("command", "shell", "pre_hook", "post_hook"), rf"^{_NO_RELATIVE}{_FILLED[1:]}"),
}
"""What a text must be, by setting, for what ``config.options.problem_with`` refuses and a pattern can say."""


_FIRST_WORD = {"items": [{"pattern": r"^(?!\.{1,2}/)"}]}


def _pattern(setting: Setting) -> str:
    if setting.directory:
        return _ABSOLUTE
    return _RULES.get(setting.name, _TEXT if setting.default == "" else _FILLED)


_MEASURES = {
    Form.SHARE: r"^(all|\d+(\.\d+)?\s*%?)$",
    Form.SIZE: r"^\d+(\.\d+)?\s*[KkMGT]?(iB|B)?$",
}


def _schema_of(setting: Setting) -> dict[str, Any]:
    told: dict[str, Any] = {"description": _help(setting)}
    if setting.of_profiles is not None:
        told["default"] = setting.of_profiles
    elif setting.default not in {None, ""}:
        told["default"] = setting.default
    if setting.is_secret:
        return told | _variable(_NOT_EMPTY)
    text = {"type": "string", "pattern": _pattern(setting)}
    if setting.repeated:
        return told | {"type": "array", "items": text}
    match setting.form:
        case Form.FLAG:
            return told | {"type": "boolean", "default": bool(setting.default)}
        case Form.ANSWER:
            return told | {"enum": [True, False, ASK], "default": ASK}
        case Form.CHOICE:
            return told | {"enum": list(setting.choices)}
        case Form.DURATION:
            rule: dict[str, Any] = {"$ref": "#/definitions/duration"}
            return told | ({"anyOf": [rule, {"const": True}]} if setting.alone is not None else {"allOf": [rule]})
        case Form.SHARE | Form.SIZE:
            return told | {"type": "string", "pattern": _MEASURES[setting.form]}
        case Form.NUMBER | Form.COUNT:
            return told | {"type": "integer", "minimum": int(setting.least), "maximum": int(setting.most)}
    if setting.words:
        words: dict[str, Any] = {"type": "array", "items": {"$ref": "#/definitions/text"}}
        if setting.default != "":
            words |= {"minItems": 1, "allOf": [_FIRST_WORD]}
        return told | {"anyOf": [text, words]}
    return told | text
