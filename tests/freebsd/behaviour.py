"""What a backup of ZFS does on FreeBSD, as a user sees it. Nothing here asks the system in a way that only one kind of it has.

So the same tests run on a FreeBSD host (test_behaviour.py), and in the VM with the shim (tests/zfs/test_freebsd_behaviour.py),
which shows that the tests themselves are sound. Who imports them gives the fixtures ``program``, and ``holder`` for the small
command of tests/support/in_a_view.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import kopiatomic
from kopiatomic.state import locks
from kopiatomic.system import host
from tests.support.filesystems import Pool, imported_pool
from tests.support.killing import kill_together
from tests.support.leftovers import STANDING
from tests.support.programs import SLOWNESS, Completed, command

__all__ = [
    "profiled",
    "run",
    "scheduled",
    "tank",
    "test_a_file_says_what_it_said_at_the_instant",
    "test_a_held_view_is_there_until_its_process_ends",
    "test_a_jail_backs_up_its_own_dataset",
    "test_a_killed_process_leaves_nothing",
    "test_a_mount_that_is_pulled_away_fails_the_run",
    "test_a_part_and_odd_names_are_where_they_are",
    "test_after_freeze_comes_to_its_end_whatever_dies",
    "test_all_killed_leave_what_the_next_run_clears",
    "test_cron_reads_what_is_installed_and_starts_it",
    "test_holding_a_writer_still_is_refused_where_it_is_not_supported",
    "test_hooks_of_a_profile_run_at_their_moments",
    "test_in_place_the_root_of_the_system_is_frozen",
    "test_in_place_true_paths_are_frozen_and_all_else_goes_on",
    "test_no_set_is_torn",
    "test_nobody_can_destroy_a_snapshot_that_is_backed_up",
    "test_sigterm_ends_it",
    "test_the_main_job",
    "test_what_is_in_use_is_told_and_goes_later",
    "test_what_is_installed_makes_a_backup_as_cron_starts_it",
    "test_what_runs_last_says_how_it_ended",
]

ON_FREEBSD: bool = sys.platform.startswith("freebsd")
ROOT = Path("/kopia-test")
COUNTERS = [f"data{number}" for number in range(4)]
RUNS = int(os.environ.get("KOPIATOMIC_TEST_TORN_RUNS", "20" if ON_FREEBSD else "3"))
WITHIN_S = 5 * SLOWNESS

IN_PLACE = ("--layout", "in-place")
LAYOUTS = pytest.mark.parametrize("layout", [(), IN_PLACE], ids=["merged", "in-place"])

WRITER = """
import os, sys
files = [os.open(path, os.O_RDWR | os.O_CREAT) for path in sys.argv[1:]]
number = 0
while True:
    number += 1
    for fd in files:
        os.pwrite(fd, b"%016d" % number, 0)
    if number == 1:
        print("writing", flush=True)
"""
READER = """
import sys
out, root = sys.argv[1], sys.argv[-1]
with open(out, "w") as file:
    for name in sys.argv[2:-1]:
        print(open(root + name).read(), file=file)
"""
WAITER = """
import os, sys, time
ready, go = sys.argv[1:3]
if os.fork() == 0:
    os.setsid()
    os.closerange(0, 1024)
    time.sleep(1000)
open(ready, "w").close()
while not os.path.exists(go):
    time.sleep(0.05)
