"""Hooks of a profile around real runs: each at its moment, once, told what it needs, and what its failure means."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from kopiatomic.config.profile_text import block, toml
from tests.btrfs.conftest import wait_for
from tests.support.filesystems import Btrfs
from tests.support.folders import roots_own
from tests.support.killing import kill_together
from tests.support.leftovers import processes
from tests.support.moments import children
from tests.support.programs import SOURCE, Completed, Kopiatomic
from tests.support.schema import valid

pytestmark = pytest.mark.in_part(7)

HOOK = Draft202012Validator(json.loads((SOURCE / "kopiatomic/output/hook.schema.json").read_text()))
MOMENTS = ("before", "before_freeze", "after_freeze", "in_view", "after", "on_success", "on_incomplete", "on_failure")


class World:
    """A profile with hooks that note what they see, and what becomes of it."""

    def __init__(self, folder: Path, data: Path, notes: Path, kopiatomic: Kopiatomic, root: Path) -> None:
        self.folder = folder
        self.data = data
        self.notes = notes
        self.root = root
        self.kopiatomic = kopiatomic
        self.hooks: dict[str, list[dict[str, Any]]] = {moment: [self.noting(moment)] for moment in MOMENTS}
        self.engine: dict[str, Any] = {"command": ["ls"]}
        self.options: dict[str, Any] = {}
        self.layout = "merged"

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
            f"mount_root = {toml(str(self.root))}" if self.layout == "merged" else f"layout = {toml(self.layout)}",
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

    def blocking(self, name: str) -> dict[str, Any]:
        """A hook that notes that it ran, and goes on as long as the file ``block`` is there."""
        return self.noting(
            name, f"while test -e {self.notes}/block; do sleep 0.05; done; echo {name}-ended >> {self.notes}/order"
        )

    @contextmanager
    def running(self, **variables: str) -> Iterator[subprocess.Popen[str]]:
        """A run in the background."""
        self.write()
        (self.notes / "block").touch()
        environment = {"KOPIATOMIC_CONFIG_DIR": str(self.folder), **variables}
        with self.kopiatomic.started("run", "home", env=environment) as process:
            yield process

    def run(self, *words: str, env: Mapping[str, str] | None = None) -> Completed:
        self.write()
        return self.kopiatomic("run", "home", *words, env={"KOPIATOMIC_CONFIG_DIR": str(self.folder), **(env or {})})

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
    with roots_own() as folder:
        yield World(folder, data, notes, kopiatomic, root)


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
        {"shell": "id -un; tr '\\0' '\\n' < $KOPIATOMIC_DATASETS_FILE", "user": "nobody"},
        {"shell": f"touch {there}/new", "required": False},
    ]
    ended = world.run()
    assert ended.returncode == 3, str(ended)
    said = [line for line in ended.stderr.splitlines() if line.startswith("in_view: ")]
    assert said[:4] == ["in_view: content", f"in_view: {there}", "in_view: nobody", f"in_view: {world.data}"]
    assert "Read-only file system" in ended.stderr
    assert (world.data / "file").read_text() == "later\n"
    assert leftovers(world.root) == []


@pytest.mark.parametrize("layout", ["merged", "in-place"])
def test_in_the_view_each_has_a_directory_for_temporary_files_that_nobody_else_has(
    layout: str, world: World, leftovers: Leftovers
) -> None:
    """Also where the usual one is frozen, and for a user without root's rights."""
    world.layout = layout
    world.engine = {"command": ["sh", "-c", f"cat /proc/self/mounts > {world.notes}/mounts", "sh"]}
    usual = world.data / "tmp"
    usual.mkdir()
    using = {"shell": 'echo $(stat -c "%a %U" $TMPDIR) $(stat -f -c %T $TMPDIR) $(ls -A $TMPDIR); mktemp > /dev/null'}
    world.hooks["in_view"] = [
        {"shell": f"{using['shell']}; sleep 60 > $TMPDIR/open & exit 0"},
        {**using, "user": "nobody"},
        {"shell": f"{using['shell']}; umount --lazy $TMPDIR"},
        {"shell": using["shell"]},
        {"shell": "echo $TMPDIR", "environment": {"TMPDIR": "/mine"}},
        world.blocking("blocking"),
    ]
    with world.running(TMPDIR=str(usual)) as process:
        wait_for(lambda: "blocking" in world.order, "the start of the last")
        lines = (world.notes / "blocking.env").read_text().splitlines()
        (path,) = [Path(line.removeprefix("TMPDIR=")) for line in lines if line.startswith("TMPDIR=")]
        # On the host it is an empty directory: what is in it is nowhere but in the view.
        assert (path.stat().st_uid, path.stat().st_mode & 0o777, [*path.iterdir()]) == (0, 0o700, [])
        assert not path.is_mount()
        (world.notes / "block").unlink()
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
    assert [line.removeprefix("in_view: ") for line in errors.splitlines() if line.startswith("in_view: ")] == [
        "700 root tmpfs",
        "700 nobody tmpfs",
        "700 root tmpfs",
        "700 root tmpfs",
        "/mine",
    ]
    assert [*usual.iterdir()] == []
    assert not path.exists()
    assert str(path) not in (world.notes / "mounts").read_text()
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


