"""A matrix of situations: what a plan says of each dataset, what is expected of it, and what a run shows to its engine."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKER = "marker"
"""A file in a directory that says whose it is."""


@dataclass(frozen=True)
class Row:
    """What is expected of a dataset: its verdict, whether that makes the run incomplete, and where it appears."""

    verdict: str
    incomplete: bool = False
    place: str = ""
    reason: str = ""
    """A regular expression; empty where any reason will do."""
    marker: str = ""
    """What the marker at its place says, where that is not the dataset's name."""


def verdicts(document: Any) -> dict[str, tuple[str, bool, str]]:
    """Verdict, incompleteness and place of each dataset in the document of a plan or a run."""
    taken = {d["dataset"]: ("taken", False, d["path"]) for d in document["datasets"]}
    return taken | {o["dataset"]: (o["verdict"], o["incomplete"], "") for o in document["left_out"]}


def wrong(rows: Mapping[str, Row], document: Any) -> dict[str, object]:
    """What a document says otherwise than expected, or of what nothing is expected."""
    found = verdicts(document)
    reasons = {d["dataset"]: d["reason"] for d in (*document["datasets"], *document["left_out"])}
    differing: dict[str, object] = {
        name: (found.get(name), reasons.get(name), row)
        for name, row in rows.items()
        if found.get(name) != (row.verdict, row.incomplete, row.place) or not re.search(row.reason, reasons[name])
    }
    return differing | {name: found[name] for name in found.keys() - rows.keys()}


def expected_markers(rows: Mapping[str, Row]) -> dict[str, str]:
    """Where a run must show which marker."""
    return {row.place: row.marker or name for name, row in rows.items() if row.verdict == "taken"}


class Markers:
    """An engine that writes down where in the view it found which marker."""

    def __init__(self, folder: Path) -> None:
        self._script = folder / "markers.py"
        self._script.write_text(_ENGINE)
        self._found = folder / "markers.json"

    @property
    def command(self) -> str:
        """What to give to -c."""
        return shlex.join(["python3", "-SI", str(self._script), str(self._found)])

    def shown(self) -> dict[str, str]:
        """Markers by the places they were found at."""
        found: dict[str, str] = json.loads(self._found.read_text())
        return found


_ENGINE = f"""
import json, os, sys
out, root = sys.argv[1], sys.argv[2]
found = {{}}
for folder, folders, files in os.walk(os.fsencode(root)):
    if b"{MARKER}" in files:
        with open(os.path.join(folder, b"{MARKER}"), "rb") as file:
            found[os.fsdecode(folder)[len(root):] or "/"] = os.fsdecode(file.read())
with open(out, "w") as file:
    json.dump(found, file)
"""
