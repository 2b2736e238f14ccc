"""Spreads the tests over machines: each is an item here, with its own failure text, wherever it runs.

tests/zfs run in guests (dev/vm), one on each processor. Of this machine's own tests those on Btrfs run in this process, and where
there are such, the others in a worker beside it. The tests are collected here as any other, so -k, -x, node ids and --lf
work. They are handed out in batches, those first that took longest the last time; their reports are taken up in that order.
A test that hangs or breaks its machine fails, and the tests after it get a new one.

Those that are marked ``core`` also run on other guests, if some are named: once more, under their name and the guest's.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Literal

import pytest

TREE = Path(__file__).resolve().parents[2]
TESTS = TREE / "tests"
HERE, BESIDE = "", "beside"
"""Places on this machine: this process, and a worker. Any other place is a guest."""

USES_ONE_THAT_IS_UP = os.environ.get("KOPIATOMIC_TEST_VM") == "up"
"""A developer who has a machine up may use it: it saves the boot, and is as it was left."""

PROCESSORS = sorted(os.sched_getaffinity(0))
MACHINES = 1 if USES_ONE_THAT_IS_UP else int(os.environ.get("KOPIATOMIC_TEST_VMS", str(min(len(PROCESSORS), 4))))
"""How many guests there are at once when this machine's own tests are done: each keeps a processor busy."""

GUEST = os.environ.get("KOPIATOMIC_VM_GUEST", "trixie")
OTHER_GUESTS = os.environ.get("KOPIATOMIC_TEST_OTHER_GUESTS", "").split()
"""Where the core runs as well."""

EMULATORS = dict(pair.split("=") for pair in os.environ.get("KOPIATOMIC_TEST_EMULATORS", "").split())
"""What runs each guest, uml or qemu; dev/vm's choice for one that is not named."""

BUDGET_S = float(os.environ.get("KOPIATOMIC_TEST_BUDGET_S", "inf"))
"""After this time no batch for a guest is begun but those of the core; what is left out is named at the end."""

NOTES = os.environ.get("KOPIATOMIC_TEST_NOTES", "").splitlines()
"""What ./test has to say of the guests, for the last lines."""

DURATIONS = os.environ.get("KOPIATOMIC_TEST_DURATIONS")
"""A file with what each test took the last time."""

QUICK = {
    "KOPIATOMIC_VM_CPUS": "1",
    "KOPIATOMIC_VM_KERNEL_ARGUMENTS": "norandmaps init_on_alloc=0 hardened_usercopy=off apparmor=0 audit=0",
}
"""A run in qemu takes two thirds of the processor's time with these: what it has translated is found again where a program lies
at the same addresses, and one processor does not wait for another. Benchmarks run without."""

BATCH_S = 60
SILENCE_LIMIT_S = 600