def test_a_run_that_could_not_begin_is_a_failure_too(world: World, leftovers: Leftovers) -> None:
    """A secret is missing; the records are of a newer version."""
    world.hooks["before"][0]["environment"] = {"A": {"file": f"{world.folder}/none"}}
    ended = world.run("--json")
    assert ended.returncode == 1, str(ended)
    assert world.order == ["on_failure"]
    assert world.told("on_failure")["run"]["error"]["kind"] == "credential"
    world.hooks["before"] = []
    state = Path(world.kopiatomic.environment["KOPIATOMIC_STATE_DIR"])
    state.mkdir(0o700)
    with sqlite3.connect(state / "state.db") as database:
        database.execute("PRAGMA user_version = 9999")
    ended = world.run("--json")
    assert ended.returncode == 1, str(ended)
    assert world.order == ["on_failure"] * 2
    assert leftovers(world.root) == []


@pytest.mark.parametrize("on_lock", ["failure", "skip"])
def test_whether_a_lock_is_a_failure_is_for_the_profile_to_say(on_lock: str, world: World) -> None:
    world.options["on_lock"] = on_lock
    world.hooks["before"] = [world.blocking("before")]
    with world.running() as process:
        wait_for(lambda: "before" in world.order, "the start of the first run")
        ended = world.run("--json")
        assert ended.returncode == 75, str(ended)
        (world.notes / "block").unlink()
        assert process.wait(30) == 0
    assert world.order.count("on_failure") == (on_lock == "failure")
    assert world.order.count("after") == 1


# Whatever dies

GUARDIAN, MAIN, ALL = "guardian", "main", "all"


def guardians(process: subprocess.Popen[str]) -> list[int]:
    """The guardian of a run, which is the first process that it forks and keeps."""
    return [pid for pid in children(process.pid) if b"kopiatomic" in Path(f"/proc/{pid}/cmdline").read_bytes()][:1]


def kill(victim: str, process: subprocess.Popen[str]) -> None:
    (guardian,) = guardians(process)
    kill_together({GUARDIAN: [guardian], MAIN: [process.pid], ALL: [process.pid, guardian]}[victim])


