"""A held view without a filesystem: how it ends, who asks for that and how, and what starter and holder say to each other."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kopiatomic import platforms
from kopiatomic.errors import Interrupted, KopiatomicError
from kopiatomic.model.plan import Plan
from kopiatomic.model.report import HoldEnd, HoldReport
from kopiatomic.runs import holding
from kopiatomic.runs.holding import Starter
from kopiatomic.runs.patience import Patience
from kopiatomic.runs.supervisor import Supervisor
from kopiatomic.state import locks
from kopiatomic.system import host, signals
from tests.support.moments import ends

RUN = "20261122T101112Z-01234567"


def failed(kind: str, call: Callable[[], object]) -> KopiatomicError:
    with pytest.raises(KopiatomicError) as caught:
        call()
    assert caught.value.kind == kind, caught.value.message
    return caught.value


# Asking a run to end


@contextmanager
def beside(act: Callable[[], object]) -> Iterator[None]:
    """Do something in another thread during the block."""
    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def file_of(lock_directory: Path) -> Path:
    return lock_directory / f"run-{RUN}"


def test_a_request_is_a_word_in_the_file_of_the_lock(lock_directory: Path) -> None:
    """Another version of the program may have written it."""
    with locks.run(RUN, "/records") as held:
        assert not held.asked_to_end()
        assert locks.ask_to_end(RUN)
        assert file_of(lock_directory).read_bytes() == b"end".ljust(32) + b"/records"
        assert held.asked_to_end()
    with locks.run(RUN, "/records") as held:
        assert not held.asked_to_end()
        file_of(lock_directory).write_bytes(b"end")
        assert held.asked_to_end()


@pytest.mark.usefixtures("lock_directory")
def test_a_request_reaches_no_other_run() -> None:
    with locks.run(RUN, "/records") as held, locks.run(f"{RUN[:-1]}8", "/records") as other:
        locks.ask_to_end(RUN)
        assert (held.asked_to_end(), other.asked_to_end()) == (True, False)


def test_a_run_that_is_not_there_cannot_be_asked(lock_directory: Path) -> None:
    assert not locks.ask_to_end(RUN)
    assert not holding.end(RUN, 1)
    locks.prepare()
    # Of one that was killed, a file is left.
    file_of(lock_directory).touch()
    assert not holding.end(RUN, 1)
    assert file_of(lock_directory).read_bytes() == b""


def test_the_end_is_waited_for(lock_directory: Path) -> None:
    with locks.run(RUN, "/records") as held:

        def obey() -> None:
            while not held.asked_to_end():
                time.sleep(0.001)
            time.sleep(0.2)
            held.let_go()

        began = time.monotonic()
        with beside(obey):
            assert holding.end(RUN, 20)
            assert not file_of(lock_directory).exists()
        assert time.monotonic() - began >= 0.2


@pytest.mark.usefixtures("lock_directory")
def test_a_run_that_does_not_end_is_said() -> None:
    with locks.run(RUN, "/records") as held:
        assert RUN in failed("hold-stuck", lambda: holding.end(RUN, 0.1)).message
        assert held.asked_to_end()


def test_what_is_being_cleared_is_waited_for_and_not_asked(lock_directory: Path) -> None:
    locks.prepare()
    file_of(lock_directory).touch()
    with locks.claim(RUN) as claimed:
        assert claimed is not None
        failed("hold-stuck", lambda: holding.end(RUN, 0.1))
        assert locks.cleared_by(RUN) == str(os.getpid())
    assert not holding.end(RUN, 0.1)


def test_a_directory_that_nobody_may_use_is_an_error(lock_directory: Path) -> None:
    """And never a run that is not there."""
    lock_directory.symlink_to(lock_directory.name)
    failed("lock-impossible", lambda: holding.end(RUN, 1))


# How a view ends


class Unmounted(Supervisor):
    """The processes of a run that has nothing to mount: a keeper, and no launcher, which would look for problems."""

    problems: Sequence[str] = ()

    def check(self) -> Sequence[str]:
        return self.problems

    @property
    def keeper(self) -> int:
        return self._keeper_pid


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Unmounted]:
    made = Unmounted(
        RUN,
        Plan(str(tmp_path), ()),
        [],
        lambda _: None,
        Patience([], 1, lambda _: None),
        platform=platforms.here(),
        record=lambda _: None,
    )
    try:
        with made:
            made.freeze()
            yield made
    finally:
        # What a run does for its own process only.
        host.here().adopt_orphans(adopt=False)
        gc.unfreeze()


@pytest.fixture
def reader() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        # Popen returns when the kernel has closed its pipe, which is shortly before the process has its new name.
        while Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
            time.sleep(0.001)
        yield process
        process.kill()


Hold = Callable[..., HoldReport]


@pytest.fixture
def hold(supervisor: Unmounted, reader: subprocess.Popen[bytes]) -> Hold:
    def hold(seconds: float = 60, asked: Callable[[], bool] = lambda: False) -> HoldReport:
        session: Any = SimpleNamespace(asked_to_end=asked)
        frozen: Any = SimpleNamespace(supervisor=supervisor)
        with holding.watching(reader.pid, seconds) as until:
            report = HoldReport(RUN, "/", hold=until.hold)
            try:
                holding.hold(session, frozen, report, until)
            except KopiatomicError as error:
                report.error = error
        return report

    return hold


def outcome(report: HoldReport) -> tuple[str, int, str | None]:
    """Its result and exit code, and what ended it."""
    return report.result, report.exit_code, report.ended_by


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_process(signum: int, hold: Hold, reader: subprocess.Popen[bytes]) -> None:
    def end() -> None:
        time.sleep(0.2)
        # Not reaped: it has ended all the same.
        os.kill(reader.pid, signum)

    began = time.monotonic()
    with beside(end):
        assert outcome(hold()) == ("ran", 0, HoldEnd.PROCESS)
    assert 0.2 <= time.monotonic() - began < 10


def test_it_ends_at_its_deadline(hold: Hold) -> None:
    began = time.monotonic()
    report = hold(0.3)
    assert outcome(report) == ("failed", 1, HoldEnd.DEADLINE)
    assert report.error is not None
    assert report.error.kind == "hold-deadline"
    assert 0.3 <= time.monotonic() - began < 10


def test_it_ends_when_it_is_asked_to(hold: Hold) -> None:
    answers = iter([False, False, True])
    assert outcome(hold(asked=lambda: next(answers))) == ("ran", 0, HoldEnd.REQUEST)


def test_what_is_no_longer_frozen_was_not_held(
    hold: Hold, supervisor: Unmounted, reader: subprocess.Popen[bytes]
) -> None:
    supervisor.problems = ["/data is not mounted", "/home is not mounted"]
    reader.kill()
    report = hold()
    assert outcome(report) == ("failed", 1, HoldEnd.PROCESS)
    assert report.error is not None
    assert report.error.kind == "view-changed"
    assert "/data is not mounted; /home is not mounted" in report.error.message


def test_it_ends_with_its_keeper(hold: Hold, supervisor: Unmounted) -> None:
    os.kill(supervisor.keeper, signal.SIGKILL)
    report = hold()
    # The launcher's channel, of which the keeper has an end here, is looked at first.
    assert outcome(report) == ("failed", 1, None)
    assert report.error is not None
    assert report.error.kind == "launcher-killed"


def test_a_signal_ends_it(hold: Hold) -> None:
    with signals.handled():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            hold()


def test_what_a_view_is_held_for_is_in_its_report(hold: Hold, reader: subprocess.Popen[bytes]) -> None:
    before = time.time()
    about = hold(0.1).hold
    assert about is not None
    assert (about.process, about.program) == (reader.pid, "sleep")
    assert before + 0.1 <= about.deadline <= time.time() + 0.1


def test_a_process_that_has_ended_cannot_be_watched() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    with pytest.raises(KopiatomicError) as caught, holding.watching(gone.pid, 60):
        pass
    assert caught.value.kind == "no-process"
    assert str(gone.pid) in caught.value.message


@pytest.mark.parametrize(
    ("report", "code", "result"),
    [
        (HoldReport(RUN, "/", held=True), 0, "ran"),
        (HoldReport(RUN, "/"), 1, "failed"),
        (HoldReport(RUN, "/", held=True, error=KopiatomicError("x", kind="x")), 1, "failed"),
        (HoldReport(RUN, "/", error=Interrupted(signal.SIGTERM)), 143, "interrupted"),
        (HoldReport(RUN, "/", held=True, incomplete=["x"]), 3, "incomplete"),
        (HoldReport(RUN, "/", held=True, incomplete=["x"], left_behind=["x"]), 4, "unclean"),
    ],
)
def test_the_report_says_whether_it_was_held_to_the_end(report: HoldReport, code: int, result: str) -> None:
    assert (report.exit_code, report.result, report.kind) == (code, result, "hold")


# Starter and holder


@pytest.fixture
def told() -> list[object]:
    return []


def test_a_holder_that_ends_early_gives_its_exit_code(told: list[object]) -> None:
    assert holding.start(lambda _: 3, told.append) == 3
    assert told == []


def test_a_holder_that_fails_says_why(told: list[object]) -> None:
    def fail(_: Starter) -> int:
        raise KopiatomicError("it cannot be", kind="it", hint="Try again.")

    error = failed("it", lambda: holding.start(fail, told.append))
    assert (error.message, error.hint) == ("it cannot be", "Try again.")
    assert told == []


def test_a_holder_that_is_killed_is_said(told: list[object]) -> None:
    def end(_: Starter) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    failed("holder-killed", lambda: holding.start(end, told.append))
    assert told == []


class Alone:
    """A holder that goes on until the file ``end`` is there, and leaves what it is, and how it ended, in others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, starter: Starter) -> int:
        try:
            starter.let_go("where it is")
        except KopiatomicError as error:
            self.write("end", error.kind)
            raise
        streams = {os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)}
        self.write("alone", f"{os.getsid(0)} {os.getpgid(0)} {starter.has_let_go} {streams}")
        while not (self.folder / "end").exists():
            time.sleep(0.01)
        # Nobody takes an answer any more, and that is no failure.
        return 5

    def write(self, name: str, text: str) -> None:
        (self.folder / f"{name}.new").write_text(f"{os.getpid()} {text}")
        os.rename(self.folder / f"{name}.new", self.folder / name)

    def read(self, name: str) -> list[str]:
        deadline = time.monotonic() + 20
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, name
            time.sleep(0.01)
        return (self.folder / name).read_text().split(" ", 4)