"""

Program = Callable[[], list[str]]


@dataclass
class Runs:
    """Runs of one test, and what they leave. ``argv`` begins the command line of the program."""

    argv: list[str]
    folder: Path
    pool: Pool

    def environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.folder), "KOPIATOMIC_STATE_DIR": str(self.folder / "state")}

    def words(self, *args: str | Path) -> list[str]:
        return [*self.argv, "--mount-root", str(ROOT), *map(str, args)]

    def __call__(self, *args: str | Path) -> Completed:
        return command(*self.words(*args), env=self.environment(), check=False, timeout=120)

    def recover(self, *args: str) -> Completed:
        return command(*self.argv, "recover", *args, env=self.environment(), check=False, timeout=120)

    @contextmanager
    def waiting(self, *more: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
        """A run whose engine waits for a file, and has left a process in another session; and that file."""
        ready, go, script = self.folder / "ready", self.folder / "go", self.folder / "waiter.py"
        script.write_text(WAITER)
        words = self.words("-c", f"{sys.executable} -SI {script} {ready} {go}", *more)
        with subprocess.Popen(
            words, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as running:
            deadline = time.monotonic() + 30 * SLOWNESS
            while not ready.exists():
                assert running.poll() is None, running.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            try:
                yield running, go
            finally:
                go.touch()
        ready.unlink()
        go.unlink()

    def snapshots(self) -> list[str]:
        return [name for name in self.pool.snapshots() if "@kopiatomic_" in name]

    def left(self) -> list[str]:
        """What there still is of any run: mounts, snapshots, directories, files of locks, processes of the engine."""
        marks = (locks.DIRECTORY, "@kopiatomic_", str(ROOT))
        found = [line for line in command("mount").stdout.splitlines() if any(mark in line for mark in marks)]
        found += self.snapshots()
        if ROOT.exists():
            found.append(str(ROOT))
        if os.path.isdir(locks.DIRECTORY):
            found += set(os.listdir(locks.DIRECTORY)) - STANDING
        return found + [f"{pid} {words}" for pid, (_, words) in processes().items() if str(self.folder) in words]


def processes() -> Mapping[int, tuple[int, str]]:
    """All processes: parent and command line, by their ids."""
    # FreeBSD's ps takes all behind the first '=' of a word for the heading (parsefmt in its keyword.c).
    listed = command("ps", "-axww", "-o", "pid=", "-o", "ppid=", "-o", "command=").stdout.splitlines()
    found = (line.split(maxsplit=2) for line in listed)
    return {int(pid): (int(parent), " ".join(words)) for pid, parent, *words in found}


def family(pid: int) -> dict[str, int]:
    """The processes of a run whose engine has started, by what they are."""
    table = processes()

    def child(above: int, marked: str = "") -> int:
        return min(pid for pid, (parent, words) in table.items() if parent == above and marked in words)

    keeper = child(pid)
    launcher = child(keeper)
    return {"main": pid, "keeper": keeper, "launcher": launcher, "engine": child(launcher, "waiter.py")}


@pytest.fixture(scope="module")
def tank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with imported_pool(tmp_path_factory.mktemp("tank") / "pool") as pool:
        for name in ("home", "home/src", *COUNTERS):
            pool.dataset(name)
            (pool.path(name) / "file").write_text(f"of {name}")
        yield pool


@pytest.fixture
def run(program: Program, tmp_path: Path, tank: Pool) -> Iterator[Runs]:
    runs = Runs(program(), tmp_path, tank)
    yield runs
    runs.recover()


def gone(run: Runs, but: str | None = None) -> None:
    """Wait until nothing is left; ``but`` begins what may be."""
    deadline = time.monotonic() + WITHIN_S
    while found := [line for line in run.left() if but is None or not line.startswith(but)]:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def test_the_main_job(run: Runs, tank: Pool) -> None:
    ended = run("--json", "-c", "true", f"{tank.name}/home", f"{tank.name}/home/src")
    assert ended.returncode == 0, ended
    document: dict[str, Any] = json.loads(ended.stdout)
    assert (document["atomic"], document["left_behind"]) == (True, [])
    assert run.left() == []


def test_a_file_says_what_it_said_at_the_instant(run: Runs, tank: Pool, tmp_path: Path) -> None:
    out, script = tmp_path / "seen", tmp_path / "reader.py"
    script.write_text(READER)
    files = [str(tank.path(name) / "file") for name in ("home", "home/src")]
    ended = run("-c", " ".join([sys.executable, "-SI", str(script), str(out), *files]), f"{tank.name}/home", "-r")
    assert ended.returncode == 0, ended
    assert out.read_text().splitlines() == ["of home", "of home/src"]
    assert run.left() == []


def test_no_set_is_torn(run: Runs, tank: Pool, tmp_path: Path) -> None:
    out, script = tmp_path / "seen", tmp_path / "reader.py"
    script.write_text(READER)
    files = [str(tank.path(name) / "counter") for name in COUNTERS]
    reader = " ".join([sys.executable, "-SI", str(script), str(out), *files])
    seen = []
    with subprocess.Popen([sys.executable, "-SIc", WRITER, *files], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        try:
            for _ in range(RUNS):
                ended = run("--require-atomic", "-c", reader, *(f"{tank.name}/{name}" for name in COUNTERS))
                assert ended.returncode == 0, ended
                seen.append([int(line) for line in out.read_text().split()])
        finally:
            writer.kill()
    assert [n for n in seen if n != sorted(n, reverse=True) or n[0] - n[-1] > 1] == []
    assert len({numbers[0] for numbers in seen}) == RUNS, "the writer did not write"
    assert run.left() == []


def test_sigterm_ends_it(run: Runs, tank: Pool) -> None:
    with run.waiting(f"{tank.name}/home") as (running, _):
        running.send_signal(signal.SIGTERM)
        assert running.wait(30 * SLOWNESS) == 128 + signal.SIGTERM
    assert run.left() == []


def test_in_place_true_paths_are_frozen_and_all_else_goes_on(run: Runs, tank: Pool, tmp_path: Path) -> None:
    home, said, live = tank.path("home"), tmp_path / "said", tmp_path / "live"
    lines = (
        f"cat {home}/file; echo; touch {home}/new 2>/dev/null || echo frozen; echo x > {live}; echo x > /dev/null; pwd"
    )
    (tmp_path / "script").write_text(f"exec > {said}\n{lines}\n")
    ended = run(*IN_PLACE, "-c", f"sh {tmp_path / 'script'}", f"{tank.name}/home", "-r")
    assert ended.returncode == 0, ended
    assert said.read_text().splitlines() == ["of home", "frozen", os.getcwd()]
    assert live.read_text() == "x\n"
    words = ("exec", "-r", f"{tank.name}/home", "--", "sh", "-c", f"cat {home}/src/file")
    ended = command(*run.argv, *words, env=run.environment(), check=False, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "of home/src"), ended
    assert run.left() == []


@LAYOUTS
@pytest.mark.parametrize("victim", ["main", "keeper", "launcher", "engine"])
def test_a_killed_process_leaves_nothing(victim: str, layout: tuple[str, ...], run: Runs, tank: Pool) -> None:
    with run.waiting(*layout, f"{tank.name}/home", f"{tank.name}/home/src") as (running, _):
        os.kill(family(running.pid)[victim], signal.SIGKILL)
        status = running.wait(60 * SLOWNESS)
        gone(run, but="run-" if victim == "main" else None)
    assert status == (-signal.SIGKILL if victim == "main" else 1)


@LAYOUTS
def test_all_killed_leave_what_the_next_run_clears(layout: tuple[str, ...], run: Runs, tank: Pool) -> None:
    with run.waiting(*layout, f"{tank.name}/home", f"{tank.name}/home/src") as (running, _):
        kill_together(family(running.pid).values())
        running.wait(30 * SLOWNESS)
    assert len(run.snapshots()) == 2
    strays = [pid for pid, (_, words) in processes().items() if "waiter.py" in words]
    for pid in strays:
        # What the engine had started by itself: nobody of the run is left to end it, and it has the run's lock no more.
        os.kill(pid, signal.SIGKILL)
    ended = run("-c", "true", f"{tank.name}/home")
    assert ended.returncode == 0, ended
    assert "was interrupted" in ended.stderr
    gone(run)


def test_nobody_can_destroy_a_snapshot_that_is_backed_up(run: Runs, tank: Pool, tmp_path: Path) -> None:
    with run.waiting(f"{tank.name}/home") as (running, go):
        (name,) = run.snapshots()
        destroyed = command("zfs", "destroy", name, check=False)
        assert destroyed.returncode != 0
        assert (Path(f"{ROOT}{tank.path('home')}") / "file").read_text() == "of home"
        go.touch()
        assert running.wait(60 * SLOWNESS) == 0, running.communicate()
    assert run.left() == []


def test_what_is_in_use_is_told_and_goes_later(run: Runs, tank: Pool) -> None:
    with run.waiting(f"{tank.name}/home") as (running, go):
        inside = os.open(f"{ROOT}{tank.path('home')}", os.O_RDONLY | os.O_DIRECTORY)
        go.touch()
        said, _ = running.communicate(timeout=200 * SLOWNESS)
    assert running.returncode == 4, said
    assert "it is in use" in said
    os.close(inside)
    assert run.recover().returncode == 0
    assert run.left() == []


@LAYOUTS
def test_a_held_view_is_there_until_its_process_ends(
    layout: tuple[str, ...], holder: Program, run: Runs, tank: Pool
) -> None:
    file = tank.path("data3") / "file"
    file.write_text("frozen")
    with subprocess.Popen(["sleep", "1000"]) as reader:
        words = ("hold", layout[-1] if layout else "merged", ROOT, f"{tank.name}/data3", str(reader.pid), "300")
        try:
            ended = command(*holder(), *words, env=run.environment(), check=False, timeout=120)
            assert ended.returncode == 0, ended
            file.write_text("live")
            assert run.recover().returncode == 0
            assert Path(f"{json.loads(ended.stdout)['path']}{file}").read_text() == "frozen"
        finally:
            reader.kill()
    gone(run)


@LAYOUTS
def test_a_part_and_odd_names_are_where_they_are(
    layout: tuple[str, ...], run: Runs, tank: Pool, tmp_path: Path
) -> None:
    """Also in the lists that an engine finds in files, which need no quoting."""
    odd = "odd  name "
    tank.dataset(odd)
    try:
        part = tank.path(odd) / "part\nof it"
        part.mkdir()
        (part / "file").write_text("odd")
        script = tmp_path / "script"
        top = "" if layout else "$KOPIATOMIC_ROOT"
        script.write_text(
            f'cat "{top}{part}/file" > "$1"/seen && cat "$KOPIATOMIC_DATASETS_FILE" > "$1"/datasets && '
            'cat "$KOPIATOMIC_SOURCES_FILE" > "$1"/sources\n'
        )
        ended = run(*layout, "-c", f"sh {script} {tmp_path}", part)
        assert ended.returncode == 0, ended
        assert (tmp_path / "seen").read_text() == "odd"
        assert (tmp_path / "datasets").read_text() == f"{tank.name}/{odd}\0"
        assert (tmp_path / "sources").read_text() == f"{part if layout else ROOT}\0"
        assert run.left() == []
    finally:
        command("zfs", "destroy", f"{tank.name}/{odd}")


def test_a_mount_that_is_pulled_away_fails_the_run(run: Runs, tank: Pool) -> None:
    with run.waiting(f"{tank.name}/home/src") as (running, go):
        command("umount", "-f", f"{ROOT}{tank.path('home/src')}")
        go.touch()
        output = running.communicate()[0]
        assert running.returncode == 1, output
    assert "was taken away or replaced while the engine ran" in output
    gone(run)


# Hooks of a profile


@dataclass
class Profiled:
    """A profile whose hooks note that they run, and how many snapshots there are of runs."""

    run: Runs
    folder: Path
    notes: Path
    layout: tuple[str, ...] = ()
    hooks: list[tuple[str, ...]] = field(default_factory=list)
    """Moments and shell lines, in the order of the file, and more lines of that hook."""
    more: str = ""
    """The end of the file."""

    def noting(self, name: str, then: str = "true") -> str:
        listed = f"zfs list -H -t snapshot -o name -r {self.run.pool.name} | grep -c @kopiatomic_"
        return f"echo {name} $({listed}) $KOPIATOMIC_AGAIN >> {self.notes}/order; {then}"

    def blocking(self, name: str) -> str:
        """It goes on as long as the file ``block`` is there."""
        return self.noting(
            name, f"while test -e {self.notes}/block; do sleep 0.05; done; echo {name}-ended >> {self.notes}/order"
        )

    def words(self, *more: str) -> list[str]:
        """Write the profile; return the words that run it."""
        view = "layout = 'in-place'" if self.layout else f"mount_root = '{ROOT}'"
        lines = [f"[select]\ndatasets = ['{self.run.pool.name}/home']\n[view]\n{view}\n[engine]\ncommand = ['true']"]
        for moment, line, *rest in self.hooks:
            lines += [f"[[hooks.{moment}]]", f"shell = '''{line}'''", *rest]
        file = self.folder / "home.toml"
        file.touch(0o600)
        file.write_text("\n".join([*lines, self.more]))
        return [*self.run.argv, "run", "home", *more]

    def environment(self) -> dict[str, str]:
        return {**self.run.environment(), "KOPIATOMIC_CONFIG_DIR": str(self.folder)}

    def __call__(self, *more: str) -> Completed:
        return command(*self.words(*more), env=self.environment(), check=False, timeout=120)

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """A run in the background."""
        (self.notes / "block").touch()
        words = self.words()
        with subprocess.Popen(
            words,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as started:
            try:
                yield started
            finally:
                (self.notes / "block").unlink(missing_ok=True)

    def noted(self) -> list[str]:
        path = self.notes / "order"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 30 * SLOWNESS
        while not any(line.split()[0] == name for line in self.noted()):
            assert time.monotonic() < deadline, self.noted()
            time.sleep(0.05)


@pytest.fixture
def profiled(run: Runs) -> Iterator[Profiled]:
    """In a folder that root alone can change."""
    folder = Path(tempfile.mkdtemp(prefix="kopiatomic-test.", dir=Path("/root").resolve()))
    notes = run.folder / "notes"
    notes.mkdir()
    yield Profiled(run, folder, notes)
    shutil.rmtree(folder)


@LAYOUTS
def test_hooks_of_a_profile_run_at_their_moments(layout: tuple[str, ...], profiled: Profiled, tank: Pool) -> None:
    file = tank.path("home") / "hooked"
    file.write_text("before\n")
    seen = f"{'' if layout else '$KOPIATOMIC_ROOT'}{file}"
    profiled.layout = layout
    profiled.hooks = [
        ("before", profiled.noting("before")),
        ("before_freeze", profiled.noting("before_freeze")),
        ("after_freeze", profiled.noting("after_freeze", f"echo after > {file}")),
        (
            "in_view",
            f"cat {seen}; ls -A $TMPDIR; : > $TMPDIR/left && ls -A $TMPDIR; touch {seen} 2>/dev/null || echo frozen",
        ),
        ("in_view", "ls -A $TMPDIR; echo second"),
        ("in_view", "id -un", "user = 'nobody'"),
        ("after", profiled.noting("after")),
        ("on_success", profiled.noting("on_success")),
        ("on_failure", profiled.noting("on_failure")),
    ]
    ended = profiled()
    assert ended.returncode == 0, ended
    said = [line.removeprefix("in_view: ") for line in ended.stderr.splitlines() if line.startswith("in_view: ")]
    assert said == ["before", "left", "frozen", "second", "nobody"]
    assert profiled.noted() == ["before 0", "before_freeze 0", "after_freeze 1", "after 0", "on_success 0"]
    assert file.read_text() == "after\n"
    assert profiled.run.left() == []


@pytest.mark.parametrize("moment", ["before", "before_freeze", "in_view"])
def test_what_runs_last_says_how_it_ended(moment: str, profiled: Profiled) -> None:
    """Also where a hook left a process in another session, which ends with it."""
    stray = f"{sys.executable} -SIc 'import os, time; os.fork() or (os.setsid(), time.sleep(1000))' {profiled.notes}"
    moments = ("before", "before_freeze", "after_freeze", "in_view", "after", "on_success", "on_failure")
    profiled.hooks = [
        (name, profiled.noting(name, f"{stray}; exit 3" if name == moment else "true")) for name in moments
    ]
    ended = profiled()
    assert ended.returncode == 1, ended
    assert f"the hook {moment} (" in ended.stderr
    assert "failed (exit status 3)" in ended.stderr
    ran = moments[: moments.index(moment) + 1]
    between = ("after_freeze",) if moment == "before_freeze" else ()
    assert [line.split()[0] for line in profiled.noted()] == [*ran, *between, "after", "on_failure"]
    assert profiled.run.left() == []


GUARDIAN, MAIN, BOTH = "guardian", "main", "both"


@pytest.mark.parametrize("victim", [GUARDIAN, MAIN, BOTH])
@pytest.mark.parametrize("moment", ["before_freeze", "after_freeze"])
def test_after_freeze_comes_to_its_end_whatever_dies(moment: str, victim: str, profiled: Profiled) -> None:
    """Once, and once more only where it was killed in the middle. Where nobody of the run is left, it is owed."""
    ending = profiled.noting("after_freeze", f"echo after_freeze-ended >> {profiled.notes}/order")
    hooks = {"before_freeze": profiled.noting("before_freeze"), "after_freeze": ending}
    profiled.hooks = [*{**hooks, moment: profiled.blocking(moment)}.items()]
    with profiled.running() as started:
        profiled.wait_for(moment)
        table = processes()
        of_hooks = (parent for parent, words in table.values() if f"{profiled.notes}/block" in words)
        guardian = next(pid for pid in of_hooks if table[pid][0] == started.pid)
        kill_together({GUARDIAN: [guardian], MAIN: [started.pid], BOTH: [started.pid, guardian]}[victim])
        if moment == "after_freeze":
            # before_freeze does not go on: it is ended with whoever was killed.
            (profiled.notes / "block").unlink()
        started.wait(60 * SLOWNESS)
        if victim != BOTH:
            profiled.wait_for("after_freeze-ended")
    if victim == BOTH:
        said = profiled.run.recover("--dry-run")
        assert said.returncode == 4, said
        assert "would be run: /bin/sh -c " in said.stdout
        said = profiled.run.recover()
        assert said.returncode == 0, said
    again = moment == "after_freeze" and victim != MAIN
    starts = [line.split()[2:] for line in profiled.noted() if line.startswith("after_freeze ")]
    assert starts == ([[], ["1"]] if again else [[]])
    assert profiled.noted().count("after_freeze-ended") == 1
    assert "before_freeze-ended" not in profiled.noted()
    deadline = time.monotonic() + WITHIN_S
    while found := profiled.run.left():
        # A killed main process removes nothing of its own; the guardian lives on for a moment.
        assert victim == MAIN, found
        assert time.monotonic() < deadline, found
        assert profiled.run.recover().returncode == 0
        time.sleep(0.2)
    assert profiled.run.recover().returncode == 0
    assert profiled.noted().count("after_freeze-ended") == 1


def test_holding_a_writer_still_is_refused_where_it_is_not_supported(run: Runs, tank: Pool, profiled: Profiled) -> None:
    ended = run("--hold", "unit:mail.service", "-c", "true", f"{tank.name}/home")
    assert ended.returncode == 2, ended
    assert "hold unit:mail.service: writers are held still on Linux only" in ended.stderr
    assert "before_freeze" in ended.stderr
    profiled.more = "[[hold]]\nkind = 'postgresql'"
    ended = profiled()
    assert ended.returncode == 2, ended
    assert "hold postgresql: writers are held still on Linux only" in ended.stderr
    assert run.left() == []


# The whole system


def test_in_place_the_root_of_the_system_is_frozen(run: Runs) -> None:
    """Only where the system's root is on ZFS. It says what it said before, while the live one goes on."""
    dataset = command("zfs", "list", "-H", "-o", "name", "/", check=False).stdout.strip()
    if not dataset:
        pytest.skip("the root of this system is not on ZFS")
    file = Path("/kopiatomic-test-file")
    lines = (
        f"echo ready; read go; cat {file}; "
        f"touch {file}.new 2>/dev/null || echo frozen; echo x > /dev/null && echo null; ls -d /dev/null; pwd"
    )
    file.write_text("before\n")
    try:
        words = [*run.argv, "exec", "/", "--", "sh", "-c", lines]
        with subprocess.Popen(
            words, env=run.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
        ) as inside:
            assert inside.stdin is not None
            assert inside.stdout is not None
            assert inside.stdout.readline() == "ready\n"
            file.write_text("after\n")
            said, _ = inside.communicate("go\n", timeout=120 * SLOWNESS)
        assert (inside.returncode, said.splitlines()) == (0, ["before", "frozen", "null", "/dev/null", "/"])
        assert file.read_text() == "after\n"
    finally:
        file.unlink()
    snapshots = command("zfs", "list", "-H", "-t", "snapshot", "-o", "name", "-d", "1", dataset).stdout
    assert "@kopiatomic_" not in snapshots
    assert run.left() == []