@pytest.mark.parametrize("victim", [GUARDIAN, MAIN, ALL])
@pytest.mark.parametrize("moment", ["before_freeze", "after_freeze"])
def test_after_freeze_comes_to_its_end_whatever_dies(
    moment: str, victim: str, world: World, leftovers: Leftovers
) -> None:
    world.hooks = {
        "before_freeze": [world.noting("before_freeze")],
        "after_freeze": [world.noting("after_freeze", f"echo after_freeze-ended >> {world.notes}/order")],
        moment: [world.blocking(moment)],
    }
    with world.running() as process:
        wait_for(lambda: moment in world.order, f"the start of {moment}")
        kill(victim, process)
        (world.notes / "block").unlink()
        process.wait(30)
        if victim != ALL:
            wait_for(lambda: "after_freeze-ended" in world.order, "the end of after_freeze")
    started = world.order.count("after_freeze")
    if victim == ALL:
        assert started == (moment == "after_freeze")
        said = world.kopiatomic("recover", "--dry-run")
        assert said.returncode == 4, str(said)
        assert "would be run: /bin/sh -c " in said.stdout
        assert world.kopiatomic("recover", "--no-hooks").returncode == 4
        assert "after_freeze-ended" not in world.order
        recovered = world.kopiatomic("recover")
        assert recovered.returncode == 0, str(recovered)
    assert world.order.count("after_freeze-ended") == 1
    # Again only where it was killed in the middle, and then it says so.
    again = moment == "after_freeze" and victim != MAIN
    assert world.order.count("after_freeze") == 1 + again
    assert world.told("after_freeze")["again"] == ("1" if again else None)
    assert world.variables("after_freeze").get("KOPIATOMIC_AGAIN") == ("1" if again else None)
    if moment == "before_freeze":
        assert "before_freeze-ended" not in world.order
    wait_for(lambda: leftovers(world.root) == [], "the end of everything")
    assert world.kopiatomic("recover").returncode == 0
    assert world.order.count("after_freeze-ended") == 1


def test_nobody_runs_what_the_guardian_still_runs(world: World, btrfs: Btrfs, leftovers: Leftovers) -> None:
    """The main process was killed, and the keeper has ended the run in its place."""
    world.hooks = {
        "before_freeze": [world.noting("before_freeze")],
        "after_freeze": [world.blocking("after_freeze")],
    }
    with world.running() as process:
        wait_for(lambda: "after_freeze" in world.order, "the start of after_freeze")
        (guardian,) = guardians(process)
        process.kill()
        process.wait(30)
        mine = world.kopiatomic.environment["KOPIATOMIC_TEST_MARK"]
        wait_for(
            lambda: [line.split()[0] for line in processes(mine) if "python" in line] == [str(guardian)],
            "the end of the keeper",
        )
        said = world.kopiatomic("recover")
        assert said.returncode == 4, str(said)
        assert "still runs its after_freeze" in said.stdout + said.stderr
        assert world.run().returncode == 75
        assert world.order == ["before_freeze", "after_freeze"]
        (world.notes / "block").unlink()
    wait_for(lambda: "after_freeze-ended" in world.order, "the end of after_freeze")
    wait_for(lambda: leftovers(world.root) == [], "the end of everything")
    assert world.kopiatomic("recover").returncode == 0
    assert world.order == ["before_freeze", "after_freeze", "after_freeze-ended"]
    assert btrfs.snapshots() == []


@pytest.fixture
def owing(world: World) -> World:
    """A run of which nothing lives, and which owes its after_freeze."""
    world.hooks = {
        "before_freeze": [world.blocking("before_freeze")],
        "after_freeze": [
            {**world.noting("after_freeze"), "environment": {"COLOUR": {"file": f"{world.folder}/secret"}}}
        ],
    }
    (world.folder / "secret").touch(0o600)
    (world.folder / "secret").write_text("first")
    with world.running() as process:
        wait_for(lambda: "before_freeze" in world.order, "the start of before_freeze")
        kill(ALL, process)
        process.wait(30)
    (world.notes / "block").unlink()
    (world.notes / "order").unlink()
    return world


def test_the_next_run_of_the_profile_pays_and_no_other(owing: World, leftovers: Leftovers) -> None:
    (owing.folder / "secret").write_text("second")
    other = owing.kopiatomic("--mount-root", owing.root, "-c", "ls", owing.data)
    assert other.returncode == 0, str(other)
    assert "owed: it is run by the next run of that profile, or by 'kopiatomic recover'" in other.stderr
    assert owing.order == []
    owing.hooks["before_freeze"] = []
    (owed,) = owing.hooks["after_freeze"]
    owing.hooks["after_freeze"] = [{**owed, **owing.noting("new")}]
    ended = owing.run()
    assert ended.returncode == 0, str(ended)
    # What was recorded is run, with the secret of today, before anything else.
    assert owing.order == ["after_freeze", "new"]
    assert "COLOUR=second" in (owing.notes / "after_freeze.env").read_text()
    assert leftovers(owing.root) == []


