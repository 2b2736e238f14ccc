"""The state database locked, corrupt, newer, read-only or full: before a run, and while its engine runs.

Where the kernel ties what a run makes (ZFS), the run goes on and says what that means; where only the record tells of it
(Btrfs), nothing is made. What happens to the database later costs the record, never the backup.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.support.faults import LIMIT_S, Fault, Ground
from tests.support.programs import Completed, command

Trouble = Callable[[Path, random.Random], AbstractContextManager[None]]
"""Troubles a state directory that has a database, during the block."""


@contextmanager
def locked(state: Path, _: random.Random) -> Iterator[None]:
    holder = sqlite3.connect(state / "state.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        holder.close()


@contextmanager
def newer(state: Path, _: random.Random) -> Iterator[None]:
    version = _pragma(state, "user_version")
    _pragma(state, "user_version = 1000000")
    try:
        yield
    finally:
        _pragma(state, f"user_version = {version}")


def _pragma(state: Path, text: str) -> object:
    database = sqlite3.connect(state / "state.db", isolation_level=None)
    try:
        row = database.execute(f"PRAGMA {text}").fetchone()
        return row and row[0]
    finally:
        database.close()


@contextmanager
def corrupt(state: Path, drawn: random.Random) -> Iterator[None]:
    """Its head overwritten, all of it garbage, or cut in its middle."""
    file = state / "state.db"
    data = bytearray(file.read_bytes())
    kind = drawn.choice(["head", "garbage", "cut"])
    if kind == "head":
        data[:64] = drawn.randbytes(64)
    elif kind == "garbage":
        data[:] = drawn.randbytes(len(data))
    else:
        del data[len(data) // 2 :]
    file.write_bytes(data)
    yield


@contextmanager
def read_only(state: Path, _: random.Random) -> Iterator[None]:
    command("mount", "--bind", state, state)
    command("mount", "-o", "remount,bind,ro", state)
    try:
        yield
    finally:
        command("umount", state)


@contextmanager
def full(state: Path, _: random.Random) -> Iterator[None]:
    """On a small filesystem of its own; the database is there, and nothing more can be written."""
    database = (state / "state.db").read_bytes()
    size = len(database) + (64 << 10) & ~0xFFF
    command("mount", "-t", "tmpfs", "-o", f"mode=0700,size={size}", "none", state)
    try:
        (state / "state.db").write_bytes(database)
        (state / "state.db").chmod(0o600)
        fill(state)
        yield
    finally:
        command("umount", state)


def fill(folder: Path) -> None:
    with (folder / "hog").open("wb", buffering=0) as hog:
        while True:
            try:
                hog.write(bytes(1 << 12))
            except OSError:
                return


@contextmanager
def no_directory(state: Path, _: random.Random) -> Iterator[None]:
    """A file is in the place of the directory."""
    elsewhere = state.with_name("state.elsewhere")
    state.rename(elsewhere)
    state.write_text("no directory")
    try:
        yield
    finally:
        state.unlink()
        elsewhere.rename(state)


@contextmanager
def open_to_all(state: Path, _: random.Random) -> Iterator[None]:
    """Anybody may write to the directory, so what the database says is anybody's word."""
    state.chmod(0o777)
    try:
        yield
    finally:
        state.chmod(0o700)


def before(trouble: Trouble) -> Callable[[Ground, random.Random], Completed]:
    """There was a run, so that there is a database; then it is troubled, and the next run begins."""

    def provoke(ground: Ground, drawn: random.Random) -> Completed:
        first = ground.run()
        assert first.returncode == 0, str(first)
        ground.reset()
        with trouble(ground.state, drawn):
            ended = ground.run()
        if ended.returncode == 1:
            assert not ground.started(), "it failed, but not before anything was made"
        return ended

    return provoke


def meanwhile(trouble: Trouble) -> Callable[[Ground, random.Random], Completed]:
    """While the engine runs."""

    def provoke(ground: Ground, drawn: random.Random) -> Completed:
        with ground.at_engine() as run:
            context = trouble(ground.state, drawn)
            context.__enter__()
        try:
            return run.wait(LIMIT_S)
        finally:
            context.__exit__(None, None, None)

    return provoke


TROUBLES: dict[str, Trouble] = {
    "locked": locked,
    "read-only": read_only,
    "full": full,
    "no directory": no_directory,
    "open to all": open_to_all,
}


def state_faults(*, goes_on: bool) -> Sequence[Fault]:
    """``goes_on``: whether the kernel ties what a run makes here."""
    said = "state (database|directory)"
    ends = {0: f"warning: .*{said}"} if goes_on else {1: said}
    return (
        *(
            Fault(f"the state database is {what}", before(trouble), ends, recorded=False)
            for what, trouble in TROUBLES.items()
        ),
        Fault(
            "the state database is corrupt",
            before(corrupt),
            {0: "warning: .*state database.* set aside"},
            recorded=False,
        ),
        Fault("the state database is newer", before(newer), {1: "state database .*newer"}, recorded=False),
        *(
            Fault(f"the state database becomes {what}", meanwhile(trouble), {0: f"warning: .*{said}"}, recorded=False)
            for what, trouble in {**TROUBLES, "corrupt": corrupt, "newer": newer}.items()
        ),
    )