# Schedules

NAME = "behaviour-test"
CRONTAB = Path(f"/usr/local/etc/cron.d/kopiatomic-{NAME}")
CRONS = {"HOME": "/root", "LOGNAME": "root", "PATH": "/etc:/bin:/sbin:/usr/bin:/usr/sbin", "SHELL": "/bin/sh"}
"""The environment in which cron(8) starts what is in its tables: crontab(5)."""

START = """#!{python}
import runpy, sys
sys.path[:0] = {path!r}
sys.argv[1:1] = {more!r}
runpy.run_module({module!r}, run_name="__main__")
"""


@dataclass
class Scheduled:
    """A schedule, and the program that it starts: in a folder that root alone can change."""

    program: Path
    environment: dict[str, str]
    backup: tuple[str, ...]

    def __call__(self, *words: str) -> Completed:
        """Give words to that program."""
        folder = self.program.parent
        return command(self.program, *words, env=self.environment, check=False, timeout=120, cwd=folder)

    def install(self, calendar: str) -> None:
        ended = self("schedule", "install", "--yes", "--calendar", calendar, NAME, "--", *self.backup)
        assert ended.returncode == 0, ended

    def remove(self) -> None:
        """Take it away. That is refused while a run is alive, which cron may have started just now."""
        deadline = time.monotonic() + 60 * SLOWNESS
        while (ended := self("schedule", "remove", "--yes", NAME)).returncode != 0:
            assert time.monotonic() < deadline, ended
            time.sleep(1)
        assert not CRONTAB.exists()

    def ends(self) -> list[str]:
        """How the runs ended that have ended, newest first."""
        document = json.loads(self("history", "--json").stdout)
        return [found["result"] for found in document["runs"] if found["result"] != "running"]


