"""Fixtures of the Btrfs tests: a mount root of each test's own, and programs to stand in for an engine (-c)."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.folders import roots_own
from tests.support.killing import kill_together
from tests.support.programs import Completed, Kopiatomic, command
from tests.support.schema import valid
from tests.unit.support.holders import Grouped, grouped


def wait_for(happened: Callable[[], Any], what: str, within: float = 60) -> Any:
    """Wait for something to happen; fails the test if it does not."""
    deadline = time.monotonic() + within
    while not (found := happened()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {within:g} s")
        time.sleep(0.01)
    return found


def alone(points: Sequence[Path], kopiatomic: Kopiatomic, *args: str | Path) -> Completed:
    """kopiatomic in a mount namespace in which no other Btrfs filesystem is mounted, for -a."""
    keep = " ".join(f"-e {shlex.quote(str(point))}" for point in points)
    script = f'findmnt -rn -t btrfs -o TARGET | grep -v -x -F {keep} | xargs -r umount -l; exec "$@"'
    argv = ["unshare", "-m", "bash", "-c", script, "bash", *Kopiatomic.argv(*args)]
    return command(*argv, env=kopiatomic.environment, check=False)


@dataclass(frozen=True)
class Gate:
    """An engine that says that it has started, waits to be let go, and ends well."""

    folder: Path
    then: str = ""
    """Shell lines that it runs at last."""

    @property
    def command(self) -> str:
        """What to give to -c."""
        script = self.folder / "engine"
        script.write_text(
            f"cd {shlex.quote(str(self.folder))}\necho $$ > pid.new; mv pid.new started\n"
            f"while [ ! -e go ]; do sleep 0.02; done\n{self.then}\n"
        )
        return shlex.join(["sh", str(script)])

    def wait(self) -> None:
        """Wait until it has started."""
        wait_for((self.folder / "started").exists, "the engine's start")

    @property
    def pid(self) -> int:
        """The engine's process id in its own PID namespace."""
        return int((self.folder / "started").read_text())

    def let_go(self) -> None:
        (self.folder / "go").touch()


@pytest.fixture
def make_gate(tmp_path: Path) -> Callable[..., Gate]:
    made: list[Gate] = []

    def make(then: str = "") -> Gate:
        gate = Gate(tmp_path / f"gate{len(made)}", then)
        gate.folder.mkdir()
        made.append(gate)
        return gate

    return make


@pytest.fixture
def gate(make_gate: Callable[..., Gate]) -> Gate:
    return make_gate()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The mount root of this test's runs, so that tests neither meet each other nor a real run."""
    return tmp_path / "view"


@pytest.fixture
def group() -> Iterator[Grouped]:
    """A control group with a process, which can be held still."""
    with grouped() as one:
        one.start("sleep", "1000")
        yield one


@pytest.fixture
def run(kopiatomic: Kopiatomic, root: Path) -> Callable[..., Completed]:
    """kopiatomic with this test's mount root."""

    def run(*args: str | Path, **more: Any) -> Completed:
        return kopiatomic("--mount-root", root, *args, **more)

    return run


@pytest.fixture
def saved(run: Callable[..., Completed]) -> Callable[..., Any]:
    """Run with --json and return the document; the run has to end with exit code 0."""

    def saved(*args: str | Path, **more: Any) -> Any:
        ended = run("--json", *args, **more)
        assert ended.returncode == 0, str(ended)
        return valid(ended.stdout)

    return saved


@dataclass(frozen=True)
class Family:
    """The processes of a run, by their roles."""

    main: int
    keeper: int
    launcher: int
    engine: int

    @classmethod
    def of(cls, main: int) -> Family:
        """Found by who started whom."""
        keeper = only_child(main)
        launcher = only_child(keeper)
        return cls(main, keeper, launcher, only_child(launcher))


def kill_all_of(process: subprocess.Popen[str], gate: Gate) -> None:
    """Kill all processes of a run at one moment, while its engine waits at the gate."""
    gate.wait()
    family = Family.of(process.pid)
    kill_together([family.keeper, family.launcher, family.main])
    process.wait(10)


def children(pid: int) -> set[int]:
    """A process's children, as the kernel lists them."""
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def only_child(pid: int) -> int:
    (child,) = children(pid)
    return child


@pytest.fixture
def listing(tmp_path: Path) -> Listing:
    return Listing(tmp_path / "listing")


@dataclass(frozen=True)
class Listing:
    """An engine that writes down all it finds in the view: find's own words, one entry a NUL-terminated record."""

    file: Path

    @property
    def command(self) -> str:
        script = self.file.with_suffix(".sh")
        script.write_text(f"cd \"$1\" && find . -printf '%P|%y|%m|%U|%G|%T@|%l\\0' > {shlex.quote(str(self.file))}\n")
        return shlex.join(["sh", str(script)])

    def entries(self) -> dict[bytes, bytes]:
        """Path below the view's root, and what find said of it."""
        records = self.file.read_bytes().split(b"\0")[:-1]
        return dict(record.split(b"|", 1) for record in records)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of profiles that root alone can change."""
    with roots_own() as made:
        yield made
