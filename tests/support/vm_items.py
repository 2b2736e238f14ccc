"""Makes tests/zfs run in the VM and count here: one boot, each test an item of its own with its own failure text.

Where several VMs are asked for, each runs a share. The tests are collected here as any other, so -k, -x, node ids and
--lf work. They start when the session does and run beside the host's own tests; their reports are taken up in their turn.
A test that hangs or breaks the VM fails, and the tests after it get a new VM.

Those that are marked ``late`` have a VM of their own, which starts when the host's own tests are done and has their processor.
Those that are marked ``core`` also run on another guest, if one is named: once more, under their name and the guest's, when
a processor is free after that.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Literal

import pytest

TREE = Path(__file__).resolve().parents[2]
VM_TESTS = TREE / "tests" / "zfs"
USES_ONE_THAT_IS_UP = os.environ.get("KOPIATOMIC_TEST_VM") == "up"
"""A developer who has a VM up may use it: it saves the boot, and is as it was left."""

VMS = 1 if USES_ONE_THAT_IS_UP else int(os.environ.get("KOPIATOMIC_TEST_VMS", "1"))
"""How many run side by side, each a share of the tests."""

SIDE_BY_SIDE = max(VMS, os.cpu_count() or 1)
"""How many there are at once when the host's own tests are done: each keeps a processor busy."""

GUEST = os.environ.get("KOPIATOMIC_VM_SUITE", "bookworm")
OTHER_GUEST = os.environ.get("KOPIATOMIC_TEST_OTHER_GUEST", "")
"""Where the core runs as well; empty for nowhere."""

QUICK = {
    "KOPIATOMIC_VM_CPUS": "1",
    "KOPIATOMIC_VM_KERNEL_ARGUMENTS": "norandmaps init_on_alloc=0 hardened_usercopy=off apparmor=0 audit=0",
}
"""A run in the emulated machine takes two thirds of the processor's time with these: what the emulator has translated is found
again where a program lies at the same addresses, and one processor does not wait for another. Benchmarks run without."""

SILENCE_LIMIT_S = 600
TRACEBACK_AFTER_S = 300


def runs_in_vm(item: pytest.Item) -> bool:
    return item.path.is_relative_to(VM_TESTS)


def is_late(item: pytest.Item) -> bool:
    return not USES_ONE_THAT_IS_UP and item.get_closest_marker("late") is not None


