"""Hands batches of tests to workers, on this machine and in guests (dev/vm), and takes in what they report.

A worker that hangs or breaks its machine costs one test; the tests after it get a new one.
"""

from __future__ import annotations

import json
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
from typing import IO, Any

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
EMULATORS = dict(pair.split("=") for pair in os.environ.get("KOPIATOMIC_TEST_EMULATORS", "").split())
"""What runs each guest, uml or qemu; dev/vm's choice for one that is not named."""

BUDGET_S = float(os.environ.get("KOPIATOMIC_TEST_BUDGET_S", "inf"))
"""After this time no batch for a guest is begun but those of the core; what is left out is named at the end."""

QUICK = {
    "KOPIATOMIC_VM_CPUS": "1",
    "KOPIATOMIC_VM_KERNEL_ARGUMENTS": "norandmaps init_on_alloc=0 hardened_usercopy=off apparmor=0 audit=0",
}
"""A run in qemu takes two thirds of the processor's time with these: what it has translated is found again where a program lies
at the same addresses, and one processor does not wait for another. Benchmarks run without."""

SILENCE_LIMIT_S = 600

MODULE = "tests.support.worker"
"""What a worker is started as."""


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
        command = ["-m", MODULE]
        environment = dict(os.environ)
        if place == BESIDE:
            # Its machines have filesystems mounted that the tests in this process are not to find, nor what is left there.
            command = ["unshare", "--mount", "--propagation", "private", "--", sys.executable, *command]
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


def blank(nodeid: str, when: str) -> dict[str, Any]:
    """A report of what passed at once."""
    empty = {"duration": 0.0, "sections": [], "wasxfail": None, "skipped": None, "text": "", "crash": ""}
    return {**empty, "nodeid": nodeid, "when": when, "outcome": "passed"}
