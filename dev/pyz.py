"""Writes one file that Python runs: pyz.py OUT PART..., where a PART is a wheel or a folder with packages.

Like ``python -m zipapp``, which takes order, times and modes from the filesystem; here the same files give the same bytes.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

_MAIN = """\
import sys

if sys.version_info < (3, 11):
    found = "%d.%d" % (sys.version_info[0], sys.version_info[1])
    sys.exit("kopiatomic: it needs Python 3.11 or later, and this is %s: python3.11 %s" % (found, sys.argv[0]))

import os

# Modules are loaded late, perhaps from another directory than that in which it was started.
sys.path[0] = os.path.abspath(sys.path[0])

from kopiatomic.cli.entry import main

main()
"""

_TIME = (1980, 1, 1, 0, 0, 0)
"""The first that the format can say. An import from an archive looks at no time."""


def contents(part: Path) -> dict[str, bytes]:
    """The files of a wheel or a folder by their names in the archive, without what a wheel installs elsewhere."""
    if part.is_dir():
        return {path.relative_to(part).as_posix(): path.read_bytes() for path in part.rglob("*") if path.is_file()}
    with zipfile.ZipFile(part) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist() if ".data/" not in name}


def write(target: Path, files: dict[str, bytes]) -> None:
    """Write the archive, which a shell can start, and put it into its place at once."""
    building = target.with_suffix(".building")
    with building.open("wb") as stream:
        stream.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in sorted(files.items()):
                entry = zipfile.ZipInfo(name, _TIME)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    building.chmod(0o755)
    building.replace(target)


if __name__ == "__main__":
    out, *parts = map(Path, sys.argv[1:])
    found = {"__main__.py": _MAIN.encode()}
    for one in parts:
        found |= contents(one)
    write(out, found)