class ElsewhereItem(pytest.Item):
    """A test once more, for another guest."""

    def __init__(self, *, test: pytest.Item, guest: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.test = test
        self.guest = guest

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        path, line, _ = self.test.reportinfo()
        return path, line, self.name

    def runtest(self) -> None:
        raise AssertionError("a guest runs it")


class ElsewhereFailure:
    """A failure's text as a worker's pytest wrote it, in the shape that pytest's terminal wants."""

    def __init__(self, text: str, crash: str) -> None:
        self.text = text
        self.reprcrash = SimpleNamespace(message=crash or text.partition("\n")[0])

    def toterminal(self, writer: Any) -> None:
        writer.line(self.text)

    def __str__(self) -> str:
        return self.text


@dataclass
class Batch:
    """Tests of one module that one pytest runs."""

    place: str
    nodeids: list[str]
    core: bool
    seconds: float


class WorkerLostError(Exception):
    """A worker, or its machine, is gone or stuck."""


class Worker:
    """A process that runs batches (tests/support/worker.py): on this machine, or in a guest that it boots."""

    def __init__(self, place: str, processor: int) -> None:
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end()
        command = ["-m", "tests.support.worker"]
        environment = dict(os.environ)
        if place == BESIDE:
            command.insert(0, sys.executable)
            environment["PYTHONPATH"] = f"{TREE}:{environment.get('PYTHONPATH', '')}"
        else:
            # How often the heavier loops run (KOPIATOMIC_TEST_...) is for the tests in there to know.
            told = [
                f"--env={name}={value}" for name, value in os.environ.items() if name.startswith("KOPIATOMIC_TEST_")
            ]
            verb = "exec" if USES_ONE_THAT_IS_UP else "run"
            command = [str(TREE / "dev" / "vm"), verb, "--stdin", *told, "--", "python3", *command]
            environment["KOPIATOMIC_VM_GUEST"] = place
            emulator = EMULATORS.get(place)
            if emulator is not None:
                environment["KOPIATOMIC_VM_EMULATOR"] = emulator
            if emulator == "qemu":
                environment = QUICK | environment
            else:
                environment["KOPIATOMIC_VM_PROCESSOR"] = str(processor)
        self.process = subprocess.Popen(
            # It ends with the thread that gives it batches, and so with this process, however that ends.
            ["setpriv", "--pdeathsig", "TERM", "--", *command],
            cwd=TREE,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            start_new_session=True,
        )
        self._silent_since = time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """End a worker that has been silent for too long."""
        while self.process.poll() is None:
            time.sleep(1)
            if time.monotonic() - self._silent_since > SILENCE_LIMIT_S:
                self.process.terminate()

    def give(self, nodeids: list[str]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(nodeids).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            # What it had to say is read next.
            return

    def next(self) -> dict[str, Any]:
        """Return the next message; WorkerLostError if none comes."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        silent = time.monotonic() - self._silent_since
        self._silent_since = time.monotonic()
        if not line:
            if silent > SILENCE_LIMIT_S:
                raise WorkerLostError(f"nothing was heard of it for {SILENCE_LIMIT_S} s")
            raise WorkerLostError(f"its machine or its pytest ended, exit code {self.process.wait()}")
        message: dict[str, Any] = json.loads(line)
        return message

    def end(self, *, in_order: bool) -> str:
        """End the worker and its machine, and return what it had to say."""
        assert self.process.stdin is not None
        if in_order:
            self.process.stdin.close()
        elif self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        with self.log:
            self.log.seek(0)
            return self.log.read()[-8000:].decode(errors="replace")


@dataclass
class Place:
    """What is known of a place, for the last lines."""

    count: int = 0
    seconds: float = 0.0
    machines: int = 0
    system: dict[str, str] = field(default_factory=dict)
    broken: str = ""


class Queue:
    """The batches that wait, and the reports that have come. Its threads hand out and take in."""

    def __init__(self, batches: Iterable[Batch], *, here: bool) -> None:
        self._changed = threading.Condition()
        self._waiting = list(batches)
        self._reports: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        self._here = here
        self._guests_busy = 0
        self._beside_busy = 0
        self._ended = False
        self._began = time.monotonic()
        self._workers: set[Worker] = set()
        self.places: defaultdict[str, Place] = defaultdict(Place)
        self.left_out: list[str] = []
        wanted = {batch.place for batch in self._waiting}
        self._threads = [threading.Thread(target=self._station, args=(BESIDE, 0))] if BESIDE in wanted else []
        if wanted - {BESIDE}:
            self._threads += [threading.Thread(target=self._station, args=("guests", n)) for n in range(MACHINES)]
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def done_here(self) -> None:
        """This process has no tests of its own any more."""
        with self._changed:
            self._here = False
            self._changed.notify_all()

    def reports(self, place: str, nodeid: str) -> Iterator[dict[str, Any]]:
        """The reports of one test, up to that of its teardown."""
        seen = 0
        while True:
            with self._changed:
                while len(self._reports[place, nodeid]) <= seen:
                    self._changed.wait()
                message = self._reports[place, nodeid][seen]
            seen += 1
            yield message
            if message["when"] == "teardown":
                return

    def end(self) -> None:
        """End every worker that still runs."""
        with self._changed:
            self._ended = True
            workers = list(self._workers)
            self._changed.notify_all()
        for worker in workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGTERM)
        for thread in self._threads:
            thread.join()

    # The threads

    def _report(self, place: str, message: dict[str, Any]) -> None:
        with self._changed:
            self._reports[place, message["nodeid"]].append(message)
            self.places[place].seconds += message["duration"]
            self.places[place].count += message["when"] == "teardown"
            self._changed.notify_all()

    def _fail(self, place: str, nodeid: str, text: str) -> None:
        for when, outcome in (("call", "failed"), ("teardown", "passed")):
            self._report(
                place, {**blank(nodeid, when), "outcome": outcome, "text": text if outcome == "failed" else ""}
            )

    def _leave_out(self, batch: Batch) -> None:
        reason = f"left out: no time for it within {BUDGET_S / 60:.0f} min"
        for nodeid in batch.nodeids:
            self.left_out.append(f"{nodeid} on {batch.place}")
            skipped = {"outcome": "skipped", "skipped": [nodeid.partition("::")[0], 0, reason]}
            self._report(batch.place, {**blank(nodeid, "setup"), **skipped})
            self._report(batch.place, blank(nodeid, "teardown"))

    def _may_begin(self, kind: str) -> bool:
        """Whether a processor is free for one more machine: as a rule this machine's own tests leave some of theirs."""
        if kind == BESIDE:
            return True
        own = self._here + self._beside_busy
        return self._guests_busy < max(1, MACHINES + 1 - own)

    def _take(self, kind: str, place: str | None) -> Batch | None:
        """Take the next batch, for the guest that is booted if there is one; None when there is none left."""
        with self._changed:
            while not self._ended:
                mine = [batch for batch in self._waiting if (batch.place == BESIDE) == (kind == BESIDE)]
                if place is not None:
                    mine = [batch for batch in mine if batch.place == place]
                if not mine:
                    return None
                if place is None and not self._may_begin(kind):
                    self._changed.wait(1)
                    continue
                batch = mine[0]
                self._waiting.remove(batch)
                if kind != BESIDE and not batch.core and time.monotonic() - self._began > BUDGET_S:
                    self._leave_out(batch)
                    continue
                if place is None:
                    self._guests_busy += kind != BESIDE
                    self._beside_busy += kind == BESIDE
                return batch
            return None

    def _station(self, kind: str, number: int) -> None:
        """Run batches: boot a machine for the first, and give it all others for that place."""
        while (batch := self._take(kind, None)) is not None:
            place = batch.place
            worker: Worker | None = None
            while batch is not None:
                if self.places[place].broken:
                    for nodeid in batch.nodeids:
                        self._fail(place, nodeid, f"not run: {self.places[place].broken}")
                else:
                    worker = self._run(batch, worker or self._start(place, number))
                batch = self._take(kind, place)
            if worker is not None:
                self._stop(worker, in_order=True)
            with self._changed:
                self._guests_busy -= kind != BESIDE
                self._beside_busy -= kind == BESIDE
                self._changed.notify_all()

    def _start(self, place: str, number: int) -> Worker:
        worker = Worker(place, PROCESSORS[number % len(PROCESSORS)])
        with self._changed:
            self._workers.add(worker)
            self.places[place].machines += 1
        return worker

    def _stop(self, worker: Worker, *, in_order: bool) -> str:
        said = worker.end(in_order=in_order)
        with self._changed:
            self._workers.discard(worker)
        return said

    def _run(self, batch: Batch, worker: Worker) -> Worker | None:
        """Run a batch, and return the worker, or None if it was lost: then what is left of the batch is waiting again."""
        left = list(batch.nodeids)
        running = left[0]
        worker.give(left)
        try:
            while "ended" not in (message := worker.next()):
                if "system" in message:
                    self.places[batch.place].system = message["system"]
                elif "starts" in message:
                    running = message["starts"]
                else:
                    self._report(batch.place, message)
                    if message["when"] == "teardown":
                        left.remove(message["nodeid"])
            if left:
                raise WorkerLostError(f"its pytest ended without a report of it, exit code {message['ended']}")
        except WorkerLostError as error:
            said = self._stop(worker, in_order=False)
            if self._ended:
                return None
            if not self.places[batch.place].system:
                self.places[batch.place].broken = f"{batch.place} did not start (see the first of its tests)"
            if left:
                victim = running if running in left else left[0]
                self._fail(batch.place, victim, f"{error}\n{said}")
                left.remove(victim)
            if left:
                with self._changed:
                    self._waiting.insert(0, Batch(batch.place, left, batch.core, batch.seconds))
            return None
        return worker


class Distribution:
    """The plugin."""

    def __init__(self) -> None:
        self.queue: Queue | None = None
        self.batches: list[Batch] = []
        self.durations = known_durations()
        self.measured: dict[str, float] = defaultdict(float)
        self.spread = False

    def place_of(self, item: pytest.Item) -> str:
        if isinstance(item, ElsewhereItem):
            return item.guest
        if item.path.is_relative_to(TESTS / "zfs"):
            return GUEST
        return BESIDE if self.spread and not item.path.is_relative_to(TESTS / "btrfs") else HERE

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        core = [item for item in items if item.path.is_relative_to(TESTS / "zfs") and item.get_closest_marker("core")]
        for guest in OTHER_GUESTS:
            for item in core:
                assert item.parent is not None
                name = f"{item.name}@{guest}"
                items.append(ElsewhereItem.from_parent(item.parent, name=name, test=item, guest=guest))
        folders = {item.path.relative_to(TESTS).parts[0] for item in items if item.path.is_relative_to(TESTS)}
        self.spread = "btrfs" in folders and bool(folders & {"unit", "packages"})
        elsewhere = [item for item in items if self.place_of(item) != HERE]
        self.batches = sorted(self.batched(elsewhere), key=rank)
        order = {
            (batch.place, nodeid): number
            for number, (batch, nodeid) in enumerate(
                (batch, nodeid) for batch in self.batches for nodeid in batch.nodeids
            )
        }
        # Stable: this process's own come first, so that the others run meanwhile.
        items.sort(key=lambda item: order.get((self.place_of(item), nodeid_of(item)), -1))

    def batched(self, items: list[pytest.Item]) -> Iterator[Batch]:
        """Batches of neighbours, which share what is costly to make, none much longer than it has to be.

        What is beside shares packages and repositories that are made once in a session: it is one.
        """
        modules: defaultdict[tuple[str, Path], list[pytest.Item]] = defaultdict(list)
        for item in items:
            place = self.place_of(item)
            modules[place, TESTS if place == BESIDE else item.path].append(item)
        for (place, _), tests in modules.items():
            limit = math.inf if place == BESIDE else BATCH_S
            batch: Batch | None = None
            for item in tests:
                nodeid = nodeid_of(item)
                core = item.get_closest_marker("core") is not None or isinstance(item, ElsewhereItem)
                seconds = self.durations.get(f"{place}:{nodeid}", 1.0)
                if batch is None or batch.seconds + seconds > limit:
                    if batch is not None:
                        yield batch
                    batch = Batch(place, [], core, 0.0)
                batch.nodeids.append(nodeid)
                batch.seconds += seconds
            if batch is not None:
                yield batch

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        if session.config.option.collectonly or session.testsfailed or not self.batches:
            return
        here = any(self.place_of(item) == HERE for item in session.items)
        self.queue = Queue(self.batches, here=here)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Literal[True] | None:
        place = self.place_of(item)
        if place == HERE or self.queue is None:
            return None
        self.queue.done_here()
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for message in self.queue.reports(place, nodeid_of(item)):
            self.measured[f"{place}:{message['nodeid']}"] += message["duration"]
            item.ihook.pytest_runtest_logreport(report=report_of(item, message))
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.queue is None:
            return
        for name, place in self.queue.places.items():
            minutes, seconds = divmod(round(place.seconds), 60)
            took = f"{place.count} tests, {minutes} min {seconds} s"
            if name == BESIDE:
                terminalreporter.write_line(f"beside tests/btrfs: {took}")
                continue
            what = "tests/zfs" if name == GUEST else "the core of tests/zfs"
            on = ", ".join(f"{program} {version}" for program, version in place.system.items())
            machine = {"uml": "User-Mode Linux"}.get(EMULATORS.get(name, ""), EMULATORS.get(name, "dev/vm"))
            terminalreporter.write_line(f"{what} on {name} ({machine}: {on}): {took} in {place.machines} machine(s)")
        for line in [*(f"LEFT OUT: {name}" for name in self.queue.left_out), *NOTES]:
            terminalreporter.write_line(line)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        if self.queue is not None:
            self.queue.end()
        if DURATIONS and self.measured:
            new = Path(f"{DURATIONS}.{os.getpid()}")
            new.write_text(json.dumps(known_durations() | self.measured))
            new.replace(DURATIONS)


def rank(batch: Batch) -> tuple[bool, bool, bool, bool, float]:
    """The order in which batches are begun: where time is short the core first; else the slowest machine and the longest."""
    short_of_time = math.isfinite(BUDGET_S)
    slow = EMULATORS.get(batch.place) == "qemu"
    return batch.place == BESIDE, short_of_time and not batch.core, not slow, batch.place != GUEST, -batch.seconds


def nodeid_of(item: pytest.Item) -> str:
    """The name that a worker's pytest knows a test by."""
    return item.test.nodeid if isinstance(item, ElsewhereItem) else item.nodeid


def known_durations() -> dict[str, float]:
    """What tests took the last time, in seconds, by place and node id."""
    try:
        known: dict[str, float] = json.loads(Path(DURATIONS or "").read_text())
    except (OSError, ValueError):
        return {}
    return known


def blank(nodeid: str, when: str) -> dict[str, Any]:
    """A report of what passed at once."""
    empty = {"duration": 0.0, "sections": [], "wasxfail": None, "skipped": None, "text": "", "crash": ""}
    return {**empty, "nodeid": nodeid, "when": when, "outcome": "passed"}


def report_of(item: pytest.Item, message: dict[str, Any]) -> pytest.TestReport:
    longrepr: Any = None
    if message["skipped"] is not None:
        path, line, reason = message["skipped"]
        longrepr = (path.replace("/source/", f"{TREE}/"), line, reason)
    elif message["text"]:
        longrepr = ElsewhereFailure(message["text"], message["crash"])
    report = pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome=message["outcome"],
        longrepr=longrepr,
        when=message["when"],
        sections=[(name, text) for name, text in message["sections"]],
        duration=message["duration"],
    )
    if message["wasxfail"] is not None:
        report.wasxfail = message["wasxfail"]
    return report


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Distribution(), "kopiatomic-distribution")