class OnOtherGuest(pytest.Item):
    """A test once more, for the other guest."""

    def __init__(self, *, test: pytest.Item, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.test = test

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        path, line, _ = self.test.reportinfo()
        return path, line, self.name

    def runtest(self) -> None:
        raise AssertionError("the VM runs it")


class VmFailure:
    """A failure's text as the VM's pytest wrote it, in the shape that pytest's terminal wants."""

    def __init__(self, text: str, crash: str) -> None:
        self.text = text
        self.reprcrash = SimpleNamespace(message=crash or text.partition("\n")[0])

    def toterminal(self, writer: Any) -> None:
        writer.line(self.text)

    def __str__(self) -> str:
        return self.text


class VmRun:
    """One boot of the VM with one pytest in it."""

    def __init__(self, nodeids: list[str], guest: str) -> None:
        self.messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.heard = False
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end()
        verb = "exec" if USES_ONE_THAT_IS_UP else "run"
        # How often the heavier loops run (KOPIATOMIC_TEST_...) is for the tests in there to know.
        told = [f"--env={name}={value}" for name, value in os.environ.items() if name.startswith("KOPIATOMIC_TEST_")]
        pytest_command = ["python3", "-m", "pytest", "-p", "tests.support.vm_reporter", "-p", "no:cacheprovider", "-q"]
        pytest_command += ["-o", f"faulthandler_timeout={TRACEBACK_AFTER_S}", *nodeids]
        self.process = subprocess.Popen(
            [TREE / "dev" / "vm", verb, *told, "--", *pytest_command],
            env={**QUICK, **os.environ, "KOPIATOMIC_VM_SUITE": guest},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.log,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.messages.put(json.loads(line))
        self.messages.put(None)

    def reports(self, nodeid: str) -> Iterator[dict[str, Any]]:
        """The reports of one test, up to that of its teardown; VmLostError if they cease."""
        while True:
            try:
                message = self.messages.get(timeout=SILENCE_LIMIT_S)
            except queue.Empty:
                raise VmLostError(f"the VM has been silent for {SILENCE_LIMIT_S} s") from None
            if message is None:
                raise VmLostError(f"the VM's pytest ended without a report, exit code {self.process.wait()}")
            self.heard = True
            if message["nodeid"] == nodeid:
                yield message
                if message["when"] == "teardown":
                    return

    def end(self) -> str:
        """End the VM, if it still runs, and return what it had to say."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        with self.log:
            self.log.seek(0)
            return self.log.read()[-8000:].decode(errors="replace")


class VmLostError(Exception):
    """The VM, or the pytest in it, is gone or stuck."""


@dataclass
class Share:
    """Tests that one VM runs after the other, or a new one after it was lost. ``seconds`` is what they took."""

    guest: str
    waiting: list[str]
    run: VmRun | None = None
    seconds: float = 0.0
    count: int = 0

    def start(self) -> VmRun:
        if self.run is None:
            self.run = VmRun(self.waiting, self.guest)
        return self.run

    def is_running(self) -> bool:
        return self.run is not None and self.run.process.poll() is None

    def end(self) -> str:
        run, self.run = self.run, None
        return "" if run is None else run.end()


class VmItems:
    """The plugin: takes over each item of tests/zfs."""

    def __init__(self) -> None:
        self.shares: list[Share] = []
        self.broken: str | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # Stable: theirs last, so that the host's run meanwhile.
        items.sort(key=lambda item: (runs_in_vm(item), is_late(item)))
        if OTHER_GUEST:
            core = [item for item in items if runs_in_vm(item) and item.get_closest_marker("core")]
            for item in core:
                assert item.parent is not None
                items.append(OnOtherGuest.from_parent(item.parent, name=f"{item.name}@{OTHER_GUEST}", test=item))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        if session.config.option.collectonly or session.testsfailed:
            return
        others = [item for item in session.items if isinstance(item, OnOtherGuest)]
        here = [item for item in session.items if runs_in_vm(item) and item not in others]
        nodeids = [item.nodeid for item in here if not is_late(item)]
        # Neighbours stay together: they share what is costly to make.
        length = -(-len(nodeids) // VMS) or 1
        self.shares = [Share(GUEST, nodeids[first : first + length]) for first in range(0, len(nodeids), length)]
        for share in self.shares:
            share.start()
        late = [item.nodeid for item in here if is_late(item)]
        for guest, more in ((GUEST, late), (OTHER_GUEST, [item.test.nodeid for item in others])):
            if more:
                self.shares.append(Share(guest, more))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Literal[True] | None:
        if not runs_in_vm(item):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self.reports(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        if self.broken is not None:
            yield report_of(item, failed("call", f"not run: {self.broken}"))
            return
        # The host's own tests are done by now.
        for share in self.shares:
            if share.waiting and share.run is None and sum(s.is_running() for s in self.shares) < SIDE_BY_SIDE:
                share.start()
        if isinstance(item, OnOtherGuest):
            guest, nodeid = OTHER_GUEST, item.test.nodeid
        else:
            guest, nodeid = GUEST, item.nodeid
        share = next(share for share in self.shares if share.guest == guest and nodeid in share.waiting)
        run = share.start()
        share.waiting.remove(nodeid)
        share.count += 1
        try:
            for message in run.reports(nodeid):
                share.seconds += message["duration"]
                yield report_of(item, message)
        except VmLostError as error:
            said = share.end()
            if not run.heard:
                self.broken = f"the VM with {guest} did not start (see its first test)"
            yield report_of(item, failed("call", f"{error}\n{said}"))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for share in self.shares:
            what = f"the core on {share.guest}" if share.guest == OTHER_GUEST else f"tests/zfs on {share.guest}"
            minutes, seconds = divmod(round(share.seconds), 60)
            terminalreporter.write_line(f"{what}: {share.count} tests in one VM, {minutes} min {seconds} s")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        for share in self.shares:
            share.end()


def failed(when: str, text: str) -> dict[str, Any]:
    empty = {"duration": 0.0, "sections": [], "wasxfail": None, "skipped": None, "crash": ""}
    return {**empty, "when": when, "outcome": "failed", "text": text}


def report_of(item: pytest.Item, message: dict[str, Any]) -> pytest.TestReport:
    longrepr: Any = None
    if message["skipped"] is not None:
        path, line, reason = message["skipped"]
        longrepr = (path.replace("/source/", f"{TREE}/"), line, reason)
    elif message["text"]:
        longrepr = VmFailure(message["text"], message["crash"])
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
    config.pluginmanager.register(VmItems(), "kopiatomic-vm-items")