@pytest.fixture
def scheduled(run: Runs, tank: Pool) -> Iterator[Scheduled]:
    """A schedule that nothing starts while a test goes on, unless on New Year's Eve at midnight."""
    folder = Path(tempfile.mkdtemp(prefix="kopiatomic-test.", dir=Path("/root").resolve()))
    without_bytecode = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(kopiatomic.__file__).parent, folder / "kopiatomic", ignore=without_bytecode)
    support = Path(__file__).parents[1] / "support"
    shutil.copytree(support, folder / "tests" / "support", ignore=without_bytecode)
    (folder / "tests" / "__init__.py").touch()
    python, _, module, *more = run.argv
    program = folder / "start"
    program.write_text(START.format(python=python, path=[str(folder)], more=more, module=module))
    program.chmod(0o700)
    environment = {name: value for name, value in run.environment().items() if name != "PYTHONPATH"}
    environment["KOPIATOMIC_STATE_DIR"] = str(folder / "state")
    made = Scheduled(program, environment, ("--mount-root", str(ROOT), "-c", "true", f"{tank.name}/home"))
    made.install("yearly")
    try:
        yield made
    finally:
        made.remove()
        made("recover")
        shutil.rmtree(folder)


def test_what_is_installed_makes_a_backup_as_cron_starts_it(run: Runs, scheduled: Scheduled) -> None:
    """The line is read as crontab(5) says: five fields, a user, and the rest for /bin/sh, in which % has a meaning."""
    lines = CRONTAB.read_text().splitlines()
    (line,) = [line for line in lines if line.strip() and not line.startswith("#")]
    *times, user, rest = line.split(maxsplit=6)
    assert (times, user, "%" in rest) == (["0", "0", "1", "1", "*"], "root", False)
    ended = command("/bin/sh", "-c", rest, env=CRONS, check=False, timeout=120, cwd=Path("/root"))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", ""), ended
    assert scheduled.ends() == ["saved"]
    shown = scheduled("schedule", "show", NAME)
    assert "saved (0)" in shown.stdout, shown
    assert run.left() == []