def test_a_holder_that_is_let_go_leaves_session_group_and_streams(told: list[object], tmp_path: Path) -> None:
    holder = Alone(tmp_path)
    try:
        assert holding.start(holder, told.append) == 0
        assert told == ["where it is"]
        pid, *what = holder.read("alone")
        assert what == [pid, pid, "True", "{'/dev/null'}"]
    finally:
        (tmp_path / "end").touch()
    os.waitpid(int(pid), 0)


def test_a_caller_that_cannot_be_told_has_no_view(tmp_path: Path) -> None:
    def tell(_: object) -> None:
        raise BrokenPipeError

    holder = Alone(tmp_path)
    with pytest.raises(BrokenPipeError):
        holding.start(holder, tell)
    pid, kind = holder.read("end")
    assert kind == "starter-ended"
    os.waitpid(int(pid), 0)


@pytest.mark.parametrize("slow", [0, 0.2], ids=["waiting", "right after the fork"])
def test_a_signal_is_passed_on_and_the_end_waited_for(
    slow: float, told: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    starter = os.getpid()

    def fork(real: Callable[[], int] = os.fork) -> int:
        if pid := real():
            time.sleep(slow)
        return pid

    monkeypatch.setattr(os, "fork", fork)

    def hold(_: Starter) -> int:
        with signals.handled():
            os.kill(starter, signal.SIGTERM)
            try:
                signals.sleep(60)
            except Interrupted as why:
                time.sleep(0.2)
                return 128 + why.signum
        return 0

    assert holding.start(hold, told.append) == 143
    assert told == []


def test_a_signal_that_comes_before_the_holder_is_ready_for_it_is_not_lost(
    told: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow start of the holder is injected: it still has its starter's handlers when it is asked to end."""
    starter = os.getpid()

    def fork(real: Callable[[], int] = os.fork) -> int:
        pid = real()
        if pid:
            os.kill(starter, signal.SIGTERM)
        else:
            time.sleep(0.3)
        return pid

    monkeypatch.setattr(os, "fork", fork)

    def hold(_: Starter) -> int:
        with signals.handled():
            signals.sleep(30)
        return 0

    began = time.monotonic()
    with pytest.raises(Interrupted) as caught:
        holding.start(hold, told.append)
    assert (caught.value.exit_code, told) == (143, [])
    assert time.monotonic() - began < 20


KILLED = """if True:
    import os, signal, sys, time
    from kopiatomic.runs import holding
    from kopiatomic.system import host
    starter = os.getpid()
    def hold(_):
        with open("holder", "w") as file:
            file.write(str(os.getpid()))
        os.kill(starter, signal.SIGKILL)
        time.sleep(60)
        return 0
    def late(signum, tie=host.here().end_with_parent):
        os.kill(starter, signal.SIGKILL)
        while os.getppid() == starter:
            time.sleep(0.01)
        with open("holder", "w") as file:
            file.write(str(os.getpid()))
        tie(signum)
    if sys.argv[1:] == ["early"]:
        host.here().end_with_parent = late
    holding.start(hold, print)
"""


@pytest.mark.parametrize("when", ["early", "late"])
def test_a_holder_ends_with_a_killed_starter(when: str, tmp_path: Path) -> None:
    """Also where that was killed before the kernel was asked to say so."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", KILLED, when], cwd=tmp_path, env=environment, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while not (tmp_path / "holder").exists() or not (tmp_path / "holder").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert ends(int((tmp_path / "holder").read_text()))
