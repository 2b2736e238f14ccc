"""A profile whose run holds writers still between two hooks, for tests of what may happen in between."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kopiatomic.config.profile_text import toml
from kopiatomic.system import cgroups
from tests.btrfs.conftest import wait_for
from tests.support.folders import roots_own
from tests.support.leftovers import processes
from tests.support.moments import children
from tests.support.programs import Kopiatomic
from tests.support.schema import valid
from tests.unit.support.holders import Grouped, eventually, thawers

WITHIN = 2.0
"""Seconds after a kill, or after the limit, within which nothing may be held any more."""

Leftovers = Callable[..., list[str]]


@dataclass(frozen=True)
class Family:
    """The processes of a run that holds something, at the gate: there is no launcher before everything is released."""

    main: int
    guardian: int
    keeper: int
    thawer: int
    others: tuple[int, ...] = ()
    """The keeper's own: what opens paths for it."""

    @classmethod
    def of(cls, main: int) -> Family:
        ours = family(main)
        # Other tests may run at the same time.
        ((name, keeper),) = ((name, pid) for name in thawers() if (pid := int(name.split("-")[2])) in ours)
        (thawer,) = map(int, _file_of(name, "cgroup.procs").read_text().split())
        (guardian,) = set(ours) & set(children(main)) - {keeper}
        return cls(main, guardian, keeper, thawer, tuple(set(ours) - {main, guardian, keeper}))

    @property
    def of_the_run(self) -> list[int]:
        """All but the thawer, which a kill of the run's own control group does not reach either."""
        return [self.main, self.guardian, self.keeper, *self.others]


def _file_of(thawer: str, name: str) -> Path:
    beside = os.path.dirname(cgroups.group_at(cgroups.path_of(os.getpid())).directory)
    (found,) = {path for place in (beside, cgroups.hierarchy().point) if (path := Path(place, thawer, name)).exists()}
    return found


def family(pid: int) -> list[int]:
    """A process of ours and all below it that are ours."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        try:
            ours = b"kopiatomic" in Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if ours:
            found.append(one)
            waiting += children(one)
    return found


class Ground:
    """The profile ``home`` over some directories, and what became of its runs.

    ``before_freeze`` and ``after_freeze`` note their starts and ends.
    """

    def __init__(self, folder: Path, datasets: Sequence[Path], kopiatomic: Kopiatomic, root: Path) -> None:
        self.folder = folder
        self.datasets = datasets
        self.kopiatomic = kopiatomic
        self.root = root
        self.holds: list[Mapping[str, Any]] = []
        self.scripts = {"before": ":", "before_freeze": "sleep 0.05", "after_freeze": "sleep 0.05"}
        """What each hook does, as a shell line."""
        self.environment = {**kopiatomic.environment, "KOPIATOMIC_CONFIG_DIR": str(folder)}

    def hold(self, kind: str, **keys: Any) -> None:
        """Have a writer held."""
        self.holds.append({"kind": kind, **keys})

    def hold_group(self, group: Grouped, **keys: Any) -> None:
        """Have a control group held."""
        self.hold("cgroup", name=group.path, **keys)

    def hold_gate(self) -> None:
        """Have something held last that waits to be let go, while all the others are held."""
        wait = f"touch {self.folder}/holding; while [ ! -e {self.folder}/go ]; do sleep 0.02; done; echo held; cat"
        self.hold("command", command=["sh", "-c", wait], timeout="40s")

    def let_go(self) -> None:
        (self.folder / "go").touch()

    def write(self) -> None:
        """Write the profile, and forget what was noted."""
        lines = [
            f"[select]\ndatasets = {toml([str(path) for path in self.datasets])}",
            f"[view]\nmount_root = {toml(str(self.root))}",
            '[engine]\ncommand = "ls"',
        ]
        for one in self.holds:
            lines += ["[[hold]]", *(f"{key} = {toml(value)}" for key, value in one.items())]
        for moment, script in self.scripts.items():
            note = f"echo {{}} $KOPIATOMIC_AGAIN >> {self.folder}/order"
            whole = f"{note.format(moment)}; {script}; {note.format(f'{moment}-ended')}"
            lines.append(f"[hooks.{moment}]\nshell = {toml(whole)}")
        path = self.folder / "home.toml"
        path.touch(0o600)
        path.write_text("\n".join(lines))
        self.forget()

    def forget(self) -> None:
        for name in ("order", "holding", "go"):
            (self.folder / name).unlink(missing_ok=True)

    # What the hooks have noted

    def noted(self, name: str) -> list[str]:
        """The lines of a hook's starts, or of its ends: its name, and KOPIATOMIC_AGAIN if it was told that."""
        path = self.folder / "order"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.strip() for line in lines if line.split()[0] == name]

    @property
    def starts(self) -> list[str]:
        return self.noted("after_freeze")

    @property
    def ends(self) -> list[str]:
        return self.noted("after_freeze-ended")

    # Its runs

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[str]]:
        self.write()
        with self.kopiatomic.started("run", "home", "--json", env=self.environment) as process:
            yield process

    @contextmanager
    def at_the_gate(self) -> Iterator[subprocess.Popen[str]]:
        """A run that holds everything until it is let go."""
        with self.started() as process:
            wait_for(lambda: (self.folder / "holding").exists() or process.poll() is not None, "the hold", within=30)
            assert process.poll() is None, process.communicate()
            try:
                yield process
            finally:
                self.let_go()

    @staticmethod
    def ended(process: subprocess.Popen[str], within: float = 30) -> tuple[int, Any]:
        """How a run ends: its exit code, and its document."""
        out, err = process.communicate(timeout=within)
        try:
            document = json.loads(out)["profiles"][0]["run"]
        except ValueError:
            raise AssertionError(f"no document; exit code {process.returncode}\n{out}\n{err}") from None
        valid(json.dumps(document))
        return process.returncode, document

    def require_settled(self, leftovers: Leftovers, case: str = "", *, times: int = 1) -> None:
        """Require that after_freeze has run so often, each time to its end, and that nothing is left, held or owed."""
        wanted = ["after_freeze", "after_freeze 1"][:times]
        assert self.starts == wanted, (case, self.starts)
        assert [line.replace("-ended", "") for line in self.ends] == wanted, (case, self.ends)
        assert leftovers(self.root) == [], case
        assert eventually(lambda: thawers() == []), case
        recovered = self.kopiatomic("recover", env=self.environment)
        assert recovered.returncode == 0, (case, str(recovered))
        assert self.starts == wanted, (case, "recover ran it again")

    def cleared(self, case: str) -> None:
        """After a kill: what lives goes on by itself to its end, and then recover pays what is owed."""
        mark = self.environment["KOPIATOMIC_TEST_MARK"]
        wait_for(lambda: processes(mark) == [], f"{case}: the end of all processes", within=30)
        recovered = self.kopiatomic("recover", env=self.environment)
        assert recovered.returncode == 0, (case, str(recovered))


@contextmanager
def ground_of(datasets: Sequence[Path], kopiatomic: Kopiatomic, root: Path) -> Iterator[Ground]:
    """The ground with a folder of its own for the profile, where nothing is frozen."""
    with roots_own() as folder:
        yield Ground(folder, datasets, kopiatomic, root)


def thawed_after(group: Grouped, within: float) -> float:
    """How many seconds it takes until a control group is thawed; infinite if longer than ``within``."""
    began = time.monotonic()
    return time.monotonic() - began if eventually(lambda: not group.is_asked(), within) else float("inf")
