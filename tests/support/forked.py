"""Runs of kopiatomic in a fork of this process.

The whole program runs, with its own processes, in real namespaces; only the start of a Python interpreter and the import of
modules are saved, which take 3 s of every 4 in the emulated machine.
"""

from __future__ import annotations

import gc
import io
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

# Imported here once, so that no fork has to.
import kopiatomic.cli.entry
import kopiatomic.commands.backup
import kopiatomic.commands.inside
import kopiatomic.engines.command
import kopiatomic.engines.kopia.backup
import kopiatomic.output.console
import kopiatomic.output.document
from kopiatomic.system import linux
from tests.support.programs import SLOWNESS, Completed


def become(
    words: Sequence[str],
    output: Mapping[int, Path],
    environment: Mapping[str, str],
    before: Callable[[], None] | None = None,
    main: Callable[[], object] = kopiatomic.cli.entry.main,
) -> NoReturn:
    """In a fork: be the command `kopiatomic WORDS`, whose stdout (1) and stderr (2) are added to these files, which exist.

    `before` is called right before. `main` stands in for the command; it ends with SystemExit.
    """
    # No collection writes to pages that the parent has as well, and so has them copied.
    gc.freeze()
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for fd, path in output.items():
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), fd)
    os.closerange(3, 1024)
    sys.argv = ["kopiatomic", *words]
    for name in [name for name in os.environ if name.startswith(("KOPIA", "XDG", "PYTEST"))]:
        del os.environ[name]
    os.environ.update({"LANG": "C.UTF-8", **environment})
    if before is not None:
        before()
    sys.stdout, sys.stderr = _stream(1), _stream(2)
    code: object = 98
    try:
        main()
    except SystemExit as end:
        code = end.code
    finally:
        # Every write went through at once: nothing is left to flush.
        os._exit(code if isinstance(code, int) else 97)


def _stream(fd: int) -> io.TextIOWrapper | None:
    """What the start of an interpreter makes of a descriptor: nothing if it is closed, and never does a stream close it."""
    try:
        os.fstat(fd)
    except OSError:
        return None
    file = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(file, "utf-8", errors="backslashreplace", write_through=True)


def start(words: Sequence[str], output: Mapping[int, Path], environment: Mapping[str, str]) -> int:
    """Start the command in a fork, which ends with this process; returns its process id."""
    for path in output.values():
        path.write_bytes(b"")
    pid = os.fork()
    if pid == 0:
        try:
            linux.die_with_parent(signal.SIGKILL)
            become(words, output, environment)
        finally:
            os._exit(99)
    return pid


def wait(pid: int, words: Sequence[str], output: Mapping[int, Path], timeout: float) -> Completed:
    """Wait for the end of what :func:`start` started (at most `timeout` seconds)."""
    pidfd = os.pidfd_open(pid)
    try:
        in_time = bool(select.select([pidfd], [], [], timeout)[0])
        if not in_time:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(pidfd)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    ended = Completed(tuple(words), status, *(path.read_text(errors="surrogateescape") for path in output.values()))
    if not in_time:
        raise TimeoutError(f"it still ran after {timeout:g} s: {ended}")
    return ended


def environment(folder: Path) -> dict[str, str]:
    """What runs find that share a folder: their home and their state directory."""
    return {"HOME": str(folder), "KOPIATOMIC_STATE_DIR": str(folder / "state")}


def run(words: Sequence[str], folder: Path, timeout: float) -> Completed:
    """Run the command in a fork, to its end (at most `timeout` seconds)."""
    output = {fd: folder / f"other.{fd}" for fd in (1, 2)}
    return wait(start(words, output, environment(folder)), words, output, timeout)


@contextmanager
def living(words: Sequence[str], folder: Path, file: str) -> Iterator[None]:
    """A run that goes on as long as the block does; then its engine must still find a file in its view, and it to end well."""
    go, started, script = folder / "go", folder / "started", folder / "engine"
    script.write_text(
        f"echo > '{started}'\nwhile [ ! -e '{go}' ]; do sleep 0.2; done\nread -r line < '{file}' && [ -n \"$line\" ]\n"
    )
    argv = ["-c", f"sh {script}", *words]
    output = {fd: folder / f"living.{fd}" for fd in (1, 2)}
    pid = start(argv, output, environment(folder))
    try:
        deadline = time.monotonic() + 20 * SLOWNESS
        while not started.exists():
            if time.monotonic() > deadline or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise AssertionError(f"it did not start: {[path.read_text() for path in output.values()]}")
            time.sleep(0.05)
        yield
    finally:
        go.touch()
        ended = wait(pid, argv, output, 60 * SLOWNESS)
        assert ended.returncode == 0, ended