def test_it_says_so_when_it_was_started_by_a_recover_that_was_killed(world: World) -> None:
    world.hooks = {name: [world.blocking(name)] for name in ("before_freeze", "after_freeze")}
    with world.running() as process:
        wait_for(lambda: "before_freeze" in world.order, "the start of before_freeze")
        kill(ALL, process)
        process.wait(30)
    with world.kopiatomic.started("recover") as recover:
        wait_for(lambda: "after_freeze" in world.order, "the start of after_freeze")
        assert world.told("after_freeze")["again"] is None
        kill_together([recover.pid, *children(recover.pid)])
        recover.wait(30)
    (world.notes / "block").unlink()
    recovered = world.kopiatomic("recover")
    assert recovered.returncode == 0, str(recovered)
    assert world.order == ["before_freeze", "after_freeze", "after_freeze", "after_freeze-ended"]
    assert world.told("after_freeze")["again"] == "1"


def test_after_a_reboot_it_says_so(owing: World) -> None:
    with sqlite3.connect(Path(owing.kopiatomic.environment["KOPIATOMIC_STATE_DIR"]) / "state.db") as database:
        ((origin,),) = database.execute("SELECT origin FROM intent WHERE kind = 'hook'")
        changed = json.dumps({**json.loads(origin), "boot": "another"})
        database.execute("UPDATE intent SET origin = ? WHERE kind = 'hook'", (changed,))
    assert owing.kopiatomic("recover").returncode == 0
    assert owing.told("after_freeze")["again"] == "reboot"
    assert owing.variables("after_freeze")["KOPIATOMIC_AGAIN"] == "reboot"


def test_what_others_can_change_pays_nothing(owing: World) -> None:
    path = owing.folder / "home.toml"
    os.chown(path, 65534, 65534)
    said = owing.kopiatomic("recover")
    assert said.returncode == 4, str(said)
    assert "OWED: it is not run: " in said.stdout
    assert owing.order == []
    os.chown(path, 0, 0)
    path.rename(path.with_name("moved.toml"))
    said = owing.kopiatomic("recover")
    assert said.returncode == 4, str(said)
    (line,) = [line for line in said.stdout.splitlines() if "OWED" in line]
    forget = line.rpartition("then: kopiatomic ")[2].rstrip(")").split()
    said = owing.kopiatomic(*forget)
    assert said.returncode == 0, str(said)
    assert owing.kopiatomic("recover").returncode == 0
    assert owing.order == []


def test_one_that_fails_has_come_to_its_end(owing: World) -> None:
    (owing.notes / "fail").touch()
    with sqlite3.connect(Path(owing.kopiatomic.environment["KOPIATOMIC_STATE_DIR"]) / "state.db") as database:
        ((origin,),) = database.execute("SELECT origin FROM intent WHERE kind = 'hook'")
        changed = json.loads(origin)
        changed["hooks"][0]["argv"] = ["/bin/sh", "-c", "echo because; exit 3"]
        database.execute("UPDATE intent SET origin = ? WHERE kind = 'hook'", (json.dumps(changed),))
    said = owing.kopiatomic("recover")
    assert said.returncode == 4, str(said)
    assert "it was run: the hook after_freeze" in said.stdout
    assert "failed (exit status 3): because" in said.stdout
    assert owing.kopiatomic("recover").returncode == 0


@pytest.mark.parametrize("moment", ["before", "before_freeze", "after_freeze", "in_view", "after"])
def test_a_signal_ends_what_may_be_ended(moment: str, world: World, leftovers: Leftovers) -> None:
    world.hooks[moment] = [world.blocking(moment)]
    with world.running() as process:
        wait_for(lambda: moment in world.order, f"the start of {moment}")
        process.send_signal(signal.SIGTERM)
        if moment in {"after_freeze", "after"}:
            # It is waited for, and the run ends as it would have.
            time.sleep(0.5)
            assert process.poll() is None
            (world.notes / "block").unlink()
        # In the last of them everything is done already.
        assert process.wait(30) == (0 if moment == "after" else 143)
    assert (f"{moment}-ended" in world.order) == (moment in {"after_freeze", "after"})
    assert ("after_freeze" in world.order) == (moment != "before")
    assert world.order[-2:] == ["after", "on_failure"] or moment == "after"
    assert leftovers(world.root) == []