def test_cron_reads_what_is_installed_and_starts_it(run: Runs, scheduled: Scheduled) -> None:
    """cron(8) looks for new files each minute, and starts what is in one from the next minute on."""
    program = shutil.which("cron", path="/usr/sbin:/sbin")
    if program is None or not ON_FREEBSD:
        pytest.skip("this is not a system with FreeBSD's cron(8)")
    runs = any(words.split()[:1] and os.path.basename(words.split()[0]) == "cron" for _, words in processes().values())
    # It refuses to be a second one (cron(8), pidfile(3)); -n has it stay in the foreground.
    own = None if runs else subprocess.Popen([program, "-n"], stdin=subprocess.DEVNULL)
    try:
        scheduled.install("minutely")
        deadline = time.monotonic() + 200 * SLOWNESS
        while not (ends := scheduled.ends()):
            assert time.monotonic() < deadline, scheduled("history").stdout
            time.sleep(2)
    finally:
        if own is not None:
            own.terminate()
            own.wait()
    assert set(ends) == {"saved"}
    # A run may have begun since.
    gone(run)


# Jails


@contextmanager
def in_a_jail(pool: Pool, name: str) -> Iterator[list[str]]:
    """A jail on the system's own root that has one dataset and may mount: docs/freebsd.md, "Jails". How words begin in it.

    Its parameters are those of jail(8); how a dataset is handed over is in zfs-jail(8).
    """
    for module in ("nullfs", "tmpfs"):
        # Their parameters are only known if they are loaded; what is in the kernel is no module.
        if shutil.which("kldload") is not None:
            command("kldload", "-n", module, check=False)
    jail = f"kopiatomic-test-{os.getpid()}"
    generated = {"devfs", "fdescfs", "procfs", "linprocfs", "linsysfs"}
    kinds = {"nullfs", "tmpfs", "zfs", *(generated & {mount.fstype for mount in host.here().mounts()})}
    allowed = [f"allow.mount.{kind}" for kind in sorted(kinds)]
    dataset = pool.dataset(name)
    (pool.path(name) / "file").write_text("of the jail")
    # Mounted in a jail alone it can be from then on.
    command("zfs", "umount", dataset)
    command("jail", "-c", f"name={jail}", "path=/", "persist", "enforce_statfs=1", "allow.mount", *allowed)
    try:
        command("zfs", "set", "jailed=on", dataset)
        command("zfs", "jail", jail, dataset)
        command("jexec", jail, "zfs", "mount", dataset)
        yield ["jexec", jail]
    finally:
        command("jexec", jail, "zfs", "umount", dataset, check=False)
        command("zfs", "unjail", jail, dataset, check=False)
        command("jail", "-r", jail)
        command("zfs", "set", "jailed=off", dataset)
        command("zfs", "destroy", "-f", dataset)


@LAYOUTS
def test_a_jail_backs_up_its_own_dataset(layout: tuple[str, ...], run: Runs, tank: Pool, tmp_path: Path) -> None:
    if not ON_FREEBSD or any(shutil.which(name) is None for name in ("jail", "jexec")):
        pytest.skip("this is not a system with FreeBSD's jail(8) and jexec(8)")
    out, script = tmp_path / "seen", tmp_path / "script"
    top = "" if layout else "$KOPIATOMIC_ROOT"
    script.write_text(f'cat "{top}{tank.path("jailed")}/file" > {out}\n')
    with in_a_jail(tank, "jailed") as words:
        inside = Runs([*words, *run.argv], run.folder, tank)
        ended = inside(*layout, "-c", f"sh {script}", f"{tank.name}/jailed")
        assert ended.returncode == 0, ended
        assert out.read_text() == "of the jail"
        # What is not the jail's is the host's.
        refused = inside(*layout, "-c", "true", f"{tank.name}/home")
        assert refused.returncode == 1, refused
        assert "the host's" in refused.stderr
        assert run.left() == []
