"""The schema of --json's document, as the package carries it."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator


def schema() -> Any:
    return json.loads((resources.files("kopiatomic.output") / "run.schema.json").read_text(encoding="utf-8"))


def valid(text: str) -> Any:
    """The document in a text, which must be what the schema says."""
    document = json.loads(text)
    Draft202012Validator(schema()).validate(document)
    return document
