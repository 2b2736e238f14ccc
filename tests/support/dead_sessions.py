"""Mounts and loop devices of test sessions that were killed before they could remove them: removed at the next start, or named.

A session's temporary folder has a file ``.lock`` with the session's process id (pytest, ``_pytest/pathlib.py``), which goes at
an orderly end. So what lies below such a folder is a dead session's if that file, or that process, is not there. It is unmounted
and detached here, and nothing is deleted: pytest itself removes old folders.
"""

from __future__ import annotations

import getpass
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kopiatomic.system import mountinfo
from tests.support.programs import command

_FOUND = pytest.StashKey[list[str]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    if os.geteuid() == 0 and Path(mountinfo.SELF).exists():
        top = Path(os.environ.get("PYTEST_DEBUG_TEMPROOT") or tempfile.gettempdir()).resolve()
        session.config.stash[_FOUND] = clear(top / f"pytest-of-{getpass.getuser()}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_FOUND, []):
        terminalreporter.write_line(line)


def clear(top: Path) -> list[str]:
    """Remove what dead sessions left mounted below their folders in ``top``, and their loop devices; say what was done."""
    said = []
    # The last one made first: it may lie on, or be made from, another.
    for point in reversed([m.point for m in mountinfo.read() if _is_of_the_dead(m.point, top)]):
        said.append(_did("umount", "--no-canonicalize", point))
    for device, file in _loops():
        # With its last mount the kernel has detached it already, unless it was attached by losetup(8).
        if _is_of_the_dead(file, top) and not any(m.source == device for m in mountinfo.read()):
            said.append(_did("losetup", "--detach", device))
    return said


def _did(*words: str) -> str:
    ended = command(*words, check=False)
    what = f"of a test session that was killed: {' '.join(words)}"
    return what if ended.returncode == 0 else f"LEFT {what}: {ended.stderr.strip()}"


def _loops() -> Iterator[tuple[str, str]]:
    """The loop devices that are attached, each with its file."""
    for entry in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        try:
            file = entry.read_text().rstrip("\n").removesuffix(" (deleted)")
        except OSError:
            # Detached in this moment.
            continue
        yield f"/dev/{entry.parts[3]}", file


def _is_of_the_dead(path: str, top: Path) -> bool:
    """Whether something lies below the folder of a session in ``top`` that is not alive."""
    found = re.match(rf"{re.escape(str(top))}/(pytest-\d+)/", path)
    return found is not None and not _is_alive(top / found[1])


def _is_alive(folder: Path) -> bool:
    try:
        owner = int((folder / ".lock").read_text())
        os.kill(owner, 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except (OSError, ValueError, OverflowError):
        # Not to be told, or just being written.
        return True
    return True
