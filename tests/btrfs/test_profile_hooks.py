"""Hooks of a profile around real runs: each at its moment, once, told what it needs, and what its failure means."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from kopiatomic.config.profile_text import block, toml
from tests.support.filesystems import Btrfs
from tests.support.programs import SOURCE, Completed, Kopiatomic
from tests.support.schema import valid

pytestmark = pytest.mark.in_part(10)

HOOK = Draft202012Validator(json.loads((SOURCE / "kopiatomic/output/hook.schema.json").read_text()))
MOMENTS = ("before", "before_freeze", "after_freeze", "in_view", "after", "on_success", "on_incomplete", "on_failure")


class World:
    """A profile with hooks that note what they see, and what becomes of it."""

    def __init__(self, folder: Path, data: Path, notes: Path, kopiatomic: Kopiatomic, root: Path) -> None:
        self.folder = folder
        self.data = data
        self.notes = notes
        self.root = root
        self._kopiatomic = kopiatomic
        self.hooks: dict[str, list[dict[str, Any]]] = {moment: [self.noting(moment)] for moment in MOMENTS}
        self.engine: dict[str, Any] = {"command": ["ls"]}
        self.options: dict[str, Any] = {}

    def noting(self, name: str, then: str = "") -> dict[str, Any]:
        """A hook that notes that it ran, what it was told, and the snapshots that there were."""
        ls = f"ls {self.data.parent}/.kopiatomic*/* 2>/dev/null | wc -l"
        note = (
            f"cat > {self.notes}/{name}.json; env > {self.notes}/{name}.env; echo {name} $({ls}) >> {self.notes}/order"
        )
        return {"shell": f"{note}; {then}" if then else note}

    def write(self) -> None:
        lines = [
            "[select]",
            f"datasets = [{toml(str(self.data))}]",
            "[view]",
            f"mount_root = {toml(str(self.root))}",
            "[engine]",
        ]
        lines += [f"{key} = {toml(value)}" for key, value in self.engine.items()]
        lines += ["[hooks]", *(f"{key} = {toml(value)}" for key, value in self.options.items())]
        for moment, hooks in self.hooks.items():
            for one in hooks:
                lines += [f"[[hooks.{moment}]]", *block(f"hooks.{moment}", one)]
        path = self.folder / "home.toml"
        path.touch(0o600)
        path.write_text("\n".join(lines))

    def run(self, *words: str, env: Mapping[str, str] | None = None) -> Completed:
        self.write()
        return self._kopiatomic("run", "home", *words, env={"KOPIATOMIC_CONFIG_DIR": str(self.folder), **(env or {})})

    def document(self, ended: Completed) -> Any:
        one = json.loads(ended.stdout)["profiles"][0]["run"]
        valid(json.dumps(one))
        return one

    @property
    def order(self) -> list[str]:
        """The hooks that ran, in this order."""
        path = self.notes / "order"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    def told(self, name: str) -> Any:
        return json.loads((self.notes / f"{name}.json").read_text())

    def variables(self, name: str) -> dict[str, str]:
        lines = (self.notes / f"{name}.env").read_text().splitlines()
        return dict(line.partition("=")[::2] for line in lines if line.startswith("KOPIATOMIC_"))


@pytest.fixture
def world(btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path, tmp_path: Path) -> Iterator[World]:
    data = btrfs.subvolume("data")
    (data / "file").write_text("content\n")
    notes = tmp_path / "notes"
    notes.mkdir()
    notes.chmod(0o777)
    folder = Path(tempfile.mkdtemp(prefix="kopiatomic-profiles-", dir="/run"))
    yield World(folder, data, notes, kopiatomic, root)
    shutil.rmtree(folder)


Leftovers = Callable[..., list[str]]
GOOD = ["before", "before_freeze", "after_freeze", "in_view", "after", "on_success"]


def test_each_comes_at_its_moment_and_is_told_of_the_run(world: World, leftovers: Leftovers) -> None:
    ended = world.run("--json")
    assert ended.returncode == 0, str(ended)
    assert world.order == GOOD
    document = world.document(ended)
    assert [(one["hook"], one["error"]) for one in document["hooks"]] == [(name, None) for name in GOOD]
    assert all(one["place"].startswith(f"{world.folder}/home.toml:") for one in document["hooks"])
    for name in GOOD:
        told = world.told(name)
        assert (told["format"], told["hook"], told["again"]) == ("kopiatomic-hook-1", name, None)
        HOOK.validate(told)
        at_the_end = name in {"after", "on_success"}
        assert (told["run"]["result"], told["run"]["exit_code"]) == (("saved", 0) if at_the_end else (None, None))
        valid(json.dumps({**told["run"], "result": "saved", "exit_code": 0}))
        assert told["run"]["run_id"] == document["run_id"]
        variables = world.variables(name)
        assert (variables["KOPIATOMIC_HOOK"], variables["KOPIATOMIC_PROFILE"]) == (name, "home")
        assert ("KOPIATOMIC_DATASETS" in variables) == (name != "before")
        assert variables.get("KOPIATOMIC_RESULT") == ("saved" if name in {"after", "on_success"} else None)
    assert world.told("before")["run"]["datasets"] == []
    assert world.told("before_freeze")["run"]["instant"] is None
    assert world.told("in_view")["run"]["instant"] is not None
    assert world.told("on_success")["run"]["exit_code"] == 0
    assert leftovers(world.root) == []


def test_in_the_view_it_reads_the_frozen_tree(world: World, leftovers: Leftovers) -> None:
    world.hooks["after_freeze"] = [{"shell": f"echo later > {world.data}/file"}]
    there = f"{world.root}{world.data}"
    world.hooks["in_view"] = [
        {"shell": f"cat {there}/file; pwd", "directory": there},
        {"command": ["id", "-un"], "user": "nobody"},
        {"shell": f"touch {there}/new", "required": False},
    ]
    ended = world.run()
    assert ended.returncode == 3, str(ended)
    said = [line for line in ended.stderr.splitlines() if line.startswith("in_view: ")]
    assert said[:3] == ["in_view: content", f"in_view: {there}", "in_view: nobody"]
    assert "Read-only file system" in ended.stderr
    assert (world.data / "file").read_text() == "later\n"
    assert leftovers(world.root) == []


@pytest.mark.parametrize(
    ("moment", "code", "order"),
    [
        ("before", 1, ["before", "after", "on_failure"]),
        ("before_freeze", 1, ["before", "before_freeze", "after_freeze", "after", "on_failure"]),
        ("after_freeze", 4, [*GOOD[:-1], "on_incomplete"]),
        ("in_view", 1, ["before", "before_freeze", "after_freeze", "in_view", "after", "on_failure"]),
        ("after", 4, [*GOOD[:-1], "on_incomplete"]),
        ("on_success", 0, GOOD),
    ],
)
def test_what_a_failure_means(moment: str, code: int, order: list[str], world: World, leftovers: Leftovers) -> None:
    world.hooks[moment] = [world.noting(moment, "echo because; exit 3")]
    ended = world.run("--json")
    assert ended.returncode == code, str(ended)
    assert world.order == order
    document = world.document(ended)
    (failed,) = [one["error"] for one in document["hooks"] if one["error"]]
    assert failed["kind"] == "hook-failed"
    said = f"the hook {moment} ({world.folder}/home.toml:"
    assert failed["message"].startswith(said)
    assert failed["message"].endswith("failed (exit status 3): because")
    where = document["error"] if code == 1 else document["hook_error"] if code == 4 else None
    assert (where == failed) if code else any(said in warning for warning in document["warnings"])
    assert leftovers(world.root) == []


def test_one_in_the_view_that_is_not_required_makes_the_backup_incomplete(world: World) -> None:
    world.hooks["in_view"] = [{**world.noting("in_view", "exit 1"), "required": False}, world.noting("second")]
    ended = world.run("--json")
    assert ended.returncode == 3, str(ended)
    assert world.order == ["before", "before_freeze", "after_freeze", "in_view", "second", "after", "on_incomplete"]


@pytest.mark.parametrize("moment", ["before", "in_view", "before_freeze"])
def test_one_that_hangs_is_ended_when_its_time_is_over(moment: str, world: World, leftovers: Leftovers) -> None:
    world.hooks[moment] = [{"shell": "sleep 60; true", "timeout": 1}]
    ended = world.run("--json", "--stop-timeout", "2")
    assert ended.returncode == 1, str(ended)
    assert world.document(ended)["error"]["kind"] == "hook-timeout"
    assert ("after_freeze" in world.order) == (moment != "before")
    assert leftovers(world.root) == []


def test_before_may_say_that_there_is_nothing_to_do(world: World, leftovers: Leftovers) -> None:
    world.hooks["before"] = [world.noting("before", "echo on battery; exit 75"), world.noting("second")]
    ended = world.run("--json")
    assert ended.returncode == 0, str(ended)
    assert world.order == ["before", "after"]
    document = world.document(ended)
    assert (document["result"], document["exit_code"], document["error"]) == ("skipped", 0, None)
    assert "on battery" in document["skipped"]
    assert leftovers(world.root) == []


def test_several_of_a_moment_run_in_their_order_up_to_the_first_failure(world: World) -> None:
    world.hooks["before_freeze"] = [world.noting("one"), world.noting("two", "exit 1"), world.noting("three")]
    world.hooks["after_freeze"] = [world.noting("four", "exit 1"), world.noting("five")]
    assert world.run().returncode == 1
    assert world.order == ["before", "one", "two", "four", "five", "after", "on_failure"]
