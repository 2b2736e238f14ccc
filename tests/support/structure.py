"""What a run does however many datasets it takes, counted by strace(1): programs, processes, calls, looks at the mount table."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tests.support.programs import Kopiatomic, command
from tests.support.syscalls import IOCTLS

_CALLS = "execve,clone,clone3,fork,vfork,ioctl,openat"
_FORK = re.compile(r"\b(clone3?|v?fork)\(")
_UNFINISHED = " <unfinished ...>"
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>")
_THREAD = 0x10000
"""CLONE_THREAD"""


def counted(log: Path, *args: str | Path, env: Mapping[str, str]) -> tuple[Counter[str], int]:
    """Run kopiatomic; how often each of these things was done, by all its processes, and how many datasets it took."""
    argv = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-X",
        "raw",
        "-e",
        f"trace={_CALLS}",
        "-o",
        str(log),
        *Kopiatomic.argv("--json", *args),
    ]
    ended = command(*argv, env=env, timeout=300)
    assert ended.returncode == 0, str(ended)
    found: Counter[str] = Counter()
    for line in _joined(log.read_text(errors="replace").splitlines()):
        if "= -1 " in line:
            continue
        if "execve(" in line:
            found["programs"] += 1
        elif "openat(" in line and "/mountinfo" in line:
            found["mount tables"] += 1
        elif _FORK.search(line) and not _is_thread(line):
            found["processes"] += 1
        elif (request := re.search(r"ioctl\(\d+, (0x[0-9a-f]+)", line)) is not None:
            name = IOCTLS.get(int(request[1], 16) & 0xFFFF)
            if name is not None:
                found[name] += 1
    return found, len(json.loads(ended.stdout)["datasets"])


def _joined(lines: Iterable[str]) -> Iterator[str]:
    """Each call on one line, also where what another process did stands between its beginning and its result."""
    begun: dict[str, str] = {}
    for line in lines:
        pid = line.split(maxsplit=1)[0]
        if line.endswith(_UNFINISHED):
            begun[pid] = line.removesuffix(_UNFINISHED)
        elif (resumed := _RESUMED.search(line)) is not None:
            yield begun.pop(pid) + line[resumed.end() :]
        else:
            yield line


def _is_thread(line: str) -> bool:
    flags = re.search(r"flags=(0x[0-9a-f]+)", line)
    return flags is not None and bool(int(flags[1], 16) & _THREAD)
