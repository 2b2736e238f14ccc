"""An engine for the tests of faults: reads the whole view and writes down what it has read, with bad habits.

``fault_engine.py FOLDER [HABIT...] ROOT``. ``FOLDER/started`` says that it runs; ``FOLDER/proof`` is there only if it has
read everything, and is what a run that says "saved" is judged by. Needs nothing but Python, so that it starts quickly.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable


def contents(top: str) -> dict[str, str]:
    """Path below ``top`` of every file, and a hash of what it holds. Raises OSError: nothing is passed over."""
    found = {}

    def fail(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(top, onerror=fail):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, top)] = hashlib.sha256(file.read()).hexdigest()
    return found


def _write(folder: str, name: str, text: str) -> None:
    path = os.path.join(folder, name)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(text)
        # A proof that a full disk or a kill cuts short is none.
        file.flush()
    os.rename(f"{path}.new", path)


def _daemon(root: str) -> None:
    """Leave a process behind that no descriptor, session or parent connects with this one."""
    if os.fork() == 0:
        os.setsid()
        os.closerange(0, 1024)
        os.chdir(root)
        os.open(root, os.O_RDONLY)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)


def _flood(fd: int, megabytes: int, *, lines: bool) -> None:
    chunk = (b"x" * 79 + (b"\n" if lines else b"x")) * (1 << 14)
    for _ in range((megabytes << 20) // len(chunk) + 1):
        os.write(fd, chunk)


def _eat(folder: str) -> None:
    """Take memory until somebody ends this process."""
    eaten = []
    while True:
        eaten.append(bytearray(os.urandom(1 << 12) * 256))
        if len(eaten) == 1:
            _write(folder, "eating", "")


def _wait_for(folder: str, name: str) -> None:
    while not os.path.exists(os.path.join(folder, name)):
        time.sleep(0.01)


def _turn_deaf(folder: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _write(folder, "deaf", "")
    time.sleep(1000)


def _habits(folder: str, root: str) -> dict[str, Callable[[str], object]]:
    """Each takes what stands behind its ``=``."""
    return {
        "closes": lambda _: os.closerange(3, 1024),
        "mute": lambda _: os.closerange(0, 1024),
        "daemon": lambda _: _daemon(root),
        "flood": lambda size: _flood(2, int(size), lines=True),
        "endless-line": lambda size: _flood(1, int(size), lines=False),
        "gate": lambda _: _wait_for(folder, "go"),
        "hang": lambda _: time.sleep(1000),
        "deaf": lambda _: _turn_deaf(folder),
        "eat": lambda _: _eat(folder),
        "dies": lambda number: os.kill(os.getpid(), int(number)),
        "exits": lambda status: sys.exit(int(status)),
    }


def main(folder: str, habits: list[str], root: str) -> None:
    """Do the habits in their order, then read everything; ``lingers`` stays after that until it may end."""
    _write(folder, "started", str(os.getpid()))
    known = _habits(folder, root)
    for habit in habits:
        name, _, value = habit.partition("=")
        if name != "lingers":
            known[name](value)
    _write(folder, "proof", json.dumps(contents(root)))
    if "lingers" in habits:
        _wait_for(folder, "end")


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2:-1], sys.argv[-1])
    except OSError as problem:
        # Not a traceback: one on a run's stderr is to be kopiatomic's own.
        sys.exit(f"the view cannot be read: {problem}")
