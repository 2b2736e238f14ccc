"""Writers that are held still by a run (``--hold``), from the plan to what is in the backup."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.btrfs.conftest import wait_for
from tests.support.filesystems import Btrfs
from tests.support.parts import share
from tests.support.programs import Completed, Kopiatomic, command
from tests.support.schema import valid
from tests.support.without_root import as_nobody
from tests.unit.support.databases import postgresql
from tests.unit.support.holders import WRITERS, Grouped, count_torn, eventually, grouped, is_torn, thawers

pytestmark = pytest.mark.in_part(16)

Leftovers = Callable[..., list[str]]
Start = Callable[[Grouped, Sequence[Path]], None]
SETS = share(20, 2)


@pytest.fixture
def files(btrfs: Btrfs) -> list[Path]:
    """A file in each of four subvolumes."""
    return [btrfs.subvolume(name) / "file" for name in "abcd"]


@pytest.fixture
def group() -> Iterator[Grouped]:
    with grouped() as one:
        yield one


class Run:
    """Runs whose engine says which numbers are in the files of the view."""

    def __init__(self, files: list[Path], root: Path, kopiatomic: Kopiatomic) -> None:
        self.words: list[str | Path] = ["--mount-root", root, "--json"]
        reads = "; ".join(f"od -An -t u8 -N 8 {root}{file}" for file in files)
        self.words += ["-c", f"sh -c '{reads}'", *(file.parent for file in files)]
        self.kopiatomic = kopiatomic

    def __call__(self, *more: str) -> Completed:
        return self.kopiatomic(*self.words, *more)


@pytest.fixture
def run(files: list[Path], root: Path, kopiatomic: Kopiatomic) -> Run:
    return Run(files, root, kopiatomic)


def document(ended: Completed) -> Any:
    valid(ended.stdout)
    return json.loads(ended.stdout)


def last_run(kopiatomic: Kopiatomic) -> str:
    found: str = json.loads(kopiatomic("history", "--json").stdout)["runs"][0]["run_id"]
    return found


def shows_several_instants(ended: Completed) -> bool:
    """Whether the numbers that its engine read are not of one instant. A file that is still empty has none."""
    found = [int(line) for line in ended.stderr.splitlines() if line.strip().isdecimal()]
    return len(found) != 4 or is_torn(found)


@pytest.mark.parametrize("start", WRITERS.values(), ids=WRITERS)
def test_several_subvolumes_are_one_instant_for_what_is_held(
    start: Start, files: list[Path], group: Grouped, run: Run, root: Path, leftovers: Leftovers
) -> None:
    start(group, files)
    for _ in range(SETS):
        ended = run("--hold", f"cgroup:{group.path}", "--verbose")
        assert ended.returncode == 0, str(ended)
        (writer,) = document(ended)["writers"]
        assert writer["writer"] == f"cgroup {group.path}"
        assert writer["needed"]
        assert 0 < writer["stall_seconds"] < 2
        assert writer["why"] == "frozen before and after"
        assert writer["one_instant"] is not document(ended)["atomic"]
        assert not shows_several_instants(ended), str(ended)
        assert not group.is_asked()
    assert leftovers(root) == []
    assert thawers() == []


@pytest.mark.parametrize("start", WRITERS.values(), ids=WRITERS)
def test_otherwise_they_are_not(start: Start, files: list[Path], group: Grouped, run: Run) -> None:
    """The control: the test above could not fail otherwise."""
    start(group, files)
    assert count_torn(lambda: shows_several_instants(run("--verbose")), SETS)


def test_the_plan_says_what_is_held(files: list[Path], group: Grouped, kopiatomic: Kopiatomic) -> None:
    group.start("sleep", "1000")
    ended = kopiatomic("plan", files[0].parent, "--hold", f"cgroup:{group.path}")
    assert ended.returncode == 0, str(ended)
    _, line = ended.stdout.split("Writers while the snapshots are made:\n")
    assert line == f"  cgroup {group.path}  its process is frozen for the snapshots\n"
    ended = kopiatomic("plan", *(file.parent for file in files), "--hold", f"cgroup:{group.path}")
    words = "one instant for what was held, not proven for others"
    assert f"  cgroup {group.path}  its process is frozen for the snapshots ({words})\n" in ended.stdout
    assert not group.is_asked()
    assert thawers() == []


def test_a_plan_without_root_says_what_it_cannot_ask(files: list[Path], group: Grouped, kopiatomic: Kopiatomic) -> None:
    group.start("sleep", "1000")
    holds = ["--hold", "mariadb", "--hold", f"cgroup:{group.path}", "--hold", "cgroup:/no/such/group"]
    words = kopiatomic.argv("plan", files[0].parent, *holds)
    ended = command(*as_nobody(*words), env=kopiatomic.environment, check=False)
    assert ended.returncode == 0, str(ended)
    _, listed = ended.stdout.split("Writers while the snapshots are made:\n")
    width = len(f"cgroup {group.path}")
    mariadb = "not known without root: its client runs as root, and this process may not become that user"
    assert listed.splitlines() == [
        f"  {'mariadb':<{width}}  {mariadb}",
        f"  cgroup {group.path}  its process is frozen for the snapshots",
        f"  {'cgroup:/no/such/group':<{width}}  not known without root: there is no control group /no/such/group",
    ]
    says = "only root can find out whether mariadb, cgroup:/no/such/group must be held still: sudo kopiatomic plan"
    assert f"{says} {files[0].parent} --hold mariadb" in ended.stderr
    ended = command(*as_nobody(*words, "--json"), env=kopiatomic.environment, check=False)
    assert [writer["needed"] for writer in document(ended)["writers"]] == [None, True, None]


def test_a_plan_of_roots_says_what_would_fail_a_run(files: list[Path], kopiatomic: Kopiatomic) -> None:
    words: list[str | Path] = ["plan", files[0].parent]
    words += ["--hold", "cgroup:/no/such/group", "--hold", "cgroup:/no/other"]
    ended = kopiatomic(*words)
    assert ended.returncode == 1, str(ended)
    assert "Would save 1 dataset" in ended.stdout
    assert "cgroup:/no/such/group  cannot be held\n" in ended.stdout
    # Each with what to do, and once.
    assert ended.stderr.count("there is no control group /no/such/group\n  ") == 1
    assert ended.stderr.count("warning: there is no control group /no/other. ") == 1
    found = document(kopiatomic(*words, "--json"))
    assert (found["exit_code"], found["error"]["kind"]) == (1, "hold-no-group")
    assert found["writers"][0]["why"] == "there is no control group /no/such/group"
    ended = kopiatomic("plan", files[0].parent, "--hold", "oracle")
    assert ended.returncode == 2, str(ended)


@pytest.fixture
def profile(files: list[Path], folder: Path, kopiatomic: Kopiatomic) -> Callable[[str], Kopiatomic]:
    """Writes a profile p that holds what a text says."""
    kopiatomic.environment["KOPIATOMIC_CONFIG_DIR"] = str(folder)

    def write(text: str) -> Kopiatomic:
        (folder / "p.toml").write_text(
            f'{text}\n[select]\ndatasets = ["{files[0].parent}"]\n[engine]\ncommand = "ls"\n'
        )
        return kopiatomic

    return write


def test_a_dry_run_of_roots_asks_with_the_password_of_the_profile(
    profile: Callable[[str], Kopiatomic], folder: Path
) -> None:
    """It is nowhere shown; a profile that others can change is not acted on."""
    client, seen = folder / "client", folder / "seen"
    client.write_text(f'#!/bin/sh\necho "$MYSQL_PWD" > {seen}\necho "ERROR 1045 (28000): $MYSQL_PWD" >&2\nexit 1\n')
    client.chmod(0o755)
    (folder / "pw").write_text("not-to-be-seen\n")
    (folder / "pw").chmod(0o600)
    text = f'[[hold]]\nkind = "mariadb"\nclient = "{client}"\npassword = {{ file = "{folder}/pw" }}'
    for words in (("run", "-n", "p"), ("run", "p"), ("profile", "check", "p")):
        seen.unlink(missing_ok=True)
        ended = profile(text)(*words)
        assert ended.returncode == 1, str(ended)
        assert "ERROR 1045" in ended.stderr
        assert seen.read_text() == "not-to-be-seen\n"
        assert "not-to-be-seen" not in ended.stdout + ended.stderr
    seen.unlink()
    (folder / "p.toml").chmod(0o666)
    ended = profile(text)("run", "-n", "p")
    assert (ended.returncode, seen.exists()) == (1, False), str(ended)
    (folder / "p.toml").chmod(0o644)
    (folder / "pw").unlink()
    ended = profile(text)("run", "-n", "p")
    assert (ended.returncode, "mariadb  cannot be held" in ended.stdout) == (1, True), str(ended)
    assert f"{folder}/pw" in ended.stderr


def test_writers_of_the_profile_that_are_not_held_are_said(
    profile: Callable[[str], Kopiatomic], group: Grouped
) -> None:
    group.start("sleep", "1000")
    text = f'[[hold]]\nkind = "cgroup"\nname = "{group.path}"'
    ended = profile(text)("run", "p", "--hold", f"cgroup:{group.path}", "--hold", f"cgroup:{group.path}/")
    assert ended.returncode == 0, str(ended)
    says = f"warning: --hold stands in place of the writers of the profile, which are not held: cgroup:{group.path}\n"
    assert says in ended.stderr
    assert ended.stdout.count(f"cgroup {group.path} ") == 1, ended.stdout
    assert "--hold" not in profile(text)("run", "p").stderr


def test_a_check_finds_what_a_run_would_not_hold(profile: Callable[[str], Kopiatomic], folder: Path) -> None:
    """A program that is not there fails it; one that others can change is warned of; times of zero are refused."""
    ended = profile('[[hold]]\nkind = "command"\ncommand = ["/nosuch"]')("profile", "check", "p")
    assert (ended.returncode, "the command begins with /nosuch, which is not there" in ended.stderr) == (1, True), str(
        ended
    )
    script = folder / "script"
    script.write_text("#!/bin/sh\necho held; read -r line\n")
    script.chmod(0o777)
    text = f'[[hold]]\nkind = "command"\ncommand = ["{script}"]'
    ended = profile(text)("profile", "check", "p")
    assert f"warning: {script} in hold command: {script} is used by root, and " in ended.stderr, str(ended)
    script.chmod(0o755)
    assert "warning" not in profile(text)("profile", "check", "p").stderr
    for key in ("timeout", "limit"):
        ended = profile(f'{text}\n{key} = "0s"')("profile", "check", "p")
        assert (ended.returncode, key in ended.stderr) == (2, True), str(ended)


def test_the_summary_says_for_what_several_snapshots_are_one_instant(
    files: list[Path], group: Grouped, run: Run, kopiatomic: Kopiatomic
) -> None:
    for file in files:
        file.touch()
    group.start("sleep", "1000")
    words = [word for word in run.words if word != "--json"]
    ended = kopiatomic(*words, "--hold", f"cgroup:{group.path}")
    assert ended.returncode == 0, str(ended)
    says = f"          one instant for what was held (cgroup {group.path}), not proven for others\n"
    # Four subvolumes hardly ever share a transaction.
    assert (says in ended.stdout) == ("NOT at one instant" in ended.stdout), str(ended)
    shown = kopiatomic("history", last_run(kopiatomic))
    assert (says in shown.stdout) == (says in ended.stdout), str(shown)


def test_frozen_processes_prove_nothing_to_require_atomic(files: list[Path], group: Grouped, run: Run) -> None:
    for file in files:
        file.touch()
    group.start("sleep", "1000")
    ended = run("--hold", f"cgroup:{group.path}", "--require-atomic")
    found = document(ended)
    if found["error"] is None:
        assert (ended.returncode, found["atomic"]) == (0, True)
    else:
        assert (ended.returncode, found["error"]["kind"], found["atomic"]) == (1, "not-atomic", False)
        assert found["writers"][0]["one_instant"]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["--hold", "oracle"], "hold-kind"),
        (["--hold", ":x"], "hold-kind"),
        (["--hold", "cgroup:/no/such/group"], "hold-no-group"),
        (["--hold", "unit:no-such.service"], None),
    ],
)
def test_what_cannot_be_held_fails_before_anything_is_made(
    words: list[str], kind: str | None, run: Run, root: Path, leftovers: Leftovers
) -> None:
    ended = run(*words)
    assert ended.returncode in {1, 2}, str(ended)
    found = document(ended)
    assert kind in {None, found["error"]["kind"]}, found["error"]
    assert (found["sets"], found["instant"]) == ([], None)
    assert leftovers(root) == []


def test_what_somebody_else_has_frozen_stays_frozen(files: list[Path], group: Grouped, run: Run) -> None:
    for file in files:
        file.touch()
    group.start("sleep", "1000")
    group.freeze(frozen=True)
    ended = run("--hold", f"cgroup:{group.path}")
    assert ended.returncode == 0, str(ended)
    assert document(ended)["writers"][0]["why"] == "frozen by somebody else before and after"
    assert group.is_frozen()


@pytest.mark.parametrize("everyone", [False, True], ids=["main", "everyone"])
def test_a_kill_while_it_is_held_thaws_it(
    everyone: bool,
    files: list[Path],
    group: Grouped,
    run: Run,
    root: Path,
    kopiatomic: Kopiatomic,
    leftovers: Leftovers,
) -> None:
    """At any moment of fifteen runs: two seconds later nothing is frozen."""
    group.start("sleep", "1000")
    hit = 0
    for number in range(15):
        with kopiatomic.started(*run.words, "--hold", f"cgroup:{group.path}") as process:
            wait_for(lambda: group.is_asked() or process.poll() is not None, "the freeze", within=30)
            hit += group.is_asked()
            time.sleep(number * 0.0005)
            if everyone:
                subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
            process.send_signal(signal.SIGKILL)
            process.wait(30)
            assert eventually(lambda: not group.is_asked(), within=2.5)
    assert hit
    wait_for(lambda: leftovers(root) == [] or kopiatomic("recover").returncode == 0, "the end of everything", within=30)
    assert not group.is_asked()


def test_a_postgresql_in_one_subvolume_needs_nothing(
    btrfs: Btrfs, kopiatomic: Kopiatomic, root: Path, leftovers: Leftovers
) -> None:
    with postgresql(on={"": btrfs.subvolume("whole")}) as server:
        words: list[str | Path] = ["--hold", f"postgresql:{server.number}", "--mount-root", root, "--json", "-c", "ls"]
        ended = kopiatomic(*words, server.folder)
        assert ended.returncode == 0, str(ended)
        (writer,) = document(ended)["writers"]
        assert (writer["needed"], writer["stall_seconds"]) == (False, None)
        assert "all in one instant, nothing to hold" in writer["plan"]
        plan = kopiatomic.argv("plan", *words[:2], server.folder)
        planned = command(*as_nobody(*plan), env=kopiatomic.environment, check=False)
        assert planned.returncode == 0, str(planned)
        assert "not known without root: its client runs as postgres, and this process may not" in planned.stdout
        assert "nothing to hold" not in planned.stdout
        ended = kopiatomic(*words, btrfs.subvolume("other"))
        assert ended.returncode == 1, str(ended)
        error = document(ended)["error"]
        assert error["kind"] == "hold-not-in-backup"
        whole = f"lies in {server.folder}, which is NOT in this backup: name it as well"
        assert error["message"].endswith(whole), error
    assert leftovers(root) == []
